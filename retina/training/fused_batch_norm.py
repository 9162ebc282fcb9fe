"""Batch normalisations of TensorFlow's training steps: its fused kernel, and statistics over all replicas.

Keras computes moments and normalises in separate float32 passes; TensorFlow's kernel reads the activations once and
keeps bfloat16 in memory. Over replicas Keras takes the variance as E(x²) - E(x)², which loses most of its digits where
a channel hardly varies, and three sums; here it is the mean square about the mean, and two.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import keras

from retina.private_names import all_layers

Tensor = Any


def fused(
    layer: keras.layers.BatchNormalization, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None
) -> Tensor:
    """Return what a batch normalisation gives for [B, H, W, C], its training pass as a single kernel."""
    if not (training and layer.trainable):
        return type(layer).call(layer, inputs, training=training, mask=mask)
    import tensorflow as tf

    normalized, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=tf.convert_to_tensor(layer.gamma),
        offset=tf.convert_to_tensor(layer.beta),
        mean=tf.zeros([0]),
        variance=tf.zeros([0]),
        epsilon=layer.epsilon,
        is_training=True,
    )
    # The kernel gives the unbiased variance; Keras averages the biased one.
    samples = tf.cast(tf.size(inputs) / inputs.shape[-1], tf.float32)
    _average(layer, mean, variance * ((samples - 1.0) / samples))
    return normalized


def over_replicas(
    layer: keras.layers.BatchNormalization, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None
) -> Tensor:
    """Return what a batch normalisation gives for [B, H, W, C], trained on the images of all replicas of a
    `tf.distribute.Strategy`, which have equally many."""
    if not (training and layer.trainable):
        return type(layer).call(layer, inputs, training=training, mask=mask)
    import tensorflow as tf

    replicas = tf.distribute.get_replica_context()

    def mean_over_all(x: Tensor) -> Tensor:
        share = tf.reduce_mean(x, axis=(0, 1, 2)) / replicas.num_replicas_in_sync
        return replicas.all_reduce(tf.distribute.ReduceOp.SUM, share)

    x = tf.cast(inputs, tf.float32)
    mean = mean_over_all(x)
    variance = mean_over_all(tf.math.squared_difference(x, mean))
    _average(layer, mean, variance)
    scale, offset = tf.convert_to_tensor(layer.gamma), tf.convert_to_tensor(layer.beta)
    normalized = tf.nn.batch_normalization(x, mean, variance, offset, scale, layer.epsilon)
    return tf.cast(normalized, inputs.dtype)


def _average(layer: keras.layers.BatchNormalization, mean: Tensor, variance: Tensor) -> None:
    import tensorflow as tf

    for average, value in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        average.assign(average * layer.momentum + tf.stop_gradient(value) * (1.0 - layer.momentum))


def fuse_batch_norms(model: keras.Model, replicas: int = 1) -> None:
    """Give plain batch normalisations over channels-last maps the fused training pass; variables stay as they are.

    With several replicas, layers that are `synchronized` get the pass over all of them instead. A layer's class stays
    too, since a saved Keras model names its layers by their classes: a callback may save it while it trains.
    """
    for layer in all_layers(model):
        if type(layer) is keras.layers.BatchNormalization and _fits(layer):
            layer.call = partial(over_replicas if layer.synchronized and replicas > 1 else fused, layer)


def _fits(layer: keras.layers.BatchNormalization) -> bool:
    channels_last = layer.axis in (-1, 3) and layer.input_spec is not None and layer.input_spec.ndim == 4
    return channels_last and layer.scale and layer.center
