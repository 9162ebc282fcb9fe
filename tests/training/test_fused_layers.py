"""TensorFlow's kernel under Keras' layer: outputs, gradients and moving statistics are Keras' own."""

from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf

from retina import config
from retina.models import backbones
from retina.models.detector import Detector
from retina.private_names import all_layers
from retina.training.fused_layers import fuse_batch_norms, fused, over_replicas


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
