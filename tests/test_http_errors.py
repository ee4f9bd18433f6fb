"""What each error is answered with: the table of docs/http.md."""

from collections.abc import Iterator

import pytest
import requests

from serving.content_credentials import SigningFailed
from serving.door import HttpConfig
from serving.http_app import build_http_app
from serving.rendering import Rendering
from shared.config import EngineConfig, ModelConfig
from shared.counters import Priority
from shared.errors import (
    DeadlineExceeded,
    GeneratorLost,
    ImageBlocked,
    NotReady,
    Overloaded,
    RenderFailed,
    UnknownModel,
)
from shared.model_profile import ServedModel
from shared.request import CanonicalRequest, Encoding, GeneratedImage
from tests.bulk import bundled_profile
from tests.conftest import REPO
from tests.http_server import serving_app

NO_RETRY = {"x-should-retry": "false"}


class Failing(Rendering):
    """Renders nothing, for the reason that it is given."""

    def __init__(self) -> None:
        self.reason: Exception = RenderFailed("broken")

    async def served(self) -> ServedModel:
        return ServedModel.configured(bundled_profile(), ModelConfig(), EngineConfig())

    async def render(
        self,
        request: CanonicalRequest,
        encoding: Encoding,
        *,
        timeout_s: float,
        priority: Priority = Priority.ONLINE,
    ) -> GeneratedImage:
        raise self.reason


@pytest.fixture(scope="module")
def failing() -> Failing:
    return Failing()


@pytest.fixture(scope="module")
def host(failing: Failing) -> Iterator[str]:
    with serving_app(build_http_app({"postcard": failing}, HttpConfig())) as host:
        yield host


@pytest.mark.parametrize(
    ("reason", "status", "code", "headers"),
    [
        (ImageBlocked("unfit"), 400, "moderation_blocked", {}),
        (UnknownModel("not here"), 404, "model_not_found", {}),
        (Overloaded(2.5), 429, "queue_full", {"Retry-After": "3"}),
        (RenderFailed("nan"), 500, "render_failed", NO_RETRY),
        (SigningFailed("expired"), 500, "signing_failed", NO_RETRY),
        (RuntimeError("a secret"), 500, "internal_error", {}),
        (NotReady("nobody"), 503, "not_ready", {}),
        (GeneratorLost("died"), 503, "generator_lost", NO_RETRY),
        (DeadlineExceeded("late"), 504, "deadline_exceeded", NO_RETRY),
    ],
)
def test_what_a_picture_ends_by_is_told(
    host: str, failing: Failing, reason: Exception, status: int, code: str, headers: dict[str, str]
) -> None:
    failing.reason = reason
    answer = requests.get(f"{host}/imagine", {"prompt": "a"}, timeout=10)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert headers.items() <= answer.headers.items()
    assert "secret" not in answer.text
    assert f"| {status} | `{code}` |" in (REPO / "docs" / "http.md").read_text()


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("DELETE", "/imagine", 405, "method_not_allowed"),
        ("GET", "/v1/models/other", 404, "model_not_found"),
    ],
)
def test_what_is_not_there_is_told(
    host: str, method: str, path: str, status: int, code: str
) -> None:
    answer = requests.request(method, host + path, timeout=10)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_a_form_that_cannot_be_read_is_told(host: str) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = requests.post(f"{host}/v1/images/edits", b"no form", headers=headers, timeout=10)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request")
