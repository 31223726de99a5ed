"""A web server's faults, by seed: what stands between a client and a server, and spoils some of the answers."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

_XML = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code} of the test</Message></Error>"
_HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "date", "server"}

KINDS = ("503", "500", "refused", "reset", "cut", "slow", "trickle")
"""503 SlowDown, 500, a connection that is closed without an answer, reset without an answer, a body that ends half
way, an answer that takes a while, a body that trickles."""


class FaultyProxy(ThreadingHTTPServer):
    """Hands requests on to a server, and injects faults.

    Attributes:
        url: of the proxy.
        rate: share of the requests that a fault of ``kinds`` strikes.
        delay: seconds that a slow answer takes.
        chosen: what strikes a request by its method and path, in place of ``rate``.
        outage_after: after so many more requests all are closed unanswered for so many seconds; none when it has begun.
        expired_token: the session token for which every answer is 403 ExpiredToken; all of them where it is empty.
        asked: how often each fault struck, and ``passed``.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, target: str, seed: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = target.removeprefix("http://")
        self.random = random.Random(seed)
        self.rate, self.delay = 0.0, 6.0
        self.kinds: tuple[str, ...] = KINDS
        self.asked: Counter[str] = Counter()
        self.chosen: Callable[[str, str], str | None] | None = None
        self.outage_after: tuple[int, float] | None = None
        self.expired_token: str | None = None
        self._down_until = 0.0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fault(self, method: str, path: str, token: str) -> str | None:
        """What strikes this request."""
        with self._lock:
            struck = self.random.random() < self.rate
            kind = self.random.choice(list(self.kinds)) if struck else None
            if self.chosen is not None:
                kind = self.chosen(method, path)
            if self.expired_token is not None and self.expired_token in ("", token):
                kind = "expired"
            if self._is_down():
                kind = "refused"
            self.asked[kind or "passed"] += 1
            return kind

    def _is_down(self) -> bool:
        if self.outage_after is not None:
            requests, seconds = self.outage_after
            self.outage_after = (requests - 1, seconds) if requests else None
            if not requests:
                self._down_until = time.monotonic() + seconds
        return time.monotonic() < self._down_until

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no error here."""


class _Handler(BaseHTTPRequestHandler):
    server: FaultyProxy
    protocol_version = "HTTP/1.1"
    _errors: ClassVar[dict[str, tuple[int, str]]] = {
        "503": (503, "SlowDown"), "500": (500, "InternalError"), "expired": (403, "ExpiredToken"),
        "denied": (403, "AccessDenied"),
    }  # fmt: skip

    def _handle(self) -> None:
        kind = self.server.fault(self.command, self.path, self.headers.get("x-amz-security-token", "-"))
        body = self._body()
        if kind in ("refused", "reset"):
            self._drop(kind == "reset")
        elif kind in self._errors:
            status, code = self._errors[kind]
            self._answer(status, [("Content-Type", "application/xml")], _XML.format(code=code).encode(), None)
        else:
            if kind == "slow":
                time.sleep(self.server.delay)
            connection = HTTPConnection(self.server.target, timeout=60)
            connection.request(self.command, self.path, body, self._headers(body))
            found: HTTPResponse = connection.getresponse()
            content = found.read()
            headers = [(name, value) for name, value in found.getheaders() if name.lower() not in _HOP_BY_HOP]
            self._answer(found.status, headers, content, kind)
            connection.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _headers(self, body: bytes) -> dict[str, str]:
        left_out = ("transfer-encoding", "content-length", "expect", "connection")
        kept = {name: value for name, value in self.headers.items() if name.lower() not in left_out}
        return kept | ({"Content-Length": str(len(body))} if self.command in ("PUT", "POST") else {})

    def _answer(self, status: int, headers: Sequence[tuple[str, str]], content: bytes, kind: str | None) -> None:
        self.send_response(status)
        for name, value in headers:
            if name.lower() != "content-length" or self.command == "HEAD":
                self.send_header(name, value)
        if self.command == "HEAD":
            self.end_headers()
            return
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if kind == "cut" and content:
            self.wfile.write(content[: len(content) // 2])
            self._drop(False)
        elif kind == "trickle":
            for part in _in_parts(content, 5):
                self.wfile.write(part)
                time.sleep(0.2)
        else:
            self.wfile.write(content)

    def _drop(self, hard: bool) -> None:
        """Close the connection; hard: so that the other side sees a reset."""
        if hard:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR) if not hard else self.connection.close()

    def log_message(self, *_: object) -> None:
        """Nothing."""


def _in_parts(content: bytes, count: int) -> Iterator[bytes]:
    size = max(1, -(-len(content) // count))
    for start in range(0, len(content), size):
        yield content[start : start + size]


@contextmanager
def faulty_proxy(target: str, seed: int = 0) -> Iterator[FaultyProxy]:
    """A proxy in front of ``target``, in threads of this process, while the block lasts."""
    with FaultyProxy(target, seed) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield proxy
        proxy.shutdown()
        thread.join(10)
