"""Train the bundled model from nothing: python -m models.postcard.training --help

Every stage goes on where it stopped. On two cores (EPYC, AVX512-BF16) the autoencoder takes 20
minutes, drawing the scenes a quarter of an hour, and the denoiser some three hours. Beside a GPU
(an H200 and 16 cores) drawing takes two and a half minutes, and the denoiser six and a half.
"""

import argparse
import copy
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTokenizer

from shared.cpu_workers import KEEP_FREED_MEMORY, restart_with

from .autoencoder import train_autoencoder
from .denoiser import Denoiser, for_sampling, train_denoiser
from .export import assemble, export, sheet
from .latents import EncodedScenes
from .machine import add_device
from .recipe import FULL, TINY
from .tokenizer import train_tokenizer
from .trainer import Schedule


def main() -> None:
    options = _parse()
    restart_with(KEEP_FREED_MEMORY)  # a step at 640 px takes a quarter less then
    torch.set_num_threads(options.threads)
    recipe = TINY if options.tiny else FULL[options.device]
    run, device = options.run, options.device
    run.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(run)
    autoencoder = _autoencoder(run, recipe.autoencoder, device)
    data = EncodedScenes(run / "latents", autoencoder, recipe.num_scenes)
    show = partial(_show, run, tokenizer, autoencoder)
    denoiser = train_denoiser(run, tokenizer, data, recipe.buckets, recipe.denoiser, show, device)
    export(assemble(tokenizer, autoencoder, for_sampling(denoiser)), run / "postcard")
    print(f"The model is in {run / 'postcard'}: make serve MODEL={run / 'postcard'}")


def _tokenizer(run: Path) -> CLIPTokenizer:
    folder = run / "tokenizer"
    return CLIPTokenizer.from_pretrained(folder) if folder.exists() else train_tokenizer(folder)


def _autoencoder(run: Path, schedule: Schedule, device: str) -> AutoencoderKL:
    folder = run / "vae"
    if not folder.exists():
        return train_autoencoder(run, schedule, device)
    model = AutoencoderKL.from_pretrained(folder).eval().requires_grad_(False)
    return model.to(device, memory_format=torch.channels_last)


def _show(
    run: Path, tokenizer: CLIPTokenizer, autoencoder: AutoencoderKL, averaged: nn.Module, step: int
) -> None:
    """A sheet of pictures, by a copy: attention for training and for sampling differ."""
    assert isinstance(averaged, Denoiser)
    pipeline = assemble(tokenizer, autoencoder, for_sampling(copy.deepcopy(averaged)))
    (run / "sheets").mkdir(exist_ok=True)
    sheet(pipeline).save(run / "sheets" / f"{step:06}.png")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("run"), help="what it keeps (%(default)s)")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="(%(default)s)"
    )
    add_device(parser)
    parser.add_argument("--tiny", action="store_true", help="every stage for a moment, as a test")
    return parser.parse_args()


if __name__ == "__main__":
    main()
