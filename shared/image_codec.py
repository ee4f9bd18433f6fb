"""Pixels to a file's bytes with their provenance inside, and back."""

import io

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from shared.request import Provenance, canonical_json

# The PNG text chunk that holds the provenance as JSON.
PROVENANCE_KEY = "stable-diffusion-on-ray"


def encode_png(image: Image.Image, provenance: Provenance) -> bytes:
    """`image` as PNG. Equal pixels and provenance give equal bytes: no time is written."""
    text = PngInfo()
    text.add_itxt(PROVENANCE_KEY, canonical_json(provenance.model_dump()))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=text)
    return buffer.getvalue()


def read_provenance(data: bytes) -> Provenance:
    """What a file of ours says of itself; ValueError if it is none."""
    with Image.open(io.BytesIO(data)) as image:
        text = image.info.get(PROVENANCE_KEY)
    if text is None:
        raise ValueError("the picture carries no provenance of this project")
    return Provenance.model_validate_json(text)
