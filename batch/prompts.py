"""The input: Parquet files of prompts, each row with the fields of a request and whatever else."""

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads

from batch.output_folder import LocationUnusable, resolve, shown
from batch.records import METADATA_SCHEMA, values_of
from shared.config import Settings
from shared.request import ImageRequest

# How many pictures a row asks for, by the name that diffusers gives to it.
REPEATS = "num_images_per_prompt"
FIELDS = (*ImageRequest.model_fields, REPEATS)
# Rows held in memory at once.
_ROWS_AT_ONCE = 1024


class InputUnusable(LocationUnusable):
    """The input is not there, is not Parquet, or has no prompts."""


class InputFile(Settings):
    """A file of the input, as it was when the plan was made."""

    name: str
    sha256: str


@dataclass(frozen=True)
class PromptRows:
    """Some successive rows. `fields` are what each says of its request, nulls and NaNs left out.

    `kept` are their other columns, under the names that these have in the metadata.
    """

    first: int
    fields: list[dict[str, Any]]
    kept: pa.Table


class PromptTable:
    """One Parquet file or a folder of them, local or at a URI. Files may differ in their columns.

    `columns` says which column holds a field, where that is not the one of its name.
    """

    def __init__(self, location: str, columns: Mapping[str, str] | None = None) -> None:
        """Raises InputUnusable."""
        self._location = shown(location)
        self._filesystem, path = resolve(location)
        with self._reading():
            dataset = pads.dataset(path, filesystem=self._filesystem, format="parquet")
            self._files: list[str] = dataset.files
            # Each file by its own schema: a row of a wrong type is rejected, not its dataset.
            self._fragments = list(dataset.get_fragments())
            schemas = [fragment.physical_schema for fragment in self._fragments]
        self._column_of = self._find_columns(columns or {}, schemas)
        self._kept = self._find_kept(schemas)

    def files(self) -> tuple[InputFile, ...]:
        with self._reading():
            return tuple(self._describe(path) for path in self._files)

    def rows(self, limit: int | None = None) -> Iterator[PromptRows]:
        """All rows, or the first so many, in the input's order."""
        first = 0
        with self._reading():
            for batch in self._batches():
                if limit is not None:
                    batch = batch.slice(0, limit - first)
                if batch.num_rows == 0:
                    continue
                yield PromptRows(first, self._fields(batch), self._kept_of(batch))
                first += batch.num_rows
                if first == limit:
                    return

    def _batches(self) -> Iterator[pa.RecordBatch]:
        for fragment in self._fragments:
            yield from fragment.to_batches(batch_size=_ROWS_AT_ONCE)

    def _fields(self, batch: pa.RecordBatch) -> list[dict[str, Any]]:
        there = {
            field: values_of(batch.column(column))
            for field, column in self._column_of.items()
            if column in batch.schema.names
        }
        if "lora" in there:
            there["lora"] = [_weights(cell) for cell in there["lora"]]
        return [
            {field: cells[i] for field, cells in there.items() if not _is_null(cells[i])}
            for i in range(batch.num_rows)
        ]

    def _kept_of(self, batch: pa.RecordBatch) -> pa.Table:
        cells = []
        for field, column in zip(self._kept, self._kept_sources, strict=True):
            there = column in batch.schema.names
            values = batch.column(column) if there else pa.nulls(batch.num_rows)
            cells.append(values.cast(field.type))
        return pa.table(cells, schema=self._kept)

    def _find_columns(self, columns: Mapping[str, str], schemas: list[pa.Schema]) -> dict[str, str]:
        names = list(dict.fromkeys(name for schema in schemas for name in schema.names))
        for field, column in {"prompt": "prompt", **columns}.items():
            if column not in names:
                found = ", ".join(names) or "none"
                raise InputUnusable(f"{self._location} has no column {column!r}; it has: {found}")
            if field not in FIELDS:
                known = ", ".join(FIELDS)
                raise InputUnusable(f"{field!r} is not a field of a request; there are: {known}")
        chosen = {field: columns.get(field, field) for field in FIELDS}
        self._kept_sources = [name for name in names if name not in chosen.values()]
        return {field: column for field, column in chosen.items() if column in names}

    def _find_kept(self, schemas: list[pa.Schema]) -> pa.Schema:
        kept = []
        for column in self._kept_sources:
            types = [schema.field(column).type for schema in schemas if column in schema.names]
            try:
                one = pa.unify_schemas(
                    [pa.schema([(_kept_name(column), each)]) for each in types],
                    promote_options="permissive",
                )
            except pa.ArrowException as error:
                raise InputUnusable(
                    f"column {column!r} of {self._location} differs between files: {error}"
                ) from error
            kept.append(one.field(0))
        names = [field.name for field in kept]
        for name in names:
            if names.count(name) > 1:
                raise InputUnusable(f"{self._location} has two columns for {name!r}; rename one")
        return pa.schema(kept)

    def _describe(self, path: str) -> InputFile:
        with self._filesystem.open_input_file(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return InputFile(name=path.rsplit("/", 1)[-1], sha256=digest)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise InputUnusable(f"there is no {self._location}") from error
        except (OSError, pa.ArrowException) as error:
            raise InputUnusable(f"cannot read {self._location} as Parquet: {error}") from error


def _kept_name(column: str) -> str:
    """In the metadata, where some names are taken."""
    return f"input_{column}" if column in (*METADATA_SCHEMA.names, "image") else column


def _weights(cell: Any) -> Any:
    """A map has pairs; a struct has every adapter that any row names, as null in the others."""
    if isinstance(cell, list) and all(isinstance(each, tuple) for each in cell):
        cell = dict(cell)
    if not isinstance(cell, dict):
        return cell
    return {name: weight for name, weight in cell.items() if not _is_null(weight)}


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
