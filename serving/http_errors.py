"""Exceptions to HTTP answers: one envelope, one table. Its shape is OpenAI's."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from ray.exceptions import RayActorError
from starlette.exceptions import HTTPException

from serving.auth import Unauthorized
from shared.errors import Cancelled, EngineDead, InvalidRequest, QueueFull, RenderFailed
from shared.request import first_problem


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
    status: {"model": ErrorBody, "description": HTTPStatus(status).phrase}
    for status in (400, 401, 429, 500, 503)
}


def install_error_handlers(app: FastAPI) -> None:
    for error_type, handler in _HANDLERS.items():
        app.add_exception_handler(error_type, handler)


def _answer(
    status: int,
    code: str,
    message: str,
    *,
    param: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    kind = "invalid_request_error" if status < 500 else "server_error"
    detail = ErrorDetail(message=message, type=kind, param=param, code=code)
    return JSONResponse(ErrorBody(error=detail).model_dump(), status, headers)


def _invalid_request(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, InvalidRequest)
    return _answer(400, f"invalid_{error.field}", str(error), param=error.field)


def _invalid_form(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return _invalid_request(request, first_problem(error.errors()))


def _unauthorized(_: Request, error: Exception) -> JSONResponse:
    return _answer(401, "invalid_api_key", str(error), headers={"WWW-Authenticate": "Bearer"})


def _overloaded(_: Request, error: Exception) -> JSONResponse:
    message = "every place in the queue is taken; try again"
    return _answer(429, "queue_full", message, headers={"Retry-After": "1"})


def _render_failed(_: Request, error: Exception) -> JSONResponse:
    return _answer(500, "render_failed", str(error))


def _unavailable(_: Request, error: Exception) -> JSONResponse:
    message = "the generator stopped while it rendered this; try again"
    return _answer(503, "generator_lost", message, headers={"Retry-After": "1"})


def _http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    return _answer(error.status_code, code, str(error.detail), headers=dict(error.headers or {}))


_HANDLERS = {
    InvalidRequest: _invalid_request,
    RequestValidationError: _invalid_form,
    Unauthorized: _unauthorized,
    QueueFull: _overloaded,
    RenderFailed: _render_failed,
    Cancelled: _unavailable,
    EngineDead: _unavailable,
    RayActorError: _unavailable,
    HTTPException: _http,
}
