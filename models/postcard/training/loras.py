"""Small LoRA adapters, each of which draws everything in a style that the model has no word for.

python -m models.postcard.training.loras --model postcard
"""

import argparse
from dataclasses import replace
from pathlib import Path
from random import Random

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor

from shared.config import ModelConfig
from shared.pipeline import load_pipeline

from .autoencoder import as_tensor, encode
from .captions import caption
from .denoiser import velocity_loss
from .machine import add_device, made_ahead, num_helpers
from .scenes import sample_scene
from .styles import paint

STYLES = ("blueprint", "gold")
_RANK = 4
_BATCH, _SIDE = 8, 256


def main() -> None:
    options = _parse()
    torch.set_num_threads(options.threads)
    for style in STYLES:
        config = ModelConfig(name=options.model, device=options.device, dtype="float32")
        pipeline = load_pipeline(config)
        file = options.output / f"{style}.safetensors"
        train_lora(pipeline, style, options.steps)
        _save(pipeline, file)
        print(f"{file}: {file.stat().st_size / 1e3:.0f} kB", flush=True)


def train_lora(pipeline: DiffusionPipeline, style: str, steps: int) -> None:
    """Give the pipeline's UNet an adapter for this way of painting."""
    torch.manual_seed(0)
    device = pipeline.device.type
    layers = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out"]
    config = LoraConfig(r=_RANK, lora_alpha=_RANK, target_modules=layers)
    pipeline.unet.requires_grad_(False)
    pipeline.unet.add_adapter(config)
    weights = [weight for weight in pipeline.unet.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=2e-3)
    rates = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    batches = made_ahead(lambda step: _batch(style, step), range(steps), num_helpers(device))
    for step, (pictures, words) in enumerate(batches):
        loss = _loss(pipeline, pictures, words)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        rates.step()
        if (step + 1) % 50 == 0:
            print(f"{style}: step {step + 1} of {steps}, loss {loss.item():.4f}", flush=True)


def _batch(style: str, step: int) -> tuple[Tensor, list[str]]:
    chance = Random(f"{style} {step}")
    # Captions of the flat style mostly name none, so it is this one that comes without a word.
    scenes = [replace(sample_scene(chance), style="flat") for _ in range(_BATCH)]
    painted = [paint(replace(scene, style=style), chance, _SIDE, _SIDE) for scene in scenes]
    return as_tensor(painted), [caption(scene, chance) for scene in scenes]


def _loss(pipeline: DiffusionPipeline, pictures: Tensor, words: list[str]) -> Tensor:
    with torch.no_grad():
        latents = encode(pipeline.vae, pictures)
        hidden = pipeline.encode_prompt(words, pipeline.device, 1, False)[0]
    return velocity_loss(lambda noisy, time: pipeline.unet(noisy, time, hidden).sample, latents)


def _save(pipeline: DiffusionPipeline, file: Path) -> None:
    layers = get_peft_model_state_dict(pipeline.unet)
    StableDiffusionPipeline.save_lora_weights(
        file.parent,
        unet_lora_layers={name: weight.half() for name, weight in layers.items()},
        weight_name=file.name,
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="postcard", help="a folder or a name (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("run/loras"), help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=300, help="(%(default)s)")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="(%(default)s)"
    )
    add_device(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
