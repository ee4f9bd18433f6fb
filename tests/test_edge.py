"""What the HTTP application refuses before any route, and how its answers are hardened."""

import logging
from collections.abc import Iterator

import pytest
import requests

from serving.door import HttpConfig
from serving.edge import Edge
from shared.config import EngineConfig, ModelConfig
from shared.renderer import Renderer
from tests.http_server import InProcess, http_server

QUERY = {"prompt": "dunes", "img_size": 64, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    with Renderer(ModelConfig(), EngineConfig()) as renderer:
        yield renderer


@pytest.fixture(scope="module")
def host(renderer: Renderer) -> Iterator[str]:
    with http_server(InProcess(renderer), HttpConfig(max_body_bytes=1000)) as host:
        yield host


@pytest.mark.parametrize("header", ["X-Request-Timeout-Seconds", "X-Request-Disconnect-Disabled"])
def test_serves_own_headers_do_not_get_past_us(host: str, header: str) -> None:
    response = requests.get(f"{host}/imagine", QUERY, headers={header: "?1"}, timeout=10)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == header.lower()


def test_a_large_body_is_refused_said_or_unsaid(host: str) -> None:
    body = b'{"prompt": "' + b"a" * 1000 + b'"}'
    chunks = (body[i : i + 100] for i in range(0, len(body), 100))
    for data in (body, chunks):
        headers = {"Content-Type": "application/json"}
        response = requests.post(f"{host}/imagine", data, headers=headers, timeout=10)
        assert response.status_code == 413
        assert "1000 bytes" in response.json()["error"]["message"]


def test_what_takes_no_files_refuses_sooner(renderer: Renderer) -> None:
    body = b'{"prompt": "' + b"a" * 2**20 + b'"}'
    with http_server(InProcess(renderer)) as host:
        headers = {"Content-Type": "multipart/form-data"}
        refused = requests.post(f"{host}/imagine", body, headers=headers, timeout=10)
        upload = requests.post(
            f"{host}/v1/images/edits", {"prompt": "a"}, files={"image": body}, timeout=10
        )
    assert refused.status_code == 413
    assert refused.json()["error"]["code"] == "content_too_large"
    assert "1 MiB" in refused.json()["error"]["message"]
    assert upload.json()["error"]["param"] == "image"  # it was read


@pytest.mark.parametrize("name", ["query", "header", "body"])
def test_a_field_is_named_whatever_its_name(host: str, name: str) -> None:
    answer = requests.get(f"{host}/imagine", QUERY | {name: "a"}, timeout=10)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)


def test_every_answer_is_hardened(host: str) -> None:
    for path in ("/", "/healthz", "/readyz", "/nothing", "/imagine?prompt=", "/v1/models"):
        headers = requests.get(f"{host}{path}", timeout=10).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert "Access-Control-Allow-Origin" not in headers


def test_other_sites_cannot_read_or_post(host: str) -> None:
    preflight = requests.options(
        f"{host}/imagine",
        headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"},
        timeout=10,
    )
    assert preflight.status_code == 405
    assert "Access-Control-Allow-Origin" not in preflight.headers
    # What a form of another site can send without being asked first.
    simple = requests.post(
        f"{host}/imagine", '{"prompt": "a"}', headers={"Content-Type": "text/plain"}, timeout=10
    )
    assert simple.status_code == 400
    assert "Content-Type: application/json" in simple.json()["error"]["message"]


def test_the_page_runs_its_own_script_alone(host: str) -> None:
    policy = requests.get(f"{host}/", timeout=10).headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy


def test_files_of_the_page_are_asked_for_each_time(host: str) -> None:
    for path in ("/", "/playground/app.js"):
        answer = requests.get(f"{host}{path}", timeout=10)
        assert answer.headers["Cache-Control"] == "no-cache"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


def test_a_picture_with_its_seed_is_rendered_once(host: str, renderer: Renderer) -> None:
    first = requests.get(f"{host}/imagine", QUERY | {"seed": 1}, timeout=60)
    rendered = renderer.counters().online.num_completed
    tags = {"If-None-Match": f'"other", {first.headers["ETag"]}'}
    again = requests.get(f"{host}/imagine", QUERY | {"seed": 1}, headers=tags, timeout=60)
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["ETag"] == first.headers["ETag"]
    assert renderer.counters().online.num_completed == rendered
    other = requests.get(f"{host}/imagine", QUERY | {"seed": 2}, headers=tags, timeout=60)
    assert other.status_code == 200


def test_a_picture_of_a_drawn_seed_is_not_kept(host: str) -> None:
    response = requests.get(f"{host}/imagine", QUERY, timeout=60)
    assert response.headers["Cache-Control"] == "no-store"
    assert "ETag" not in response.headers


async def _answer(scope: object, receive: object, send: object) -> None:
    pass


@pytest.mark.parametrize(
    ("client", "is_open", "warnings"),
    [
        ("10.0.0.7", True, 1),
        ("2001:db8::1", True, 1),
        ("10.0.0.7", False, 0),
        ("127.0.0.1", True, 0),
        ("::1", True, 0),
    ],
)
@pytest.mark.anyio
async def test_an_open_service_warns_once_when_it_is_called_from_elsewhere(
    caplog: pytest.LogCaptureFixture, client: str, is_open: bool, warnings: int
) -> None:
    edge = Edge(_answer, max_body_bytes=10, is_open=is_open)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            scope = {"type": "http", "path": "/", "client": (client, 1), "headers": []}
            await edge(scope, None, None)  # type: ignore[arg-type]
    assert len(caplog.records) == warnings
