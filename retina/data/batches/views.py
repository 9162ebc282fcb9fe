"""Views of training images, and the ways of their boxes, for many images at once, in NumPy.

Sizes, offsets and scales are (vertical, horizontal); boxes are xyxy. `draws` [n,32,4] are those of
`retina.data.batches.draws.table`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from retina import config
from retina.data.batches.draws import WINDOWS, Stream

MOST_HALVINGS = 3
"""libjpeg halves an image three times at most."""

# A box of which less than this is left, in pixels of the canvas, is dropped.
_LEAST_SIDE = 1.0
# Coordinates are rounded on their way through scale and offset; a box that is wholly visible must count as such.
_SLACK = 1e-4


class Views(NamedTuple):
    """The parts of n stored images that are shown, each [n,2] int64 pixels.

    `offset` and `window` are the part's corner and size in the stored image, `content` the size it is resized to.
    """

    offset: np.ndarray
    window: np.ndarray
    content: np.ndarray


class Objects(NamedTuple):
    """The m objects of n images: `image` [m] from 0 to n - 1, `boxes` [m,4] float32 xyxy pixels of the stored image,
    `labels` [m] int32, `ignored` [m] bool (crowd or difficult)."""

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray


def alone(
    stored: np.ndarray,
    resized: np.ndarray,
    canvas: np.ndarray,
    objects: Objects,
    draws: np.ndarray,
    options: config.Augment,
) -> Views:
    """Views of images that are shown alone: the random crop, enlarged to the evaluation size, then the random zoom.

    Args:
        stored: [n,2] sizes of the stored images.
        resized: [n,2] sizes at evaluation.
        canvas: [2] or [n,2], at least `resized`.
        options: its `scale` and `crop`.
    """
    if options.crop.probability == 0:
        return zoomed(stored, resized, canvas, draws, options.scale)
    offset, window = cropped(stored, objects, draws, options.crop)
    # The nearest pixel may lie beyond the room by rounding alone.
    size = np.clip(_round(window * (resized / window).min(axis=1, keepdims=True)), 1, resized)
    inner = zoomed(window, size, canvas, draws, options.scale)
    return inner._replace(offset=offset + inner.offset)


def covering(
    stored: np.ndarray, tile: np.ndarray, objects: Objects, draws: np.ndarray, options: config.Augment
) -> Views:
    """Views of images that must cover tiles [n,2]: the random crop, zoomed as little as covers the tile, times the
    random zoom where that is above 1; arguments as in `alone`. The content's size is the tile's.
    """
    offset, window = cropped(stored, objects, draws, options.crop)
    size = np.maximum(_round(window * (tile / window).max(axis=1, keepdims=True)), tile)
    low, high = options.scale
    inner = zoomed(window, size, tile, draws, (max(low, 1.0), max(high, 1.0)))
    return inner._replace(offset=offset + inner.offset)


def zoomed(
    stored: np.ndarray, resized: np.ndarray, canvas: np.ndarray, draws: np.ndarray, scale: tuple[float, float]
) -> Views:
    """Views of randomly zoomed images: what exceeds the canvas is cropped away at a random place.

    The crop is taken from the stored image, in whole pixels, so that nothing is resized only to be thrown away.
    """
    if scale == (1.0, 1.0) and canvas.ndim == 1:
        return Views(np.zeros_like(stored), stored, resized)
    target = zoomed_size(resized, zoom(draws, scale)[:, None])
    content = np.minimum(target, canvas)
    window = np.clip(_round(stored * (content / target)), 1, stored)
    offset = (draws[:, Stream.PLACE, :2] * (stored - window + 1)).astype(np.int64)
    return Views(offset, window, content)


def zoom(draws: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """Zoom factors [n], log-uniform in `scale` (low, high)."""
    low, high = scale
    # A power may round to just outside.
    return np.clip(low * (high / low) ** draws[:, Stream.ZOOM, 0], low, high)


def zoomed_size(resized: np.ndarray, factor: np.ndarray | float) -> np.ndarray:
    """The size of images of that size at zoom 1, in whole pixels, at least 1."""
    return np.maximum(_round(resized * factor), 1)


def cropped(
    stored: np.ndarray, objects: Objects, draws: np.ndarray, options: config.Crop
) -> tuple[np.ndarray, np.ndarray]:
    """Windows as `retina.config.Crop` describes them: offset and size, [n,2] each, in pixels of the stored image."""
    chosen = draws[:, Stream.WINDOW_CHANCE, 0] < options.probability
    if not chosen.any():
        return np.zeros_like(stored), stored
    offsets, windows = random_windows(
        stored, draws[:, Stream.WINDOWS : Stream.WINDOWS + WINDOWS], options.area, options.aspect
    )
    least = np.array(options.least)[(draws[:, Stream.WINDOW_LEAST, 0] * len(options.least)).astype(int)]
    corners = np.concatenate([offsets[..., ::-1], (offsets + windows)[..., ::-1]], axis=2)
    image, boxes = objects.image[~objects.ignored], objects.boxes[~objects.ignored].astype(np.float64)
    inside, whole = _common(corners[image], boxes[:, None]), area(boxes)[:, None]
    if options.overlap == "iou":
        whole = whole + area(corners)[image] - inside
    enough = np.zeros(offsets.shape[:2], bool)
    enough[np.bincount(image, minlength=len(stored)) == 0] = True
    np.logical_or.at(enough, image, inside >= (least[image, None] - _SLACK) * whole)
    chosen &= enough.any(axis=1)
    # argmax is the first of equals.
    first = np.arange(len(stored)), enough.argmax(axis=1)
    return np.where(chosen[:, None], offsets[first], 0), np.where(chosen[:, None], windows[first], stored)


def random_windows(
    size: np.ndarray, draws: np.ndarray, share: tuple[float, float], aspect: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Windows with a share of the image's area drawn evenly and an aspect (width / height) drawn log-uniformly.

    The range of the aspect is narrowed to what fits into the image at the area drawn, so that no draw is in vain.

    Args:
        size: [n,2] sizes of the images, at least 1 pixel.
        draws: [n,k,4] for k windows in each image.

    Returns:
        offsets and sizes [n,k,2] pixels; sizes are at least 1.
    """
    height, width = size[:, None, 0].astype(np.float64), size[:, None, 1].astype(np.float64)
    pixels = height * width * (share[0] + draws[..., 0] * (share[1] - share[0]))
    low, high = (np.log(np.maximum(np.minimum(end, width**2 / pixels), pixels / height**2)) for end in aspect)
    ratio = np.exp(low + draws[..., 1] * (high - low))
    sides = np.sqrt(np.stack([pixels / ratio, pixels * ratio], axis=2))
    windows = np.clip(_round(sides), 1, size[:, None])
    return (draws[..., 2:] * (size[:, None] - windows + 1)).astype(np.int64), windows


def halvings(views: Views) -> np.ndarray:
    """[n]: number of times that a JPEG can be halved as it is decoded without a side of the window below its content's.

    libjpeg computes such an image from the low frequencies of each block, so that it costs less to decode and to
    resize, and what is finer than its pixels is filtered away before the bilinear resize, which does no antialiasing.
    What is left for that resize is a shrink by less than 2 in the side that shrinks less (or beyond the 8th). A reduced
    pixel (x, y) covers the square of stored pixels [x r, (x + 1) r) x [y r, (y + 1) r), r being 2 to the power of
    `halvings`.
    """
    return possible_halvings((views.window // views.content).min(axis=1))


def possible_halvings(shrink: np.ndarray) -> np.ndarray:
    """Number of times that an image shown at 1 / `shrink` of its size can be halved: 0 to `MOST_HALVINGS`."""
    return np.digitize(shrink, [2**k for k in range(1, MOST_HALVINGS + 1)])


def snapped(views: Views, halvings: np.ndarray) -> Views:
    """The views with windows shrunk to whole reduced pixels: less than one of them is lost at each edge."""
    shift = halvings[:, None]
    return views._replace(offset=views.offset >> shift << shift, window=views.window >> shift << shift)


def scale(views: Views) -> np.ndarray:
    """[n,2] float32: canvas pixels per pixel of the stored image."""
    return views.content.astype(np.float32) / views.window.astype(np.float32)


def moved(objects: Objects, views: Views, mirrored: np.ndarray, turned: np.ndarray) -> np.ndarray:
    """The boxes [m,4] in pixels of their content, moved and flipped with it.

    Args:
        mirrored: [n] bool, flipped left and right; so is `turned`, top and bottom.
    """
    image = objects.image
    boxes = objects.boxes.reshape(-1, 2, 2) - views.offset.astype(np.float32)[image][:, None, ::-1]
    boxes = boxes * scale(views)[image][:, None, ::-1]
    for axis, flips in ((0, mirrored), (1, turned)):
        if flips.any():
            opposite = views.content[image, 1 - axis].astype(np.float32)[:, None] - boxes[:, ::-1, axis]
            boxes[..., axis] = np.where(flips[image][:, None], opposite, boxes[..., axis])
    return boxes.reshape(-1, 4)


def cut(
    boxes: np.ndarray, ignored: np.ndarray, limits: np.ndarray, options: config.Augment
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [m,4] cut to their (height, width) `limits` [m,2], and which stay [m]; see `retina.config.Augment`."""
    corners = np.concatenate([limits, limits], axis=1)[:, ::-1].astype(np.float32)
    left = np.minimum(np.maximum(boxes, np.float32(0)), corners)
    if options.keep == "centre":
        centre = (boxes[:, :2] + boxes[:, 2:]) / np.float32(2)
        stays = ((centre >= 0) & (centre <= corners[:, :2])).all(axis=1)
    else:
        stays = area(left) >= np.float32(options.min_visible - _SLACK) * area(boxes)
    return left, (stays | ignored) & (left[:, 2:] - left[:, :2] >= _LEAST_SIDE).all(axis=1)


def hidden_share(boxes: np.ndarray, offset: np.ndarray, window: np.ndarray) -> np.ndarray:
    """[m]: the share of each box [m,4] inside its window, `offset` and `window` [m,2]; 0 of a box without area."""
    corners = np.concatenate([offset[:, ::-1], (offset + window)[:, ::-1]], axis=1)
    whole = area(boxes)
    return np.divide(_common(corners, boxes), whole, out=np.zeros(len(boxes)), where=whole > 0)


def area(boxes: np.ndarray) -> np.ndarray:
    """Areas [...] of boxes [...,4]."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _common(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    return np.maximum(sides, 0).prod(axis=-1)


def _round(sides: np.ndarray) -> np.ndarray:
    return np.round(sides).astype(np.int64)
