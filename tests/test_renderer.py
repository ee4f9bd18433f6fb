import asyncio
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import LCMScheduler
from PIL import Image, ImageChops, ImageStat
from transformers import CLIPImageProcessor

from shared.config import EngineConfig, ModelConfig
from shared.errors import EngineDead, ImageBlocked, RenderFailed
from shared.image_codec import parameters_text, read_provenance
from shared.renderer import Renderer
from shared.request import CanonicalRequest, ImageRequest
from tests.small_models import (
    small_safety_checker,
    small_stable_diffusion,
    small_stable_diffusion_xl,
    write_lora,
)


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    with Renderer(ModelConfig(dtype="float32"), EngineConfig()) as renderer:
        yield renderer


def canonical(renderer: Renderer, seed: int = 0, **fields: object) -> CanonicalRequest:
    request = {"prompt": "twin peaks", "width": 96, "height": 64, "num_inference_steps": 4}
    return renderer.profile.canonical(ImageRequest(**request | fields), seed=seed)


def test_a_picture_carries_its_request(renderer: Renderer) -> None:
    request = canonical(renderer)
    image = asyncio.run(renderer.render(request))
    provenance = read_provenance(image.data)
    assert provenance == image.provenance
    assert provenance.request == request
    assert (provenance.model, provenance.dtype) == ("postcard", "float32")
    assert provenance.model_fingerprint == renderer.profile.fingerprint
    with Image.open(io.BytesIO(image.data)) as picture:
        assert picture.size == (96, 64)
    assert image.timings.num_forwards == 4


def test_one_request_is_one_file_whatever_else_is_rendered(renderer: Renderer) -> None:
    async def render_all(seeds: list[int]) -> list[str]:
        images = await asyncio.gather(*(renderer.render(canonical(renderer, s)) for s in seeds))
        return [image.sha256 for image in images]

    (alone,) = asyncio.run(render_all([0]))
    assert asyncio.run(render_all([5, 4, 0, 3, 2, 1]))[2] == alone


def test_a_picture_with_adapters_names_them(tmp_path: Path) -> None:
    pipeline = small_stable_diffusion()
    pipeline.save_pretrained(tmp_path / "model", safe_serialization=True)
    write_lora(pipeline, tmp_path / "ink.safetensors", seed=0)
    adapters = {"ink": tmp_path / "ink.safetensors"}
    model = ModelConfig(name=str(tmp_path / "model"), adapters=adapters)
    with Renderer(model, EngineConfig()) as renderer:
        plain, inked = (
            asyncio.run(renderer.render(canonical(renderer, width=64, lora=lora)))
            for lora in ({}, {"ink": 1.0})
        )
    pictures = [Image.open(io.BytesIO(image.data)) for image in (plain, inked)]
    assert ImageChops.difference(*pictures).getbbox() is not None
    provenance = read_provenance(inked.data)
    assert provenance.request.lora == {"ink": 1.0}
    assert provenance.model_fingerprint == renderer.profile.fingerprint_for(provenance.request)
    assert "<lora:ink:1>" in parameters_text(provenance)


def test_every_noise_scheduler_that_is_offered_draws_a_picture(renderer: Renderer) -> None:
    async def render_all() -> list[bytes]:
        requests = [
            canonical(renderer, scheduler=name, width=256, height=256, num_inference_steps=8)
            for name in renderer.profile.schedulers
        ]
        return [each.data for each in await asyncio.gather(*map(renderer.render, requests))]

    for name, data in zip(renderer.profile.schedulers, asyncio.run(render_all()), strict=True):
        with Image.open(io.BytesIO(data)) as picture:
            assert _contrast(picture) > 15, name  # EDMEulerScheduler, which does not fit, has 3


def test_sdxl_through_the_renderer_is_diffusers_own_picture(tmp_path: Path) -> None:
    pipeline = small_stable_diffusion_xl()
    pipeline.save_pretrained(tmp_path)
    generator = torch.Generator().manual_seed(1)
    expected = pipeline("twin peaks", num_inference_steps=4, generator=generator).images[0]
    with Renderer(ModelConfig(name=str(tmp_path), dtype="float32"), EngineConfig()) as renderer:
        defaults = {"prompt": "twin peaks", "num_inference_steps": 4}
        request = renderer.profile.canonical(ImageRequest(**defaults), seed=1)
        rendered = asyncio.run(renderer.render(request.model_copy(update={"guidance_scale": 5.0})))
    with Image.open(io.BytesIO(rendered.data)) as picture:
        difference = ImageChops.difference(picture, expected).getextrema()
    assert max(high for _, high in difference) <= 1


def test_what_the_pipeline_cannot_do_is_a_typed_error(tmp_path: Path) -> None:
    pipeline = small_stable_diffusion()
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    pipeline.save_pretrained(tmp_path)
    with Renderer(ModelConfig(name=str(tmp_path)), EngineConfig()) as renderer:
        # LCM was distilled for 50 steps at most; only diffusers knows.
        request = renderer.profile.canonical(
            ImageRequest(prompt="a", num_inference_steps=51), seed=0
        )
        with pytest.raises(RenderFailed, match=r"ValueError: .*num_inference_steps"):
            asyncio.run(renderer.render(request))
        renderer.check_alive()


def test_warming_up_leaves_the_engine_ready(renderer: Renderer) -> None:
    before = renderer.counters().online.num_completed
    renderer.warm_up()
    counters = renderer.counters().online
    assert (counters.num_completed, counters.num_in_flight) == (before + 1, 0)


def test_row_rules_are_found_with_the_smallest_picture(tmp_path: Path) -> None:
    small_stable_diffusion().save_pretrained(tmp_path)
    with Renderer(ModelConfig(name=str(tmp_path)), EngineConfig()) as renderer:
        rules = renderer.find_row_rules()
        assert {2, 4, 8, 16, 32} <= set(rules["UNet2DConditionModel"].counts)
        asyncio.run(renderer.render(canonical(renderer)))


def test_a_closed_renderer_says_so() -> None:
    renderer = Renderer(ModelConfig(), EngineConfig())
    renderer.check_alive()
    renderer.close()
    with pytest.raises(EngineDead):
        renderer.check_alive()


def _contrast(picture: Image.Image) -> float:
    """Standard deviation of the grey values, 0 to 128."""
    return ImageStat.Stat(picture.convert("L")).stddev[0]


def test_a_prompt_that_is_cut_says_so(renderer: Renderer) -> None:
    def cut(**fields: str) -> dict[str, int]:
        return asyncio.run(renderer.render(canonical(renderer, **fields))).tokens_cut

    limit = 77 - 2  # beside the start and the end
    assert cut(prompt="a " * limit) == {}
    assert cut(prompt="a " * (limit + 3), negative_prompt="a " * limit) == {"prompt": 3}
    assert cut(negative_prompt="a " * (limit + 1)) == {"negative_prompt": 1}


def test_a_picture_that_the_safety_checker_refuses_is_blocked(tmp_path: Path) -> None:
    pipeline = small_stable_diffusion()
    pipeline.register_modules(
        safety_checker=small_safety_checker(threshold=2.0),
        feature_extractor=CLIPImageProcessor(size=30, crop_size=30),
    )
    pipeline.save_pretrained(tmp_path / "mild", safe_serialization=True)
    pipeline.safety_checker.concept_embeds_weights.fill_(-2.0)
    pipeline.save_pretrained(tmp_path / "strict", safe_serialization=True)
    with Renderer(ModelConfig(name=str(tmp_path / "mild")), EngineConfig()) as mild:
        asyncio.run(mild.render(canonical(mild, width=64)))
    with (
        Renderer(ModelConfig(name=str(tmp_path / "strict")), EngineConfig()) as strict,
        pytest.raises(ImageBlocked),
    ):
        asyncio.run(strict.render(canonical(strict, width=64)))
