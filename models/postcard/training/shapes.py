"""A scene as shapes, back to front.

Lengths are in units of the short side and y points down, so that a scene looks the same at every
size. What a shape is made of is said by its role; how that looks is the style's business.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from .scenes import Scene, Thing

Point = tuple[float, float]
Colour = tuple[float, float, float]
Polygon = list[Point]

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
SKY: dict[str, tuple[Colour, Colour]] = {  # at the top, at the horizon
    "day": ((58, 146, 226), (192, 230, 248)),
    "sunset": ((226, 76, 48), (255, 200, 88)),
    "night": ((8, 12, 44), (38, 50, 108)),
    "dawn": ((168, 134, 216), (255, 198, 206)),
    "storm": ((62, 68, 80), (138, 144, 154)),
}
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
    polygons: tuple[Polygon, ...]


def compose(scene: Scene, chance: Random, width: float, height: float) -> tuple[list[Shape], float]:
    """The shapes of a picture of so many short sides, and the height of its horizon."""
    horizon = height * (
        chance.uniform(0.56, 0.64) if scene.ground == "sea" else chance.uniform(0.60, 0.68)
    )
    place = _Place(scene, chance, width, height, horizon)
    shapes = [*place.sky(), *place.backdrop(), *place.ground(), *place.things(), *place.weather()]
    return shapes, horizon


def blend(one: Colour, other: Colour, share: float) -> Colour:
    """`share` of the other colour in the one."""
    return tuple(a + (b - a) * share for a, b in zip(one, other, strict=True))  # type: ignore[return-value]


def tinted(colour: Colour, sky: str, strength: float = 1.0) -> Colour:
    """As it looks under that sky."""
    red, green, blue = colour
    grey = sum(colour) / 3
    under: dict[str, Colour] = {
        "day": colour,
        "sunset": (red * 0.95 + 12, green * 0.74 + 20, blue * 0.64 + 16),
        "night": (red * 0.34, green * 0.40, blue * 0.64),
        "dawn": (red * 0.9 + 22, green * 0.85 + 16, blue * 0.9 + 22),
        "storm": tuple((part * 0.6 + grey * 0.4) * 0.76 for part in colour),  # type: ignore[dict-item]
    }
    return blend(colour, under[sky], strength)


def box(x: float, y: float, width: float, height: float) -> Polygon:
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]


def ellipse(x: float, y: float, rx: float, ry: float | None = None, corners: int = 28) -> Polygon:
    turns = (2 * math.pi * i / corners for i in range(corners))
    return [(x + rx * math.cos(turn), y + (ry or rx) * math.sin(turn)) for turn in turns]


def crescent(x: float, y: float, radius: float) -> Polygon:
    outer = [math.pi * (0.5 + i / 16) for i in range(17)]
    rim = [(x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in outer]
    inner = [(x + 0.45 * radius * math.cos(turn), y + radius * math.sin(turn)) for turn in outer]
    return rim + inner[::-1]


class _Place:
    """Where the shapes of one scene come to lie."""

    def __init__(
        self, scene: Scene, chance: Random, width: float, height: float, horizon: float
    ) -> None:
        self._scene, self._chance = scene, chance
        self._width, self._height, self._horizon = width, height, horizon
        self._has_snow = scene.weather == "snow"

    def sky(self) -> Iterator[Shape]:
        scene, chance = self._scene, self._chance
        if scene.sky == "night":
            stars = [
                ellipse(
                    chance.uniform(0, self._width),
                    chance.uniform(0, self._horizon * 0.85),
                    chance.uniform(0.006, 0.010),
                    corners=8,
                )
                for _ in range(int(24 * self._width * self._height))
            ]
            yield Shape("star", (250, 246, 220), tuple(stars))
        if scene.has_light:
            x = self._width * chance.choice((0.2, 0.5, 0.8)) + chance.uniform(-0.06, 0.06)
            y, radius = self._height * chance.uniform(0.13, 0.22), chance.uniform(0.08, 0.11)
            is_crescent = scene.sky == "night" and chance.random() < 0.5
            disc = crescent(x, y, radius) if is_crescent else ellipse(x, y, radius)
            yield Shape("light", _LIGHT[scene.sky], (disc,))
        if scene.has_clouds:
            for _ in range(chance.randint(2, 3) + 2 * (scene.sky == "storm")):
                yield Shape("cloud", _CLOUD[scene.sky], tuple(self._cloud()))

    def backdrop(self) -> Iterator[Shape]:
        match self._scene.backdrop:
            case "twin peaks":
                yield from self._twin_peaks()
            case "mountain":
                yield from self._mountain()
            case "hills":
                yield from self._hills()
            case "city":
                yield from self._skyline(0.18, 0.44, 0.10, 0.16)
            case "forest":
                yield from self._forest()
        if self._scene.is_san_francisco and self._scene.backdrop == "twin peaks":
            yield from self._skyline(0.05, 0.14, 0.07, 0.11)

    def ground(self) -> Iterator[Shape]:
        scene, horizon, depth = self._scene, self._horizon, self._height - self._horizon
        if scene.ground == "sea":
            water = _WATER[scene.sky]
            yield Shape("water", water, (box(-0.05, horizon, self._width + 0.1, depth + 0.1),))
            yield Shape("wave", blend(water, (255, 244, 236), 0.42), tuple(self._waves()))
            return
        colours: dict[str, tuple[Colour, Colour]] = {
            "meadow": ((100, 180, 84), (70, 148, 72)),
            "desert": ((238, 200, 124), (222, 170, 98)),
        }
        near_and_far = colours[scene.ground] if not self._has_snow else (SNOW, (218, 228, 242))
        sway = 0.012 if scene.ground == "meadow" else 0.03
        for role, colour, share in zip(("ground", "furrow"), near_and_far, (0.0, 0.5), strict=True):
            line = self._wavy(horizon + depth * share, sway * (1 + 1.5 * share), 3.6)
            yield Shape(role, self._tint(colour, 0.9), (self._down_from(line),))

    def things(self) -> Iterator[Shape]:
        places = self._chance.sample((0.25, 0.5, 0.75), k=3)
        for thing, place in zip(self._scene.things, places, strict=False):
            x = self._width * place + self._chance.uniform(-0.04, 0.04)
            foot = self._horizon + (self._height - self._horizon) * self._chance.uniform(0.4, 0.6)
            yield from self._thing(thing, x, foot, self._chance.uniform(0.9, 1.1))

    def weather(self) -> Iterator[Shape]:
        chance, number = self._chance, int(60 * self._width * self._height)
        spots = [
            (chance.uniform(0, self._width), chance.uniform(0, self._height)) for _ in range(number)
        ]
        if self._has_snow:
            flakes = (ellipse(x, y, chance.uniform(0.008, 0.014), corners=8) for x, y in spots)
            yield Shape("flake", (253, 253, 255), tuple(flakes))
        elif self._scene.weather == "rain":
            is_dark = self._scene.sky in DARK_SKIES
            drops = (
                [(x, y), (x + 0.010, y), (x - 0.014, y + 0.075), (x - 0.024, y + 0.075)]
                for x, y in spots
            )
            yield Shape("drop", (214, 230, 246) if is_dark else (72, 112, 184), tuple(drops))

    def _tint(self, colour: Colour, strength: float = 1.0) -> Colour:
        return tinted(colour, self._scene.sky, strength)

    def _wavy(self, y: float, sway: float, waves: float) -> Polygon:
        phase = self._chance.uniform(0, 2 * math.pi)
        steps = [self._width * (i / 24 * 1.1 - 0.05) for i in range(25)]
        return [(x, y + sway * math.sin(phase + waves * x)) for x in steps]

    def _down_from(self, line: Sequence[Point]) -> Polygon:
        return [*line, (line[-1][0], self._height + 0.1), (line[0][0], self._height + 0.1)]

    def _cloud(self) -> Iterator[Polygon]:
        chance = self._chance
        x, y = chance.uniform(0.1, self._width - 0.1), chance.uniform(0.08, 0.32) * self._height
        size = chance.uniform(0.8, 1.3)
        puffs = (
            (0, 0, 0.085, 0.040),
            (-0.070, 0.012, 0.050, 0.032),
            (0.070, 0.014, 0.055, 0.034),
            (-0.022, -0.026, 0.050, 0.038),
            (0.034, -0.030, 0.044, 0.034),
        )
        for dx, dy, rx, ry in puffs:
            yield ellipse(x + dx * size, y + dy * size, rx * size, ry * size)

    def _waves(self) -> Iterator[Polygon]:
        chance = self._chance
        for _ in range(int(13 * self._width)):
            x, y = (
                chance.uniform(0, self._width),
                chance.uniform(self._horizon + 0.03, self._height),
            )
            yield box(x, y, chance.uniform(0.06, 0.13), 0.012)

    def _rock(self) -> Colour:
        return self._chance.choice(((104, 120, 152), (124, 112, 120), (92, 128, 134)))

    def _twin_peaks(self) -> Iterator[Shape]:
        """Two of one height that meet low, so that they are never one mountain."""
        rock, height = self._rock(), self._height * self._chance.uniform(0.36, 0.44)
        for middle in self._chance.sample((0.29, 0.71), k=2):
            x = self._width * middle + self._chance.uniform(-0.02, 0.02)
            tall = height * self._chance.uniform(0.92, 1.06)
            yield from self._peak(x, self._width * 0.52, tall, rock, hollow=0.0)

    def _mountain(self) -> Iterator[Shape]:
        """One in the middle, with hollow flanks as a volcano's."""
        x = self._width * self._chance.uniform(0.44, 0.56)
        tall = self._height * self._chance.uniform(0.44, 0.52)
        yield from self._peak(x, self._width * 1.05, tall, self._rock(), hollow=0.22)

    def _peak(
        self, x: float, width: float, tall: float, rock: Colour, hollow: float
    ) -> Iterator[Shape]:
        foot, chance = self._horizon + 0.03, self._chance

        def flank(side: int) -> Polygon:
            points = []
            for share in (0.0, 0.3, 0.55, 0.8):
                out = (1 - share) * width / 2
                out -= hollow * width * share * (1 - share)
                rough = chance.uniform(-0.012, 0.012) if share > 0 else 0
                points.append((x + side * out + rough, foot - tall * share + rough))
            return points

        left, right, top = flank(-1), flank(1), (x, foot - tall)
        yield Shape("mountain", self._tint(rock), ([*left, top, *right[::-1]],))
        shade = self._tint(blend(rock, (40, 50, 80), 0.28))
        ridge = [(x + width * 0.03, foot - tall * 0.5), (x + width * 0.08, foot)]
        yield Shape("shade", shade, ([top, *right[::-1], *ridge[::-1]],))
        half = (width / 2) * (1 - 0.7) - hollow * width * 0.21
        y = foot - tall * 0.7
        cap = [(x + half, y), (x + half * 0.45, y - tall * 0.05), (x + half * 0.1, y + tall * 0.05)]
        cap += [(x - half * 0.4, y - tall * 0.05), (x - half, y)]
        yield Shape("cap", self._tint((250, 252, 254), 0.5), ([top, *cap],))

    def _hills(self) -> Iterator[Shape]:
        greens: tuple[Colour, Colour] = ((132, 190, 100), (88, 160, 80))
        for number, green in enumerate(greens):
            colour = green if not self._has_snow else blend(SNOW, (200, 214, 234), number * 0.5)
            line = self._wavy(
                self._horizon - 0.13 + 0.07 * number, self._chance.uniform(0.05, 0.08), 4.4
            )
            yield Shape("hill", self._tint(colour), (self._down_from(line),))

    def _forest(self) -> Iterator[Shape]:
        green: Colour = self._chance.choice(((30, 98, 60), (40, 110, 56), (24, 88, 70)))
        for row in range(2):
            foot, number = self._horizon + 0.02 + 0.035 * row, int(7 * self._width) + row
            for i in range(number + 1):
                x = self._width * (i + 0.5 * row) / number + self._chance.uniform(-0.02, 0.02)
                tall = self._chance.uniform(0.24, 0.34) - 0.05 * row
                colour = blend(
                    green, (84, 144, 92), self._chance.uniform(0, 0.25) + 0.25 * (1 - row)
                )
                wide = tall * 0.25
                yield Shape(
                    "pine",
                    self._tint(colour),
                    ([(x, foot - tall), (x + wide, foot), (x - wide, foot)],),
                )
                if self._has_snow:
                    cap = [
                        (x, foot - tall),
                        (x + wide * 0.4, foot - tall * 0.6),
                        (x - wide * 0.4, foot - tall * 0.6),
                    ]
                    yield Shape("cap", self._tint(SNOW, 0.6), (cap,))

    def _skyline(self, low: float, high: float, narrow: float, wide: float) -> Iterator[Shape]:
        chance, x, foot = self._chance, -0.02, self._horizon + 0.03
        walls: tuple[Colour, ...] = (
            (96, 108, 136),
            (130, 116, 130),
            (84, 122, 142),
            (152, 130, 118),
        )
        is_dark = self._scene.sky in DARK_SKIES
        while x < self._width:
            width, height = chance.uniform(narrow, wide), chance.uniform(low, high)
            yield Shape(
                "tower",
                self._tint(chance.choice(walls)),
                (box(x, foot - height, width, height + 0.03),),
            )
            columns, rows = max(1, int(width / 0.045)), max(1, int(height / 0.06))
            lit = [
                box(
                    x + width * (i + 0.28) / columns,
                    foot - height + 0.022 + 0.06 * j,
                    width / columns * 0.44,
                    0.028,
                )
                for i in range(columns)
                for j in range(rows)
                if chance.random() < 0.75
            ]
            if lit:
                yield Shape("window", (255, 226, 120) if is_dark else (216, 236, 248), tuple(lit))
            x += width + chance.choice((0, 0, 0.012))

    def _thing(self, thing: Thing, x: float, foot: float, size: float) -> Iterator[Shape]:
        colour = self._tint(RGB[thing.colour], 0.22)
        match thing.kind:
            case "house":
                yield from self._house(x, foot, size, colour, thing.colour)
            case "boat":
                yield from self._boat(x, foot, size, colour)
            case "lighthouse":
                yield from self._lighthouse(x, foot, size, colour, thing.colour)
            case "balloon":
                yield from self._balloon(x, size, colour, thing.colour)
            case "tree":
                yield from self._tree(x, foot, size)
            case "cactus":
                yield from self._cactus(x, foot, size)
            case "bridge":
                yield from self._bridge(colour)

    def _house(
        self, x: float, foot: float, size: float, colour: Colour, name: str
    ) -> Iterator[Shape]:
        wide, tall = 0.34 * size, 0.24 * size
        roof: Colour = (70, 62, 84) if name in ("red", "orange", "pink") else (126, 58, 46)
        roof = self._tint(SNOW if self._has_snow else roof, 0.4)
        lit: Colour = (255, 228, 120) if self._scene.sky in DARK_SKIES else (196, 230, 248)
        top = foot - tall
        yield Shape("thing", colour, (box(x - wide / 2, top, wide, tall),))
        yield Shape(
            "part",
            roof,
            ([(x - wide * 0.62, top), (x, top - 0.17 * size), (x + wide * 0.62, top)],),
        )
        yield Shape(
            "part",
            self._tint((90, 56, 38), 0.5),
            (box(x - 0.035 * size, foot - 0.14 * size, 0.07 * size, 0.14 * size),),
        )
        windows = (
            box(x + side * 0.11 * size - 0.03 * size, top + 0.05 * size, 0.06 * size, 0.06 * size)
            for side in (-1, 1)
        )
        yield Shape("part", lit, tuple(windows))

    def _boat(self, x: float, foot: float, size: float, colour: Colour) -> Iterator[Shape]:
        wood = self._tint((124, 76, 46), 0.5)
        yield Shape("part", wood, (box(x - 0.008, foot - 0.42 * size, 0.016, 0.38 * size),))
        yield Shape(
            "thing",
            colour,
            (
                [
                    (x + 0.018, foot - 0.42 * size),
                    (x + 0.018, foot - 0.06 * size),
                    (x + 0.21 * size, foot - 0.06 * size),
                ],
            ),
        )
        yield Shape(
            "thing",
            blend(colour, (255, 255, 255), 0.2),
            (
                [
                    (x - 0.018, foot - 0.37 * size),
                    (x - 0.018, foot - 0.06 * size),
                    (x - 0.16 * size, foot - 0.06 * size),
                ],
            ),
        )
        hull = [
            (x - 0.24 * size, foot - 0.035 * size),
            (x + 0.26 * size, foot - 0.035 * size),
            (x + 0.16 * size, foot + 0.07 * size),
            (x - 0.16 * size, foot + 0.07 * size),
        ]
        yield Shape("part", wood, (hull,))

    def _lighthouse(
        self, x: float, foot: float, size: float, colour: Colour, name: str
    ) -> Iterator[Shape]:
        if self._scene.ground == "sea":
            isle = [
                (x - 0.26 * size, foot + 0.06),
                (x - 0.16 * size, foot - 0.03),
                (x + 0.02, foot - 0.045),
                (x + 0.17 * size, foot - 0.02),
                (x + 0.26 * size, foot + 0.06),
            ]
            yield Shape("isle", self._tint((116, 106, 100)), (isle,))
        tall, wide, narrow = 0.46 * size, 0.085 * size, 0.055 * size
        white = self._tint((248, 246, 240), 0.3)
        other = white if name != "white" else self._tint((84, 92, 108), 0.3)
        for stripe in range(5):
            low, high = stripe / 5, (stripe + 1) / 5
            half = [wide + (narrow - wide) * share for share in (low, high)]
            band = [
                (x - half[0], foot - tall * low),
                (x + half[0], foot - tall * low),
                (x + half[1], foot - tall * high),
                (x - half[1], foot - tall * high),
            ]
            yield Shape(
                "thing" if stripe % 2 == 0 else "part",
                colour if stripe % 2 == 0 else other,
                (band,),
            )
        lamp = box(x - narrow * 0.8, foot - tall - 0.07 * size, narrow * 1.6, 0.07 * size)
        yield Shape("part", (255, 238, 132), (lamp,))
        roof = [
            (x - narrow * 1.3, lamp[0][1]),
            (x, lamp[0][1] - 0.07 * size),
            (x + narrow * 1.3, lamp[0][1]),
        ]
        yield Shape("thing", colour, (roof,))

    def _balloon(self, x: float, size: float, colour: Colour, name: str) -> Iterator[Shape]:
        y, radius = self._height * self._chance.uniform(0.24, 0.32), 0.165 * size
        turns = [math.pi * (1 + i / 20) for i in range(21)]
        dome = [(x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in turns]
        skirt = [(x + radius * 0.25, y + radius * 1.3), (x - radius * 0.25, y + radius * 1.3)]
        yield Shape(
            "thing",
            colour,
            (
                [
                    *dome,
                    (x + radius * 0.8, y + radius * 0.55),
                    *skirt,
                    (x - radius * 0.8, y + radius * 0.55),
                ],
            ),
        )
        stripe = (
            blend(colour, (255, 255, 255), 0.5)
            if name != "white"
            else self._tint((216, 72, 62), 0.3)
        )
        band = [
            (x, y - radius),
            (x + radius * 0.36, y - radius * 0.3),
            (x + radius * 0.33, y + radius * 0.5),
            (x + radius * 0.1, y + radius * 1.28),
            (x - radius * 0.1, y + radius * 1.28),
            (x - radius * 0.33, y + radius * 0.5),
            (x - radius * 0.36, y - radius * 0.3),
        ]
        yield Shape("part", stripe, (band,))
        yield Shape(
            "part",
            self._tint((128, 84, 48), 0.5),
            (box(x - radius * 0.22, y + radius * 1.5, radius * 0.44, radius * 0.34),),
        )

    def _tree(self, x: float, foot: float, size: float) -> Iterator[Shape]:
        leaves = (228, 236, 244) if self._has_snow else (62, 146, 64)
        yield Shape(
            "part",
            self._tint((106, 72, 46), 0.6),
            (box(x - 0.028 * size, foot - 0.24 * size, 0.056 * size, 0.24 * size),),
        )
        puffs = ((0, -0.34, 0.13), (-0.09, -0.29, 0.10), (0.09, -0.29, 0.10), (0, -0.43, 0.10))
        crown = (
            ellipse(x + dx * size, foot + dy * size, radius * size) for dx, dy, radius in puffs
        )
        yield Shape("thing", self._tint(leaves, 0.6), tuple(crown))

    def _cactus(self, x: float, foot: float, size: float) -> Iterator[Shape]:
        def column(middle: float, bottom: float, width: float, height: float) -> Polygon:
            turns = [math.pi * (1 + i / 8) for i in range(9)]
            top = bottom - height + width / 2
            arch = [
                (middle + width / 2 * math.cos(turn), top + width / 2 * math.sin(turn))
                for turn in turns
            ]
            return [*arch, (middle + width / 2, bottom), (middle - width / 2, bottom)]

        trunk = column(x, foot, 0.095 * size, 0.44 * size)
        polygons = [trunk]
        for side, low, tall in ((-1, 0.17, 0.17), (1, 0.23, 0.18)):
            arm = x + side * 0.135 * size
            polygons.append(column(arm, foot - (low - 0.06) * size, 0.065 * size, tall * size))
            polygons.append(box(min(x, arm), foot - low * size, abs(arm - x), 0.06 * size))
        yield Shape("thing", self._tint((50, 140, 76), 0.6), tuple(polygons))

    def _bridge(self, colour: Colour) -> Iterator[Shape]:
        deck = self._horizon + (self._height - self._horizon) * self._chance.uniform(0.2, 0.35)
        tall, towers, end = 0.36, (self._width * 0.27, self._width * 0.73), self._width + 0.05
        top = deck - tall

        def cable(start: Point, stop: Point, sag: float) -> Polygon:
            shares = [i / 12 for i in range(13)]
            line = [
                (
                    start[0] + (stop[0] - start[0]) * share,
                    start[1] + (stop[1] - start[1]) * share + 4 * sag * share * (1 - share),
                )
                for share in shares
            ]
            return line + [(x, y + 0.018) for x, y in line[::-1]]

        left, right = ((x, top + 0.01) for x in towers)
        cables = (
            cable(left, right, tall * 0.8),
            cable((-0.05, deck - 0.03), left, 0.03),
            cable(right, (end, deck - 0.03), 0.03),
        )
        yield Shape("thing", colour, cables)
        yield Shape("thing", colour, tuple(box(x - 0.026, top, 0.052, tall + 0.1) for x in towers))
        yield Shape("thing", colour, (box(-0.05, deck, self._width + 0.1, 0.045),))
