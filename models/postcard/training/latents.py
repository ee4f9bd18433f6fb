"""The denoiser's data: scenes drawn and encoded once, in each size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from .autoencoder import encode, normalised
from .machine import made_ahead, num_helpers
from .news import News
from .scenes import Scene, sample_scene
from .styles import draw, things_mask

Size = tuple[int, int]  # width and height in pixels

_PIXELS_AT_ONCE = {"cpu": 32 * 128 * 128, "cuda": 8 * 32 * 128 * 128}


@dataclass(frozen=True)
class Latents:
    """Of one size. Row i is the scene of `seeds[i]`."""

    seeds: np.ndarray  # [n]
    latents: np.ndarray  # [n, 4, height / 8, width / 8], float16
    things: np.ndarray  # [n, height / 8, width / 8], bytes: how much of each is of an object

    def scene(self, row: int) -> Scene:
        return sample_scene(Random(int(self.seeds[row])))

    def tensors(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Latents, and the share of each that is of an object: [n, 1, height / 8, width / 8]."""
        shares = torch.from_numpy(self.things[rows]).float() / 255
        return torch.from_numpy(self.latents[rows]).float(), shares.unsqueeze(1)


class EncodedScenes:
    """So many scenes of each size, kept in a folder; a size is drawn when it is first wanted."""

    def __init__(self, folder: Path, model: AutoencoderKL, numbers: Mapping[Size, int]) -> None:
        self._folder, self._model, self._numbers = folder, model, numbers
        self._loaded: dict[Size, Latents] = {}

    def of(self, size: Size) -> Latents:
        if size not in self._loaded:
            file = self._folder / f"{size[0]}x{size[1]}.npz"
            if not file.exists():
                self._encode(file, size)
            self._loaded[size] = Latents(**np.load(file))
        return self._loaded[size]

    def _encode(self, file: Path, size: Size) -> None:
        number = self._numbers[size]
        # No two sizes have a scene in common.
        first = list(self._numbers).index(size) * 10**7
        seeds = range(first, first + number)
        device = self._model.device.type
        at_once = max(1, _PIXELS_AT_ONCE[device] // (size[0] * size[1]))
        news = News(file.stem, "scenes drawn and encoded", number)

        def drawn(begin: int) -> tuple[Tensor, Tensor]:
            return _drawn(seeds[begin : begin + at_once], size)

        batches = []
        begins = range(0, number, at_once)
        for pictures, masks in made_ahead(drawn, begins, num_helpers(device) or 1):
            batches.append((encode(self._model, normalised(pictures)).half().cpu(), masks))
            news.tell(min(number, len(batches) * at_once))
        latents, things = (torch.cat(parts).numpy() for parts in zip(*batches, strict=True))
        self._folder.mkdir(exist_ok=True)
        whole = file.with_suffix(".new.npz")
        np.savez(whole, seeds=np.array(seeds), latents=latents, things=things)
        whole.rename(file)


def _drawn(seeds: Sequence[int], size: Size) -> tuple[Tensor, Tensor]:
    """[n, height, width, 3] of bytes, and where objects are: [n, height / 8, width / 8]."""
    pictures = [np.asarray(draw(seed, *size)[0]) for seed in seeds]
    masks = [np.asarray(things_mask(seed, *size).reduce(8)) for seed in seeds]
    return torch.from_numpy(np.stack(pictures)), torch.from_numpy(np.stack(masks))
