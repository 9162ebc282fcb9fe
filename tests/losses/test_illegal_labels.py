"""Labels of no class: an error where they are known, NaN where a function is traced and cannot raise."""

import math

import keras
import numpy as np
import pytest
from keras import ops

from retina import losses

BACKEND = keras.backend.backend()
SCORES = np.array([[3.2, 5.1, -1.7], [1.3, 4.9, 2.0], [2.2, 2.5, -3.1]], np.float32)
CENTERS = np.array([[0, 0, 0], [1, -1, 0], [5, 5, 0]], np.float32)

pytestmark = pytest.mark.skipif(BACKEND == "torch", reason="nothing is traced")


def center_loss(features, labels):
    return losses.center_loss(features, labels, ops.convert_to_tensor(CENTERS))


OF_CLASSES = {
    "softmax_cross_entropy": lambda x, labels: losses.softmax_cross_entropy(x, targets=labels),
    "softmax_focal": lambda x, labels: losses.softmax_focal(x, targets=labels, gamma=2.0),
    "multiclass_hinge": losses.multiclass_hinge,
    "center_loss": center_loss,
}


def traced(function, x, labels):
    """Value and gradient of `function(x, labels)` compiled, with neither argument known."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        @tf.function
        def both(x, labels):
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = function(x, labels)
                total = tf.reduce_sum(value)
            return value, tape.gradient(total, x)

        value, gradient = both(tf.constant(x), tf.constant(labels))
        return value.numpy(), gradient.numpy()
    import jax

    def both(x, labels):
        value, pullback = jax.vjp(lambda x: function(x, labels), x)
        return value, pullback(jax.numpy.ones_like(value))[0]

    return [np.asarray(array) for array in jax.jit(both)(x, labels)]


@pytest.mark.parametrize("illegal", [0.0, 2.0, 0.5, math.nan])
def test_hinge(illegal):
    x = np.array([0.5, 9, 0.5], np.float32)
    value, gradient = traced(losses.hinge, x, np.array([1, illegal, -1], np.float32))
    np.testing.assert_array_equal(value, [0.5, np.nan, 1.5])
    np.testing.assert_array_equal(gradient, [-1, 0, 1])


@pytest.mark.parametrize("kind", [np.float32, np.int32, np.int8])
def test_hinge_of_legal_labels(kind):
    value, gradient = traced(losses.hinge, np.array([0.5, 9, 0.5], np.float32), np.array([1, 1, -1], kind))
    np.testing.assert_array_equal(value, [0.5, 0, 1.5])
    np.testing.assert_array_equal(gradient, [-1, 0, 1])


@pytest.mark.parametrize("illegal", [-1, 3, 0.5, math.nan])
@pytest.mark.parametrize("name", OF_CLASSES)
def test_losses_of_classes(name, illegal):
    """The legal samples keep the value and gradient that they have alone."""
    labels = np.array([0, illegal, 2], np.float32 if isinstance(illegal, float) else np.int32)
    value, gradient = traced(OF_CLASSES[name], SCORES, labels)
    alone, slope = traced(OF_CLASSES[name], SCORES[[0, 2]], labels[[0, 2]])
    assert np.isfinite(alone).all() and np.isfinite(slope).all() and np.abs(slope).max() > 0.1
    np.testing.assert_array_equal(np.isnan(value), [False, True, False])
    np.testing.assert_allclose(value[[0, 2]], alone, rtol=1e-6)
    np.testing.assert_allclose(gradient[[0, 2]], slope, rtol=1e-6)
    np.testing.assert_array_equal(gradient[1], 0)


@pytest.mark.parametrize("kind", [np.float32, np.int32, np.uint8])
@pytest.mark.parametrize("name", OF_CLASSES)
def test_legal_labels_give_what_they_give_untraced(name, kind):
    labels = np.array([2, 0, 1], kind)
    value, _ = traced(OF_CLASSES[name], SCORES, labels)
    np.testing.assert_allclose(value, OF_CLASSES[name](ops.convert_to_tensor(SCORES), labels), rtol=1e-6)


def test_centers_become_nan():
    def moved(features, labels):
        return losses.updated_centers(features, labels, ops.convert_to_tensor(CENTERS), 0.5) + 0.0 * features

    assert np.isnan(traced(moved, SCORES, np.array([0, 3, 1], np.int32))[0]).all()
    # Class 0 has (2, 4, 0): Δ = (-2, -4, 0) / 2. Nothing of the others.
    value, _ = traced(moved, np.array([[2, 4, 0], *CENTERS[1:]], np.float32), np.array([0, 1, 2], np.int32))
    np.testing.assert_allclose(value, [[0.5, 1, 0], *CENTERS[1:]], rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "illegal", "legal"),
    [
        (losses.Hinge(), [0, 1, 0, 1], [-1, 1, -1, 1]),
        (losses.SoftmaxCrossEntropy(), [1, 2, 3, 1], [0, 1, 2, 0]),  # numbered from 1
    ],
)
def test_fit(loss, illegal, legal):
    x = np.eye(4, dtype=np.float32)
    outputs = 1 if isinstance(loss, losses.Hinge) else 3
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(outputs, kernel_initializer="ones")])
    model.compile(optimizer=keras.optimizers.SGD(0.0), loss=loss, jit_compile=BACKEND == "jax")
    first = model.fit(x, np.array(illegal), batch_size=4, verbose=0).history["loss"]
    assert np.isnan(first).all()
    # Every score is 1: margins 2 and 0, and three equal classes.
    second = model.fit(x, np.array(legal), batch_size=4, verbose=0).history["loss"]
    np.testing.assert_allclose(second, [1.0 if outputs == 1 else math.log(3)], rtol=1e-6)
