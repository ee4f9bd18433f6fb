"""Exceptions to HTTP answers: one envelope, one table. Its shape is OpenAI's."""

import logging
import math
from collections.abc import Callable
from http import HTTPMethod, HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import Match

from serving.auth import Unauthorized
from serving.content_credentials import SigningFailed
from shared.errors import (
    DeadlineExceeded,
    GeneratorLost,
    ImageBlocked,
    InvalidRequest,
    NotReady,
    Overloaded,
    RenderFailed,
    UnknownModel,
)
from shared.request import problem

logger = logging.getLogger(__name__)


class ErrorDetail(BaseModel):
    """`param` names the field to mend, where there is one."""

    message: str
    type: str
    param: str | None = None
    code: str


class ErrorBody(BaseModel):
    error: ErrorDetail


# For the OpenAPI document: every route can answer with these.
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": description}
    for status, description in {
        400: "A field to mend, or a picture that is not to be shown",
        401: "No token, or another",
        413: "Too large a body",
        429: "Too much to do; try again after Retry-After seconds",
        500: "Rendering failed",
        503: "Nobody to render it",
        504: "Not finished in time",
    }.items()
}
# And those that take a model, with this.
UNKNOWN_MODEL_RESPONSE: dict[int | str, dict[str, Any]] = {
    404: {"model": ErrorBody, "description": "A model that is not served here"}
}

# Of what the framework refuses. Python's names of some statuses are others in each version.
_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "content_too_large",
}

# Clients that retry by themselves would only have the same rendered again.
_NO_RETRY = {"x-should-retry": "false"}


def install_error_handlers(app: FastAPI) -> None:
    async def answer(request: Request, error: Exception) -> JSONResponse:  # else in a thread
        return answer_to(request, error)

    for error_type in _HANDLERS:
        app.add_exception_handler(error_type, answer)
    document = app.openapi
    # When it is first asked for: it takes time, and all routes.
    app.openapi = lambda: _without_422(document())  # type: ignore[method-assign]


def _without_422(document: dict[str, Any]) -> dict[str, Any]:
    """FastAPI documents it wherever there are fields, and the handlers answer 400 instead."""
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for schema in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(schema, None)
    return document


def answer_to(request: Request, error: Exception) -> JSONResponse:
    """What a request is answered that ends by `error`."""
    kind = next(each for each in type(error).__mro__ if each in _HANDLERS)
    return _HANDLERS[kind](request, error)


def _answer(
    status: int,
    code: str,
    message: str,
    *,
    param: str | None = None,
    kind: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    kind = kind or ("invalid_request_error" if status < 500 else "server_error")
    detail = ErrorDetail(message=message, type=kind, param=param, code=code)
    return JSONResponse(ErrorBody(error=detail).model_dump(), status, headers)


def _invalid_request(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, InvalidRequest)
    return _answer(400, f"invalid_{error.field}", str(error), param=error.field)


def _invalid_form(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return _invalid_request(request, _problem(error.errors()[0], request))


def _problem(found: dict[str, Any], request: Request) -> InvalidRequest:
    """FastAPI says first whether the field stood in the query, a header or the body."""
    is_json = "json" in request.headers.get("content-type", "")
    if found["loc"] == ("body",) and found["type"] != "missing" and not is_json:
        return InvalidRequest("body", "must be sent with Content-Type: application/json")
    if found["type"] == "json_invalid":
        return InvalidRequest("body", "is not valid JSON")
    return problem(found | {"loc": found["loc"][1:]})


def _unauthorized(_: Request, error: Exception) -> JSONResponse:
    return _answer(401, "invalid_api_key", str(error), headers={"WWW-Authenticate": "Bearer"})


def _overloaded(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Overloaded)
    seconds = math.ceil(error.retry_after_s)
    message = f"there is too much to do before this request; try again in {seconds} s"
    return _answer(429, "queue_full", message, headers={"Retry-After": str(seconds)})


def _too_late(_: Request, error: Exception) -> JSONResponse:
    return _answer(504, "deadline_exceeded", str(error), headers=_NO_RETRY)


def _unknown_model(_: Request, error: Exception) -> JSONResponse:
    return _answer(404, "model_not_found", str(error), param="model")


def _blocked(_: Request, error: Exception) -> JSONResponse:
    return _answer(400, "moderation_blocked", str(error), kind="image_generation_user_error")


def _render_failed(_: Request, error: Exception) -> JSONResponse:
    return _answer(500, "render_failed", str(error), headers=_NO_RETRY)


def _not_signed(_: Request, error: Exception) -> JSONResponse:
    logger.error("%s", error)
    return _answer(500, "signing_failed", str(error), headers=_NO_RETRY)


def _lost(_: Request, error: Exception) -> JSONResponse:
    return _answer(503, "generator_lost", str(error), headers=_NO_RETRY)


def _not_ready(_: Request, error: Exception) -> JSONResponse:
    return _answer(503, "not_ready", str(error))


def _internal(_: Request, error: Exception) -> JSONResponse:
    return _answer(500, "internal_error", "an error of the service's own; its log says more")


def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, f"http_{error.status_code}")
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_allowed_methods(request))
    return _answer(error.status_code, code, str(error.detail), headers=headers)


def _allowed_methods(request: Request) -> list[str]:
    """Of all routes with this path; the framework names those of the first."""
    return [
        method
        for method in HTTPMethod
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.routes
        )
    ]


_HANDLERS: dict[type, Callable[[Request, Exception], JSONResponse]] = {
    InvalidRequest: _invalid_request,
    RequestValidationError: _invalid_form,
    Unauthorized: _unauthorized,
    Overloaded: _overloaded,
    DeadlineExceeded: _too_late,
    UnknownModel: _unknown_model,
    ImageBlocked: _blocked,
    RenderFailed: _render_failed,
    SigningFailed: _not_signed,
    GeneratorLost: _lost,
    NotReady: _not_ready,
    HTTPException: _http,
    Exception: _internal,
}
