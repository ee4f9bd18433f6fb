"""Generators killed, a service deployed anew, clients that leave: is a picture lost or changed?

python benchmarks/losses.py

Two generators. The pictures are first rendered undisturbed; each trial asks for the same again.
"""

import argparse
import asyncio
import collections
import contextlib
import hashlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
from local_service import ROOM, LocalService, local_service

NUM_CLIENTS = 8
# So many leave in the last trial, and so many stay.
NUM_LEAVING, NUM_STAYING = 200, 20

Answer = tuple[str, str]  # status, and the picture's SHA-256
Disturbance = Callable[[], Awaitable[object]]


def main() -> None:
    options = _parse()
    with local_service(num_generators=2, cluster_cpus=ROOM) as service:
        asyncio.run(try_everything(service, options))


async def try_everything(service: LocalService, options: argparse.Namespace) -> None:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=service.url, timeout=600, limits=limits) as client:
        expected = await ask_all(client, options.requests)
        say(f"undisturbed: {summary(expected, expected)}")
        await kill(client, expected, service, options.kill_every)
        await deploy(client, expected, service)
        await leave(client, expected)


async def kill(
    client: httpx.AsyncClient, expected: list[Answer], service: LocalService, every_s: float
) -> None:
    killed = set[int]()

    async def kill_one() -> None:
        for victim in service.processes("Generator")[:1]:
            victim.kill()
            killed.add(victim.pid)

    async with again_and_again(kill_one, every_s):
        answers = await ask_all(client, len(expected))
    say(f"kill -9 of {len(killed)} generators, {every_s:g} s apart: {summary(answers, expected)}")


async def deploy(client: httpx.AsyncClient, expected: list[Answer], service: LocalService) -> None:
    number = 0

    async def deploy_another() -> None:
        nonlocal number
        # Another number of places is another version of every replica.
        engine = {"max_queued": 257 + number}
        await asyncio.to_thread(service.deploy, num_generators=2, engine=engine)
        number += 1

    async with again_and_again(deploy_another, every_s=1):
        answers = await ask_all(client, len(expected))
    say(f"serve deploy {number} times: {summary(answers, expected)}")


@contextlib.asynccontextmanager
async def again_and_again(disturb: Disturbance, every_s: float) -> AsyncIterator[None]:
    over = asyncio.Event()

    async def disturb_until_over() -> None:
        while True:
            try:
                await asyncio.wait_for(over.wait(), every_s)
                return
            except TimeoutError:
                await disturb()

    task = asyncio.create_task(disturb_until_over())
    try:
        yield
    finally:
        over.set()
        await task  # the last disturbance is not to reach into the next trial


async def ask_all(client: httpx.AsyncClient, number: int) -> list[Answer]:
    """The pictures of the first seeds, by a few clients that each ask for one at a time."""
    answers: dict[int, Answer] = {}
    seeds = iter(range(number))

    async def ask_again() -> None:
        for seed in seeds:
            answers[seed] = await ask(client, seed)

    await asyncio.gather(*(ask_again() for _ in range(NUM_CLIENTS)))
    return [answers[seed] for seed in range(number)]


async def ask(client: httpx.AsyncClient, seed: int) -> Answer:
    request = {"prompt": "twin peaks", "width": 64, "height": 64, "seed": seed}
    try:
        response = await client.post("/imagine", json=request)
    except httpx.HTTPError as error:
        return type(error).__name__, ""
    return str(response.status_code), hashlib.sha256(response.content).hexdigest()


async def leave(client: httpx.AsyncClient, expected: list[Answer]) -> None:
    """Clients that hang up at random times, among some that stay."""

    async def ask_and_leave(seed: int) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(random.uniform(0, 10)):
                await ask(client, 1_000_000 + seed)

    staying = [asyncio.create_task(ask(client, seed)) for seed in range(NUM_STAYING)]
    await asyncio.gather(*(ask_and_leave(seed) for seed in range(NUM_LEAVING)))
    answers = [await each for each in staying]
    say(
        f"{NUM_LEAVING} clients left; those that stayed: {summary(answers, expected[:NUM_STAYING])}"
    )
    await asyncio.sleep(1)
    # Each answer is that of either generator.
    stats = [(await client.get("/stats")).json() for _ in range(20)]
    taken = max(each["online"]["num_in_flight"] + each["online"]["num_waiting"] for each in stats)
    say(f"  places still taken a second later: {taken}")


def summary(answers: list[Answer], expected: list[Answer]) -> str:
    statuses = dict(collections.Counter(status for status, _ in answers))
    num_equal = sum(a == b for a, b in zip(answers, expected, strict=True))
    return f"answered {statuses}, {num_equal} of {len(answers)} the same bytes"


def say(text: str) -> None:
    print(text, flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=400, help="in each trial (%(default)s)")
    parser.add_argument("--kill-every", type=float, default=5, help="seconds (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
