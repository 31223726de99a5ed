"""The filesystem behind a URI: a disk, S3 and the other clouds, web servers, and through fsspec the rest.

Credentials come from the environment, in whichever process opens the file.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import fsspec
import pyarrow as pa
from pyarrow import fs

from cprfl.data.clouds import VARIABLES, new_azure, new_gcs, new_s3
from cprfl.data.trouble import Patience, Trouble, TroubleError, described, trouble
from cprfl.data.web import WebFileSystem
from cprfl.errors import StorageError

_FILESYSTEM_SECONDS = 600  # boto3 renews credentials that expire within 15 minutes
_SAYS_NOTHING = re.compile(r"operation: *(No response body.*)?$")
_WITH_BUCKETS = ("s3", "gs", "gcs", "abfs", "abfss", "az")
_USER_AT_HOST = ("abfs", "abfss", "az")  # Azure writes container@account

Result = TypeVar("Result")


def is_remote(uri: str) -> bool:
    """Whether ``uri`` names something else than a local path."""
    return "://" in uri and not uri.startswith("file://")


def absolute(uri: str) -> str:
    """The same path from the root on; a URI as it is."""
    return uri if "://" in uri else str(Path(uri).absolute())


def local_path(uri: str) -> Path:
    """The path of a local URI."""
    return Path(uri.removeprefix("file://"))


def filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of ``uri`` and the path in it.

    Raises:
        StorageError: for an unknown scheme, or credentials in the URI.
    """
    if not is_remote(uri):
        return fs.LocalFileSystem(), str(local_path(uri))
    scheme, _, rest = uri.partition("://")
    authority, _, path = rest.partition("/")
    if "@" in authority and (scheme not in _USER_AT_HOST or ":" in authority.partition("@")[0]):
        raise StorageError(
            f"{scheme}://...@{rest.partition('@')[2]}: no credentials in a URI, it is logged; put them into the "
            "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or a profile (AWS_PROFILE)"
        )
    opened, base = _opened(scheme, authority)
    return opened, f"{base}/{path}".strip("/") if path else base


@dataclass(frozen=True)
class _Made:
    """A filesystem as it was made."""

    since: float
    opened: fs.FileSystem
    base: str


_Place = tuple[str, tuple[tuple[str, str], ...]]  # a bucket or host, with what the environment says of it
_made: dict[_Place, _Made] = {}
_buckets: set[_Place] = set()  # that exist
_served: dict[_Place, float] = {}  # when each last gave what it was asked for


def _place(uri: str) -> _Place:
    root = "/".join(uri.split("/")[:3])
    return root, tuple(sorted(item for item in os.environ.items() if item[0].startswith(VARIABLES)))


def _opened(scheme: str, authority: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a bucket and the bucket's path in it.

    Made once, for images are opened one by one, and anew where it is old: credentials of roles expire.
    """
    place = _place(f"{scheme}://{authority}")
    made = _made.get(place)
    if made is None or time.monotonic() - made.since > _FILESYSTEM_SECONDS:
        with named(place[0]):
            opened, base = _new_filesystem(scheme, authority)
        made = _made[place] = _Made(time.monotonic(), opened, base.rstrip("/"))
    return made.opened, made.base


def _forget(opened: fs.FileSystem) -> None:
    """Have the filesystem made anew, with credentials read anew."""
    for key in [key for key, made in list(_made.items()) if made.opened is opened]:
        _made.pop(key, None)


def on(uri: str, work: Callable[[fs.FileSystem, str], Result]) -> Result:
    """What ``work`` makes of the filesystem of ``uri`` and the path in it.

    It is done again where a remote storage is in trouble that may pass (`trouble.PATIENCE`), with credentials read
    anew where they have expired: ``work`` must be such that doing it twice does no harm.

    Raises:
        FileNotFoundError: as ``work`` does.
        StorageError: for all else that the filesystem raises: what, where and the mend.
    """
    if not is_remote(uri):
        with named(uri):
            return work(*filesystem(uri))
    place = _place(uri)
    patience = Patience(known=place in _served)
    while True:
        opened: fs.FileSystem | None = None
        try:
            opened, path = filesystem(uri)
            result = work(opened, path)
        except FileNotFoundError:
            _served[place] = time.monotonic()
            raise
        except (OSError, pa.ArrowException, StorageError) as error:
            told = error if opened is None else _full_answer(opened, path, error)
            kind = trouble(told)
            if kind is Trouble.EXPIRED and opened is not None:
                _forget(opened)
            if patience.wait(kind, _served.get(place, 0.0)):
                continue
            with named(uri):
                raise told from None
        _served[place] = time.monotonic()
        return result


def _full_answer(opened: fs.FileSystem, path: str, error: Exception) -> Exception:
    """What S3 says where it is asked with another request: an answer to HEAD has no room for why it refuses."""
    if not isinstance(opened, fs.S3FileSystem) or trouble(error) is not None or not _SAYS_NOTHING.search(str(error)):
        return error
    try:
        opened.get_file_info(fs.FileSelector(f"{path.partition('/')[0]}/.cprfl-asks-why", allow_not_found=True))
    except OSError as told:
        return told if "ACCESS_DENIED" not in str(told) else error
    return error


def check_bucket(uri: str) -> None:
    """Say so where the bucket of a URI does not exist; what is in it need not.

    Raises:
        StorageError: where there is no such bucket.
    """
    place = _place(uri)
    root = place[0]
    if uri.partition("://")[0] not in _WITH_BUCKETS or place in _buckets:
        return
    try:
        found = on(root, lambda opened, path: opened.get_file_info(path).type)
    except TroubleError:
        raise
    except StorageError:  # without a right to ask for the bucket itself
        return
    if found == fs.FileType.NotFound:
        raise StorageError(f"{root}: no such bucket; make it, or correct its name")
    _buckets.add(place)


def _new_filesystem(scheme: str, authority: str) -> tuple[fs.FileSystem, str]:
    if scheme == "s3":
        return new_s3(), authority
    if scheme in ("gs", "gcs"):
        return new_gcs(), authority
    if scheme in ("abfs", "abfss", "az"):
        return new_azure(authority)
    if scheme in WebFileSystem.protocol:
        return fs.PyFileSystem(fs.FSSpecHandler(WebFileSystem())), f"{scheme}://{authority}"
    try:
        opened: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(f"{scheme}://{authority}")
        return opened
    except pa.ArrowInvalid:  # a scheme that Arrow does not know
        pass
    try:
        return fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem(scheme))), authority
    except ImportError as error:
        raise StorageError(f"{scheme}://{authority}: {error}") from None
    except ValueError:
        raise StorageError(f"{scheme}://{authority}: no such kind of storage as {scheme!r}") from None


@contextmanager
def named(uri: str) -> Iterator[None]:
    """Turn what a filesystem raises into one line that names the path or URI; a missing file stays what it is."""
    try:
        yield
    except (FileNotFoundError, StorageError):
        raise
    except (OSError, pa.ArrowException) as error:
        kind = trouble(error) if is_remote(uri) else None
        message = described(uri, error)
        raise StorageError(message) if kind is None else TroubleError(message, kind) from None
