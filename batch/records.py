"""The rows of the plan, the metadata and the rejected, as Parquet columns."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from shared.model_profile import ModelProfile
from shared.request import CanonicalRequest, GeneratedImage, lora_text

PLAN_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("source_row", pa.int64()),
        ("image_index", pa.int32()),  # among the pictures of that row
        ("prompt", pa.string()),
        ("negative_prompt", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("num_inference_steps", pa.int32()),
        ("guidance_scale", pa.float64()),
        ("scheduler", pa.string()),
        ("seed", pa.int64()),
        ("lora", pa.string()),  # name:weight,name:weight
    ]
)

METADATA_SCHEMA = pa.schema(
    [
        *PLAN_SCHEMA,
        ("model", pa.string()),
        ("model_fingerprint", pa.string()),
        ("dtype", pa.string()),
        ("status", pa.string()),  # "ok" or "error"
        ("error", pa.string()),
        ("file_name", pa.string()),  # relative to images/
        ("sha256", pa.string()),
        ("num_bytes", pa.int64()),
        ("finished_at", pa.timestamp("ms", "UTC")),
        ("queue_s", pa.float64()),
        ("render_s", pa.float64()),
        ("encode_s", pa.float64()),
        ("num_forwards", pa.int32()),
        ("num_shared_forwards", pa.int32()),
    ]
)

# Columns that differ from run to run, or mean nothing beside a picture.
_OF_THE_RUN = [
    "status",
    "error",
    "finished_at",
    "queue_s",
    "render_s",
    "encode_s",
    "num_forwards",
    "num_shared_forwards",
]

REJECTED_SCHEMA = pa.schema(
    [
        ("source_row", pa.int64()),
        ("field", pa.string()),
        ("reason", pa.string()),
        ("row", pa.string()),  # what the input had, as JSON
    ]
)


@dataclass(frozen=True)
class PlannedImage:
    """One row of the plan. `source_row` counts the input's rows from 0, over all its files.

    `image_index` counts the pictures of that row.
    """

    image_id: str
    source_row: int
    image_index: int
    request: CanonicalRequest

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Self:
        request = {name: row[name] for name in CanonicalRequest.model_fields}
        return cls(
            row["image_id"],
            row["source_row"],
            row["image_index"],
            CanonicalRequest.model_validate(request),
        )

    def to_row(self) -> dict[str, Any]:
        return {
            "image_id": self.image_id,
            "source_row": self.source_row,
            "image_index": self.image_index,
            **self.request.model_dump(),
            "lora": lora_text(self.request.lora),
        }


def rendered_row(planned: PlannedImage, image: GeneratedImage, file_name: str) -> dict[str, Any]:
    """The metadata of a picture that was rendered and stored."""
    return {
        **planned.to_row(),
        **image.provenance.model_dump(exclude={"request"}),
        **image.timings.model_dump(),
        "status": "ok",
        "finished_at": datetime.now(UTC),
        "file_name": file_name,
        "sha256": image.sha256,
        "num_bytes": len(image.data),
    }


def failed_row(planned: PlannedImage, profile: ModelProfile, error: Exception) -> dict[str, Any]:
    """The metadata of a picture that could not be rendered."""
    return {
        **planned.to_row(),
        "model": profile.name,
        "model_fingerprint": profile.fingerprint_for(planned.request),
        "status": "error",
        "finished_at": datetime.now(UTC),
        "error": f"{type(error).__name__}: {error}",
    }


def to_table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table; what a row leaves out is null."""
    return pa.Table.from_pylist(rows, schema=schema)


def beside(left: pa.Table, right: pa.Table) -> pa.Table:
    """The columns of both."""
    for field, column in zip(right.schema, right.columns, strict=True):
        left = left.append_column(field, column)
    return left


def planned_images(shard: pa.Table) -> list[PlannedImage]:
    return [PlannedImage.from_row(row) for row in shard.select(PLAN_SCHEMA.names).to_pylist()]


def kept_columns(shard: pa.Table) -> pa.Table:
    """The input's columns that are no fields of a request."""
    return shard.drop_columns(PLAN_SCHEMA.names)


def dataset_rows(metadata: pa.Table) -> pa.Table:
    """The pictures of a shard as its dataset describes them: the same in every run."""
    rendered = metadata.filter(pc.equal(metadata.column("status"), "ok"))
    return rendered.drop_columns(_OF_THE_RUN)


def values_of(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """As Python's, and as bytes what is called a text and is none."""
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:  # Arrow does not check what it reads as text
        values = [_value_of(cell) for cell in column]
    return values


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    """As `values_of`, by column."""
    columns = map(values_of, table.columns)
    return [
        dict(zip(table.column_names, cells, strict=True)) for cells in zip(*columns, strict=True)
    ]


def _value_of(cell: pa.Scalar) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        is_text = isinstance(cell, pa.StringScalar | pa.LargeStringScalar)
        # In a list or a struct it is not to be had; its type is told instead.
        return cell.as_buffer().to_pybytes() if is_text else str(cell.type).encode()
