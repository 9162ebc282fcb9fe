"""What the losses take: lists, arrays and whole numbers, one-hot labels, probabilities; and not `compile`."""

import functools

import keras
import numpy as np
import pytest
from keras import ops

from retina import losses
from retina.errors import RetinaError

X, Y = [[0.0, 1.0, -2.0], [1.0, 2.0, 3.0]], [[0, 1, 1], [1, 0, 0]]
ONE_HOT, BOXES = [[1, 0, 0], [0, 0, 1]], [[[0, 0, 2, 2]], [[1, 1, 3, 3]]]

# A function of three plain values: what turns each into what the loss is handed, and what the loss gives.
CALLS = {
    "sigmoid_focal": lambda of: losses.sigmoid_focal(of(X), targets=of(Y), alpha=0.25, gamma=2.0),
    "softmax_focal": lambda of: losses.softmax_focal(of(X), targets=of([0, 1]), gamma=2.0),
    "quality_focal": lambda of: losses.quality_focal(of(X), targets=of(Y), beta=1.5),
    "varifocal": lambda of: losses.varifocal(of(X), targets=of(Y), alpha=0.75, gamma=2.0),
    "logistic": lambda of: losses.logistic(of(X), targets=of(Y)),
    "softmax_cross_entropy": lambda of: losses.softmax_cross_entropy(of(X), targets=of([0, 1])),
    "huber": lambda of: losses.huber(of(X), of(Y), delta=1.0),
    "smooth_l1": lambda of: losses.smooth_l1(of(X), of(Y), beta=1.0),
    "giou_loss": lambda of: losses.giou_loss(*map(of, BOXES)),
    "diou_loss": lambda of: losses.diou_loss(*map(of, BOXES)),
    "ciou_loss": lambda of: losses.ciou_loss(*map(of, BOXES)),
    "hinge": lambda of: losses.hinge(of(X), of([[1, -1, 1], [1, 1, -1]])),
    "multiclass_hinge": lambda of: losses.multiclass_hinge(of(X), of([0, 2])),
    "triplet": lambda of: losses.triplet(of([[0, 0]]), of([[1, 0]]), of([[0, 2]]), margin=4.0),
    "batch_hard_triplet": lambda of: losses.batch_hard_triplet(of([[0], [1], [3]]), of([0, 0, 1]), margin=4.0),
    "center_loss": lambda of: losses.center_loss(of([[1, 2], [1, 1]]), of([0, 1]), of([[0, 0], [1, 2]])),
    "updated_centers": lambda of: losses.updated_centers(of([[2], [4]]), of([0, 0]), of([[0]]), 0.5),
}


def test_every_function_is_called():
    assert set(CALLS) == {name for name in losses.__all__ if name[0].islower()}


@pytest.mark.parametrize("name", CALLS)
def test_lists_arrays_and_whole_numbers(name):
    call = CALLS[name]
    expected = ops.convert_to_numpy(call(lambda x: ops.convert_to_tensor(np.array(x, np.float32))))
    assert expected.dtype == np.float32 and np.abs(expected).max() > 0
    for of in (lambda x: x, np.array, lambda x: np.array(x, np.int64), lambda x: np.array(x, np.float64)):
        np.testing.assert_allclose(ops.convert_to_numpy(call(of)), expected, rtol=1e-5)


def test_one_hot_labels_of_the_multiclass_hinge():
    np.testing.assert_array_equal(losses.multiclass_hinge(X, ONE_HOT), losses.multiclass_hinge(X, [0, 2]))
    np.testing.assert_array_equal(*(losses.MulticlassHinge()(np.array(y), np.array(X)) for y in (ONE_HOT, [0, 2])))
    for wrong in ([[1, 1, 0], [0, 0, 1]], [[0.5, 0.5, 0], [0, 0, 1]], [[0, 0, 0], [0, 0, 1]]):
        with pytest.raises(RetinaError, match="multiclass_hinge: expected labels, or rows of zeros and a"):
            losses.multiclass_hinge(X, wrong)


@pytest.mark.parametrize(
    "loss",
    [
        losses.logistic,
        losses.softmax_cross_entropy,
        functools.partial(losses.sigmoid_focal, alpha=0.25, gamma=2.0),
        functools.partial(losses.softmax_focal, gamma=2.0),
        functools.partial(losses.quality_focal, beta=2.0),
        functools.partial(losses.varifocal, alpha=0.75, gamma=2.0),
    ],
)
def test_compile_cannot_exchange_logits_and_targets(loss):
    """Keras calls `loss(y_true, y_pred)`; these take logits first."""
    with pytest.raises(TypeError, match="takes 1 positional argument but 2"):
        keras.losses.get(loss)(np.array(Y, np.float32), np.array(X, np.float32))


KERAS = keras.losses
PROBABILITIES = np.array([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8], [1.0, 0.0, 0.0]], np.float32)
SPREAD = np.eye(3, dtype=np.float32)[[1, 2, 1]]


@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize(
    ("ours", "theirs", "smoothing"),
    [
        (losses.Logistic, KERAS.BinaryCrossentropy, 0.2),
        (losses.SoftmaxCrossEntropy, KERAS.CategoricalCrossentropy, 0.2),
        # Of soft targets Keras has another formula.
        (losses.SigmoidFocal, functools.partial(KERAS.BinaryFocalCrossentropy, apply_class_balancing=True), 0.0),
    ],
    ids=["logistic", "softmax", "focal"],
)
def test_probabilities_and_label_smoothing_as_in_keras(ours, theirs, from_logits, smoothing):
    predictions = np.array([*X, [0, 4, -1]], np.float32) if from_logits else PROBABILITIES
    options = {"from_logits": from_logits, "label_smoothing": smoothing}
    loss = ours(**options)
    np.testing.assert_allclose(loss(SPREAD, predictions), theirs(**options)(SPREAD, predictions), rtol=1e-4)
    assert type(loss).from_config(loss.get_config()).get_config() == loss.get_config()


def test_smoothed_labels_are_smoothed_distributions():
    options = {"from_logits": False, "label_smoothing": 0.3}
    for loss in (losses.SoftmaxCrossEntropy(**options), losses.SoftmaxFocal(**options)):
        np.testing.assert_allclose(loss(np.array([1, 2, 1]), PROBABILITIES), loss(SPREAD, PROBABILITIES), rtol=1e-6)
    with pytest.raises(RetinaError, match="label_smoothing: expected 0 to 1, got 2"):
        losses.Logistic(label_smoothing=2)


def test_the_default_reduction_is_the_mean_over_all_numbers():
    of_each = ops.convert_to_numpy(losses.sigmoid_focal(X, targets=Y, alpha=0.25, gamma=2.0))
    true, predicted = np.array(Y, np.float32), np.array(X, np.float32)
    np.testing.assert_allclose(losses.SigmoidFocal()(true, predicted), of_each.mean(), rtol=1e-6)
    np.testing.assert_allclose(3 * losses.SigmoidFocal(reduction="sum")(true, predicted), of_each.sum(), rtol=1e-6)
