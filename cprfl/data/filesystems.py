"""The filesystem behind a URI: a disk, S3 and the other clouds, web servers, and through fsspec the rest.

Credentials come from the environment, in whichever process opens the file.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pyarrow as pa
from pyarrow import fs

from cprfl.data.clouds import VARIABLES, new_azure, new_gcs, new_s3
from cprfl.data.web import WebFileSystem
from cprfl.errors import StorageError

_FILESYSTEM_SECONDS = 600  # boto3 renews credentials that expire within 15 minutes
_USER_AT_HOST = ("abfs", "abfss", "az")  # Azure writes container@account


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


_made: dict[tuple[str, tuple[tuple[str, str], ...]], tuple[float, fs.FileSystem, str]] = {}


def _opened(scheme: str, authority: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a bucket and the bucket's path in it.

    Made once, for images are opened one by one, and anew where it is old: credentials of roles expire.
    """
    root = f"{scheme}://{authority}"
    environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith(VARIABLES)))
    since, opened, base = _made.get((root, environment), (0.0, None, ""))
    if opened is None or time.monotonic() - since > _FILESYSTEM_SECONDS:
        with named(root):
            opened, base = _new_filesystem(scheme, authority)
        base = base.rstrip("/")
        _made[root, environment] = time.monotonic(), opened, base
    return opened, base


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
    """Turn what the filesystem raises into one line that names the URI; a missing file stays what it is."""
    try:
        yield
    except (FileNotFoundError, StorageError):
        raise
    except (OSError, pa.ArrowException) as error:
        raise StorageError(
            f"{uri}: {str(error).splitlines()[0]}; check the bucket, the credentials in the environment and "
            "AWS_ENDPOINT_URL"
            if uri.startswith("s3://")
            else f"{uri}: {str(error).splitlines()[0]}"
        ) from None
