"""Freed memory is reused, not asked for anew, also in a thread that is not the first."""

import os
import subprocess
import sys

import pytest

from shared.cpu_workers import KEEP_FREED_MEMORY

PAGE_FAULTS_OF_A_THREAD = """
import resource, threading

def activations():
    for size in (20_000_000, 50_000_000):
        together = [bytearray(b"x") * size for _ in range(3)]

def measure():
    activations()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        activations()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=measure)
thread.start()
thread.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="malloc's settings are glibc's")
def test_large_memory_is_reused_with_the_settings_and_only_with_them() -> None:
    assert _page_faults(KEEP_FREED_MEMORY) < 1000 < _page_faults({})


def _page_faults(env: dict[str, str]) -> int:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    return int(
        subprocess.run(
            [sys.executable, "-c", PAGE_FAULTS_OF_A_THREAD],
            env=plain | env,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
    )
