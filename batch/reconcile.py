"""Reconcile: hold the metadata against the plan, in one pass that keeps no more than it counts."""

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from batch.image_store import INDEX
from batch.output_folder import OutputFolder
from batch.plan import Plan, shard_file
from batch.records import METADATA_SCHEMA, dataset_rows
from batch.render import metadata_file
from shared.config import Settings

_NUM_PICTURES = 60
_NUM_FAILED = 100
# Further values of a parameter, or reasons of a failure, are not told apart.
_NUM_VALUES = 1000
# Parts of time with pictures in them.
_NUM_PARTS = 10_000
_ROWS_PER_GROUP = 64 * 1024


class Summary(Settings):
    """The run as it stands in its folder, counted from the files."""

    num_planned: int
    num_rejected: int
    num_ok: int
    num_error: int
    num_missing: int
    num_unexpected: int  # in the metadata, not in the plan, or there twice
    num_bytes: int
    render_s: float  # summed over pictures, which overlap

    @property
    def is_exact(self) -> bool:
        """Every planned picture has exactly one row of metadata."""
        return self.num_missing == 0 and self.num_unexpected == 0


class Timeline:
    """Pictures by the second in which they were finished; of a long run by some seconds."""

    def __init__(self) -> None:
        self._part_s = 1
        self._counts = Counter[int]()

    def add(self, time: datetime) -> None:
        self._counts[int(time.timestamp()) // self._part_s] += 1
        if len(self._counts) > _NUM_PARTS:
            self._part_s, self._counts = 2 * self._part_s, _joined(self._counts)

    def rates(self, max_parts: int) -> tuple[int, list[float]]:
        """Seconds in a part, and pictures per second in each from the first to the last."""
        part_s, counts = self._part_s, self._counts
        while counts and max(counts) - min(counts) >= max_parts:
            part_s, counts = 2 * part_s, _joined(counts)
        parts = range(min(counts), max(counts) + 1) if counts else range(0)
        return part_s, [counts[part] / part_s for part in parts]


def _joined(counts: Counter[int]) -> Counter[int]:
    """Two parts of time as one."""
    joined = Counter[int]()
    for part, number in counts.items():
        joined[part // 2] += number
    return joined


@dataclass
class Survey:
    """What there is to say of a run's pictures, and some of them."""

    every: int  # of so many pictures one is kept
    totals: Counter[str] = field(default_factory=Counter)
    render_s: float = 0.0
    parameters: dict[str, Counter[str]] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    timeline: Timeline = field(default_factory=Timeline)
    pictures: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)

    def add(self, row: dict[str, Any]) -> None:
        self.timeline.add(row["finished_at"])
        self.totals[row["status"]] += 1
        if row["status"] == "ok":
            if self.totals["ok"] % self.every == 0 and len(self.pictures) < _NUM_PICTURES:
                self.pictures.append(row)
            self.totals["bytes"] += row["num_bytes"]
            self.render_s += row["render_s"]
        else:
            _count(self.reasons, row["error"])
            if len(self.failed) < _NUM_FAILED:
                self.failed.append(row)
        for name, value in _parameters(row).items():
            _count(self.parameters.setdefault(name, Counter()), value)


def reconcile(plan: Plan, output: OutputFolder) -> tuple[Summary, Survey]:
    """Count what is in the folder.

    Pictures that are files get the one metadata file that dataset loaders look for.
    """
    survey = Survey(every=max(1, plan.num_planned // _NUM_PICTURES))
    with _Index(output) as index:
        planned = output.read_tables([*map(shard_file, plan.shards)])
        rendered = output.find_tables([*map(metadata_file, plan.shards)])
        for shard, rows, metadata in zip(plan.shards, planned, rendered, strict=True):
            expected = Counter(rows.column("image_id").to_pylist())
            found = Counter(metadata.column("image_id").to_pylist() if metadata else ())
            survey.totals["missing"] += (expected - found).total()
            survey.totals["unexpected"] += (found - expected).total()
            if metadata is None:
                continue
            if plan.settings.format == "files":
                index.add(dataset_rows(metadata))
            for row in metadata.select(METADATA_SCHEMA.names).to_pylist():
                survey.add(row | {"shard": shard})
    totals = survey.totals
    summary = Summary(
        num_planned=plan.num_planned,
        num_rejected=plan.num_rejected,
        num_ok=totals["ok"],
        num_error=totals["error"],
        num_missing=totals["missing"],
        num_unexpected=totals["unexpected"],
        num_bytes=totals["bytes"],
        render_s=round(survey.render_s, 3),
    )
    return summary, survey


class _Index:
    """The metadata of all pictures that are files, in one file beside them."""

    def __init__(self, output: OutputFolder) -> None:
        self._output = output
        self._open = ExitStack()
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._write()
        self._open.__exit__(kind, error, traceback)

    def add(self, rows: pa.Table) -> None:
        self._waiting.append(rows)
        if sum(table.num_rows for table in self._waiting) >= _ROWS_PER_GROUP:
            self._write()

    def _write(self) -> None:
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting)
        if self._writer is None:
            stream = self._open.enter_context(self._output.writing(INDEX))
            self._writer = self._open.enter_context(pq.ParquetWriter(stream, table.schema))
        self._writer.write_table(table, row_group_size=_ROWS_PER_GROUP)
        self._waiting = []


def _parameters(row: dict[str, Any]) -> dict[str, str]:
    return {
        "size": f"{row['width']}×{row['height']}",
        "steps": str(row["num_inference_steps"]),
        "guidance": f"{row['guidance_scale']:g}",
        "noise scheduler": row["scheduler"],
    }


def _count(counter: Counter[str], value: str) -> None:
    counter[value if value in counter or len(counter) < _NUM_VALUES else "others"] += 1
