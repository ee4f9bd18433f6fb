"""Plan: every input row becomes a canonical request in a shard, or a rejected row with its reason.

One pass over the input, in its order, a shard at a time. The same input and settings give the same
plan, so a plan that was interrupted is simply made again.
"""

import hashlib
import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
from pydantic import PositiveInt

from batch.output_folder import LocationUnusable, OutputFolder, resolve
from batch.records import PLAN_SCHEMA, REJECTED_SCHEMA, PlannedImage, to_table
from shared.config import Settings
from shared.errors import InvalidRequest
from shared.model_profile import ModelProfile
from shared.request import ImageRequest, canonical_json, parse_request

MARKER = "plan/run.json"
# Input rows held in memory at once; rejected rows are written in files of up to this many.
_ROWS_AT_ONCE = 1024


class InputUnusable(LocationUnusable):
    """The input is not there, is not Parquet, or has no prompts."""


class DifferentRun(ValueError):
    """The output folder holds another run; `key` says in what it differs."""

    def __init__(self, key: str, there: Any, here: Any) -> None:
        super().__init__(key, there, here)
        self.key = key
        self.there = there
        self.here = here

    def __str__(self) -> str:
        return (
            f"the output folder holds a run with {self.key} = {self.there}, not {self.here}; "
            "choose another folder, or the same settings"
        )


class InputFile(Settings):
    """A file of the input, as it was when the plan was made."""

    name: str
    sha256: str


class RunSettings(Settings):
    """What decides the pictures of a run: a folder holds one of these."""

    input_files: tuple[InputFile, ...]
    model: ModelProfile
    dtype: str
    seed: int
    shard_rows: PositiveInt

    def require_same(self, other: "RunSettings") -> None:
        """Raise DifferentRun for the first key in which `other` differs."""
        here, there = _flat(other.model_dump(mode="json")), _flat(self.model_dump(mode="json"))
        for key in sorted(here.keys() | there.keys()):
            if here.get(key) != there.get(key):
                raise DifferentRun(key, there.get(key), here.get(key))


class Plan(Settings):
    """A finished plan: its settings and what came of the input's rows."""

    settings: RunSettings
    num_planned: int
    num_rejected: int
    num_shards: int
    unused_columns: tuple[str, ...]

    @property
    def shards(self) -> list[str]:
        return [shard_name(i) for i in range(self.num_shards)]

    def num_images(self, shards: Collection[str]) -> int:
        """How many pictures `shards` hold; only the last of all can be short."""
        num_rows = self.settings.shard_rows
        missing = self.num_shards * num_rows - self.num_planned
        has_last = shard_name(self.num_shards - 1) in shards
        return len(shards) * num_rows - (missing if has_last else 0)


def shard_name(index: int) -> str:
    return f"{index:06d}"


def shard_file(shard: str) -> str:
    return f"plan/shards/{shard}.parquet"


def read_plan(output: OutputFolder) -> Plan | None:
    """The finished plan in a folder, if there is one."""
    if not output.exists(MARKER):
        return None
    return Plan.model_validate_json(output.read(MARKER))


def read_shard(output: OutputFolder, shard: str) -> list[PlannedImage]:
    return [PlannedImage.from_row(row) for row in output.read_table(shard_file(shard)).to_pylist()]


def make_plan(source: "PromptTable", output: OutputFolder, settings: RunSettings) -> Plan:
    """The folder's plan: the one it holds, if it is of the same run, or a new one.

    Raises DifferentRun if the folder holds another.
    """
    existing = read_plan(output)
    if existing is not None:
        existing.settings.require_same(settings)
        return existing
    writer = _PlanWriter(output, settings.shard_rows)
    for source_row, row in source.rows():
        try:
            writer.add(_planned(source_row, row, settings))
        except InvalidRequest as error:
            writer.reject(source_row, row, error)
    writer.flush()
    plan = Plan(
        settings=settings,
        num_planned=writer.num_planned,
        num_rejected=writer.num_rejected,
        num_shards=math.ceil(writer.num_planned / settings.shard_rows),
        unused_columns=source.unused_columns,
    )
    writer.delete_surplus()
    output.write(MARKER, plan.model_dump_json(indent=2).encode())
    return plan


class PromptTable:
    """The input: one Parquet file or a folder of them, local or at a URI."""

    def __init__(self, location: str) -> None:
        """Raises InputUnusable."""
        self._location = location
        self._filesystem, path = resolve(location)
        with self._reading():
            dataset = pads.dataset(path, filesystem=self._filesystem, format="parquet")
            # The dataset itself takes its columns from the first file alone.
            schemas = [fragment.physical_schema for fragment in dataset.get_fragments()]
            schema = pa.unify_schemas(schemas, promote_options="permissive")
            self._dataset = dataset.replace_schema(schema)
        names = self._dataset.schema.names
        if "prompt" not in names:
            found = ", ".join(names) or "none"
            raise InputUnusable(f"{location} has no column 'prompt'; its columns: {found}")
        self._columns = [name for name in names if name in ImageRequest.model_fields]
        self.unused_columns = tuple(name for name in names if name not in self._columns)

    def files(self) -> tuple[InputFile, ...]:
        with self._reading():
            return tuple(self._describe(path) for path in self._dataset.files)

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Every row with its number, in the input's order; nulls and NaNs are left out."""
        number = 0
        with self._reading():
            for batch in self._dataset.to_batches(columns=self._columns, batch_size=_ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    present = {name: value for name, value in row.items() if not _is_null(value)}
                    yield number, present
                    number += 1

    def _describe(self, path: str) -> InputFile:
        with self._filesystem.open_input_file(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return InputFile(name=path.rsplit("/", 1)[-1], sha256=digest)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise InputUnusable(f"cannot read {self._location} as Parquet: {error}") from error


class _PlanWriter:
    """Collects rows and writes them in files of a fixed number."""

    def __init__(self, output: OutputFolder, shard_rows: int) -> None:
        self._output = output
        self._shard_rows = shard_rows
        self._planned: list[dict[str, Any]] = []
        self._rejected: list[dict[str, Any]] = []
        self.num_planned = 0
        self.num_rejected = 0

    def add(self, image: PlannedImage) -> None:
        self._planned.append(image.to_row())
        self.num_planned += 1
        if len(self._planned) == self._shard_rows:
            self._write_shard()

    def reject(self, source_row: int, row: dict[str, Any], error: InvalidRequest) -> None:
        self._rejected.append(
            {
                "source_row": source_row,
                "field": error.field,
                "reason": error.message,
                "row": canonical_json({name: _printable(value) for name, value in row.items()}),
            }
        )
        self.num_rejected += 1
        if len(self._rejected) == _ROWS_AT_ONCE:
            self._write_rejected()

    def flush(self) -> None:
        if self._planned:
            self._write_shard()
        if self._rejected:
            self._write_rejected()

    def delete_surplus(self) -> None:
        """Delete what an interrupted plan with other settings has left behind."""
        for folder, num_files in (
            ("plan/shards", self.num_planned / self._shard_rows),
            ("rejected", self.num_rejected / _ROWS_AT_ONCE),
        ):
            wanted = {f"{shard_name(i)}.parquet" for i in range(math.ceil(num_files))}
            for name in set(self._output.list(folder)) - wanted:
                self._output.delete(f"{folder}/{name}")

    def _write_shard(self) -> None:
        name = shard_name((self.num_planned - 1) // self._shard_rows)
        self._output.write_table(shard_file(name), to_table(self._planned, PLAN_SCHEMA))
        self._planned = []

    def _write_rejected(self) -> None:
        name = shard_name((self.num_rejected - 1) // _ROWS_AT_ONCE)
        self._output.write_table(
            f"rejected/{name}.parquet", to_table(self._rejected, REJECTED_SCHEMA)
        )
        self._rejected = []


def _planned(source_row: int, row: dict[str, Any], settings: RunSettings) -> PlannedImage:
    profile = settings.model
    request = profile.canonical(parse_request(row), seed=_seed(settings.seed, source_row))
    image_id = request.image_id(profile.fingerprint_for(request), source=str(source_row))
    return PlannedImage(image_id, source_row, request)


def _seed(run_seed: int, source_row: int) -> int:
    """The seed of a row that has none: the same in every run with `run_seed`, 32 bits."""
    return int.from_bytes(hashlib.sha256(f"{run_seed} {source_row}".encode()).digest()[:4])


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _printable(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) else repr(value)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        nested = _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else None
        flat |= nested if nested is not None else {f"{prefix}{key}": value}
    return flat
