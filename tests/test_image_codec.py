import io
from typing import get_args

import pytest
from PIL import Image, ImageChops

from shared.config import RequestLimits
from shared.image_codec import encode, read_provenance
from shared.request import CanonicalRequest, ImageFormat, Provenance
from tests.tool_metadata import read_by_tools

PROVENANCE = Provenance(
    request=CanonicalRequest(
        prompt='雪 <b>"quoted"</b> & \x07 \uffff\n]]>',
        negative_prompt="grey",
        width=64,
        height=64,
        num_inference_steps=2,
        guidance_scale=4.5,
        scheduler="DDIMScheduler",
        seed=2**53 - 1,
    ),
    model="postcard",
    model_fingerprint="abc",
    dtype="float32",
)
PIXELS = Image.linear_gradient("L").convert("RGB").resize((64, 64))


every_format = pytest.mark.parametrize("format", get_args(ImageFormat))


@every_format
def test_pixels_and_provenance_come_back(format: ImageFormat) -> None:
    data = encode(PIXELS, PROVENANCE, format)
    assert read_provenance(data) == PROVENANCE
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == format.upper()
        difference = ImageChops.difference(image, PIXELS).getextrema()
    assert max(high for _, high in difference) <= (0 if format == "png" else 8)


@every_format
def test_equal_pictures_are_equal_bytes(format: ImageFormat) -> None:
    assert encode(PIXELS, PROVENANCE, format) == encode(PIXELS.copy(), PROVENANCE, format)


@every_format
def test_stable_diffusion_tools_read_the_request(format: ImageFormat) -> None:
    found = read_by_tools(encode(PIXELS, PROVENANCE, format))
    request = PROVENANCE.request
    assert [each.value for each in found.prompts] == [request.prompt]
    assert [each.value for each in found.negative_prompts] == [request.negative_prompt]
    (sampler,) = found.samplers
    assert sampler.name == request.scheduler
    assert sampler.parameters == {"steps": "2", "cfg_scale": "4.5", "seed": str(request.seed)}
    assert sampler.model is not None
    assert (sampler.model.name, sampler.model.hash) == ("postcard", "abc")


@every_format
def test_files_say_that_a_model_made_them(format: ImageFormat) -> None:
    with Image.open(io.BytesIO(encode(PIXELS, PROVENANCE, format))) as image:
        (description,) = image.getxmp()["xmpmeta"]["RDF"].values()
    assert description["DigitalSourceType"].endswith("/trainedAlgorithmicMedia")


@every_format
def test_the_longest_prompts_fit(format: ImageFormat) -> None:
    longest = RequestLimits().max_prompt_chars
    fields = {"prompt": "\x07" * longest, "negative_prompt": "🗻" * longest}
    request = PROVENANCE.request.model_copy(update=fields)
    provenance = PROVENANCE.model_copy(update={"request": request})
    assert read_provenance(encode(PIXELS, provenance, format)) == provenance


@every_format
def test_quality_is_that_of_the_lossy_formats(format: ImageFormat) -> None:
    small, large = (len(encode(PIXELS, PROVENANCE, format, quality)) for quality in (10, 100))
    assert small == large if format == "png" else small < large


@pytest.mark.parametrize("xmp", [b"", b"<x", b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"])
def test_a_foreign_picture_has_no_provenance(xmp: bytes) -> None:
    buffer = io.BytesIO()
    PIXELS.save(buffer, format="JPEG", xmp=xmp)
    with pytest.raises(ValueError, match="no provenance"):
        read_provenance(buffer.getvalue())
