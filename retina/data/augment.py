"""Random transforms of a training image, each a pure function of (image, boxes, seed pair) in TensorFlow operations.

The seed pair is (run seed, global sample number), int64 [2]. Every transform draws from a stream of its own, folded
from that pair, so that adding or switching off one changes no draw of another.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from retina.data.draws import uniform as _uniform

_HORIZONTAL_FLIP, _VERTICAL_FLIP, _ZOOM, _CROP = range(4)


class View(NamedTuple):
    """The part of a stored image that is shown, all int32 [2] (vertical, horizontal) pixels.

    `offset` and `window` are the part's corner and size in the stored image, `content` the size it is resized to.
    """

    offset: tf.Tensor
    window: tf.Tensor
    content: tf.Tensor


def horizontal_flip(
    image: tf.Tensor, boxes: tf.Tensor, seed: tf.Tensor, probability: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mirrors left and right with the given probability.

    Args:
        image: [H,W,3], any dtype.
        boxes: [G,4] xyxy float32, pixels of `image`.
        seed: [2] int64.
    """
    width = tf.cast(tf.shape(image)[1], boxes.dtype)
    flipped = tf.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
    return _flip(image, boxes, flipped, _uniform(seed, _HORIZONTAL_FLIP) < probability, axis=1)


def vertical_flip(
    image: tf.Tensor, boxes: tf.Tensor, seed: tf.Tensor, probability: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mirrors top and bottom with the given probability; arguments as in `horizontal_flip`."""
    height = tf.cast(tf.shape(image)[0], boxes.dtype)
    flipped = tf.stack([boxes[:, 0], height - boxes[:, 3], boxes[:, 2], height - boxes[:, 1]], axis=1)
    return _flip(image, boxes, flipped, _uniform(seed, _VERTICAL_FLIP) < probability, axis=0)


def zoom(seed: tf.Tensor, low: float, high: float) -> tf.Tensor:
    """A zoom factor, float32 scalar, log-uniform in [low, high]."""
    low, high = tf.constant(low, tf.float32), tf.constant(high, tf.float32)
    drawn = tf.exp(tf.math.log(low) + _uniform(seed, _ZOOM) * tf.math.log(high / low))
    # exp(log(x)) may round to just outside.
    return tf.clip_by_value(drawn, low, high)


def zoomed_view(
    stored: tf.Tensor, resized: tf.Tensor, canvas: tf.Tensor, seed: tf.Tensor, scale: tuple[float, float]
) -> View:
    """The view of a randomly zoomed image: what exceeds the canvas is cropped away at a random place.

    The crop is taken from the stored image, in whole pixels, so that nothing is resized only to be thrown away.

    Args:
        stored: [2] int32 (h, w) of the stored image.
        resized: [2] int32 (h, w) of the image at zoom 1.
        canvas: [2] int32 (h, w), at least `resized`.
        seed: [2] int64.
        scale: the range of the zoom.
    """
    target = tf.cast(tf.round(tf.cast(resized, tf.float32) * zoom(seed, *scale)), tf.int32)
    target = tf.maximum(target, 1)
    content = tf.minimum(target, canvas)
    part = tf.cast(content, tf.float32) / tf.cast(target, tf.float32)
    window = tf.cast(tf.round(tf.cast(stored, tf.float32) * part), tf.int32)
    window = tf.clip_by_value(window, 1, stored)
    room = tf.cast(stored - window + 1, tf.float32)
    offset = tf.cast(tf.floor(_uniform(seed, _CROP, [2]) * room), tf.int32)
    return View(tf.minimum(offset, stored - window), window, content)


def _flip(
    image: tf.Tensor, boxes: tf.Tensor, flipped: tf.Tensor, flip: tf.Tensor, axis: int
) -> tuple[tf.Tensor, tf.Tensor]:
    turned = tf.cond(flip, lambda: tf.reverse(image, [axis]), lambda: image)
    turned.set_shape(image.shape)
    return turned, tf.where(flip, flipped, boxes)
