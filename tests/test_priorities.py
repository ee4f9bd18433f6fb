"""Online before bulk, and deadlines, with a real engine."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from diffusers import DiffusionPipeline

from shared.config import EngineConfig
from shared.counters import RequestCounters
from shared.engine import DenoiseEngine, Priority
from shared.errors import DeadlineExceeded, QueueFull, TooBusy
from tests.rendering import Gate, arguments


@pytest.fixture
def engine(small: DiffusionPipeline) -> Iterator[DenoiseEngine]:
    with DenoiseEngine(small, EngineConfig(max_in_flight=4)) as engine:
        yield engine


class StepLog:
    """Whose steps ran, in order."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def of(self, name: str) -> Any:
        return lambda _: self.names.append(name)


def test_bulk_work_has_no_forward_of_its_own_while_online_work_is_there(
    engine: DenoiseEngine,
) -> None:
    log, gate = StepLog(), Gate()
    bulk = [
        engine.submit(
            **arguments(i, num_inference_steps=30, width=96, height=96, callback_on_step_end=gate),
            on_step=log.of("bulk"),
            priority=Priority.BULK,
        )
        for i in range(8)
    ]
    gate.reached.wait(30)  # bulk work holds all the places it may
    online = [engine.submit(**arguments(i), on_step=log.of("online")) for i in range(6)]
    gate.opened.set()
    for ticket in [*online, *bulk]:
        ticket.result(timeout=60)
    first, last = log.names.index("online"), len(log.names) - log.names[::-1].index("online")
    # Before: the forward that was running. Those that a full house made wait are no exception.
    assert log.names[:first].count("bulk") <= 4
    assert log.names[first:last].count("bulk") == 0
    assert log.names.count("bulk") == 8 * 30


def test_bulk_work_goes_in_the_rows_that_would_be_padding(small: DiffusionPipeline) -> None:
    """Without guidance a picture is one row, and a forward in float32 has two or more."""
    log, gate = StepLog(), Gate()
    with DenoiseEngine(small, EngineConfig(bulk_slack=0)) as engine:
        online = engine.submit(
            **arguments(0, guidance_scale=1.0, num_inference_steps=40, callback_on_step_end=gate),
            on_step=log.of("online"),
        )
        gate.reached.wait(30)
        bulk = [
            engine.submit(
                **arguments(i, guidance_scale=1.0, num_inference_steps=10),
                on_step=log.of(f"bulk {i}"),
                priority=Priority.BULK,
            )
            for i in range(1, 4)
        ]
        gate.opened.set()
        for ticket in [online, *bulk]:
            ticket.result(timeout=60)
        counters = engine.counters()
    while_online = log.names[: len(log.names) - log.names[::-1].index("online")]
    assert [while_online.count(f"bulk {i}") for i in range(1, 4)] == [10] * 3
    assert counters.num_padding_rows < 40 - 25
    assert (counters.online.num_rows, counters.bulk.num_rows) == (40, 30)


def bulk_beside_online(pipeline: DiffusionPipeline, part: float) -> RequestCounters:
    """What bulk requests had when an online one, shorter than those before it, was at its end."""
    gate = Gate()
    at_end: list[RequestCounters] = []
    with DenoiseEngine(pipeline, EngineConfig(bulk_slack=part)) as engine:
        for number in [1, 4] * 5:  # many steps: that is what is slow here
            asked = [arguments(i, num_inference_steps=60) for i in range(number)]
            for ticket in [engine.submit(**each) for each in asked]:
                ticket.result(timeout=60)
        online = engine.submit(
            **arguments(0, num_inference_steps=20, callback_on_step_end=gate),
            on_step=lambda _: at_end.append(engine.counters().bulk),
        )
        gate.reached.wait(30)
        bulk = [
            engine.submit(**arguments(i, num_inference_steps=8), priority=Priority.BULK)
            for i in range(4)
        ]
        gate.opened.set()
        online.result(timeout=60)
        for ticket in bulk:
            ticket.cancel()
    return at_end[-1]


def test_bulk_work_has_a_part_of_the_slack_of_online_work(small: DiffusionPipeline) -> None:
    """Its decodes, too: they would hold the places that bulk work has."""
    assert bulk_beside_online(small, part=0).num_rows == 0
    beside = bulk_beside_online(small, part=1)
    assert beside.num_rows > 2 * 8
    assert beside.num_completed > 0


def test_a_floor_is_kept_for_bulk_work(small: DiffusionPipeline) -> None:
    log, gate = StepLog(), Gate()
    with DenoiseEngine(small, EngineConfig(bulk_floor=0.3)) as engine:
        online = engine.submit(
            **arguments(0, num_inference_steps=100, callback_on_step_end=gate),
            on_step=log.of("online"),
        )
        gate.reached.wait(30)
        bulk = engine.submit(
            **arguments(1, num_inference_steps=10, width=96, height=96),
            on_step=log.of("bulk"),
            priority=Priority.BULK,
        )
        gate.opened.set()
        for ticket in (online, bulk):
            ticket.result(timeout=60)
    assert log.names[-1] == "online"


def test_bulk_work_cannot_fill_the_queue_of_online_work(small: DiffusionPipeline) -> None:
    gate = Gate()
    with DenoiseEngine(small, EngineConfig(max_in_flight=1, max_queued_bulk=2)) as engine:
        engine.submit(**arguments(0, callback_on_step_end=gate), priority=Priority.BULK)
        gate.reached.wait(30)
        for i in range(2):
            engine.submit(**arguments(i), priority=Priority.BULK)
        with pytest.raises(QueueFull):
            engine.submit(**arguments(0), priority=Priority.BULK)
        ticket = engine.submit(**arguments(0))
        gate.opened.set()
        ticket.result(timeout=60)


def test_what_has_expired_is_dropped(engine: DenoiseEngine) -> None:
    gate = Gate()
    steps: list[object] = []
    expires = engine.submit(
        **arguments(0, num_inference_steps=900, callback_on_step_end=gate),
        on_step=steps.append,
        timeout_s=2,
    )
    other = engine.submit(**arguments(1))
    gate.reached.wait(30)
    waiting = [engine.submit(**arguments(i), timeout_s=2) for i in range(4)]
    time.sleep(2)
    gate.opened.set()
    for ticket in [expires, *waiting]:
        with pytest.raises(DeadlineExceeded):
            ticket.result(timeout=60)
    other.result(timeout=60)
    assert len(steps) < 10
    assert engine.counters().online.num_expired == 5


def test_what_cannot_finish_is_refused(engine: DenoiseEngine) -> None:
    # It has to learn how long forwards take, of one row count and of another.
    for number in (1, 4):
        started = time.perf_counter()
        for ticket in [engine.submit(**arguments(i)) for i in range(number)]:
            ticket.result(timeout=60)
        seconds = time.perf_counter() - started
    long = arguments(0, num_inference_steps=900)
    with pytest.raises(DeadlineExceeded):
        engine.submit(**long, timeout_s=seconds)
    assert engine.counters().online.num_expired == 1
    engine.submit(**long, timeout_s=600).cancel()
    engine.submit(**arguments(0), timeout_s=60).result(timeout=60)


def test_who_could_finish_but_for_others_is_told_so(small: DiffusionPipeline) -> None:
    small.unet.conv_in.register_forward_pre_hook(lambda _, rows: time.sleep(0.005 * len(rows[0])))
    long, timeout_s = arguments(0, num_inference_steps=900), 600.0
    with DenoiseEngine(small, EngineConfig(record_forwards=False)) as engine:
        for number in (1, 1, 4):
            for ticket in [engine.submit(**arguments(i)) for i in range(number)]:
                ticket.result(timeout=60)
        others = [engine.submit(**long) for _ in range(8)]
        while True:
            try:
                engine.submit(**long, timeout_s=timeout_s).cancel()
            except QueueFull as error:
                refusal = error
                break
            timeout_s *= 0.9
        assert isinstance(refusal, TooBusy)
        assert engine.counters().online.num_expired == 0
        for other in others:
            other.cancel()


def test_a_time_that_is_over_is_refused_at_once(engine: DenoiseEngine) -> None:
    with pytest.raises(DeadlineExceeded):
        engine.submit(**arguments(0), timeout_s=0)
