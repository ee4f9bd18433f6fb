"""What every request passes before its route: bounds, and headers that harden the answer."""

import ipaddress
import logging

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.http_errors import answer_to
from shared.errors import InvalidRequest

logger = logging.getLogger(__name__)

# Ray Serve obeys these from anyone: an endless timeout, work that outlives its caller.
_SERVES_OWN = {
    "x-request-timeout-seconds": "is not for clients; use X-Timeout-Seconds",
    "x-request-disconnect-disabled": "is not for clients",
}
_HARDENING = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}
# The route that reads what is uploaded itself, once the token was looked at; all others' bodies are
# read before that, and have no pictures in them.
_UPLOADS = "/images/edits"
_MAX_JSON_BYTES = 2**20


class Edge:
    """An ASGI middleware. Uploads may have `max_body_bytes`; `is_open`: no token is asked for."""

    def __init__(self, app: ASGIApp, max_body_bytes: int, is_open: bool) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._warns = is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._warns and not _is_loopback(scope):
            self._warns = False
            logger.warning(
                "CALLED FROM ANOTHER MACHINE WITHOUT A TOKEN: whoever reaches this port can render."
                " Set API_TOKEN, or http.token_hashes of the service."
            )
        headers = Headers(scope=scope)
        most = self._max_body_bytes
        if not scope["path"].endswith(_UPLOADS):
            most = min(most, _MAX_JSON_BYTES)
        refusal = _find_refusal(headers, most)
        if refusal is not None:
            await answer_to(Request(scope), refusal)(scope, receive, _hardened(send))
        else:
            await self._app(scope, _bounded(receive, most), _hardened(send))


def _find_refusal(headers: Headers, max_bytes: int) -> Exception | None:
    for name, reason in _SERVES_OWN.items():
        if name in headers:
            return InvalidRequest(name, reason)
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > max_bytes:
        return _too_large(max_bytes)
    return None


def _bounded(receive: Receive, max_bytes: int) -> Receive:
    """`receive`, for bodies that do not say how long they are."""
    num_bytes = 0

    async def bounded() -> Message:
        nonlocal num_bytes
        message = await receive()
        num_bytes += len(message.get("body", b""))
        if num_bytes > max_bytes:
            raise _too_large(max_bytes)
        return message

    return bounded


def _too_large(most: int) -> HTTPException:
    size = f"{most / 2**20:.3g} MiB" if most >= 2**20 else f"{most} bytes"
    return HTTPException(413, f"such a request may have {size}")


def _hardened(send: Send) -> Send:
    async def hardened(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(_HARDENING)
        await send(message)

    return hardened


def _is_loopback(scope: Scope) -> bool:
    host = (scope.get("client") or ("",))[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a local socket has no address
        return True
