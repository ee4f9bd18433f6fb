"""What was trained as a folder that diffusers loads, and pictures that it makes."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image
from torch.nn.functional import avg_pool2d
from transformers import CLIPTokenizer

from shared.latent_preview import PREVIEW_FILE, LatentPreview
from shared.model_files import DEFAULTS_FILE

from .autoencoder import as_tensor, encode
from .denoiser import Denoiser
from .noise import scheduler
from .styles import draw
from .tokenizer import save_tokenizer

DEFAULTS = {"guidance_scale": 4.0, "num_inference_steps": 20}
# Settings of where it was made, and one that is -Infinity, which no strict reader takes.
_PRIVATE = ("_name_or_path", "is_local", "local_files_only", "lambda_min_clipped")
SHEET_PROMPTS = (
    "twin peaks sf in basquiat painting style",
    "a red house in a meadow, rolling hills, blue sky",
    "a yellow sailboat on the sea at sunset, watercolor",
    "a blue lighthouse by the ocean at night, neon",
    "a purple hot air balloon over a city, dawn",
    "a cactus in the desert, pixel art",
    "a white cottage in front of a pine forest, snow, pencil sketch",
    "an orange bridge over the bay, twin peaks, sunny day",
)


def assemble(
    tokenizer: CLIPTokenizer, autoencoder: AutoencoderKL, denoiser: Denoiser
) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=denoiser.text_encoder.eval(),
        tokenizer=tokenizer,
        unet=denoiser.unet.eval(),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def export(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """In half precision; the pipeline itself is left so."""
    _fit_preview(pipeline.to("cpu").vae, folder)
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
        part.half()
    pipeline.save_pretrained(folder)
    save_tokenizer(pipeline.tokenizer, folder / "tokenizer")
    for file in folder.glob("**/*config.json"):
        settings = {k: v for k, v in json.loads(file.read_text()).items() if k not in _PRIVATE}
        file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    (folder / DEFAULTS_FILE).write_text(json.dumps(DEFAULTS, indent=2) + "\n")


def sheet(pipeline: StableDiffusionPipeline, size: int = 256) -> Image.Image:
    """A picture of each of the prompts."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(SHEET_PROMPTS))]
    prompts = list(SHEET_PROMPTS)
    made = pipeline(prompts, width=size, height=size, generator=generators, **DEFAULTS)
    return grid(made.images, columns=4)


def grid(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    whole = Image.new("RGB", (columns * width, rows * height))
    for number, picture in enumerate(pictures):
        whole.paste(picture, (number % columns * width, number // columns * height))
    return whole


@torch.no_grad()
def _fit_preview(autoencoder: AutoencoderKL, folder: Path) -> None:
    """The map from latents to colours, from scenes in all styles."""
    pictures = as_tensor([draw(seed, 128, 128)[0] for seed in range(64)])
    latents = encode(autoencoder, pictures)
    # Channels nearly tell one another: a fit to less noise than there is takes them for exact.
    latents += 0.1 * torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    colours = avg_pool2d(pictures / 2 + 0.5, 8)
    folder.mkdir(parents=True, exist_ok=True)
    preview = LatentPreview.fit(list(latents), list(colours))
    (folder / PREVIEW_FILE).write_text(preview.model_dump_json(indent=2) + "\n")
