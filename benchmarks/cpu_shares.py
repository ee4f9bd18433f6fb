"""Who has the cores while callers ask the service again and again, by kind of process.

Everything runs on this machine, the callers too. What the generators lack, no engine can make up.

python benchmarks/cpu_shares.py
python benchmarks/cpu_shares.py --num-generators 2
"""

import argparse
import asyncio
import os
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
from local_service import local_service
from workloads import MEAN_STEPS, Client, calls

MIX = "steps"


def main() -> None:
    options = _parse()
    wanted = calls(options.calls, MIX, options.size)
    with local_service(num_generators=options.num_generators) as service:
        client = Client(service.url, MEAN_STEPS[MIX])
        asyncio.run(client.closed_loop(wanted[: 2 * options.callers], options.callers))
        before, begun = cpu_seconds(), time.perf_counter()
        found = asyncio.run(client.closed_loop(wanted, options.callers))
        cores_s = (time.perf_counter() - begun) * (os.cpu_count() or 1)
        taken = cpu_seconds()
    taken.subtract(before)
    print(f"{options.callers} callers, {options.size} px: {found.pictures_per_s:.2f} pictures/s")
    for name, seconds in taken.most_common():
        if (share := seconds / cores_s) >= 0.001:
            print(f"{share:7.1%}  {name}")


def cpu_seconds() -> Counter[str]:
    """Of this process and all that it has started."""
    seconds: Counter[str] = Counter()
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds[kind(process)] += times.user + times.system
    return seconds


def kind(process: psutil.Process) -> str:
    """What Ray calls it, or else its program."""
    if process.pid == os.getpid():
        return "the callers"
    command = process.cmdline() or [process.name()]
    if command[0].startswith("ray::"):  # as in ray::ServeReplica:imagine:Generator
        return command[0].strip().rpartition(":")[2].partition(".")[0]
    program = next((each for each in command if each.endswith(".py")), command[0])
    return "/".join(Path(program).parts[-2:])


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=128, help="pixels a side (%(default)s)")
    parser.add_argument("--callers", type=int, default=16, help="(%(default)s)")
    parser.add_argument("--calls", type=int, default=192, help="(%(default)s)")
    parser.add_argument("--num-generators", type=int, default=1, help="(%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
