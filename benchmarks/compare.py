"""The service beside what people would use instead: the same requests, by turns, in one run.

python benchmarks/compare.py
python benchmarks/compare.py --mix all --size 256 --loads closed-64 poisson-0.9 --json found.json

Everything runs on this machine: the client, and one system at a time. A load is

closed-N       N callers, each of which asks again when it has its picture
poisson-SHARE  calls at random moments, at that share of what the service has just rendered a second
burst-N        N at once, again and again, at nine tenths of that
trace-FILE     a CSV file with the columns arrival_s, num_inference_steps and n
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
from alternatives import ALTERNATIVES
from local_service import free_port, local_service
from workloads import MIXES, Client, Outcome, bursts, calls, poisson, trace

from shared.cpu_workers import CPU_WORKER

OURS = "this service"
_START_WITHIN_S = 120


@dataclass(frozen=True)
class Found:
    """Of a system under a load, in one round."""

    system: str
    load: str
    round: int
    pictures_per_s: float
    p50_s: float
    p95_s: float
    num_failed: int


def main() -> None:
    options = _parse()
    found: list[Found] = []
    for number in range(options.rounds):
        capacity = 0.0
        for system in [OURS, *options.systems]:
            with running(system, options.dtype) as url:
                client = Client(url, takes_n=system != OURS)
                asyncio.run(client.closed_loop(calls(8, options.mix, options.size), 8))
                for load in options.loads:
                    outcome = asyncio.run(run(client, load, capacity, options))
                    if system == OURS:
                        capacity = max(capacity, outcome.pictures_per_s)
                    found.append(_found(system, load, number, outcome))
                    print(line(found[-1]), flush=True)
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in found], indent=1) + "\n")


async def run(client: Client, load: str, capacity: float, options: argparse.Namespace) -> Outcome:
    kind, _, value = load.partition("-")
    wanted = calls(options.calls, options.mix, options.size, seed=1)
    if kind == "closed":
        return await client.closed_loop(wanted, int(value))
    if kind == "trace":
        return await client.open_loop([*trace(Path(value), options.size)])
    if not capacity:
        raise SystemExit(f"{load}: a closed load has to come before it, to tell the capacity")
    if kind == "poisson":
        return await client.open_loop([*poisson(wanted, float(value) * capacity)])
    return await client.open_loop([*bursts(wanted, int(value), 0.9 * capacity)])


@contextmanager
def running(system: str, dtype: str) -> Iterator[str]:
    """The system's address, once it has rendered a picture."""
    if system == OURS:
        with local_service(model={"dtype": dtype}) as service:
            yield service.url
        return
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="sdr-", dir="/tmp", ignore_cleanup_errors=True) as name:
        log = Path(name, "log")
        server = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("alternatives.py"), system, f"--port={port}"],
            env=os.environ | CPU_WORKER | {"BENCHMARK_DTYPE": dtype, "RAY_TMPDIR": name},
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait_for(f"http://127.0.0.1:{port}", server, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                server.wait(20)
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_WITHIN_S
    (call,) = calls(1, "equal", 64)
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if httpx.post(f"{url}/imagine", json=call, timeout=60).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise RuntimeError(log.read_text()[-4000:])


def _found(system: str, load: str, number: int, outcome: Outcome) -> Found:
    p50, p95 = (outcome.quantile(share) for share in (0.5, 0.95))
    return Found(system, load, number, outcome.pictures_per_s, p50, p95, outcome.num_failed)


def line(found: Found) -> str:
    return (
        f"round {found.round + 1}, {found.load}: {found.system} {found.pictures_per_s:.2f} "
        f"pictures/s, p50 {found.p50_s:.2f} s, p95 {found.p95_s:.2f} s, {found.num_failed} failed"
    )


def table(found: Sequence[Found]) -> str:
    """Medians over the rounds, and of the rounds' own ratios to this service."""
    rows = [
        "| load | system | pictures/s | ours / its | p50 s | p95 s | ours / its |",
        "|---" * 7 + "|",
    ]
    for load in dict.fromkeys(each.load for each in found):
        ours = {each.round: each for each in found if (each.system, each.load) == (OURS, load)}
        for system in dict.fromkeys(each.system for each in found):
            its = [each for each in found if (each.system, each.load) == (system, load)]
            speeds = [ours[each.round].pictures_per_s / each.pictures_per_s for each in its]
            delays = [ours[each.round].p95_s / each.p95_s for each in its]
            values = [
                [each.pictures_per_s for each in its],
                speeds,
                [each.p50_s for each in its],
                [each.p95_s for each in its],
                delays,
            ]
            cells = " | ".join(f"{statistics.median(each):.2f}" for each in values)
            rows.append(f"| {load} | {system} | {cells} |")
    return "\n".join(rows)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--systems", nargs="+", choices=ALTERNATIVES, default=[*ALTERNATIVES])
    parser.add_argument("--loads", nargs="+", default=["closed-1", "closed-16", "poisson-0.9"])
    parser.add_argument("--mix", choices=MIXES, default="steps")
    parser.add_argument("--size", type=int, default=128, help="pixels a side (%(default)s)")
    parser.add_argument("--calls", type=int, default=64, help="of each load (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--dtype", default="float32", help="(%(default)s)")
    parser.add_argument("--json", type=Path, help="a file for all that was found")
    return parser.parse_args()


if __name__ == "__main__":
    main()
