"""Report: hold the metadata against the plan, and show the result to a person."""

import base64
import html
import io
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

from PIL import Image

from batch.output_folder import OutputFolder
from batch.plan import Plan, read_shard
from batch.records import METADATA_SCHEMA
from batch.render import metadata_file
from shared.config import Settings

SUMMARY = "summary.json"
REPORT = "report.html"
_MAX_PICTURES = 60
_MAX_LISTED = 100
_THUMBNAIL_PIXELS = 192


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


def write_report(plan: Plan, output: OutputFolder) -> Summary:
    """Reconcile the folder, and write summary.json and report.html into it."""
    summary = reconcile(plan, output)
    output.write(REPORT, _page(plan, summary, output).encode())
    output.write(SUMMARY, summary.model_dump_json(indent=2).encode())
    return summary


def read_summary(output: OutputFolder) -> Summary | None:
    """The summary of a finished run, if there is one."""
    if not output.exists(SUMMARY):
        return None
    return Summary.model_validate_json(output.read(SUMMARY))


def reconcile(plan: Plan, output: OutputFolder) -> Summary:
    """Count shard by shard, so that no more than one shard is in memory."""
    totals: Counter[str] = Counter()
    seconds = 0.0
    committed = set(output.list("metadata"))
    for shard in plan.shards:
        expected = Counter(read_shard(output, shard).column("image_id").to_pylist())
        rows = _metadata(output, shard) if f"{shard}.parquet" in committed else []
        found = Counter(row["image_id"] for row in rows)
        totals["missing"] += (expected - found).total()
        totals["unexpected"] += (found - expected).total()
        for row in rows:
            totals[row["status"]] += 1
            totals["bytes"] += row["num_bytes"] or 0
            seconds += row["render_s"] or 0.0
    return Summary(
        num_planned=plan.num_planned,
        num_rejected=plan.num_rejected,
        num_ok=totals["ok"],
        num_error=totals["error"],
        num_missing=totals["missing"],
        num_unexpected=totals["unexpected"],
        num_bytes=totals["bytes"],
        render_s=round(seconds, 3),
    )


def _metadata(output: OutputFolder, shard: str) -> list[dict[str, Any]]:
    table = output.read_table(metadata_file(shard)).select(METADATA_SCHEMA.names)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _rows(plan: Plan, output: OutputFolder) -> Iterator[dict[str, Any]]:
    for shard in plan.shards:
        yield from _metadata(output, shard)


def _page(plan: Plan, summary: Summary, output: OutputFolder) -> str:
    model = plan.settings.model
    every = max(1, summary.num_ok // _MAX_PICTURES)
    rendered = (row for row in _rows(plan, output) if row["status"] == "ok")
    pictures = islice(rendered, 0, every * _MAX_PICTURES, every)
    failed = (row for row in _rows(plan, output) if row["status"] == "error")
    return _PAGE.format(
        title=f"{summary.num_ok} pictures by {html.escape(model.name)}",
        facts=_facts(plan, summary),
        pictures="\n".join(_figure(row, output) for row in pictures),
        failures=_list("Failed", (f"{row['prompt']}: {row['error']}" for row in failed)),
        rejected=_list("Rejected input rows", _rejected(plan, output)),
    )


def _facts(plan: Plan, summary: Summary) -> str:
    facts = {
        "rendered": f"{summary.num_ok} of {summary.num_planned}",
        "failed": summary.num_error,
        "rejected rows": summary.num_rejected,
        "missing": summary.num_missing,
        "size": f"{summary.num_bytes / 1e6:.1f} MB",
        "model": f"{plan.settings.model.name} ({plan.settings.model.fingerprint})",
        "seed": plan.settings.seed,
    }
    return "".join(
        f"<dt>{name}</dt><dd>{html.escape(str(fact))}</dd>" for name, fact in facts.items()
    )


def _figure(row: dict[str, Any], output: OutputFolder) -> str:
    name = f"images/{row['file_name']}"
    about = (
        f"{row['width']}×{row['height']}, {row['num_inference_steps']} steps, "
        f"guidance {row['guidance_scale']:g}, seed {row['seed']}"
    )
    prompt = html.escape(row["prompt"])
    return (
        f'<figure><a href="{html.escape(name)}"><img src="{_thumbnail(output.read(name))}" '
        f'alt="{prompt}"></a><figcaption>{prompt}<small>{about}</small></figcaption></figure>'
    )


def _thumbnail(data: bytes) -> str:
    """The picture small and inline, so that the report shows it wherever the file is opened."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
        image.convert("RGB").save(buffer, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _rejected(plan: Plan, output: OutputFolder) -> Iterator[str]:
    for name in plan.rejected_files:
        for row in output.read_table(name).to_pylist():
            yield f"row {row['source_row']}: {row['field']}: {row['reason']}"


def _list(title: str, lines: Iterator[str]) -> str:
    shown = list(islice(lines, _MAX_LISTED + 1))
    if not shown:
        return ""
    items = "".join(f"<li>{html.escape(line)}</li>" for line in shown[:_MAX_LISTED])
    more = "<li>and more: see the Parquet files</li>" if len(shown) > _MAX_LISTED else ""
    return f"<h2>{title}</h2><ul>{items}{more}</ul>"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
  :root {{ color-scheme: light dark; }}
  body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto;
          padding: 0 1rem; }}
  dl {{ display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; }}
  dt {{ opacity: .75; }}
  dd {{ margin: 0; }}
  .sheet {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr));
            gap: 1rem; }}
  figure {{ margin: 0; }}
  img {{ width: 100%; border-radius: .3rem; display: block; }}
  figcaption {{ font-size: .85rem; line-height: 1.3; margin-top: .3rem; }}
  small {{ display: block; opacity: .75; }}
</style>
</head>
<body>
<h1>{title}</h1>
<dl>{facts}</dl>
<div class="sheet">
{pictures}
</div>
{failures}
{rejected}
</body>
</html>
"""
