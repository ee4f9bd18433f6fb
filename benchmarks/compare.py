"""Both doors beside what people would use instead: the same requests, by turns, in one run.

make bench
python benchmarks/compare.py --systems service/openvino template/openvino --size 256
python benchmarks/compare.py --mix all --loads closed-64 poisson-0.9 --json found.json
python benchmarks/compare.py --num-cpus 1 --size 256 --limit --systems template

Everything runs on this machine: the client, and one system at a time. A load is

closed-N       N callers, each of which asks again when it has its picture; at least 4 calls each
poisson-SHARE  calls at random moments, at that share of what the service has just rendered a second
burst-N        N at once, again and again, at nine tenths of that
trace-FILE     a CSV file as example_trace.csv, of which the calls for text-to-image are asked
dataset-N      N calls as the rows of a dataset: the bulk job, which is ours there

A system is one of alternatives.py, by itself, with a backend, or with a replica, process or thread
for each core (template/each-core); or this service with its denoiser compiled, with forwards that
are not recorded (service/not-recorded), or with an engine for each core (service/each-core); a
dataset is rendered by bulk jobs of these kinds, as far as they have them. Beside them stand, with
--bare, scripts (bare.py) and, with --limit, what the hardware could do (limit.py, measured between
the systems); where a system has something for each core, these are also there with a process for
each. Where steps differ, pictures a second are of the mean number of steps. Seconds are those of a
machine clock: a system is no slower for having its turn while others slow the machine down. With
`--num-cpus 1` each computes in one thread (threads: in four), and Ray and the callers have the
other cores.
"""

import argparse
import asyncio
import itertools
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from alternatives import ALTERNATIVES, BACKENDS
from arguments import add_num_cpus
from bare import SQUARE_MIXES, Ran
from bulk_throughput import finished_by_job, steady_rate
from limit import LIMIT, Limits
from local_service import local_service
from machine_clock import MachineClock
from ports import free_port
from workloads import (
    MEAN_STEPS,
    MIXES,
    Client,
    Outcome,
    bursts,
    calls,
    num_pictures,
    poisson,
    quantile,
    trace,
)

from serving.serve_environment import SERVE_ENVIRONMENT
from shared.config import Compiler
from shared.cpu_workers import CPU_WORKER

OURS = "service"
BULK = "bulk job"
EACH_CORE = "each-core"
NOT_RECORDED = "not-recorded"
MIX_WORDS = {
    "equal": "20 steps",
    "steps": "10 to 50 steps",
    "all": "10 to 50 steps, several sizes and guidances",
    "several": "20 steps, 1 to 8 pictures a call",
}
_LOADS = ["closed-1", "closed-16", "poisson-0.9", "dataset-128"]
_START_WITHIN_S = 300


@dataclass(frozen=True)
class Found:
    """Of a system under a load, in one round."""

    system: str
    load: str
    round: int
    pictures_per_s: float
    p50_s: float | None
    p95_s: float | None
    num_failed: int
    limits: dict[str, float] = field(default_factory=dict)  # just before and after it


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what it started ends with it
    options = _parse()
    found: list[Found] = []
    with MachineClock() as clock, limits(options, clock) as measure:
        begun_s = time.perf_counter()
        for number in range(options.rounds):
            for each in one_round(options, number, measure, clock):
                found.append(each)
                print(line(each), flush=True)
                if options.json:  # nothing is lost where it breaks off
                    record = _record(options, found, clock.speed(begun_s, time.perf_counter()))
                    options.json.write_text(json.dumps(record, indent=1) + "\n")
        speed = clock.speed(begun_s, time.perf_counter())
    print(table(found))
    print(f"\nSeconds of the machine as it was at the start; it had {speed:.0%} of that speed.")
    if options.plot:
        plot(found, options.plot, f"{options.size} px, {MIX_WORDS[options.mix]}")


@contextmanager
def limits(
    options: argparse.Namespace, clock: MachineClock
) -> Iterator[Callable[[], dict[str, float]]]:
    """Measures pictures a second, by kind of limit; none without --limit."""
    if not options.limit:
        yield dict
        return
    arguments = [f"--mix={options.mix}", f"--size={options.size}"]
    environment = os.environ | _environment(options)
    each_core = _is_any_each_core(options)
    with closing(Limits(arguments, environment, clock, each_core=each_core)) as found:
        yield found.rates


def _is_any_each_core(options: argparse.Namespace) -> bool:
    return any(system.endswith(f"/{EACH_CORE}") for system in options.systems)


def one_round(
    options: argparse.Namespace,
    number: int,
    measure: Callable[[], dict[str, float]],
    clock: MachineClock,
) -> Iterator[Found]:
    """Each with the limits before and after its system, and these by themselves."""
    before, seen = measure(), []
    for of_a_system in systems(options, number, clock):
        after = measure()
        seen.append({name: (before[name] + after[name]) / 2 for name in after})
        for each in of_a_system:
            yield replace(each, limits=seen[-1])
        before = after
    for name in before:
        rate = statistics.mean(each[name] for each in seen)
        for load in options.loads:
            if not is_open(load):
                yield Found(name, load, number, rate, None, None, 0)


def systems(options: argparse.Namespace, number: int, clock: MachineClock) -> Iterator[list[Found]]:
    """What each of them does, as soon as it is found."""
    datasets = [load for load in options.loads if is_dataset(load)]
    served = [load for load in options.loads if not is_dataset(load)]
    mean_steps, capacity = MEAN_STEPS[options.mix], 0.0
    most = max([8, *(int(load.removeprefix("closed-")) for load in served if is_closed(load))])
    for system in [OURS, *options.systems] if served else []:
        with running(system, options) as url:
            takes_n = not system.startswith(OURS)
            client = Client(url, mean_steps, takes_n=takes_n, now=clock.now)
            asyncio.run(client.closed_loop(calls(most, options.mix, options.size), most))
            its = []
            for load in served:
                outcome = asyncio.run(run(client, load, capacity, number, options))
                if system == OURS and is_closed(load):
                    capacity = max(capacity, outcome.pictures_per_s)
                its.append(_found(system, load, number, outcome))
        yield its
    ours = [OURS, *(each for each in options.systems if each.startswith(f"{OURS}/"))]
    ours = [each for each in ours if not each.endswith(NOT_RECORDED)]  # jobs have no such option
    for system, load in itertools.product(ours, datasets):
        rate = bulk_rate(load, system.partition("/")[2], options, clock)
        yield [Found(system.replace(OURS, BULK), load, number, rate, None, None, 0)]
    if options.bare:
        yield bare(options, number, clock)


def is_dataset(load: str) -> bool:
    return load.startswith("dataset-")


def is_closed(load: str) -> bool:
    return load.startswith("closed-")


def is_open(load: str) -> bool:
    """Whether its pictures a second are the callers' affair."""
    return not is_closed(load) and not is_dataset(load)


def num_rows(load: str) -> int:
    return int(load.removeprefix("dataset-"))


def bulk_rate(load: str, kind: str, options: argparse.Namespace, clock: MachineClock) -> float:
    arguments = [f"--model={options.model}", f"--dtype={options.dtype}"]
    if kind == EACH_CORE:
        arguments += ["--num-cpus=1", f"--concurrency={os.cpu_count() or 1}"]
    elif options.num_cpus != os.cpu_count():  # else all that there is, and all GPUs
        arguments.append(f"--num-cpus={options.num_cpus}")
    if kind and kind != EACH_CORE:
        arguments.append(f"--compile={kind}")
    rows = calls(num_rows(load), options.mix, options.size, seed=1)
    with tempfile.TemporaryDirectory(prefix="sdr-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        named = [{"num_images_per_prompt": row.pop("n", 1)} | row for row in rows]
        pq.write_table(pa.Table.from_pylist(named), folder / "prompts.parquet")
        finished = finished_by_job(folder, folder / "out", arguments)
        return steady_rate(finished, MEAN_STEPS[options.mix], clock)


def bare(options: argparse.Namespace, number: int, clock: MachineClock) -> list[Found]:
    """What bare.py found, beside every load but open ones; its latencies beside one caller's."""
    loads = [load for load in options.loads if not is_open(load)]
    found = _bare(options, loads, number, clock)
    if _is_any_each_core(options):  # a caller who is alone has one script
        loads = [load for load in loads if load != "closed-1"]
        found += _bare(options, loads, number, clock, f"/{EACH_CORE}", os.cpu_count() or 1)
    return found


def _bare(
    options: argparse.Namespace,
    loads: Sequence[str],
    number: int,
    clock: MachineClock,
    kind: str = "",
    workers: int = 1,
) -> list[Found]:
    """By so many scripts at once, each with all of the calls.

    So their lists are as long as if a dataset were sorted before it is shared out.
    """
    command = [sys.executable, Path(__file__).with_name("bare.py"), f"--mix={options.mix}"]
    command += [f"--size={options.size}", f"--calls={options.calls}", "--rows"]
    command += [str(num_rows(load)) for load in loads if is_dataset(load)]
    environment = os.environ | _environment(options)
    if workers > 1:
        environment["OMP_NUM_THREADS"] = "1"
    scripts = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(workers)
    ]
    try:
        printed = [script.communicate()[0] for script in scripts]
    finally:
        for script in scripts:
            script.kill()
    if any(script.returncode for script in scripts):
        raise SystemExit("bare.py failed")
    results = [json.loads(each) for each in printed]
    found = []
    for name, load in itertools.product(("pipe", "pipe-list"), loads):
        is_list = name == "pipe-list" and is_dataset(load)
        ran = [
            Ran(*(each["rows"][str(num_rows(load))] if is_list else each[name])) for each in results
        ]
        rate = sum(each.pictures_per_s(clock) for each in ran)
        is_alone = (name, load) == ("pipe", "closed-1")
        delays = ran[0].latencies_s(clock) if is_alone else []
        found.append(Found(name + kind, load, number, rate, *_quantiles(delays), 0))
    return found


async def run(
    client: Client, load: str, capacity: float, round: int, options: argparse.Namespace
) -> Outcome:
    """Each load and round has calls of its own, the same ones for all systems."""
    kind, _, value = load.partition("-")
    number = max(options.calls, 4 * int(value)) if kind == "closed" else options.calls
    seed = 1 + round * len(options.loads) + options.loads.index(load)
    wanted = calls(number, options.mix, options.size, seed)
    if kind == "closed":
        return await client.closed_loop(wanted, int(value))
    if kind == "trace":
        return await client.open_loop([*trace(Path(value), options.size)])
    if not capacity:
        raise SystemExit(f"{load}: a closed load has to come before it, to tell the capacity")
    mean_steps = MEAN_STEPS[options.mix]
    calls_per_s = capacity / statistics.mean(num_pictures(call, mean_steps) for call in wanted)
    if kind == "poisson":
        return await client.open_loop([*poisson(wanted, float(value) * calls_per_s, seed)])
    return await client.open_loop([*bursts(wanted, int(value), 0.9 * calls_per_s)])


@contextmanager
def running(system: str, options: argparse.Namespace) -> Iterator[str]:
    """The system's address, once it has rendered a picture."""
    name, _, backend = system.partition("/")
    if name == OURS:
        args: dict[str, Any] = {"model": {"name": options.model, "dtype": options.dtype}}
        args["num_cpus"] = options.num_cpus
        if backend == EACH_CORE:
            args |= {"num_generators": os.cpu_count() or 1, "num_cpus": 1}
        elif backend == NOT_RECORDED:
            args["engine"] = {"record_forwards": False}
        elif backend:
            args["engine"] = {"compile": backend}
        with local_service(**args) as service:
            yield service.url
        return
    port = free_port()
    with tempfile.TemporaryDirectory(
        prefix="sdr-", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:
        log = Path(folder, "log")
        command = [sys.executable, Path(__file__).with_name("alternatives.py"), name]
        command += [f"--port={port}"]
        # Serve as it comes, without what ours is set to.
        environment = {
            name: value for name, value in os.environ.items() if name not in SERVE_ENVIRONMENT
        }
        environment |= CPU_WORKER | _environment(options) | {"RAY_TMPDIR": folder}
        if backend == EACH_CORE:
            command += [f"--workers={os.cpu_count()}"]
            environment["OMP_NUM_THREADS"] = "1"
        elif backend:
            command += [f"--backend={backend}"]
        server = subprocess.Popen(
            command,
            env=environment,
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait_for(f"http://127.0.0.1:{port}", server, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                server.wait(20)
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)


def _environment(options: argparse.Namespace) -> dict[str, str]:
    """As alternatives.py and the libraries of all but our own service and job read it."""
    return {
        "BENCHMARK_MODEL": options.model,
        "BENCHMARK_DTYPE": options.dtype,
        "OMP_NUM_THREADS": str(options.num_cpus),
    }


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_WITHIN_S
    (call,) = calls(1, "equal", 64)
    while (left_s := deadline - time.monotonic()) > 0 and server.poll() is None:
        try:
            if httpx.post(f"{url}/imagine", json=call, timeout=left_s).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise RuntimeError(log.read_text()[-4000:])


def _found(system: str, load: str, number: int, outcome: Outcome) -> Found:
    delays = _quantiles(outcome.latencies_s)
    return Found(system, load, number, outcome.pictures_per_s, *delays, outcome.num_failed)


def _quantiles(latencies_s: Sequence[float]) -> tuple[float | None, float | None]:
    """The median and the p95, where there are any."""
    if not latencies_s:
        return None, None
    return quantile(latencies_s, 0.5), quantile(latencies_s, 0.95)


def line(found: Found) -> str:
    delays = ""
    if found.p50_s is not None and found.p95_s is not None:
        delays = f", p50 {found.p50_s:.2f} s, p95 {found.p95_s:.2f} s"
    return (
        f"round {found.round + 1}, {found.load}: {found.system} {found.pictures_per_s:.2f} "
        f"pictures/s{delays}, {found.num_failed} failed"
    )


def table(found: Sequence[Found]) -> str:
    """Medians over the rounds, with least and most, and of the rounds' own ratios."""
    rows = [
        f"| load | system | pictures/s | ours / its | of {LIMIT} | of the fastest limit | p50 s | "
        "p95 s | ours / its |",
        "|---" * 9 + "|",
    ]
    for load in dict.fromkeys(each.load for each in found):
        our = BULK if is_dataset(load) else OURS
        ours = {each.round: each for each in found if (each.system, each.load) == (our, load)}
        for system in dict.fromkeys(each.system for each in found if each.load == load):
            its = [each for each in found if (each.system, each.load) == (system, load)]
            pairs = [(ours[each.round], each) for each in its]
            limited = [each for each in its if each.limits and not is_open(load)]
            columns = [
                [its.pictures_per_s for _, its in pairs],
                [
                    our.pictures_per_s / its.pictures_per_s
                    for our, its in pairs
                    if its.pictures_per_s  # none, where all failed
                ],
                [its.pictures_per_s / its.limits[LIMIT] for its in limited],
                [its.pictures_per_s / max(its.limits.values()) for its in limited],
                [its.p50_s for _, its in pairs],
                [its.p95_s for _, its in pairs],
                [our.p95_s / its.p95_s for our, its in pairs if our.p95_s and its.p95_s],
            ]
            cells = " | ".join(_middle(column) for column in columns)
            rows.append(f"| {load} | {system} | {cells} |")
    return "\n".join(rows)


def plot(found: Sequence[Found], file: Path, title: str) -> None:
    """A panel a load: pictures a second where callers wait for one another, else the p95."""
    from matplotlib import pyplot  # the bench extra; only this needs it

    loads = list(dict.fromkeys(each.load for each in found))
    most = max(len({each.system for each in found if each.load == load}) for load in loads)
    size = 4 * len(loads), max(3, 1.2 + 0.2 * most)
    figure, panels = pyplot.subplots(
        1, len(loads), figsize=size, layout="constrained", squeeze=False
    )
    for panel, load in zip(panels[0], loads, strict=True):
        field = "pictures_per_s" if load.startswith(("closed", "dataset")) else "p95_s"
        values: dict[str, list[float]] = {}
        for each in found:
            if each.load == load and (value := getattr(each, field)) is not None:
                values.setdefault(each.system, []).append(value)
        middle = [statistics.median(each) for each in values.values()]
        spread = [
            [value - min(each) for value, each in zip(middle, values.values(), strict=True)],
            [max(each) - value for value, each in zip(middle, values.values(), strict=True)],
        ]
        is_ours = [name.startswith((OURS, BULK)) for name in values]
        colours = ["#b5451b" if each else "#8a9199" for each in is_ours]
        panel.barh(list(values), middle, xerr=spread, color=colours)
        panel.set_title(load)
        panel.set_xlabel("pictures/s" if field == "pictures_per_s" else "p95 in s")
        panel.spines[["top", "right"]].set_visible(False)
        panel.invert_yaxis()
    figure.suptitle(title)
    figure.savefig(file, dpi=120)


def _middle(values: Sequence[float | None]) -> str:
    """And the spread, where there is any."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    spread = f" ({min(known):.2f} to {max(known):.2f})" if len(known) > 1 else ""
    return f"{statistics.median(known):.2f}{spread}"


def _record(options: argparse.Namespace, found: Sequence[Found], speed: float) -> dict[str, object]:
    """All that was found, and where; the machine's speed, in whose seconds it is told."""
    return {
        "machine": f"{torch.cpu.get_capabilities()['cpu_name']}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "options": {
            name: value for name, value in vars(options).items() if name not in ("json", "plot")
        },
        "speed": speed,
        "found": [asdict(each) for each in found],
    }


def _system(text: str) -> str:
    systems = [f"{OURS}/{kind}" for kind in (EACH_CORE, NOT_RECORDED, *get_args(Compiler))]
    systems += ALTERNATIVES
    kinds = [EACH_CORE, *BACKENDS]
    systems += [f"{name}/{kind}" for name in ALTERNATIVES for kind in kinds]
    if text not in systems:
        raise argparse.ArgumentTypeError(f"{text} is none of {', '.join(systems)}")
    return text


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--systems", nargs="*", type=_system, default=[*ALTERNATIVES])
    parser.add_argument("--bare", action="store_true", help="and scripts without any service")
    parser.add_argument("--limit", action="store_true", help="and bare forwards, between systems")
    parser.add_argument("--loads", nargs="+", default=_LOADS)
    parser.add_argument("--mix", choices=MIXES, default="steps")
    parser.add_argument("--size", type=int, default=128, help="pixels a side (%(default)s)")
    parser.add_argument("--calls", type=int, default=64, help="of each load (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--model", default="postcard", help="(%(default)s)")
    parser.add_argument("--dtype", default="auto", help="(%(default)s)")
    add_num_cpus(parser, "of each system, so many threads; of one for each core, one")
    parser.add_argument("--plot", type=Path, help="a PNG file to draw it into")
    parser.add_argument("--json", type=Path, help="a file for all that was found")
    options = parser.parse_args()
    if (options.bare or options.limit) and options.mix not in SQUARE_MIXES:
        parser.error("--bare, --limit: of one size, and the calls of --mix all have several")
    return options


if __name__ == "__main__":
    main()
