"""What a network learns on, and who prepares what it learns from."""

import os
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from shared.pipeline import default_dtype

Made = TypeVar("Made")


def add_device(parser: ArgumentParser) -> None:
    found = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=found, help="(%(default)s)")


def autocast(device: torch.device) -> torch.autocast:
    """To bfloat16, where the device computes in it: elsewhere it would be imitated, slowly."""
    computes_in_it = default_dtype(device) == torch.bfloat16
    return torch.autocast(device.type, torch.bfloat16, enabled=computes_in_it)


def num_helpers(device: str) -> int:
    """Processes beside the one that learns: on a CPU there is no core left for them."""
    return 0 if device == "cpu" else max(1, (os.cpu_count() or 1) - 2)


def made_ahead(make: Callable[[int], Made], numbers: Sequence[int], helpers: int) -> Iterator[Made]:
    """`make` of each number, in order, by so many processes that run ahead. 0: when it is wanted.

    `make` may be any function; tensors come back in shared memory.
    """
    if not helpers:
        return map(make, numbers)
    loader = DataLoader(
        _Made(make),
        batch_size=None,
        sampler=numbers,
        num_workers=helpers,
        multiprocessing_context="fork",  # what `make` refers to need not be sent
        generator=torch.Generator(),  # else it draws from the one that training draws from
    )
    return iter(loader)


class _Made(Dataset[Made]):
    def __init__(self, make: Callable[[int], Made]) -> None:
        self._make = make

    def __getitem__(self, number: int) -> Made:
        return self._make(number)
