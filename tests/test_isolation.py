"""What goes wrong with one request touches that request alone."""

import gc
import subprocess
import sys
import time
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForImage2Image, DiffusionPipeline
from PIL import Image
from torch import nn

from shared.config import EngineConfig
from shared.engine import DenoiseEngine, Step
from shared.errors import EngineDead
from tests.conftest import REPO
from tests.rendering import ONE_OF_255, Gate, arguments, stock
from tests.small_models import small_stable_diffusion_xl


def test_a_failing_callback_fails_its_own_request(engine: DenoiseEngine) -> None:
    def fail(*_: Any) -> Any:
        raise ZeroDivisionError("in the callback")

    bad = engine.submit(**arguments(0, callback_on_step_end=fail))
    good = engine.submit(**arguments(1))
    with pytest.raises(ZeroDivisionError):
        bad.result(timeout=60)
    assert good.result(timeout=60).images.shape == (1, 64, 64, 3)
    assert engine.counters().online.num_failed == 1


def test_arguments_that_diffusers_refuses_fail_their_own_request(engine: DenoiseEngine) -> None:
    with pytest.raises(ValueError, match="prompt"):
        engine.submit(**arguments(0, prompt=3)).result(timeout=60)


def test_a_forward_that_fails_for_one_is_run_for_the_others(small: DiffusionPipeline) -> None:
    poison = 13.0

    def refuse_poison(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if (inputs[0] == poison).any():
            raise RuntimeError("poisoned rows")

    small.unet.conv_in.register_forward_pre_hook(refuse_poison)
    expected = stock(small, small.scheduler, arguments(1))
    latents = torch.full((1, 4, 8, 8), poison)
    with DenoiseEngine(small) as engine:
        bad = engine.submit(**arguments(0, latents=latents))
        good = [engine.submit(**arguments(1)) for _ in range(3)]
        with pytest.raises(RuntimeError, match="poisoned rows"):
            bad.result(timeout=60)
        for ticket in good:
            assert np.abs(ticket.result(timeout=60).images[0] - expected).max() < ONE_OF_255


def test_a_call_that_is_no_batch_of_rows_fails_its_own_request(engine: DenoiseEngine) -> None:
    def call_with_two_times(pipeline: DiffusionPipeline, *_: Any) -> Any:
        text = torch.zeros(3, 77, 32)
        pipeline.unet(torch.zeros(3, 4, 8, 8), torch.tensor([1, 2]), encoder_hidden_states=text)

    bad = engine.submit(**arguments(0, callback_on_step_end=call_with_two_times))
    good = engine.submit(**arguments(1))
    with pytest.raises(RuntimeError, match="expand"):
        bad.result(timeout=60)
    assert good.result(timeout=60).images.shape == (1, 64, 64, 3)


def test_latents_that_are_not_finite_fail_their_own_request(
    engine: DenoiseEngine, small: DiffusionPipeline
) -> None:
    expected = engine.submit(**arguments(1)).result(timeout=60).images[0]
    latents = torch.randn(1, 4, 8, 8)
    latents[0, 0, 0, 0] = torch.nan
    gate = Gate()
    good = engine.submit(**arguments(1, callback_on_step_end=gate))
    bad = engine.submit(**arguments(0, latents=latents))
    gate.opened.set()
    with pytest.raises(FloatingPointError, match="not finite"):
        bad.result(timeout=60)
    assert np.array_equal(good.result(timeout=60).images[0], expected)


@pytest.mark.filterwarnings("ignore:.*upcast_vae.*:FutureWarning")
def test_latents_that_are_not_finite_are_refused_by_a_decoder_that_does_not_park() -> None:
    pipeline = small_stable_diffusion_xl().to(torch.float16)
    assert pipeline.vae.config.force_upcast
    latents = torch.full((1, 4, 8, 8), torch.nan, dtype=torch.float16)
    with DenoiseEngine(pipeline) as engine:
        bad = engine.submit(**arguments(0, width=64, height=64, latents=latents))
        good = engine.submit(**arguments(1, width=64, height=64))
        with pytest.raises(FloatingPointError, match="not finite"):
            bad.result(timeout=60)
        assert good.result(timeout=60).images.shape == (1, 64, 64, 3)


def test_a_failing_on_step_fails_its_own_request(engine: DenoiseEngine) -> None:
    def fail(_: Any) -> None:
        raise ZeroDivisionError("in on_step")

    bad = engine.submit(**arguments(0), on_step=fail)
    good = engine.submit(**arguments(1))
    with pytest.raises(ZeroDivisionError):
        bad.result(timeout=60)
    assert good.result(timeout=60).images.shape == (1, 64, 64, 3)


class Failing:
    """A hook that takes its time with forwards, or raises `error` at once."""

    def __init__(self, module: nn.Module) -> None:
        self.error: Exception | None = None
        module.register_forward_pre_hook(self)

    def __call__(self, *_: Any) -> None:
        if self.error is not None:
            raise self.error
        time.sleep(0.02)


def test_what_a_failed_request_had_is_freed_without_the_garbage_collector(
    small: DiffusionPipeline,
) -> None:
    failing = Failing(small.unet.conv_in)
    latents = torch.zeros(1, 4, 8, 8)
    given = weakref.ref(latents)

    def fail_next(_: Step) -> None:
        failing.error = RuntimeError("in a forward")

    with DenoiseEngine(small, EngineConfig(record_forwards=False)) as engine:
        gc.disable()
        try:
            failed = engine.submit(
                **arguments(0, latents=latents, width=64, height=64), on_step=fail_next
            )
            with pytest.raises(RuntimeError):
                failed.result(timeout=60)
            del failed, latents
            failing.error = None
            engine.submit(**arguments(1)).result(timeout=60)  # it has gone on
            assert given() is None
        finally:
            gc.enable()


@pytest.mark.filterwarnings("ignore:.*upcast_vae.*:FutureWarning")
def test_an_edit_that_cannot_be_encoded_leaves_the_autoencoder_as_it_was() -> None:
    pipeline = small_stable_diffusion_xl().to(torch.bfloat16)
    edits = AutoPipelineForImage2Image.from_pipe(pipeline)
    edit = {"image": Image.new("RGB", (64, 64)), "num_inference_steps": 4}

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("while encoding")

    with DenoiseEngine(pipeline) as engine:
        hook = pipeline.vae.encoder.register_forward_pre_hook(fail)
        with pytest.raises(torch.OutOfMemoryError):
            engine.submit(pipeline=edits, prompt="a", **edit).result(timeout=60)
        assert pipeline.vae.dtype == torch.bfloat16
        hook.remove()
        assert engine.submit(pipeline=edits, prompt="a", **edit).result(timeout=60).images


def test_forwards_that_fail_say_nothing_of_how_long_others_take(small: DiffusionPipeline) -> None:
    failing = Failing(small.unet.conv_in)
    with DenoiseEngine(small, EngineConfig(record_forwards=False)) as engine:

        def expected_s() -> float:
            """What the engine takes a request for."""
            before_s = engine.counters().online.work_s
            engine.submit(**arguments(0)).result(timeout=60)
            return engine.counters().online.work_s - before_s

        for _ in range(3):
            known_s = expected_s()
        failing.error = RuntimeError("at once")
        for i in range(100):
            with pytest.raises(RuntimeError):
                engine.submit(**arguments(i)).result(timeout=60)
        failing.error = None
        assert expected_s() > known_s / 2


class SmallMemory:
    """A hook that runs out of memory, as a device does, for forwards of more rows than fit."""

    def __init__(self, module: nn.Module, rows_that_fit: int) -> None:
        self.rows: list[int] = []
        self._rows_that_fit = rows_that_fit
        module.register_forward_pre_hook(self)

    def __call__(self, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.rows.append(len(inputs[0]))
        if len(inputs[0]) > self._rows_that_fit:
            raise torch.OutOfMemoryError(f"{len(inputs[0])} rows do not fit")


@pytest.mark.parametrize("rows_that_fit", [8, 4, 2, 1])
def test_out_of_memory_finishes_everyone_and_remembers_the_limit(
    small: DiffusionPipeline, rows_that_fit: int
) -> None:
    expected = [stock(small, small.scheduler, arguments(i)) for i in range(8)]
    memory = SmallMemory(small.unet.conv_in, rows_that_fit)
    with DenoiseEngine(small) as engine:
        tickets = [engine.submit(**arguments(i)) for i in range(8)]
        pictures = [ticket.result(timeout=60).images[0] for ticket in tickets]
        assert engine.counters().num_bisections > 0
        failures = sum(rows > rows_that_fit for rows in memory.rows)
        again = [engine.submit(**arguments(i)) for i in range(8)]
        for ticket in again:
            ticket.result(timeout=60)
    for made, wanted in zip(pictures, expected, strict=True):
        assert np.abs(made - wanted).max() < ONE_OF_255
    assert sum(rows > rows_that_fit for rows in memory.rows) == failures


def test_what_never_fits_fails_alone(small: DiffusionPipeline) -> None:
    def too_large(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0].shape[-1] > 8:
            raise torch.OutOfMemoryError("does not fit")

    small.unet.conv_in.register_forward_pre_hook(too_large)
    with DenoiseEngine(small) as engine:
        bad = engine.submit(**arguments(0, width=128, height=128))
        good = engine.submit(**arguments(1))
        with pytest.raises(torch.OutOfMemoryError):
            bad.result(timeout=60)
        assert good.result(timeout=60).images.shape == (1, 64, 64, 3)


@pytest.mark.parametrize("where", ["unet", "text_encoder", "vae"])
def test_a_lost_device_fails_everything_and_health_says_so(
    small: DiffusionPipeline, where: str
) -> None:
    part = {
        "unet": small.unet.conv_in,
        "text_encoder": small.text_encoder,
        "vae": small.vae.decoder,
    }[where]
    is_lost = False

    def lose(*_: Any) -> None:
        if is_lost:
            raise torch.AcceleratorError("device-side assert triggered")

    part.register_forward_pre_hook(lose)
    gate = Gate()
    with DenoiseEngine(small, EngineConfig(max_in_flight=2)) as engine:
        tickets = [engine.submit(**arguments(i, callback_on_step_end=gate)) for i in range(2)]
        tickets += [engine.submit(**arguments(i, prompt=f"another {i}")) for i in range(3)]
        gate.reached.wait(30)
        is_lost = True
        gate.opened.set()
        with pytest.raises(EngineDead, match="device-side assert"):
            tickets[-1].result(timeout=60)
        for ticket in tickets:
            assert ticket.done()
        with pytest.raises(EngineDead):
            engine.check_alive()
        with pytest.raises(EngineDead):
            engine.submit(**arguments(0))


def test_a_dead_engine_fails_everything_it_held(
    small: DiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    engine = DenoiseEngine(small, EngineConfig(max_in_flight=1))
    tickets = [engine.submit(**arguments(i, callback_on_step_end=gate)) for i in range(3)]
    gate.reached.wait(30)

    def broken(*_: Any) -> None:
        raise MemoryError("a fault of the engine's own")

    monkeypatch.setattr(engine, "_step", broken)
    gate.opened.set()
    for ticket in tickets:
        with pytest.raises(EngineDead, match="a fault of the engine's own"):
            ticket.result(timeout=60)
    with pytest.raises(EngineDead):
        engine.submit(**arguments(0))
    engine.close()


def test_a_program_may_end_with_work_under_way() -> None:
    program = """
from shared.engine import DenoiseEngine
from tests.rendering import Gate, arguments
from tests.small_models import small_stable_diffusion

gate = Gate()
engine = DenoiseEngine(small_stable_diffusion())
tickets = [engine.submit(**arguments(i, num_inference_steps=900), on_step=gate) for i in range(3)]
gate.reached.wait(30)
gate.opened.set()
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
