"""A scene as shapes, back to front: where everything comes to lie."""

import math
from collections.abc import Iterator, Sequence
from random import Random

from .scenes import Scene
from .shapes import (
    DARK_SKIES,
    SNOW,
    Colour,
    Polygon,
    Shape,
    blend,
    box,
    crescent,
    ellipse,
    placed,
    tinted,
)
from .things import STANDING, Looks, bridge

_LIGHT: dict[str, Colour] = {
    "day": (255, 214, 50),
    "sunset": (255, 234, 140),
    "dawn": (255, 242, 196),
    "night": (248, 242, 208),
}
_CLOUD: dict[str, Colour] = {
    "day": (250, 252, 255),
    "sunset": (255, 216, 174),
    "dawn": (255, 234, 238),
    "storm": (90, 96, 108),
}
_WATER: dict[str, Colour] = {
    "day": (34, 118, 194),
    "sunset": (188, 90, 84),
    "night": (18, 32, 84),
    "dawn": (134, 128, 198),
    "storm": (64, 84, 100),
}
_EARTH: dict[str, tuple[Colour, Colour]] = {  # far, near
    "meadow": ((100, 180, 84), (70, 148, 72)),
    "desert": ((238, 200, 124), (222, 170, 98)),
}
_SNOWY_EARTH: tuple[Colour, Colour] = (SNOW, (218, 228, 242))
_ROCKS: tuple[Colour, ...] = ((104, 120, 152), (124, 112, 120), (92, 128, 134))
_WALLS: tuple[Colour, ...] = ((96, 108, 136), (130, 116, 130), (84, 122, 142), (152, 130, 118))
_PINES: tuple[Colour, ...] = ((30, 98, 60), (40, 110, 56), (24, 88, 70))
_PUFFS = (  # of a cloud: where, and how large
    (0, 0, 0.085, 0.040),
    (-0.070, 0.012, 0.050, 0.032),
    (0.070, 0.014, 0.055, 0.034),
    (-0.022, -0.026, 0.050, 0.038),
    (0.034, -0.030, 0.044, 0.034),
)


def compose(scene: Scene, chance: Random, width: float, height: float) -> tuple[list[Shape], float]:
    """The shapes of a picture of so many short sides, and the height of its horizon."""
    low, high = (0.56, 0.64) if scene.ground == "sea" else (0.60, 0.68)
    place = _Place(scene, chance, width, height, height * chance.uniform(low, high))
    shapes = [*place.sky(), *place.backdrop(), *place.ground(), *place.things(), *place.weather()]
    return shapes, place.horizon


class _Place:
    def __init__(
        self, scene: Scene, chance: Random, width: float, height: float, horizon: float
    ) -> None:
        self._scene, self._chance = scene, chance
        self._width, self._height, self.horizon = width, height, horizon
        self._has_snow = scene.weather == "snow"

    def sky(self) -> Iterator[Shape]:
        scene, chance = self._scene, self._chance
        if scene.sky == "night":
            yield Shape("star", (250, 246, 220), [*self._stars()])
        if scene.has_light:
            x = self._width * chance.choice((0.2, 0.5, 0.8)) + chance.uniform(-0.06, 0.06)
            y, radius = self._height * chance.uniform(0.13, 0.22), chance.uniform(0.08, 0.11)
            is_crescent = scene.sky == "night" and chance.random() < 0.5
            disc = crescent(x, y, radius) if is_crescent else ellipse(x, y, radius)
            yield Shape("light", _LIGHT[scene.sky], [disc])
        if scene.has_clouds:
            for _ in range(chance.randint(2, 3) + 2 * (scene.sky == "storm")):
                yield Shape("cloud", _CLOUD[scene.sky], [*self._cloud()])

    def backdrop(self) -> Iterator[Shape]:
        match self._scene.backdrop:
            case "twin peaks":
                yield from self._twin_peaks()
            case "mountain":
                yield from self._mountain()
            case "hills":
                yield from self._hills()
            case "city":
                yield from self._skyline((0.18, 0.44), (0.10, 0.16))
            case "forest":
                yield from self._forest()
        if self._scene.is_san_francisco and self._scene.backdrop == "twin peaks":
            yield from self._skyline((0.05, 0.14), (0.07, 0.11))

    def ground(self) -> Iterator[Shape]:
        scene, depth = self._scene, self._height - self.horizon
        if scene.ground == "sea":
            water = _WATER[scene.sky]
            yield Shape("water", water, [box(-0.05, self.horizon, self._width + 0.1, depth + 0.1)])
            yield Shape("wave", blend(water, (255, 244, 236), 0.42), [*self._waves()])
            return
        earth = _SNOWY_EARTH if self._has_snow else _EARTH[scene.ground]
        sway = 0.012 if scene.ground == "meadow" else 0.03
        for role, colour, share in zip(("ground", "furrow"), earth, (0.0, 0.5), strict=True):
            line = self._wavy(self.horizon + depth * share, sway * (1 + 1.5 * share), 3.6)
            yield Shape(role, self._tint(colour, 0.9), [self._down_from(line)])

    def things(self) -> Iterator[Shape]:
        chance, depth = self._chance, self._height - self.horizon
        places = chance.sample((0.25, 0.5, 0.75), k=3)
        for thing, place in zip(self._scene.things, places, strict=False):
            x = self._width * place + chance.uniform(-0.04, 0.04)
            y = self.horizon + depth * chance.uniform(0.4, 0.6)
            size, looks = chance.uniform(0.9, 1.1), Looks(thing, self._scene)
            if thing.kind == "bridge":
                deck = self.horizon + depth * chance.uniform(0.2, 0.35)
                yield from bridge(looks, self._width, deck)
                continue
            if thing.kind == "balloon":
                y = self._height * chance.uniform(0.24, 0.32)
            yield from (placed(shape, x, y, size) for shape in STANDING[thing.kind](looks))

    def weather(self) -> Iterator[Shape]:
        chance, number = self._chance, int(60 * self._width * self._height)
        spots = [
            (chance.uniform(0, self._width), chance.uniform(0, self._height)) for _ in range(number)
        ]
        if self._has_snow:
            flakes = [ellipse(x, y, chance.uniform(0.008, 0.014), corners=8) for x, y in spots]
            yield Shape("flake", (253, 253, 255), flakes)
        elif self._scene.weather == "rain":
            is_dark = self._scene.sky in DARK_SKIES
            slant = ((0, 0), (0.010, 0), (-0.014, 0.075), (-0.024, 0.075))
            drops = [[(x + dx, y + dy) for dx, dy in slant] for x, y in spots]
            yield Shape("drop", (214, 230, 246) if is_dark else (72, 112, 184), drops)

    def _tint(self, colour: Colour, strength: float = 1.0) -> Colour:
        return tinted(colour, self._scene.sky, strength)

    def _wavy(self, y: float, sway: float, waves: float) -> Polygon:
        phase = self._chance.uniform(0, 2 * math.pi)
        steps = [self._width * (i / 24 * 1.1 - 0.05) for i in range(25)]
        return [(x, y + sway * math.sin(phase + waves * x)) for x in steps]

    def _down_from(self, line: Sequence[tuple[float, float]]) -> Polygon:
        bottom = self._height + 0.1
        return [*line, (line[-1][0], bottom), (line[0][0], bottom)]

    def _stars(self) -> Iterator[Polygon]:
        chance = self._chance
        for _ in range(int(24 * self._width * self._height)):
            x, y = chance.uniform(0, self._width), chance.uniform(0, self.horizon * 0.85)
            yield ellipse(x, y, chance.uniform(0.006, 0.010), corners=8)

    def _cloud(self) -> Iterator[Polygon]:
        chance = self._chance
        x, y = chance.uniform(0.1, self._width - 0.1), chance.uniform(0.08, 0.32) * self._height
        size = chance.uniform(0.8, 1.3)
        for dx, dy, rx, ry in _PUFFS:
            yield ellipse(x + dx * size, y + dy * size, rx * size, ry * size)

    def _waves(self) -> Iterator[Polygon]:
        chance = self._chance
        for _ in range(int(13 * self._width)):
            x, y = chance.uniform(0, self._width), chance.uniform(self.horizon + 0.03, self._height)
            yield box(x, y, chance.uniform(0.06, 0.13), 0.012)

    def _twin_peaks(self) -> Iterator[Shape]:
        """Two of one height that meet low, so that they are never one mountain."""
        rock, height = self._chance.choice(_ROCKS), self._height * self._chance.uniform(0.36, 0.44)
        for middle in self._chance.sample((0.29, 0.71), k=2):
            x = self._width * middle + self._chance.uniform(-0.02, 0.02)
            tall = height * self._chance.uniform(0.92, 1.06)
            yield from self._peak(x, self._width * 0.52, tall, rock, hollow=0.0)

    def _mountain(self) -> Iterator[Shape]:
        """One in the middle, with hollow flanks as a volcano's."""
        x = self._width * self._chance.uniform(0.44, 0.56)
        tall = self._height * self._chance.uniform(0.44, 0.52)
        rock = self._chance.choice(_ROCKS)
        yield from self._peak(x, self._width * 1.05, tall, rock, hollow=0.22)

    def _peak(
        self, x: float, width: float, tall: float, rock: Colour, hollow: float
    ) -> Iterator[Shape]:
        foot = self.horizon + 0.03
        left, right = (self._flank(x, foot, width, tall, hollow, side) for side in (-1, 1))
        top = (x, foot - tall)
        yield Shape("mountain", self._tint(rock), [[*left, top, *right[::-1]]])
        ridge = [(x + width * 0.03, foot - tall * 0.5), (x + width * 0.08, foot)]
        shade = self._tint(blend(rock, (40, 50, 80), 0.28))
        yield Shape("shade", shade, [[top, *right[::-1], *ridge[::-1]]])
        half, y = width * (0.15 - 0.21 * hollow), foot - tall * 0.7
        rim = ((1, 0), (0.45, -0.05), (0.1, 0.05), (-0.4, -0.05), (-1, 0))
        cap = [(x + half * dx, y + tall * dy) for dx, dy in rim]
        yield Shape("cap", self._tint((250, 252, 254), 0.5), [[top, *cap]])

    def _flank(
        self, x: float, foot: float, width: float, tall: float, hollow: float, side: int
    ) -> Polygon:
        """From the foot up, without the top."""
        points = []
        for share in (0.0, 0.3, 0.55, 0.8):
            out = (1 - share) * width / 2 - hollow * width * share * (1 - share)
            rough = self._chance.uniform(-0.012, 0.012) if share > 0 else 0
            points.append((x + side * out + rough, foot - tall * share + rough))
        return points

    def _hills(self) -> Iterator[Shape]:
        greens: tuple[Colour, Colour] = ((132, 190, 100), (88, 160, 80))
        white: tuple[Colour, Colour] = (SNOW, blend(SNOW, (200, 214, 234), 0.5))
        for number, colour in enumerate(white if self._has_snow else greens):
            y = self.horizon - 0.13 + 0.07 * number
            line = self._wavy(y, self._chance.uniform(0.05, 0.08), 4.4)
            yield Shape("hill", self._tint(colour), [self._down_from(line)])

    def _forest(self) -> Iterator[Shape]:
        chance, green = self._chance, self._chance.choice(_PINES)
        for row in range(2):
            foot, number = self.horizon + 0.02 + 0.035 * row, int(7 * self._width) + row
            for i in range(number + 1):
                x = self._width * (i + 0.5 * row) / number + chance.uniform(-0.02, 0.02)
                tall = chance.uniform(0.24, 0.34) - 0.05 * row
                haze = chance.uniform(0, 0.25) + 0.25 * (1 - row)
                colour = self._tint(blend(green, (84, 144, 92), haze))
                yield Shape("pine", colour, [_fir(x, foot, tall, 1.0)])
                if self._has_snow:
                    yield Shape("cap", self._tint(SNOW, 0.6), [_fir(x, foot, tall, 0.4)])

    def _skyline(self, tall: tuple[float, float], wide: tuple[float, float]) -> Iterator[Shape]:
        chance, x, foot = self._chance, -0.02, self.horizon + 0.03
        is_dark = self._scene.sky in DARK_SKIES
        while x < self._width:
            width, height = chance.uniform(*wide), chance.uniform(*tall)
            wall = self._tint(chance.choice(_WALLS))
            yield Shape("tower", wall, [box(x, foot - height, width, height + 0.03)])
            if lit := [*self._windows(x, foot - height, width, height)]:
                yield Shape("window", (255, 226, 120) if is_dark else (216, 236, 248), lit)
            x += width + chance.choice((0, 0, 0.012))

    def _windows(self, x: float, y: float, width: float, height: float) -> Iterator[Polygon]:
        columns, rows = max(1, int(width / 0.045)), max(1, int(height / 0.06))
        each = width / columns
        for i in range(columns):
            for j in range(rows):
                if self._chance.random() < 0.75:
                    yield box(x + each * (i + 0.28), y + 0.022 + 0.06 * j, each * 0.44, 0.028)


def _fir(x: float, foot: float, tall: float, share: float) -> Polygon:
    """Its upper `share`."""
    y = foot - tall * (1 - share)
    return [(x, foot - tall), (x + tall * 0.25 * share, y), (x - tall * 0.25 * share, y)]
