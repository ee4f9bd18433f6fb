"""Arguments that the command lines of both doors take."""

import argparse
import importlib.util
from pathlib import Path
from typing import get_args

from pydantic import TypeAdapter, ValidationError

from shared.config import AdapterName, Compiler, EngineConfig


def pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not like name=value")
    return name, value


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def add_adapter(parser: argparse.ArgumentParser) -> None:
    """`--adapter NAME=FILE`, as often as there are some: pairs of a name and a Path."""
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        type=_adapter,
        metavar="NAME=FILE",
        help="a LoRA adapter that may be asked for",
    )


def add_compile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--compile",
        type=_compiler,
        nargs="?",
        const="torch",
        metavar="|".join(get_args(Compiler)),
        help="compile the denoiser first, by torch if none is named (docs/engine.md)",
    )


def add_byte_identical(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--byte-identical",
        action=argparse.BooleanOptionalAction,
        help="the same bytes in any company (so on a CPU; costs speed on a GPU)",
    )


def engine_config(options: argparse.Namespace) -> EngineConfig:
    """Of `--compile` and `--byte-identical`; what was left out is the device's to say."""
    chosen = {"compile": options.compile, "byte_identical": options.byte_identical}
    return EngineConfig(**{name: value for name, value in chosen.items() if value is not None})


def _compiler(text: str) -> str:
    if text not in get_args(Compiler):
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(get_args(Compiler))}")
    if importlib.util.find_spec(text) is None:
        raise argparse.ArgumentTypeError(f"it is not installed: pip install {text}")
    return text


def _adapter(text: str) -> tuple[str, Path]:
    name, file = pair(text)
    try:
        TypeAdapter(AdapterName).validate_python(name)
    except ValidationError:
        what = "letters, digits, - and _ make the name of an adapter"
        raise argparse.ArgumentTypeError(f"{name!r}: {what}") from None
    return name, Path(file)
