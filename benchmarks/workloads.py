"""Calls and their arrivals, and a client that brings them to a service."""

import asyncio
import csv
import itertools
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

# What is asked of /imagine, and beside it `n`: how many such pictures, each of another seed.
Call = dict[str, Any]

MIXES: dict[str, Callable[[random.Random], Call]] = {
    "equal": lambda chance: {},
    "steps": lambda chance: {"num_inference_steps": chance.randint(10, 50)},
    "all": lambda chance: {
        "num_inference_steps": chance.randint(10, 50),
        "guidance_scale": round(chance.uniform(2, 7), 2),
        "width": chance.choice((128, 192, 256)),
        "height": chance.choice((128, 192, 256)),
    },
    # In traces of real services 42 % of the calls ask for several pictures.
    "several": lambda chance: {"n": chance.choices((1, 2, 4, 8), (58, 14, 14, 14))[0]},
}


# Mean steps of a mix. Rates are told in pictures of so many, since each run has other calls of it.
MEAN_STEPS = {"equal": 20, "steps": 30, "all": 30, "several": 20}
# Of the wall's: by so much a call may come too late on a clock that goes faster all at once.
_NEAR_S = 0.02


@dataclass(frozen=True)
class Arrival:
    at_s: float
    call: Call


@dataclass(frozen=True)
class Outcome:
    """Of one run: seconds of each call that was answered, and pictures a second."""

    latencies_s: list[float]
    num_failed: int
    pictures_per_s: float


@dataclass(frozen=True)
class Answer:
    is_good: bool
    num_pictures: float
    at_s: float
    seconds: float


def outcome(answers: Sequence[Answer], begun: float, num_callers: int = 0) -> Outcome:
    """Of a run that began then. `num_callers` are those of a closed loop.

    Of these, calls are counted from the answer by which each has had one, to the answer after which
    the first finds nothing more to ask: before and after that it is filled and drained. With fewer
    than four times as many calls as callers it is the whole run.
    """
    answers = sorted(answers, key=lambda answer: answer.at_s)
    num_failed = sum(not answer.is_good for answer in answers)
    if num_callers and len(answers) >= 4 * num_callers:
        begun = answers[num_callers - 1].at_s
        answers = answers[num_callers : len(answers) - num_callers + 1]
    good = [answer for answer in answers if answer.is_good]
    return Outcome(
        latencies_s=[answer.seconds for answer in good],
        num_failed=num_failed,
        pictures_per_s=sum(each.num_pictures for each in good) / (answers[-1].at_s - begun),
    )


def quantile(latencies_s: Sequence[float], share: float) -> float:
    """The only one where there are no more."""
    if len(latencies_s) == 1:
        return latencies_s[0]
    percentiles = statistics.quantiles(latencies_s, n=100, method="inclusive")
    return percentiles[round(100 * share) - 1]


def calls(number: int, mix: str, size: int, seed: int = 0) -> list[Call]:
    """The same ones for each seed, and no prompt twice."""
    chance = random.Random(seed)
    plain = {"width": size, "height": size, "num_inference_steps": 20, "guidance_scale": 4.0}
    return [
        {"prompt": f"twin peaks {seed}, {i}", "seed": 100 * i} | plain | MIXES[mix](chance)
        for i in range(number)
    ]


def num_pictures(call: Call, mean_steps: int) -> float:
    """How many pictures of so many steps it comes to."""
    return float(call.get("n", 1) * call["num_inference_steps"] / mean_steps)


def poisson(wanted: Sequence[Call], calls_per_s: float, seed: int = 0) -> Iterator[Arrival]:
    """At random moments, at such a rate in all: the same ones for each seed."""
    chance = random.Random(seed)
    moments = [*itertools.accumulate(chance.expovariate(1) for _ in wanted)]
    pace = len(wanted) / calls_per_s / moments[-1]
    for moment, call in zip(moments, wanted, strict=True):
        yield Arrival(pace * moment, call)


def bursts(wanted: Sequence[Call], number: int, calls_per_s: float) -> Iterator[Arrival]:
    """So many at once, and again when the rate has them rendered."""
    for i, call in enumerate(wanted):
        yield Arrival(i // number * number / calls_per_s, call)


def trace(file: Path, size: int) -> Iterator[Arrival]:
    """From a CSV file with the columns arrival_s, num_inference_steps, n and type.

    Not all systems edit pictures, so only calls of the type text-to-image are brought.
    """
    (plain,) = calls(1, "equal", size)
    with file.open(newline="") as lines:
        for i, row in enumerate(csv.DictReader(lines)):
            if row["type"] == "text-to-image":
                numbers = {name: int(row[name]) for name in ("num_inference_steps", "n")}
                yield Arrival(float(row["arrival_s"]), plain | {"seed": 100 * i} | numbers)


class Client:
    """Of one system, which is asked for the `n` pictures of a call all at once.

    In one request, if it `takes_n`. Pictures are counted as such of `mean_steps`. Each request has
    these `headers`. All seconds are those of `now`, which need not be a clock's on the wall.
    """

    def __init__(
        self,
        url: str,
        mean_steps: int,
        *,
        takes_n: bool = False,
        headers: Mapping[str, str] | None = None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._url, self._mean_steps, self._takes_n = url, mean_steps, takes_n
        self._headers, self._now = headers, now

    async def closed_loop(self, wanted: Sequence[Call], concurrency: int) -> Outcome:
        """So many callers, each of which asks again as soon as it has its pictures."""
        left = iter(wanted)

        async def keep_asking(http: httpx.AsyncClient) -> list[Answer]:
            return [await self._ask(http, call) for call in left]

        async def ask_all(http: httpx.AsyncClient) -> list[Answer]:
            some = await asyncio.gather(*(keep_asking(http) for _ in range(concurrency)))
            return [answer for each in some for answer in each]

        return await self._measured(ask_all, concurrency)

    async def open_loop(self, arrivals: Sequence[Arrival]) -> Outcome:
        """They come when they come, whatever became of those before."""

        async def come(http: httpx.AsyncClient) -> list[Answer]:
            begun, asked = self._now(), []
            for arrival in arrivals:
                while (left_s := begun + arrival.at_s - self._now()) > 0:
                    await asyncio.sleep(min(left_s, _NEAR_S))
                asked.append(asyncio.create_task(self._ask(http, arrival.call)))
            return await asyncio.gather(*asked)

        return await self._measured(come)

    async def _measured(
        self,
        work: Callable[[httpx.AsyncClient], Awaitable[list[Answer]]],
        num_callers: int = 0,
    ) -> Outcome:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=self._url, headers=self._headers, timeout=900, limits=limits
        ) as http:
            begun = self._now()
            return outcome(await work(http), begun, num_callers)

    async def _ask(self, http: httpx.AsyncClient, call: Call) -> Answer:
        begun, number = self._now(), call.get("n", 1)
        one = {name: value for name, value in call.items() if name != "n"}
        singly = [one | {"seed": one["seed"] + i} for i in range(number)]
        bodies = [call] if self._takes_n else singly
        try:
            responses = await asyncio.gather(*(http.post("/imagine", json=body) for body in bodies))
            is_good = all(response.status_code == 200 for response in responses)
        except httpx.HTTPError:
            is_good = False
        now = self._now()
        return Answer(is_good, num_pictures(call, self._mean_steps), now, now - begun)
