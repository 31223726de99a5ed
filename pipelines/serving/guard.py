"""What keeps strangers' pages and slow connections away from a server that asks nobody for a password."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

_PATIENCE = 10.0  # seconds
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",  # but for pages, which bring their own
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


class Guard:
    """Puts the headers on every answer that tell a browser to be careful; refuses what other sites' pages send.

    A browser lets any page send a POST to this machine, without showing it the answer; it says whose page that is.

    Args:
        app: what answers.
        same_origin: whether requests from pages of other origins are refused.
    """

    def __init__(self, app: ASGIApp, same_origin: bool) -> None:
        self.app, self.same_origin = app, same_origin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def careful(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if self.same_origin and _is_of_another_site(Headers(scope=scope)):
            refusal = JSONResponse({"error": "a page of another site may not ask this server"}, 403)
            await refusal(scope, receive, careful)
            return
        await self.app(scope, receive, careful)


def _is_of_another_site(headers: Headers) -> bool:
    """Whether a browser says that the request comes from a page which this server has not sent."""
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host")


class Impatient(H11Protocol):
    """A connection that is closed when it brings no whole head of a request for some ten seconds.

    Uvicorn waits for the rest of a head as long as it takes, so that a few hundred connections that send a letter now
    and then would keep everybody out. Its parser in C has no limit for the size of a head; this one has 64 KiB.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to look at the connection."""
        super().connection_made(transport)
        self.loop.call_later(_PATIENCE, self._look, self.cycle)

    def _look(self, before: object) -> None:
        """Close a connection that has brought nothing since the look before; look again later."""
        if self.transport.is_closing():
            return
        is_answered = self.cycle is None or self.cycle.response_complete
        if is_answered and self.cycle is before:
            self.transport.close()
            return
        self.loop.call_later(_PATIENCE, self._look, self.cycle)
