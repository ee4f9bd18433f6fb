"""The objects of a scene, each drawn around the origin: most of them stand on it."""

from collections.abc import Callable
from dataclasses import dataclass

from .scenes import Scene, Thing
from .shapes import (
    DARK_SKIES,
    SNOW,
    WHITE,
    Colour,
    Point,
    Polygon,
    Shape,
    arch,
    blend,
    both_sides,
    box,
    ellipse,
    tinted,
)

RGB: dict[str, Colour] = {
    "red": (216, 38, 36),
    "blue": (32, 84, 216),
    "yellow": (252, 212, 36),
    "green": (40, 164, 72),
    "orange": (246, 130, 22),
    "purple": (128, 52, 180),
    "pink": (248, 132, 180),
    "white": (248, 248, 246),
}
_CABLE = 0.018


@dataclass(frozen=True)
class Looks:
    """Of an object in its scene."""

    thing: Thing
    scene: Scene

    @property
    def colour(self) -> Colour:
        return self.tint(RGB[self.thing.colour], 0.22)  # little, so that it can be named

    @property
    def has_snow(self) -> bool:
        return self.scene.weather == "snow"

    @property
    def window(self) -> Colour:
        return (255, 228, 120) if self.scene.sky in DARK_SKIES else (196, 230, 248)

    def tint(self, colour: Colour, strength: float) -> Colour:
        return tinted(colour, self.scene.sky, strength)


def _house(looks: Looks) -> list[Shape]:
    is_warm = looks.thing.colour in ("red", "orange", "pink")
    roof: Colour = (70, 62, 84) if is_warm else (126, 58, 46)
    return [
        Shape("thing", looks.colour, [box(-0.17, -0.24, 0.34, 0.24)]),
        Shape(
            "part",
            looks.tint(SNOW if looks.has_snow else roof, 0.4),
            [both_sides((0, -0.41), (0.21, -0.24))],
        ),
        Shape("part", looks.tint((90, 56, 38), 0.5), [box(-0.035, -0.14, 0.07, 0.14)]),
        Shape("part", looks.window, [box(x, -0.19, 0.06, 0.06) for x in (-0.14, 0.08)]),
    ]


def _boat(looks: Looks) -> list[Shape]:
    wood = looks.tint((124, 76, 46), 0.5)
    sail = [(0.018, -0.42), (0.018, -0.06), (0.21, -0.06)]
    jib = [(-0.018, -0.37), (-0.018, -0.06), (-0.16, -0.06)]
    hull = [(-0.24, -0.035), (0.26, -0.035), (0.16, 0.07), (-0.16, 0.07)]
    return [
        Shape("part", wood, [box(-0.008, -0.42, 0.016, 0.38)]),
        Shape("thing", looks.colour, [sail]),
        Shape("thing", blend(looks.colour, WHITE, 0.2), [jib]),
        Shape("part", wood, [hull]),
    ]


def _lighthouse(looks: Looks) -> list[Shape]:
    is_white = looks.thing.colour == "white"
    other = looks.tint((84, 92, 108) if is_white else (248, 246, 240), 0.3)
    shapes = []
    if looks.scene.ground == "sea":
        isle = [(-0.26, 0.06), (-0.16, -0.03), (0.02, -0.045), (0.17, -0.02), (0.26, 0.06)]
        shapes.append(Shape("isle", looks.tint((116, 106, 100), 1), [isle]))
    for stripe in range(5):
        low, high = ((0.085 - 0.006 * i, -0.092 * i) for i in (stripe, stripe + 1))
        is_coloured = stripe % 2 == 0
        shapes.append(
            Shape(
                "thing" if is_coloured else "part",
                looks.colour if is_coloured else other,
                [both_sides(high, low)],
            )
        )
    shapes.append(Shape("part", (255, 238, 132), [box(-0.044, -0.53, 0.088, 0.07)]))
    shapes.append(Shape("thing", looks.colour, [both_sides((0, -0.60), (0.072, -0.53))]))
    return shapes


def _balloon(looks: Looks) -> list[Shape]:
    """Around the middle of its envelope."""
    is_white = looks.thing.colour == "white"
    stripe = looks.tint((216, 72, 62), 0.3) if is_white else blend(looks.colour, WHITE, 0.5)
    skirt = [(0.132, 0.091), (0.041, 0.214), (-0.041, 0.214), (-0.132, 0.091)]
    band = both_sides((0, -0.165), (0.059, -0.05), (0.054, 0.083), (0.016, 0.211))
    return [
        Shape("thing", looks.colour, [[*arch(0, 0, 0.165), *skirt]]),
        Shape("part", stripe, [band]),
        Shape("part", looks.tint((128, 84, 48), 0.5), [box(-0.036, 0.248, 0.073, 0.056)]),
    ]


def _tree(looks: Looks) -> list[Shape]:
    leaves: Colour = (228, 236, 244) if looks.has_snow else (62, 146, 64)
    puffs = ((0, -0.34, 0.13), (-0.09, -0.29, 0.10), (0.09, -0.29, 0.10), (0, -0.43, 0.10))
    return [
        Shape("part", looks.tint((106, 72, 46), 0.6), [box(-0.028, -0.24, 0.056, 0.24)]),
        Shape("thing", looks.tint(leaves, 0.6), [ellipse(*puff) for puff in puffs]),
    ]


def _cactus(looks: Looks) -> list[Shape]:
    polygons = [_column(0, 0, 0.095, 0.44)]
    for arm, low, tall in ((-0.135, 0.17, 0.17), (0.135, 0.23, 0.18)):
        polygons.append(_column(arm, 0.06 - low, 0.065, tall))
        polygons.append(box(min(0, arm), -low, abs(arm), 0.06))
    return [Shape("thing", looks.tint((50, 140, 76), 0.6), polygons)]


def _column(x: float, foot: float, width: float, height: float) -> Polygon:
    top = arch(x, foot - height + width / 2, width / 2, corners=8)
    return [*top, (x + width / 2, foot), (x - width / 2, foot)]


def bridge(looks: Looks, width: float, deck: float) -> list[Shape]:
    """From one side of the picture to the other, its deck at that height."""
    tall = 0.36
    towers = (width * 0.27, width * 0.73)
    left, right = ((x, deck - tall + 0.01) for x in towers)
    cables = [
        _cable(left, right, tall * 0.8),
        _cable((-0.05, deck - 0.03), left, 0.03),
        _cable(right, (width + 0.05, deck - 0.03), 0.03),
    ]
    return [
        Shape("thing", looks.colour, cables),
        Shape("thing", looks.colour, [box(x - 0.026, deck - tall, 0.052, 0.46) for x in towers]),
        Shape("thing", looks.colour, [box(-0.05, deck, width + 0.1, 0.045)]),
    ]


def _cable(start: Point, stop: Point, sag: float) -> Polygon:
    line = []
    for share in (i / 12 for i in range(13)):
        x, y = (a + (b - a) * share for a, b in zip(start, stop, strict=True))
        line.append((x, y + 4 * sag * share * (1 - share)))
    return line + [(x, y + _CABLE) for x, y in line[::-1]]


STANDING: dict[str, Callable[[Looks], list[Shape]]] = {
    "house": _house,
    "boat": _boat,
    "lighthouse": _lighthouse,
    "balloon": _balloon,
    "tree": _tree,
    "cactus": _cactus,
}
