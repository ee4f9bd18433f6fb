"""Pictures that come from outside, to start from: checked before anything of them is decoded."""

import hashlib
import io

from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict

from shared.errors import InvalidRequest

_FORMATS = ("PNG", "JPEG", "WEBP")


class SourceImage(BaseModel):
    """The bytes of an image file, and those of a mask, whose transparent parts are painted anew.

    Without a mask, the transparent parts of the image are; where it has none, all of it changes.
    """

    model_config = ConfigDict(frozen=True)

    image: bytes
    mask: bytes | None = None

    def check(self, max_pixels: int) -> tuple[int, int]:
        """Width and height; raises InvalidRequest naming `image` or `mask`. Decodes both once."""
        image = _open(self.image, "image", max_pixels)
        if self.mask is not None:
            mask = _open(self.mask, "mask", max_pixels)
            if mask.size != image.size:
                raise InvalidRequest("mask", f"is {mask.size} and not as large as the image")
            if _holes(mask).getbbox() is None:
                raise InvalidRequest("mask", "has no transparent parts to paint")
        return image.size

    def is_whole(self) -> bool:
        """Whether all of it changes."""
        return _holes(_decoded(self.mask or self.image)).getbbox() is None

    def digests(self) -> tuple[str, str | None]:
        """SHA-256 of image and mask, as a canonical request names them."""
        mask = None if self.mask is None else hashlib.sha256(self.mask).hexdigest()
        return hashlib.sha256(self.image).hexdigest(), mask

    def prepared(self, width: int, height: int) -> tuple[Image.Image, Image.Image | None]:
        """The picture (RGB), and what of it to paint anew (L, white), resized; None for all."""
        picture, size = _decoded(self.image), (width, height)
        resized = picture.resize(size, Image.Resampling.LANCZOS).convert("RGB")
        source = picture if self.mask is None else _decoded(self.mask)
        holes = _holes(source)
        if holes.getbbox() is None:
            return resized, None
        mask = _holes(source.resize(size, Image.Resampling.BILINEAR))
        if mask.getbbox() is None:  # all of it is too thin to be left
            shares = holes.convert("F").resize(size, Image.Resampling.BOX)
            mask = shares.point(lambda share: share * 1e6).convert("L")
        return resized, mask


def _holes(image: Image.Image) -> Image.Image:
    """White where `image` is transparent, else black."""
    return image.getchannel("A").point(lambda alpha: 255 if alpha < 128 else 0)


def _open(data: bytes, field: str, max_pixels: int) -> Image.Image:
    too_large = InvalidRequest(field, f"has more than {max_pixels} pixels")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height <= max_pixels:
                return _decoded(data)
    except Image.DecompressionBombError:  # more than Pillow opens at all
        raise too_large from None
    except Exception as error:  # of a broken file Pillow may raise anything, a TypeError too
        raise InvalidRequest(field, "is no readable PNG, JPEG or WebP file") from error
    raise too_large


def _decoded(data: bytes) -> Image.Image:
    """RGBA, upright."""
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # greys of 16 bits, which Pillow would clip to 8
        upright = upright.convert("I").point(lambda grey: grey / 256).convert("L")
        if "transparency" in upright.info:  # the grey that is
            upright.info["transparency"] >>= 8
    return upright.convert("RGBA")
