"""Two models: in one process, or each in its own? What loading one costs the other, and leaves.

python benchmarks/many_models.py

Each model is asked by callers who ask again and again. Alone; while the other one is loaded; both
at once; and what memory is left when one has gone. Both are the bundled model: only their number
matters. In one process all cores are for both, else each has half of them.
"""

import asyncio
import gc
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import psutil

from shared.config import EngineConfig, ModelConfig
from shared.cpu_workers import CPU_WORKER, restart_with
from shared.renderer import Renderer
from shared.request import ImageRequest

SECONDS, CALLERS = 15.0, 4
REQUEST = {"prompt": "twin peaks", "width": 128, "height": 128, "num_inference_steps": 20}


def main() -> None:
    if sys.argv[1:] == ["--one"]:
        asyncio.run(one())
        return
    restart_with(CPU_WORKER)
    each_its_own()
    asyncio.run(in_one_process())


async def in_one_process() -> None:
    first = loaded()
    alone, _ = await rendering(first)
    print(f"one process: one model {alone:.2f} pictures/s, {memory():.0f} MB", flush=True)
    started = time.perf_counter()
    second, (during, slowest) = await while_(first, asyncio.to_thread(loaded))
    print(
        f"  while the other is loaded ({time.perf_counter() - started:.1f} s): {during:.2f} "
        f"pictures/s, the slowest {slowest:.1f} s; then {memory():.0f} MB",
        flush=True,
    )
    rates = await asyncio.gather(rendering(first), rendering(second))
    print(f"  both at once: {' + '.join(f'{rate:.2f}' for rate, _ in rates)} pictures/s")
    second.close()
    del second
    gc.collect()
    print(f"  one gone: {memory():.0f} MB", flush=True)
    first.close()


def each_its_own() -> None:
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2) // 2))}
    command = [sys.executable, __file__, "--one"]

    def start() -> subprocess.Popen[str]:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        environment = os.environ | CPU_WORKER | threads
        return subprocess.Popen(command, env=environment, text=True, **pipes)

    first = start()
    told(first)
    tell(first)
    time.sleep(SECONDS)
    tell(first)
    print(f"a process each: one model {told(first)}")
    tell(first)
    started = time.perf_counter()
    second = start()
    told(second)
    took_s = time.perf_counter() - started
    tell(first)
    print(f"  while the other is started and loaded ({took_s:.1f} s): {told(first)}")
    for _ in range(2):
        tell(first)
        tell(second)
        time.sleep(SECONDS)
    print(f"  both at once: {told(first)} + {told(second)}", flush=True)
    for each in (first, second):
        each.communicate()


async def one() -> None:
    """Says when it is loaded, and how fast it rendered between two lines that it is told."""
    renderer = loaded()
    print("loaded", flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        end = asyncio.create_task(asyncio.to_thread(sys.stdin.readline))
        rate, slowest = await _until(renderer, end.done)
        print(f"{rate:.2f} pictures/s, the slowest {slowest:.1f} s, {memory():.0f} MB", flush=True)
    renderer.close()


def tell(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def told(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def loaded() -> Renderer:
    renderer = Renderer(ModelConfig(), EngineConfig())
    renderer.warm_up()
    return renderer


async def rendering(renderer: Renderer) -> tuple[float, float]:
    """Pictures a second, and the seconds of the slowest one."""
    end = time.perf_counter() + SECONDS
    return await _until(renderer, lambda: time.perf_counter() > end)


async def while_(
    renderer: Renderer, other: Awaitable[Renderer]
) -> tuple[Renderer, tuple[float, float]]:
    """As `rendering`, until `other` is there."""
    task = asyncio.ensure_future(other)
    found = await _until(renderer, task.done)
    return await task, found


async def _until(renderer: Renderer, is_enough: Callable[[], bool]) -> tuple[float, float]:
    request = renderer.profile.canonical(ImageRequest(**REQUEST), seed=0)
    begun, seconds = time.perf_counter(), list[float]()

    async def caller() -> None:
        while not is_enough():
            asked = time.perf_counter()
            await renderer.render(request)
            seconds.append(time.perf_counter() - asked)

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return len(seconds) / (time.perf_counter() - begun), max(seconds)


def memory() -> float:
    return psutil.Process().memory_info().rss / 1e6


if __name__ == "__main__":
    main()
