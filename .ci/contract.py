"""Writes docs/api.md: the names, commands and settings that stay what they are from one minor version to the next.

`make api` writes it; `tests/test_contract.py` says when it no longer fits the code.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, get_args

import typer
from pydantic import BaseModel
from typer.core import TyperGroup

from cprfl.experiment import AnyDataset, AnyEncoder, AnyTextEncoder, Experiment
from cprfl.losses import LOSSES
from cprfl.models import AnyMethod
from pipelines.cli.app import app
from pipelines.sweeps.config import SweepConfig

TARGET = Path(__file__).parent.parent / "docs" / "api.md"
# What programs outside may name. Where nothing is listed, it is what the module itself exports (`__all__`).
PUBLIC: dict[str, tuple[str, ...]] = {
    "cprfl.experiment": ("load", "Experiment"),
    "cprfl.preparation": ("prepare",),
    "cprfl.recipe": ("train",),
    "cprfl.inference.scoring": ("evaluate_checkpoint",),
    "cprfl.inference.predictor": ("Predictor",),
    "cprfl.losses": (),
    "cprfl.models": (),
    "cprfl.evaluation": (),
    "cprfl.data.manifest": ("Manifest",),
    "cprfl.data.long_tail": ("class_counts", "groups"),
    "cprfl.data.feature_store": ("FeatureStore",),
    "cprfl.data.readers.base": ("DatasetConfig",),
    "cprfl.data.readers.annotations": ("Annotations", "Row"),
    "cprfl.errors": (),
}
BUILT_IN = {BaseModel, object, Exception}
HEAD = """# The public contract

Written by `make api` from signatures and docstrings; not by hand. What stands here keeps its name and meaning within a
minor version (0.2.x); a change of it comes with the next one and stands in [CHANGELOG.md](../CHANGELOG.md). Everything
else may change at any time. All docstrings as pages: `make docs`, then `build/docs/index.html`.

Files count too: those of `outputs/<name>/` and their formats, as [architecture.md](architecture.md#what-flows) lists
them, and the exit status of every command (0 done, 1 a mistake of ours, 2 what you can mend).
"""


class Written(str):
    """An annotation as it stands in the source: `inspect` shows strings in quotes."""

    def __repr__(self) -> str:
        return str(self)


def signature(called: Callable[..., Any]) -> str:
    """The parameters and what is returned, as in the source but for ``self``."""
    found = inspect.signature(called)

    def written(value: Any) -> Any:
        return Written(value) if isinstance(value, str) else value

    parameters = [
        parameter.replace(annotation=written(parameter.annotation))
        for parameter in found.parameters.values()
        if parameter.name not in ("self", "cls")
    ]
    text = str(found.replace(parameters=parameters, return_annotation=written(found.return_annotation)))
    return re.sub(r"<function .*? at 0x\w+>|<factory>", "...", text)


def summary(thing: Any) -> str:
    """The first sentence of a docstring, in one line."""
    text = " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].replace("|", "\\|").split())
    return re.split(r"(?<=[a-z)\]`*'\"][.;:]) ", text, maxsplit=1)[0].rstrip(".;:")


def members(cls: type) -> Iterator[str]:
    """The public methods that a class brings, a line each; what it only does in its own way is its base's."""
    for name, member in vars(cls).items():
        bound = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        known = any(hasattr(base, name) for base in cls.__bases__)
        if not name.startswith("_") and inspect.isfunction(bound) and not known:
            yield f"  - `.{name}{signature(bound)}`: {summary(bound)}"


def library() -> Iterator[str]:
    """What can be imported."""
    for place, names in PUBLIC.items():
        module = importlib.import_module(place)
        yield f"\n### `{place}`\n"
        for name in names or exported(module):
            thing = getattr(module, name)
            if inspect.isclass(thing):
                bases = ", ".join(base.__name__ for base in thing.__bases__ if base not in BUILT_IN)
                yield f"- class `{name}{f'({bases})' if bases else ''}`: {summary(thing)}"
                if not issubclass(thing, BaseModel | Exception) and "__init__" in vars(thing):
                    yield f"  - `{name}{signature(thing.__init__).partition(' -> ')[0]}`"
                yield from members(thing)
            elif inspect.isfunction(thing):
                yield f"- `{name}{signature(thing)}`: {summary(thing)}"
            else:
                yield f"- `{name}`"


def exported(module: Any) -> list[str]:
    """What a module exports, or the public classes that stand in it."""
    own = [name for name, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__]
    return sorted(getattr(module, "__all__", [name for name in own if name[0] != "_"]))


def fields(config: type[BaseModel], beside: Collection[str] = ("name",)) -> list[str]:
    """The settings of a section, each with its default; those without one are required."""
    return [
        f"`{name}`" if field.is_required() else f"`{name}={shown(field.get_default(call_default_factory=True))}`"
        for name, field in config.model_fields.items()
        if name not in beside
    ]


def shown(value: Any) -> str:
    """A default as YAML has it; a section's is its own, in its own line."""
    if isinstance(value, BaseModel):
        return "{...}"
    return json.dumps(value) if value is None or isinstance(value, bool | list | dict) else str(value)


def sections() -> Iterator[str]:
    """What a YAML may say."""
    yield "\n### An experiment\n"
    yield f"- {', '.join(fields(Experiment, beside=()))}"
    for name, field in Experiment.model_fields.items():
        if inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel):
            yield from section(name, field.annotation)
    for name, union in (
        ("dataset", AnyDataset), ("encoder", AnyEncoder), ("text_encoder", AnyTextEncoder), ("model", AnyMethod),
    ):  # fmt: skip
        yield f"\n### `{name}.name`\n"
        configs = get_args(get_args(union)[0])
        common = set.intersection(*[set(fields(config)) for config in configs])
        if common:
            yield f"- all of them: {', '.join(found for found in fields(configs[0]) if found in common)}"
        for config in configs:
            own = [found for found in fields(config) if found not in common]
            yield f"- `{config.model_fields['name'].default}`: {', '.join(own) or 'no more'}"
    yield "\n### `loss.name`\n"
    for name, make in LOSSES.items():
        parameters = inspect.signature(make).parameters.values()
        given = [p for p in parameters if p.name not in ("class_counts", "num_images", "reduction")]
        yield f"- `{name}`: {', '.join(f'`{p.name}={shown(p.default)}`' for p in given) or 'no settings'}"
    yield "\n### A sweep\n"
    yield f"- {', '.join(fields(SweepConfig))}"


def section(path: str, config: type[BaseModel]) -> Iterator[str]:
    """A section and what is nested in it."""
    yield f"- `{path}`: {', '.join(fields(config))}"
    for name, field in config.model_fields.items():
        if inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel):
            yield from section(f"{path}.{name}", field.annotation)


def commands() -> Iterator[str]:
    """What can be typed."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    yield from lines(group, "cprfl")


def lines(group: TyperGroup, above: str) -> Iterator[str]:
    """The commands of a group, a line each."""
    for name, command in sorted(group.commands.items()):
        if isinstance(command, TyperGroup):
            yield from lines(command, f"{above} {name}")
            continue
        words = [f"{above} {name}"]
        for parameter in command.params:
            if parameter.param_type_name == "argument":
                words.append((parameter.metavar or parameter.name or "").upper())
            elif not getattr(parameter, "hidden", False):
                words.append(f"[{' / '.join([*parameter.opts, *parameter.secondary_opts])}]")
        help_text = " ".join((command.help or "").partition("\n\n")[0].split()).rstrip(".")
        yield f"- `{' '.join(words)}`: {help_text}"


def page() -> str:
    """The whole document."""
    parts = [HEAD, "## Commands\n", *commands(), "\n## Settings", *sections(), "\n## Library", *library()]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    TARGET.write_text(page())
    sys.stdout.write(f"{TARGET}\n")
