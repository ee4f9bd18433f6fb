"""The engine against stock diffusers, which is the oracle, and against what can go wrong."""

import asyncio
import copy
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    UNet2DConditionModel,
)
from torch import nn

from shared.config import EngineConfig, ModelConfig
from shared.engine import DenoiseEngine
from shared.errors import Cancelled, EngineDead, QueueFull
from shared.model_files import load_noise_schedulers, resolve_folder
from tests.small_models import small_stable_diffusion, small_stable_diffusion_xl

ONE_OF_255 = 1 / 255


@pytest.fixture
def small() -> DiffusionPipeline:
    return small_stable_diffusion()


@pytest.fixture
def engine(small: DiffusionPipeline) -> Iterator[DenoiseEngine]:
    with DenoiseEngine(small) as engine:
        yield engine


def arguments(seed: int, **changed: Any) -> dict[str, Any]:
    return {
        "prompt": "twin peaks",
        "num_inference_steps": 4,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "np",
    } | changed


def mixed(seed: int, sizes: tuple[int, ...]) -> dict[str, Any]:
    """A request with everything that a user may set, drawn from `seed`."""
    chance = random.Random(seed)
    return arguments(
        seed,
        prompt=chance.choice(["twin peaks", "a lake at night", "city skyline, neon"]),
        negative_prompt=chance.choice([None, "", "snow"]),
        num_inference_steps=chance.randint(4, 9),
        guidance_scale=chance.choice([1.0, 2.5, 4.0, 7.5]),
        width=chance.choice(sizes),
        height=chance.choice(sizes),
    )


def stock(pipeline: DiffusionPipeline, scheduler: Any, kwargs: dict[str, Any]) -> np.ndarray:
    """The picture that diffusers alone renders, as floats from 0 to 1."""
    alone = copy.copy(pipeline)
    alone.scheduler = copy.deepcopy(scheduler)
    generator = torch.Generator().manual_seed(kwargs["generator"].initial_seed())
    picture: np.ndarray = alone(**kwargs | {"generator": generator}).images[0]
    return picture


def test_sixteen_mixed_requests_equal_the_stock_pipeline(pipeline: DiffusionPipeline) -> None:
    schedulers = list(load_noise_schedulers(resolve_folder(ModelConfig())).values())
    requests = [(schedulers[i % len(schedulers)], mixed(i, (64, 128))) for i in range(16)]
    expected = [stock(pipeline, *request) for request in requests]
    with DenoiseEngine(pipeline) as engine:
        tickets = []
        for scheduler, kwargs in requests:
            tickets.append(engine.submit(scheduler=scheduler, **kwargs))
            time.sleep(0.02)  # they arrive while others are under way
        pictures = [ticket.result(timeout=120).images[0] for ticket in tickets]
        counters = engine.counters()
    differences = [np.abs(a - b).max() for a, b in zip(pictures, expected, strict=True)]
    assert max(differences) < ONE_OF_255
    assert counters.num_completed == 16
    assert counters.num_shared_forwards > 0


def test_sdxl_equals_the_stock_pipeline() -> None:
    pipeline = small_stable_diffusion_xl()
    requests = [mixed(seed, (64, 96)) for seed in range(6)]
    expected = [stock(pipeline, pipeline.scheduler, kwargs) for kwargs in requests]
    with DenoiseEngine(pipeline) as engine:
        tickets = [engine.submit(**kwargs) for kwargs in requests]
        pictures = [ticket.result(timeout=60).images[0] for ticket in tickets]
        assert engine.counters().num_shared_forwards > 0
    differences = [np.abs(a - b).max() for a, b in zip(pictures, expected, strict=True)]
    assert max(differences) < ONE_OF_255


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_company_changes_no_bit_of_a_picture(
    pipeline: DiffusionPipeline, guidance_scale: float
) -> None:
    asked = {"width": 64, "height": 64, "guidance_scale": guidance_scale}
    with DenoiseEngine(pipeline) as engine:
        alone = engine.submit(**arguments(5, **asked)).result(timeout=60).images[0]
        for num_others in (1, 2, 6, 11):
            others = [engine.submit(**mixed(seed, (64,))) for seed in range(num_others)]
            ticket = engine.submit(**arguments(5, **asked))
            assert np.array_equal(ticket.result(timeout=60).images[0], alone), num_others
            assert ticket.stats.num_shared_forwards > 0
            for other in others:
                other.result(timeout=60)


def test_a_noise_scheduler_of_the_callers_own_is_copied(small: DiffusionPipeline) -> None:
    own = EulerAncestralDiscreteScheduler.from_config(small.scheduler.config)
    expected = stock(small, own, arguments(1))
    with DenoiseEngine(small) as engine:
        tickets = [engine.submit(scheduler=own, **arguments(1)) for _ in range(3)]
        for ticket in tickets:
            assert np.abs(ticket.result(timeout=60).images[0] - expected).max() < ONE_OF_255


def test_tickets_tell_what_their_request_took(engine: DenoiseEngine) -> None:
    ticket = engine.submit(**arguments(0))
    ticket.result(timeout=60)
    assert ticket.done()
    assert ticket.stats.num_forwards == 4
    assert ticket.stats.num_shared_forwards == 0
    assert ticket.stats.run_s > 0 <= ticket.stats.queue_s


def test_threads_may_submit_at_once(engine: DenoiseEngine) -> None:
    with ThreadPoolExecutor(8) as threads:
        pictures = list(
            threads.map(
                lambda _: engine.submit(**arguments(3)).result(timeout=60).images[0], range(16)
            )
        )
    assert all(np.array_equal(picture, pictures[0]) for picture in pictures)


def test_tickets_can_be_awaited(engine: DenoiseEngine) -> None:
    async def render() -> Any:
        return await asyncio.gather(*(engine.submit(**arguments(i)) for i in range(3)))

    assert [output.images.shape for output in asyncio.run(render())] == [(1, 64, 64, 3)] * 3


def test_a_timeout_leaves_the_request_running(engine: DenoiseEngine) -> None:
    ticket = engine.submit(**arguments(0, num_inference_steps=20))
    with pytest.raises(TimeoutError):
        ticket.result(timeout=0)
    assert ticket.result(timeout=60).images.shape == (1, 64, 64, 3)


def test_a_failing_callback_fails_its_own_request(engine: DenoiseEngine) -> None:
    def fail(*_: Any) -> Any:
        raise ZeroDivisionError("in the callback")

    bad = engine.submit(**arguments(0, callback_on_step_end=fail))
    good = engine.submit(**arguments(1))
    with pytest.raises(ZeroDivisionError):
        bad.result(timeout=60)
    assert good.result(timeout=60).images.shape == (1, 64, 64, 3)
    assert engine.counters().num_failed == 1


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


class Gate:
    """A step callback that holds the engine at a request's first step."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self, *_: Any) -> dict[str, Any]:
        self.reached.set()
        assert self.opened.wait(30)
        return {}


def test_a_cancelled_request_ends_at_its_next_step(engine: DenoiseEngine) -> None:
    gate = Gate()
    ticket = engine.submit(**arguments(0, num_inference_steps=500, callback_on_step_end=gate))
    other = engine.submit(**arguments(1))
    gate.reached.wait(30)
    ticket.cancel()
    gate.opened.set()
    with pytest.raises(Cancelled):
        ticket.result(timeout=60)
    assert other.result(timeout=60).images.shape == (1, 64, 64, 3)
    counters = engine.counters()
    assert (counters.num_cancelled, counters.num_in_flight) == (1, 0)
    assert sum(counters.forwards_by_requests.values()) < 50


def test_a_cancelled_await_returns_when_the_engine_has_let_go(engine: DenoiseEngine) -> None:
    async def give_up() -> None:
        waiter = asyncio.ensure_future(
            asyncio.wait_for(engine.submit(**arguments(0, num_inference_steps=900)), timeout=0.2)
        )
        with pytest.raises(TimeoutError):
            await waiter

    asyncio.run(give_up())
    counters = engine.counters()
    assert (counters.num_cancelled, counters.num_in_flight) == (1, 0)


def test_more_than_may_wait_is_refused(small: DiffusionPipeline) -> None:
    gate = Gate()
    with DenoiseEngine(small, EngineConfig(max_in_flight=1, max_queued=2)) as engine:
        running = engine.submit(**arguments(0, callback_on_step_end=gate))
        gate.reached.wait(30)
        waiting = [engine.submit(**arguments(i)) for i in range(2)]
        with pytest.raises(QueueFull):
            engine.submit(**arguments(9))
        waiting[0].cancel()
        gate.opened.set()
        running.result(timeout=60)
        with pytest.raises(Cancelled):
            waiting[0].result(timeout=60)
        waiting[1].result(timeout=60)


def test_closing_finishes_what_there_is(small: DiffusionPipeline) -> None:
    engine = DenoiseEngine(small)
    tickets = [engine.submit(**arguments(i)) for i in range(20)]
    engine.close()
    assert all(ticket.result(timeout=0).images.shape == (1, 64, 64, 3) for ticket in tickets)
    with pytest.raises(EngineDead):
        engine.submit(**arguments(0))
    with pytest.raises(EngineDead):
        engine.check_alive()
    assert stock(small, small.scheduler, arguments(0)).shape == (64, 64, 3)


def test_closing_can_cancel_what_there_is(small: DiffusionPipeline) -> None:
    engine = DenoiseEngine(small)
    tickets = [engine.submit(**arguments(i, num_inference_steps=500)) for i in range(20)]
    engine.close(cancel=True)
    for ticket in tickets:
        with pytest.raises(Cancelled):
            ticket.result(timeout=0)


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


class UndeclaredModel(UNet2DConditionModel):
    """To the engine, a module class that nobody has declared."""


def test_requests_of_an_undeclared_module_take_turns(small: DiffusionPipeline) -> None:
    small.unet.__class__ = UndeclaredModel
    expected = stock(small, small.scheduler, arguments(1))
    with DenoiseEngine(small) as engine:
        long = engine.submit(**arguments(0, num_inference_steps=900))
        short = engine.submit(**arguments(1))
        assert np.array_equal(short.result(timeout=60).images[0], expected)
        assert not long.done()
        long.cancel()
        with pytest.raises(Cancelled):
            long.result(timeout=60)


def test_a_second_engine_on_one_pipeline_is_refused(
    engine: DenoiseEngine, small: DiffusionPipeline
) -> None:
    engine.submit(**arguments(0)).result(timeout=60)
    with pytest.raises(EngineDead, match="another engine"):
        DenoiseEngine(small).submit(**arguments(0)).result(timeout=60)
