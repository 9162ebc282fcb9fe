import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from retina.losses.focal import sigmoid_focal, sigmoid_focal_of_labels
from tests import reference
from tests.gradient import forward_derivative, second_derivative, value_and_gradient

# Within float32's range and far beyond it: the sigmoid of 20 rounds to 1, that of -200 to 0.
LOGITS = np.concatenate([[-200, -100, -88, -50, -20], np.linspace(-12, 12, 49), [20, 50, 88, 100, 200]]).astype(
    np.float32
)
GAMMAS = (0.0, 0.3, 0.5, 1.0, 2.0, 5.0)

# exp(-m) is known to m·ε of itself, so the modulating factor errs by at most m·e^-m·ε < 0.4 ε = 5e-8, times a loss
# near 0 where m is large: γ = 5 underflows below this.
ATOL = 1e-7


def tensor(values):
    return ops.convert_to_tensor(np.asarray(values, np.float32))


def test_no_elements():
    value, gradient = value_and_gradient(
        lambda x: sigmoid_focal(x, targets=tensor(np.zeros((0, 3))), alpha=0.25, gamma=2.0),
        np.zeros((0, 3), np.float32),
    )
    assert value.shape == gradient.shape == (0, 3)


def test_by_hand():
    # x = 0: p = 1/2. Positive: 0.25 · (1/2)² · ln 2; negative: 0.75 · (1/2)² · ln 2.
    value = sigmoid_focal(tensor([0, 0]), targets=tensor([1, 0]), alpha=0.25, gamma=2.0)
    np.testing.assert_allclose(value, [math.log(2) / 16, 3 * math.log(2) / 16], rtol=1e-6)
    # x = ln 3: p = 3/4. Positive: 1/4 · -ln(3/4); negative: 3/4 · ln 4.
    value = sigmoid_focal(tensor([math.log(3)] * 2), targets=tensor([1, 0]), alpha=None, gamma=1.0)
    np.testing.assert_allclose(value, [math.log(4 / 3) / 4, math.log(4) * 3 / 4], rtol=1e-6)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("alpha", [None, 0.0, 0.25, 1.0])
@pytest.mark.parametrize("target", [0.0, 1.0, 0.3])
def test_value_and_gradient_equal_reference(target, alpha, gamma):
    targets = np.full_like(LOGITS, target)
    value, gradient = value_and_gradient(
        lambda x: sigmoid_focal(x, targets=tensor(targets), alpha=alpha, gamma=gamma), LOGITS
    )
    assert value.dtype == np.float32
    targets = targets.astype(np.float64)
    np.testing.assert_allclose(value, reference.focal(LOGITS, targets, alpha, gamma), rtol=1e-6, atol=ATOL)
    expected = reference.focal_gradient(LOGITS, targets, alpha, gamma)
    # The gradient is a sum of γ·p^γ·(1-p)·loss and p^γ·p, each as above.
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=(1 + gamma) * ATOL)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("alpha", [None, 0.25])
def test_float64_follows_the_formula_to_its_own_precision(alpha, gamma):
    targets = np.tile([0.0, 1.0, 0.3], len(LOGITS))
    logits = np.repeat(LOGITS, 3).astype(np.float64)
    value, gradient = value_and_gradient(
        lambda x: sigmoid_focal(x, targets=ops.convert_to_tensor(targets), alpha=alpha, gamma=gamma), logits
    )
    # m·ε for m = 5 · 200; values below 1e-290 are beyond any use.
    np.testing.assert_allclose(value, reference.focal(logits, targets, alpha, gamma), rtol=5e-13, atol=1e-290)
    expected = reference.focal_gradient(logits, targets, alpha, gamma)
    np.testing.assert_allclose(gradient, expected, rtol=5e-13, atol=1e-290)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_second_derivative_and_forward_mode(gamma):
    """tests/backends holds the other backends to these."""
    logits, targets = np.linspace(-12, 12, 49), np.resize([0.0, 1.0, 0.3], 49)
    focal = lambda x: sigmoid_focal(x, targets=targets, alpha=0.25, gamma=gamma)  # noqa: E731
    slope = lambda x: reference.focal_gradient(x, targets, 0.25, gamma)  # noqa: E731
    np.testing.assert_allclose(forward_derivative(focal, logits), slope(logits), rtol=5e-13)
    # Central differences of step h err by h² times the third derivative of the slope, and by ε/h.
    differences = (slope(logits + 1e-5) - slope(logits - 1e-5)) / 2e-5
    np.testing.assert_allclose(second_derivative(focal, logits), differences, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_confidently_wrong_at_200(gamma):
    """The modulating factor is 1 there: loss 200 times the weight, slope the weight."""
    value, gradient = value_and_gradient(
        lambda x: sigmoid_focal(x, targets=tensor([1, 0]), alpha=0.25, gamma=gamma), np.array([-200, 200], np.float32)
    )
    np.testing.assert_allclose(value, [50, 150], rtol=1e-6)
    np.testing.assert_allclose(gradient, [-0.25, 0.75], rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 0.9, 2.0])
def test_confidently_right_has_no_gradient_rather_than_nan(gamma):
    """With γ < 1 the derivative of (1-p)^γ is infinite at p = 1; times log p it is 0."""
    value, gradient = value_and_gradient(
        lambda x: sigmoid_focal(x, targets=tensor([1, 1, 0, 0]), alpha=0.25, gamma=gamma),
        np.array([200, 90, -200, -90], np.float32),
    )
    np.testing.assert_allclose(value, 0, atol=1e-35)
    np.testing.assert_allclose(gradient, 0, atol=1e-35)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("alpha", [None, 0.25, 1.0])
@pytest.mark.parametrize("classes", [1, 3])
def test_labels_equal_targets_summed_over_classes(classes, alpha, gamma):
    """-1 and K are no class. 16 divides the rows: what a processor computes one by one differs in a last digit."""
    labels = np.resize(np.arange(-1, classes + 1), 320)
    logits = np.resize(LOGITS, (320, classes))
    targets = tensor(labels[:, None] == np.arange(classes))
    expected = value_and_gradient(
        lambda x: ops.sum(sigmoid_focal(x, targets=targets, alpha=alpha, gamma=gamma), axis=-1), logits
    )
    labels = ops.convert_to_tensor(labels.astype(np.int32))
    result = value_and_gradient(lambda x: sigmoid_focal_of_labels(x, labels, alpha=alpha, gamma=gamma), logits)
    np.testing.assert_allclose(result[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(result[1], expected[1], rtol=1e-6)


def test_a_well_learnt_label_leaves_the_other_classes_their_digits():
    """The label's loss as a background's, 150, is never part of the sum."""
    logits = tensor([[200.0, -8.0, -9.0]])
    value = sigmoid_focal_of_labels(logits, ops.convert_to_tensor(np.array([0], np.int32)), alpha=0.25, gamma=2.0)
    np.testing.assert_allclose(value, [reference.focal([200.0, -8.0, -9.0], [1, 0, 0], 0.25, 2.0).sum()], rtol=1e-6)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a graph of TensorFlow's")
def test_few_passes_over_all_classes():
    """Operations that write a tensor as large as the logits, in value and gradient; 31 with a choice for each class."""
    import tensorflow as tf

    def gradient(logits, labels):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            total = tf.reduce_sum(sigmoid_focal_of_labels(logits, labels, alpha=0.25, gamma=2.0))
        return tape.gradient(total, logits)

    function = tf.function(gradient, autograph=False)
    graph = function.get_concrete_function(tf.TensorSpec((2, 50, 7)), tf.TensorSpec((2, 50), tf.int32)).graph
    views = ("Reshape", "Identity", "IdentityN", "Placeholder")
    sizes = [op.outputs[0].shape.num_elements() for op in graph.get_operations() if op.outputs and op.type not in views]
    assert sizes.count(2 * 50 * 7) <= 18


def test_integer_targets_and_broadcasting():
    logits = tensor(np.linspace(-3, 3, 6).reshape(2, 3))
    value = sigmoid_focal(logits, targets=ops.convert_to_tensor(np.array([1, 0, 1], np.int32)), alpha=0.25, gamma=2.0)
    expected = reference.focal(np.linspace(-3, 3, 6).reshape(2, 3), [1, 0, 1], 0.25, 2.0)
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=ATOL)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.floats(-200, 200, width=32), st.floats(0, 1, width=32), st.floats(0, 5))
def test_finite_and_not_negative(logit, target, gamma):
    value, gradient = value_and_gradient(
        lambda x: sigmoid_focal(x, targets=tensor([target]), alpha=0.25, gamma=gamma), np.array([logit], np.float32)
    )
    assert np.isfinite(value).all() and np.isfinite(gradient).all() and value[0] >= 0
