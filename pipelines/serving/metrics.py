"""What `/metrics` says, as Prometheus reads it."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)
PATHS = ("/", "/docs", "/openapi.json", "/health", "/metrics", "/predict", "/attention", "/invocations")
"""Those of the server; others are counted as one, or whoever asks for many would fill the memory."""


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("cprfl_requests", "Requests.", ["path", "status"], registry=registry)
        self.latency = Histogram(
            "cprfl_request_seconds", "Time until answered.", ["path"], buckets=_SECONDS, registry=registry
        )
        self.batch = Histogram("cprfl_batch_images", "Images scored at once.", buckets=_IMAGES, registry=registry)
        self.inside = Gauge("cprfl_images_inside", "Images, and requests being read, on their way.", registry=registry)
        self.model = Gauge("cprfl_model_info", "The model that answers.", ["name", "version"], registry=registry)

    def text(self, name: str, version: str, inside: int) -> bytes:
        """All of them in Prometheus' text format, with the present state of the server."""
        self.model.clear()
        self.model.labels(name, version).set(1)
        self.inside.set(inside)
        return generate_latest(self._registry)


class Measured:
    """ASGI middleware that counts requests by path and status, and how long they took."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 500
        path = scope["path"] if scope["path"] in PATHS else "other"

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sent)
        finally:
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.latency.labels(path).observe(time.perf_counter() - begun)
