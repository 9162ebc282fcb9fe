"""Single images as a user meets them: read with a message that names the fault, and a whole split checked at once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import numpy as np

from retina import config
from retina.data.batches import decoding, pixels
from retina.data.dataset import DetectionDataset
from retina.data.headers import QUARTER_TURNS, UPRIGHT, is_tiff, orientation
from retina.data.limits import image_name, too_large
from retina.data.orientation import turned
from retina.data.stored import Photograph, StoredImage
from retina.errors import RetinaError
from retina.files import refuse_scheme, refuse_special
from retina.output import count
from retina.startup import has_tensorflow, import_tensorflow_quietly

_Answer = TypeVar("_Answer")
_SHOWN = 3
# What else is called .jpg: how such a file begins, from a byte on.
_OTHERS = (
    (4, b"ftypavif", "an AVIF image"),
    (4, b"ftyphei", "a HEIC image"),
    (4, b"ftypmif", "a HEIC image"),
    (4, b"jP  ", "a JPEG 2000 image"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (4, b"JXL ", "a JPEG XL image"),
    (0, b"8BPS", "a Photoshop image"),
    (0, b"%PDF", "a PDF document"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"version https://git-lfs", "a pointer of Git LFS: fetch the file itself"),
)
_HTML = (b"<!doctype html", b"<html")


def load_image(
    image: str | os.PathLike | bytes | StoredImage | Photograph,
    name: str = "image",
    *,
    max_pixels: int = config.MAX_PIXELS,
) -> np.ndarray:
    """Read and decode one image as the batches do: RGB, uint8 [H,W,3].

    Args:
        image: a path, or the bytes of a JPEG, PNG, GIF (first frame), BMP, WebP or TIFF (first page), or where they
            lie; as a `Photograph` with how it is read, otherwise as stored.
        name: what an error calls the image where it comes as bytes.
        max_pixels: an image of more pixels, by its header, is not decoded.

    Raises:
        RetinaError: it is missing, empty, not an image, damaged or too large; the message names it.
    """
    image, upright, depth = image if isinstance(image, Photograph) else Photograph(image)  # type: ignore[arg-type]
    if isinstance(image, StoredImage):
        image = image.read()
    if not isinstance(image, bytes):
        name = os.fspath(image)
        refuse_scheme(name)
        try:
            refuse_special(name)
            with open(image, "rb") as file:
                image = file.read()
        except OSError as error:
            raise RetinaError(
                f"{name}: expected an image file, cannot read it: {error.strerror}; check the path"
            ) from None
    if not image:
        raise RetinaError(f"{name}: expected an image, it is empty (0 bytes); restore or remove it")
    decode = _by_tensorflow if has_tensorflow() and not is_tiff(image) else _without_tensorflow
    decoded = decode(image, name, depth, max_pixels)
    return np.ascontiguousarray(turned(decoded, orientation(image))) if upright else decoded


def _without_tensorflow(image: bytes, name: str, depth: tuple[float, float] | None, max_pixels: int) -> np.ndarray:
    """A TIFF, which TensorFlow does not read, and where it is not installed any image."""
    decode, failures = decoding.decoder(depth), (ValueError, OSError, decoding.imported("cv2").error)
    known = image.startswith((decoding.JPEG, b"BM"))
    try:
        height, width = decoding.header_size(image)
        known = True
        if height * width <= max_pixels:
            return decode(image, (height, width), 0)[0]
    except failures as error:
        raise RetinaError(f"{name}: {error}") if is_tiff(image) else _no_image(name, _fault(image, known)) from None
    raise too_large(name, height, width, max_pixels)


def _by_tensorflow(image: bytes, name: str, depth: tuple[float, float] | None, max_pixels: int) -> np.ndarray:
    import_tensorflow_quietly()
    import tensorflow as tf

    pixels.leave_gpu_to_backend()
    try:
        with tf.device("CPU:0"):
            height, width = pixels.header_size(tf.constant(image)).numpy().tolist()
            if height * width > max_pixels:
                raise too_large(name, height, width, max_pixels)
            return pixels.decode(tf.constant(image), depth).numpy()
    except tf.errors.OpError as error:
        raise _no_image(name, _fault(image, "Unknown image file format" not in error.message)) from None


def _no_image(name: str, fault: str) -> RetinaError:
    return RetinaError(f"{name}: expected a JPEG, PNG, GIF, BMP, WebP or TIFF image, {fault}; restore or remove it")


def as_configured(image: str | bytes, data: config.Data) -> Photograph:
    """Return an image that is in no table with how it is read by the section `data`."""
    depth = None if data.depth is None else (data.depth.low, data.depth.high)
    return Photograph(image, data.orientation == "upright", depth)


def table_image(dataset: DetectionDataset, row: int, max_pixels: int = config.MAX_PIXELS) -> np.ndarray:
    """Read and decode an image of a table, turned where the table says so: RGB, uint8 [H,W,3].

    Raises:
        RetinaError: see `load_image`.
    """
    return load_image(dataset.photograph(row), image_name(dataset, row), max_pixels=max_pixels)


def each_image(
    dataset: DetectionDataset,
    look: Callable[[int], _Answer],
    advance: Callable[[int], None] | None = None,
) -> Iterator[_Answer]:
    """The answer of `look` on each row of the table, in order, several at a time.

    Args:
        advance: called with the number of images done, for a progress bar.
    """
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for answer in pool.map(look, range(len(dataset))):
            if advance is not None:
                advance(1)
            yield answer


def unusable(
    dataset: DetectionDataset, suspects: Iterable[int], max_pixels: int = config.MAX_PIXELS
) -> RetinaError | None:
    """Return the fault of the first of these rows whose image can't be decoded or is not of the declared size, with
    the setting that leaves such images out."""
    for row in suspects:
        fault = size_fault(dataset, row, _size_or_fault(dataset, row, max_pixels))
        if fault is not None:
            return RetinaError(f"{fault}; data.invalid_images=skip leaves such images out, with --resume too")
    return None


def size_fault(dataset: DetectionDataset, row: int, stored: tuple[int, int] | RetinaError) -> RetinaError | None:
    """Return the error of an image that is not of its declared size.

    Args:
        stored: its (height, width) as read, or the fault that hides it.
    """
    if isinstance(stored, RetinaError):
        return stored
    (height, width), declared = stored, tuple(dataset.sizes[row].tolist())
    if stored == declared:
        return None
    cause = ""
    if declared == (width, height):
        other = "stored" if dataset.turns[row] != UPRIGHT else "upright"
        rotated = orientation(dataset.images[row]) in QUARTER_TURNS
        remedy = f"it fits data.orientation: {other}" if rotated else "may have been lost: store the image upright"
        cause = f" (an EXIF rotation: {remedy})" if rotated else f" (an EXIF rotation {remedy})"
    return RetinaError(
        f"{image_name(dataset, row)}: expected {declared[1]}x{declared[0]} pixels (width x height) as declared, "
        f"the image has {width}x{height}{cause}; correct the declared size or the image"
    )


def without_unusable(
    dataset: DetectionDataset, max_pixels: int, advance: Callable[[int], None] | None = None
) -> DetectionDataset:
    """Return the table without the images that can't be used (`data.invalid_images: skip`); a note names them.

    Every image is decoded once, in threads.

    Raises:
        RetinaError: none of its images can be used; the message gives the first fault.
    """
    start = time.perf_counter()
    sizes = each_image(dataset, lambda row: _size_or_fault(dataset, row, max_pixels), advance)
    faults = [size_fault(dataset, row, size) for row, size in enumerate(sizes)]
    rate = len(faults) / max(time.perf_counter() - start, 1e-9)
    bad = [fault for fault in faults if fault is not None]
    checked = f"{dataset.name}: data.invalid_images: skip: decoded {count(len(faults), 'image')} at {rate:.0f} images/s"
    if not bad:
        return replace(dataset, notes=(*dataset.notes, f"{checked}, all of which can be used"))
    if len(bad) == len(faults):
        raise RetinaError(f"{dataset.name}: none of its {count(len(bad), 'image')} can be used; the first: {bad[0]}")
    shown = "; ".join(str(fault) for fault in bad[:_SHOWN])
    more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    usable = dataset.subset([row for row, fault in enumerate(faults) if fault is None])
    lost = len(dataset.boxes) - len(usable.boxes)
    note = f"{checked}, {len(bad)} of them, with {count(lost, 'box')}, can't be used and are left out: {shown}{more}"
    return replace(usable, notes=(*dataset.notes, note))


def _size_or_fault(dataset: DetectionDataset, row: int, max_pixels: int) -> tuple[int, int] | RetinaError:
    """(height, width) as read, or the fault that hides it."""
    try:
        height, width = table_image(dataset, row, max_pixels).shape[:2]
    except RetinaError as error:
        return error
    return height, width


def _fault(content: bytes, known: bool) -> str:
    """The fault of bytes that could not be decoded; `known`: they begin as an image of a format that is read."""
    for start, mark, called in _OTHERS:
        if content.startswith(mark, start):
            return f"it is {called}"
    if content[:512].lstrip().lower().startswith(_HTML):
        return "it is not an image but a web page"
    if not known:
        return "it is not an image"
    if content.startswith(b"BM"):
        return "it is damaged, cut short, or a bitmap of fewer than 8 bits a pixel or packed, which is not read"
    return "it is damaged or cut short"
