"""Report: what became of a run, for a person: a page that opens without a network."""

import base64
import html
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from PIL import Image

from batch.image_store import picture_name, shard_images
from batch.output_folder import OutputFolder
from batch.plan import Plan
from batch.reconcile import Summary, Survey, Timeline, reconcile

SUMMARY = "summary.json"
REPORT = "report.html"
_MAX_LISTED = 100
_MAX_BARS = 8
_MAX_COLUMNS = 120
_THUMBNAIL_PIXELS = 192


def write_report(plan: Plan, output: OutputFolder) -> Summary:
    """Reconcile the folder, and write summary.json and report.html into it."""
    summary, survey = reconcile(plan, output)
    output.write(REPORT, _page(plan, summary, survey, output).encode())
    output.write(SUMMARY, summary.model_dump_json(indent=2).encode())
    return summary


def read_summary(output: OutputFolder) -> Summary | None:
    """The summary of a finished run, if there is one."""
    if not output.exists(SUMMARY):
        return None
    return Summary.model_validate_json(output.read(SUMMARY))


def _page(plan: Plan, summary: Summary, survey: Survey, output: OutputFolder) -> str:
    charts = [_rates(survey.timeline), _bars("failures", survey.reasons)]
    charts += [_bars(name, values) for name, values in survey.parameters.items()]
    failed = (f"{row['prompt']}: {row['error']}" for row in survey.failed)
    return _PAGE.format(
        title=f"{summary.num_ok} pictures by {html.escape(plan.settings.model.name)}",
        facts=_facts(plan, summary),
        pictures="\n".join(_figure(row, plan, output) for row in survey.pictures),
        charts="".join(charts),
        failed=_list("Failed", failed),
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


def _figure(row: dict[str, Any], plan: Plan, output: OutputFolder) -> str:
    about = (
        f"{row['width']}×{row['height']}, {row['num_inference_steps']} steps, "
        f"guidance {row['guidance_scale']:g}, seed {row['seed']}"
    )
    prompt = html.escape(row["prompt"])
    image = f'<img src="{_thumbnail(row, plan, output)}" alt="{prompt}">'
    if plan.settings.format == "files":
        image = f'<a href="{html.escape("images/" + row["file_name"])}">{image}</a>'
    return f"<figure>{image}<figcaption>{prompt}<small>{about}</small></figcaption></figure>"


def _thumbnail(row: dict[str, Any], plan: Plan, output: OutputFolder) -> str:
    """The picture small and inline, so that the report shows it wherever the file is opened."""
    images = shard_images(output, row["shard"], plan.settings.format)
    data = images.read(picture_name(row["file_name"]))
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
        image.convert("RGB").save(buffer, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _rates(timeline: Timeline) -> str:
    """Pictures per second over the time of the run, as columns."""
    part_s, rates = timeline.rates(_MAX_COLUMNS)
    if len(rates) < 2:
        return ""
    highest = max(rates)
    columns = "".join(
        f'<rect x="{i}" y="{1 - rate / highest:.4f}" width="0.9" height="{rate / highest:.4f}"/>'
        for i, rate in enumerate(rates)
    )
    about = f"pictures/s, over {len(rates) * part_s} s; at most {highest:.2f}"
    return (
        f'<figure class="rates"><figcaption>{about}</figcaption>'
        f'<svg viewBox="0 0 {len(rates)} 1" preserveAspectRatio="none" role="img" '
        f'aria-label="{about}">{columns}</svg></figure>'
    )


def _bars(name: str, values: Counter[str]) -> str:
    if not values:
        return ""
    most = max(values.values())
    rows = "".join(
        f"<tr><th>{html.escape(value)}</th><td>{number}</td>"
        f'<td><meter max="{most}" value="{number}"></meter></td></tr>'
        for value, number in values.most_common(_MAX_BARS)
    )
    more = len(values) - _MAX_BARS
    rest = f"<tr><th>and {more} more</th></tr>" if more > 0 else ""
    return f"<table><caption>{html.escape(name)}</caption>{rows}{rest}</table>"


def _rejected(plan: Plan, output: OutputFolder) -> Iterator[str]:
    for name in plan.rejected_files:
        for row in output.read_table(name).to_pylist():
            yield f"row {row['source_row']}: {row['field']}: {row['reason']}"


def _list(title: str, lines: Iterable[str]) -> str:
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
  dd {{ margin: 0; min-width: 0; overflow-wrap: anywhere; }}
  .sheet {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr));
            gap: 1rem; }}
  figure {{ margin: 0; }}
  img {{ width: 100%; border-radius: .3rem; display: block; }}
  figcaption {{ font-size: .85rem; line-height: 1.3; margin-top: .3rem; }}
  small {{ display: block; opacity: .75; }}
  .rates {{ flex: 1 1 20rem; }}
  svg {{ width: 100%; height: 8rem; fill: #b5451b; }}
  .tables {{ display: flex; flex-wrap: wrap; gap: 1rem 3rem; align-items: start;
             margin: 1rem 0 2rem; }}
  caption {{ text-align: left; font-weight: bold; }}
  th {{ text-align: left; font-weight: normal; overflow-wrap: anywhere; }}
  li {{ overflow-wrap: anywhere; }}
  table {{ max-width: 100%; }}
  td {{ text-align: right; padding-left: 1rem; }}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
<dl>{facts}</dl>
<div class="tables">{charts}</div>
<div class="sheet">
{pictures}
</div>
{failed}
{rejected}
</main>
</body>
</html>
"""
