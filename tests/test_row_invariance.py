"""The search for a row rule, on modules whose dependence on the row count is known."""

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from shared.engine import step_batch
from shared.engine.calls import ModuleCall, PipelineRun
from shared.engine.row_invariance import COUNTS, default_rule, find_rule, fixed_lines
from shared.engine.row_rule import RowRule
from shared.engine.step_batch import StepCall
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


def test_where_nothing_agrees_one_count_is_the_rule() -> None:
    module = Sensitive({n: float(n) for n in COUNTS}, depends_on_place=set())
    rule = find_rule(described(module))
    assert len(rule.counts) == 1


def test_the_assumed_rule_holds_here() -> None:
    unet: UNet2DConditionModel = small_stable_diffusion().unet
    with fixed_lines(unet):
        found = find_rule(described(unet, encoder_hidden_states=torch.randn(1, 77, 32)))
    assert set(COUNTS) & set(default_rule(unet.device).counts) <= set(found.counts)


def test_fixed_lines_give_a_line_the_same_bits_in_any_number() -> None:
    layer = nn.Linear(320, 1280)
    lines = torch.randn(40, 320)
    with fixed_lines(layer):
        expected = layer(lines)
        assert all(torch.equal(layer(lines[:n]), expected[:n]) for n in range(1, 40))
    assert (layer(lines) - expected).abs().max() < 1e-5
    assert "forward" not in vars(layer)
