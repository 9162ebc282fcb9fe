"""Small pictures of many images, as data URIs that together fit a number of bytes."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from retina.data.headers import is_tiff
from retina.data.image_files import read_header
from retina.data.images import load_image
from retina.data.stored import Photograph, TableImage, encoded
from retina.errors import RetinaError

if TYPE_CHECKING:
    from PIL import Image

# Longer side in pixels and JPEG quality, best first: the first at which all pictures fit is taken.
_LADDER = ((1024, 82), (800, 80), (640, 78), (480, 74), (360, 68), (280, 62), (200, 56), (140, 48), (96, 40), (64, 30))
# The bytes that all images need are estimated from this many.
_TRIED = 12


class Thumbnail(NamedTuple):
    """A picture: its `uri`, or None and the `reason`; `width` and `height` of the image as stored, 0 where unknown."""

    uri: str | None
    reason: str
    width: int
    height: int


def thumbnails(
    images: Sequence[Photograph | TableImage | None],
    names: Sequence[str],
    *,
    side: int | None = None,
    budget: int = 8_000_000,
) -> list[Thumbnail]:
    """Return JPEG thumbnails of images, several at a time.

    Args:
        images: [n]; None gives no picture.
        names: [n], for the reasons of those that can't be read.
        side: the longer side in pixels, of images that are larger; by default as many as fit.
        budget: bytes of all data URIs together; side and quality are lowered until they fit.

    Raises:
        RetinaError: a side or a budget below 1.
    """
    for name, value in (("thumbnail", side), ("budget", budget)):
        if value is not None and value < 1:
            raise RetinaError(f"{name}: expected at least 1, got {value}; give a number of pixels or bytes")
    ladder = list(_LADDER)
    if side is not None:
        ladder = [(side, _quality(side)), *(step for step in _LADDER if step[0] < side)]
    with ThreadPoolExecutor(max_workers=min(8, (os.cpu_count() or 1) + 1)) as pool:

        def made(rows: Sequence[int], most: int, quality: int) -> list[Thumbnail]:
            return list(pool.map(lambda row: _thumbnail(images[row], names[row], most, quality), rows))

        everything = range(len(images))
        tried = sorted({round(k * (len(images) - 1) / (_TRIED - 1)) for k in range(_TRIED)}) if images else []
        pictures: list[Thumbnail] = []
        for place, (most, quality) in enumerate(ladder):
            last = place == len(ladder) - 1
            few = len(images) <= len(tried)
            if not (few or last) and _bytes(made(tried, most, quality)) * len(images) > 0.95 * budget * len(tried):
                continue
            pictures = made(everything, most, quality)
            if _bytes(pictures) <= budget or last:
                break
    return _cut(pictures, budget)


def _quality(side: int) -> int:
    return next(quality for most, quality in (*_LADDER, (0, _LADDER[-1][1])) if most <= side)


def _bytes(pictures: Sequence[Thumbnail]) -> int:
    return sum(len(picture.uri) for picture in pictures if picture.uri is not None)


def _cut(pictures: list[Thumbnail], budget: int) -> list[Thumbnail]:
    """Pictures within the budget; the rest is left out as a last resort."""
    used, out = 0, []
    for picture in pictures:
        used += len(picture.uri or "")
        out.append(picture if used <= budget else picture._replace(uri=None, reason="left out to keep the page small"))
    return out


def _thumbnail(image: Photograph | TableImage | None, name: str, side: int, quality: int) -> Thumbnail:
    if image is None:
        return Thumbnail(None, "no picture", 0, 0)
    image = image if isinstance(image, Photograph) else Photograph(image)
    try:
        content = encoded(image.image)
    except RetinaError as error:
        return Thumbnail(None, str(error), 0, 0)
    image = image._replace(image=content)
    plain = image == Photograph(content) and not is_tiff(content)
    try:
        picture, width, height = _small(content, side) if plain else _decoded(image, name, side)
    except RetinaError as error:
        return Thumbnail(None, str(error), 0, 0)
    except Exception:  # PIL raises anything on a damaged file: retina's reader then says what is wrong
        try:
            picture, width, height = _decoded(image, name, side)
        except RetinaError as error:
            return Thumbnail(None, str(error), 0, 0)
    out = io.BytesIO()
    picture.save(out, format="JPEG", quality=quality, optimize=True)
    uri = "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")
    return Thumbnail(uri, "", width, height)


def _small(content: bytes, side: int) -> tuple[Image.Image, int, int]:
    """The picture, and the (width, height) of the image. JPEGs are decoded at a fraction of their size."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as opened:
        width, height = opened.size
        # Twice the final size, so that the resizing still averages.
        opened.draft("RGB", (2 * side, 2 * side))
        picture = opened.point(lambda value: value / 256).convert("L") if opened.mode.startswith("I") else opened
        return _fitted(picture.convert("RGB"), side, width, height), width, height


def _decoded(image: Photograph, name: str, side: int) -> tuple[Image.Image, int, int]:
    from PIL import Image

    # A file that is no image at all is refused without TensorFlow.
    read_header(image.image, name)
    pixels = load_image(image, name)
    height, width = pixels.shape[:2]
    return _fitted(Image.fromarray(pixels), side, width, height), width, height


def _fitted(picture: Image.Image, side: int, width: int, height: int) -> Image.Image:
    from PIL import Image

    scale = min(1.0, side / max(width, height))
    size = (max(1, math.floor(width * scale + 0.5)), max(1, math.floor(height * scale + 0.5)))
    return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)
