"""Fits a model's latent preview to pictures of its own, and writes it into the model's folder.

python models/fit_latent_preview.py --model postcard --prompts examples/prompts.parquet
"""

import argparse

import pyarrow.parquet as pq
import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.nn.functional import avg_pool2d

from shared.config import ModelConfig
from shared.engine import DenoiseEngine
from shared.latent_preview import PREVIEW_FILE, LatentPreview
from shared.model_files import resolve_folder
from shared.pipeline import load_pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="postcard")
    parser.add_argument("--prompts", required=True, help="a Parquet file with a column `prompt`")
    options = parser.parse_args()
    config = ModelConfig(name=options.model)
    prompts = pq.read_table(options.prompts)["prompt"].to_pylist()
    pipeline = load_pipeline(config)
    latents = render(pipeline, prompts)
    pictures = [decode(pipeline, each) for each in latents]
    held_out = len(prompts) // 4
    preview = LatentPreview.fit(latents[held_out:], pictures[held_out:])
    errors = [
        (preview.colours(each) - picture).abs().mean().item()
        for each, picture in zip(latents[:held_out], pictures[:held_out], strict=True)
    ]
    file = resolve_folder(config) / PREVIEW_FILE
    file.write_text(preview.model_dump_json(indent=2) + "\n")
    print(f"{file}: {255 * sum(errors) / held_out:.1f} of 255 off, on average, over {held_out}")
    print(f"pictures that it was not fitted to (fitted to {len(prompts) - held_out})")


def render(pipeline: DiffusionPipeline, prompts: list[str]) -> list[Tensor]:
    """The final latents (channels, height, width) of each prompt."""
    with DenoiseEngine(pipeline) as engine:
        tickets = [
            engine.submit(
                prompt=prompt,
                output_type="latent",
                num_inference_steps=20,
                guidance_scale=4.0,
                generator=torch.Generator().manual_seed(seed),
            )
            for seed, prompt in enumerate(prompts)
        ]
        return [ticket.result().images[0] for ticket in tickets]


@torch.no_grad()
def decode(pipeline: DiffusionPipeline, latents: Tensor) -> Tensor:
    """The picture of the latents, (3, height, width) from 0 to 1, averaged to one pixel each."""
    config = pipeline.vae.config
    shift = getattr(config, "shift_factor", None) or 0.0
    picture = pipeline.vae.decode(latents[None] / config.scaling_factor + shift).sample
    return avg_pool2d((picture / 2 + 0.5).clamp(0, 1), pipeline.vae_scale_factor)[0].float()


if __name__ == "__main__":
    main()
