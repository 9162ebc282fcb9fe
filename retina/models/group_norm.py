"""Group normalisation (Wu & He 2018, arXiv:1803.08494) whose statistics are exact on large maps."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

Tensor = Any


class GroupNormalization(keras.layers.GroupNormalization):
    """`keras.layers.GroupNormalization` on [B, H, W, C], in float32, with sums taken axis by axis.

    Keras' takes each moment in one sum over height, width and channels. On a CPU TensorFlow adds those numbers one
    behind the other: on a map of 100 x 136 (P3 of 800 x 1088 pixels) outputs are off by 1e-3, here by 1e-6.
    """

    def call(self, inputs: Tensor) -> Tensor:
        shape = ops.shape(inputs)
        x = ops.cast(inputs, "float32")
        x = ops.reshape(x, (-1, *shape[1:3], self.groups, inputs.shape[-1] // self.groups))
        x = x - _mean(x)
        x = x * ops.rsqrt(_mean(ops.square(x)) + self.epsilon)
        x = ops.reshape(x, (-1, *shape[1:]))
        return ops.cast(x * self.gamma + self.beta, self.compute_dtype)


def _mean(x: Tensor) -> Tensor:
    """[B, 1, 1, G, 1] of [B, H, W, G, c]."""
    for axis in (2, 1, 4):
        x = ops.mean(x, axis=axis, keepdims=True)
    return x
