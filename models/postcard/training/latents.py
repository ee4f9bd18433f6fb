"""The denoiser's data: scenes drawn and encoded once, in each size."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from jobs.progress import duration

from .autoencoder import as_tensor, encode
from .scenes import Scene, sample_scene
from .styles import draw, things_mask

Size = tuple[int, int]  # width and height in pixels

_PIXELS_AT_ONCE = 32 * 128 * 128


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


def encode_scenes(
    folder: Path, model: AutoencoderKL, numbers: Mapping[Size, int]
) -> dict[Size, Latents]:
    """So many scenes of each size; what `folder` has already is loaded."""
    folder.mkdir(exist_ok=True)
    begun = time.monotonic()
    found = {}
    for index, (size, number) in enumerate(numbers.items()):
        file = folder / f"{size[0]}x{size[1]}.npz"
        if not file.exists():
            _encode_size(file, model, size, range(index * 10**7, index * 10**7 + number))
            took = duration(time.monotonic() - begun)
            print(f"latents: {number} scenes of {size[0]}x{size[1]} px, {took} so far", flush=True)
        found[size] = Latents(**np.load(file))
    return found


def _encode_size(file: Path, model: AutoencoderKL, size: Size, seeds: range) -> None:
    at_once = max(1, _PIXELS_AT_ONCE // (size[0] * size[1]))
    latents, things = [], []
    for begin in range(0, len(seeds), at_once):
        some = seeds[begin : begin + at_once]
        pictures = np.stack([np.asarray(draw(seed, *size)[0]) for seed in some])
        latents.append(encode(model, as_tensor(pictures)).half().numpy())
        things.append(np.stack([np.asarray(things_mask(seed, *size).reduce(8)) for seed in some]))
    whole = file.with_suffix(".new.npz")
    np.savez(
        whole, seeds=np.array(seeds), latents=np.concatenate(latents), things=np.concatenate(things)
    )
    whole.rename(file)
