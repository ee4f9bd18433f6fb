"""Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html"""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event

from serving.http_errors import ERROR_RESPONSES, UNKNOWN_MODEL_RESPONSE, answer_to

MEDIA_TYPE = "text/event-stream"

_EVENT = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"type": "string"},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
# For the OpenAPI document: events, or why there will be none.
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {MEDIA_TYPE: {"itemSchema": _EVENT}}, "description": "Events as they come."},
    **ERROR_RESPONSES,
    **UNKNOWN_MODEL_RESPONSE,
}

# Says nothing, and keeps the connection from being taken for dead.
PING = b": ping\n\n"


def event(name: str, data: Any) -> bytes:
    """One event with `data` as JSON."""
    return format_sse_event(event=name, data_str=json.dumps(data))


async def stream(request: Request, events: AsyncGenerator[bytes]) -> StreamingResponse:
    """Answer with `events`. What fails before the first is an answer with its status, as ever."""
    first = await anext(events)
    return StreamingResponse(
        _ending_well(request, first, events),
        media_type=MEDIA_TYPE,
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _ending_well(
    request: Request, first: bytes, events: AsyncGenerator[bytes]
) -> AsyncIterator[bytes]:
    """`events`, and an error event where they end by an exception."""
    try:
        yield first
        async for each in events:
            yield each
    except Exception as error:
        body = answer_to(request, error).body
        yield format_sse_event(event="error", data_str=bytes(body).decode())
    finally:
        await events.aclose()
