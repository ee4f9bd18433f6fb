"""Compiled forwards: the same pictures, the same bytes in any company, nothing compiled later."""

import argparse
import pickle
import threading
from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from shared.arguments import add_byte_identical, add_compile, engine_config
from shared.config import Compiler, EngineConfig
from shared.engine import DenoiseEngine
from shared.engine.compiled import Compilable, compilable
from tests.rendering import ONE_OF_255, mixed, stock
from tests.small_models import CountingWave, Wave


class FixedToItsFirstSize(Wave):
    """What converters take from an example, and users do not expect."""

    def forward(self, sample: Tensor, scale: float = 1.0) -> tuple[Tensor]:
        return (super().forward(sample)[0] + float(sample.shape[-1]),)


class FixedToItsFirstRows(Wave):
    """As the pieces of a Linear layer were."""

    def forward(self, sample: Tensor, scale: float = 1.0) -> tuple[Tensor]:
        return (super().forward(sample)[0] * torch.ones(len(sample), 1, 1, 1),)


@pytest.fixture(params=get_args(Compiler))
def compiler(request: pytest.FixtureRequest) -> Compiler:
    chosen: Compiler = request.param
    return chosen


@pytest.fixture
def module() -> Iterator[CountingWave]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield CountingWave()


def compile_(module: nn.Module, compiler: Compiler) -> None:
    assert isinstance(module.forward, Compilable)
    module.forward.compile(compiler, {"sample": torch.randn(10, 4, 8, 12), "scale": 2.0})


def test_a_module_is_compiled_once_for_all_sizes_and_rows(
    module: CountingWave, compiler: Compiler
) -> None:
    with compilable(module, lambda: False):
        compile_(module, compiler)
        before = module.num_calls
        sizes = [(2, 8, 8), (1, 8, 8), (1, 8, 8), (3, 16, 20), (7, 9, 13)]
        samples = [torch.randn(rows, 4, height, width) for rows, height, width in sizes]
        outputs = [module(sample=sample, scale=2.0) for sample in samples]
        # Of the odd width; and torch has a way of its own for one row, which no forward has here.
        assert module.num_calls == before + {"openvino": 1, "torch": 3}[compiler]
        for sample, output in zip(samples, outputs, strict=True):  # no later one has changed it
            torch.testing.assert_close(output, Wave.forward(module, sample, scale=2.0))
    assert "forward" not in vars(module)


def test_other_arguments_and_active_adapters_go_through_the_module(
    module: nn.Module, compiler: Compiler
) -> None:
    sample, is_adapted = torch.randn(2, 4, 8, 8), False
    with compilable(module, lambda: is_adapted):
        compile_(module, compiler)
        expected = Wave.forward(module, sample, 3.0)
        torch.testing.assert_close(module(sample=sample, scale=3.0), expected)
        is_adapted = True
        with torch.no_grad():
            module.layer.weight.mul_(-1)  # as an adapter changes what the module does
        assert torch.equal(
            module(sample=sample, scale=2.0)[0], Wave.forward(module, sample, 2.0)[0]
        )


def test_other_threads_call_the_modules_own() -> None:
    module, sample = CountingWave(), torch.randn(2, 4, 8, 8)
    with torch.no_grad(), compilable(module, lambda: False):
        compile_(module, "openvino")
        module(sample=sample, scale=2.0)
        before = module.num_calls
        module(sample=sample, scale=2.0)
        assert module.num_calls == before
        other = threading.Thread(target=lambda: module(sample=sample, scale=2.0))
        other.start()
        other.join()
        assert module.num_calls == before + 1


def test_what_depends_on_a_size_is_not_converted() -> None:
    module = FixedToItsFirstSize()
    with torch.no_grad(), compilable(module, lambda: False):
        with pytest.raises(ValueError, match="OpenVINO's output is off"):
            compile_(module, "openvino")
        sample = torch.randn(2, 4, 8, 8)
        assert torch.equal(module(sample)[0], Wave.forward(module, sample)[0] + 8)
    assert next(module.parameters()).dtype == torch.float32


def test_what_fits_one_number_of_rows_is_not_converted() -> None:
    module = FixedToItsFirstRows()
    with torch.no_grad(), compilable(module, lambda: False), pytest.raises(RuntimeError):
        compile_(module, "openvino")


def test_true_stands_for_torch() -> None:
    assert EngineConfig(compile=True).compile == "torch"  # type: ignore[arg-type]
    assert EngineConfig(compile=False).compile is None  # type: ignore[arg-type]


def test_a_gpu_has_defaults_of_its_own_and_what_is_set_stays() -> None:
    config = EngineConfig(max_pixels_per_forward=64 * 64)
    assert config.on("cpu") == config
    on_gpu = config.on("cuda")
    assert (on_gpu.byte_identical, on_gpu.max_pixels_per_forward) == (False, 64 * 64)
    assert on_gpu.max_pixels_per_decode > 0
    assert pickle.loads(pickle.dumps(config)).on("cuda") == on_gpu  # as it comes to a replica
    assert EngineConfig(byte_identical=True).on("cuda").byte_identical


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], EngineConfig()),
        (["--byte-identical"], EngineConfig(byte_identical=True)),
        (["--no-byte-identical", "--compile"], EngineConfig(byte_identical=False, compile="torch")),
    ],
)
def test_both_doors_take_the_same_arguments(arguments: list[str], expected: EngineConfig) -> None:
    parser = argparse.ArgumentParser()
    add_compile(parser)
    add_byte_identical(parser)
    config = engine_config(parser.parse_args(arguments))
    assert config == expected
    assert config.model_fields_set == expected.model_fields_set


@pytest.mark.parametrize("compiler", ["openvino", pytest.param("torch", marks=pytest.mark.slow)])
def test_compiled_pictures_are_the_pipelines_own_in_any_company(
    small: DiffusionPipeline, compiler: Compiler
) -> None:
    requests = [mixed(seed, (64, 72, 96)) for seed in range(12)]
    expected = [stock(small, small.scheduler, kwargs) for kwargs in requests]
    with DenoiseEngine(small) as engine:
        engine.compile(compiler, prompt="a", width=64, height=128, num_inference_steps=1)
        rules = engine.find_row_rules(prompt="a", width=64, height=64, num_inference_steps=1)
        assert len(rules["UNet2DConditionModel"].counts) > 3
        together = [engine.submit(**_again(each)) for each in requests]
        pictures = [ticket.result(timeout=120).images[0] for ticket in together]
        alone = [engine.submit(**_again(each)).result(timeout=60).images[0] for each in requests]
        assert engine.counters().num_shared_forwards > 0
    assert all(np.array_equal(a, b) for a, b in zip(pictures, alone, strict=True))
    assert max(np.abs(a - b).max() for a, b in zip(pictures, expected, strict=True)) < ONE_OF_255


def test_only_the_denoiser_is_compiled(
    small: DiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []

    def told(_: Compilable, compiler: Compiler, kwargs: dict[str, Any]) -> None:
        compiled.append((compiler, "timestep" in kwargs))

    monkeypatch.setattr(Compilable, "compile", told)
    with DenoiseEngine(small) as engine:
        engine.compile("torch", prompt="a", width=64, height=128, num_inference_steps=2)
    assert set(compiled) == {("torch", True)}


def _again(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The same request, with its noise from the start."""
    seed = kwargs["generator"].initial_seed()
    return kwargs | {"generator": torch.Generator().manual_seed(seed)}
