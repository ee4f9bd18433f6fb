"""Pictures made from pictures, by OpenAI's client over real HTTP."""

import base64
import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
import requests
from openai import OpenAI
from PIL import Image

from shared.config import EngineConfig, ModelConfig, RequestLimits
from shared.image_codec import read_provenance
from shared.model_files import describe_model
from shared.renderer import Renderer
from shared.request import CanonicalEdit, EditRequest
from shared.source_image import SourceImage
from tests.http_server import InProcess, http_server


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    model = ModelConfig(limits=RequestLimits(max_source_pixels=300 * 300))
    with (
        Renderer(model, EngineConfig()) as renderer,
        http_server(InProcess(renderer)) as host,
    ):
        yield host


@pytest.fixture
def client(host: str) -> OpenAI:
    return OpenAI(base_url=f"{host}/v1", api_key="any", max_retries=0)


def file(image: Image.Image, format: str = "png") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format)
    return buffer.getvalue()


def header(width: int, height: int) -> bytes:
    """A PNG that says that it is so large, of a few bytes."""
    fields = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", fields), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


GRADIENT = Image.linear_gradient("L").resize((128, 128)).convert("RGB")
LEFT_HALF = Image.new("RGBA", (128, 128), (0, 0, 0, 255))
LEFT_HALF.paste((0, 0, 0, 0), (0, 0, 64, 128))


def edit(client: OpenAI, image: Any = None, **arguments: Any) -> Any:
    extra = {"num_inference_steps": 6, "seed": 1} | arguments.pop("extra_body", {})
    image = file(GRADIENT) if image is None else image
    return client.images.edit(image=image, prompt="a lake", extra_body=extra, **arguments)


def pixels(response: Any) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(response.data[0].b64_json))) as image:
        return np.asarray(image.convert("RGB"), dtype=float)


def test_little_strength_keeps_the_picture(client: OpenAI) -> None:
    given = np.asarray(GRADIENT, dtype=float)
    weak, strong = (
        np.abs(pixels(edit(client, extra_body={"strength": strength})) - given).mean()
        for strength in (0.2, 1.0)
    )
    assert weak < strong / 2


def test_only_what_the_mask_leaves_open_changes(client: OpenAI) -> None:
    made = pixels(edit(client, mask=file(LEFT_HALF)))
    given = np.asarray(GRADIENT, dtype=float)
    assert np.array_equal(made[:, 64:], given[:, 64:])
    assert np.abs(made[:, :64] - given[:, :64]).mean() > 5


def test_a_picture_with_holes_is_its_own_mask(client: OpenAI) -> None:
    holed = GRADIENT.copy()
    holed.putalpha(LEFT_HALF.getchannel("A"))
    made = pixels(edit(client, file(holed)))
    assert np.array_equal(made[:, 64:], np.asarray(GRADIENT, dtype=float)[:, 64:])


def test_a_small_hole_is_one(client: OpenAI) -> None:
    mask = Image.new("RGBA", (128, 128), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (56, 56, 72, 72))
    response = edit(client, mask=file(mask))
    request = read_provenance(base64.b64decode(response.data[0].b64_json)).request
    assert isinstance(request, CanonicalEdit)
    assert request.strength == 1.0
    changed = np.abs(pixels(response) - np.asarray(GRADIENT, dtype=float)).max(axis=2) > 0
    assert changed[56:72, 56:72].any()
    changed[56:72, 56:72] = False
    assert not changed.any()


def test_a_hole_stays_one_however_small_the_picture_is_made() -> None:
    mask = Image.new("RGBA", (300, 300), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (150, 0, 151, 300))
    source = SourceImage(image=file(GRADIENT.resize((300, 300))), mask=file(mask))
    assert not source.is_whole()
    _, holes = source.prepared(64, 64)
    assert holes is not None
    left, top, right, bottom = holes.getbbox()
    assert (top, bottom) == (0, 64)
    assert left <= 32 < right <= left + 2


def test_a_single_pixel_of_a_large_mask_is_a_hole() -> None:
    mask = Image.new("RGBA", (2048, 2048), (0, 0, 0, 255))
    mask.putpixel((1000, 1000), (0, 0, 0, 0))
    source = SourceImage(image=file(Image.new("RGB", (2048, 2048))), mask=file(mask))
    _, holes = source.prepared(64, 64)
    assert holes is not None
    assert holes.getbbox() == (31, 31, 32, 32)


def test_greys_of_sixteen_bits_are_as_light_as_those_of_eight() -> None:
    greys = np.linspace(0, 65535, 64 * 64).reshape(64, 64)
    deep = SourceImage(image=file(Image.fromarray(greys.astype(np.uint16))))
    made, _ = deep.prepared(64, 64)
    assert np.abs(np.asarray(made, dtype=float)[..., 0] - greys / 257).max() <= 1


def test_the_grey_of_sixteen_bits_that_is_transparent_is_a_hole() -> None:
    greys = np.full((64, 64), 0x4000, dtype=np.uint16)
    greys[:32] = 0x8000
    buffer = io.BytesIO()
    Image.fromarray(greys).save(buffer, format="png", transparency=0x8000)
    _, holes = SourceImage(image=buffer.getvalue()).prepared(64, 64)
    assert holes is not None
    assert holes.getbbox() == (0, 0, 64, 32)


def test_an_adapter_s_weight_is_a_member_of_a_form(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        edit(client, extra_body={"lora": {"gold": 0.5}})
    assert "lora: 'gold' is not loaded" in refusal.value.message


@pytest.mark.parametrize(
    ("given", "made"),
    [((3000, 300), (2048, 200)), ((40, 30), (80, 64)), ((1000, 500), (1000, 496))],
)
def test_the_nearest_size_has_the_shape(given: tuple[int, int], made: tuple[int, int]) -> None:
    limits = RequestLimits(max_source_pixels=10**6)
    profile = describe_model(ModelConfig(limits=limits))
    source = SourceImage(image=file(Image.new("RGB", given)))
    canonical = profile.canonical_edit(EditRequest(prompt="a"), source, seed=0)
    assert (canonical.width, canonical.height) == made


def test_an_edit_names_its_files_and_can_be_repeated(client: OpenAI) -> None:
    first, again, other = (
        edit(client, mask=mask) for mask in (file(LEFT_HALF), file(LEFT_HALF), openai.NOT_GIVEN)
    )
    assert first.data[0].b64_json == again.data[0].b64_json != other.data[0].b64_json
    request = read_provenance(base64.b64decode(first.data[0].b64_json)).request
    assert isinstance(request, CanonicalEdit)
    assert (request.strength, len(request.image_sha256)) == (1.0, 64)
    assert request.mask_sha256 is not None


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_sizes_and_formats_are_as_asked_or_as_given(client: OpenAI, format: str) -> None:
    given = file(GRADIENT.resize((133, 100)), format)
    assert edit(client, given).size == "128x96"
    assert edit(client, [given], size="64x64").size == "64x64"


def test_an_edit_is_streamed(client: OpenAI) -> None:
    *partial, completed = edit(client, stream=True, partial_images=1)
    assert [each.type for each in partial] == ["image_edit.partial_image"]
    assert completed.type == "image_edit.completed"


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({"image": b"no picture"}, "image"),
        ({"image": file(GRADIENT)[:200]}, "image"),
        ({"image": file(GRADIENT, "gif")}, "image"),
        ({"image": file(GRADIENT.resize((400, 400)))}, "image"),
        ({"image": header(20_000, 20_000)}, "image"),
        ({"image": [file(GRADIENT), file(GRADIENT)]}, "image"),
        ({"mask": file(GRADIENT)}, "mask"),
        ({"mask": file(LEFT_HALF.resize((64, 64)))}, "mask"),
        ({"mask": b""}, "mask"),
        ({"size": "100x100"}, "size"),
        ({"extra_body": {"strength": 0}}, "strength"),
        ({"extra_body": {"strength": 0.1}}, "strength"),
        ({"extra_body": {"fast": 1}}, "fast"),
    ],
)
def test_what_cannot_be_edited_is_refused_by_name(
    client: OpenAI, arguments: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        edit(client, **arguments)
    assert caught.value.param == param


def test_no_address_is_followed_and_no_other_body_is_read(host: str) -> None:
    fields = {"prompt": "a", "image": "http://127.0.0.1:1/secret.png"}
    for kind in ({"data": fields}, {"json": fields}, {"files": {"mask": b""}}):
        response = requests.post(f"{host}/v1/images/edits", **kind, timeout=10)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "image"
