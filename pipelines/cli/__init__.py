"""The command line: parse, call a stage, print."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command, or say what it needs where only the library is installed."""
    try:
        import typer  # noqa: F401
    except ModuleNotFoundError:
        sys.exit("cprfl: the command line needs more than the library: pip install 'cprfl[pipelines]'")
    from pipelines.cli.app import main as run

    run()
