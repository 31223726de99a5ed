"""`docker compose` for what `infra/README.md` says of backups: the same programs, run on this machine.

What is replaced: the database's container by the PostgreSQL server that ``PGHOST`` and ``PGPORT`` name, the bucket by
the one that ``HERE_BUCKET`` names, and where containers see a folder, its path here.
"""

from __future__ import annotations

import argparse
import getpass
import os
import subprocess
import sys
from pathlib import Path

import yaml

COMPOSE = Path(__file__).parent.parent / "infra" / "compose.yaml"
PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


def program(name: str) -> str:
    """Path of one of PostgreSQL's programs."""
    assert PROGRAMS is not None
    return str(PROGRAMS / name)


def as_served(command: list[str]) -> list[str]:
    """The command as somebody whom PostgreSQL's programs serve: they refuse root."""
    return ["runuser", "-u", "postgres", "--", *command] if getpass.getuser() == "root" else command


def parsed(words: list[str]) -> argparse.Namespace:
    """What a person asked for; an option that is not known here ends it."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--file", "-f", required=True)
    commands = parser.add_subparsers(dest="command", required=True)
    started, executed, run = (commands.add_parser(name) for name in ("up", "exec", "run"))
    started.add_argument("--wait", action="store_true")
    started.add_argument("services", nargs="+")
    for each in (executed, run):
        each.add_argument("-T", action="store_true")
    for flag in ("--rm", "--no-deps"):
        run.add_argument(flag, action="store_true")
    for option in ("--user", "--volume", "--entrypoint"):
        run.add_argument(option)
    for each in (executed, run):
        each.add_argument("service")
        each.add_argument("words", nargs=argparse.REMAINDER)
    return parser.parse_args(words)


def translated(word: str, volume: str | None) -> str:
    """A word of a container's command line, for this machine."""
    word = word.replace("s3://mlflow", f"s3://{os.environ['HERE_BUCKET']}")
    word = word.replace('"mlflow"', f'"{os.environ["HERE_BUCKET"]}"')  # in the program that makes the bucket
    here, _, there = (volume or ":").partition(":")
    return word.replace(there, here) if there else word


def main() -> int:
    """Run one command, as its exit status."""
    assert sys.argv[1] == "compose"
    asked = parsed(sys.argv[2:])
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    if asked.command == "up":
        assert asked.wait and asked.services == ["database", "store"]  # which the test has started
        return 0
    if asked.command == "exec":
        assert asked.T and asked.service == "database"
        name, *rest = asked.words
        return subprocess.run(as_served([program(name), *rest]), cwd="/", check=False).returncode
    service = services[asked.service]
    entrypoint = [asked.entrypoint] if asked.entrypoint else service["entrypoint"]
    assert asked.rm and entrypoint[0] == "python"
    words = [*entrypoint[1:], *(asked.words or service["command"])]
    region = service["environment"]["AWS_DEFAULT_REGION"]
    return subprocess.run(
        [sys.executable, *(translated(word, asked.volume) for word in words)],
        env={**os.environ, "AWS_DEFAULT_REGION": region}, check=False,
    ).returncode  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
