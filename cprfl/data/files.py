"""Files that appear whole or not at all, and say of themselves whether they are still what was written.

What we write for ourselves to read again is a record (JSON, here), a file of tensors (`cprfl.data.tensor_files`) or a
table (`cprfl.data.table_files`). Each holds a checksum of its content, each is read by one function, and that function
turns whatever may have happened to the file into one error with its name and the mend.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

from cprfl.errors import UserError

CHECKSUM = "checksum"
"""The entry of a file that holds its checksum."""


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that becomes ``path`` if the block succeeds and vanishes if it fails.

    Its mode is what the umask says, whatever library writes it. It is not synchronised: a power cut may leave a hollow
    file, which its checksum betrays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # process ids meet where containers share storage
    try:
        aside.touch()
        mode = aside.stat().st_mode
        yield aside
        if aside.stat().st_mode != mode:  # some libraries put a private file in its place
            aside.chmod(mode)
        aside.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # writing to an open file names none
        raise
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with write_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, values: object) -> None:
    """Write ``values`` as JSON, whole or not at all; NaN is an error rather than invalid JSON."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_record(path: Path, values: Mapping[str, Any]) -> None:
    """Write ``values`` as JSON with their checksum, whole or not at all; `read_record` reads them."""
    write_json(path, sealed(values))


def read_record(path: Path, error: type[UserError], mend: str) -> dict[str, Any]:
    """What `write_record` wrote.

    Args:
        path: of the file.
        error: to raise where it is not what was written.
        mend: what the user can do then.

    Raises:
        UserError: ``error``, where the file is missing, cannot be read, is damaged, or is no record of ours.
    """
    values = unsealed(read_json(path, error, mend))
    if values is None:
        raise error(f"{path}: damaged (its content has changed), or of another version; {mend}")
    return values


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON-like values as a record: as they will be read (keys are text, tuples are lists), with their checksum."""
    said = json.loads(json.dumps(values))
    return {**said, CHECKSUM: fingerprint(said)}


def unsealed(values: Any) -> dict[str, Any] | None:
    """What was sealed as a record; None where this is no record, or not the one that was sealed."""
    if not isinstance(values, dict) or CHECKSUM not in values:
        return None
    said = {name: value for name, value in values.items() if name != CHECKSUM}
    try:
        return said if values[CHECKSUM] == fingerprint(said) else None
    except UnicodeEncodeError:  # half of a surrogate pair, which we never write
        return None


def read_json(path: Path, error: type[UserError], mend: str) -> Any:
    """The values of a JSON file that has no checksum; arguments and errors are those of `read_record`."""
    with reading(path, error, mend):
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as problem:  # no UTF-8, no JSON, or nested without an end
            raise error(f"{path}: damaged ({problem}); {mend}") from None


@contextmanager
def reading(path: Path, error: type[UserError], mend: str) -> Iterator[None]:
    """Raise ``error`` where a file that the block reads is missing or cannot be read; arguments as `read_record`'s."""
    try:
        yield
    except FileNotFoundError:
        raise error(f"{path}: missing; {mend}") from None
    except OSError as problem:
        raise error(f"{path}: cannot be read ({problem.strerror or problem}); {mend}") from None


def fingerprint(values: Any) -> str:
    """16 hexadecimal digits that any change of the JSON-like ``values`` changes."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def fast_digest(path: Path) -> str:
    """XXH3 of a file's bytes, in hexadecimal: whether they are still the same, not who wrote them."""
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
