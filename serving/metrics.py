"""What Prometheus sees of a generator: its engine's counters, and how long its pictures took.

Ray prefixes every name with `ray_`, and ends a counter's with `_total`.
"""

from collections.abc import Callable
from typing import NamedTuple

from ray.serve import metrics

from shared.counters import EngineCounters, Priority, RequestCounters
from shared.request import Timings


class _Sum(NamedTuple):
    """What only grows; `parts` by the value of `tag`."""

    name: str
    description: str
    tag: str
    parts: dict[str, Callable[[EngineCounters], float]]


_OUTCOMES: dict[str, Callable[[RequestCounters], float]] = {
    "completed": lambda requests: requests.num_completed,
    "failed": lambda requests: requests.num_failed,
    "cancelled": lambda requests: requests.num_cancelled,
    "expired": lambda requests: requests.num_expired,
}

_SUMS: tuple[_Sum, ...] = (
    _Sum(
        "sd_forwards",
        "Forwards of the denoiser and of the decoder.",
        "kind",
        {
            "denoise": lambda engine: engine.num_forwards,
            "decode": lambda engine: engine.num_decodes,
        },
    ),
    _Sum(
        "sd_forward_seconds",
        "Seconds in them.",
        "kind",
        {
            "denoise": lambda engine: engine.busy_s - engine.decode_s,
            "decode": lambda engine: engine.decode_s,
        },
    ),
    _Sum(
        "sd_rows",
        "Rows of the denoiser's forwards: of requests, and those that fill them up.",
        "kind",
        {
            "online": lambda engine: engine.online.num_rows,
            "bulk": lambda engine: engine.bulk.num_rows,
            "padding": lambda engine: engine.num_padding_rows,
        },
    ),
    _Sum(
        "sd_switches",
        "How often the denoiser went to requests of other sizes, or of other adapters.",
        "kind",
        {
            "lane": lambda engine: engine.num_lane_switches,
            "adapters": lambda engine: engine.num_adapter_switches,
        },
    ),
    _Sum(
        "sd_prompts",
        "Prompts that were found encoded, or had to be encoded.",
        "result",
        {
            "hit": lambda engine: engine.num_prompt_cache_hits,
            "miss": lambda engine: engine.num_prompt_cache_misses,
        },
    ),
    _Sum(
        "sd_bisections",
        "Forwards that were cut in two because they failed or ran out of memory.",
        "",
        {"": lambda engine: engine.num_bisections},
    ),
    _Sum(
        "sd_work_seconds",
        "Work that came, in seconds of an engine whose forwards are full.",
        "priority",
        {
            "online": lambda engine: engine.online.work_s,
            "bulk": lambda engine: engine.bulk.work_s,
        },
    ),
)
_TIMES: dict[str, tuple[str, Callable[[Timings], float]]] = {
    "sd_queue_seconds": ("A picture's wait for the engine.", lambda timings: timings.queue_s),
    "sd_render_seconds": ("From its first step to its pixels.", lambda timings: timings.render_s),
    "sd_encode_seconds": ("From pixels to a file.", lambda timings: timings.encode_s),
}
_BOUNDARIES = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]

# Of requests of a priority.
_LEVELS: dict[str, tuple[str, Callable[[RequestCounters], float]]] = {
    "sd_backlog_seconds": (
        "What is left of the work, in seconds of an engine whose forwards are full.",
        lambda requests: requests.backlog_s,
    ),
    "sd_waiting_requests": ("Requests that wait.", lambda requests: requests.num_waiting),
    "sd_running_requests": ("Requests in denoise.", lambda requests: requests.num_in_flight),
}

_ENGINE_LEVELS: dict[str, tuple[str, Callable[[EngineCounters], float]]] = {
    "sd_stalled_seconds": (
        "Since the engine began the step that it is at; 0 while it waits for work.",
        lambda engine: engine.stalled_s,
    ),
    "sd_prompt_cache_bytes": (
        "Encoded prompts that are kept.",
        lambda engine: engine.prompt_cache_bytes,
    ),
}


class GeneratorMetrics:
    """To be created within a replica: Serve tags the metrics with its name.

    What is told of requests has the tag `priority`, "online" or "bulk".
    """

    def __init__(self) -> None:
        self._requests = metrics.Counter(
            "sd_requests", "Requests of the engine that ended.", ("outcome", "priority")
        )
        self._sums = [
            metrics.Counter(each.name, each.description, (each.tag,) if each.tag else ())
            for each in _SUMS
        ]
        self._levels = {
            name: metrics.Gauge(name, text, ("priority",)) for name, (text, _) in _LEVELS.items()
        }
        self._engine_levels = {
            name: metrics.Gauge(name, text) for name, (text, _) in _ENGINE_LEVELS.items()
        }
        self._times = {
            name: metrics.Histogram(name, text, _BOUNDARIES, ("priority",))
            for name, (text, _) in _TIMES.items()
        }
        self._before = EngineCounters()

    def update(self, engine: EngineCounters) -> None:
        """What the engine did since the last time, and how it is."""
        for counter, each in zip(self._sums, _SUMS, strict=True):
            for value, part in each.parts.items():
                tags = {each.tag: value} if each.tag else {}
                _grow(counter, part(self._before), part(engine), tags)
        for name, (_, engine_level) in _ENGINE_LEVELS.items():
            self._engine_levels[name].set(engine_level(engine))
        for priority in Priority:
            tags = {"priority": priority.label}
            before, now = self._before.of(priority), engine.of(priority)
            for outcome, number in _OUTCOMES.items():
                _grow(self._requests, number(before), number(now), tags | {"outcome": outcome})
            for name, (_, level) in _LEVELS.items():
                self._levels[name].set(level(now), tags)
        self._before = engine

    def observe(self, timings: Timings, priority: Priority) -> None:
        """A picture that is done."""
        for name, (_, time) in _TIMES.items():
            self._times[name].observe(time(timings), {"priority": priority.label})


def _grow(counter: metrics.Counter, before: float, now: float, tags: dict[str, str]) -> None:
    if now > before:  # Ray refuses an increment of 0
        counter.inc(now - before, tags)
