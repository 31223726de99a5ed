"""Builds all docstrings of the library as pages: `make docs`, into build/docs. A warning of pdoc's ends it."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import get_type_hints

import pdoc
import pdoc.render

import cprfl

TARGET = Path(__file__).parent.parent / "build" / "docs"


def names() -> Iterator[str]:
    """Every module of the library."""
    yield "cprfl"
    yield from (found.name for found in pkgutil.walk_packages(cprfl.__path__, "cprfl."))


def behind_a_front() -> list[str]:
    """Modules of packages that export names of their own (`__all__`), which pdoc shows instead of them."""
    return [name for name in names() if hasattr(importlib.import_module(name.rpartition(".")[0] or name), "__all__")]


def resolve_named_tuples(name: str) -> None:
    """Give `typing.NamedTuple`'s constructors, which live in no module, the types that their annotations mean."""
    module = importlib.import_module(name)
    for _, found in inspect.getmembers(module, inspect.isclass):
        if found.__module__ == name and issubclass(found, tuple) and hasattr(found, "_fields"):
            found.__new__.__annotations__ = get_type_hints(found)


def build(target: Path) -> None:
    """Write the pages below a folder."""
    warnings.simplefilter("error", UserWarning)  # what pdoc warns by
    for name in names():
        resolve_named_tuples(name)
    pdoc.render.configure(docformat="google", show_source=False, search=True, math=False)
    pdoc.pdoc("cprfl", *behind_a_front(), output_directory=target)


if __name__ == "__main__":
    build(Path(sys.argv[1]) if sys.argv[1:] else TARGET)
