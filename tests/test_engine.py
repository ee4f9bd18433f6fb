"""The engine against stock diffusers, which is the oracle, and against what can go wrong."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from typing import Any

import numpy as np
import pytest
from diffusers import (
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    UNet2DConditionModel,
)

from shared.config import EngineConfig, ModelConfig
from shared.engine import DenoiseEngine, Step
from shared.errors import Cancelled, EngineDead, QueueFull
from shared.model_files import load_noise_schedulers, resolve_folder
from tests.rendering import ONE_OF_255, Gate, arguments, mixed, stock
from tests.small_models import small_stable_diffusion_xl


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
    assert counters.online.num_completed == 16
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


def test_another_thread_may_tokenize_with_the_pipeline_meanwhile(small: DiffusionPipeline) -> None:
    own = small.tokenizer

    class Interrupted(type(own)):  # type: ignore[misc]
        """The other thread has its turn between how far to pad is set, and padding."""

        def set_truncation_and_padding(self, **asked: Any) -> None:
            super().set_truncation_and_padding(**asked)
            if asked["padding_strategy"] == "max_length":
                own("view")  # to no length

    expected = stock(small, small.scheduler, arguments(1))
    own.__class__ = Interrupted
    with DenoiseEngine(small) as engine:
        picture = engine.submit(**arguments(1)).result(timeout=60).images[0]
    assert np.abs(picture - expected).max() < ONE_OF_255


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
    assert (counters.online.num_cancelled, counters.online.num_in_flight) == (1, 0)
    assert sum(counters.forwards_by_requests.values()) < 50


def test_cancelling_frees_the_slot_within_one_forward(small: DiffusionPipeline) -> None:
    """Two of three slots' requests stay: the third's place is taken one forward later."""
    config = EngineConfig(max_in_flight=3)
    with DenoiseEngine(small, config) as engine:
        alone = engine.submit(**arguments(1)).result(timeout=60).images[0]
        before = sum(engine.counters().forwards_by_requests.values())
        gate = Gate()
        leaving = engine.submit(**arguments(0, num_inference_steps=500, callback_on_step_end=gate))
        staying = [engine.submit(**arguments(1)) for _ in range(2)]
        first_step: list[int] = []
        waiting = engine.submit(
            **arguments(2),
            on_step=lambda _: first_step.append(
                sum(engine.counters().forwards_by_requests.values())
            ),
        )
        gate.reached.wait(30)
        leaving.cancel()
        gate.opened.set()
        waiting.result(timeout=60)
        for ticket in staying:
            assert np.array_equal(ticket.result(timeout=60).images[0], alone)
    # The forward that was under way, and the one that has the newcomer's first step.
    assert first_step[0] - before <= 2


def test_a_cancelled_await_returns_when_the_engine_has_let_go(engine: DenoiseEngine) -> None:
    async def give_up() -> None:
        waiter = asyncio.ensure_future(
            asyncio.wait_for(engine.submit(**arguments(0, num_inference_steps=900)), timeout=0.2)
        )
        with pytest.raises(TimeoutError):
            await waiter

    asyncio.run(give_up())
    counters = engine.counters()
    assert (counters.online.num_cancelled, counters.online.num_in_flight) == (1, 0)


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


class UndeclaredModel(UNet2DConditionModel):
    """To the engine, a module class that nobody has declared."""


def test_requests_of_an_undeclared_module_take_turns(
    small: DiffusionPipeline, caplog: pytest.LogCaptureFixture
) -> None:
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
    assert caplog.messages == ["UndeclaredModel is not declared and runs unbatched"]


def test_a_second_engine_on_one_pipeline_is_refused(
    engine: DenoiseEngine, small: DiffusionPipeline
) -> None:
    engine.submit(**arguments(0)).result(timeout=60)
    with pytest.raises(EngineDead, match="another engine"):
        DenoiseEngine(small).submit(**arguments(0)).result(timeout=60)


def test_a_callback_cannot_wait_for_its_own_engine(engine: DenoiseEngine) -> None:
    def wait(*_: Any) -> dict[str, Any]:
        engine.submit(**arguments(1)).result(timeout=60)
        return {}

    with pytest.raises(RuntimeError, match="cannot wait"):
        engine.submit(**arguments(0, callback_on_step_end=wait)).result(timeout=60)


def test_a_callback_may_close_the_engine(small: DiffusionPipeline) -> None:
    engine = DenoiseEngine(small)

    def close(*_: Any) -> dict[str, Any]:
        engine.close()
        return {}

    ticket = engine.submit(**arguments(0, callback_on_step_end=close))
    assert ticket.result(timeout=60).images.shape == (1, 64, 64, 3)
    engine.close()


def test_steps_can_be_followed(engine: DenoiseEngine, small: DiffusionPipeline) -> None:
    steps: list[Step] = []
    quiet = engine.submit(**arguments(0))
    followed = engine.submit(**arguments(0), on_step=steps.append)
    assert np.array_equal(followed.result(60).images[0], quiet.result(60).images[0])
    assert [(step.index, step.num_steps) for step in steps] == [(i, 4) for i in range(1, 5)]
    assert all(step.latents.shape == (1, 4, 8, 8) for step in steps)
    assert "step" not in vars(small.scheduler)


def test_decodes_that_are_shared_are_no_shared_forwards(small: DiffusionPipeline) -> None:
    with DenoiseEngine(small, EngineConfig(max_pixels_per_decode=4 * 64 * 64)) as engine:
        tickets = [engine.submit(**arguments(i)) for i in range(4)]
        for ticket in tickets:
            ticket.result(timeout=60)
        assert engine.counters().num_decodes < 4
    for ticket in tickets:
        assert ticket.stats.num_shared_forwards <= ticket.stats.num_forwards == 4


def test_counters_say_what_was_done(engine: DenoiseEngine) -> None:
    for ticket in [engine.submit(**arguments(i, guidance_scale=1.0)) for i in range(3)]:
        ticket.result(timeout=60)
    engine.submit(**arguments(0, guidance_scale=1.0)).result(timeout=60)
    counters = engine.counters()
    assert counters.online.num_completed == 4
    assert counters.online.num_rows == 4 * 4
    assert counters.num_decodes == 4
    assert counters.num_padding_rows >= 4  # those that ran alone
    assert counters.num_prompt_cache_hits == 3
    assert counters.num_prompt_cache_misses == 1
    assert 0 < counters.prompt_cache_bytes < 2**20
    assert counters.busy_s > counters.decode_s > 0 < counters.online.queue_s
    forwards = counters.forwards_by_requests
    num_rows = sum(requests * number for requests, number in forwards.items())
    assert num_rows == counters.online.num_rows


def test_who_is_let_in_goes_with_the_others(small: DiffusionPipeline) -> None:
    gate, steps = Gate(), [4 + i % 9 for i in range(40)]
    with DenoiseEngine(small, EngineConfig(max_in_flight=8)) as engine:
        first = engine.submit(**arguments(0), callback_on_step_end=gate)
        assert gate.reached.wait(30)
        tickets = [
            engine.submit(**arguments(i, num_inference_steps=number))
            for i, number in enumerate(steps)
        ]
        gate.opened.set()
        for ticket in [first, *tickets]:
            ticket.result(timeout=60)
        forwards = engine.counters().forwards_by_requests
    in_good_company = sum(number * count for number, count in forwards.items() if number >= 6)
    assert in_good_company > 0.8 * sum(steps)


def test_work_is_counted_as_it_comes_and_backlog_until_it_is_done(small: DiffusionPipeline) -> None:
    with DenoiseEngine(small) as engine:
        engine.submit(**arguments(0)).result(timeout=60)
        learned = engine.counters().online
        assert learned.work_s == learned.backlog_s == 0  # nothing was known when it came
        gate = Gate()
        held = engine.submit(**arguments(1, num_inference_steps=9, callback_on_step_end=gate))
        gate.reached.wait(30)
        before = engine.counters()
        others = [engine.submit(**arguments(i, num_inference_steps=9)) for i in range(2, 4)]
        came = engine.counters()
        share_s = (came.online.work_s - before.online.work_s) / 2
        assert 2 * share_s < came.online.backlog_s < 3 * share_s  # one step of 27 is done
        gate.opened.set()
        for ticket in [held, *others]:
            ticket.result(timeout=60)
        done = engine.counters()
        assert done.online.work_s == came.online.work_s
        assert done.online.backlog_s == 0


@pytest.mark.parametrize("where", ["text_encoder.embeddings", "unet.conv_in"])
def test_an_engine_that_does_not_come_on_is_dead(small: DiffusionPipeline, where: str) -> None:
    reached, opened = threading.Event(), threading.Event()

    def hang(*_: object) -> None:
        reached.set()
        opened.wait(30)

    attrgetter(where)(small).register_forward_pre_hook(hang)
    with DenoiseEngine(small, EngineConfig(watchdog_timeout_s=2)) as engine:
        assert engine.counters().stalled_s == 0
        ticket = engine.submit(**arguments(0))
        assert reached.wait(30)
        time.sleep(0.2)
        assert engine.counters().stalled_s >= 0.2
        time.sleep(2)
        with pytest.raises(EngineDead, match=r"at one thing for \d+ s"):
            engine.check_alive()
        opened.set()
        ticket.result(timeout=60)
        engine.check_alive()
        assert engine.counters().stalled_s < 2
