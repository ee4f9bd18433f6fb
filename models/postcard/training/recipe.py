"""How much of everything: the sizes that are learnt, and for how long."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from .denoiser import Bucket
from .latents import Size
from .trainer import Schedule


@dataclass(frozen=True)
class Recipe:
    autoencoder: Schedule
    denoiser: Schedule
    num_scenes: Mapping[Size, int]
    buckets: Mapping[Size, Bucket]


# Objects are learnt in small pictures, where one costs an eighth; layout and edges in large ones.
BUCKETS = {
    (128, 128): Bucket(batch=32, early=0.62, late=0.12),
    (192, 192): Bucket(batch=16, early=0.18, late=0.06),
    (256, 256): Bucket(batch=12, early=0.20, late=0.44),
    (384, 384): Bucket(batch=5, early=0, late=0.08),
    (512, 512): Bucket(batch=3, early=0, late=0.10),
    (640, 640): Bucket(batch=2, early=0, late=0.10),
    (256, 192): Bucket(batch=12, early=0, late=0.025),
    (192, 256): Bucket(batch=12, early=0, late=0.025),
    (384, 256): Bucket(batch=8, early=0, late=0.025),
    (256, 384): Bucket(batch=8, early=0, late=0.025),
}

_CPU = Recipe(
    autoencoder=Schedule(steps=4000, muon_lr=5e-3, adamw_lr=1e-3, average=0.998),
    denoiser=Schedule(steps=30_000, muon_lr=4e-3, adamw_lr=1e-3, average=0.9995, save_every=1000),
    num_scenes={
        (128, 128): 30_000,
        (192, 192): 8000,
        (256, 256): 20_000,
        (384, 384): 3000,
        (512, 512): 2000,
        (640, 640): 2000,
        (256, 192): 2000,
        (192, 256): 2000,
        (384, 256): 2000,
        (256, 384): 2000,
    },
    buckets=BUCKETS,
)

# A GPU learns from eight times as many pictures in a step, and needs fewer steps.
_CUDA = replace(
    _CPU,
    denoiser=replace(_CPU.denoiser, steps=2200, average=0.999),
    buckets={size: replace(each, batch=8 * each.batch) for size, each in BUCKETS.items()},
)

FULL = {"cpu": _CPU, "cuda": _CUDA}

# Every stage in a minute or two: its pictures are noise.
TINY = Recipe(
    autoencoder=Schedule(steps=6, muon_lr=5e-3, adamw_lr=1e-3, warm_up=2),
    denoiser=Schedule(steps=6, muon_lr=4e-3, adamw_lr=1e-3, warm_up=2),
    num_scenes={(128, 128): 32, (256, 256): 16},
    buckets={size: BUCKETS[size] for size in ((128, 128), (256, 256))},
)
