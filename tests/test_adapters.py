"""LoRA adapters by request, against the stock pipeline with the same adapters active."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from diffusers import DiffusionPipeline

from shared.config import ModelConfig
from shared.engine import DenoiseEngine
from shared.errors import ModelUnavailable
from shared.model_names import BUNDLED_MODELS
from shared.pipeline import load_pipeline
from tests.rendering import ONE_OF_255, arguments, stock
from tests.small_models import small_stable_diffusion, write_lora

SETS: list[dict[str, float]] = [{}, {"ink": 1.0}, {"ink": 0.5}, {"gold": 1.0, "ink": 0.25}]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """A saved pipeline and two adapters."""
    folder = tmp_path_factory.mktemp("small")
    pipeline = small_stable_diffusion()
    pipeline.save_pretrained(folder / "model", safe_serialization=True)
    for seed, name in enumerate(["ink", "gold"]):
        write_lora(pipeline, folder / f"{name}.safetensors", seed)
    adapters = {name: folder / f"{name}.safetensors" for name in ("ink", "gold")}
    return ModelConfig(name=str(folder / "model"), adapters=adapters)


@pytest.fixture(scope="module")
def adapted(config: ModelConfig) -> DiffusionPipeline:
    pipeline = load_pipeline(config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def expected(pipeline: DiffusionPipeline, weights: dict[str, float], seed: int) -> np.ndarray:
    if weights:
        pipeline.enable_lora()
        pipeline.set_adapters(list(weights), list(weights.values()))
    else:
        pipeline.disable_lora()
    return stock(pipeline, pipeline.scheduler, arguments(seed))


def test_the_bundled_adapters_restyle_the_bundled_model() -> None:
    adapters = {file.stem: file for file in (BUNDLED_MODELS / "postcard/loras").iterdir()}
    assert sorted(adapters) == ["blueprint", "gold"]
    assert all(file.stat().st_size < 10**6 for file in adapters.values())
    pipeline = load_pipeline(ModelConfig(dtype="float32", adapters=adapters))
    pipeline.set_progress_bar_config(disable=True)
    with DenoiseEngine(pipeline) as engine:
        asked = {"prompt": "twin peaks, sea, sunset", "width": 128, "height": 128}
        tickets = [
            engine.submit(**arguments(0, **asked), adapters=weights)
            for weights in ({}, {"blueprint": 1.0}, {"gold": 1.0})
        ]
        plain, blueprint, gold = (ticket.result(timeout=60).images[0] for ticket in tickets)
    red, _, blue = np.moveaxis(plain, -1, 0)
    assert red.mean() > blue.mean()  # as at sunset
    red, _, blue = np.moveaxis(blueprint, -1, 0)
    assert blue.mean() > red.mean() + 0.1
    assert gold.mean() < plain.mean() - 0.1


def test_a_request_gets_its_adapters_and_nobody_elses(adapted: DiffusionPipeline) -> None:
    wanted = [expected(adapted, SETS[i % 4], i) for i in range(8)]
    assert np.abs(expected(adapted, SETS[1], 0) - wanted[0]).max() > 5 * ONE_OF_255
    with DenoiseEngine(adapted) as engine:
        tickets = [engine.submit(**arguments(i), adapters=SETS[i % 4]) for i in range(8)]
        pictures = [ticket.result(timeout=60).images[0] for ticket in tickets]
        counters = engine.counters()
    for made, expectation in zip(pictures, wanted, strict=True):
        assert np.abs(made - expectation).max() < ONE_OF_255
    # Those of one set go together, and a set stays on as long as it is worth it.
    assert counters.forwards_by_requests.get(2, 0) > 0
    assert counters.num_adapter_switches > 0


def test_no_adapters_are_the_same_bytes_as_before_there_were_any(
    adapted: DiffusionPipeline, config: ModelConfig
) -> None:
    plain = load_pipeline(config.model_copy(update={"adapters": {}}))
    with DenoiseEngine(plain) as engine:
        before = engine.submit(**arguments(0)).result(timeout=60).images[0]
    with DenoiseEngine(adapted) as engine:
        engine.submit(**arguments(0), adapters={"ink": 1.0}).result(timeout=60)
        after = engine.submit(**arguments(0), adapters={"ink": 0.0}).result(timeout=60).images[0]
    assert np.array_equal(before, after)


def test_the_same_prompt_is_encoded_for_each_set(adapted: DiffusionPipeline) -> None:
    with DenoiseEngine(adapted) as engine:
        for weights in (SETS[0], SETS[1], SETS[0]):
            engine.submit(**arguments(0), adapters=weights).result(timeout=60)
        counters = engine.counters()
    assert (counters.num_prompt_cache_misses, counters.num_prompt_cache_hits) == (4, 2)


def test_only_loaded_adapters_can_be_asked_for(adapted: DiffusionPipeline) -> None:
    with (
        DenoiseEngine(adapted) as engine,
        pytest.raises(ValueError, match="adapters: 'oil' is not loaded; there are: gold, ink"),
    ):
        engine.submit(**arguments(0), adapters={"oil": 1.0})


def test_a_scale_that_would_be_everybodys_is_refused(adapted: DiffusionPipeline) -> None:
    with (
        DenoiseEngine(adapted) as engine,
        pytest.raises(ValueError, match="cross_attention_kwargs: for a scale of its own"),
    ):
        engine.submit(**arguments(0), cross_attention_kwargs={"scale": 0.5})


def test_a_loaded_pipeline_has_no_adapter_active(config: ModelConfig) -> None:
    with_adapters = load_pipeline(config)
    without = load_pipeline(config.model_copy(update={"adapters": {}}))
    pictures = [stock(each, each.scheduler, arguments(0)) for each in (with_adapters, without)]
    assert np.array_equal(*pictures)


@pytest.mark.parametrize("content", ["missing", "not safetensors", "wrong suffix", "other model"])
def test_an_adapter_that_cannot_be_loaded_is_named(
    config: ModelConfig, tmp_path: Path, content: str
) -> None:
    file = tmp_path / ("bad.pt" if content == "wrong suffix" else "bad.safetensors")
    if content == "not safetensors":
        file.write_bytes(b"rubbish")
    elif content == "wrong suffix":
        shutil.copy(config.adapters["ink"], file)
    elif content == "other model":
        shutil.copy(Path(config.name) / "vae" / "diffusion_pytorch_model.safetensors", file)
    broken = config.model_copy(update={"adapters": {"bad": file}})
    with pytest.raises(ModelUnavailable, match="adapter bad"):
        load_pipeline(broken)
