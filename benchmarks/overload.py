"""Ten times the requests that the service can render, for a minute: what becomes of them?

python benchmarks/overload.py

As many clients as keep it busy ask all the time; the flood comes and goes beside them, a minute
each, and the engine's rows per second are compared with those of the minute before. Pictures have
all numbers of steps, so that they come evenly. Client, proxy, ingress and engine share this
machine: of small pictures ten times as many come, and that costs more (docs/decisions.md).
"""

import argparse
import asyncio
import collections
import contextlib
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import httpx
from local_service import LocalService, local_service

# Few places, so that they are soon taken and soon empty again.
ENGINE = {"max_in_flight": 16, "max_queued": 16}
MAX_QUEUED_REQUESTS = 16
BUSY_CLIENTS = 24
WARM_UP_S = 10

Request = dict[str, object]


@dataclass
class Answers:
    """What those who came in a flood were told, and when."""

    callers: list[asyncio.Task[None]] = field(default_factory=list)
    statuses: collections.Counter[str] = field(default_factory=collections.Counter)
    refused_after_s: list[float] = field(default_factory=list)
    retry_after_s: list[int] = field(default_factory=list)


@dataclass
class Speed:
    """Of the service as a whole, over one phase."""

    rows_per_s: float
    pictures_per_s: float


def main() -> None:
    options = _parse()
    chance = random.Random(1)

    def request() -> Request:
        return {
            "prompt": "twin peaks",
            "width": options.size,
            "height": options.size,
            "num_inference_steps": chance.randint(options.steps // 2, options.steps * 3 // 2),
        }

    with local_service(engine=ENGINE, max_queued_requests=MAX_QUEUED_REQUESTS) as service:
        asyncio.run(measure(service, request, options))


async def measure(
    service: LocalService, request: Callable[[], Request], options: argparse.Namespace
) -> None:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    async with httpx.AsyncClient(base_url=service.url, timeout=600, limits=limits) as client:
        clients = [asyncio.create_task(ask_again(client, request)) for _ in range(BUSY_CLIENTS)]
        await asyncio.sleep(WARM_UP_S)
        ratios = []
        for _ in range(options.floods):
            busy = await speed_during(client, asyncio.sleep(options.seconds))
            print(f"busy: {shown(busy)}; {memory(service)}", flush=True)
            answers = Answers()
            rate = options.times * busy.pictures_per_s
            flood = await speed_during(
                client, come(client, request, answers, rate, options.seconds)
            )
            ratios.append(flood.rows_per_s / busy.rows_per_s)
            print(f"flood: {shown(flood)}, {ratios[-1]:.1%} of it; {memory(service)}", flush=True)
            await asyncio.gather(*answers.callers)
            report(answers)
        print(f"goodput in a flood: {statistics.mean(ratios):.1%} of the peak")
        for each in clients:
            each.cancel()


async def speed_during(client: httpx.AsyncClient, phase: Awaitable[None]) -> Speed:
    started, before = time.perf_counter(), await counters(client)
    await phase
    seconds, after = time.perf_counter() - started, await counters(client)
    rows, pictures = (after[name] - before[name] for name in ("num_rows", "num_completed"))
    return Speed(rows / seconds, pictures / seconds)


async def counters(client: httpx.AsyncClient) -> dict[str, int]:
    found: dict[str, int] = (await client.get("/stats")).json()["online"]
    return found


async def ask_again(client: httpx.AsyncClient, request: Callable[[], Request]) -> None:
    """A client that asks again as soon as it has its picture, or a second after a refusal."""
    while True:
        response = await client.post("/imagine", json=request())
        if response.status_code != 200:
            await asyncio.sleep(1)


async def come(
    client: httpx.AsyncClient,
    request: Callable[[], Request],
    answers: Answers,
    rate: float,
    seconds: float,
) -> None:
    """Requests come as they come, `rate` in a second, whatever became of those before."""
    started = time.perf_counter()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(started + number / rate - time.perf_counter())
        answers.callers.append(asyncio.create_task(ask(client, request(), answers)))


async def ask(client: httpx.AsyncClient, request: Request, answers: Answers) -> None:
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


def report(flood: Answers) -> None:
    slowest = sorted(flood.refused_after_s)
    print(
        f"  {flood.statuses.total()} requests, answered {dict(flood.statuses)}\n"
        f"  refused in {statistics.median(slowest):.3f} s (median), at most {slowest[-1]:.3f} s\n"
        f"  Retry-After from {min(flood.retry_after_s)} to {max(flood.retry_after_s)} s, "
        f"in {len(flood.retry_after_s)} of {len(slowest)} refusals",
        flush=True,
    )


def shown(speed: Speed) -> str:
    return f"{speed.rows_per_s:.1f} rows/s, {speed.pictures_per_s:.2f} pictures/s"


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
    parser.add_argument("--floods", type=int, default=2, help="one after another (%(default)s)")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20, help="half as many to half as many more")
    return parser.parse_args()


if __name__ == "__main__":
    main()
