"""Gather and scatter, checked against the module's own forward on each call alone."""

import functools
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from shared.engine import step_batch
from shared.engine.calls import ModuleCall, PipelineRun
from shared.engine.layers import rows_kept_apart
from shared.engine.row_invariance import default_rule
from shared.engine.row_rule import RowRule
from shared.engine.step_batch import StepCall
from tests.small_models import small_stable_diffusion

MAX_COMPANY = 17
ANY_NUMBER = RowRule()


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    unet: UNet2DConditionModel = small_stable_diffusion().unet
    return unet


def call(unet: UNet2DConditionModel, rows: int, seed: int = 0, **changed: Any) -> StepCall:
    generator = torch.Generator().manual_seed(seed)
    kwargs = {
        "sample": torch.randn(rows, 4, 8, 8, generator=generator),
        "timestep": torch.tensor(seed * 10 + 1),
        "encoder_hidden_states": torch.randn(rows, 77, 32, generator=generator),
        "cross_attention_kwargs": None,
        "return_dict": False,
    }
    run = PipelineRun(lambda: None)
    return step_batch.describe(ModuleCall(run, unet, unet.forward, kwargs | changed))


def alone(unet: UNet2DConditionModel, one: StepCall) -> torch.Tensor:
    sample: torch.Tensor = unet.forward(**one.call.kwargs)[0]
    return sample


@torch.no_grad()
def test_each_call_gets_its_own_rows(unet: UNet2DConditionModel) -> None:
    calls = [call(unet, rows, seed) for seed, rows in enumerate([2, 1, 4])]
    for one, (output,) in zip(calls, step_batch.forward(calls, ANY_NUMBER), strict=True):
        assert output.shape == (one.rows, 4, 8, 8)
        assert (output - alone(unet, one)).abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("rule", [RowRule((2,)), RowRule((4, 8)), RowRule((16,))])
@pytest.mark.parametrize("rows", [[1], [3, 2], [2, 2, 7]])
def test_a_forward_may_be_padded_and_cut(
    unet: UNet2DConditionModel, rows: list[int], rule: RowRule
) -> None:
    calls = [call(unet, n, seed) for seed, n in enumerate(rows)]
    for one, (output,) in zip(calls, step_batch.forward(calls, rule), strict=True):
        assert output.shape == (one.rows, 4, 8, 8)
        assert (output - alone(unet, one)).abs().max() < 1e-5


@torch.no_grad()
def test_a_forward_may_be_cut_to_save_memory(unet: UNet2DConditionModel) -> None:
    seen: list[int] = []
    hook = unet.conv_in.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    one = call(unet, 5)
    ((output,),) = step_batch.forward([one], ANY_NUMBER, max_rows=2)
    hook.remove()
    assert seen == [2, 2, 1]
    assert (output - alone(unet, one)).abs().max() < 1e-5


def test_sizes_and_costs_are_counted_in_latents(unet: UNet2DConditionModel) -> None:
    described = call(unet, 2, sample=torch.zeros(2, 4, 8, 16))
    assert (described.rows, described.latents) == (2, 2 * 8 * 16)


@pytest.mark.parametrize(
    ("changed", "shared"),
    [
        ({}, True),
        ({"timestep": 7.5}, True),
        ({"timestep": torch.tensor([3, 9], dtype=torch.int64)}, True),
        ({"sample": torch.zeros(2, 4, 8, 16)}, False),
        ({"encoder_hidden_states": torch.zeros(2, 154, 32)}, False),
        ({"encoder_hidden_states": torch.zeros(2, 77, 32, dtype=torch.bfloat16)}, False),
        ({"return_dict": True}, False),
        ({"cross_attention_kwargs": {"scale": 0.5}}, False),
        ({"cross_attention_kwargs": {"mask": torch.zeros(77)}}, False),
    ],
)
def test_only_calls_that_fit_one_forward_share_a_key(
    unet: UNet2DConditionModel, changed: dict[str, Any], shared: bool
) -> None:
    assert (call(unet, 2).key == call(unet, 2, **changed).key) is shared


def test_what_has_no_line_per_row_is_shared_by_nobody(unet: UNet2DConditionModel) -> None:
    same = {"cross_attention_kwargs": {"mask": torch.zeros(77)}}
    assert call(unet, 2, **same).key != call(unet, 2, **same).key


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 2])
def test_company_changes_no_bit(unet: UNet2DConditionModel, rows: int) -> None:
    with rows_kept_apart(unet):
        mine = call(unet, rows, seed=99)
        rule = default_rule(mine)
        ((expected,),) = step_batch.forward([mine], rule)
        for company in range(1, MAX_COMPANY):
            others = [call(unet, 1, seed) for seed in range(company)]
            for place in {0, company // 2, company}:
                calls = [*others[:place], mine, *others[place:]]
                (output,) = step_batch.forward(calls, rule)[place]
                assert torch.equal(output, expected), (company, place)


@torch.no_grad()
def test_what_stays_the_same_is_joined_once_and_what_changes_is_not(
    unet: UNet2DConditionModel,
) -> None:
    text = [torch.randn(2, 77, 32) for _ in range(2)]
    seen: list[torch.Tensor] = []

    @functools.wraps(unet.forward)
    def forward(**kwargs: Any) -> Any:
        seen.append(kwargs["encoder_hidden_states"])
        return unet.forward(**kwargs)

    def step(seed: int) -> None:
        run = PipelineRun(lambda: None)
        ours = [call(unet, 2, seed, encoder_hidden_states=each).call.kwargs for each in text]
        calls = [ModuleCall(run, unet, forward, kwargs) for kwargs in ours]
        step_batch.forward([step_batch.describe(each) for each in calls], ANY_NUMBER)
        assert torch.equal(seen[-1], torch.cat(text))

    step(0)
    step(1)
    assert seen[1] is seen[0]
    text[1].add_(1.0)
    step(2)
    assert seen[2] is not seen[1]
    text[1] = text[1].clone()
    step(3)
    assert seen[3] is not seen[2]
    text.reverse()
    step(4)
    text.pop()
    step(5)
