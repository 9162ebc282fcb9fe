"""Layers as a training step computes them: outputs, gradients and moving statistics are those of Keras.

ReLU and max pooling, whose gradients are ours on JAX alone: tests/backends/runner.py.
"""

from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf

from retina import config
from retina.models import backbones
from retina.models.detector import Detector
from retina.private_names import all_layers
from retina.training.fused_layers import (
    _folded,
    fold_frozen_batch_norms,
    fuse_batch_norms,
    fused,
    over_replicas,
    shorten_gradients,
)


def layer(policy: str, way=None) -> keras.layers.BatchNormalization:
    out = keras.layers.BatchNormalization(epsilon=1e-5, momentum=0.9, dtype=policy)
    out.build((None, 6, 10, 8))
    rng = np.random.default_rng(1)
    for variable in out.weights:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    if way is not None:
        out.call = partial(way, out)
    return out


def train(normalization: keras.layers.BatchNormalization, inputs: np.ndarray, upstream: np.ndarray) -> list[np.ndarray]:
    x = tf.cast(inputs, normalization.compute_dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = normalization(x, training=True)
        loss = tf.reduce_sum(tf.cast(y, tf.float32) * upstream)
    gradients = tape.gradient(loss, [x, normalization.gamma.value, normalization.beta.value])
    moving = [normalization.moving_mean.value, normalization.moving_variance.value]
    return [tf.cast(t, tf.float32).numpy() for t in [y, *gradients, *moving]]


# bfloat16 keeps 8 bits: two roundings apart are 2^-7 of a value.
@pytest.mark.parametrize(("policy", "bound"), [("float32", 1e-5), ("mixed_bfloat16", 2**-7)])
def test_equals_keras(policy: str, bound: float):
    rng = np.random.default_rng(0)
    inputs = rng.normal(2.0, 3.0, (4, 6, 10, 8)).astype(np.float32)
    upstream = rng.normal(size=inputs.shape).astype(np.float32)
    expected = train(layer(policy), inputs, upstream)
    for value, wanted in zip(train(layer(policy, fused), inputs, upstream), expected, strict=True):
        np.testing.assert_allclose(value, wanted, atol=bound * np.abs(wanted).max(), rtol=0)


def test_over_replicas_equals_keras_where_there_is_one():
    """With two and four: tests/training/test_distribution.py."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(2.0, 3.0, (4, 6, 10, 8)).astype(np.float32)
    upstream = rng.normal(size=inputs.shape).astype(np.float32)
    synchronized = layer("float32", over_replicas)
    expected = train(layer("float32"), inputs, upstream)
    for value, wanted in zip(train(synchronized, inputs, upstream), expected, strict=True):
        np.testing.assert_allclose(value, wanted, atol=1e-5 * np.abs(wanted).max(), rtol=0)


def test_over_replicas_a_channel_that_hardly_varies_keeps_its_variance():
    """1000 ± 0.1: a mean of squares about zero, 1e6, has no digit left for 0.01."""
    inputs = np.random.default_rng(0).normal(1000.0, 0.1, (4, 6, 10, 8)).astype(np.float32)
    normalization = layer("float32", over_replicas)
    normalization.moving_variance.assign(np.zeros(8))
    train(normalization, inputs, np.ones_like(inputs))
    variance = inputs.astype(np.float64).var((0, 1, 2))
    np.testing.assert_allclose(normalization.moving_variance.numpy(), 0.1 * variance, rtol=1e-3)


def test_moving_variance_is_the_biased_one():
    normalization = layer("float32", fused)
    normalization.moving_variance.assign(np.zeros(8))
    inputs = np.zeros((1, 1, 2, 8), np.float32)
    inputs[0, 0, 1] = 2.0  # mean 1, biased variance 1, unbiased 2
    train(normalization, inputs, np.ones_like(inputs))
    np.testing.assert_allclose(normalization.moving_variance.numpy(), 0.1, rtol=1e-5)


def test_inference_and_frozen_layers_use_the_moving_statistics():
    inputs = np.random.default_rng(2).normal(size=(2, 6, 10, 8)).astype(np.float32)
    plain, ours = layer("float32"), layer("float32", fused)
    np.testing.assert_array_equal(ours(inputs, training=False), plain(inputs, training=False))
    plain.trainable = ours.trainable = False
    np.testing.assert_array_equal(ours(inputs, training=True), plain(inputs, training=True))


@pytest.mark.parametrize("name", ["keras_cv/resnet10", "keras_cv/mobilenet_v3_small"])
def test_every_batch_norm_of_a_backbone_is_fused_and_keeps_its_variables(name: str):
    network = backbones.build(name)
    before = [variable.path for variable in network.variables]
    fuse_batch_norms(network)
    norms = [item for item in all_layers(network) if isinstance(item, keras.layers.BatchNormalization)]
    assert norms and all(item.call.func is fused for item in norms)
    assert [variable.path for variable in network.variables] == before


def detector(seed: int) -> Detector:
    keras.utils.set_random_seed(seed)
    model = config.Model(backbone="resnet18", fpn={"channels": 8}, head={"channels": 8, "layers": 1})
    return Detector(["a"], model=model)


@pytest.mark.parametrize("whole", [True, False])
def test_a_detector_that_trains_is_saved_and_loaded_by_keras(tmp_path, whole: bool):
    """As `keras.callbacks.ModelCheckpoint` saves it: what is loaded has every tensor, and gives the same."""
    trained = detector(0)
    fuse_batch_norms(trained.backbone)
    images = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)
    trained(images, training=True)
    if whole:
        trained.save(tmp_path / "m.keras")
        again = keras.models.load_model(tmp_path / "m.keras")
    else:
        trained.save_weights(tmp_path / "m.weights.h5")
        again = detector(1)
        again.load_weights(tmp_path / "m.weights.h5")
    for name, value in trained(images).items():
        np.testing.assert_array_equal(again(images)[name], value)


# ---------------------------------------------------------------------------------- frozen normalisations, and ReLUs


def branch(bias: bool, stride: int = 1) -> keras.Model:
    """A convolution with a frozen normalisation, and one whose result is read beside its normalisation."""
    image = keras.Input((6, 10, 3))
    x = keras.layers.Conv2D(8, 3, strides=stride, padding="same", use_bias=bias, name="conv")(image)
    y = keras.layers.BatchNormalization(name="bn")(x)
    y = both = keras.layers.Conv2D(8, 1, name="both_conv")(keras.layers.ReLU(name="relu")(y))
    y = keras.layers.BatchNormalization(name="both_bn")(y)
    network = keras.Model(image, keras.layers.Add(name="add")([y, both]))
    random = np.random.default_rng(3)
    for variable in network.variables:
        variable.assign(
            random.uniform(0.5, 1.5, variable.shape) * np.where(random.random(variable.shape) < 0.5, 1, 0.7)
        )
    for item in network.layers:
        item.trainable = not isinstance(item, keras.layers.BatchNormalization)
    return network


def results(network: keras.Model, images: np.ndarray) -> list[np.ndarray]:
    with tf.GradientTape() as tape:
        y = network(images, training=True)
        loss = tf.reduce_sum(tf.square(tf.cast(y, tf.float32)))
    return [y.numpy(), *(g.numpy() for g in tape.gradient(loss, [v.value for v in network.trainable_variables]))]


@pytest.mark.parametrize(("bias", "stride"), [(False, 2), (True, 1)])
def test_a_folded_normalisation_gives_the_same_values_and_gradients(bias: bool, stride: int):
    images = np.random.default_rng(4).normal(size=(2, 6, 10, 3)).astype(np.float32)
    network = branch(bias, stride)
    before = {variable.path: variable.numpy().copy() for variable in network.variables}
    expected = results(network, images)
    fuse_batch_norms(network)
    fold_frozen_batch_norms(network)
    fuse_batch_norms(network)  # folded ones stay folded
    assert network.get_layer("conv").call.func is _folded and "call" not in vars(network.get_layer("both_conv"))
    for value, wanted in zip(results(network, images), expected, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    for variable in network.variables:
        np.testing.assert_array_equal(variable.numpy(), before[variable.path])
    # Made trainable again, it is normalised by the batch.
    network.get_layer("bn").trainable = True
    network(images, training=True)
    assert not np.array_equal(network.get_layer("bn").moving_mean.numpy(), before["bn/moving_mean"])


@pytest.mark.parametrize(("name", "folded"), [("resnet18", 20), ("keras_cv/resnet10", 12)])
def test_every_frozen_normalisation_of_a_residual_network_is_folded(name: str, folded: int):
    network = backbones.build(name)
    for item in all_layers(network):
        item.trainable = not isinstance(item, keras.layers.BatchNormalization)
    fold_frozen_batch_norms(network)
    norms = [item for item in network.layers if isinstance(item, keras.layers.BatchNormalization)]
    assert len(norms) == folded and all("call" in vars(item) for item in norms)


def test_the_pooling_of_our_own_residual_network_is_shortened():
    network = backbones.build("resnet18")
    shorten_gradients(network)
    assert "call" in vars(network.get_layer("maxpool")) and "call" in vars(network.get_layer("layer1_0_relu"))
