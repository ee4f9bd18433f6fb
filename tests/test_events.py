"""Live progress: server-sent events, read as a browser reads them."""

import io
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from PIL import Image

from shared.config import EngineConfig, ModelConfig
from shared.renderer import Renderer
from tests.http_server import Breaking, InProcess, http_server, picture, read_events

REQUEST = {"prompt": "dunes", "width": 64, "height": 64, "num_inference_steps": 5, "seed": 1}


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    with Renderer(ModelConfig(), EngineConfig(max_in_flight=1)) as renderer:
        yield renderer


@pytest.fixture(scope="module")
def host(renderer: Renderer) -> Iterator[str]:
    with http_server(InProcess(renderer)) as host:
        yield host


def ask(host: str, **fields: Any) -> requests.Response:
    url, body = f"{host}/imagine/events", REQUEST | fields
    response = requests.post(url, json=body, timeout=60, stream=True)
    assert response.headers["Content-Type"].startswith("text/event-stream")
    return response


def follow(host: str, **fields: Any) -> list[tuple[str, dict[str, Any]]]:
    return list(read_events(ask(host, **fields)))


def test_every_step_is_told_and_shown_and_then_the_picture(host: str) -> None:
    *steps, (last, image) = follow(host)
    assert {name for name, _ in steps} == {"progress"}
    told = [data["step"] for _, data in steps if data["step"]]
    assert told == sorted(told)
    assert told[-1] == 5
    assert {data["num_steps"] for _, data in steps} == {5}
    shown = [data["preview"] for _, data in steps if data["preview"]]
    with Image.open(io.BytesIO(picture(shown[0]))) as preview:
        assert preview.size == (8, 8)
    assert last == "image"
    whole = requests.post(f"{host}/imagine", json=REQUEST, timeout=60)
    assert picture(image["image"]) == whole.content
    assert image["image_id"] == whole.headers["X-Image-Id"]
    assert image["request"]["seed"] == 1


def test_the_query_string_does_as_well(host: str) -> None:
    query = {"prompt": "dunes", "img_size": 64, "num_inference_steps": 2}
    response = requests.get(f"{host}/imagine/events", params=query, timeout=60)
    assert [name for name, _ in read_events(response)][-1] == "image"


def test_who_waits_hears_how_many_are_ahead(host: str, renderer: Renderer) -> None:
    long = {"num_inference_steps": 60, "width": 256, "height": 256}
    with ThreadPoolExecutor(2) as threads:
        before = [threads.submit(follow, host, **long) for _ in range(2)]
        deadline = time.monotonic() + 10
        while not renderer.counters().online.num_waiting:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        places = [data["num_ahead"] for name, data in follow(host) if name == "progress"]
        assert [each.result()[-1][0] for each in before] == ["image", "image"]
    assert places[0] == 1
    assert places == sorted(places, reverse=True)
    assert places[-1] == 0


def test_what_cannot_begin_has_its_status(host: str) -> None:
    for wrong in ({"width": 99}, {"steps": 1}):
        response = requests.post(f"{host}/imagine/events", json=REQUEST | wrong, timeout=10)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == next(iter(wrong))


def test_what_breaks_ends_in_an_error_event(renderer: Renderer) -> None:
    with http_server(Breaking(renderer)) as host:
        *_, (last, data) = follow(host)
    assert last == "error"
    assert data["error"]["code"] == "render_failed"


def test_who_stops_listening_frees_the_place(host: str, renderer: Renderer) -> None:
    before = renderer.counters().online.num_cancelled
    response = ask(host, num_inference_steps=150, width=256, height=256)
    next(read_events(response))
    response.close()
    for _ in range(50):
        if renderer.counters().online.num_cancelled > before:
            break
        time.sleep(0.1)
    assert renderer.counters().online.num_cancelled == before + 1
    assert renderer.counters().online.num_in_flight == 0
