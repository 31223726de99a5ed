"""Settings that say where files are: what they may be, and that only they may name variables of the environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cprfl.errors import ConfigError

PLACES = ("output_dir", "data_root", "feature_dir")
"""Settings that say where files are: they may name variables of the environment, ``${oc.env:DATA}/photos``."""
_COMPUTES = re.compile(r"\$\{.*:", re.DOTALL)
_SECRET = re.compile(r"secret|passw|token(?!i[sz])|credential|private|api_?key|access_?key", re.IGNORECASE)


def check_place(where: str, place: Any, may_be_none: bool) -> None:
    """Make sure that a folder is named: what is written into ``./None`` is looked for in vain.

    Raises:
        ConfigError: where it is empty, or no path.
    """
    if place is None and may_be_none:
        return
    text = str(place).strip()
    if text in ("", "null", "None"):
        raise ConfigError(f"{where} is empty; give a folder")
    if "\0" in text:
        raise ConfigError(f"{where}: got {place!r}; no path has a character NUL in it")


def tells_of_a_secret(name: str) -> bool:
    """Whether a variable, by its name, holds what nobody else is to read."""
    return _SECRET.search(name) is not None


def check_interpolations(values: Mapping[str, Any], source: str, sections: tuple[str, ...] = ()) -> None:
    """Make sure that no value of the environment is recorded: settings are in checkpoints, MLflow and reports.

    Raises:
        ConfigError: where a setting names a variable, and says no place; or a variable whose name tells of a secret.
    """
    for key, value in values.items():
        path = (*sections, str(key))
        if isinstance(value, Mapping):
            check_interpolations(value, source, path)
        elif isinstance(value, list):
            check_interpolations(dict(zip(map(str, range(len(value))), value, strict=True)), source, path)
        elif isinstance(value, str) and _COMPUTES.search(value):
            if path not in [(place,) for place in PLACES]:
                mend = f"only {', '.join(PLACES)} may name variables of the environment; write the value itself"
                raise ConfigError(f"{source}: {'.'.join(path)}: {value}: settings are recorded with every run; {mend}")
            if tells_of_a_secret(value):
                raise ConfigError(f"{source}: {'.'.join(path)}: {value}: a path is recorded, and no place for a secret")
