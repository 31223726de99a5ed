"""The filesystem behind a URI: a disk, S3, whatever else pyarrow knows, and through fsspec the rest.

Credentials, region and endpoint of S3 come from the environment as boto3 finds them, in whichever process opens the
file; they are in no URI, argument or message.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import fsspec
import pyarrow as pa
from botocore.exceptions import BotoCoreError
from pyarrow import fs

from cprfl.errors import StorageError

_FILESYSTEM_SECONDS = 600  # boto3 renews credentials that expire within 15 minutes
_USER_AT_HOST = ("abfs", "abfss", "wasb", "wasbs")  # Azure writes container@account


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
    environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    since, opened, base = _made.get((root, environment), (0.0, None, ""))
    if opened is None or time.monotonic() - since > _FILESYSTEM_SECONDS:
        with named(root):
            opened, base = _new_filesystem(scheme, authority)
        base = base.rstrip("/")
        _made[root, environment] = time.monotonic(), opened, base
    return opened, base


def _new_filesystem(scheme: str, authority: str) -> tuple[fs.FileSystem, str]:
    if scheme == "s3":
        return _new_s3(), authority
    try:
        opened: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(f"{scheme}://{authority}")
        return opened
    except pa.ArrowInvalid:  # a scheme that Arrow does not know
        pass
    try:
        found = fsspec.filesystem(scheme)
    except ImportError as error:
        raise StorageError(f"{scheme}://{authority}: {error}") from None
    except ValueError:
        raise StorageError(f"{scheme}://{authority}: no such kind of storage as {scheme!r}") from None
    base = f"{scheme}://{authority}" if scheme in ("http", "https") else authority
    return fs.PyFileSystem(fs.FSSpecHandler(found)), base


def _new_s3() -> fs.S3FileSystem:
    try:
        client = boto3.Session().client("s3")
        credentials = boto3.Session().get_credentials()
    except BotoCoreError as error:
        raise StorageError(f"s3: {error}; check AWS_PROFILE and the other AWS_ variables") from None
    if credentials is None:
        raise StorageError(
            "s3: no credentials in the environment; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    frozen = credentials.get_frozen_credentials()
    endpoint: str = client.meta.endpoint_url
    own = None if re.fullmatch(r"https://s3(\.[a-z0-9-]+)?\.amazonaws\.com", endpoint) else endpoint
    return fs.S3FileSystem(
        access_key=frozen.access_key,
        secret_key=frozen.secret_key,
        session_token=frozen.token,
        region=client.meta.region_name if client.meta.region_name != "aws-global" else "us-east-1",
        endpoint_override=own,
        connect_timeout=10,
    )


@contextmanager
def named(uri: str) -> Iterator[None]:
    """Turn what the filesystem raises into one line that names the URI; a missing file stays what it is."""
    try:
        yield
    except (FileNotFoundError, StorageError):
        raise
    except (OSError, pa.ArrowInvalid) as error:
        raise StorageError(
            f"{uri}: {str(error).splitlines()[0]}; check the bucket, the credentials in the environment and "
            "AWS_ENDPOINT_URL"
            if uri.startswith("s3://")
            else f"{uri}: {str(error).splitlines()[0]}"
        ) from None
