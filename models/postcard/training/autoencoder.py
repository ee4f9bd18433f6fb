"""The autoencoder: pictures to latents an eighth as large, and back."""

from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from .machine import autocast
from .styles import draw
from .trainer import Schedule, train

SCALING_FACTOR = 0.18215  # Stable Diffusion's own
_CROP, _LARGE_CROP = 64, 128
_NOISE = 0.05  # of a latent's spread: the decoder has to bear what a denoiser leaves
_SOURCES = (128, 256, 256, 384, 512)  # pixels a side of the pictures that crops are cut from


def new_autoencoder() -> AutoencoderKL:
    """Without attention, so that any size is decoded alike."""
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=256,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )
    with torch.no_grad():  # begin without noise of its own: that hides what there is to learn
        model.quant_conv.weight[4:] *= 0.1
        model.quant_conv.bias[4:] = -5.0
    return model


def train_autoencoder(folder: Path, schedule: Schedule, device: str) -> AutoencoderKL:
    """Train, scale the latents, and save to `folder`/vae."""
    torch.manual_seed(0)
    model = new_autoencoder()

    def batch_at(step: int) -> Tensor:
        size, number = (_LARGE_CROP, 6) if step % 10 == 0 else (_CROP, 24)
        return crops(Random(f"crops {step}"), size, number)

    def loss_of(images: Tensor) -> Tensor:
        return reconstruction_loss(model, images.to(device))

    outer = ("conv_in", "conv_out", "quant_conv")
    averaged = train(
        "autoencoder", folder, model, schedule, batch_at, loss_of, outer, device=device
    )
    assert isinstance(averaged, AutoencoderKL)
    scale_latents(averaged)
    averaged.save_pretrained(folder / "vae")
    return averaged


def crops(chance: Random, size: int, number: int) -> Tensor:
    """[number, 3, size, size] in -1..1, at the places where latents begin."""
    images: list[Image.Image] = []
    while len(images) < number:
        side = chance.choice([source for source in _SOURCES if source >= size])
        picture, _ = draw(chance.randrange(2**31), side, side)
        for _ in range(6):
            x, y = (8 * chance.randint(0, (side - size) // 8) for _ in range(2))
            images.append(picture.crop((x, y, x + size, y + size)))
    return as_tensor(images[:number])


def as_tensor(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size as [n, 3, height, width] in -1..1."""
    return normalised(torch.from_numpy(np.stack([np.asarray(each) for each in pictures])))


def normalised(pixels: Tensor) -> Tensor:
    """[n, height, width, 3] of bytes as [n, 3, height, width] in -1..1."""
    images = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    return images.contiguous(memory_format=torch.channels_last)


def reconstruction_loss(model: AutoencoderKL, images: Tensor) -> Tensor:
    with autocast(images.device):
        moments = model.quant_conv(model.encoder(images)).float()
        mean, log_variance = moments.chunk(2, dim=1)
        log_variance = log_variance.clamp(-20, 10)
        latents = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        latents = latents + torch.randn_like(latents) * _NOISE * mean.detach().std()
        decoded = model.decoder(model.post_quant_conv(latents))
    decoded = decoded.float()
    divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    edges = sum(F.l1_loss(decoded.diff(dim=dim), images.diff(dim=dim)) for dim in (-1, -2))
    faithful = F.l1_loss(decoded, images) + F.mse_loss(decoded, images) + edges
    loss: Tensor = faithful + 2e-4 * divergence
    return loss


@torch.no_grad()
def scale_latents(model: AutoencoderKL) -> None:
    """Fold each channel's mean and spread into the outermost layers of the latents.

    With Stable Diffusion's factor they come out as about N(0, 1) then.
    """
    images = crops(Random("scale"), _LARGE_CROP, 192).to(model.device)
    moments = model.quant_conv(model.encoder(images))
    mean = moments[:, :4].mean((0, 2, 3))
    spread = moments[:, :4].std((0, 2, 3)) * SCALING_FACTOR
    into, out = model.quant_conv, model.post_quant_conv
    into.weight[:4] /= spread.view(-1, 1, 1, 1)
    into.bias[:4] = (into.bias[:4] - mean) / spread
    into.bias[4:] -= 2 * spread.log()
    weight = out.weight.clone()
    out.bias += weight[:, :, 0, 0] @ mean
    out.weight.copy_(weight * spread.view(1, -1, 1, 1))
    model.register_to_config(scaling_factor=SCALING_FACTOR)


@torch.no_grad()
def encode(model: AutoencoderKL, images: Tensor) -> Tensor:
    """[n, 3, height, width] to latents [n, 4, height / 8, width / 8], scaled for the denoiser."""
    images = images.to(model.device)
    with autocast(images.device):
        hidden = model.encoder(images)
    latents: Tensor = model.quant_conv(hidden.float())[:, :4]
    return latents * SCALING_FACTOR
