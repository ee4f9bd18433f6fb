"""How time and memory per picture grow with requests in flight, picture size, and replicas.

python benchmarks/growth.py
python benchmarks/growth.py --plot growth.png

Flat is what they should be: a picture's seconds (of the whole service: time over pictures) at any
number of callers, the seconds of a megapixel and step at any size, the memory of a replica at any
number of them. Seconds are those of a machine clock. Of prompts in a bulk job: bulk_overhead.py.
"""

import argparse
import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from local_service import LocalService, local_service
from machine_clock import MachineClock
from workloads import Call, Client, calls

CALLERS = (1, 4, 16, 64, 256)
SIZES = (64, 128, 256, 512, 1024)
REPLICAS = (1, 2, 4)
_STEPS = 10


@dataclass(frozen=True)
class Point:
    """`unit_s` are seconds of a picture, or of a megapixel and step; memory is the generators'."""

    where: int
    unit_s: float
    megabytes: float


@dataclass(frozen=True)
class Curve:
    name: str
    points: list[Point]


def main() -> None:
    options = _parse()
    with MachineClock() as clock:
        curves = all_curves(clock)
    if options.plot:
        plot(curves, options.plot)


def all_curves(clock: MachineClock) -> list[Curve]:
    curves = []
    with local_service() as service:
        name = "callers at once, 64 px: seconds of a picture"
        curves.append(measured(name, (at_once(service, number, clock) for number in CALLERS)))
    with local_service() as service:  # another: what it has had it keeps
        name = "pixels a side: seconds of a megapixel and step"
        curves.append(measured(name, (of_size(service, size, clock) for size in SIZES)))
    name = "replicas, each with its part of the cores, 64 px: seconds of a picture"
    curves.append(measured(name, (of_replicas(number, clock) for number in REPLICAS)))
    return curves


def measured(name: str, points: Iterable[Point]) -> Curve:
    """Each is told when it is found."""
    print(f"\n{name}")
    curve = Curve(name, [])
    for point in points:
        print(f"{point.where:6}  {point.unit_s:8.4f} s  {point.megabytes:6.0f} MB", flush=True)
        curve.points.append(point)
    return curve


def at_once(service: LocalService, number: int, clock: MachineClock) -> Point:
    rate = _run(service, _calls(max(64, 4 * number), 64), number, clock)
    return Point(number, 1 / rate, _megabytes(service))


def of_size(service: LocalService, size: int, clock: MachineClock) -> Point:
    """Alone in the service, thrice."""
    rate = _run(service, _calls(3, size), 1, clock)
    return Point(size, 1 / rate / (size * size / 1e6) / _STEPS, _megabytes(service))


def of_replicas(number: int, clock: MachineClock) -> Point:
    with local_service(num_generators=number) as service:
        rate = _run(service, _calls(256, 64), 64, clock)
        return Point(number, 1 / rate, _megabytes(service))


def _run(
    service: LocalService, wanted: Sequence[Call], concurrency: int, clock: MachineClock
) -> float:
    """Pictures a second, once the service is warm."""
    client = Client(service.url, _STEPS, now=clock.now)
    asyncio.run(client.closed_loop(wanted[:1], 1))
    outcome = asyncio.run(client.closed_loop(wanted, concurrency))
    assert not outcome.num_failed
    return outcome.pictures_per_s


def _calls(number: int, size: int) -> list[Call]:
    steps = {"num_inference_steps": _STEPS}
    return [call | steps for call in calls(number, "equal", size)]


def _megabytes(service: LocalService) -> float:
    """Of the largest generator."""
    return max(each.memory_info().rss for each in service.processes("Generator")) / 1e6


def plot(curves: Sequence[Curve], file: Path) -> None:
    from matplotlib import pyplot  # the bench extra; only this needs it

    figure, columns = pyplot.subplots(
        2, len(curves), figsize=(4 * len(curves), 4.5), layout="constrained"
    )
    for panels, curve in zip(columns.T, curves, strict=True):
        what, _, seconds = curve.name.partition(": ")
        where = [str(point.where) for point in curve.points]
        values = {
            seconds: [point.unit_s for point in curve.points],
            "MB of a replica": [point.megabytes for point in curve.points],
        }
        for panel, (title, found) in zip(panels, values.items(), strict=True):
            panel.plot(where, found, "o-")
            panel.set_ylim(0, 1.1 * max(found))
            panel.set_title(title, loc="left", fontsize="medium")
            panel.spines[["top", "right"]].set_visible(False)
        panels[-1].set_xlabel(what)
    figure.savefig(file, dpi=120)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", type=Path, help="a PNG file to draw it into")
    return parser.parse_args()


if __name__ == "__main__":
    main()
