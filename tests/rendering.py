"""Requests for the engine's tests, and the oracle that they are held against."""

import copy
import random
import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

from shared.engine.layers import rows_kept_apart
from shared.pipeline import default_dtype

ONE_OF_255 = 1 / 255


def is_imitated(dtype: torch.dtype) -> bool:
    """Whether this processor does not compute in it, and takes some ten times as long."""
    return dtype not in (torch.float32, default_dtype(torch.device("cpu")))


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
    """The picture that diffusers alone renders, as floats from 0 to 1.

    In bfloat16 with the engine's layers, since a few steps make much of how they round; that they
    round no worse than torch's is another test's to say.
    """
    alone = copy.copy(pipeline)
    alone.scheduler = copy.deepcopy(scheduler)
    generator = torch.Generator().manual_seed(kwargs["generator"].initial_seed())
    with _layers_that_round_alike(pipeline):
        picture: np.ndarray = alone(**kwargs | {"generator": generator}).images[0]
    return picture


def _layers_that_round_alike(pipeline: DiffusionPipeline) -> AbstractContextManager[None]:
    if pipeline.dtype == torch.bfloat16:
        return rows_kept_apart(pipeline.unet)
    return nullcontext()


class Gate:
    """A step callback that holds the engine at a request's first step."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self, *_: Any) -> dict[str, Any]:
        self.reached.set()
        assert self.opened.wait(30)
        return {}
