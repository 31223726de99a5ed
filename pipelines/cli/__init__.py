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

    status = 0
    try:
        run()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    if (connection := sys.modules.get("pipelines.cluster.connection")) is not None:
        connection.leave(status)  # Ray, which may be gone, is not waited for
    sys.exit(status)
