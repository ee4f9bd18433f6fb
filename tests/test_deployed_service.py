"""service.yaml as `serve deploy` brings it, and changes it while people ask."""

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import Cluster
from tests.deployed import DeployedService

pytestmark = pytest.mark.cluster

REQUEST = {"prompt": "a", "seed": 9, "width": 64, "height": 64, "num_inference_steps": 4}


@pytest.fixture(scope="module")
def service(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DeployedService]:
    service = DeployedService(cluster, tmp_path_factory.mktemp("service"))
    service.deploy()
    service.wait_for_generators(1)
    yield service
    service.delete()


def test_a_bad_configuration_leaves_the_old_one_serving_and_says_why(
    service: DeployedService,
) -> None:
    expected = requests.post(f"{service.url}/imagine", json=REQUEST, timeout=60).content
    with service.callers(REQUEST) as answers:
        service.deploy(model="/no/such/model")
        reason = service.wait_until("DEPLOY_FAILED")
        time.sleep(5)
    assert "there is no folder /no/such/model" in reason
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.content for answer in answers} == {expected}


def test_a_new_configuration_drops_nothing(service: DeployedService) -> None:
    expected = requests.post(f"{service.url}/imagine", json=REQUEST, timeout=60).content
    with service.callers(REQUEST) as answers:
        service.deploy(model={"name": "postcard", "limits": {"max_num_inference_steps": 77}})
        service.wait_until("DEPLOYING")
        service.wait_until("RUNNING")
        time.sleep(2)
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.content for answer in answers} == {expected}
    too_long = REQUEST | {"num_inference_steps": 78}
    refused = requests.post(f"{service.url}/imagine", json=too_long, timeout=60)
    assert "77" in refused.json()["error"]["message"]


def test_a_trace_goes_from_the_ingress_to_the_generator(
    cluster: Cluster, service: DeployedService
) -> None:
    service.serve["tracing_config"] = {"enabled": True, "sampling_ratio": 1.0}
    service.deploy(max_queued_requests=77)  # else its replicas stay as they are
    service.wait_until("DEPLOYING")
    service.wait_until("RUNNING")
    assert requests.post(f"{service.url}/imagine", json=REQUEST, timeout=60).status_code == 200
    time.sleep(1)  # the outermost spans end after the answer
    traces = defaultdict(list)
    for span in spans(cluster.logs / "serve" / "spans"):
        traces[span["context"]["trace_id"]].append(span)
    service.serve["tracing_config"] = {"enabled": False}
    service.deploy()
    names = [{span["name"] for span in trace} for trace in traces.values()]
    expected = {
        "POST /imagine",
        "route_to_replica Generator generate",
        "replica_handle_request Generator generate",
    }
    assert any(expected <= each for each in names), names


def spans(folder: Path) -> Iterator[dict[str, Any]]:
    """As Ray's own exporter writes them: one JSON object after another."""
    for file in folder.iterdir():
        text = file.read_text().strip()
        while text:
            span, end = json.JSONDecoder().raw_decode(text)
            yield span
            text = text[end:].strip()
