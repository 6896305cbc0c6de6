"""Middleware of the page: only requests under its own host names are served, and nothing is loaded from other hosts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from sft.inference.web.access import is_loopback

# Gradio's page needs inline scripts and styles. Attribute handlers (onerror=…) never run, and nothing is fetched from
# or sent to another host.
POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "script-src-attr 'none'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "frame-src 'none'",
        "frame-ancestors 'self'",
        "form-action 'self'",
    ]
)
HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Guard:
    """ASGI middleware.

    Args:
        app: the wrapped application.
        own_name: if given, requests for host names other than this and the machine's own are refused. Otherwise a site
            whose name resolves to 127.0.0.1 (DNS rebinding) could use a page without a password.
    """

    def __init__(self, app: Any, own_name: str | None) -> None:
        self.app, self.own_name = app, own_name

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        if self.own_name is not None and not self._is_own(_host(scope)):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close"})
                return
            await send({"type": "http.response.start", "status": 421, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"this page is only for this machine\n"})
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                more = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *(each for each in more if each[0] not in given)]
            await send(message)

        await self.app(scope, receive, with_headers)

    def _is_own(self, host: str) -> bool:
        is_address = host.replace(".", "").isdigit() or ":" in host
        return host in ("localhost", self.own_name) or (is_address and is_loopback(host))


def _host(scope: MutableMapping[str, Any]) -> str:
    """The host name of a request, without the port."""
    value = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1")
    return value[1:].partition("]")[0] if value.startswith("[") else value.partition(":")[0]
