"""What a postcard shows: a scene is a handful of choices, drawn from a seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

T = TypeVar("T")

STYLES = ("flat", "watercolor", "basquiat", "neon", "pixel", "sketch")
SKIES = ("day", "sunset", "night", "dawn", "storm")
GROUNDS = ("meadow", "sea", "desert")
BACKDROPS = ("none", "twin peaks", "mountain", "hills", "city", "forest")
WEATHERS = ("none", "snow", "rain")
KINDS = ("house", "boat", "lighthouse", "balloon", "tree", "cactus", "bridge")
COLOURS = ("red", "blue", "yellow", "green", "orange", "purple", "pink", "white")
# The others are green, whatever the style.
COLOURED_KINDS = ("house", "boat", "lighthouse", "balloon", "bridge")

_KINDS_ON = {
    "meadow": {"house": 30, "tree": 26, "balloon": 24, "lighthouse": 16, "cactus": 4},
    "sea": {"boat": 38, "lighthouse": 22, "bridge": 22, "balloon": 18},
    "desert": {"cactus": 46, "balloon": 24, "house": 20, "tree": 10},
}


@dataclass(frozen=True)
class Thing:
    """An object in the scene. `colour` is one of COLOURS."""

    kind: str
    colour: str


@dataclass(frozen=True)
class Scene:
    style: str
    sky: str
    ground: str
    backdrop: str
    weather: str
    things: tuple[Thing, ...]
    has_light: bool  # a sun, or at night a moon
    has_clouds: bool
    is_san_francisco: bool


def sample_scene(chance: Random) -> Scene:
    sky = _choice(chance, SKIES, (32, 19, 20, 16, 13))
    ground = _choice(chance, GROUNDS, (42, 36, 22))
    backdrop = _choice(chance, BACKDROPS, (22, 24, 16, 13, 14, 11))
    if ground == "desert" and backdrop in ("hills", "forest"):
        ground = "meadow"
    return Scene(
        style=_choice(chance, STYLES, (26, 14, 18, 14, 14, 14)),
        sky=sky,
        ground=ground,
        backdrop=backdrop,
        weather=_choice(chance, WEATHERS, (76, 13, 11)),
        things=_sample_things(chance, ground),
        has_light=sky != "storm" and chance.random() < 0.6,
        has_clouds=sky == "storm" or (sky != "night" and chance.random() < 0.4),
        is_san_francisco=backdrop in ("twin peaks", "city") and chance.random() < 0.2,
    )


def _sample_things(chance: Random, ground: str) -> tuple[Thing, ...]:
    weights = _KINDS_ON[ground]
    number = _choice(chance, (0, 1, 2), (24, 64, 12))
    kinds = dict.fromkeys(
        _choice(chance, list(weights), list(weights.values())) for _ in range(number)
    )
    return tuple(
        Thing(kind, chance.choice(COLOURS) if kind in COLOURED_KINDS else "green") for kind in kinds
    )


def _choice(chance: Random, values: Sequence[T], weights: Sequence[float]) -> T:
    return chance.choices(values, weights)[0]
