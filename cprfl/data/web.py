"""Files on web servers: read whole by one request, or in parts.

urllib3, which boto3 brings along, rather than fsspec's own client: that needs aiohttp, and its background thread is
lost in the processes that decode images.
"""

from __future__ import annotations

import functools
import hashlib
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import urllib3
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from cprfl.data.trouble import Trouble, TroubleError, check_size
from cprfl.errors import StorageError

_TIMEOUT = urllib3.Timeout(connect=5, read=15)  # of each answer's next bytes
_RETRIES = urllib3.Retry(total=None, connect=0, read=0, status=0, other=0, redirect=10)  # `filesystems.on` has patience
_BUSY = (408, 425, 429, *range(500, 600))
_CONNECTIONS = 32
_NO_ANSWER = (urllib3.exceptions.NewConnectionError, urllib3.exceptions.TimeoutError, urllib3.exceptions.SSLError)
_BROKEN = (urllib3.exceptions.ProtocolError, urllib3.exceptions.ProxyError)


def is_web(uri: str) -> bool:
    """Whether a URI is a web address."""
    return uri.startswith(("http://", "https://"))


def read(url: str, limit: int | None = None) -> bytes:
    """A file's bytes, of which it may have no more than ``limit``.

    Raises:
        FileNotFoundError: where the server says that there is none.
        StorageError: where it cannot be reached or refuses, or the file is larger.
    """
    answer = _answer(url)
    try:
        check_size(_shown(url), int(answer.headers.get("Content-Length", 0)), limit)
        with _failures_named(url):
            content: bytes = answer.read(None if limit is None else limit + 1)
        check_size(_shown(url), len(content), limit)
    except StorageError:
        answer.close()
        raise
    answer.release_conn()
    return content


class WebFileSystem(AbstractFileSystem):
    """Files by their addresses, for `pyarrow.fs.FSSpecHandler`: sizes, dates and parts; nothing is listed or written.

    The date is Last-Modified, or what follows from the ETag: all that it is good for is to tell a changed file.
    """

    protocol = ("http", "https")

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path  # which is a whole address

    def isfile(self, path: str) -> bool:
        """Whether there is such a file shows when it is opened."""
        return True

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Name, size and date. It asks for the first byte: what is signed for GET answers no HEAD."""
        answer = _answer(path, (0, 1))
        if answer.status == 200:  # and all of the file on its way
            answer.close()
            size = int(answer.headers.get("Content-Length", -1))
        else:
            answer.drain_conn()
            size = int(answer.headers["Content-Range"].rpartition("/")[2])
        return {"name": path, "size": size, "type": "file", "mtime": _date(answer.headers)}

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **_: Any) -> _WebFile:
        if mode != "rb":
            raise StorageError(f"{_shown(path)}: a web server's files can only be read")
        return _WebFile(self, path, mode, cache_type="none", size=self.info(path)["size"])


class _WebFile(AbstractBufferedFile):
    """Reads the parts that it is asked for."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        answer = _answer(self.path, (start, end))
        if answer.status != 206:
            answer.close()
            raise StorageError(
                f"{_shown(self.path)}: the server gives no parts of a file; download it, and give its path"
            )
        with _failures_named(self.path):
            content: bytes = answer.data
        if len(content) < min(end, self.size) - start:
            message = f"{_shown(self.path)}: only {len(content):,} of {end - start:,} bytes came"
            raise TroubleError(message, Trouble.BUSY)
        return content


def _answer(url: str, part: tuple[int, int] | None = None) -> Any:
    """A server's answer, whose body is not read yet: it may be the whole file where a part was asked for."""
    headers = {"User-Agent": "cprfl"} | ({"Range": f"bytes={part[0]}-{part[1] - 1}"} if part else {})
    with _failures_named(url):
        answer = _pool(_proxy(url)).request("GET", url, headers=headers, preload_content=False)
    if answer.status < 400 or answer.status == 416:  # which an empty file has no first byte for
        return answer
    answer.close()
    if answer.status in (404, 410):
        raise FileNotFoundError(_shown(url))
    message = f"{_shown(url)}: the server answers {answer.status} {answer.reason}"
    raise TroubleError(message, Trouble.BUSY) if answer.status in _BUSY else StorageError(message)


@contextmanager
def _failures_named(url: str) -> Iterator[None]:
    """Turn what urllib3 raises into one line, and tell what may pass from what will not."""
    try:
        yield
    except urllib3.exceptions.HTTPError as error:
        reason = error.reason if isinstance(error, urllib3.exceptions.MaxRetryError) else error
        message = f"{_shown(url)}: {str(reason).rpartition('>: ')[2]}"
        if isinstance(reason, _NO_ANSWER):
            raise TroubleError(message, Trouble.UNREACHABLE) from None
        if isinstance(reason, _BROKEN):
            raise TroubleError(message, Trouble.BUSY) from None
        raise StorageError(message) from None


def _date(headers: Any) -> float:
    if "Last-Modified" in headers:
        return parsedate_to_datetime(headers["Last-Modified"]).timestamp()
    return float(int.from_bytes(hashlib.sha256(headers.get("ETag", "").encode()).digest()[:4]))


def _shown(url: str) -> str:
    """The address without its query, which may hold a signature."""
    return url.partition("?")[0]


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for an address (``HTTPS_PROXY``, ``NO_PROXY``)."""
    parts = urlsplit(url)
    return None if urllib.request.proxy_bypass(parts.hostname or "") else urllib.request.getproxies().get(parts.scheme)


@functools.cache
def _pool(proxy: str | None) -> urllib3.PoolManager:
    options: dict[str, Any] = {
        "retries": _RETRIES, "timeout": _TIMEOUT, "num_pools": _CONNECTIONS, "maxsize": _CONNECTIONS,
    }  # fmt: skip
    return urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)


os.register_at_fork(after_in_child=_pool.cache_clear)  # two processes must not share a connection
