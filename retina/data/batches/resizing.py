"""From a window of a stored image to the pixels of a canvas, in NumPy and OpenCV."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


def fast_painter() -> Callable[[np.ndarray, bool, bool, np.ndarray], None]:
    """The function that shows a window of an image in a target by OpenCV, which works outside Python's lock.

    Bilinear, half-pixel centres, no antialiasing, as `paint_exactly`, within one level of it and a tenth of one
    darker in the mean (OpenCV's weights have 11 bits, and it cuts off; `INTER_LINEAR_EXACT` is slower). Where an image
    is zoomed by 1/2 to 1, neither filters what is finer than the shown pixels. Averaging instead (`INTER_AREA`) takes
    five times as long, and evaluation, which training should resemble, doesn't either.
    """
    import cv2

    # Images are what is shared out among threads; OpenCV would start some of its own in each of ours.
    cv2.setNumThreads(1)
    resize, flip = cv2.resize, cv2.flip

    def paint(window: np.ndarray, mirrored: bool, turned: bool, target: np.ndarray) -> None:
        size = target.shape[1::-1]
        if mirrored or turned:
            flip(resize(window, size), {(1, 0): 1, (0, 1): 0, (1, 1): -1}[mirrored, turned], dst=target)
        else:
            resize(window, size, dst=target)

    return paint


def paint_exactly(window: np.ndarray, mirrored: bool, turned: bool, target: np.ndarray) -> None:
    """Shows a window of an image in a target with the pixels that evaluation has, bit for bit."""
    pixels = np.round(resized(window, (target.shape[0], target.shape[1]))).astype(np.uint8)
    target[:] = pixels[:: -1 if turned else 1, :: -1 if mirrored else 1]


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear with half-pixel centres and no antialias, float32 [H, W, 3], as `tf.image.resize` computes it."""
    rows, columns = (_interpolation(length, target) for length, target in zip(image.shape[:2], size, strict=True))
    pixels = image.astype(np.float32)
    pixels = _blend(pixels[:, columns.low], pixels[:, columns.high], columns.share[:, None])
    return _blend(pixels[rows.low], pixels[rows.high], rows.share[:, None, None])


class _Interpolation(NamedTuple):
    low: np.ndarray
    high: np.ndarray
    share: np.ndarray  # of `high`


def _interpolation(length: int, target: int) -> _Interpolation:
    """Between which source pixels each of `target` pixels lies; every step in float32, like the kernel's."""
    step = np.float32(length) / np.float32(target)
    place = (np.arange(target, dtype=np.float32) + np.float32(0.5)) * step - np.float32(0.5)
    floor = np.floor(place)
    low, high = floor.astype(np.int64), floor.astype(np.int64) + 1
    return _Interpolation(np.maximum(low, 0), np.minimum(high, length - 1), place - floor)


def _blend(low: np.ndarray, high: np.ndarray, share: np.ndarray) -> np.ndarray:
    return low + (high - low) * share
