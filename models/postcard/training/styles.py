"""The same shapes, painted in one of six ways."""

from collections.abc import Callable
from random import Random

import numpy as np
from PIL import Image

from .canvas import Canvas, bounds, closed, rough
from .composition import compose
from .scenes import Scene, sample_scene
from .shapes import DARK_SKIES, WHITE, Colour, Polygon, Shape, blend, box

_BLACK: Colour = (10, 10, 12)
_PAPER: Colour = (250, 247, 240)
_SKY: dict[str, tuple[Colour, Colour]] = {  # at the top, at the horizon
    "day": ((58, 146, 226), (192, 230, 248)),
    "sunset": ((226, 76, 48), (255, 200, 88)),
    "night": ((8, 12, 44), (38, 50, 108)),
    "dawn": ((168, 134, 216), (255, 198, 206)),
    "storm": ((62, 68, 80), (138, 144, 154)),
}
_SMALL = ("star", "flake", "drop", "window", "wave")
_LARGE = ("mountain", "hill", "ground", "furrow", "water")
_EVERYWHERE = box(-1, -1, 10, 10)
_PIXELS_A_SIDE = 32  # of a picture in pixel art, on its short side


def draw(seed: int, width: int, height: int) -> tuple[Image.Image, Scene]:
    """The scene of a seed as a picture of so many pixels: the same one in every size."""
    scene = sample_scene(Random(seed))
    return paint(scene, Random(f"shapes {seed}"), width, height), scene


def paint(scene: Scene, chance: Random, width: int, height: int) -> Image.Image:
    unit = min(width, height)
    shapes, horizon = compose(scene, chance, width / unit, height / unit)
    if scene.style == "pixel":
        return _pixel_art(scene, shapes, horizon, width, height)
    smooth = 3 if unit < 256 else 2
    canvas = Canvas(width, height, unit, smooth, _PAPER)
    _PAINTERS[scene.style](
        _Painting(canvas, scene, horizon, chance, width / unit, height / unit), shapes
    )
    picture = canvas.image()
    return _grain(picture, chance) if scene.style == "watercolor" else picture


def things_mask(seed: int, width: int, height: int) -> Image.Image:
    """Where `draw` has the coloured parts of objects: "L", 255 there."""
    unit = min(width, height)
    shapes, _ = compose(
        sample_scene(Random(seed)), Random(f"shapes {seed}"), width / unit, height / unit
    )
    canvas = Canvas(width, height, unit, 1, (0, 0, 0))
    for shape in shapes:
        if shape.role == "thing":
            canvas.fill(shape.polygons, WHITE)
    return canvas.image().convert("L")


class _Painting:
    """A canvas, and what all painters ask of a scene."""

    def __init__(
        self,
        canvas: Canvas,
        scene: Scene,
        horizon: float,
        chance: Random,
        width: float,
        height: float,
    ) -> None:
        self.canvas, self.scene, self.horizon, self.chance = canvas, scene, horizon, chance
        self.width, self.height = width, height

    def sky(self) -> tuple[Colour, Colour]:
        return _SKY[self.scene.sky]

    def strokes(
        self,
        area: tuple[float, float, float, float],
        number: int,
        slope: float,
        length: tuple[float, float],
    ) -> list[Polygon]:
        """So many short lines that begin in the area."""
        left, top, right, bottom = area
        lines = []
        for _ in range(number):
            x, y = (
                self.chance.uniform(left, right),
                self.chance.uniform(top, min(bottom, self.height)),
            )
            long = self.chance.uniform(*length)
            lines.append(
                [(x, y), (x + long / 2, y + slope * long / 2), (x + long, y + slope * long)]
            )
        return lines


def _flat(painting: _Painting, shapes: list[Shape]) -> None:
    painting.canvas.gradient(*painting.sky(), painting.horizon)
    for shape in shapes:
        painting.canvas.fill(shape.polygons, shape.colour)


def _watercolor(painting: _Painting, shapes: list[Shape]) -> None:
    canvas, chance = painting.canvas, painting.chance
    top, bottom = painting.sky()
    canvas.gradient(blend(top, _PAPER, 0.2), blend(bottom, _PAPER, 0.5), painting.horizon)
    for shape in shapes:
        colour = blend(shape.colour, _PAPER, 0.14)
        if shape.role in _SMALL:
            canvas.fill(shape.polygons, colour, 220)
            continue
        soft = 0.010 if shape.role in (*_LARGE, "pine", "cloud") else 0.004
        canvas.fill((rough(closed(p), soft, chance) for p in shape.polygons), colour, 225)
        if shape.role in _LARGE:
            _wash(painting, shape, colour)
        if shape.role != "cloud":
            edge = (rough(closed(p), 0.005, chance) for p in shape.polygons)
            canvas.stroke(edge, blend(colour, (60, 60, 92), 0.4), 0.009, 90)
    canvas.blur(0.0022)
    _paper_edge(painting)


def _wash(painting: _Painting, shape: Shape, colour: Colour) -> None:
    layer = painting.canvas.copy()
    for line in painting.strokes(bounds(shape.polygons), 5, 0.1, (0.2, 0.5)):
        other = painting.chance.choice((_PAPER, (72, 82, 112)))
        layer.stroke([line], blend(colour, other, 0.3), painting.chance.uniform(0.04, 0.10), 70)
    layer.blur(0.012)
    painting.canvas.within(shape.polygons, layer)


def _paper_edge(painting: _Painting) -> None:
    """The paper around the painted part, with a ragged rim."""
    inset, wide, high = 0.04, painting.width, painting.height
    rim = closed(box(inset, inset, wide - 2 * inset, high - 2 * inset))
    painted = painting.canvas.copy()
    painting.canvas.fill([_EVERYWHERE], _PAPER)
    painting.canvas.within([rough(rim, 0.016, painting.chance, step=0.07)], painted)


def _grain(picture: Image.Image, chance: Random) -> Image.Image:
    noise = np.random.default_rng(chance.randrange(2**32))
    blotches = noise.normal(0, 1, (14, 14)).astype(np.float32)
    smooth = np.asarray(Image.fromarray(blotches).resize(picture.size, Image.Resampling.BICUBIC))
    pixels = np.asarray(picture, dtype=np.float32) * (1 + 0.035 * smooth[..., None])
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


_BOLD_SKY: dict[str, Colour] = {
    "day": (28, 146, 232),
    "sunset": (244, 104, 22),
    "night": (20, 20, 64),
    "dawn": (248, 134, 176),
    "storm": (112, 112, 118),
}
_BOLD: tuple[Colour, ...] = ((232, 52, 36), (250, 200, 24), (30, 150, 120), (240, 236, 224))


def _basquiat(painting: _Painting, shapes: list[Shape]) -> None:
    canvas, chance = painting.canvas, painting.chance
    sky = _BOLD_SKY[painting.scene.sky]
    canvas.fill([_EVERYWHERE], sky)
    area = (-0.1, 0.0, painting.width, painting.horizon)
    for line in painting.strokes(area, 14, 0.05, (0.15, 0.4)):
        dab = blend(sky, chance.choice((WHITE, _BLACK, (250, 214, 60))), chance.uniform(0.1, 0.3))
        canvas.stroke([rough(line, 0.012, chance)], dab, chance.uniform(0.03, 0.06))
    mountain = chance.choice(_BOLD)
    for shape in shapes:
        _bold(painting, shape, mountain)
    _zigzags(painting)
    _crown(painting)


def _bold(painting: _Painting, shape: Shape, mountain: Colour) -> None:
    canvas, chance = painting.canvas, painting.chance
    colour = {"mountain": mountain, "shade": blend(mountain, _BLACK, 0.3)}.get(shape.role)
    colour = colour or _saturated(shape.colour, 1.5)
    if shape.role in _SMALL:
        canvas.fill(shape.polygons, _BLACK if shape.role == "drop" else colour)
        return
    outlines = [rough(closed(polygon), 0.007, chance) for polygon in shape.polygons]
    wide = 0.020 if shape.role in (*_LARGE, "thing", "light") else 0.014
    with canvas.outlined(outlines, _BLACK, wide):
        canvas.fill(outlines, colour)
        if shape.role in _LARGE:
            _dabs(painting, outlines, colour)
    if len(outlines) == 1 and shape.role in ("mountain", "thing", "light"):
        canvas.stroke([rough(closed(shape.polygons[0]), 0.012, chance)], _BLACK, 0.006)


def _dabs(painting: _Painting, area: list[Polygon], colour: Colour) -> None:
    layer, chance = painting.canvas.copy(), painting.chance
    for line in painting.strokes(bounds(area), 7, 0.2, (0.1, 0.3)):
        other = chance.choice((WHITE, _BLACK, *_BOLD[:2]))
        layer.stroke(
            [rough(line, 0.01, chance)],
            blend(colour, other, chance.uniform(0.15, 0.4)),
            chance.uniform(0.02, 0.045),
        )
    painting.canvas.within(area, layer)


def _zigzags(painting: _Painting) -> None:
    chance = painting.chance
    for _ in range(2):
        x, y = (
            chance.uniform(0.08, painting.width - 0.25),
            chance.uniform(0.1, 0.92) * painting.height,
        )
        line = [
            (x + 0.024 * i, y + (0.03 if i % 2 else -0.03)) for i in range(chance.randint(5, 9))
        ]
        painting.canvas.stroke(
            [line], chance.choice(((250, 244, 230), _BLACK, (250, 214, 40))), 0.011
        )


def _crown(painting: _Painting) -> None:
    chance = painting.chance
    x, y = chance.uniform(0.15, painting.width - 0.15), chance.uniform(0.09, 0.16) * painting.height
    rim = (
        (-0.08, 0.05),
        (-0.09, -0.05),
        (-0.04, 0.005),
        (0, -0.07),
        (0.04, 0.005),
        (0.09, -0.05),
        (0.08, 0.05),
    )
    points = [(x + dx, y + dy) for dx, dy in rim]
    painting.canvas.fill([points], (252, 214, 30))
    painting.canvas.stroke([rough(closed(points), 0.004, chance)], _BLACK, 0.017)


_NEON_SKY: dict[str, tuple[Colour, Colour]] = {
    "day": ((8, 30, 84), (26, 92, 156)),
    "sunset": ((52, 8, 44), (164, 50, 30)),
    "night": ((4, 3, 14), (12, 9, 38)),
    "dawn": ((46, 10, 76), (140, 40, 118)),
    "storm": ((18, 20, 24), (52, 56, 64)),
}
_TUBES: dict[str, Colour] = {
    "cap": (240, 250, 255),
    "hill": (60, 255, 140),
    "ground": (60, 255, 140),
    "furrow": (40, 220, 200),
    "water": (40, 160, 255),
    "tower": (200, 80, 255),
    "pine": (40, 255, 120),
    "cloud": (120, 160, 255),
    "isle": (255, 180, 60),
    "light": (255, 214, 70),
}


def _neon(painting: _Painting, shapes: list[Shape]) -> None:
    """Dark areas, and around them tubes that shine."""
    canvas = painting.canvas
    canvas.gradient(*_NEON_SKY[painting.scene.sky], painting.horizon)
    light = painting.chance.choice(((255, 40, 200), (60, 230, 255), (180, 90, 255)))
    glow = canvas.copy()
    glow.fill([_EVERYWHERE], (0, 0, 0))
    for shape in shapes:
        if shape.role == "shade":
            continue
        colour = light if shape.role == "mountain" else _tube(shape, painting.scene)
        if shape.role in _SMALL:
            canvas.fill(shape.polygons, colour, 230)
            continue
        dark = blend((8, 6, 20), colour, 0.45 if shape.role in ("thing", "light") else 0.12)
        lines = [closed(polygon) for polygon in shape.polygons]
        bright = blend(colour, WHITE, 0.2)
        for layer, area, tube, width in (
            (canvas, dark, bright, 0.0125),
            (glow, (0, 0, 0), colour, 0.030),
        ):
            with layer.outlined(lines, tube, width):
                layer.fill(shape.polygons, area)
    glow.blur(0.016)
    canvas.add_light(glow)


def _tube(shape: Shape, scene: Scene) -> Colour:
    if scene.ground == "desert" and shape.role in ("ground", "furrow"):
        return (255, 170, 60)
    if shape.role in _TUBES:
        return _TUBES[shape.role]
    brightest = max(*shape.colour, 1)
    return _saturated(tuple(part * 255 / brightest for part in shape.colour), 1.3)  # type: ignore[arg-type]


def _sketch(painting: _Painting, shapes: list[Shape]) -> None:
    """In pencil on paper; objects are coloured in."""
    canvas, chance = painting.canvas, painting.chance
    grey = {"day": 240, "sunset": 206, "night": 96, "dawn": 224, "storm": 156}[painting.scene.sky]
    sky: Colour = (grey, grey, grey)
    canvas.gradient(sky, blend(sky, _PAPER, 0.5), painting.horizon)
    if painting.scene.sky in DARK_SKIES:
        area = (-0.2, 0.0, painting.width, painting.horizon)
        canvas.stroke(
            painting.strokes(area, 26, -0.45, (0.18, 0.3)), blend(sky, _BLACK, 0.25), 0.008
        )
    for shape in shapes:
        light = 255 * min(0.98, 0.50 + 0.55 * _brightness(shape.colour))
        pencil = (
            blend(shape.colour, _PAPER, 0.1)
            if shape.role == "thing"
            else (light, light, light * 0.985)
        )
        if shape.role in _SMALL:
            canvas.fill(shape.polygons, pencil if shape.role in ("star", "flake") else (96, 96, 98))
            continue
        lines = [rough(closed(polygon), 0.0035, chance) for polygon in shape.polygons]
        with canvas.outlined(lines, (52, 52, 56), 0.010):
            canvas.fill(shape.polygons, pencil)
            if shape.role in ("mountain", "shade", "hill", "furrow", "water", "pine"):
                _hatching(painting, shape, blend(pencil, _BLACK, 0.4))


def _hatching(painting: _Painting, shape: Shape, colour: Colour) -> None:
    layer = painting.canvas.copy()
    left, top, right, bottom = bounds(shape.polygons)
    number = round((right - left) / 0.03)
    lines = painting.strokes((left - 0.1, top, right, bottom), number, -1.1, (0.08, 0.12))
    layer.stroke(lines, colour, 0.007)
    painting.canvas.within(shape.polygons, layer)


def _lines(painting: _Painting, shapes: list[Shape], ground: Colour, ink: Colour) -> None:
    """Outlines alone, with the coloured parts of objects filled by half."""
    canvas = painting.canvas
    canvas.fill([_EVERYWHERE], ground)
    for shape in shapes:
        if shape.role in _SMALL:
            canvas.fill(shape.polygons, ink)
            continue
        lines = [closed(polygon) for polygon in shape.polygons]
        wide = 0.011 if shape.role in (*_LARGE, "thing", "light") else 0.007
        inside = blend(ground, ink, 0.5 if shape.role == "thing" else 0.06)
        with canvas.outlined(lines, ink, wide):
            canvas.fill(shape.polygons, inside)


def _blueprint(painting: _Painting, shapes: list[Shape]) -> None:
    _lines(painting, shapes, (22, 62, 148), (236, 244, 255))


def _gold(painting: _Painting, shapes: list[Shape]) -> None:
    _lines(painting, shapes, (16, 14, 18), (238, 190, 84))


def _pixel_art(
    scene: Scene, shapes: list[Shape], horizon: float, width: int, height: int
) -> Image.Image:
    """Cells as large as a latent where they can be: those the autoencoder keeps sharp."""
    unit = min(width, height)
    cell = max(4, round(unit / _PIXELS_A_SIDE / 8) * 8 if unit >= 256 else unit // _PIXELS_A_SIDE)
    columns, rows = -(-width // cell), -(-height // cell)
    canvas = Canvas(columns, rows, unit / cell, 1, _PAPER)
    canvas.gradient(*_SKY[scene.sky], horizon)
    one = cell / unit
    for shape in shapes:
        polygons = shape.polygons
        if shape.role in _SMALL:  # a cell each: a smaller polygon would be none
            few = polygons[::3] if shape.role in ("flake", "drop", "window") else polygons
            corners = (bounds([polygon])[:2] for polygon in few)
            wide = 2.4 * one if shape.role == "wave" else 0.4 * one
            polygons = tuple(
                [(x, y), (x + wide, y), (x + wide, y + 0.4 * one), (x, y + 0.4 * one)]
                for x, y in corners
            )
        canvas.fill(polygons, shape.colour)
    cells = (np.asarray(canvas.image(), dtype=np.float32) / 32).round() * 32
    picture = Image.fromarray(cells.clip(0, 255).astype(np.uint8))
    return picture.resize((columns * cell, rows * cell), Image.Resampling.NEAREST).crop(
        (0, 0, width, height)
    )


def _brightness(colour: Colour) -> float:
    red, green, blue = colour
    return (0.3 * red + 0.59 * green + 0.11 * blue) / 255


def _saturated(colour: Colour, by: float) -> Colour:
    grey = sum(colour) / 3
    return tuple(grey + (part - grey) * by for part in colour)  # type: ignore[return-value]


_PAINTERS: dict[str, Callable[[_Painting, list[Shape]], None]] = {
    "flat": _flat,
    "watercolor": _watercolor,
    "basquiat": _basquiat,
    "neon": _neon,
    "sketch": _sketch,
    # Known to no caption: adapters learn them.
    "blueprint": _blueprint,
    "gold": _gold,
}
