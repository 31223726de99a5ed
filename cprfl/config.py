"""The base of every configuration, and the translation of its validation errors into one readable list.

A component's ``Config`` stands next to the component and builds it; a whole experiment is put together in
`cprfl.experiment`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, ValidationInfo

from cprfl.errors import ConfigError


class Config(BaseModel):
    """Base of every configuration: unknown keys are errors, values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())


ConfigT = TypeVar("ConfigT", bound=Config)


def _resolve(path: str, info: ValidationInfo) -> str:
    """Prefix a relative path with the validation context's ``data_root``, if there is one."""
    root = (info.context or {}).get("data_root")
    if root is None or path.startswith("/") or "://" in path:
        return path
    return f"{root.rstrip('/')}/{path}"


DataPath = Annotated[str, AfterValidator(_resolve)]
"""A path or URI in a dataset or encoder section: relative to the experiment's ``data_root``."""


def validate(cls: type[ConfigT], values: object, *, source: str, **context: str) -> ConfigT:
    """Validate ``values`` as ``cls``.

    Raises:
        ConfigError: listing every mistake with its path, what was given and what would be right.
    """
    try:
        return cls.model_validate(values, context=context)
    except ValidationError as error:
        mistakes = [f"  {_describe(cls, dict(detail))}" for detail in error.errors()]
        noun = "mistake" if len(mistakes) == 1 else "mistakes"
        raise ConfigError("\n".join([f"{source}: {len(mistakes)} {noun}", *mistakes])) from None


def read_yaml(path: Path, what: str) -> Any:
    """The values of a YAML file; ``what`` names it in errors.

    Raises:
        ConfigError: where there is none, or it does not parse.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: {what} file not found")
    try:
        return yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None


def _describe(cls: type[Config], detail: dict[str, Any]) -> str:
    path, owner = _walk(cls, detail["loc"])
    given = detail.get("input")
    match detail["type"]:
        case "extra_forbidden":
            name, parent = path[-1], ".".join(path[:-1]) or "the top level"
            names = sorted(owner.model_fields) if owner else []
            return (
                f"{'.'.join(path)}: no such setting{_nearest(name, names)} (settings of {parent}: {', '.join(names)})"
            )
        case "missing":
            return f"{'.'.join(path)}: missing; give it in the file or with --set {'.'.join(path)}=..."
        case "union_tag_invalid":
            tag, valid = detail["ctx"]["tag"], _unquote(detail["ctx"]["expected_tags"])
            return f"{'.'.join(path)}.name: no such choice {tag!r}{_nearest(tag, valid)} (choices: {', '.join(valid)})"
        case "union_tag_not_found":
            return f"{'.'.join(path)}.name: missing; it chooses the component"
        case "literal_error":
            valid = _unquote(detail["ctx"]["expected"].replace(" or ", ", "))
            return f"{'.'.join(path)}: got {given!r}{_nearest(str(given), valid)}; valid: {', '.join(valid)}"
        case _:
            message = detail["msg"].removeprefix("Value error, ")
            shown = "" if isinstance(given, dict | Config) else f"got {given!r}; "
            return f"{'.'.join(path) or 'the experiment'}: {shown}{message[:1].lower()}{message[1:]}"


def _unquote(listing: str) -> list[str]:
    return [item.strip().strip("'") for item in listing.split(",")]


def _nearest(name: str, valid: list[str]) -> str:
    close = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _walk(cls: type[Config], loc: tuple[str | int, ...]) -> tuple[list[str], type[Config] | None]:
    """Follow an error's location from ``cls``.

    Returns:
        The path as the user wrote it (pydantic's union tags and branch names left out), and the configuration class
        that holds its last part.
    """
    path: list[str] = []
    owners: list[type[Config]] = [cls]
    owner: type[Config] | None = cls
    for part in loc:
        tagged = [c for c in owners if "name" in c.model_fields and c.model_fields["name"].default == part]
        if path and tagged and len(owners) > 1:
            owners = tagged
            continue
        if isinstance(part, int):
            path.append(f"[{part}]")
            continue
        if part.startswith(("function-", "constrained-", "list[", "dict[")) or part in ("str", "int", "float", "bool"):
            continue
        path.append(part)
        owner = next((c for c in owners if part in c.model_fields), owners[0] if owners else None)
        field = owner.model_fields.get(part) if owner else None
        owners = list(_config_classes(field.annotation)) if field else []
    return path, owner


def _config_classes(annotation: Any) -> Iterator[type[Config]]:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
    elif get_origin(annotation) is not None:
        for argument in get_args(annotation):
            yield from _config_classes(argument)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten a configuration's ``model_dump`` to dotted names, as MLflow wants its parameters."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat
