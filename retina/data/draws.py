"""Random numbers that are a function of a seed pair and a stream: the same in any thread, order and restart.

The seed pair is (run seed, global sample number), int64 [2], or one folded from it. A stream is a number that one use
of chance has for itself, so that adding or switching off one changes no draw of another.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


class Stream(enum.IntEnum):
    """One number for each use of chance. Numbers never change and are never used again: runs must stay repeatable."""

    # 0 to 3 are the flips, the zoom and its crop in `retina.data.augment`.
    WINDOW = 4
    WINDOW_LEAST = 5
    WINDOW_CHANCE = 6
    COLOUR = 7
    COLOUR_CHANCE = 8
    MOSAIC_CHANCE = 9
    MOSAIC_CENTRE = 10
    MOSAIC_PARTNERS = 11
    MIXUP_CHANCE = 12
    MIXUP_WEIGHT = 13
    MIXUP_PARTNER = 14
    ERASE_CHANCE = 15
    ERASE_WINDOW = 16
    ERASE_FILL = 17
    # Of a batch, whose number stands in the place of the sample's.
    SHORT_SIDE = 18
    # Seeds of the second to fourth image of a mosaic, and of the partner of a mixup.
    TILES = 20
    PARTNER = 24


def fold(seed: tf.Tensor, stream: int) -> tf.Tensor:
    """Another seed pair, int64 [2]. The algorithm is named because the default depends on the device."""
    return tf.random.experimental.stateless_fold_in(seed, tf.constant(int(stream), tf.int64), alg="philox")


def uniform(seed: tf.Tensor, stream: int, shape: Sequence[int] = ()) -> tf.Tensor:
    """Float32 in [0, 1)."""
    return tf.random.stateless_uniform(shape, fold(seed, stream), alg="philox")


def integers(seed: tf.Tensor, stream: int, shape: Sequence[int], stop: int | tf.Tensor) -> tf.Tensor:
    """Int64 from 0 to `stop` - 1, evenly."""
    stop = tf.cast(stop, tf.int64)
    return tf.random.stateless_uniform(shape, fold(seed, stream), tf.constant(0, tf.int64), stop, tf.int64, "philox")


def sometimes(
    seed: tf.Tensor, stream: int, probability: float, then: Callable[[], Any], otherwise: Callable[[], Any]
) -> Any:
    """`then()` with the given probability, else `otherwise()`; only the one drawn is computed.

    Both return the same nest of tensors. At 0 and 1 nothing is drawn, and the other one is not even built.
    """
    if probability in (0.0, 1.0):
        return then() if probability else otherwise()
    return tf.cond(uniform(seed, stream) < probability, then, otherwise)
