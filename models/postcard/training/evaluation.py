"""How well a model follows its prompts, judged by a classifier of our own drawings.

python -m models.postcard.training.evaluation --model postcard

The classifier learns from drawings alone, never from what a model made. Held-out drawings tell how
far it can be trusted; then it reads what the model makes of captions that name everything. Grids of
the first pictures are saved beside it.
"""

import argparse
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor, nn

from shared.config import ModelConfig
from shared.pipeline import load_pipeline

from .autoencoder import as_tensor
from .captions import full_caption
from .export import DEFAULTS, grid
from .machine import add_device
from .scenes import (
    BACKDROPS,
    COLOURED_KINDS,
    COLOURS,
    GROUNDS,
    KINDS,
    SKIES,
    STYLES,
    WEATHERS,
    Scene,
    sample_scene,
)
from .styles import draw
from .trainer import Schedule, train

CHOICES = {
    "style": STYLES,
    "sky": SKIES,
    "ground": GROUNDS,
    "backdrop": BACKDROPS,
    "weather": WEATHERS,
}
# Of objects that are named: are they there, and in their colours? And is there no other one?
COUNTED = (*CHOICES, "object", "its colour", "no other")
_SIDE = 128  # pixels that the classifier sees
_AT_ONCE = 20  # pictures that are made together
_HELD_OUT = 10**9  # where the seeds of scenes begin that nothing is trained on
_SCHEDULE = Schedule(steps=2500, muon_lr=3e-3, adamw_lr=1e-3, average=0.99)

Labels = dict[str, Tensor]


class Classifier(nn.Module):
    """All attributes of a picture [n, 3, 128, 128] in -1..1, as logits."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 96, 128)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after)]
            layers += [nn.SiLU(), nn.Conv2d(after, after, 3, padding=1), nn.SiLU()]
        self.features = nn.Sequential(*layers)
        sizes = {name: len(values) for name, values in CHOICES.items()}
        sizes |= {"things": len(KINDS)}
        sizes |= {_colour_of(kind): len(COLOURS) for kind in COLOURED_KINDS}
        self.heads = nn.ModuleDict(
            {name: nn.Linear(2 * widths[-1], size) for name, size in sizes.items()}
        )

    def forward(self, images: Tensor) -> Labels:
        features = self.features(images)
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)
        return {name: head(pooled) for name, head in self.heads.items()}


def main() -> None:
    options = _parse()
    options.run.mkdir(parents=True, exist_ok=True)
    classifier = train_classifier(options.run, options.device)
    numbers = range(options.number)
    scenes = [held_out_scene(number) for number in numbers]
    prompts = [full_caption(scenes[number], Random(number)) for number in numbers]
    print(f"| {options.number} pictures | {' | '.join(COUNTED)} |\n|---|{'---|' * len(COUNTED)}")
    drawings = [draw(_HELD_OUT + number, 256, 256)[0] for number in numbers]
    _print_row("held-out drawings", classifier, drawings, scenes)
    pipeline = load_pipeline(ModelConfig(name=options.model, device=options.device))
    pipeline.set_progress_bar_config(disable=True)
    for size in options.sizes:
        for steps in options.steps:
            pictures = render(pipeline, prompts, numbers, size, steps)
            _print_row(f"{size} px, {steps} steps", classifier, pictures, scenes)
            grid(pictures[:24], columns=8).save(options.run / f"grid-{size}px-{steps}.png")


def held_out_scene(number: int) -> Scene:
    """A scene that nothing is trained on."""
    return sample_scene(Random(_HELD_OUT + number))


def render(
    pipeline: DiffusionPipeline, prompts: Sequence[str], seeds: Sequence[int], size: int, steps: int
) -> list[Image.Image]:
    """A square picture of each of the prompts."""
    settings = DEFAULTS | {"width": size, "height": size, "num_inference_steps": steps}
    pictures: list[Image.Image] = []
    for first in range(0, len(prompts), _AT_ONCE):
        these = slice(first, first + _AT_ONCE)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[these]]
        pictures += pipeline(list(prompts[these]), generator=generators, **settings).images
    return pictures


def train_classifier(run: Path, device: str) -> Classifier:
    torch.manual_seed(0)
    classifier = Classifier()

    def batch_at(step: int) -> tuple[Tensor, Labels]:
        chance = Random(f"classifier {step}")
        drawn = [
            draw(chance.randrange(_HELD_OUT), side, side)
            for side in [chance.choice((128, 256))] * 24
        ]
        images = torch.cat([_seen(_worn(picture, chance)) for picture, _ in drawn])
        return images, _labels([scene for _, scene in drawn])

    def loss_of(batch: tuple[Tensor, Labels]) -> Tensor:
        images, labels = batch
        noisy = images + torch.randn_like(images) * 0.1 * torch.rand(1)
        found = classifier(noisy.to(device))
        return _loss(found, {name: label.to(device) for name, label in labels.items()})

    outer = ("features.0.", "heads")
    trained = train(
        "classifier", run, classifier, _SCHEDULE, batch_at, loss_of, outer, device=device
    )
    assert isinstance(trained, Classifier)
    return trained.cpu()


def judge(
    classifier: Classifier, pictures: Sequence[Image.Image], scenes: Sequence[Scene]
) -> dict[str, float]:
    """The share that is right of each that is COUNTED; what is "none" is not."""
    right: dict[str, list[bool]] = {name: [] for name in COUNTED}
    for picture, scene in zip(pictures, scenes, strict=True):
        with torch.no_grad():
            found = classifier(_seen(picture))
        for name, values in CHOICES.items():
            if getattr(scene, name) != "none":
                right[name].append(values[int(found[name].argmax())] == getattr(scene, name))
        seen = dict(zip(KINDS, (found["things"][0] > 0).tolist(), strict=True))
        for thing in scene.things:
            right["object"].append(seen.pop(thing.kind))
            if thing.kind in COLOURED_KINDS:
                colour = COLOURS[int(found[_colour_of(thing.kind)].argmax())]
                right["its colour"].append(colour == thing.colour)
        right["no other"].append(not any(seen.values()))
    return {name: sum(each) / len(each) if each else math.nan for name, each in right.items()}


def _print_row(
    name: str, classifier: Classifier, pictures: Sequence[Image.Image], scenes: Sequence[Scene]
) -> None:
    shares = judge(classifier, pictures, scenes).values()
    print(f"| {name} | {' | '.join(f'{share:.2f}' for share in shares)} |", flush=True)


def _seen(picture: Image.Image) -> Tensor:
    small = picture.resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return as_tensor([small])


def _worn(picture: Image.Image, chance: Random) -> Image.Image:
    """Sometimes less sharp, as what a model makes."""
    side = chance.choice((40, 64, 96, 128, 128))
    return picture.resize((side, side), Image.Resampling.BOX).resize(
        (_SIDE, _SIDE), Image.Resampling.BICUBIC
    )


def _labels(scenes: Sequence[Scene]) -> Labels:
    labels = {
        name: torch.tensor([values.index(getattr(scene, name)) for scene in scenes])
        for name, values in CHOICES.items()
    }
    colours = [
        {thing.kind: COLOURS.index(thing.colour) for thing in scene.things} for scene in scenes
    ]
    labels["things"] = torch.tensor([[float(kind in each) for kind in KINDS] for each in colours])
    for kind in COLOURED_KINDS:
        labels[_colour_of(kind)] = torch.tensor([each.get(kind, -1) for each in colours])
    return labels


def _loss(found: Labels, labels: Labels) -> Tensor:
    losses = [F.binary_cross_entropy_with_logits(found["things"], labels["things"])]
    for name, label in labels.items():
        if name != "things" and bool((label >= 0).any()):
            losses.append(F.cross_entropy(found[name], label, ignore_index=-1))
    return torch.stack(losses).sum()


def _colour_of(kind: str) -> str:
    return f"colour of {kind}"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="postcard", help="a folder or a name (%(default)s)")
    parser.add_argument(
        "--run", type=Path, default=Path("run"), help="for the classifier (%(default)s)"
    )
    parser.add_argument("--number", type=int, default=200, help="of captions (%(default)s)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256], help="px (%(default)s)")
    parser.add_argument("--steps", type=int, nargs="+", default=[20], help="(%(default)s)")
    add_device(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
