"""Compiled forwards: the same pictures, the same bytes in any company, nothing compiled later."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from shared.engine import DenoiseEngine
from shared.engine.compiled import Compilable, compilable
from tests.rendering import ONE_OF_255, mixed, stock


class Wave(nn.Module):
    """As the UNet: what it does depends on whether a size is even."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 3, padding=1)
        self.num_traced = 0

    def forward(self, sample: Tensor) -> Tensor:
        self.num_traced += 1
        wave = torch.sin(self.layer(sample))
        return wave * 2 if sample.shape[-1] % 2 else wave


def test_a_module_is_compiled_once_for_all_sizes_and_rows() -> None:
    module = Wave()
    with compilable(module):
        assert isinstance(module.forward, Compilable)
        module.forward.compile(lambda: module(torch.randn(10, 4, 8, 12)))
        module.num_traced = 0
        for rows, height, width in [(2, 8, 8), (3, 16, 20), (7, 9, 13)]:
            sample = torch.randn(rows, 4, height, width)
            expected = Wave.forward(module, sample)
            torch.testing.assert_close(module(sample), expected)
    assert "forward" not in vars(module)


def test_what_cannot_be_compiled_says_so_and_runs_as_it_is() -> None:
    module = Wave()
    with compilable(module):
        assert isinstance(module.forward, Compilable)
        with pytest.raises(RuntimeError, match="expected input"):
            module.forward.compile(lambda: module(torch.randn(10, 3, 8, 12)))
        assert module(torch.randn(2, 4, 8, 8)).shape == (2, 4, 8, 8)


@pytest.mark.slow
def test_compiled_pictures_are_the_pipelines_own_in_any_company(small: DiffusionPipeline) -> None:
    requests = [mixed(seed, (64, 72, 96)) for seed in range(12)]
    expected = [stock(small, small.scheduler, kwargs) for kwargs in requests]
    with DenoiseEngine(small) as engine:
        engine.compile(prompt="a", width=64, height=128, num_inference_steps=1)
        rules = engine.find_row_rules(prompt="a", width=64, height=64, num_inference_steps=1)
        assert len(rules["UNet2DConditionModel"].counts) > 3
        together = [engine.submit(**kwargs) for kwargs in map(_again, requests)]
        pictures = [ticket.result(timeout=120).images[0] for ticket in together]
        alone = [
            engine.submit(**kwargs).result(timeout=60).images[0] for kwargs in map(_again, requests)
        ]
        assert engine.counters().num_shared_forwards > 0
    assert all(np.array_equal(a, b) for a, b in zip(pictures, alone, strict=True))
    assert max(np.abs(a - b).max() for a, b in zip(pictures, expected, strict=True)) < ONE_OF_255


def _again(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The same request, with its noise from the start."""
    seed = kwargs["generator"].initial_seed()
    return kwargs | {"generator": torch.Generator().manual_seed(seed)}
