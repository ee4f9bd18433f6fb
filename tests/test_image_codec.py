import io

import pytest
from PIL import Image

from shared.image_codec import encode_png, read_provenance
from shared.request import CanonicalRequest, Provenance

PROVENANCE = Provenance(
    request=CanonicalRequest(
        prompt='雪 <b>"quoted"</b>\n',
        width=64,
        height=64,
        num_inference_steps=2,
        guidance_scale=4.0,
        scheduler="DDIMScheduler",
        seed=2**53 - 1,
    ),
    model="postcard",
    model_fingerprint="abc",
    dtype="float32",
)
PIXELS = Image.linear_gradient("L").convert("RGB").resize((64, 64))


def test_pixels_and_provenance_come_back() -> None:
    data = encode_png(PIXELS, PROVENANCE)
    assert read_provenance(data) == PROVENANCE
    with Image.open(io.BytesIO(data)) as image:
        assert image.tobytes() == PIXELS.tobytes()


def test_equal_pictures_are_equal_bytes() -> None:
    assert encode_png(PIXELS, PROVENANCE) == encode_png(PIXELS.copy(), PROVENANCE)


def test_a_foreign_picture_has_no_provenance() -> None:
    buffer = io.BytesIO()
    PIXELS.save(buffer, format="PNG")
    with pytest.raises(ValueError, match="no provenance"):
        read_provenance(buffer.getvalue())
