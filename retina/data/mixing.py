"""A training image out of single ones: mosaic and mixup, then colours and erasing, in TensorFlow operations.

How a single image is read, cropped, zoomed and flipped is handed in as a function, so that this module knows neither
files nor tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from retina import config
from retina.data import colour, erase
from retina.data.draws import Stream, fold, integers, sometimes, uniform

_QUANTILES = 8192


class Part(NamedTuple):
    """An image as it is shown, [h,w,3] uint8, with its g boxes cut to it.

    `boxes` [g,4] xyxy pixels of `image`, `labels` [g] int32, `ignored` [g] bool (crowd or difficult), `valid` [g] bool
    (still there after the cut), `scale` [2] float32 (vertical, horizontal) pixels of `image` per stored pixel.
    """

    image: tf.Tensor
    boxes: tf.Tensor
    labels: tf.Tensor
    ignored: tf.Tensor
    valid: tf.Tensor
    scale: tf.Tensor


Covering = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], Part]
"""(row of the table, seed pair, tile [2] int32 (h, w)) -> the image, which covers the tile exactly."""

_COVERING = (tf.TensorSpec([], tf.int64), tf.TensorSpec([2], tf.int64), tf.TensorSpec([2], tf.int32))

Shown = Callable[[tf.Tensor, tf.Tensor, tf.Tensor | None], Part]
"""As `Covering`; without a tile the image as it is shown alone."""


def images_per_example(options: config.Augment) -> int:
    """How many images' boxes one training example may hold: 1, 2 with mixup, 4 with mosaic, 5 with both."""
    return (4 if options.mosaic.probability else 1) + (1 if options.mixup.probability else 0)


def augmented(
    options: config.Augment, seed: tf.Tensor, index: tf.Tensor, count: int, canvas: tf.Tensor, shown: Shown
) -> Part:
    """A training image: alone or as a mosaic, then blended with another or not, then its colours, then an erasure.

    Args:
        seed: [2] int64.
        index: the image's row, int64.
        count: N, the number of rows, from which partners are drawn evenly (the image itself may be among them).
        canvas: [2] int32 (h, w), what a mosaic fills.
        shown: crops, zooms and flips a row.
    """

    # Traced once and called for every partner: a mosaic would otherwise be five times the graph.
    covering = tf.function(shown, input_signature=_COVERING, autograph=False)
    part = sometimes(
        seed,
        Stream.MOSAIC_CHANCE,
        options.mosaic.probability,
        lambda: mosaic(seed, index, count, canvas, options.mosaic.centre, covering),
        lambda: shown(index, seed, None),
    )
    part = sometimes(
        seed,
        Stream.MIXUP_CHANCE,
        options.mixup.probability,
        lambda: mixup(part, seed, count, options.mixup.alpha, covering),
        lambda: part,
    )
    image = sometimes(
        seed,
        Stream.COLOUR_CHANCE,
        options.colour.probability,
        lambda: colour.distort(part.image, seed, options.colour),
        lambda: part.image,
    )
    image, ignored = sometimes(
        seed,
        Stream.ERASE_CHANCE,
        options.erase.probability,
        lambda: erase.erase(image, part.boxes, part.ignored, seed, options.erase),
        lambda: (image, part.ignored),
    )
    # A condition forgets what its branches agree on.
    return part._replace(image=tf.ensure_shape(image, [None, None, 3]), ignored=ignored)


def mosaic(
    seed: tf.Tensor,
    index: tf.Tensor,
    count: int,
    canvas: tf.Tensor,
    centre: tuple[float, float],
    covering: Covering,
) -> Part:
    """Four images that meet at a random point: row `index` at the top left, then three drawn from `count` rows evenly.

    Args:
        canvas: [2] int32 (h, w), at least 2 pixels each.
        centre: the range of the point, as a share of the canvas.

    Returns:
        the whole canvas, the boxes of the four in a row, and the scale of the first.
    """
    share = centre[0] + uniform(seed, Stream.MOSAIC_CENTRE, [2]) * (centre[1] - centre[0])
    middle = tf.cast(tf.round(share * tf.cast(canvas, tf.float32)), tf.int32)
    middle = tf.clip_by_value(middle, 1, canvas - 1)
    rows = tf.concat([index[None], integers(seed, Stream.MOSAIC_PARTNERS, [3], count)], axis=0)
    rest = canvas - middle
    tiles = (middle, tf.stack([middle[0], rest[1]]), tf.stack([rest[0], middle[1]]), rest)
    offsets = (tf.zeros_like(middle), middle * [0, 1], middle * [1, 0], middle)
    # The first keeps its seed: it is the image that would be shown alone.
    parts = [covering(rows[k], fold(seed, Stream.TILES + k) if k else seed, tiles[k]) for k in range(4)]
    lines = [tf.concat([left.image, right.image], axis=1) for left, right in (parts[:2], parts[2:])]
    moved = [
        part._replace(boxes=part.boxes + tf.tile(tf.cast(offset[::-1], tf.float32), [2]))
        for part, offset in zip(parts, offsets, strict=True)
    ]
    return _joined(tf.concat(lines, axis=0), moved)


def mixup(first: Part, seed: tf.Tensor, count: int, alpha: float, covering: Covering) -> Part:
    """`first` blended with one of `count` rows, drawn evenly, that covers it; the boxes of both count in full."""
    row = integers(seed, Stream.MIXUP_PARTNER, [], count)
    second = covering(row, fold(seed, Stream.PARTNER), tf.shape(first.image)[:2])
    weight = beta(uniform(seed, Stream.MIXUP_WEIGHT), alpha)
    sum_ = weight * tf.cast(first.image, tf.float32) + (1 - weight) * tf.cast(second.image, tf.float32)
    return _joined(tf.cast(tf.round(sum_), tf.uint8), [first, second])


def beta(chance: tf.Tensor, alpha: float) -> tf.Tensor:
    """The quantile of Beta(alpha, alpha) at `chance` in [0, 1): turns an even draw into one of that distribution.

    Read from a table of 8,193 quantiles, linear in between, so that a draw is the same on every machine and version.
    """
    # With x = sin(t)^2 the density of t is (sin t cos t)^(2 alpha - 1), which is smooth where that of x is not.
    cells = 16 * _QUANTILES
    angle = (np.arange(cells) + 0.5) * (math.pi / 2 / cells)
    logs = (2 * alpha - 1) * np.log(np.sin(angle) * np.cos(angle))
    mass = np.concatenate([[0.0], np.cumsum(np.exp(logs - logs.max()))])
    edges = np.sin(np.arange(cells + 1) * (math.pi / 2 / cells)) ** 2
    table = np.interp(np.linspace(0, 1, _QUANTILES + 1), mass / mass[-1], edges)
    quantiles = tf.constant(table, tf.float32)
    place = chance * _QUANTILES
    below = tf.cast(tf.floor(place), tf.int32)
    part = place - tf.cast(below, tf.float32)
    return tf.gather(quantiles, below) * (1 - part) + tf.gather(quantiles, below + 1) * part


def _joined(image: tf.Tensor, parts: list[Part]) -> Part:
    columns = {name: tf.concat([getattr(part, name) for part in parts], axis=0) for name in Part._fields[1:5]}
    return Part(image=image, scale=parts[0].scale, **columns)
