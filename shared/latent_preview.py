"""What a picture looks like while it is still latents: a linear map to colours, made in no time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from shared.config import Settings
from shared.errors import ModelUnavailable

# A model folder may bring its map in this file; models/fit_latent_preview.py writes it.
PREVIEW_FILE = "latent_preview.json"


class LatentPreview(Settings):
    """Colours of a latent: `weights` times its channels, plus `bias`; red, green, blue from 0 to 1.

    Each autoencoder needs a map of its own.
    """

    weights: tuple[tuple[float, ...], ...]
    bias: tuple[float, float, float]

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """The map of the model in `folder`; None if it has none."""
        file = folder / PREVIEW_FILE
        if not file.is_file():
            return None
        try:
            return cls.model_validate_json(file.read_text())
        except ValidationError as error:
            raise ModelUnavailable(f"{file} is no latent preview: {error}") from error

    @classmethod
    def fit(cls, latents: Sequence[Tensor], pictures: Sequence[Tensor]) -> Self:
        """The least squares fit of latents (channels, height, width) to pictures of them.

        `pictures` are (3, height, width) from 0 to 1, one pixel for each latent.
        """
        known = torch.cat([each.flatten(1) for each in latents], dim=1).double()
        wanted = torch.cat([each.flatten(1) for each in pictures], dim=1).double()
        known = torch.cat([known, torch.ones(1, known.shape[1])])
        *weights, bias = torch.linalg.lstsq(known.T, wanted.T).solution.tolist()
        return cls(weights=tuple(zip(*weights, strict=True)), bias=tuple(bias))

    def colours(self, latents: Tensor) -> Tensor:
        """(3, height, width) from 0 to 1 of latents (channels, height, width), on their device."""
        weights = torch.tensor(self.weights, device=latents.device, dtype=torch.float32)
        bias = torch.tensor(self.bias, device=latents.device, dtype=torch.float32)
        colours = torch.einsum("oc,chw->ohw", weights, latents.float()) + bias[:, None, None]
        return colours.clamp(0, 1)

    def picture(self, latents: Tensor) -> Image.Image:
        """One pixel for each latent of (channels, height, width): an eighth of a side, usually."""
        pixels = (self.colours(latents) * 255).round().byte().permute(1, 2, 0)
        return Image.fromarray(pixels.cpu().numpy())
