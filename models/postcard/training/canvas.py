"""Drawing on Pillow in units of the short side, smooth by drawing larger."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from random import Random

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from .shapes import Colour, Point, Polygon


class Canvas:
    """`unit` pixels are a short side; `smooth` subpixels a side are averaged into one pixel."""

    def __init__(self, width: int, height: int, unit: float, smooth: int, colour: Colour) -> None:
        self._smooth = smooth
        self._scale = unit * smooth
        self._image = Image.new("RGB", (width * smooth, height * smooth), _rgb(colour))
        self._draw = ImageDraw.Draw(self._image, "RGBA")

    def gradient(self, top: Colour, bottom: Colour, end: float) -> None:
        """All over, from the top down to `end`."""
        rows = max(1, round(end * self._scale))
        ramp = Image.linear_gradient("L").resize((1, rows))
        column = Image.new("L", (1, self._image.height), 255)
        column.paste(ramp)
        mask = column.resize(self._image.size)
        self._image.paste(_rgb(top), (0, 0, *self._image.size))
        self._image.paste(_rgb(bottom), (0, 0, *self._image.size), mask)

    def fill(self, polygons: Iterable[Polygon], colour: Colour, alpha: int = 255) -> None:
        for polygon in polygons:
            self._draw.polygon(self._pixels(polygon), fill=(*_rgb(colour), alpha))

    def stroke(
        self, lines: Iterable[Sequence[Point]], colour: Colour, width: float, alpha: int = 255
    ) -> None:
        pixels = max(1, round(width * self._scale))
        for line in lines:
            self._draw.line(self._pixels(line), (*_rgb(colour), alpha), pixels, joint="curve")

    @contextmanager
    def outlined(
        self, lines: Sequence[Sequence[Point]], colour: Colour, width: float
    ) -> Iterator[None]:
        """A line around what is filled within: of several polygons, around all together."""
        if len(lines) > 1:  # the fill will cover the inner half, and what is between them
            self.stroke(lines, colour, 2 * width)
        yield
        if len(lines) == 1:
            self.stroke(lines, colour, width)

    def within(self, polygons: Iterable[Polygon], other: "Canvas") -> None:
        """Copy what the other canvas has inside of the polygons."""
        mask = Image.new("1", self._image.size)
        pen = ImageDraw.Draw(mask)
        for polygon in polygons:
            pen.polygon(self._pixels(polygon), fill=1)
        self._image.paste(other._image, mask=mask)

    def copy(self) -> "Canvas":
        other = Canvas(1, 1, 1, self._smooth, (0, 0, 0))
        other._scale, other._image = self._scale, self._image.copy()
        other._draw = ImageDraw.Draw(other._image, "RGBA")
        return other

    def blur(self, radius: float) -> None:
        self._replace(self._image.filter(ImageFilter.GaussianBlur(radius * self._scale)))

    def add_light(self, other: "Canvas") -> None:
        self._replace(ImageChops.screen(self._image, other._image))

    def image(self) -> Image.Image:
        return self._image.reduce(self._smooth) if self._smooth > 1 else self._image

    def _replace(self, image: Image.Image) -> None:
        self._image = image
        self._draw = ImageDraw.Draw(image, "RGBA")

    def _pixels(self, points: Iterable[Point]) -> list[Point]:
        return [(x * self._scale, y * self._scale) for x, y in points]


def closed(polygon: Polygon) -> Polygon:
    return [*polygon, *polygon[:2]]  # twice, so that the last corner is joined too


def rough(line: Sequence[Point], jitter: float, chance: Random, step: float = 0.05) -> Polygon:
    """The line in pieces of about `step`, each a little off."""
    points: Polygon = []
    for (x0, y0), (x1, y1) in pairwise(line):
        number = max(1, round((abs(x1 - x0) + abs(y1 - y0)) / step))
        for i in range(number):
            x, y = x0 + (x1 - x0) * i / number, y0 + (y1 - y0) * i / number
            points.append(
                (x + chance.uniform(-jitter, jitter), y + chance.uniform(-jitter, jitter))
            )
    return [*points, line[-1]]


def bounds(polygons: Iterable[Polygon]) -> tuple[float, float, float, float]:
    """left, top, right, bottom"""
    xs, ys = zip(*(point for polygon in polygons for point in polygon), strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _rgb(colour: Colour) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, round(part))) for part in colour)
    return red, green, blue
