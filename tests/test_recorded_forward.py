"""Forwards recorded by TorchScript: the same bits, for whatever comes, and no Python in between."""

import gc
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from shared.config import EngineConfig, ModelConfig
from shared.engine import DenoiseEngine, recorded_forward
from shared.engine.compiled import compilable
from shared.engine.each_core import Faster, Replay
from shared.engine.layers import rows_kept_apart
from shared.engine.recorded_forward import RecordedForward
from shared.pipeline import load_pipeline
from tests.rendering import arguments
from tests.small_models import CountingWave


class FixedToItsRows(CountingWave):
    def forward(self, sample: Tensor, scale: float = 1.0) -> tuple[Tensor]:
        return (super().forward(sample)[0] + len(sample),)


class Random(CountingWave):
    def forward(self, sample: Tensor, scale: float = 1.0) -> tuple[Tensor]:
        (wave,) = super().forward(sample)
        return (wave + torch.randn(wave.shape),)


class FailingWhenTraced(CountingWave):
    def forward(self, sample: Tensor, scale: float = 1.0) -> tuple[Tensor]:
        (wave,) = super().forward(sample)
        if torch.jit.is_tracing():
            raise RuntimeError("not like this")
        return (wave,)


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4)

    def forward(self, sample: Tensor) -> Tensor:
        return self.second(self.first(sample)).sin()


class FromTheMean(CountingWave):
    def forward(self, sample: Tensor, scale: float = 1.0) -> tuple[Tensor]:
        (wave,) = super().forward(sample)
        return (wave - sample.mean(),)


class OutsideTorch(CountingWave):
    def forward(self, sample: Tensor, scale: float = 1.0) -> tuple[Tensor]:
        (wave,) = super().forward(sample)
        return (torch.from_numpy(np.negative(wave.numpy())),)


class Two(CountingWave):
    def forward(self, sample: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        (wave,) = super().forward(sample)
        return wave, wave


@pytest.fixture(autouse=True)
def no_grad(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("shared.engine.recorded_forward._LONG_S", math.inf)  # on a slow machine
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def is_replayed(wave: CountingWave, recorded: RecordedForward, *shape: int, **rest: Any) -> bool:
    """Whether no Python runs at the third call; all of them are to have the module's bits."""
    for _ in range(3):
        sample = torch.randn(shape)
        before = wave.num_calls
        (made,) = recorded(sample=sample, **rest)
        num_calls = wave.num_calls - before
        assert torch.equal(made, type(wave).forward(wave, sample, **rest)[0])
    return num_calls == 0


def test_one_recording_does_for_all_rows_and_most_sizes() -> None:
    wave = CountingWave()
    recorded = RecordedForward(wave, wave.forward)
    assert all(is_replayed(wave, recorded, rows, 4, 8, 12) for rows in (2, 1, 7, 3))
    before = wave.num_calls
    assert all(is_replayed(wave, recorded, 2, 4, *size) for size in ((16, 8), (9, 20)))
    assert wave.num_calls - before == 2 * (3 + 1)  # it was not traced again: 3 are of the check


def test_a_size_that_takes_another_way_has_a_recording_of_its_own() -> None:
    wave = CountingWave()
    recorded = RecordedForward(wave, wave.forward)
    assert is_replayed(wave, recorded, 2, 4, 8, 12)
    assert is_replayed(wave, recorded, 2, 4, 8, 13)
    assert is_replayed(wave, recorded, 5, 4, 8, 15)
    assert is_replayed(wave, recorded, 2, 4, 8, 12)


def test_arguments_beside_tensors_are_part_of_it() -> None:
    wave = CountingWave()
    recorded = RecordedForward(wave, wave.forward)
    assert is_replayed(wave, recorded, 2, 4, 8, 12, scale=1.0)
    assert is_replayed(wave, recorded, 2, 4, 8, 12, scale=3.0)


def test_what_depends_on_the_rows_is_called_as_it_is_where_they_differ() -> None:
    module = FixedToItsRows()
    recorded = RecordedForward(module, module.forward)
    replayed = [is_replayed(module, recorded, rows, 4, 8, 12) for rows in range(1, 9)]
    assert replayed == [True, True] + 6 * [False]
    # Three calls each and one to compare with; examples have a row or two, are traced once, and
    # compared once more.
    assert module.num_calls == 2 * (1 + 3) + 6 * (3 + 3) + 2 * 2


def test_what_cannot_be_recorded_is_called_as_it_is() -> None:
    two = Two()
    recorded = RecordedForward(two, two.forward)
    sample = torch.randn(2, 4, 8, 12)
    for number in (1, 2, 3):
        assert len(recorded(sample=sample)) == 2
        assert two.num_calls == number


def test_what_draws_by_itself_is_called_as_it_is() -> None:
    random = Random()
    recorded = RecordedForward(random, random.forward)
    made = [recorded(sample=torch.zeros(2, 4, 8, 12))[0] for _ in range(3)]
    assert random.num_calls == 3 + 2  # two are of the recording
    assert not torch.equal(made[1], made[2])


def test_what_is_not_computed_by_torch_is_called_as_it_is() -> None:
    module = OutsideTorch()
    recorded = RecordedForward(module, module.forward)
    assert not is_replayed(module, recorded, 2, 4, 8, 12)


@pytest.mark.skipif(torch.get_num_threads() == 1, reason="one core has no parts")
@pytest.mark.parametrize("in_parts", [True, False])
def test_rows_stay_together_where_they_are_to(
    in_parts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = []
    monkeypatch.setattr(recorded_forward, "Faster", lambda *ways: pairs.append(ways) or ways[0])
    recorded = RecordedForward(nn.Identity(), lambda sample: (sample.sin(),), in_parts=in_parts)
    recorded(sample=torch.randn(torch.get_num_threads(), 4, 8, 12))
    assert len(pairs) == in_parts


def test_what_fails_to_be_recorded_is_called_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    failing = FailingWhenTraced()
    recorded = RecordedForward(failing, failing.forward)
    for number in (2, 3, 4):  # and was tried once
        recorded(sample=torch.randn(2, 4, 8, 12))
        assert failing.num_calls == number
    (told,) = caplog.messages
    assert told.startswith("FailingWhenTraced cannot be recorded")


def test_what_is_no_number_is_compared_as_well() -> None:
    wave = CountingWave()
    recorded = RecordedForward(wave, wave.forward)
    recorded(sample=torch.full((2, 4, 8, 12), torch.nan))
    assert is_replayed(wave, recorded, 2, 4, 8, 12)


@pytest.mark.skipif(torch.get_num_threads() == 1, reason="one core has no parts")
@pytest.mark.parametrize("value", [0.0, torch.nan])
def test_rows_that_look_at_each_other_stay_together(value: float) -> None:
    module = FromTheMean()
    recorded = RecordedForward(module, module.forward)
    rows = 2 * torch.get_num_threads()
    recorded(sample=torch.full((rows, 4, 8, 12), value))  # which no order of additions changes
    assert is_replayed(module, recorded, rows, 4, 8, 12)


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported() or torch.get_num_threads() == 1,
    reason="needs oneDNN in bfloat16, and two cores",
)
@pytest.mark.parametrize("side", [128, 256])
def test_rows_of_the_bundled_model_are_cut_into_parts(
    side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if side == 256 and torch.get_num_threads() > 2:
        pytest.skip("more than two threads share the pixels of such pictures")
    pairs = []

    class Told(Faster):
        def __init__(self, *ways: Replay) -> None:
            super().__init__(*ways)
            pairs.append(ways)

    monkeypatch.setattr(recorded_forward, "Faster", Told)
    pipeline = load_pipeline(ModelConfig(dtype="bfloat16"))
    pipeline.set_progress_bar_config(disable=True)
    with DenoiseEngine(pipeline) as engine:
        several = {"num_images_per_prompt": torch.get_num_threads(), "output_type": "latent"}
        ticket = engine.submit(**arguments(0, width=side, height=side, **several))
        ticket.result(timeout=120)
    assert len(pairs) == 1


def test_a_forward_that_takes_long_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_forward, "_LONG_S", 0.01)
    wave = CountingWave()

    def slow(sample: Tensor) -> tuple[Tensor]:
        time.sleep(0.02)
        return wave(sample)

    recorded = RecordedForward(wave, slow)
    for number in range(1, 4):
        recorded(sample=torch.randn(2, 4, 8, 12))
        assert wave.num_calls == number


def test_an_error_is_the_modules_own() -> None:
    wave = CountingWave()
    recorded = RecordedForward(wave, wave.forward)
    assert is_replayed(wave, recorded, 2, 4, 8, 12)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="expected input"):
            recorded(sample=torch.randn(2, 5, 8, 12))
    assert is_replayed(wave, recorded, 2, 4, 8, 12)


def test_active_adapters_and_other_threads_go_through_the_module() -> None:
    wave, is_adapted = CountingWave(), False
    sample = torch.randn(2, 4, 8, 12)

    def num_calls() -> int:
        before = wave.num_calls
        wave(sample=sample)
        return wave.num_calls - before

    with compilable(wave, lambda: is_adapted):
        wave(sample=sample)
        assert num_calls() == 0
        is_adapted = True
        assert num_calls() == 1
        is_adapted = False
        other = threading.Thread(target=lambda: counts.append(num_calls()))
        counts: list[int] = []
        other.start()
        other.join()
        assert counts == [1]
        assert num_calls() == 0
    with compilable(wave, lambda: False, record_forwards=False):
        assert [num_calls() for _ in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", [8, 12, 32])
def test_layers_of_the_engine_are_recorded_with_all_their_ways(
    dtype: torch.dtype, side: int
) -> None:
    """Numbers of rows at which they do something else, from one example."""
    pictures = nn.Sequential(
        nn.Conv2d(4, 64, 3, padding=1, stride=4),  # of few pixels
        nn.GroupNorm(32, 64),
        nn.SiLU(),
        nn.Upsample(scale_factor=4),
        nn.Conv2d(64, 64, 1),
        nn.GroupNorm(32, 64),  # of many
        nn.GELU(),
    ).to(dtype)
    lines = nn.Sequential(nn.Linear(4, 1000), nn.SiLU(), GEGLU(1000, 64)).to(dtype)
    to_text = Attention(64, cross_attention_dim=4, heads=4, dim_head=16).to(dtype)
    module = nn.ModuleList([pictures, lines, to_text])
    num_calls = 0

    def own(sample: Tensor) -> tuple[Tensor]:
        nonlocal num_calls
        num_calls += 1
        made = pictures(sample) + lines(sample.mean((2, 3)))[:, :, None, None]
        text = sample.flatten(2).mT[:, 1:]  # of a number that fills no vectors
        return (to_text(made.flatten(2).mT, text),)

    all_rows = (3, 1, 2, 17, 32)
    with rows_kept_apart(module):
        recorded = RecordedForward(module, own)
        for rows in all_rows:
            sample = torch.randn(rows, 4, side, side, dtype=dtype)
            first, second = recorded(sample=sample)[0], recorded(sample=sample)[0]
            assert torch.equal(first, second)
    assert num_calls == len(all_rows) + 2


class Divided(CountingWave):
    def forward(self, sample: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        self.num_calls += 1
        kept = sample / 1 + sample.div(1, rounding_mode="floor") + sample.int() / 1 + sample / 2
        return (sample.sin() / 1 + sample.cos() / 1.0 + kept,)


def test_divisions_by_one_are_left_out_where_nobody_else_has_what_is_divided() -> None:
    module, sample = Divided(), torch.randn(1, 4, 8, 12)
    recorded = RecordedForward(module, module.forward)
    recorded(sample=sample)
    with torch.profiler.profile() as told:
        recorded(sample=sample)
    assert module.num_calls == 3  # of which two to record it
    divisions = [event.count for event in told.key_averages() if event.key == "aten::div"]
    assert divisions == [4]


def test_nothing_is_left_of_a_recording() -> None:
    def megabytes() -> float:
        gc.collect()
        return psutil.Process().memory_info().rss / 1e6

    wave, sample = nn.Sequential(*(Layers() for _ in range(30))), torch.randn(2, 4, 8, 8)
    used = []
    for _ in range(20):
        recorded = RecordedForward(wave, lambda sample: (wave(sample),))
        recorded(sample=sample)
        recorded(sample=sample)
        del recorded
        used.append(megabytes())
    assert used[-1] - used[9] < 10  # by torch.jit.trace it is much more


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pictures_are_those_of_an_engine_that_records_nothing(dtype: str) -> None:
    pipeline = load_pipeline(ModelConfig.model_validate({"dtype": dtype}))
    pipeline.set_progress_bar_config(disable=True)
    num_calls: Counter[tuple[bool, str]] = Counter()
    requests = [
        {"width": 64 + 8 * (seed % 3), "height": 64, "num_inference_steps": 10}
        for seed in range(18)
    ]
    pictures = {}
    for record_forwards in (True, False):

        def count(module: nn.Module, *_: Any, is_recording: bool = record_forwards) -> None:
            num_calls[is_recording, type(module).__name__] += 1

        modules = (pipeline.unet, pipeline.vae.decoder)
        hooks = [module.mid_block.register_forward_hook(count) for module in modules]
        with DenoiseEngine(pipeline, EngineConfig(record_forwards=record_forwards)) as engine:
            tickets = [engine.submit(**arguments(n, **size)) for n, size in enumerate(requests)]
            pictures[record_forwards] = [each.result(timeout=120).images[0] for each in tickets]
        for hook in hooks:
            hook.remove()
    assert all(np.array_equal(a, b) for a, b in zip(*pictures.values(), strict=True))
    for module in modules:  # Python's calls, which replays do without
        kind = type(module.mid_block).__name__
        assert num_calls[True, kind] < num_calls[False, kind] / 2


def test_deadlines_do_not_count_what_recording_takes(
    small: DiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = RecordedForward._record

    def slowly(self: RecordedForward, *arguments: Any) -> Any:
        time.sleep(2)
        return record(self, *arguments)

    monkeypatch.setattr(RecordedForward, "_record", slowly)
    with DenoiseEngine(small) as engine:
        engine.submit(**arguments(0, num_inference_steps=2)).result(timeout=60)
        ticket = engine.submit(**arguments(1, num_inference_steps=40), timeout_s=20)
        assert len(ticket.result(timeout=60).images) == 1
