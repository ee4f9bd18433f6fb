"""Sheets of pictures, for what is judged by eye.

python -m models.postcard.training.sheets --model postcard

Fifty captions that `evaluation` has not seen, ten seeds of one prompt, and a prompt with a word
that no caption has. Of that it is also said how far the word changes the picture.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from random import Random

from diffusers import DiffusionPipeline
from PIL import Image, ImageChops, ImageStat

from shared.config import ModelConfig
from shared.pipeline import load_pipeline

from .captions import full_caption
from .evaluation import held_out_scene, render
from .export import grid
from .machine import add_device

_CAPTIONS = range(200, 250)
_TWIN_PEAKS = "twin peaks sf in basquiat painting style"
_UNKNOWN = ("quokka", "zeppelin", "masterpiece", "octane", "bokeh", "kafkaesque", "xyzzy")


def main() -> None:
    options = _parse()
    options.run.mkdir(parents=True, exist_ok=True)
    pipeline = load_pipeline(ModelConfig(name=options.model, device=options.device))
    for name, pictures in _sheets(pipeline):
        grid(pictures, columns=5).save(options.run / f"{name}.png")


def _sheets(pipeline: DiffusionPipeline) -> Iterator[tuple[str, list[Image.Image]]]:
    yield "twin-peaks-640px", render(pipeline, [_TWIN_PEAKS] * 10, range(10), 640, 20)
    yield "unknown-words-256px", _with_unknown_words(pipeline)
    captions = [full_caption(held_out_scene(number), Random(number)) for number in _CAPTIONS]
    yield "captions-640px", render(pipeline, captions, _CAPTIONS, 640, 12)


def _with_unknown_words(pipeline: DiffusionPipeline) -> list[Image.Image]:
    """The prompt with nothing more, with each word, and from another seed."""
    prompts = [_TWIN_PEAKS, *(f"{_TWIN_PEAKS}, {word}" for word in _UNKNOWN), _TWIN_PEAKS]
    pictures = render(pipeline, prompts, [0] * (len(prompts) - 1) + [1], 256, 20)
    plain, *others = pictures
    for name, other in zip((*_UNKNOWN, "(another seed)"), others, strict=True):
        print(f"{name}: changes a value by {_difference(plain, other):.1f} of 255 on average")
    return pictures


def _difference(one: Image.Image, other: Image.Image) -> float:
    means = ImageStat.Stat(ImageChops.difference(one, other)).mean
    return sum(means) / len(means)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="postcard", help="a folder or a name (%(default)s)")
    parser.add_argument("--run", type=Path, default=Path("run"), help="where to (%(default)s)")
    add_device(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
