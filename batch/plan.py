"""Plan: every input row becomes canonical requests in a shard, or a rejected row with its reason.

One pass over the input, in its order, a shard at a time. The same input and settings give the same
plan, so a plan that was interrupted is simply made again.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, Field, PositiveInt

from batch.image_store import Format
from batch.output_folder import OutputFolder
from batch.prompts import REPEATS, InputFile, PromptTable
from batch.records import PLAN_SCHEMA, REJECTED_SCHEMA, PlannedImage, beside, to_table
from shared.config import Compiler, Settings
from shared.errors import InvalidRequest
from shared.model_profile import ModelProfile
from shared.request import MAX_SEED, canonical_json, parse, parse_request

# Pictures of an input row.
MAX_REPEATS = 100
MARKER = "plan/run.json"
_CLAIMS = "plan/claims"
# Rejected rows are written in files of this many.
_REJECTED_ROWS = 1024


class DifferentRun(ValueError):
    """The output folder holds another run; `key` says in what it differs."""

    def __init__(self, key: str, there: Any, here: Any) -> None:
        super().__init__(key, there, here)
        self.key = key
        self.there = there
        self.here = here

    def __str__(self) -> str:
        return (
            f"the output folder holds a run with {self.key} = {_brief(self.there)}, "
            f"not {_brief(self.here)}; choose another folder, or the same settings"
        )


class RunSettings(Settings):
    """What decides the pictures of a run: a folder holds one of these.

    `columns` are the input's columns that hold a field of another name, by field. Of the input
    the first `limit` rows count, each for `num_images_per_prompt` pictures if it does not say.
    """

    input_files: tuple[InputFile, ...]
    columns: dict[str, str] = Field(default={})
    limit: PositiveInt | None = None
    model: ModelProfile
    dtype: str
    compile: Compiler | None = None
    byte_identical: bool | None = None
    seed: int
    num_images_per_prompt: PositiveInt = 1
    shard_rows: PositiveInt
    format: Format = "files"

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

    @property
    def shards(self) -> list[str]:
        return [shard_name(i) for i in range(self.num_shards)]

    @property
    def rejected_files(self) -> list[str]:
        return [_rejected_file(i) for i in range(math.ceil(self.num_rejected / _REJECTED_ROWS))]

    @property
    def shard_sizes(self) -> list[int]:
        """Pictures in each of the shards; only the last can be short."""
        full, rest = divmod(self.num_planned, self.settings.shard_rows)
        return [self.settings.shard_rows] * full + [rest] * bool(rest)


def shard_name(index: int) -> str:
    return f"{index:06d}"


def shard_file(shard: str) -> str:
    """Of the planned images of a shard, and the input's other columns beside them."""
    return f"plan/shards/{shard}.parquet"


def read_plan(output: OutputFolder) -> Plan | None:
    """The finished plan in a folder, if there is one."""
    if not output.exists(MARKER):
        return None
    return Plan.model_validate_json(output.read(MARKER))


def make_plan(source: PromptTable, output: OutputFolder, settings: RunSettings) -> Plan:
    """The folder's plan: the one it holds, if it is of the same run, or a new one.

    Raises DifferentRun if the folder holds another, or one is being planned into it just now.
    """
    existing = read_plan(output)
    if existing is not None:
        existing.settings.require_same(settings)
        return existing
    with _claim(output, settings):
        plan = _write_plan(source, output, settings)
    output.write(MARKER, plan.model_dump_json(indent=2).encode())
    return plan


def _write_plan(source: PromptTable, output: OutputFolder, settings: RunSettings) -> Plan:
    shards = _TableFiles(output, lambda i: shard_file(shard_name(i)), settings.shard_rows)
    rejected = _TableFiles(output, _rejected_file, _REJECTED_ROWS)
    for rows in source.rows(settings.limit):
        planned: list[dict[str, Any]] = []
        refused: list[dict[str, Any]] = []
        offsets: list[int] = []
        for offset, fields in enumerate(rows.fields):
            try:
                images = list(_planned(rows.first + offset, fields, settings))
            except InvalidRequest as error:
                refused.append(_rejected_row(rows.first + offset, fields, error))
            else:
                planned += [image.to_row() for image in images]
                offsets += [offset] * len(images)
        kept = rows.kept.take(pa.array(offsets, pa.int64()))
        shards.add(beside(to_table(planned, PLAN_SCHEMA), kept))
        rejected.add(to_table(refused, REJECTED_SCHEMA))
    shards.finish()
    rejected.finish()
    return Plan(
        settings=settings,
        num_planned=shards.num_rows,
        num_rejected=rejected.num_rows,
        num_shards=shards.num_files,
    )


@contextmanager
def _claim(output: OutputFolder, settings: RunSettings) -> Iterator[None]:
    """Within it no other run is planned into the folder; a crash leaves it to this one.

    Each writes down who it is, and only then looks who else did: of two, none can miss the other.
    """
    content = canonical_json(settings.model_dump(mode="json")).encode()
    own = f"{hashlib.sha256(content).hexdigest()}.json"
    output.write(f"{_CLAIMS}/{own}", content)
    try:
        for name in output.list(_CLAIMS):
            if name != own:
                with suppress(FileNotFoundError):  # given up meanwhile
                    there = RunSettings.model_validate_json(output.read(f"{_CLAIMS}/{name}"))
                    there.require_same(settings)
        yield
    except BaseException:
        output.delete(f"{_CLAIMS}/{own}")
        raise


class _TableFiles:
    """Rows in files of a fixed number of them, named by `file_of` from 0 on."""

    def __init__(
        self, output: OutputFolder, file_of: Callable[[int], str], rows_per_file: int
    ) -> None:
        self._output = output
        self._file_of = file_of
        self._rows_per_file = rows_per_file
        self._waiting: list[pa.Table] = []
        self.num_rows = 0
        self.num_files = 0

    def add(self, table: pa.Table) -> None:
        self.num_rows += table.num_rows
        self._waiting.append(table)
        while self.num_rows - self.num_files * self._rows_per_file >= self._rows_per_file:
            self._write()

    def finish(self) -> None:
        if self.num_rows > self.num_files * self._rows_per_file:
            self._write()

    def _write(self) -> None:
        waiting = pa.concat_tables(self._waiting)
        table = waiting.slice(0, self._rows_per_file).combine_chunks()
        self._output.write_table(self._file_of(self.num_files), table)
        self._waiting = [waiting.slice(self._rows_per_file)]
        self.num_files += 1


class _Repeats(BaseModel):
    num_images_per_prompt: int = Field(ge=1, le=MAX_REPEATS)


def _planned(
    source_row: int, fields: dict[str, Any], settings: RunSettings
) -> Iterator[PlannedImage]:
    profile = settings.model
    request = parse_request({name: fields[name] for name in fields if name != REPEATS})
    repeats = parse(_Repeats, {REPEATS: fields.get(REPEATS, settings.num_images_per_prompt)})
    first = profile.canonical(request, seed=0)
    for index in range(repeats.num_images_per_prompt):
        if request.seed is None:
            seed = _seed(settings.seed, source_row, index)
        else:
            seed = (request.seed + index) % (MAX_SEED + 1)
        image = first.model_copy(update={"seed": seed})
        image_id = image.image_id(profile.fingerprint_for(image), source=f"{source_row}:{index}")
        yield PlannedImage(image_id, source_row, index, image)


def _seed(run_seed: int, source_row: int, image_index: int) -> int:
    """Of a picture whose row has none: the same in every run with `run_seed`, 32 bits."""
    text = f"{run_seed} {source_row} {image_index}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])


def _rejected_row(source_row: int, fields: dict[str, Any], error: InvalidRequest) -> dict[str, Any]:
    return {
        "source_row": source_row,
        "field": error.field,
        "reason": error.message,
        "row": canonical_json({name: _printable(value) for name, value in fields.items()}),
    }


def _rejected_file(index: int) -> str:
    return f"rejected/{index:06d}.parquet"


def _printable(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) else repr(value)


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of objects and lists, by their paths."""
    if isinstance(tree, list):
        tree = dict(enumerate(tree))
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
