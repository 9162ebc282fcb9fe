"""Levels of images: nearly black ones, those of one colour, grey among colour, and more than 8 bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from retina.config.reading import override_line
from retina.data.batches.decoding import deep_values, is_deep_png
from retina.data.headers import is_tiff
from retina.doctor.findings import Finding, listed, some
from retina.output import count

# An image is nearly black if all but a hundredth of its pixels lie below this level of 255.
_DARK, _QUANTILE = 16, 0.99
# Every so many pixels of a row and a column are looked at for what is not a matter of single pixels.
_STEP = 4
_LISTED = 3


class Levels(NamedTuple):
    """Levels of an image as it is read: whether it is of one colour, nearly black, and grey."""

    constant: bool
    dark: bool
    grey: bool


class Deep(NamedTuple):
    """The type of an image's own values, such as "uint16", and their range."""

    kind: str
    low: float
    high: float


def levels(pixels: np.ndarray) -> Levels:
    """Return the levels of an image, uint8 [h,w,3]."""
    part = pixels[::_STEP, ::_STEP]
    constant = bool((part == part[0, 0]).all()) and bool((pixels == pixels[0, 0]).all())
    dark = float(np.quantile(part, _QUANTILE)) < _DARK
    return Levels(constant, dark, bool((part[..., :1] == part).all()))


def deep(content: bytes) -> Deep | None:
    """Return the range of an encoded image of more than 8 bits; None for another image, or one that can't be read."""
    if not (is_tiff(content) or is_deep_png(content)):
        return None
    try:
        values = deep_values(content)
    except ValueError:
        return None  # the reader says what is wrong
    if values.dtype == np.uint8:
        return None
    low, high = np.nanmin(values), np.nanmax(values)
    return Deep(str(values.dtype), float(low), float(high))


def level_findings(names: Sequence[str], shown: Sequence[Levels | None], split: str) -> Iterator[Finding]:
    """Yield findings on how light images are as they are read.

    Args:
        names: [N] of the images.
        shown: [N], None where an image was not decoded.
    """
    known = [(name, of_image) for name, of_image in zip(names, shown, strict=True) if of_image is not None]
    constant = [name for name, of_image in known if of_image.constant]
    dark = [name for name, of_image in known if of_image.dark and not of_image.constant]
    grey = [name for name, of_image in known if of_image.grey and not of_image.constant]
    if constant:
        yield Finding(
            "warning",
            "constant-images",
            f"{_share(constant, known)} of one colour: {some(constant, _LISTED)}",
            "look at them: nothing can be learned from boxes on them; remove or restore them",
            split,
            listed(constant),
        )
    if dark:
        yield Finding(
            "warning",
            "dark-images",
            f"{_share(dark, known)} nearly black, 99 % of the pixels below {_DARK} of 255: {some(dark, _LISTED)}",
            "look at them; 12 bits in files of 16 look like that: data.depth scales them",
            split,
            listed(dark),
        )
    coloured = [name for name, of_image in known if not of_image.grey]
    if grey and coloured:
        fewer, words = grey, "grey among others in colour"
        if len(coloured) < len(grey):
            fewer, words = coloured, "in colour among others that are grey"
        yield Finding(
            "note",
            "grey-images",
            f"{_share(fewer, known)} {words}: {some(fewer, _LISTED)}",
            "fine if both kinds come in use; otherwise keep to the kind that does",
            split,
            listed(fewer),
        )


def depth_findings(images: Sequence[Deep | None], depth: tuple[float, float] | None, split: str) -> Iterator[Finding]:
    """Yield a finding on images of more than 8 bits: how many, their range, and the setting that scales it.

    Args:
        depth: `data.depth` that the images were read with.
    """
    deep_images = [image for image in images if image is not None]
    if not deep_images:
        return
    low, high = min(image.low for image in deep_images), max(image.high for image in deep_images)
    kinds = sorted({image.kind for image in deep_images})
    what = f"{count(len(deep_images), 'image')} of more than 8 bits ({', '.join(kinds)}), from {low:g} to {high:g}"
    if kinds == ["uint16"]:
        low, high = 0.0, float(2 ** int(high).bit_length() - 1)
    bounds = {"low": _plain(low), "high": _plain(max(high, low + 1))}
    setting = override_line("data.depth", bounds) if high > low else ""
    if depth is not None:
        yield Finding(
            "note", "deep-images", f"{what}, read with data.depth from {depth[0]:g} to {depth[1]:g}", "", split
        )
    elif kinds != ["uint16"]:
        yield Finding("error", "deep-images", f"{what}, which are not read without data.depth", setting, split)
    elif high < 2**14:
        yield Finding(
            "warning",
            "deep-images",
            f"{what}: read by their upper 8 bits they have {int(high) // 256 + 1} of 256 levels",
            f"{setting} takes them all",
            split,
        )
    else:
        yield Finding("note", "deep-images", f"{what}, read by their upper 8 bits", "data.depth chooses others", split)


def _plain(number: float) -> float:
    """A number without a superfluous point."""
    return int(number) if number.is_integer() else number


def _share(names: Sequence[str], known: Sequence[object]) -> str:
    return f"{len(names)} of {count(len(known), 'image')} ({len(names) / len(known):.0%})"
