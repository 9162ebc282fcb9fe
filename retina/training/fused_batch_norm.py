"""TensorFlow's fused batch normalisation under Keras' layer: the same numbers in less time.

Keras computes moments and normalises in separate float32 passes; TensorFlow's kernel reads the activations once and
keeps bfloat16 in memory.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

Tensor = Any


class FusedBatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` on [B, H, W, C] whose training pass is one kernel; inference is Keras' own."""

    def call(self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None) -> Tensor:
        if not (training and self.trainable):
            return super().call(inputs, training=training, mask=mask)
        normalized, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.convert_to_tensor(self.gamma),
            offset=tf.convert_to_tensor(self.beta),
            mean=tf.zeros([0]),
            variance=tf.zeros([0]),
            epsilon=self.epsilon,
            is_training=True,
        )
        # The kernel gives the unbiased variance; Keras averages the biased one.
        samples = tf.cast(tf.size(inputs) / inputs.shape[-1], tf.float32)
        biased = variance * ((samples - 1.0) / samples)
        for average, value in ((self.moving_mean, mean), (self.moving_variance, biased)):
            average.assign(average * self.momentum + tf.stop_gradient(value) * (1.0 - self.momentum))
        return normalized


def fuse_batch_norms(model: keras.Model) -> None:
    """Gives plain batch normalisations over channels-last maps the fused training pass; variables stay as they are."""
    for layer in model._flatten_layers():
        if type(layer) is keras.layers.BatchNormalization and _fits(layer):
            layer.__class__ = FusedBatchNormalization


def _fits(layer: keras.layers.BatchNormalization) -> bool:
    channels_last = layer.axis in (-1, 3) and layer.input_spec is not None and layer.input_spec.ndim == 4
    return channels_last and layer.scale and layer.center and not layer.synchronized
