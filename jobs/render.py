"""The bulk door: plan a dataset of prompts, render what is not committed yet, report.

python -m jobs.render --help
"""

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from batch.output_folder import LocationUnusable, OutputFolder, shown
from batch.plan import DifferentRun, Plan, RunSettings, make_plan
from batch.prompts import PromptTable
from batch.reconcile import Summary
from batch.render import CannotRender, Workers, pending_shards
from batch.replay import NotReplayable, replay, replayable
from batch.report import REPORT, SUMMARY, read_summary, write_report
from batch.service import ServiceUnusable
from jobs.arguments import UsageError, flag, parse
from jobs.progress import duration
from jobs.renderers import Engines, NoCluster, Renderers, RunningService, end_in_order
from shared.arguments import engine_config
from shared.config import ModelConfig, RequestDefaults
from shared.errors import InvalidRequest, ModelUnavailable
from shared.model_names import absolute
from shared.model_profile import ModelProfile, ServedModel
from shared.request import ImageRequest, problem

logger = logging.getLogger(__name__)

ALL_RENDERED, CRASHED, USAGE, SOME_FAILED, INTERRUPTED = 0, 1, 2, 3, 130
_MAX_REJECTED_SHOWN = 10


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    end_in_order()
    try:
        if options.replay:
            return _replay(options)
        if options.dry_run:
            return _dry_run(options)
        return _run(options)
    except (
        DifferentRun,
        LocationUnusable,
        ModelUnavailable,
        NoCluster,
        NotReplayable,
        UsageError,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        _say_why_it_ends("interrupted", options)
        return INTERRUPTED
    except CannotRender as error:
        _say_why_it_ends(str(error), options)
        return CRASHED
    except Exception as error:
        logger.exception("it broke off")
        first_line = str(error).partition("\n")[0]
        _say_why_it_ends(f"{type(error).__name__}: {first_line}", options)
        return CRASHED


def _run(options: argparse.Namespace) -> int:
    _refuse_lost_output(options.output)
    source = _source(options)  # before what takes seconds to load
    renderers = _renderers(options)
    output = OutputFolder(options.output)
    if output.is_within(options.input):
        where = shown(options.output)
        raise UsageError(f"--output {where} lies in the input folder; choose another")
    plan = _plan(options, source, renderers.served, output)
    pending = pending_shards(plan, output, retry_failed=options.retry_failed)
    summary = read_summary(output)
    if not pending and summary is not None:
        print(
            f"Nothing to do: this run's {plan.num_planned} pictures are in {shown(output.location)}"
        )
        return _exit_code(summary)
    if pending:
        by_whom = renderers.told()  # or it says what is wrong with that
        if summary is not None:  # until it is written anew: it would not tell of these
            output.delete(SUMMARY)
        print(f"Rendering {len(pending)} of {plan.num_shards} shards {by_whom}", flush=True)
        renderers.render(pending, plan, output, retry_failed=options.retry_failed)
    summary = write_report(plan, output)
    _print_summary(summary, output)
    return _exit_code(summary)


def _dry_run(options: argparse.Namespace) -> int:
    """Plan into a folder that is thrown away, and render a sample of it."""
    source = _source(options)
    renderers = _renderers(options)
    with tempfile.TemporaryDirectory() as folder:
        output = OutputFolder(folder)
        plan = _plan(options, source, renderers.served, output)
        _print_rejected(plan, output)
        if plan.num_planned:
            print("Rendering a sample ...", flush=True)
            found = renderers.estimate(plan, output)
            print(
                f"{found.num_sampled} pictures took {duration(found.sample_s)}; all "
                f"{plan.num_planned} will take about {duration(found.render_s)} "
                f"{renderers.told()}, and {found.num_bytes / 1e6:.1f} MB"
            )
    return SOME_FAILED if plan.num_rejected else ALL_RENDERED


def _replay(options: argparse.Namespace) -> int:
    try:
        data = Path(options.replay).read_bytes()
    except OSError as error:
        raise UsageError(f"--replay: {error}") from error
    try:
        made = replayable(data)
    except NotReplayable as error:
        raise UsageError(f"{options.replay}: {error}") from None
    model = _model(options, name=made.model, dtype=made.dtype)
    print(f"{made.request.prompt!r}, seed {made.request.seed}, by {model.name} in {made.dtype}")
    result = replay(data, model, engine_config(options))
    if result.same_bytes:
        print(f"The same {len(data)} bytes")
        return ALL_RENDERED
    difference = result.max_difference
    print(
        f"Other bytes, and pixels that differ by up to {difference} of 255"
        if difference
        else "The same pixels in another file (one that was signed, or written by another version)"
    )
    return SOME_FAILED


def _model(
    options: argparse.Namespace, *, name: str = "postcard", dtype: str = "auto"
) -> ModelConfig:
    """The one that is asked for, else `name` in `dtype`."""
    defaults = {name: getattr(options, name) for name in RequestDefaults.model_fields}
    try:
        model = ModelConfig.model_validate(
            {
                "name": options.model or name,
                "device": options.device,
                "dtype": options.dtype or dtype,
                "defaults": defaults,
                "adapters": dict(options.adapter),
            }
        )
    except ValidationError as error:
        wrong = problem(error.errors()[0])
        raise UsageError(f"{flag(wrong.field.split('.')[-1])}: {wrong.message}") from None
    return absolute(model)


def _renderers(options: argparse.Namespace) -> Renderers:
    if options.via_service:
        token = os.environ.get("API_TOKEN")
        try:
            service = RunningService(options.via_service, options.model, token)
        except ServiceUnusable as error:
            raise UsageError(str(error)) from None
        profile = _with_defaults(service.served.profile, options)
        service.served = service.served.model_copy(update={"profile": profile})
        return service
    asked = {name: getattr(options, name) for name in Workers.model_fields}
    return Engines(_model(options), engine_config(options), asked)


def _with_defaults(profile: ModelProfile, options: argparse.Namespace) -> ModelProfile:
    asked = {
        name: value
        for name in RequestDefaults.model_fields
        if (value := getattr(options, name)) is not None
    }
    defaults = profile.defaults.model_copy(update=asked)
    changed = profile.model_copy(update={"defaults": defaults})
    try:
        changed.canonical(ImageRequest(prompt="any"), seed=0)
    except InvalidRequest as error:
        raise UsageError(f"{flag(error.field)}: {error.message}") from None
    return changed


def _source(options: argparse.Namespace) -> PromptTable:
    return PromptTable(options.input, dict(options.column))


def _plan(
    options: argparse.Namespace, source: PromptTable, served: ServedModel, output: OutputFolder
) -> Plan:
    settings = RunSettings(
        input_files=source.files(),
        columns=dict(options.column),
        limit=options.limit,
        num_images_per_prompt=options.num_images_per_prompt,
        model=served.profile,
        dtype=served.dtype,
        compile=served.compile,
        byte_identical=served.byte_identical,
        seed=options.seed,
        shard_rows=options.shard_rows,
        format=options.format,
    )
    plan = make_plan(source, output, settings)
    print(
        f"Planned {plan.num_planned} pictures in {plan.num_shards} shards; "
        f"{plan.num_rejected} input rows rejected"
    )
    return plan


def _refuse_lost_output(location: str) -> None:
    """A submitted job runs in a copy of its working directory, which is deleted afterwards."""
    in_submitted_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if in_submitted_job and "://" not in location and not os.path.isabs(location):
        raise UsageError(
            f"--output {location} is relative to a submitted job's own copy of the working "
            "directory and would be lost with it; give an absolute path or a URI"
        )


def _print_summary(summary: Summary, output: OutputFolder) -> None:
    rows = {
        "rendered": f"{summary.num_ok} of {summary.num_planned} pictures",
        "failed": summary.num_error,
        "rejected": f"{summary.num_rejected} input rows",
        "missing": summary.num_missing,
        "size": f"{summary.num_bytes / 1e6:.1f} MB",
        "report": f"{shown(output.location).rstrip('/')}/{REPORT}",
    }
    for name, value in rows.items():
        print(f"  {name:<10}{value}")


def _print_rejected(plan: Plan, output: OutputFolder) -> None:
    for name in plan.rejected_files[:1]:
        for row in output.read_table(name).slice(0, _MAX_REJECTED_SHOWN).to_pylist():
            print(f"  row {row['source_row']}: {row['field']}: {row['reason']}")
    if plan.num_rejected > _MAX_REJECTED_SHOWN:
        print(f"  and {plan.num_rejected - _MAX_REJECTED_SHOWN} more")


def _say_why_it_ends(reason: str, options: argparse.Namespace) -> None:
    print(f"error: {reason}", file=sys.stderr)
    if not (options.replay or options.dry_run):
        print("The same command goes on with the shards that are not finished", file=sys.stderr)


def _exit_code(summary: Summary) -> int:
    if not summary.is_exact:
        return CRASHED
    return SOME_FAILED if summary.num_error or summary.num_rejected else ALL_RENDERED


if __name__ == "__main__":
    sys.exit(main())
