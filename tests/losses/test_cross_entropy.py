import math

import numpy as np
import pytest
from keras import ops

from retina.errors import RetinaError
from retina.losses import logistic, softmax_cross_entropy
from tests import reference
from tests.gradient import value_and_gradient

LOGITS = np.concatenate([[-200, -100, -50, -20], np.linspace(-12, 12, 25), [20, 50, 100, 200]]).astype(np.float32)
# Rows of three logits: ties, one far ahead, one far behind, all far from 0.
ROWS = np.array(
    [[0, 0, 0], [1, 2, 3], [200, -200, 0], [-200, -200, 200], [20, 0, 0], [200, 200, 199], [-200, -201, -200]],
    np.float32,
)


def tensor(values):
    return ops.convert_to_tensor(np.asarray(values, np.float32))


def softmax(rows):
    shifted = np.exp(rows - rows.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def test_no_samples():
    empty = np.zeros((0, 3), np.float32)
    value, gradient = value_and_gradient(lambda x: softmax_cross_entropy(x, targets=np.zeros(0, np.int32)), empty)
    assert value.shape == (0,) and gradient.shape == (0, 3)
    assert logistic(tensor(empty), targets=tensor(empty)).shape == (0, 3)


def test_logistic_by_hand():
    value = logistic(tensor([0, math.log(3), math.log(3)]), targets=[1, 1, 0])
    np.testing.assert_allclose(value, [math.log(2), math.log(4 / 3), math.log(4)], rtol=1e-6)


@pytest.mark.parametrize("target", [0.0, 0.3, 1.0])
def test_logistic_equals_reference(target):
    value, gradient = value_and_gradient(lambda x: logistic(x, targets=np.float32(target)), LOGITS)
    x = LOGITS.astype(np.float64)
    expected = target * np.logaddexp(0, -x) + (1 - target) * np.logaddexp(0, x)
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-37)  # float32 ends there
    # atol: for a target between 0 and 1 the slope is a difference of two sigmoids.
    np.testing.assert_allclose(gradient, reference.sigmoid(x) - np.float32(target), rtol=1e-6, atol=1e-7)


def test_softmax_cross_entropy_by_hand():
    value = softmax_cross_entropy(tensor([[math.log(3), 0]] * 3), targets=tensor([[1, 0], [0, 1], [0.5, 0.5]]))
    np.testing.assert_allclose(value, [math.log(4 / 3), math.log(4), math.log(16 / 3) / 2], rtol=1e-6)


@pytest.mark.parametrize("label", [0, 1, 2])
def test_softmax_cross_entropy_equals_reference(label):
    labels = np.full(len(ROWS), label)
    value, gradient = value_and_gradient(lambda x: softmax_cross_entropy(x, targets=labels), ROWS)
    x = ROWS.astype(np.float64)
    log_p = x - x.max(axis=-1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=-1, keepdims=True))
    # atol: ε of the sum of exponentials, whose largest is 1.
    np.testing.assert_allclose(value, -log_p[:, label], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(gradient, softmax(x) - np.eye(3)[label], rtol=1e-6, atol=1e-7)


def test_labels_equal_their_distribution():
    labels = np.arange(7) % 3
    np.testing.assert_array_equal(
        softmax_cross_entropy(tensor(ROWS), targets=labels),
        softmax_cross_entropy(tensor(ROWS), targets=np.eye(3)[labels]),
    )


@pytest.mark.parametrize(("label", "named"), [(-1, "-1"), (3, "3"), (0.5, "0.5")])
def test_a_label_of_no_class(label, named):
    with pytest.raises(RetinaError, match=rf"softmax_cross_entropy: expected labels 0 to 2, got {named}; number"):
        softmax_cross_entropy(tensor(ROWS), targets=np.array([0, 1, 2, 0, 1, 2, label]))


@pytest.mark.parametrize("shape", [(7, 4), (7, 3, 1), (), (1,), (6,), (1, 3), (7, 1)])
def test_targets_of_another_shape(shape):
    with pytest.raises(RetinaError, match="distribution over their 3 classes, got shape"):
        softmax_cross_entropy(tensor(ROWS), targets=np.zeros(shape, np.float32))
