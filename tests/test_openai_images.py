"""OpenAI's own client against the HTTP application, over real HTTP."""

import base64
import io
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, get_args

import numpy as np
import openai
import pytest
import requests
from openai import OpenAI
from PIL import Image

from serving.auth import token_hash
from serving.door import HttpConfig
from shared.config import EngineConfig, ModelConfig, RequestLimits
from shared.image_codec import read_provenance
from shared.renderer import Renderer
from shared.request import MAX_SEED, ImageFormat
from tests.http_server import Breaking, InProcess, http_server

SMALL: dict[str, Any] = {"size": "64x64", "extra_body": {"num_inference_steps": 4}}


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    engine = EngineConfig(max_in_flight=8, max_queued=4)
    limits = RequestLimits(max_pixel_steps=4 * 256 * 256 * 50)
    with Renderer(ModelConfig(limits=limits), engine) as renderer:
        yield renderer


@pytest.fixture(scope="module")
def host(renderer: Renderer) -> Iterator[str]:
    config = HttpConfig(token_hashes=(token_hash("good"),))
    with http_server(InProcess(renderer), config) as host:
        yield host


@pytest.fixture
def client(host: str) -> OpenAI:
    return OpenAI(base_url=f"{host}/v1", api_key="good", max_retries=0)


def generate(client: OpenAI, **arguments: Any) -> Any:
    return client.images.generate(**{"prompt": "twin peaks"} | SMALL | arguments)


def test_a_picture_is_generated(client: OpenAI, renderer: Renderer) -> None:
    extra = {"num_inference_steps": 4, "seed": 7, "guidance_scale": 2, "negative_prompt": "snow"}
    response = generate(client, extra_body=extra, model="postcard", user="me", quality="auto")
    (picture,) = response.data
    assert (response.size, response.output_format) == ("64x64", "png")
    assert abs(response.created - time.time()) < 60
    data = base64.b64decode(picture.b64_json)
    request = read_provenance(data).request
    assert request == renderer.profile.canonical(request, seed=0)
    assert (request.seed, picture.seed) == (7, 7)
    assert (request.guidance_scale, request.negative_prompt) == (2, "snow")


def test_n_pictures_have_successive_seeds(client: OpenAI, host: str) -> None:
    response = generate(client, n=4, extra_body={"num_inference_steps": 4, "seed": 40})
    assert [each.seed for each in response.data] == [40, 41, 42, 43]
    alone = requests.post(
        f"{host}/imagine",
        json={"prompt": "twin peaks", "width": 64, "height": 64, "num_inference_steps": 4}
        | {"seed": 42},
        headers={"Authorization": "Bearer good"},
        timeout=60,
    )
    assert base64.b64decode(response.data[2].b64_json) == alone.content


def test_size_auto_is_the_models_own(client: OpenAI) -> None:
    assert generate(client, size="auto").size == "256x256"


@pytest.mark.parametrize("output_format", get_args(ImageFormat))
def test_every_format_is_what_was_asked_for(client: OpenAI, output_format: str) -> None:
    small, large = (
        base64.b64decode(
            generate(
                client,
                output_format=output_format,
                output_compression=quality,
                extra_body={"num_inference_steps": 4, "seed": 1},
            )
            .data[0]
            .b64_json
        )
        for quality in (10, 95)
    )
    with Image.open(io.BytesIO(large)) as image:
        assert image.format == output_format.upper()
    assert (len(small) < len(large)) == (output_format != "png")


def test_null_is_one_picture(client: OpenAI) -> None:
    assert len(generate(client, extra_body={"n": None}).data) == 1


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({"prompt": " "}, "prompt"),
        ({"n": 0}, "n"),
        ({"n": 11}, "n"),
        ({"size": "64"}, "size"),
        ({"size": "00x64"}, "size"),
        ({"size": "100x64"}, "size"),
        ({"size": "9999x64"}, "size"),
        ({"response_format": "url"}, "response_format"),
        ({"output_format": "gif"}, "output_format"),
        ({"output_compression": 101}, "output_compression"),
        ({"background": "transparent"}, "background"),
        ({"extra_body": {"steps": 4}}, "steps"),
        ({"extra_body": {"lora": {"ink": 1}}}, "lora"),
        ({"extra_body": {"lora": {"../ink": 1}}}, "lora"),
        ({"extra_body": {"seed": MAX_SEED}, "n": 2}, "seed"),
        ({"extra_body": {"num_inference_steps": 101}, "size": "256x256", "n": 2}, "n"),
        ({"extra_headers": {"X-Timeout-Seconds": "soon"}}, "X-Timeout-Seconds"),
        ({"extra_headers": {"X-Timeout-Seconds": "-1"}}, "X-Timeout-Seconds"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    client: OpenAI, arguments: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        generate(client, **arguments)
    assert caught.value.param == param
    assert caught.value.code == f"invalid_{param}"
    assert caught.value.type == "invalid_request_error"
    assert param in caught.value.message


def test_the_model_is_listed_and_another_is_not_found(client: OpenAI) -> None:
    assert [each.id for each in client.models.list()] == ["postcard"]
    assert client.models.retrieve("postcard").id == "postcard"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("some/other")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError) as caught:
        generate(client, model="gpt-image-1")
    assert caught.value.param == "model"


def test_a_wrong_key_is_refused(host: str) -> None:
    for key in ("bad", "goo", "Good"):
        with pytest.raises(openai.AuthenticationError):
            OpenAI(base_url=f"{host}/v1", api_key=key, max_retries=0).models.list()


def test_a_deadline_ends_a_request_and_is_not_tried_again(
    client: OpenAI, renderer: Renderer
) -> None:
    before = renderer.counters()
    with pytest.raises(openai.InternalServerError) as caught:
        generate(
            client.with_options(max_retries=5),
            size="256x256",
            extra_body={"num_inference_steps": 100},
            extra_headers={"X-Timeout-Seconds": "1"},
        )
    assert (caught.value.status_code, caught.value.code) == (504, "deadline_exceeded")
    after = renderer.counters()
    assert after.online.num_expired == before.online.num_expired + 1
    assert after.online.num_completed == before.online.num_completed
    assert after.online.num_in_flight == 0


def test_overload_is_a_429_that_says_when_and_clients_come_back(client: OpenAI) -> None:
    # There are twelve places, and each call wants ten: of four calls, two find none at all.
    slow = {"n": 10, "size": "128x128", "extra_body": {"num_inference_steps": 15}}

    def generate_four(client: OpenAI) -> list[Future[Any]]:
        with ThreadPoolExecutor(4) as threads:
            return [threads.submit(generate, client, **slow) for _ in range(4)]

    ends = [call.exception() for call in generate_four(client)]
    refusals = [end for end in ends if end is not None]
    assert 0 < len(refusals) < 4
    for refusal in refusals:
        assert isinstance(refusal, openai.RateLimitError)
        assert refusal.code == "queue_full"
        assert int(refusal.response.headers["Retry-After"]) >= 1
    patient = client.with_options(max_retries=20)
    assert [len(call.result().data) for call in generate_four(patient)] == [10] * 4


def test_a_stream_shows_the_picture_before_it_is_finished(client: OpenAI) -> None:
    arguments = {"size": "256x256", "extra_body": {"num_inference_steps": 12, "seed": 3}}
    *partial, completed = generate(
        client, stream=True, partial_images=3, output_format="jpeg", **arguments
    )
    assert [each.type for each in partial] == ["image_generation.partial_image"] * 3
    assert [each.partial_image_index for each in partial] == [0, 1, 2]
    assert completed.type == "image_generation.completed"
    whole = generate(client, output_format="jpeg", **arguments)
    assert completed.b64_json == whole.data[0].b64_json
    final = pixels(completed.b64_json)
    errors = [np.abs(pixels(each.b64_json) - final).mean() for each in partial]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < np.abs(final.mean((0, 1)) - final).mean()  # more than one colour tells


def test_a_stream_without_previews_is_the_picture_alone(client: OpenAI) -> None:
    (completed,) = generate(client, stream=True)
    assert completed.type == "image_generation.completed"


def test_a_stream_that_cannot_begin_is_an_ordinary_error(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        generate(client, stream=True, n=2)
    assert caught.value.param == "n"


def test_a_stream_that_breaks_ends_in_an_error(renderer: Renderer) -> None:
    with http_server(Breaking(renderer)) as host:
        stream = generate(OpenAI(base_url=f"{host}/v1", api_key="any"), stream=True)
        with pytest.raises(openai.APIError) as caught:
            list(stream)
    assert caught.value.code == "render_failed"


def pixels(b64_json: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(b64_json))) as image:
        assert image.size == (256, 256)
        return np.asarray(image.convert("RGB"), dtype=float)
