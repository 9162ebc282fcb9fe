"""Colour distortion of a training image as one affine map of its pixels, in TensorFlow operations.

Brightness, contrast, saturation and hue (as a turn in YIQ) are all linear in (R, G, B), so that their product is one
3x3 matrix and an offset: a single pass over the image, whatever is switched on.
"""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from retina import config
from retina.data.draws import Stream, uniform

# ITU-R BT.601, as in Pillow and torchvision.
_LUMA = np.array([0.299, 0.587, 0.114])
_YIQ = np.array([_LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
# Row [r, g, b] @ _TURN[k]: the part of a hue turn that stays, goes with its cosine, and with its sine.
_TURN = np.stack(
    [
        (np.linalg.inv(_YIQ) @ np.array(part) @ _YIQ).T
        for part in (
            [[1, 0, 0], [0, 0, 0], [0, 0, 0]],
            [[0, 0, 0], [0, 1, 0], [0, 0, 1]],
            [[0, 0, 0], [0, 0, -1], [0, 1, 0]],
        )
    ]
)
# Coefficients are rounded to multiples of 2 ** -11. Then each product and each sum of a pixel (below 2 ** 13) is exact
# in float32, so that neither the number of threads nor fused arithmetic can change a bit of the result.
_STEPS = 2048.0
_SPACING = 4


def distort(image: tf.Tensor, seed: tf.Tensor, options: config.Colour) -> tf.Tensor:
    """Distorts the colours of an image [H,W,3] uint8 with strengths drawn by the seed pair [2] int64.

    The probability is the caller's affair.
    """
    strengths = tf.constant([options.brightness, options.contrast, options.saturation, options.hue], tf.float32)
    drawn = strengths * (2 * uniform(seed, Stream.COLOUR, [4]) - 1)
    brightness, contrast, saturation = tf.unstack(1 + drawn[:3])
    return adjust(image, brightness, contrast, saturation, drawn[3])


def adjust(
    image: tf.Tensor, brightness: tf.Tensor, contrast: tf.Tensor, saturation: tf.Tensor, hue: tf.Tensor
) -> tf.Tensor:
    """Multiplies by `brightness`, blends with the mean grey by `contrast` and with the pixel's grey by `saturation`
    (1: no change, 0: nothing of the image is left), and turns the hue by `hue` full circles.

    In one step: intermediate results are neither rounded nor clipped. The matrix' coefficients are exact to 2 ** -12,
    which is 0.2 levels of a pixel at most. The mean grey is that of every fourth row and column.

    Args:
        image: [H,W,3] uint8, of any size.
        brightness: scalar float32 in [0, 2]; so are `contrast` and `saturation`.
        hue: scalar float32, in turns.

    Returns:
        [H,W,3] uint8, rounded to the nearest level and clipped.
    """
    luma, turn = tf.constant(_LUMA, tf.float32), tf.constant(_TURN, tf.float32)
    angle = 2 * math.pi * hue
    turned = turn[0] + tf.cos(angle) * turn[1] + tf.sin(angle) * turn[2]
    grey = tf.tile(luma[:, None], [1, 3])
    mixed = saturation * tf.eye(3) + (1 - saturation) * grey
    matrix = brightness * contrast * tf.matmul(mixed, turned)
    offset = brightness * (1 - contrast) * tf.reduce_sum(luma * mean_colour(image))
    matrix, offset = tf.round(matrix * _STEPS) / _STEPS, tf.round(offset * _STEPS) / _STEPS
    exact = tf.matmul(tf.reshape(tf.cast(image, tf.float32), [-1, 3]), matrix) + (offset + 0.5)
    # The cast cuts off, and 0.5 has been added: the nearest level.
    return tf.reshape(tf.cast(tf.clip_by_value(exact, 0.0, 255.5), tf.uint8), tf.shape(image))


def mean_colour(image: tf.Tensor) -> tf.Tensor:
    """[3] float32: the mean of every fourth row and column of an image [H,W,3] uint8; 0 for one without pixels."""
    # Whole numbers add up to the same whatever the order, so whatever the threads do.
    some = tf.cast(image[::_SPACING, ::_SPACING], tf.int32)
    count = tf.maximum(tf.size(some) // 3, 1)
    return tf.cast(tf.reduce_sum(some, [0, 1]), tf.float32) / tf.cast(count, tf.float32)
