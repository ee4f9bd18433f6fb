"""Ten times the requests that the service can render, for a minute: what becomes of them?

python benchmarks/overload.py

First as many clients as keep it busy, then the flood, twice: the second shows whether memory stays.
Speed is taken from the engine's own count of denoised rows, between two moments in which it is
busy: pictures come in bursts, and a minute has few of them. What is let in is finished, or its
status says so.
"""

import argparse
import asyncio
import collections
import contextlib
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import httpx
from local_service import LocalService, local_service

# Few places, so that they are soon taken and soon empty again.
ENGINE = {"max_in_flight": 16, "max_queued": 16}
MAX_QUEUED_REQUESTS = 16
BUSY_CLIENTS = 24
WARM_UP_S = 5


@dataclass
class Answers:
    """Of one phase: what everyone was told, how fast, and how fast the engine was meanwhile."""

    statuses: collections.Counter[str] = field(default_factory=collections.Counter)
    refused_after_s: list[float] = field(default_factory=list)
    retry_after_s: list[int] = field(default_factory=list)
    rows_per_s: float = 0.0


def main() -> None:
    options = _parse()
    request = {
        "prompt": "twin peaks",
        "width": options.size,
        "height": options.size,
        "num_inference_steps": options.steps,
    }
    with local_service(engine=ENGINE, max_queued_requests=MAX_QUEUED_REQUESTS) as service:
        asyncio.run(measure(service, request, options.seconds, options.times))


async def measure(
    service: LocalService, request: dict[str, object], seconds: float, times: float
) -> None:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    async with httpx.AsyncClient(base_url=service.url, timeout=600, limits=limits) as client:
        await closed_loop(client, request, seconds=WARM_UP_S)
        started = time.perf_counter()
        busy = await closed_loop(client, request, seconds)
        pictures_per_s = busy.statuses["200"] / (time.perf_counter() - started)
        print(
            f"peak: {busy.rows_per_s:.0f} rows/s, {pictures_per_s:.2f} pictures/s with "
            f"{BUSY_CLIENTS} clients; {memory(service)}",
            flush=True,
        )
        for _ in range(2):
            flood = await open_loop(client, request, seconds, rate=times * pictures_per_s)
            report(flood, busy)
            print(f"  afterwards: {memory(service)}", flush=True)


@contextlib.asynccontextmanager
async def watching(client: httpx.AsyncClient, answers: Answers) -> AsyncIterator[None]:
    """Within it the engine's speed is taken, but for the first seconds, in which it fills up."""

    async def rows() -> tuple[float, int]:
        stats = (await client.get("/stats")).json()
        return time.perf_counter(), stats["num_rows"]

    async def begin() -> tuple[float, int]:
        await asyncio.sleep(WARM_UP_S)
        return await rows()

    beginning = asyncio.create_task(begin())
    yield
    (began, before), (ended, after) = await beginning, await rows()
    answers.rows_per_s = (after - before) / (ended - began)


async def closed_loop(
    client: httpx.AsyncClient, request: dict[str, object], seconds: float
) -> Answers:
    """Each client asks again as soon as it has its picture."""
    answers = Answers()
    end = time.perf_counter() + seconds

    async def ask_again() -> None:
        while time.perf_counter() < end:
            await ask(client, request, answers)

    async with asyncio.TaskGroup() as group, watching(client, answers):
        for _ in range(BUSY_CLIENTS):
            group.create_task(ask_again())
        await asyncio.sleep(seconds)
    return answers


async def open_loop(
    client: httpx.AsyncClient, request: dict[str, object], seconds: float, rate: float
) -> Answers:
    """Requests come as they come, whatever became of those before."""
    answers = Answers()
    started = time.perf_counter()
    async with asyncio.TaskGroup() as group, watching(client, answers):
        for number in range(int(rate * seconds)):
            await asyncio.sleep(started + number / rate - time.perf_counter())
            group.create_task(ask(client, request, answers))
    return answers


async def ask(client: httpx.AsyncClient, request: dict[str, object], answers: Answers) -> None:
    started = time.perf_counter()
    try:
        response = await client.post("/imagine", json=request)
    except httpx.HTTPError as error:
        answers.statuses[type(error).__name__] += 1
        return
    now = time.perf_counter()
    answers.statuses[str(response.status_code)] += 1
    if response.status_code != 200:
        answers.refused_after_s.append(now - started)
        with contextlib.suppress(KeyError):
            answers.retry_after_s.append(int(response.headers["Retry-After"]))


def report(flood: Answers, busy: Answers) -> None:
    slowest = sorted(flood.refused_after_s)
    print(
        f"flood: {flood.statuses.total()} requests, answered {dict(flood.statuses)}\n"
        f"  {flood.rows_per_s:.0f} rows/s, {flood.rows_per_s / busy.rows_per_s:.1%} of the peak\n"
        f"  refused in {statistics.median(slowest):.3f} s (median), at most {slowest[-1]:.3f} s\n"
        f"  Retry-After from {min(flood.retry_after_s)} to {max(flood.retry_after_s)} s, "
        f"in {len(flood.retry_after_s)} of {len(slowest)} refusals"
    )


def memory(service: LocalService) -> str:
    sizes = {
        name: sum(each.memory_info().rss for each in service.processes(name)) / 2**20
        for name in ("Generator", "Ingress")
    }
    return ", ".join(f"{name} {size:.0f} MB" for name, size in sizes.items())


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--times", type=float, default=10, help="of the peak (%(default)s)")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    return parser.parse_args()


if __name__ == "__main__":
    main()
