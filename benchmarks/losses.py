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
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import psutil
from local_service import LocalService, local_service

NUM_CLIENTS = 8
# So many leave in the last trial, and so many stay.
NUM_LEAVING, NUM_STAYING = 200, 20

Answer = tuple[str, str]  # status, and the picture's SHA-256
Disturbance = Callable[[], Awaitable[object]]


def main() -> None:
    options = _parse()
    with local_service(num_generators=2) as service:
        asyncio.run(try_everything(service, options))


async def try_everything(service: LocalService, options: argparse.Namespace) -> None:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=service.url, timeout=600, limits=limits) as client:
        expected = await ask_all(client, options.requests)
        print(f"undisturbed: {options.requests} requests, {summary(expected, expected)}", flush=True)

        killed = collections.Counter[int]()

        async def kill_one() -> None:
            processes = service.processes("Generator")
            if processes:
                victim = random.choice(processes)
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.kill()
                    killed[victim.pid] += 1

        async with again_and_again(kill_one, every_s=options.kill_every):
            answers = await ask_all(client, options.requests)
        print(f"kill -9 of {len(killed)} generators, one every {options.kill_every:g} s: "
              f"{summary(answers, expected)}", flush=True)

        numbers = iter(range(1, 1000))

        async def deploy_another() -> None:
            # Another number of places is another version of every replica.
            engine = {"max_queued": 256 + next(numbers)}
            await asyncio.to_thread(service.deploy, num_generators=2, engine=engine)

        async with again_and_again(deploy_another, every_s=1):
            answers = await ask_all(client, options.requests)
        print(f"serve deploy {next(numbers) - 1} times: {summary(answers, expected)}", flush=True)

        await leave(client, expected, service)


@contextlib.asynccontextmanager
async def again_and_again(disturb: Disturbance, every_s: float) -> AsyncIterator[None]:
    async def disturb_forever() -> None:
        while True:
            await asyncio.sleep(every_s)
            await disturb()

    task = asyncio.create_task(disturb_forever())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


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
    request = {"prompt": "twin peaks", "width": 128, "height": 128, "seed": seed}
    try:
        response = await client.post("/imagine", json=request)
    except httpx.HTTPError as error:
        return type(error).__name__, ""
    return str(response.status_code), hashlib.sha256(response.content).hexdigest()


async def leave(client: httpx.AsyncClient, expected: list[Answer], service: LocalService) -> None:
    """Clients that hang up at random times, among some that stay."""

    async def ask_and_leave(seed: int) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(random.uniform(0, 10)):
                await ask(client, 1_000_000 + seed)

    staying = [asyncio.create_task(ask(client, seed)) for seed in range(NUM_STAYING)]
    await asyncio.gather(*(ask_and_leave(seed) for seed in range(NUM_LEAVING)))
    answers = [await each for each in staying]
    print(f"{NUM_LEAVING} clients left; the {NUM_STAYING} that stayed: "
          f"{summary(answers, expected[:NUM_STAYING])}")
    await asyncio.sleep(2)
    for _ in range(6):
        stats = (await client.get("/stats")).json()
        print({name: stats[name] for name in ("num_in_flight", "num_waiting", "num_cancelled")})


def summary(answers: list[Answer], expected: list[Answer]) -> str:
    statuses = dict(collections.Counter(status for status, _ in answers))
    num_equal = sum(a == b for a, b in zip(answers, expected, strict=True))
    return f"answered {statuses}, {num_equal} of {len(answers)} the same bytes"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=200, help="in each trial (%(default)s)")
    parser.add_argument("--kill-every", type=float, default=5, help="seconds (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
