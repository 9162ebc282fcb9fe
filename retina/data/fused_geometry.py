"""What a batch of training images shows and where its boxes go, for the whole batch at once, in NumPy.

The same arithmetic in float32 as `retina.data.augment.zoomed_view`, `retina.data.crop.cut` and the flips have for one
image in TensorFlow operations; a test holds the two to each other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from retina import config
from retina.data import philox
from retina.data.dataset import DetectionDataset

# As in `retina.data.augment`, `retina.data.reduced` and `retina.data.crop`.
_STREAMS = (0, 1, 2, 3)
_MOST = 3
_LEAST_SIDE = 1.0
_SLACK = 1e-4
# Samples are drawn for in blocks: a call costs as much for a thousand as for a few.
_BLOCK = 1024
_BLOCKS_KEPT = 4


class Draws(NamedTuple):
    """What is drawn for each of n samples, float32 in [0, 1): each [n], `place` [n,2] (vertical, horizontal)."""

    mirror: np.ndarray
    turn: np.ndarray
    zoom: np.ndarray
    place: np.ndarray


class Views(NamedTuple):
    """`retina.data.augment.View` of n images, each [n,2] int32 (vertical, horizontal) pixels."""

    offset: np.ndarray
    window: np.ndarray
    content: np.ndarray


class Objects(NamedTuple):
    """The columns of a batch that tell its objects; see `retina.data.pipeline.Batch`."""

    boxes: np.ndarray
    labels: np.ndarray
    valid: np.ndarray
    crowd: np.ndarray


def drawing(seed: int) -> Callable[[np.ndarray], Draws]:
    """The function from sample numbers [n] int64 to what is drawn for them; it may be called in any thread."""

    @functools.lru_cache(_BLOCKS_KEPT)
    def block(number: int) -> np.ndarray:
        return philox.uniform(seed, np.arange(number * _BLOCK, (number + 1) * _BLOCK), _STREAMS)[..., :2]

    def draw(samples: np.ndarray) -> Draws:
        drawn = np.stack([block(number)[place] for number, place in zip(*divmod(samples, _BLOCK), strict=True)])
        return Draws(drawn[:, 0, 0], drawn[:, 1, 0], drawn[:, 2, 0], drawn[:, 3])

    return draw


def views(
    stored: np.ndarray, resized: np.ndarray, canvas: np.ndarray, drawn: Draws, scale: tuple[float, float]
) -> Views:
    """What is shown of each image: the random zoom, at a random place where it exceeds the canvas.

    Args:
        stored: [n,2] int32 (h, w).
        resized: [n,2] int32 (h, w) at zoom 1.
        canvas: [2] int32 (h, w), at least `resized`.
        scale: the range of the zoom.
    """
    if scale == (1.0, 1.0):
        return Views(np.zeros_like(stored), stored, resized)
    low, high = np.float32(scale[0]), np.float32(scale[1])
    zoom = np.clip(np.exp(np.log(low) + drawn.zoom * np.log(high / low)), low, high)
    target = np.maximum(np.round(resized.astype(np.float32) * zoom[:, None]).astype(np.int32), 1)
    content = np.minimum(target, canvas)
    part = content.astype(np.float32) / target.astype(np.float32)
    window = np.clip(np.round(stored.astype(np.float32) * part).astype(np.int32), 1, stored)
    room = (stored - window + 1).astype(np.float32)
    offset = np.minimum(np.floor(drawn.place * room).astype(np.int32), stored - window)
    return Views(offset, window, content)


def halvings(views: Views) -> np.ndarray:
    """[n] int32: see `retina.data.reduced.halvings`."""
    shrink = (views.window // views.content).min(axis=1)
    return np.digitize(shrink, [2**k for k in range(1, _MOST + 1)]).astype(np.int32)


def snapped(views: Views, halvings: np.ndarray) -> Views:
    """See `retina.data.reduced.snapped`; `halvings` [n] int32."""
    shift = halvings[:, None]
    return views._replace(offset=views.offset >> shift << shift, window=views.window >> shift << shift)


def scale(views: Views) -> np.ndarray:
    """[n,2] float32 (vertical, horizontal): canvas pixels per pixel of the stored image."""
    return views.content.astype(np.float32) / views.window.astype(np.float32)


class Table(NamedTuple):
    """The objects of N images: `offsets` [N+1] int64 into `boxes` [M,4] float32, `labels` [M] int32, `ignored` [M]."""

    offsets: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray
    slots: int  # G

    @classmethod
    def of(cls, dataset: DetectionDataset, slots: int) -> Table:
        """The columns of a data set, with room for so many boxes in an image of a batch."""
        return cls(
            dataset.offsets.astype(np.int64),
            dataset.boxes.astype(np.float32),
            dataset.labels.astype(np.int32),
            dataset.crowd | dataset.difficult,
            slots,
        )

    def objects(
        self, index: np.ndarray, views: Views, mirrored: np.ndarray, turned: np.ndarray, options: config.Augment
    ) -> Objects:
        """The boxes of the rows `index` [n] moved with their pixels, flipped and cut, in slots.

        Args:
            views: the views that were taken.
            mirrored: [n] bool, flipped left and right; so is `turned`, top and bottom.
        """
        first = self.offsets[index]
        counts = self.offsets[index + 1] - first
        image = np.repeat(np.arange(len(index)), counts)
        slot = np.arange(len(image)) - np.repeat(np.cumsum(counts) - counts, counts)
        row = np.repeat(first, counts) + slot
        ignored = self.ignored[row]
        limits = views.content.astype(np.float32)[image][:, ::-1]
        boxes = self.boxes[row].reshape(-1, 2, 2) - views.offset.astype(np.float32)[image][:, None, ::-1]
        boxes = boxes * scale(views)[image][:, None, ::-1]
        for axis, flips in ((0, mirrored[image]), (1, turned[image])):
            opposite = limits[:, None, axis] - boxes[:, ::-1, axis]
            boxes[..., axis] = np.where(flips[:, None], opposite, boxes[..., axis])
        cut, stays = _cut(boxes, ignored, limits, options)

        found = Objects(
            np.zeros((len(index), self.slots, 4), np.float32),
            np.zeros((len(index), self.slots), np.int32),
            np.zeros((len(index), self.slots), bool),
            np.zeros((len(index), self.slots), bool),
        )
        image, slot = image[stays], slot[stays]
        found.boxes[image, slot] = cut[stays].reshape(-1, 4)
        found.labels[image, slot] = self.labels[row[stays]]
        found.valid[image, slot] = True
        found.crowd[image, slot] = ignored[stays]
        return found


def _cut(
    boxes: np.ndarray, ignored: np.ndarray, limits: np.ndarray, options: config.Augment
) -> tuple[np.ndarray, np.ndarray]:
    """`retina.data.crop.cut` of boxes [m,2,2] (corner, axis), each with its own `limits` [m,2] (width, height)."""
    left = np.minimum(np.maximum(boxes, np.float32(0)), limits[:, None])
    sides = left[:, 1] - left[:, 0]
    if options.keep == "centre":
        centre = (boxes[:, 0] + boxes[:, 1]) / np.float32(2)
        stays = ((centre >= 0) & (centre <= limits)).all(axis=1)
    else:
        whole = (boxes[:, 1] - boxes[:, 0]).prod(axis=1)
        stays = sides.prod(axis=1) >= np.float32(options.min_visible - _SLACK) * whole
    return left, (stays | ignored) & (sides >= _LEAST_SIDE).all(axis=1)
