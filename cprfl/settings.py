"""Settings as people write them: a YAML file, overrides, and what a section becomes where another changes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cprfl.config import Config, not_yaml, read_override, read_settings
from cprfl.errors import ConfigError
from cprfl.named_places import check_interpolations


def check_there(path: str | Path) -> None:
    """Make sure that there is such a file.

    Raises:
        ConfigError: where there is none.
    """
    if not Path(path).is_file():
        raise ConfigError(f"{path}: configuration file not found")


def read(cls: type[Config], path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The settings of a YAML file with ``a.b=value`` overrides, as they are written.

    Args:
        cls: whose settings they are, for the types that YAML leaves open.
        path: of the file.
        overrides: in the order in which they are given.

    Raises:
        ConfigError: where the file or an override cannot be read.
    """
    check_there(path)
    base = _read(cls, Path(path))
    check_interpolations(base, str(path))
    try:
        base = OmegaConf.to_container(OmegaConf.create(base), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None
    merged = base
    for override in overrides:
        merged = merge(merged, read_override(cls, override, merged))
    return merged


def _read(cls: type[Config], path: Path) -> dict[str, Any]:
    try:
        found = read_settings(cls, path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(not_yaml(path, error)) from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(found, dict):
        given = "nothing" if found is None else f"a {type(found).__name__}"
        raise ConfigError(f"{path}: expected settings as `key: value`, got {given}")
    return found


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Settings with changes, section by section.

    A section is replaced where its ``name`` changes, since its settings belong to another one, and where the change is
    empty: ``variants={}`` leaves none.
    """
    return base | {key: _changed(base.get(key), change) for key, change in changes.items()}


def _changed(section: Any, change: Any) -> Any:
    if not isinstance(section, dict) or not isinstance(change, dict) or not change:
        return change
    picks_another = "name" in change and change["name"] != section.get("name")
    return change if picks_another else merge(section, change)
