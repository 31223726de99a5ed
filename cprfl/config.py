"""The base of every configuration, and the translation of its validation errors into one readable list.

A component's ``Config`` stands next to the component and builds it; a whole experiment is put together in
`cprfl.experiment`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from cprfl.errors import ConfigError


class Config(BaseModel):
    """Base of every configuration: unknown keys are errors, values never change after validation."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, protected_namespaces=(), allow_inf_nan=False
    )


ConfigT = TypeVar("ConfigT", bound=Config)


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
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(not_yaml(path, error)) from None


def not_yaml(source: object, error: yaml.YAMLError | UnicodeDecodeError | RecursionError) -> str:
    """What keeps a text from being read as YAML, behind its name and the line."""
    if isinstance(error, RecursionError):
        return f"{source}: not YAML that can be read: it is nested too deeply"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{source}, line {error.problem_mark.line + 1}: not YAML: {error.problem}"
    return f"{source}: not YAML: {' '.join(str(error).split())}"


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


def read_settings(cls: type[Config], text: str) -> Any:
    """The values of a YAML document for ``cls``, in which a setting that is text takes the text as it is written.

    YAML alone would make 20240501 of ``2024_05_01``, 7 of ``007`` and False of ``no``.

    Raises:
        ConfigError: for a key that is there twice.
        yaml.YAMLError: where it does not parse.
    """
    return _values(yaml.compose(text, Loader=yaml.SafeLoader), cls, cls)


def read_override(cls: type[Config], override: str, before: Mapping[str, Any]) -> dict[str, Any]:
    """``a.b=value`` as nested values for ``cls``; ``before`` tells which components the settings belong to.

    Raises:
        ConfigError: where it is no override, or its value is empty or not what YAML takes.
    """
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {override}: expected a.b=value")
    annotation: Any = cls
    place: Any = before
    for key in keys:
        annotation = _annotation_of(annotation, key, place.get("name") if isinstance(place, Mapping) else None, cls)
        place = place.get(key) if isinstance(place, Mapping) else None
    if _is_text(annotation):
        if not text and _may_be_none(annotation):
            raise ConfigError(f"--set {override}: empty; give a value, or null for none")
        value: Any = None if _may_be_none(annotation) and text == "null" else text
    else:
        try:
            value = _values(yaml.compose(text, Loader=yaml.SafeLoader), annotation, cls)
        except (yaml.YAMLError, RecursionError) as error:
            raise ConfigError(not_yaml(f"--set {override}", error)) from None
    for key in reversed(keys):
        value = {key: value}
    changes: dict[str, Any] = value
    return changes


class SameAsRoot:
    """Marks, in an annotation, a mapping of changes to the configuration that it is a part of."""


def _values(node: yaml.Node | None, annotation: Any, root: type[Config]) -> Any:
    """The value of a YAML node where a setting of this type is expected."""
    if node is None:
        return None
    if isinstance(node, yaml.ScalarNode):
        nothing = node.tag == "tag:yaml.org,2002:null"
        if _is_text(annotation) and not (nothing and (_may_be_none(annotation) or not node.value)):
            return node.value  # `null` too, where there is no nothing: it may be the name of a class
        return _construct(node)
    if isinstance(node, yaml.SequenceNode):
        inner = next(iter(get_args(_bare(annotation, list))), Any)
        return [_values(item, inner, root) for item in node.value]
    assert isinstance(node, yaml.MappingNode)
    keys = [str(key.value) for key, _ in node.value]
    for key, _ in node.value:
        if keys.count(str(key.value)) > 1:
            lines = [str(other.start_mark.line + 1) for other, _ in node.value if other.value == key.value]
            raise ConfigError(f"{key.value}: given more than once, in lines {' and '.join(lines)}; leave one")
    yaml.SafeLoader("").flatten_mapping(node)  # what `<<` brings comes first, and the mapping's own overrides it
    name = next((value.value for key, value in reversed(node.value) if key.value == "name"), None)
    return {
        str(key.value): _values(value, _annotation_of(annotation, str(key.value), name, root), root)
        for key, value in node.value
    }


def _construct(node: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _annotation_of(annotation: Any, key: str, name: Any, root: type[Config]) -> Any:
    """The type of the setting ``key`` of a section; ``name`` chooses the component where there are several."""
    if SameAsRoot in _parts(annotation):
        annotation = root
    for cls in components(annotation, name) or _config_classes(annotation):
        if key in cls.model_fields:
            field = cls.model_fields[key]
            return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    mapped = get_args(_bare(annotation, dict))
    return mapped[1] if len(mapped) == 2 else Any


def components(annotation: Any, name: Any) -> list[type[Config]]:
    """The configuration classes of a setting whose ``name`` this is: the chosen one of several components."""
    classes = _config_classes(annotation)
    return [found for found in classes if "name" in found.model_fields and found.model_fields["name"].default == name]


def _parts(annotation: Any) -> Iterator[Any]:
    """An annotation's alternatives, and what is attached to them."""
    yield annotation
    if get_origin(annotation) in (Annotated, Union, UnionType):
        for argument in get_args(annotation):
            yield from _parts(argument)


def _bare(annotation: Any, kind: type) -> Any:
    return next((part for part in _parts(annotation) if get_origin(part) is kind), None)


def _is_text(annotation: Any) -> bool:
    parts = list(_parts(annotation))
    return str in parts and not {int, float, bool} & {part for part in parts if isinstance(part, type)}


def _may_be_none(annotation: Any) -> bool:
    return type(None) in _parts(annotation)


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
