"""Replay: render a picture again from what it says of itself, and compare the two."""

import asyncio
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from shared.config import EngineConfig, ModelConfig
from shared.errors import InvalidRequest
from shared.image_codec import read_provenance
from shared.request import CanonicalEdit, Provenance


class NotReplayable(ValueError):
    """A file that cannot be rendered again; says why."""


@dataclass(frozen=True)
class Replay:
    """What came of it. `max_difference` is that of a pixel's channel, of 255."""

    same_bytes: bool
    max_difference: int


def replayable(data: bytes) -> Provenance:
    """What a file says of itself. Raises NotReplayable."""
    try:
        provenance = read_provenance(data)
        with Image.open(io.BytesIO(data)) as image:
            is_png = image.format == "PNG"
    except UnidentifiedImageError:
        raise NotReplayable("it is no picture") from None
    except (OSError, ValueError) as error:
        raise NotReplayable(str(error)) from error
    if not is_png:
        raise NotReplayable("only PNG files hold exactly what was rendered")
    if isinstance(provenance.request, CanonicalEdit):
        raise NotReplayable("it was made from another picture, which is not in the file")
    return provenance


def replay(data: bytes, model: ModelConfig, engine: EngineConfig) -> Replay:
    """Render the picture in a file again. Raises NotReplayable or ModelUnavailable."""
    from shared.model_files import describe_model  # they load torch and diffusers
    from shared.renderer import Renderer

    provenance = replayable(data)
    request = provenance.request
    profile = describe_model(model)
    try:
        profile.canonical(request, seed=request.seed)
    except InvalidRequest as error:
        raise NotReplayable(f"{model.name} cannot render it: {error}") from error
    there = profile.fingerprint_for(request)
    if there != provenance.model_fingerprint:
        raise NotReplayable(
            f"it was made with the weights {provenance.model_fingerprint}, and {model.name} has "
            f"{there}"
        )
    with Renderer(model, engine) as renderer:
        made = asyncio.run(renderer.render(request)).data
    return Replay(made == data, _max_difference(made, data))


def _max_difference(one: bytes, other: bytes) -> int:
    first, second = (
        np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int) for data in (one, other)
    )
    return 255 if first.shape != second.shape else int(np.abs(first - second).max())
