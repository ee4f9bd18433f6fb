"""Requests and their arrivals, and a client that brings them to a service."""

import asyncio
import csv
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

Request = dict[str, Any]

MIXES = {
    "equal": lambda chance: {},
    "steps": lambda chance: {"num_inference_steps": chance.randint(10, 50)},
    "all": lambda chance: {
        "num_inference_steps": chance.randint(10, 50),
        "guidance_scale": round(chance.uniform(2, 7), 2),
        "width": chance.choice((128, 192, 256)),
        "height": chance.choice((128, 192, 256)),
    },
}


@dataclass(frozen=True)
class Arrival:
    at_s: float
    request: Request


@dataclass(frozen=True)
class Outcome:
    """Of one run: pictures that came, seconds from the first request to the last picture."""

    latencies_s: list[float]
    num_failed: int
    seconds: float

    @property
    def pictures_per_s(self) -> float:
        return len(self.latencies_s) / self.seconds

    def quantile(self, share: float) -> float:
        if len(self.latencies_s) < 2:
            return self.latencies_s[0]
        return statistics.quantiles(self.latencies_s, n=100, method="inclusive")[
            round(100 * share) - 1
        ]


def requests(number: int, mix: str, size: int, seed: int = 0) -> list[Request]:
    chance = random.Random(seed)
    plain = {"width": size, "height": size, "num_inference_steps": 20, "guidance_scale": 4.0}
    return [
        {"prompt": f"twin peaks {i}", "seed": i} | plain | MIXES[mix](chance) for i in range(number)
    ]


def poisson(wanted: Sequence[Request], per_s: float, seed: int = 0) -> Iterator[Arrival]:
    """The requests, at random moments of such a rate: the same ones for each seed."""
    chance, now = random.Random(seed), 0.0
    for request in wanted:
        now += chance.expovariate(per_s)
        yield Arrival(now, request)


def bursts(wanted: Sequence[Request], number: int, every_s: float) -> Iterator[Arrival]:
    """So many at once, again and again."""
    for i, request in enumerate(wanted):
        yield Arrival(i // number * every_s, request)


def trace(file: Path, size: int) -> Iterator[Arrival]:
    """From a CSV file with the columns arrival_s, num_inference_steps and n."""
    with file.open(newline="") as lines:
        for row in csv.DictReader(lines):
            steps = {"num_inference_steps": int(row["num_inference_steps"])}
            for picture in requests(int(row["n"]), "equal", size):
                yield Arrival(float(row["arrival_s"]), picture | steps)


async def closed_loop(url: str, wanted: Sequence[Request], concurrency: int) -> Outcome:
    """So many clients, each of which asks again as soon as it has its picture."""
    left = iter(wanted)

    async def keep_asking(client: httpx.AsyncClient) -> list[float | None]:
        return [await _ask(client, request) for request in left]

    async with _client(url) as client:
        started = time.perf_counter()
        found = await asyncio.gather(*(keep_asking(client) for _ in range(concurrency)))
        return _outcome([each for some in found for each in some], started)


async def open_loop(url: str, arrivals: Sequence[Arrival]) -> Outcome:
    """Requests come when they come, whatever became of those before."""
    async with _client(url) as client:
        started = time.perf_counter()

        async def come(arrival: Arrival) -> float | None:
            await asyncio.sleep(started + arrival.at_s - time.perf_counter())
            return await _ask(client, arrival.request)

        return _outcome(await asyncio.gather(*map(come, arrivals)), started)


def _client(url: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=url, timeout=900, limits=limits)


async def _ask(client: httpx.AsyncClient, request: Request) -> float | None:
    """Seconds until the picture is there; None where none came."""
    started = time.perf_counter()
    response = await client.post("/imagine", json=request)
    return time.perf_counter() - started if response.status_code == 200 else None


def _outcome(found: Sequence[float | None], started: float) -> Outcome:
    latencies = [each for each in found if each is not None]
    return Outcome(latencies, len(found) - len(latencies), time.perf_counter() - started)
