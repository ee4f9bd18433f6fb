"""Ten times the requests that the service can render, for a minute: what becomes of them?

python benchmarks/overload.py

First as many clients as keep it busy, then the flood, twice: the second shows whether memory stays.
"""

import argparse
import asyncio
import collections
import contextlib
import statistics
import time
from dataclasses import dataclass, field

import httpx
from local_service import LocalService, local_service

# Few places, so that they are soon taken and soon empty again.
ENGINE = {"max_in_flight": 16, "max_queued": 16}
MAX_QUEUED_REQUESTS = 16
BUSY_CLIENTS = 24


@dataclass
class Answers:
    """Of one phase: when each picture came, and what the others were told, how fast."""

    pictures_at: list[float] = field(default_factory=list)
    statuses: collections.Counter[str] = field(default_factory=collections.Counter)
    refused_after_s: list[float] = field(default_factory=list)
    retry_after_s: list[int] = field(default_factory=list)

    def pictures_per_s(self, start: float, end: float) -> float:
        return sum(start <= at < end for at in self.pictures_at) / (end - start)


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
        await closed_loop(client, request, seconds=min(10, seconds))  # warms up
        started = time.perf_counter()
        busy = await closed_loop(client, request, seconds)
        peak = busy.pictures_per_s(started, started + seconds)
        print(f"peak: {peak:.2f} pictures/s with {BUSY_CLIENTS} clients; {memory(service)}")
        for _ in range(2):
            started = time.perf_counter()
            flood = await open_loop(client, request, seconds, rate=times * peak)
            report(flood, peak, flood.pictures_per_s(started, started + seconds))
            print(f"  afterwards: {memory(service)}", flush=True)


async def closed_loop(
    client: httpx.AsyncClient, request: dict[str, object], seconds: float
) -> Answers:
    """Each client asks again as soon as it has its picture."""
    answers = Answers()
    end = time.perf_counter() + seconds

    async def ask_again() -> None:
        while time.perf_counter() < end:
            await ask(client, request, answers)

    await asyncio.gather(*(ask_again() for _ in range(BUSY_CLIENTS)))
    return answers


async def open_loop(
    client: httpx.AsyncClient, request: dict[str, object], seconds: float, rate: float
) -> Answers:
    """Requests come as they come, whatever became of those before."""
    answers = Answers()
    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
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
    if response.status_code == 200:
        answers.pictures_at.append(now)
    else:
        answers.refused_after_s.append(now - started)
        with contextlib.suppress(KeyError):
            answers.retry_after_s.append(int(response.headers["Retry-After"]))


def report(answers: Answers, peak: float, goodput: float) -> None:
    slowest = sorted(answers.refused_after_s)
    print(
        f"flood: {answers.statuses.total()} requests {dict(answers.statuses)}\n"
        f"  {goodput:.2f} pictures/s meanwhile, {goodput / peak:.1%} of the peak\n"
        f"  refused in {statistics.median(slowest):.3f} s (median), at most {slowest[-1]:.3f} s\n"
        f"  Retry-After from {min(answers.retry_after_s)} to {max(answers.retry_after_s)} s, "
        f"in {len(answers.retry_after_s)} of {len(slowest)} refusals"
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
