"""Measured work in a thread of its own."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def in_thread(work: Callable[[], T]) -> T:
    """`work` in a thread that ends: while one lives that has run torch, its OpenMP workers do too,
    and slow whoever comes next."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()
