"""The HTTP door on a real Serve instance, called with real HTTP."""

import asyncio
import contextlib
import io
import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import ray
import requests
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from ray import serve
from ray.util.state import list_actors

from serving.app import ServiceArgs, build_app
from serving.auth import token_hash
from serving.door import HttpConfig
from shared.config import EngineConfig, ModelConfig
from shared.image_codec import read_provenance
from shared.model_files import load_noise_schedulers, resolve_folder
from shared.model_profile import ModelProfile
from shared.renderer import Renderer
from shared.request import ImageRequest, parse_request
from tests.conftest import BIN, REPO, Cluster, free_port
from tests.http_server import picture, read_events
from tests.rendering import ONE_OF_255, stock
from tests.test_monitoring import labels, queries

pytestmark = pytest.mark.cluster

TOKEN = "a secret"
SMALL = {"width": 64, "height": 64, "num_inference_steps": 4}


@pytest.fixture(scope="module")
def host(cluster: Cluster) -> Iterator[str]:
    """The open application at the root, one that asks for a token at /private, a tiny at /tiny."""
    port = free_port()
    ray.init(cluster.address, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    tiny = ServiceArgs(
        num_cpus=1, engine=EngineConfig(max_in_flight=1, max_queued=1), max_queued_requests=1
    )
    private = ServiceArgs(num_cpus=1, http=HttpConfig(token_hashes=(token_hash(TOKEN),)))
    applications = [
        serve.RunTarget(build_app(ServiceArgs(num_cpus=2)), "open"),
        serve.RunTarget(build_app(private), "private", "/private", {"encoding": "JSON"}),
        serve.RunTarget(build_app(tiny), "tiny", "/tiny"),
    ]
    serve.run_many(applications)  # at once: it is mostly loading torch
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")) / 255


def test_the_original_templates_client_works_unchanged(host: str) -> None:
    HOST, prompt, image_size, TOKEN = host, "twin peaks sf in basquiat painting style", 640, "any"
    response = requests.get(
        f"{HOST}/imagine",
        params={"prompt": prompt, "img_size": image_size},
        headers={"Authorization": f"Bearer {TOKEN}"},
        timeout=120,
    )
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "image/png"
    assert pixels(response.content).shape == (640, 640, 3)


def test_headers_name_the_picture(host: str, profile: ModelProfile) -> None:
    response = requests.post(f"{host}/imagine", json={"prompt": "dunes"} | SMALL, timeout=60)
    request = read_provenance(response.content).request
    assert response.headers["X-Seed"] == str(request.seed)
    assert response.headers["X-Image-Id"] == request.image_id(profile.fingerprint)
    assert response.headers["X-Model"] == "postcard"
    assert response.headers["X-Request-ID"]
    assert response.headers["X-Model-Fingerprint"] == profile.fingerprint
    assert "render;dur=" in response.headers["Server-Timing"]


def test_get_and_post_and_repetition_give_the_same_bytes(host: str) -> None:
    request = {"prompt": "a lake", "seed": 5} | SMALL
    posted = requests.post(f"{host}/imagine", json=request, timeout=60)
    got = requests.get(f"{host}/imagine", params=request, timeout=60)
    assert posted.content == got.content
    assert posted.headers["X-Image-Id"] == got.headers["X-Image-Id"]


def test_without_a_seed_each_picture_is_another(host: str) -> None:
    pictures = {
        requests.post(f"{host}/imagine", json={"prompt": "a"} | SMALL, timeout=60).content
        for _ in range(2)
    }
    assert len(pictures) == 2


def test_sixteen_at_once_share_forwards_and_equal_the_stock_pipeline(
    host: str, pipeline: DiffusionPipeline, profile: ModelProfile
) -> None:
    schedulers = load_noise_schedulers(resolve_folder(ModelConfig()))
    wanted = [
        {
            "prompt": ["twin peaks", "city skyline, neon"][i % 2],
            "seed": i,
            "width": 64,
            "height": [64, 96][i // 8],
            "num_inference_steps": 4 + i % 5,
            "guidance_scale": [1.0, 3.0, 4.0, 7.5][i % 4],
            "scheduler": list(schedulers)[i % len(schedulers)],
        }
        for i in range(16)
    ]

    async def post_all() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=120) as client:
            posts = (client.post(f"{host}/imagine", json=request) for request in wanted)
            return await asyncio.gather(*posts)

    before = requests.get(f"{host}/stats", timeout=10).json()
    responses = asyncio.run(post_all())
    after = requests.get(f"{host}/stats", timeout=10).json()
    assert [response.status_code for response in responses] == [200] * 16
    assert _num_shared(after) > _num_shared(before)

    for request, response in zip(wanted, responses, strict=True):
        canonical = profile.canonical(parse_request(request), seed=0)
        kwargs = _pipeline_kwargs(canonical.model_dump())
        expected = stock(pipeline, schedulers[canonical.scheduler], kwargs)
        # The picture is rounded to whole steps of 1/255, the oracle is not.
        difference = np.abs(pixels(response.content) - expected).max()
        assert difference <= ONE_OF_255, request


def test_online_and_in_process_give_the_same_bytes(host: str, profile: ModelProfile) -> None:
    request = ImageRequest(prompt="two peaks", seed=3, **SMALL)
    online = requests.post(f"{host}/imagine", json=request.model_dump(), timeout=60)
    with Renderer(ModelConfig(), EngineConfig()) as renderer:
        image = asyncio.run(renderer.render(profile.canonical(request, seed=0)))
    assert online.content == image.data


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("prompt=", "prompt"),
        ("img_size=256", "prompt"),
        ("prompt=a&img_size=100", "img_size"),
        ("prompt=a&img_size=99999", "img_size"),
        ("prompt=a&img_size=large", "img_size"),
        ("prompt=a&img_size=64&width=64", "img_size"),
        ("prompt=a&steps=20", "steps"),
        ("prompt=a&scheduler=Fast", "scheduler"),
        ("prompt=a&guidance_scale=nan", "guidance_scale"),
    ],
)
def test_a_wrong_query_is_a_400_that_names_the_field(host: str, query: str, field: str) -> None:
    _assert_refused(requests.get(f"{host}/imagine?{query}", timeout=10), field)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{}", "prompt"),
        (b'{"prompt": "a", "width": 260}', "width"),
        (b'{"prompt": "a", "num_inference_steps": 1000}', "num_inference_steps"),
        (b'{"prompt": "a", "img_size": 256}', "img_size"),
        (b'{"prompt": "a", "seed": -1}', "seed"),
        (b'{"prompt": "a", "seed": "3"}', "seed"),
        (b'{"prompt": "a", "guidance_scale": true}', "guidance_scale"),
        (b"[]", "body"),
        (b"{not json", "body"),
        (b"", "body"),
    ],
)
def test_a_wrong_body_is_a_400_that_names_the_field(host: str, body: bytes, field: str) -> None:
    headers = {"Content-Type": "application/json"}
    _assert_refused(requests.post(f"{host}/imagine", body, headers=headers, timeout=10), field)


def test_a_token_is_asked_for_where_one_is_configured(host: str) -> None:
    request = {"url": f"{host}/private/imagine", "params": {"prompt": "a"} | SMALL, "timeout": 60}
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
        refused = requests.get(**request, headers=headers)
        assert refused.status_code == 401
        assert refused.headers["WWW-Authenticate"] == "Bearer"
        assert refused.json()["error"]["code"] == "invalid_api_key"
    allowed = requests.get(**request, headers={"Authorization": f"Bearer {TOKEN}"})
    assert allowed.status_code == 200
    assert requests.get(f"{host}/private/stats", timeout=10).status_code == 401
    assert requests.get(f"{host}/private/healthz", timeout=10).status_code == 200


def test_overload_is_answered_429_and_the_rest_is_rendered(host: str) -> None:
    def post(seed: int) -> requests.Response:
        # Long enough that the last arrives while the first is still being rendered.
        request = {"prompt": "a", "seed": seed, "num_inference_steps": 20}
        return requests.post(f"{host}/tiny/imagine", json=request, timeout=120)

    with ThreadPoolExecutor(12) as threads:
        responses = list(threads.map(post, range(12)))
    refused = [response for response in responses if response.status_code != 200]
    assert 0 < len(refused) < 12
    for response in refused:
        assert response.status_code == 429
        assert int(response.headers["Retry-After"]) >= 1
        assert response.json()["error"]["code"] == "queue_full"


def test_a_client_that_leaves_frees_its_place(host: str) -> None:
    with pytest.raises(requests.ReadTimeout):
        requests.post(
            f"{host}/imagine", json={"prompt": "a", "num_inference_steps": 150}, timeout=1
        )
    _wait_for_cancelled(host, 1)


def test_a_request_survives_the_generator_that_rendered_it(host: str, cluster: Cluster) -> None:
    request = {"prompt": "a", "seed": 9, "num_inference_steps": 60}
    expected = requests.post(f"{host}/imagine", json=request, timeout=120)
    stream = requests.post(f"{host}/imagine/events", json=request, timeout=240, stream=True)
    events = read_events(stream)
    with ThreadPoolExecutor(2) as threads:
        calls = [
            threads.submit(requests.post, f"{host}/imagine", json=request, timeout=240)
            for _ in range(2)
        ]
        while requests.get(f"{host}/stats", timeout=10).json()["online"]["num_in_flight"] < 3:
            assert not any(call.done() for call in calls), "too short to be killed meanwhile"
        os.kill(_generator_pid(cluster, "open"), signal.SIGKILL)
        answers = [call.result() for call in calls]
    assert [answer.status_code for answer in answers] == [200] * 2
    assert {answer.content for answer in answers} == {expected.content}
    *_, (name, data) = events
    assert (name, picture(data["image"])) == ("image", expected.content)


def test_a_listener_that_leaves_frees_its_place(host: str) -> None:
    before = requests.get(f"{host}/stats", timeout=10).json()["online"]["num_cancelled"]
    request = {"prompt": "a", "num_inference_steps": 150}
    with requests.post(f"{host}/imagine/events", json=request, timeout=60, stream=True) as stream:
        next(read_events(stream))
    _wait_for_cancelled(host, before + 1)


def test_the_page_the_docs_and_the_health_check_answer(host: str) -> None:
    page = requests.get(f"{host}/", timeout=10)
    assert page.headers["Content-Type"].startswith("text/html")
    assert 'id="prompt"' in page.text
    assert requests.get(f"{host}/docs", timeout=10).status_code == 200
    assert requests.get(f"{host}/healthz", timeout=10).json() == {"status": "ok"}
    document = requests.get(f"{host}/openapi.json", timeout=10).json()
    assert set(document["paths"]["/imagine"]) == {"get", "post"}
    unknown = requests.get(f"{host}/nothing", timeout=10)
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")


def test_a_request_is_logged_with_its_id_from_the_ingress_to_the_engine(
    host: str, cluster: Cluster
) -> None:
    headers = {"X-Request-ID": "a-request-of-the-tests", "Authorization": f"Bearer {TOKEN}"}
    query = {"prompt": "a secret wish " * 60, **SMALL}  # so long that diffusers says so
    response = requests.get(f"{host}/private/imagine", query, headers=headers, timeout=60)
    assert response.status_code == 200
    for _ in range(50):  # the ingress writes its line after its answer
        logs = (cluster.logs / "serve").glob("replica_private_*")
        lines = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
        mine = [line for line in lines if line.get("request_id") == "a-request-of-the-tests"]
        deployments = {line["deployment"] for line in mine}
        if len(deployments) == 2:
            break
        time.sleep(0.1)
    assert deployments == {"private_Generator", "private_Ingress"}
    (rendered,) = (line for line in mine if line["message"].startswith("rendered in "))
    assert (rendered["width"], rendered["num_inference_steps"]) == (64, 4)
    assert rendered["num_forwards"] == 4
    assert rendered["render_s"] > 0 <= rendered["queue_s"]
    assert not any("secret" in str(line) for line in lines)


def test_it_is_ready_while_its_generator_answers(host: str, cluster: Cluster) -> None:
    assert requests.get(f"{host}/private/readyz", timeout=30).json() == {"status": "ok"}
    pid = _generator_pid(cluster, "private")
    os.kill(pid, signal.SIGSTOP)
    try:
        answer = requests.get(f"{host}/private/readyz", timeout=30)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "not_ready"
    assert "answered" in answer.json()["error"]["message"]
    assert requests.get(f"{host}/private/readyz", timeout=30).status_code == 200


def test_prometheus_sees_what_the_engine_did(host: str, cluster: Cluster) -> None:
    requests.get(f"{host}/imagine", {"prompt": "a", **SMALL}, timeout=60)
    number = requests.get(f"{host}/stats", timeout=10).json()["online"]["num_completed"]
    asked = {name for query in queries() for name in re.findall(r"ray_serve_\w+", query)}
    ours = ("forwards_total", "forward_seconds_total", "rows_total", "backlog_seconds")
    missing = asked | {f"ray_sd_{name}" for name in (*ours, "queue_seconds_bucket")}
    for _ in range(90):
        found = requests.get(cluster.metrics, timeout=10).text
        missing -= {name for name in missing if f"\n{name}{{" in found}
        done = [
            float(line.rpartition(" ")[2])
            for line in found.splitlines()
            if line.startswith("ray_sd_requests_total")
            and 'application="open"' in line
            and 'outcome="completed"' in line
        ]
        if number in done and not missing:  # beside those of generators that are no more
            break
        time.sleep(0.5)
    assert number in done
    assert missing == set()
    for name, chosen in labels().items():
        for line in re.findall(rf"^{name}(\{{.*\}})", found, re.M):
            assert chosen <= set(re.findall(r'[{,](\w+)="', line)), name


def test_many_that_leave_disturb_nobody_and_leave_nothing_behind(host: str) -> None:
    request = {"prompt": "a", "width": 64, "height": 64}
    expected = [
        requests.post(f"{host}/imagine", json=request | {"seed": seed}, timeout=60).content
        for seed in range(5)
    ]

    async def leave(client: httpx.AsyncClient, seed: int) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(random.uniform(0, 4)):
                await client.post(f"{host}/imagine", json=request | {"seed": seed})

    async def storm() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=120, limits=limits) as client:
            leaving = [leave(client, 1000 + seed) for seed in range(100)]
            staying = [
                client.post(f"{host}/imagine", json=request | {"seed": seed}) for seed in range(5)
            ]
            return (await asyncio.gather(*leaving, *staying))[100:]

    assert [response.content for response in asyncio.run(storm())] == expected
    stats = requests.get(f"{host}/stats", timeout=10).json()
    assert stats["online"]["num_cancelled"] > 0
    for _ in range(50):
        stats = requests.get(f"{host}/stats", timeout=10).json()
        if stats["online"]["num_in_flight"] + stats["online"]["num_waiting"] == 0:
            break
        time.sleep(0.1)
    assert stats["online"]["num_in_flight"] + stats["online"]["num_waiting"] == 0


def test_serve_build_takes_the_bound_application(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    command = [BIN / "serve", "build"]
    subprocess.run(
        [*command, "serving.app:stable_diffusion_app", "--output-path", config],
        cwd=REPO,
        check=True,
        capture_output=True,
    )
    assert "serving.app:stable_diffusion_app" in config.read_text()


def _pipeline_kwargs(request: dict[str, Any]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(request.pop("seed"))
    request.pop("scheduler")
    return request | {"generator": generator, "output_type": "np"}


def _wait_for_cancelled(host: str, number: int) -> None:
    for _ in range(50):
        stats = requests.get(f"{host}/stats", timeout=10).json()
        if stats["online"]["num_cancelled"] == number:
            break
        time.sleep(0.1)
    assert stats["online"]["num_cancelled"] == number
    assert stats["online"]["num_in_flight"] == 0


def _generator_pid(cluster: Cluster, application: str) -> int:
    (replica,) = list_actors(
        cluster.dashboard,  # there may be other clusters on this machine
        filters=[
            ("class_name", "=", f"ServeReplica:{application}:Generator"),
            ("state", "=", "ALIVE"),
        ],
    )
    pid: int = replica.pid
    return pid


def _num_shared(stats: dict[str, Any]) -> int:
    by_requests = stats["forwards_by_requests"].items()
    return sum(forwards for num_requests, forwards in by_requests if int(num_requests) > 1)


def _assert_refused(response: requests.Response, field: str) -> None:
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == field
    assert error["type"] == "invalid_request_error"
    assert field in error["message"]
