"""The text encoder and the UNet, trained together on latents and captions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .captions import caption
from .latents import EncodedScenes, Latents, Size
from .machine import autocast
from .noise import ALPHAS_CUMPROD, NUM_TIMESTEPS
from .trainer import Schedule, train

_THING_WEIGHT = 2.0  # of an object's latents beside the others: else it is too small to matter
_LARGE_LATENT = 48 * 48

Batch = tuple[Tensor, Tensor, Tensor]  # latents, what of them is of objects, tokens


@dataclass(frozen=True)
class Bucket:
    """How many pictures of a size make a batch, and how often: in the first quarter, and later."""

    batch: int
    early: float
    late: float


class Denoiser(nn.Module):
    """Both networks, as one module."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=128,
                intermediate_size=512,
                num_hidden_layers=4,
                num_attention_heads=4,
                max_position_embeddings=tokenizer.model_max_length,
                projection_dim=128,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        self.unet = UNet2DConditionModel(
            sample_size=32,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(64, 128, 160),
            layers_per_block=1,
            cross_attention_dim=128,
            attention_head_dim=(2, 4, 5),  # heads, in truth
            norm_num_groups=16,
        )

    def forward(self, latents: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        hidden = self.text_encoder(tokens)[0]
        velocity: Tensor = self.unet(latents, timesteps, hidden).sample
        return velocity


def train_denoiser(
    folder: Path,
    tokenizer: CLIPTokenizer,
    data: EncodedScenes,
    buckets: Mapping[Size, Bucket],
    schedule: Schedule,
    show: Callable[[nn.Module, int], None],
    device: str,
) -> Denoiser:
    torch.manual_seed(0)
    model = Denoiser(tokenizer)
    if device == "cpu":  # the backward of torch's own attention takes three times as long there
        model.unet.set_attn_processor(AttnProcessor())
        model.text_encoder.set_attn_implementation("eager")
    for size in buckets:
        data.of(size)  # here, once, and not in each process that makes batches

    def batch_at(step: int) -> Batch:
        chance = Random(f"batch {step}")
        weights = [
            bucket.early if 4 * step < schedule.steps else bucket.late
            for bucket in buckets.values()
        ]
        (size,) = chance.choices(list(buckets), weights)
        return _batch(tokenizer, data.of(size), buckets[size].batch, chance)

    def loss_of(batch: Batch) -> Tensor:
        latents, things, tokens = (each.to(device) for each in batch)
        return velocity_loss(
            lambda noisy, timesteps: model(noisy, timesteps, tokens), latents, things
        )

    outer = ("conv_in", "conv_out", "embedding")
    averaged = train("denoiser", folder, model, schedule, batch_at, loss_of, outer, show, device)
    assert isinstance(averaged, Denoiser)
    return averaged


def for_sampling(model: Denoiser) -> Denoiser:
    """With torch's own attention again."""
    model.unet.set_attn_processor(AttnProcessor2_0())
    model.text_encoder.set_attn_implementation("sdpa")
    return model.eval()


def _batch(tokenizer: CLIPTokenizer, data: Latents, number: int, chance: Random) -> Batch:
    """Of random rows."""
    rows = [chance.randrange(len(data.seeds)) for _ in range(number)]
    latents, things = data.tensors(rows)
    words = [caption(data.scene(row), chance) for row in rows]
    tokens = tokenizer(words, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return latents, things, tokens


def velocity_loss(
    predict: Callable[[Tensor, Tensor], Tensor], latents: Tensor, things: Tensor | None = None
) -> Tensor:
    """The squared error of the latents' velocities, at timesteps that cover all evenly.

    What is of `things` weighs more, the more of the picture the noise leaves: in much noise, where
    an object could be anywhere, the weight would draw it everywhere.
    """
    batch = len(latents)
    moments = (torch.arange(batch) + torch.rand(batch)) / batch
    if latents[0, 0].numel() >= _LARGE_LATENT:
        moments = moments**0.7  # a large picture's layout is decided in more noise
    timesteps = (moments * NUM_TIMESTEPS).long()
    signal = ALPHAS_CUMPROD[timesteps].view(-1, 1, 1, 1).to(latents.device)
    timesteps = timesteps.to(latents.device)
    noise = torch.randn_like(latents)
    noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
    velocity = signal.sqrt() * noise - (1 - signal).sqrt() * latents
    with autocast(latents.device):
        predicted = predict(noisy.contiguous(memory_format=torch.channels_last), timesteps)
    errors = (predicted.float() - velocity) ** 2
    if things is not None:
        errors = errors * (1 + _THING_WEIGHT * signal * things)
    loss: Tensor = errors.mean()
    return loss
