import numpy as np
import pytest
from keras import ops

from retina.errors import RetinaError
from retina.losses import hinge, multiclass_hinge
from tests import reference
from tests.gradient import value_and_gradient

# The worked example of Stanford's CS231n: a cat, a car and a frog, scored as cat, car and frog.
SCORES = np.array([[3.2, 5.1, -1.7], [1.3, 4.9, 2.0], [2.2, 2.5, -3.1]], np.float32)


def tensor(values):
    return ops.convert_to_tensor(np.asarray(values, np.float32))


def test_no_samples():
    assert hinge(tensor([]), tensor([])).shape == (0,)
    assert multiclass_hinge(tensor(np.zeros((0, 3))), np.zeros(0, np.int32)).shape == (0,)


def test_hinge_by_hand():
    value, gradient = value_and_gradient(
        lambda x: hinge(x, [1, -1, 1, -1, 1]), np.array([0.5, 0.5, 2, -2, -3], np.float32)
    )
    np.testing.assert_array_equal(value, [0.5, 1.5, 0, 0, 4])
    np.testing.assert_array_equal(gradient, [-1, 1, 0, 0, -1])
    np.testing.assert_array_equal(hinge(tensor([0.5, 3]), [-1, 1], margin=2.0), [2.5, 0])


@pytest.mark.parametrize("labels", [[0, 1], [1, 0], [0.0, 1.0], [True, False], [2, 1], [-1, 0.5]])
def test_hinge_refuses_other_labels(labels):
    with pytest.raises(
        RetinaError, match=r"hinge: expected labels -1 and 1, got .*; turn labels 0 and 1 into 2 \* lab"
    ):
        hinge(tensor([0.5, 0.5]), np.array(labels))


def test_multiclass_hinge_by_hand():
    value = ops.convert_to_numpy(multiclass_hinge(tensor(SCORES), [0, 1, 2]))
    np.testing.assert_allclose(value, [2.9, 0, 12.9], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(np.mean(value), 5.27, atol=0.005)
    # Margin 3: cat max(0, 5.1 - 3.2 + 3) + max(0, -1.7 - 3.2 + 3); car none + max(0, 2 - 4.9 + 3); frog 8.3 + 8.6.
    np.testing.assert_allclose(multiclass_hinge(tensor(SCORES), [0, 1, 2], margin=3.0), [4.9, 0.1, 16.9], rtol=1e-5)


def test_multiclass_hinge_equals_reference():
    random = np.random.default_rng(3)
    scores, labels = random.normal(0, 3, (20, 5)).astype(np.float32), random.integers(0, 5, 20)

    def one(row, label):
        return sum(max(0.0, row[j] - row[label] + 1.0) for j in range(5) if j != label)

    value, gradient = value_and_gradient(lambda x: multiclass_hinge(x, labels), scores)
    expected = [one(row.astype(np.float64), label) for row, label in zip(scores, labels, strict=True)]
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)
    for row, label, found in zip(scores, labels, gradient, strict=True):
        slope = reference.central_difference(lambda x, label=label: one(x, label), row)
        np.testing.assert_allclose(found, slope, atol=1e-6)


@pytest.mark.parametrize("label", [-1, 3])
def test_multiclass_hinge_refuses_a_label_of_no_class(label):
    with pytest.raises(RetinaError, match=f"multiclass_hinge: expected labels 0 to 2, got {label}"):
        multiclass_hinge(tensor(SCORES), [0, 1, label])


@pytest.mark.parametrize("labels", [[0], [0, 1], [[0], [1], [2]]])
def test_multiclass_hinge_does_not_broadcast_labels(labels):
    with pytest.raises(RetinaError, match=r"multiclass_hinge: expected one label for each sample, shape \(3,\), got"):
        multiclass_hinge(tensor(SCORES), labels)
