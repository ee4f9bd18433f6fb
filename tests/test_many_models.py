"""Several checkpoints in one service: which one renders, and that each comes and goes by itself."""

import io
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
from openai import OpenAI
from PIL import Image
from pydantic import ValidationError

from serving.app import ServiceArgs, _deployment
from shared.config import EngineConfig, ModelConfig
from shared.model_files import describe_model
from shared.model_names import model_id
from shared.renderer import Renderer
from tests.conftest import Cluster
from tests.deployed import DeployedService
from tests.http_server import InProcess, http_server
from tests.small_models import small_stable_diffusion

REQUEST = {"prompt": "a", "seed": 9, "width": 64, "height": 64, "num_inference_steps": 4}
IDLE_S = 3


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "small"
    small_stable_diffusion().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def host(small_folder: Path) -> Iterator[str]:
    """Both in this process, the bundled model first."""
    with (
        Renderer(ModelConfig(), EngineConfig()) as bundled,
        Renderer(ModelConfig(name=str(small_folder)), EngineConfig()) as small,
        http_server(InProcess(bundled), None, InProcess(small)) as url,
    ):
        yield url


def test_a_request_names_its_model_on_every_route(host: str) -> None:
    client = OpenAI(base_url=f"{host}/v1", api_key="none", max_retries=0)
    assert [each.id for each in client.models.list()] == ["postcard", "small"]
    assert client.models.retrieve("small").id == "small"
    answers = {
        model: [
            requests.post(f"{host}/imagine", json=REQUEST | named, timeout=60),
            requests.get(f"{host}/imagine", params=REQUEST | named, timeout=60),
        ]
        for model, named in {"postcard": {}, "small": {"model": "small"}}.items()
    }
    for model, (posted, got) in answers.items():
        assert posted.headers["X-Model"] == got.headers["X-Model"] == model
        assert posted.content == got.content
    assert answers["postcard"][0].content != answers["small"][0].content


def test_each_model_has_its_own_defaults(host: str, small_folder: Path) -> None:
    asked = {"prompt": "a", "num_inference_steps": 2, "model": "small"}
    answer = requests.post(f"{host}/imagine", json=asked, timeout=60)
    defaults = describe_model(ModelConfig(name=str(small_folder))).defaults
    assert Image.open(io.BytesIO(answer.content)).size == (defaults.width, defaults.height)


@pytest.mark.parametrize("route", ["imagine", "imagine/events", "v1/images/generations"])
def test_another_model_is_not_found_and_those_there_are_named(host: str, route: str) -> None:
    answer = requests.post(f"{host}/{route}", json={"prompt": "a", "model": "x/y"}, timeout=60)
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "'postcard', 'small'" in error["message"]


def test_a_folder_has_its_last_part_for_a_name(small_folder: Path) -> None:
    assert model_id(ModelConfig(name=str(small_folder))) == "small"
    assert model_id(ModelConfig(name="/on/other/nodes/sdxl")) == "sdxl"
    assert model_id(ModelConfig(name="someone/sdxl")) == "someone/sdxl"


def test_two_models_of_one_name_are_refused(small_folder: Path) -> None:
    with pytest.raises(ValidationError, match="2 models have the name 'small'"):
        ServiceArgs(
            model=ModelConfig(name=str(small_folder)),
            other_models=(ModelConfig(name="/elsewhere/small"),),
        )
    ServiceArgs(other_models=(ModelConfig(name="a/b"), ModelConfig(name="a-b")))


def test_names_that_look_alike_are_deployments_of_their_own() -> None:
    names = {_deployment(ModelConfig(name=name)) for name in ("a/b", "a-b", "ä/b", "ö/b", "sd1.5")}
    assert len(names) == 5
    assert {"Generator-a-b", "Generator-sd1.5"} < names


@pytest.mark.slow
@pytest.mark.cluster
def test_a_model_is_loaded_when_it_is_asked_for_and_goes_when_it_is_not(
    cluster: Cluster, tmp_path: Path, small_folder: Path
) -> None:
    service = DeployedService(cluster, tmp_path)
    service.others["Generator-small"] = {
        "autoscaling_config": {"min_replicas": 0, "max_replicas": 1, "downscale_delay_s": IDLE_S}
    }
    service.deploy(other_models=[str(small_folder)])
    try:
        service.wait_for_generators(1)
        assert service.wait_for_generators(0, "Generator-small") == []
        with service.callers(REQUEST) as answers:
            answer = requests.post(
                f"{service.url}/imagine", json=REQUEST | {"model": "small"}, timeout=120
            )
        assert (answer.status_code, answer.headers["X-Model"]) == (200, "small")
        assert {each.status_code for each in answers} == {200}
        (small,) = service.wait_for_generators(1, "Generator-small")
        service.wait_for_generators(0, "Generator-small")
        _wait_until_gone(small["pid"])
    finally:
        service.delete()


def _wait_until_gone(pid: int) -> None:
    """And with it all its memory."""
    for _ in range(120):
        if not psutil.pid_exists(pid):
            return
        time.sleep(0.5)
    raise AssertionError(f"process {pid} is still there")
