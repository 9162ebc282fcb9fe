"""Layers of a backbone as a training step computes them: fewer passes over memory, the same variables and classes.

- `fold_frozen_batch_norms`: a frozen normalisation becomes part of the convolution before it.
- `shorten_gradients`: on JAX a ReLU's gradient is taken from its result (`retina.ops.rectifier`), and a max pooling's
  is gathered (`retina.ops.pooling`).
- `fuse_batch_norms`: on TensorFlow a normalisation that trains is a single kernel, over all replicas if asked for.

A layer's class stays what it was, since a saved Keras model names its layers by their classes: a callback may save it
while it trains. Only the layer's own `call` is replaced, which no file holds.

Of batch normalisations that train, Keras computes moments and normalises in separate float32 passes; TensorFlow's
kernel reads the activations once and keeps bfloat16 in memory. Over replicas Keras takes the variance as
E(x²) - E(x)², which loses most of its digits where a channel hardly varies, and three sums; here it is the mean square
about the mean, and two.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import keras
from keras import ops

from retina.ops.pooling import max_pool
from retina.ops.rectifier import relu
from retina.private_names import all_layers, uncast_variables

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
    """Give plain batch normalisations that train the fused pass, over channels-last maps; variables stay as they are.

    With several replicas, layers that are `synchronized` get the pass over all of them instead. Frozen layers are left
    to `fold_frozen_batch_norms`: whichever of the two comes last, none is normalised twice.
    """
    for layer in all_layers(model):
        if type(layer) is keras.layers.BatchNormalization and layer.trainable and _fits(layer):
            layer.call = partial(over_replicas if layer.synchronized and replicas > 1 else fused, layer)


def shorten_gradients(model: keras.Model) -> None:
    """Let a model's plain ReLUs and max poolings take the gradients that need fewer passes over memory."""
    for layer in all_layers(model):
        if (type(layer) is keras.layers.Activation and layer.activation is keras.activations.relu) or (
            type(layer) is keras.layers.ReLU
            and (layer.max_value, layer.negative_slope, layer.threshold) == (None, 0.0, 0.0)
        ):
            layer.call = relu
        elif type(layer) is keras.layers.MaxPooling2D and _is_plain(layer):
            layer.call = partial(max_pool, size=layer.pool_size[0], stride=layer.strides[0])


def _is_plain(layer: keras.layers.MaxPooling2D) -> bool:
    """Whether it pools squares over channels-last maps without padding."""
    square = len({*layer.pool_size}) == len({*layer.strides}) == 1
    return square and layer.padding == "valid" and layer.data_format == "channels_last"


def fold_frozen_batch_norms(model: keras.Model) -> None:
    """Let frozen batch normalisations of a functional model be computed by the convolutions before them.

    A convolution whose result goes to the normalisation only takes its scale into the kernel and its shift for a bias.
    A normalisation that is made trainable later is computed by itself again.
    """
    takers = Counter(id(x) for operation in model.operations for x in keras.tree.flatten(operation.input))
    takers.update(id(x) for x in model.outputs)
    makers = {id(layer.output): layer for layer in model.layers if type(layer) is keras.layers.Conv2D}
    for norm in model.layers:
        if type(norm) is not keras.layers.BatchNormalization or norm.trainable or not _fits(norm):
            continue
        convolution = makers.get(id(norm.input)) if takers[id(norm.input)] == 1 else None
        if convolution is not None and convolution.activation is keras.activations.linear:
            convolution.call = partial(_folded, convolution, norm)
            norm.call = partial(_unless_frozen, norm)


def _folded(layer: keras.layers.Conv2D, norm: keras.layers.BatchNormalization, inputs: Tensor) -> Tensor:
    """Return the normalised result of a convolution [B, H, W, C]."""
    if norm.trainable:
        return type(layer).call(layer, inputs)
    with uncast_variables():  # the kernel is rounded once, when it is scaled
        scale = ops.rsqrt(ops.convert_to_tensor(norm.moving_variance) + norm.epsilon) * norm.gamma
        shift = norm.beta - norm.moving_mean * scale
        if layer.use_bias:
            shift = shift + layer.bias * scale
        kernel = layer.kernel * scale
    convolved = layer.convolution_op(inputs, ops.cast(kernel, layer.compute_dtype))
    return convolved + ops.cast(shift, layer.compute_dtype)


def _unless_frozen(
    layer: keras.layers.BatchNormalization, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None
) -> Tensor:
    return type(layer).call(layer, inputs, training=training, mask=mask) if layer.trainable else inputs


def _fits(layer: keras.layers.BatchNormalization) -> bool:
    channels_last = layer.axis in (-1, 3) and layer.input_spec is not None and layer.input_spec.ndim == 4
    return channels_last and layer.scale and layer.center
