"""Render a Parquet dataset of prompts into a folder of pictures with metadata.

Each input row is a request: a column `prompt`, and where wanted negative_prompt, width, height,
num_inference_steps, guidance_scale, scheduler and seed. Run it again to go on where it stopped.
"""

import argparse
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import ray
from pydantic import ValidationError
from ray.actor import ActorHandle
from ray.data import DataContext
from ray.exceptions import RayError

from batch.output_folder import LocationUnusable, OutputFolder
from batch.plan import DifferentRun, Plan, RunSettings, make_plan
from batch.prompts import PromptTable
from batch.render import ImageCounter, Workers, pending_shards, render_shards
from batch.report import REPORT, Summary, read_summary, write_report
from shared.config import ModelConfig, RequestDefaults
from shared.errors import ModelUnavailable
from shared.model_files import absolute, describe_model
from shared.request import first_problem

_PROGRESS_S = 5.0
ALL_RENDERED, CRASHED, USAGE, SOME_FAILED = 0, 1, 2, 3

_EPILOG = """
examples:
  python -m jobs.render --input examples/prompts.parquet --output out
  ray job submit --working-dir . -- \\
      python -m jobs.render --input s3://bucket/prompts --output s3://bucket/pictures

exit codes: 0 all rendered, 3 finished with failed or rejected rows, 2 usage, 1 crash
"""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    try:
        _refuse_lost_output(options.output)
        return _run(options)
    except (DifferentRun, LocationUnusable, ModelUnavailable, UsageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE


class UsageError(ValueError):
    """The arguments cannot be right together."""


def _run(options: argparse.Namespace) -> int:
    model = absolute(_model(options))
    output = OutputFolder(options.output)
    if output.is_within(options.input):
        raise UsageError(f"--output {options.output} lies in the input folder; choose another")
    plan = _plan(options, model, output)
    pending = pending_shards(plan, output)
    summary = read_summary(output)
    if not pending and summary is not None:
        print(f"Nothing to do: this run's {plan.num_planned} pictures are in {output.location}")
        return _exit_code(summary)
    if pending:
        _render(pending, plan, output, model, options)
    summary = write_report(plan, output)
    _print_summary(summary, output)
    return _exit_code(summary)


def _model(options: argparse.Namespace) -> ModelConfig:
    defaults = {name: getattr(options, name) for name in RequestDefaults.model_fields}
    try:
        return ModelConfig(
            name=options.model,
            device=options.device,
            dtype=options.dtype,
            defaults=RequestDefaults(**defaults),
        )
    except ValidationError as error:
        wrong = first_problem(error.errors())
        raise UsageError(f"{_flag(wrong.field)}: {wrong.message}") from None


def _plan(options: argparse.Namespace, model: ModelConfig, output: OutputFolder) -> Plan:
    columns = dict(options.column)
    source = PromptTable(options.input, columns)
    settings = RunSettings(
        input_files=source.files(),
        columns=columns,
        limit=options.limit,
        num_images_per_prompt=options.num_images_per_prompt,
        model=describe_model(model),
        dtype=model.dtype,
        seed=options.seed,
        shard_rows=options.shard_rows,
    )
    plan = make_plan(source, output, settings)
    print(
        f"Planned {plan.num_planned} pictures in {plan.num_shards} shards; "
        f"{plan.num_rejected} input rows rejected"
    )
    return plan


def _render(
    pending: list[str],
    plan: Plan,
    output: OutputFolder,
    model: ModelConfig,
    options: argparse.Namespace,
) -> None:
    ray.init(
        address=os.environ.get("RAY_ADDRESS", "local"),
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    # A line of our own every few seconds says more, and reads well in a job's log.
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    DataContext.get_current().enable_progress_bars = False
    workers = _workers(options)
    print(
        f"Rendering {len(pending)} of {plan.num_shards} shards on {workers.concurrency} engine(s) "
        f"with {workers.num_cpus:g} CPUs and {workers.num_gpus:g} GPUs each",
        flush=True,
    )
    counter = ImageCounter.remote()  # type: ignore[attr-defined]  # Ray's decorator is untyped
    with _progress(counter, plan.num_images(pending)):
        render_shards(pending, output, model, workers, counter)


@contextmanager
def _progress(counter: ActorHandle, num_images: int) -> Iterator[None]:
    """Within it, a line every few seconds, and one at the end."""
    finished = threading.Event()
    started = time.monotonic()

    def watch() -> None:
        while not finished.wait(_PROGRESS_S):
            tell()

    def tell() -> None:
        with suppress(RayError):  # the counter's node is gone: the job goes on without its lines
            counts = ray.get(counter.counts.remote())
            print(_progress_line(counts, num_images, time.monotonic() - started), flush=True)

    watcher = threading.Thread(target=watch, name="progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        finished.set()
    watcher.join()
    tell()


def _progress_line(counts: Mapping[str, int], num_images: int, elapsed_s: float) -> str:
    done = counts["ok"] + counts["error"]
    if not done:
        return f"{elapsed_s:.0f} s: loading the model and rendering the first pictures"
    return (
        f"{elapsed_s:.0f} s: {done} of {num_images} pictures, {done / elapsed_s:.2f}/s, "
        f"{counts['error']} failed, about {elapsed_s / done * (num_images - done):.0f} s left"
    )


def _workers(options: argparse.Namespace) -> Workers:
    """An engine per GPU; without GPUs one per node, on all its CPUs."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    num_gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    cpus = [node["CPU"] for node in nodes if node.get("CPU")]
    default = (
        Workers(concurrency=num_gpus, num_cpus=1, num_gpus=1)
        if num_gpus
        else Workers(concurrency=len(cpus), num_cpus=min(cpus), num_gpus=0)
    )
    asked = {name: getattr(options, name) for name in Workers.model_fields}
    return default.model_copy(
        update={name: value for name, value in asked.items() if value is not None}
    )


def _refuse_lost_output(location: str) -> None:
    """A submitted job runs in a copy of its working directory, which is deleted afterwards."""
    in_submitted_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if in_submitted_job and "://" not in location and not os.path.isabs(location):
        raise UsageError(
            f"--output {location} is relative to a submitted job's own copy of the working "
            "directory and would be lost with it; give an absolute path or a URI"
        )


def _print_summary(summary: Summary, output: OutputFolder) -> None:
    print(
        f"{summary.num_ok} of {summary.num_planned} pictures rendered, {summary.num_error} failed, "
        f"{summary.num_rejected} rows rejected, {summary.num_missing} missing: "
        f"{output.location.rstrip('/')}/{REPORT}"
    )


def _exit_code(summary: Summary) -> int:
    if not summary.is_exact:
        return CRASHED
    return SOME_FAILED if summary.num_error or summary.num_rejected else ALL_RENDERED


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.render",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--input", required=True, help="a Parquet file or a folder of them: a path or a URI")
    add("--output", required=True, help="the folder to fill: a path or a URI")
    add("--model", default="postcard", help="bundled name, local folder or hub id (%(default)s)")
    add("--device", default="auto", help="torch's name of the device (%(default)s)")
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    add(
        "--column",
        action="append",
        default=[],
        type=_column,
        metavar="FIELD=COLUMN",
        help="the input's column that holds a field, if it has another name: prompt=caption",
    )
    add("--limit", type=_positive, metavar="N", help="only the first N rows of the input")
    add(
        "--num-images-per-prompt",
        type=_positive,
        default=1,
        metavar="N",
        help="pictures of a row that does not say how many (%(default)s)",
    )
    for name in RequestDefaults.model_fields:
        kind = float if name == "guidance_scale" else int
        add(_flag(name), type=kind, help="for rows that leave it out (what the model says)")
    add("--seed", type=int, default=0, help="of the run, for rows without one (%(default)s)")
    add("--shard-rows", type=_positive, default=16, help="pictures committed at once (%(default)s)")
    add("--concurrency", type=_positive, help="engines (one per GPU, or per node without GPUs)")
    add("--num-cpus", type=float, help="CPUs, and so threads, of each engine")
    add("--num-gpus", type=float, help="GPUs of each engine")
    return parser.parse_args(arguments)


def _column(text: str) -> tuple[str, str]:
    field, equals, column = text.partition("=")
    if not (field and equals and column):
        raise argparse.ArgumentTypeError(f"{text!r} is not like prompt=caption")
    return field, column


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


if __name__ == "__main__":
    sys.exit(main())
