"""The command line of `python -m jobs.render`."""

import argparse
import math
from collections.abc import Sequence
from typing import get_args

from batch.image_store import Format
from batch.plan import MAX_REPEATS
from shared.arguments import add_adapter, add_byte_identical, add_compile, pair, positive
from shared.config import RequestDefaults

_DESCRIPTION = """
Render a Parquet dataset of prompts into a folder of pictures with metadata.

Each input row is a request: a column `prompt`, and where wanted negative_prompt, width, height,
num_inference_steps, guidance_scale, scheduler, seed, lora and num_images_per_prompt. Run it again
to go on where it stopped.
"""
_EPILOG = """
examples:
  python -m jobs.render --input examples/prompts.parquet --output out
  python -m jobs.render --via-service http://localhost:8000 --input ... --output out
  python -m jobs.render --replay out/images/000000/2f9c...png
  ray job submit --working-dir . -- \\
      python -m jobs.render --input s3://bucket/prompts --output s3://bucket/pictures

exit codes: 0 all rendered, 3 finished with failed or rejected rows, 2 usage, 1 crash,
130 stopped by Ctrl-C
"""


class UsageError(ValueError):
    """The arguments cannot be right together, or here."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.render",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--input", help="a Parquet file or a folder of them: a path or a URI")
    add("--output", help="the folder to fill: a path or a URI")
    add("--format", default="files", choices=get_args(Format), help="of the pictures (%(default)s)")
    add("--dry-run", action="store_true", help="only plan, and estimate time and size")
    add("--retry-failed", action="store_true", help="render the pictures that failed once more")
    add("--replay", metavar="IMAGE", help="only render this PNG file of ours again, and compare")
    add(
        "--via-service",
        metavar="APP|URL",
        help="let a running service render, when it has nothing else to do: a Serve application of "
        "this cluster, or https://host with the token in API_TOKEN (docs/bulk.md)",
    )
    add("--model", help="bundled name, local folder or hub id (postcard); or one that is served")
    add_adapter(parser)
    add_compile(parser)
    add_byte_identical(parser)
    add("--device", default="auto", help="torch's name of the device (%(default)s)")
    add("--dtype", choices=["auto", "float32", "bfloat16", "float16"], help="of weights (auto)")
    add(
        "--column",
        action="append",
        default=[],
        type=pair,
        metavar="FIELD=COLUMN",
        help="the input's column that holds a field, if it has another name: prompt=caption",
    )
    add("--limit", type=positive, metavar="N", help="only the first N rows of the input")
    add(
        "--num-images-per-prompt",
        type=repeats,
        default=1,
        metavar="N",
        help="pictures of a row that does not say how many (%(default)s)",
    )
    for name in RequestDefaults.model_fields:
        kind = float if name == "guidance_scale" else int
        add(flag(name), type=kind, help="for rows that leave it out (what the model says)")
    add("--seed", type=int, default=0, help="of the run, for rows without one (%(default)s)")
    add("--shard-rows", type=positive, default=16, help="pictures committed at once (%(default)s)")
    add("--concurrency", type=positive, help="engines (one per GPU, or per node without GPUs)")
    add("--num-cpus", type=amount, help="CPUs, and so threads, of each engine")
    add("--num-gpus", type=amount, help="GPUs of each engine")
    options = parser.parse_args(arguments)
    if not options.replay and not (options.input and (options.output or options.dry_run)):
        parser.error("--input and --output are required")
    if options.via_service:
        _refuse_what_the_service_decides(parser, options)
    return options


# Options of the engines, which a service has already.
_OF_ENGINES = (
    "adapter",
    "byte_identical",
    "compile",
    "concurrency",
    "device",
    "dtype",
    "num_cpus",
    "num_gpus",
    "replay",
)


def _refuse_what_the_service_decides(
    parser: argparse.ArgumentParser, options: argparse.Namespace
) -> None:
    for name in _OF_ENGINES:
        if getattr(options, name) != parser.get_default(name):
            parser.error(f"{flag(name)} is the service's to say, and cannot be with --via-service")


def amount(text: str) -> float:
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return number


def repeats(text: str) -> int:
    number = positive(text)
    if number > MAX_REPEATS:
        raise argparse.ArgumentTypeError(f"must be {MAX_REPEATS} or less")
    return number


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
