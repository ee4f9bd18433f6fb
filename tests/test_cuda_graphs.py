"""Forwards as CUDA graphs, where there is such a device: the same bits, and nothing in between."""

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from shared.config import EngineConfig
from shared.engine import DenoiseEngine
from shared.engine.compiled import compilable
from shared.engine.cuda_graphs import CudaGraphs
from tests.rendering import arguments
from tests.small_models import CountingWave

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Waiting(CountingWave):
    """Looks at what it computes, as must not be recorded."""

    def forward(self, sample: Tensor, scale: float = 1.0) -> tuple[Tensor]:
        (wave,) = super().forward(sample, scale)
        return (wave * (1 if wave.sum().item() > 0 else 2),)


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def on_device(module: CountingWave) -> CountingWave:
    return module.to("cuda")


def samples(*shape: int, number: int) -> list[Tensor]:
    return [torch.randn(shape, device="cuda") for _ in range(number)]


def test_a_graph_gives_the_bits_of_the_forward_and_a_result_stays_what_it_is() -> None:
    wave = on_device(CountingWave())
    inputs = [*samples(2, 4, 8, 8, number=4), *samples(3, 4, 16, 8, number=4)]
    expected = [wave(each, scale=2.0)[0] for each in inputs]
    graphs = CudaGraphs(wave.forward)
    outputs = [graphs(each, scale=2.0)[0] for each in inputs]
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


def test_from_the_third_call_on_no_python_runs() -> None:
    wave = on_device(CountingWave())
    graphs = CudaGraphs(wave.forward)
    for sample in samples(2, 4, 8, 8, number=5):
        graphs(sample)
    assert wave.num_calls == 2
    graphs(torch.randn(1, 4, 8, 8, device="cuda"))
    graphs(sample, 3.0)
    assert wave.num_calls == 4


def test_what_waits_for_the_device_is_called_as_it_is() -> None:
    waiting = on_device(Waiting())
    graphs = CudaGraphs(waiting.forward)
    for sample in samples(2, 4, 8, 8, number=4):
        assert torch.equal(graphs(sample)[0], waiting(sample)[0])
    torch.randn(1, device="cuda")  # whose generator takes part in recordings


def test_an_active_adapter_goes_through_the_module() -> None:
    wave, is_adapted = on_device(CountingWave()), False
    (sample,) = samples(2, 4, 8, 8, number=1)
    with compilable(wave, lambda: is_adapted):
        plain = [wave(sample)[0] for _ in range(3)]
        is_adapted = True
        num_calls = wave.num_calls
        wave(sample)
        assert wave.num_calls == num_calls + 1
    assert torch.equal(plain[0], plain[2])


def test_pictures_are_those_of_an_engine_without_graphs(pipeline: DiffusionPipeline) -> None:
    on_gpu = copy.deepcopy(pipeline).to("cuda")
    pictures = {}
    for record_forwards in (True, False):
        with DenoiseEngine(on_gpu, EngineConfig(record_forwards=record_forwards)) as engine:
            alone = [
                engine.submit(**arguments(seed)).result(timeout=120).images[0] for seed in range(3)
            ]
            pictures[record_forwards] = np.stack(alone)
    assert np.array_equal(pictures[True], pictures[False])


@pytest.mark.parametrize("record_forwards", [True, False])
def test_company_changes_no_byte_where_that_is_asked_for(
    pipeline: DiffusionPipeline, record_forwards: bool
) -> None:
    on_gpu = copy.deepcopy(pipeline).to("cuda")
    config = EngineConfig(byte_identical=True, record_forwards=record_forwards)
    kwargs = [(seed, {"width": 64 + 64 * (seed % 3), "height": 128}) for seed in range(12)]
    with DenoiseEngine(on_gpu, config) as engine:
        together = [engine.submit(**arguments(seed, **size)) for seed, size in kwargs]
        crowd = [ticket.result(timeout=300).images[0] for ticket in together]
        alone = [
            engine.submit(**arguments(seed, **size)).result(timeout=60).images[0]
            for seed, size in kwargs
        ]
        assert engine.counters().num_shared_forwards > 0
    assert all(np.array_equal(a, b) for a, b in zip(crowd, alone, strict=True))
