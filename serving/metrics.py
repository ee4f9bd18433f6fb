"""What Prometheus sees of a generator: its engine's counters, and how long its pictures took.

Ray prefixes every name with `ray_`, and ends a counter's with `_total`.
"""

from collections.abc import Callable
from typing import NamedTuple

from ray.serve import metrics

from shared.engine import EngineCounters
from shared.request import Timings


class _Sum(NamedTuple):
    """What only grows; `parts` by the value of `tag`."""

    name: str
    description: str
    tag: str
    parts: dict[str, Callable[[EngineCounters], float]]


_SUMS = (
    _Sum(
        "sd_requests",
        "Requests of the engine that ended.",
        "outcome",
        {
            "completed": lambda engine: engine.num_completed,
            "failed": lambda engine: engine.num_failed,
            "cancelled": lambda engine: engine.num_cancelled,
            "expired": lambda engine: engine.num_expired,
        },
    ),
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
        "Rows of the denoiser's forwards; those of no request fill them up.",
        "kind",
        {
            "request": lambda engine: engine.num_rows,
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
        "",
        {"": lambda engine: engine.work_s},
    ),
)

_LEVELS: dict[str, tuple[str, Callable[[EngineCounters], float]]] = {
    "sd_backlog_seconds": (
        "What is left of the work, in seconds of an engine whose forwards are full.",
        lambda engine: engine.backlog_s,
    ),
    "sd_waiting_requests": ("Requests that wait.", lambda engine: engine.num_waiting),
    "sd_running_requests": ("Requests in denoise.", lambda engine: engine.num_in_flight),
    "sd_stalled_seconds": (
        "Since the engine began the step that it is at; 0 while it waits for work.",
        lambda engine: engine.stalled_s,
    ),
    "sd_prompt_cache_bytes": (
        "Encoded prompts that are kept.",
        lambda engine: engine.prompt_cache_bytes,
    ),
}

_TIMES: dict[str, tuple[str, Callable[[Timings], float]]] = {
    "sd_queue_seconds": ("A picture's wait for the engine.", lambda timings: timings.queue_s),
    "sd_render_seconds": ("From its first step to its pixels.", lambda timings: timings.render_s),
    "sd_encode_seconds": ("From pixels to a file.", lambda timings: timings.encode_s),
}
_BOUNDARIES = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]


class GeneratorMetrics:
    """To be created within a replica: Serve tags the metrics with its name."""

    def __init__(self) -> None:
        self._sums = [
            metrics.Counter(each.name, each.description, (each.tag,) if each.tag else ())
            for each in _SUMS
        ]
        self._levels = {name: metrics.Gauge(name, text) for name, (text, _) in _LEVELS.items()}
        self._times = {
            name: metrics.Histogram(name, text, boundaries=_BOUNDARIES)
            for name, (text, _) in _TIMES.items()
        }
        self._before = EngineCounters()

    def update(self, engine: EngineCounters) -> None:
        """What the engine did since the last time, and how it is."""
        for counter, each in zip(self._sums, _SUMS, strict=True):
            for value, part in each.parts.items():
                grown = part(engine) - part(self._before)
                if grown > 0:  # Ray refuses an increment of 0
                    counter.inc(grown, {each.tag: value} if each.tag else {})
        for name, (_, level) in _LEVELS.items():
            self._levels[name].set(level(engine))
        self._before = engine

    def observe(self, timings: Timings) -> None:
        """A picture that is done."""
        for name, (_, time) in _TIMES.items():
            self._times[name].observe(time(timings))
