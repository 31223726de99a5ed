"""Settings as people write them: a YAML file, overrides, and what a section becomes where another changes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cprfl.config import Config, read_override, read_settings
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
    try:
        base = read_settings(cls, Path(path).read_text())
        if isinstance(base, dict):
            check_interpolations(base, str(path))
            base = OmegaConf.to_container(OmegaConf.create(base), resolve=True)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(base, dict):
        raise ConfigError(f"{path}: expected settings as `key: value`, got a {type(base).__name__}")
    merged = base
    for override in overrides:
        merged = merge(merged, read_override(cls, override, merged))
    return merged


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """OmegaConf's merge, except that a section whose ``name`` changes is replaced: its settings belong to another."""
    kept = {key: {} if _picks_another(base[key], changes.get(key)) else base[key] for key in base}
    merged = OmegaConf.to_container(OmegaConf.merge(OmegaConf.create(kept), OmegaConf.create(changes)))
    assert isinstance(merged, dict)
    return merged


def _picks_another(section: Any, change: Any) -> bool:
    if not isinstance(section, dict) or not isinstance(change, dict):
        return False
    return "name" in change and change["name"] != section.get("name")
