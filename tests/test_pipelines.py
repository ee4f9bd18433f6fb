"""Every family of pipelines through the engine, against the stock pipeline, which is the oracle."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    DiffusionPipeline,
    MultiControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
)
from PIL import Image

from shared.engine import DenoiseEngine
from tests import small_models

NUM_REQUESTS = 5
ONE_OF_255 = 1 / 255

Arguments = Callable[[int], dict[str, Any]]


def prompt(seed: int) -> dict[str, Any]:
    prompts = ["twin peaks", "a lake at night", "city skyline, neon"]
    return {"prompt": prompts[seed % 3], "width": 64, "height": 64}


def picture(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def upper_half() -> Image.Image:
    mask = np.zeros((64, 64), np.uint8)
    mask[:32] = 255
    return Image.fromarray(mask)


def embeddings(seed: int, tokens: int) -> torch.Tensor:
    return torch.randn(tokens, 32, generator=torch.Generator().manual_seed(seed))


def edit(seed: int) -> dict[str, Any]:
    return {"prompt": prompt(seed)["prompt"], "image": picture(seed), "strength": 0.7}


def z_image(seed: int) -> dict[str, Any]:
    """Prompts of different lengths: some pairs are padded, some not."""
    return {
        "prompt_embeds": [embeddings(seed, 5 + 20 * (seed % 3))],
        "negative_prompt_embeds": [embeddings(99, 3)],
        "guidance_scale": 3.0,
        "width": 64,
        "height": 64,
    }


def qwen_image(seed: int) -> dict[str, Any]:
    positive, negative = embeddings(seed, 7)[None], embeddings(99, 3)[None]
    return {
        "prompt_embeds": positive,
        "prompt_embeds_mask": torch.ones(1, 7, dtype=torch.long),
        "negative_prompt_embeds": negative,
        "negative_prompt_embeds_mask": torch.ones(1, 3, dtype=torch.long),
        "true_cfg_scale": 3.0,
        "width": 64,
        "height": 64,
    }


def with_ip_adapter(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    small_models.add_ip_adapter(pipeline)
    return pipeline


def with_two_controlnets() -> DiffusionPipeline:
    one = small_models.small_controlnet()
    nets = MultiControlNetModel([one.controlnet, copy.deepcopy(one.controlnet)])
    return StableDiffusionControlNetPipeline(
        **one.components | {"controlnet": nets}, requires_safety_checker=False
    )


PIPELINES: dict[str, tuple[Callable[[], DiffusionPipeline], Arguments]] = {
    "SD": (small_models.small_stable_diffusion, prompt),
    "SD, v-prediction": (lambda: small_models.small_stable_diffusion("v_prediction"), prompt),
    "SDXL": (small_models.small_stable_diffusion_xl, prompt),
    "SD3": (small_models.small_stable_diffusion_3, prompt),
    "Flux": (small_models.small_flux, prompt),
    "PixArt": (
        small_models.small_pixart,
        lambda seed: prompt(seed) | {"use_resolution_binning": False, "clean_caption": False},
    ),
    "Sana": (
        small_models.small_sana,
        lambda seed: (
            prompt(seed) | {"use_resolution_binning": False, "complex_human_instruction": None}
        ),
    ),
    "Z-Image": (small_models.small_z_image, z_image),
    "Qwen-Image": (small_models.small_qwen_image, qwen_image),
    "SD, img2img": (
        lambda: AutoPipelineForImage2Image.from_pipe(small_models.small_stable_diffusion()),
        edit,
    ),
    "SDXL, img2img": (
        lambda: AutoPipelineForImage2Image.from_pipe(small_models.small_stable_diffusion_xl()),
        edit,
    ),
    "SD, inpaint": (
        lambda: AutoPipelineForInpainting.from_pipe(small_models.small_stable_diffusion()),
        lambda seed: edit(seed) | {"mask_image": upper_half()},
    ),
    "SDXL, inpaint": (
        lambda: AutoPipelineForInpainting.from_pipe(small_models.small_stable_diffusion_xl()),
        lambda seed: edit(seed) | {"mask_image": upper_half()},
    ),
    "SD, ControlNet": (
        small_models.small_controlnet,
        lambda seed: prompt(seed) | {"image": picture(seed)},
    ),
    "SDXL, ControlNet": (
        small_models.small_controlnet_xl,
        lambda seed: prompt(seed) | {"image": picture(seed)},
    ),
    "SD, two ControlNets": (
        with_two_controlnets,
        lambda seed: (
            prompt(seed)
            | {
                "image": [picture(seed), picture(seed + 1)],
                "controlnet_conditioning_scale": [0.5, 1.0],
            }
        ),
    ),
    "SD, IP-Adapter": (
        lambda: with_ip_adapter(small_models.small_stable_diffusion()),
        lambda seed: prompt(seed) | {"ip_adapter_image": picture(seed)},
    ),
    "SDXL, IP-Adapter": (
        lambda: with_ip_adapter(small_models.small_stable_diffusion_xl()),
        lambda seed: prompt(seed) | {"ip_adapter_image": picture(seed)},
    ),
}


@pytest.mark.filterwarnings("ignore:.*upcast_vae.*:FutureWarning")
@pytest.mark.parametrize("family", PIPELINES)
def test_equals_the_stock_pipeline(family: str) -> None:
    build, arguments = PIPELINES[family]
    pipeline = build()
    requests = [
        arguments(seed) | {"num_inference_steps": 3 + seed % 3, "output_type": "np"}
        for seed in range(NUM_REQUESTS)
    ]
    expected = [alone(pipeline, seed, request) for seed, request in enumerate(requests)]
    with DenoiseEngine(pipeline) as engine:
        tickets = [
            engine.submit(generator=seeded(seed), **request)
            for seed, request in enumerate(requests)
        ]
        pictures = [ticket.result(timeout=60).images[0] for ticket in tickets]
        counters = engine.counters()
    # What follows says something only of pictures that differ and are not just black and white.
    assert all(np.abs(expected[0] - other).mean() > 0.01 for other in expected[1:])
    assert all(((each > 0) & (each < 1)).mean() > 0.1 for each in expected)
    for made, wanted in zip(pictures, expected, strict=True):
        assert np.abs(made - wanted).max() < ONE_OF_255
    assert counters.num_shared_forwards > 0


def alone(pipeline: DiffusionPipeline, seed: int, request: dict[str, Any]) -> np.ndarray:
    own = copy.copy(pipeline)
    own.scheduler = copy.deepcopy(pipeline.scheduler)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: np.ndarray = own(generator=seeded(seed), **copy.deepcopy(request)).images[0]
    return made


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_pipelines_on_the_same_weights_share_an_engine_and_its_forwards() -> None:
    text = small_models.small_stable_diffusion()
    image = AutoPipelineForImage2Image.from_pipe(text)
    inpaint = AutoPipelineForInpainting.from_pipe(text)
    assert image.unet is inpaint.unet is text.unet
    assert image.vae is inpaint.vae is text.vae
    steps = {"num_inference_steps": 6, "output_type": "np"}
    requests = [
        (text, prompt(0) | steps),
        (image, edit(1) | steps),
        (inpaint, edit(2) | steps | {"mask_image": upper_half()}),
    ]
    expected = [alone(each, seed, request) for seed, (each, request) in enumerate(requests)]
    with DenoiseEngine(text) as engine:
        tickets = [
            engine.submit(pipeline=each, generator=seeded(seed), **request)
            for seed, (each, request) in enumerate(requests)
        ]
        pictures = [ticket.result(timeout=60).images[0] for ticket in tickets]
        assert engine.counters().forwards_by_requests.get(3, 0) > 0
    for made, wanted in zip(pictures, expected, strict=True):
        assert np.abs(made - wanted).max() < ONE_OF_255


def test_a_pipeline_on_other_weights_is_refused() -> None:
    with (
        DenoiseEngine(small_models.small_stable_diffusion()) as engine,
        pytest.raises(ValueError, match="pipeline: its unet"),
    ):
        engine.submit(pipeline=small_models.small_stable_diffusion(), **prompt(0))


def test_a_pipeline_that_changes_its_denoiser_is_refused() -> None:
    plain = small_models.small_stable_diffusion()
    changing = AutoPipelineForText2Image.from_pipe(plain, enable_pag=True)
    with DenoiseEngine(plain) as engine:
        with pytest.raises(ValueError, match="StableDiffusionPAGPipeline changes its denoiser"):
            engine.submit(pipeline=changing, **prompt(0))
        with pytest.raises(ValueError, match="StableDiffusionPAGPipeline changes its denoiser"):
            DenoiseEngine(changing)


def test_a_pipeline_can_do_without_the_controlnet() -> None:
    controlled = with_two_controlnets()
    plain = StableDiffusionPipeline.from_pipe(controlled)
    request = prompt(0) | {"num_inference_steps": 4, "output_type": "np"}
    expected = alone(plain, 0, request)
    with DenoiseEngine(controlled) as engine:
        ticket = engine.submit(pipeline=plain, generator=seeded(0), **request)
        assert np.abs(ticket.result(timeout=60).images[0] - expected).max() < ONE_OF_255
