"""The search for a row rule, on modules whose dependence on the row count is known."""

import itertools
import subprocess
import sys

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from shared.config import ModelConfig
from shared.engine import step_batch
from shared.engine.calls import ModuleCall, PipelineRun
from shared.engine.layers import rows_kept_apart
from shared.engine.row_invariance import COUNTS, default_rule, find_rule
from shared.engine.row_rule import RowRule
from shared.engine.step_batch import StepCall
from shared.pipeline import load_pipeline
from tests.conftest import REPO
from tests.rendering import is_imitated
from tests.small_models import small_stable_diffusion


class Sensitive(nn.Module):
    """Adds to every row what depends on the number of rows, and on the place of the row."""

    def __init__(self, offset_of_count: dict[int, float], depends_on_place: set[int]) -> None:
        super().__init__()
        self._offsets = offset_of_count
        self._depends_on_place = depends_on_place

    def forward(self, sample: Tensor, timestep: Tensor) -> tuple[Tensor]:
        rows = len(sample)
        output = sample + self._offsets.get(rows, 0.0)
        if rows in self._depends_on_place:
            output[-1] += 0.5
        return (output,)


Sensitive.__name__ = "UNet2DConditionModel"  # declared, as far as the engine knows


def described(module: nn.Module, **changed: object) -> StepCall:
    kwargs = {"sample": torch.randn(1, 4, 8, 8), "timestep": torch.tensor(5.0)} | changed
    run = PipelineRun(lambda: None)
    return step_batch.describe(ModuleCall(run, module, module.forward, kwargs))


def test_the_largest_useful_group_is_the_rule() -> None:
    offsets = {1: 1.0, 2: 1.0, 3: 2.0} | {n: 3.0 for n in COUNTS if n > 20}
    module = Sensitive(offsets, depends_on_place={5, 6})
    expected = tuple(n for n in COUNTS if 4 <= n <= 20 and n not in (5, 6))
    assert find_rule(described(module)) == RowRule(expected)


class Large(Sensitive):
    """More than some rows of it do not fit into memory."""

    def __init__(self, most: int) -> None:
        super().__init__({}, set())
        self._most = most

    def forward(self, sample: Tensor, timestep: Tensor) -> tuple[Tensor]:
        if len(sample) > self._most:
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(sample, timestep)


Large.__name__ = Sensitive.__name__


def test_what_does_not_fit_into_memory_is_no_part_of_the_rule() -> None:
    assert find_rule(described(Large(most=8))) == RowRule(tuple(range(1, 9)))
    with pytest.raises(torch.OutOfMemoryError):
        find_rule(described(Large(most=0)))


def test_where_nothing_agrees_one_count_is_the_rule() -> None:
    module = Sensitive({n: float(n) for n in COUNTS}, depends_on_place=set())
    rule = find_rule(described(module))
    assert len(rule.counts) == 1


def test_the_assumed_rule_holds_here() -> None:
    unet: UNet2DConditionModel = small_stable_diffusion().unet
    with rows_kept_apart(unet):
        call = described(unet, encoder_hidden_states=torch.randn(1, 77, 32))
        found = find_rule(call)
    assert set(COUNTS) & set(default_rule(call).counts) <= set(found.counts)


def check_in_a_new_process(call: str) -> None:
    """Of a function of this file: threads that have been started slow down all later forwards."""
    code = f"from tests.test_row_invariance import *; {call}"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_assumed_rule_holds_with_other_numbers_of_threads() -> None:
    check_in_a_new_process("check_the_assumed_rule([1, 2, 3, 4])")


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="needs oneDNN in bfloat16"
)
def test_one_thread_and_two_give_the_same_bits_in_bfloat16() -> None:
    check_in_a_new_process("check_one_thread_and_two()")


@torch.no_grad()
def check_one_thread_and_two() -> None:
    unet: UNet2DConditionModel = load_pipeline(ModelConfig(dtype="bfloat16")).unet
    with rows_kept_apart(unet):
        # 32 latents a side are from where on torch has other ways to normalise groups.
        for side, rows in itertools.product((9, 16, 32, 40), (1, 2, 3)):
            sample = torch.randn(rows, 4, side, side).bfloat16()
            text = torch.randn(rows, 77, unet.config.cross_attention_dim).bfloat16()
            outputs = []
            for threads in (1, 2):
                torch.set_num_threads(threads)
                outputs += unet(sample, 5.0, text, return_dict=False)
            assert torch.equal(*outputs), (side, rows)


def check_the_assumed_rule(numbers: list[int]) -> None:
    """With so many threads each, and sizes that threads do not share evenly."""
    for dtype in ("float32", "bfloat16"):
        unet: UNet2DConditionModel = load_pipeline(ModelConfig(dtype=dtype)).unet
        text = torch.randn(1, 77, unet.config.cross_attention_dim, dtype=unet.dtype)
        with rows_kept_apart(unet):
            # 32 latents a side are from where on torch has other ways to normalise groups.
            for threads, side in itertools.product(numbers, (8, 9, 16, 32)):
                torch.set_num_threads(threads)
                sample = torch.randn(1, 4, side, side, dtype=unet.dtype)
                call = described(unet, sample=sample, encoder_hidden_states=text)
                is_slow = side >= 32 or is_imitated(unet.dtype)
                tried = (2, 3, 5) if is_slow else (2, 3, 5, 8, 14, 16, 20, 64)
                assumed = default_rule(call).counts or tried
                counts = tuple(n for n in tried if n in assumed)
                assert find_rule(call, counts).counts == counts, (dtype, threads, side)
