"""The image files of a conversion: their headers, EXIF rotations undone, and whole files or none."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from retina.data.stored import TableImage, encoded
from retina.errors import RetinaError
from retina.files import refuse_special

_QUALITY = 95  # of JPEGs that have to be encoded again
_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "GIF": ".gif"}
_ORIENTATION = 0x0112


class Header(NamedTuple):
    """(height, width) as stored, the EXIF orientation (1 to 8, 1: upright) and the extension that the content asks."""

    size: tuple[int, int]
    orientation: int
    suffix: str

    @property
    def upright(self) -> tuple[int, int]:
        """(height, width) after the rotation; orientations of 5 and more swap the sides."""
        return self.size[::-1] if self.orientation >= 5 else self.size


def read_header(image: TableImage, name: str) -> Header:
    """Reads an image's header; the pixels are not decoded.

    Raises:
        RetinaError: it can't be read or is no image; the message says `name`.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        if isinstance(image, str):
            refuse_special(image)
        with Image.open(image if isinstance(image, str) else io.BytesIO(encoded(image))) as opened:
            suffix = _SUFFIXES.get(opened.format or "")
            if suffix is None:
                raise RetinaError(f"{name}: expected a JPEG, PNG, WebP, BMP or GIF image, got {opened.format}")
            orientation = opened.getexif().get(_ORIENTATION, 1)
            known = orientation in range(1, 9)
            return Header((opened.height, opened.width), int(orientation) if known else 1, suffix)
    except RetinaError:
        raise
    except UnidentifiedImageError:
        raise RetinaError(f"{name}: expected an image, it is none or damaged; restore or remove it") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RetinaError(f"{name}: cannot read this image: {error}; mend or replace it") from None


def upright_boxes(boxes: np.ndarray, orientation: int, size: tuple[int, int]) -> np.ndarray:
    """Boxes [n,4] xyxy of the stored pixels in those of the upright picture.

    Args:
        orientation: EXIF 2.3, tag 0x0112: 1 to 8.
        size: (height, width) as stored.
    """
    height, width = size
    x1, y1, x2, y2 = np.asarray(boxes, np.float64).reshape(-1, 4).T
    turned = {
        1: (x1, y1, x2, y2),
        2: (width - x2, y1, width - x1, y2),
        3: (width - x2, height - y2, width - x1, height - y1),
        4: (x1, height - y2, x2, height - y1),
        5: (y1, x1, y2, x2),
        6: (height - y2, x1, height - y1, x2),
        7: (height - y2, width - x2, height - y1, width - x1),
        8: (y1, width - x2, y2, width - x1),
    }[orientation]
    return np.stack(turned, axis=1)


def upright_bytes(image: TableImage, name: str) -> bytes:
    """The image with its EXIF rotation carried out, in its own format: lossless, but for JPEG (quality 95).

    Raises:
        RetinaError: it is damaged.
    """
    from PIL import Image, ImageOps

    out = io.BytesIO()
    try:
        with Image.open(io.BytesIO(encoded(image))) as opened:
            turned = ImageOps.exif_transpose(opened)
            exif = {"exif": turned.getexif()} if turned.getexif() else {}
            profile = {"icc_profile": opened.info["icc_profile"]} if opened.info.get("icc_profile") else {}
            if opened.format in ("JPEG", "MPO"):
                turned.save(out, format="JPEG", quality=_QUALITY, subsampling=0, **exif, **profile)
            elif opened.format == "WEBP":
                turned.save(out, format="WEBP", lossless=True, exact=True, **exif, **profile)
            else:
                turned.save(out, format=opened.format, **exif, **profile)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RetinaError(f"{name}: cannot turn this image upright: {error}; mend or replace it") from None
    return out.getvalue()


@contextmanager
def placed(path: Path) -> Iterator[Path]:
    """Gives a temporary name in the same folder, which becomes `path` on success.

    The name is the same each time, so that a conversion that goes on after a kill leaves no stray file. Unlike
    `retina.files.written` it does not wait for the disk: with 100,000 images that would take longer than the rest.
    """
    temporary = path.with_name(f".partial.{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def place_image(image: TableImage, name: str, path: Path, *, rotated: bool, link: bool) -> None:
    """Writes an image to `path`, unless it is there: what has this name is whole.

    Args:
        link: makes a hard link in the place of a copy.

    Raises:
        RetinaError: it can't be read, turned, linked or written.
    """
    if path.exists():
        return
    try:
        with placed(path) as temporary:
            if rotated:
                temporary.write_bytes(upright_bytes(image, name))
            elif link and isinstance(image, str):
                temporary.unlink(missing_ok=True)
                os.link(os.path.realpath(image), temporary)
            else:
                temporary.write_bytes(encoded(image))
    except OSError as error:
        hint = "; leave --link out to copy" if link and not rotated else ""
        raise RetinaError(f"{path}: cannot write this image: {error.strerror}{hint}") from None
