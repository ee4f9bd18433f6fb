"""Whatever comes in, in whatever order: every ticket ends, every survivor is the stock picture."""

import functools
import gc
import random
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from shared.config import EngineConfig, ModelConfig
from shared.engine import DenoiseEngine, Priority
from shared.engine.calls import _RunGreenlet
from shared.errors import Cancelled
from shared.model_files import load_noise_schedulers, resolve_folder
from shared.pipeline import load_pipeline
from tests.rendering import ONE_OF_255, arguments, is_imitated, mixed, stock
from tests.small_models import small_stable_diffusion

SCHEDULERS = list(load_noise_schedulers(resolve_folder(ModelConfig())).values())[:10]


@dataclass(frozen=True)
class Arrival:
    """A request, and what happens to it. `fate` is the step at which it is to end early."""

    seed: int
    scheduler: int
    guidance_scale: float
    num_inference_steps: int
    width: int
    height: int
    priority: Priority
    wait_ms: int
    fate: str
    fate_step: int

    def kwargs(self) -> dict[str, Any]:
        return arguments(
            self.seed,
            prompt=f"view {self.seed % 3}",
            guidance_scale=self.guidance_scale,
            num_inference_steps=self.num_inference_steps,
            width=self.width,
            height=self.height,
        )


ARRIVALS = st.builds(
    Arrival,
    seed=st.integers(0, 5),
    scheduler=st.integers(0, len(SCHEDULERS) - 1),
    guidance_scale=st.sampled_from([1.0, 2.5, 7.5]),
    num_inference_steps=st.integers(4, 8),
    width=st.sampled_from([64, 96]),
    height=st.sampled_from([64, 96]),
    priority=st.sampled_from(Priority),
    wait_ms=st.sampled_from([0, 0, 0, 5, 20]),
    fate=st.sampled_from(["finish", "finish", "finish", "cancel", "fail", "nan"]),
    fate_step=st.integers(1, 4),
)


@pytest.fixture(scope="module")
def small() -> DiffusionPipeline:
    return small_stable_diffusion()


@functools.cache
def expected(pipeline: DiffusionPipeline, arrival: Arrival) -> np.ndarray:
    return stock(pipeline, SCHEDULERS[arrival.scheduler], arrival.kwargs())


def submit(engine: DenoiseEngine, arrival: Arrival) -> Any:
    kwargs = arrival.kwargs()
    ticket: list[Any] = []

    def meet_fate(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step + 1 == arrival.fate_step:
            if arrival.fate == "fail":
                raise ZeroDivisionError
            if arrival.fate == "nan":
                return {"latents": torch.full_like(tensors["latents"], torch.nan)}
            if arrival.fate == "cancel" and ticket:
                ticket[0].cancel()
        return {}

    ticket.append(
        engine.submit(
            scheduler=SCHEDULERS[arrival.scheduler],
            priority=arrival.priority,
            callback_on_step_end=meet_fate,
            **kwargs,
        )
    )
    return ticket[0]


def num_greenlets() -> int:
    gc.collect()
    return sum(type(each) is _RunGreenlet for each in gc.get_objects())


@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shrink would take many minutes
)
@given(
    arrivals=st.lists(ARRIVALS, min_size=1, max_size=10),
    config=st.builds(
        EngineConfig,
        max_in_flight=st.sampled_from([1, 3, 16]),
        max_pixels_per_forward=st.sampled_from([1, 3 * 64 * 64, 16 * 256 * 256]),
        max_pixels_per_decode=st.sampled_from([0, 4 * 64 * 64]),
        max_prompt_cache_bytes=st.sampled_from([0, 2**20]),
    ),
)
def test_every_survivor_is_the_stock_picture_and_nothing_is_left(
    small: DiffusionPipeline, arrivals: list[Arrival], config: EngineConfig
) -> None:
    before = num_greenlets()
    with DenoiseEngine(small, config) as engine:
        tickets = []
        for arrival in arrivals:
            time.sleep(arrival.wait_ms / 1000)
            tickets.append(submit(engine, arrival))
        for arrival, ticket in zip(arrivals, tickets, strict=True):
            check(small, arrival, ticket)
        counters = engine.counters()
    ended = 0
    for each in (counters.online, counters.bulk):
        assert each.num_in_flight == each.num_waiting == 0
        ended += each.num_completed + each.num_failed + each.num_cancelled
    assert ended == len(arrivals)
    del tickets, ticket
    assert num_greenlets() == before


def check(pipeline: DiffusionPipeline, arrival: Arrival, ticket: Any) -> None:
    if arrival.fate == "fail":
        with pytest.raises(ZeroDivisionError):
            ticket.result(timeout=60)
    elif arrival.fate == "nan":
        with pytest.raises(FloatingPointError):
            ticket.result(timeout=60)
    else:
        try:
            picture = ticket.result(timeout=60).images[0]
        except Cancelled:
            assert arrival.fate == "cancel"
        else:  # cancelled too late, or not at all
            assert np.abs(picture - expected(pipeline, arrival)).max() < ONE_OF_255


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_random_companies_give_one_picture(dtype: str) -> None:
    pipeline = load_pipeline(ModelConfig(dtype=dtype))
    number = 20 if is_imitated(pipeline.dtype) else 200
    chance = random.Random(0)
    mine: list[Any] = []
    with DenoiseEngine(pipeline) as engine:
        asked = {"width": 64, "height": 64, "num_inference_steps": 2, "guidance_scale": 3.0}
        alone = engine.submit(**arguments(5, **asked)).result(timeout=60).images[0]
        for company in range(number):
            others = [
                engine.submit(**mixed(chance.randint(0, 999), (64,)) | {"num_inference_steps": 2})
                for _ in range(chance.randint(0, 7))
            ]
            ticket = engine.submit(**arguments(5, **asked))
            others += [
                engine.submit(**mixed(chance.randint(0, 999), (64,)) | {"num_inference_steps": 2})
                for _ in range(chance.randint(0, 3))
            ]
            if company % 5 == 0 and others:
                chance.choice(others).cancel()
            mine.append(ticket)
            if company % 10 == 9:  # more than fit into one forward, and more than are let in
                for each in mine:
                    assert np.array_equal(each.result(timeout=60).images[0], alone)
                mine.clear()
        counters = engine.counters()
        assert counters.num_shared_forwards > 0.8 * counters.num_forwards > 0
