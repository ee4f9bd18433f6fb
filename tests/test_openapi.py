"""Thousands of requests made up from the OpenAPI document: does every answer keep to it?

CASES=1500 make test ARGS=tests/test_openapi.py    makes up so many for each route
"""

import contextlib
import os
from collections.abc import Iterator

import pytest
import requests
import schemathesis
from hypothesis import assume, settings
from schemathesis import Case
from schemathesis.checks import CHECKS, load_all_checks

from serving.auth import token_hash
from serving.door import HttpConfig
from serving.http_app import build_http_app
from shared.config import EngineConfig, ModelConfig, RequestDefaults, RequestLimits
from shared.renderer import Renderer
from tests.http_server import InProcess, http_server
from tests.small_models import small_stable_diffusion

TOKEN = {"Authorization": "Bearer good"}

# Nothing is rendered for the document.
SCHEMA = schemathesis.openapi.from_dict(build_http_app({}, HttpConfig()).openapi())

load_all_checks()
# The document knows no checkpoint: a size that it allows may be none of this one's.
UNKNOWN_TO_IT = [CHECKS.get_one("positive_data_acceptance")]


# Made up, they are no HTTP: the server refuses such a request before the application sees it.
# And a header that nobody knows is no fault in HTTP.
OF_HTTP_ITSELF = {"connection", "content-length", "expect", "host", "transfer-encoding", "upgrade"}
OF_HTTP_ITSELF |= {"x-schemathesis-unknown-property"}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("model")
    small_stable_diffusion().save_pretrained(folder)
    model = ModelConfig(
        name=str(folder),
        defaults=RequestDefaults(width=64, height=64, num_inference_steps=1),
        limits=RequestLimits(max_pixels=64 * 64, max_num_inference_steps=2),
    )
    config = HttpConfig(token_hashes=(token_hash("good"),))
    with (
        Renderer(model, EngineConfig()) as renderer,
        http_server(InProcess(renderer), config) as host,
    ):
        yield host


@SCHEMA.parametrize()
@settings(max_examples=int(os.environ.get("CASES", "200")), deadline=None, derandomize=True)
def test_every_answer_keeps_to_the_document(case: Case, host: str) -> None:
    assume([] not in case.query.values())  # is sent as nothing, and so not refused
    assume(not {name.lower() for name in case.headers} & OF_HTTP_ITSELF)
    _give_it_time(case)
    case.call_and_validate(base_url=host, headers=TOKEN, excluded_checks=UNKNOWN_TO_IT)


def _give_it_time(case: Case) -> None:
    """A deadline of a nanosecond is allowed, and its 504 is no fault of the service."""
    with contextlib.suppress(KeyError, TypeError, ValueError):
        if 0 < float(case.headers["X-Timeout-Seconds"]) < 60:
            case.headers["X-Timeout-Seconds"] = "60"


def test_the_document_is_served(host: str) -> None:
    assert requests.get(f"{host}/openapi.json", timeout=10).json() == SCHEMA.raw_schema


def test_422_is_no_answer() -> None:
    operations = [each for path in SCHEMA.raw_schema["paths"].values() for each in path.values()]
    assert not [each["operationId"] for each in operations if "422" in each["responses"]]
