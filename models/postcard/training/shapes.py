"""What a picture is made of: coloured polygons.

Lengths are in units of the short side and y points down, so that a scene looks the same at every
size. What a shape is of is said by its role; how that looks is the style's business.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]
Colour = tuple[float, float, float]
Polygon = list[Point]

WHITE: Colour = (255, 255, 255)
SNOW: Colour = (242, 246, 252)
DARK_SKIES = ("night", "storm", "sunset")


@dataclass(frozen=True)
class Shape:
    """Polygons that are one thing, and its colour.

    Roles: light, star, cloud, mountain, shade, cap, hill, pine, tower, window, ground, furrow,
    water, wave, isle, thing (an object's coloured part), part (its other parts), flake, drop.
    """

    role: str
    colour: Colour
    polygons: Sequence[Polygon]


def placed(shape: Shape, x: float, y: float, size: float) -> Shape:
    """`shape`, that was drawn around the origin, so large and there."""
    polygons = [[(x + size * dx, y + size * dy) for dx, dy in each] for each in shape.polygons]
    return Shape(shape.role, shape.colour, polygons)


def blend(one: Colour, other: Colour, share: float) -> Colour:
    """`share` of the other colour in the one."""
    red, green, blue = (a + (b - a) * share for a, b in zip(one, other, strict=True))
    return red, green, blue


def tinted(colour: Colour, sky: str, strength: float = 1.0) -> Colour:
    """As it looks under that sky."""
    red, green, blue = colour
    grey = sum(colour) / 3
    under: dict[str, Colour] = {
        "day": colour,
        "sunset": (red * 0.95 + 12, green * 0.74 + 20, blue * 0.64 + 16),
        "night": (red * 0.34, green * 0.40, blue * 0.64),
        "dawn": (red * 0.9 + 22, green * 0.85 + 16, blue * 0.9 + 22),
        "storm": blend((red * 0.76, green * 0.76, blue * 0.76), (grey * 0.76,) * 3, 0.4),
    }
    return blend(colour, under[sky], strength)


def box(x: float, y: float, width: float, height: float) -> Polygon:
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]


def ellipse(x: float, y: float, rx: float, ry: float | None = None, corners: int = 28) -> Polygon:
    turns = (2 * math.pi * i / corners for i in range(corners))
    return [(x + rx * math.cos(turn), y + (ry or rx) * math.sin(turn)) for turn in turns]


def arch(x: float, y: float, radius: float, corners: int = 20) -> Polygon:
    """The upper half of a circle, from the left to the right."""
    turns = (math.pi * (1 + i / corners) for i in range(corners + 1))
    return [(x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in turns]


def crescent(x: float, y: float, radius: float) -> Polygon:
    turns = [math.pi * (0.5 + i / 16) for i in range(17)]
    rim = [(x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in turns]
    inner = [(x + 0.45 * radius * math.cos(turn), y + radius * math.sin(turn)) for turn in turns]
    return rim + inner[::-1]


def both_sides(*right: Point) -> Polygon:
    """A figure that is the same on the left, from its right side."""
    return [*right, *((-x, y) for x, y in reversed(right) if x)]
