import math

import keras
import numpy as np
import pytest
from keras import ops

from retina import losses
from retina.errors import RetinaError

BOXES = np.array([[0, 0, 2, 2], [1, 1, 3, 3]], np.float32)
SCORES = np.array([[3.2, 5.1, -1.7], [1.3, 4.9, 2.0], [2.2, 2.5, -3.1]], np.float32)
TWO = np.array([[math.log(3), 0.0]] * 2, np.float32)
LN2 = math.log(2)

# Loss, y_true, y_pred, and what each element or sample should give.
CASES = {
    "sigmoid_focal": (losses.SigmoidFocal(), [1, 0], [0, 0], [LN2 / 16, 3 * LN2 / 16]),
    "plain_focal": (losses.SigmoidFocal(alpha=None, gamma=1.0), [1], [0], [LN2 / 2]),
    "softmax_focal": (losses.SoftmaxFocal(), [0, 1], TWO, [math.log(4 / 3) / 16, 9 * math.log(4) / 16]),
    "weighted": (losses.SoftmaxFocal(gamma=0.0, alpha=(2.0, 0.5)), [0, 1], TWO, [2 * math.log(4 / 3), LN2]),
    "softmax": (losses.SoftmaxCrossEntropy(), [0, 1], TWO, [math.log(4 / 3), math.log(4)]),
    "distribution": (losses.SoftmaxCrossEntropy(), [[1, 0], [0, 1]], TWO, [math.log(4 / 3), math.log(4)]),
    "column": (losses.SoftmaxCrossEntropy(), [[0], [1]], TWO, [math.log(4 / 3), math.log(4)]),
    "logistic": (losses.Logistic(), [1, 0.5], [math.log(3), 0], [math.log(4 / 3), LN2]),
    "quality_focal": (losses.QualityFocal(), [1, 0.75], [0, 0], [LN2 / 4, LN2 / 16]),
    "varifocal": (losses.Varifocal(), [0.8, 0], [0, 0], [0.8 * LN2, 0.75 * LN2 / 4]),
    "huber": (losses.Huber(delta=1.0), [0, 0], [0.5, 3], [0.125, 2.5]),
    "smooth_l1": (losses.SmoothL1(beta=1 / 9), [0, 0], [0.1, 1], [0.045, 17 / 18]),
    "giou": (losses.Giou(), BOXES, BOXES[::-1], [1 - 1 / 7 + 2 / 9] * 2),
    "diou": (losses.Diou(), BOXES, BOXES[::-1], [1 - 1 / 7 + 1 / 9] * 2),
    "ciou": (losses.Ciou(), [[0, 0, 4, 2]], [[0, 0, 2, 2]], [0.5532481]),
    "center": (losses.Center([[0, 0], [1, 1]]), [0, 1], [[1, 2], [1, 1]], [2.5, 0]),
    "triplet": (losses.Triplet(margin=4.0), [0, 0, 1], [[0], [1], [3]], [0, 1, 0]),
    "hinge": (losses.Hinge(), [1, -1], [0.5, 0.5], [0.5, 1.5]),
    "multiclass_hinge": (losses.MulticlassHinge(), [0, 1, 2], SCORES, [2.9, 0, 12.9]),
}


def arrays(*values):
    return [ops.convert_to_tensor(np.array(value, np.float32)) for value in values]


def again(loss):
    return keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))


def test_every_loss_has_a_case():
    classes = {getattr(losses, name) for name in losses.__all__ if name[0].isupper()} - {losses.Centers}
    assert {type(case[0]) for case in CASES.values()} == classes


@pytest.mark.parametrize("name", CASES)
def test_by_hand(name):
    loss, y_true, y_pred, expected = CASES[name]
    y_true, y_pred = arrays(y_true, y_pred)
    np.testing.assert_allclose(loss.call(y_true, y_pred), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(loss(y_true, y_pred), np.mean(expected), rtol=1e-6, atol=1e-6)
    weight = np.arange(1, len(expected) + 1, dtype=np.float32)
    found = loss(y_true, y_pred, sample_weight=weight)
    np.testing.assert_allclose(found, np.mean(weight * expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_serialised_and_back(name):
    loss, y_true, y_pred, _ = CASES[name]
    copy = again(loss)
    assert type(copy) is type(loss) and copy.get_config() == loss.get_config()
    assert keras.saving.get_registered_name(type(loss)) == f"retina>{type(loss).__name__}"
    y_true, y_pred = arrays(y_true, y_pred)
    np.testing.assert_array_equal(copy(y_true, y_pred), loss(y_true, y_pred))


def test_reduction_name_and_dtype_survive():
    loss = losses.Huber(delta=2.0, reduction="sum", name="mine", dtype="float64")
    copy = again(loss)
    assert (copy.delta, copy.reduction, copy.name, copy.dtype) == (2.0, "sum", "mine", "float64")
    assert float(copy(*arrays([0, 0], [1, 3]))) == 0.5 + 4


@pytest.mark.parametrize("kind", [losses.Logistic, losses.Hinge, losses.Huber, losses.SigmoidFocal])
def test_a_column_of_predictions_does_not_broadcast(kind):
    y_true, y_pred = arrays([1, 1, 1], [[0.5], [1], [2]])
    flat = kind()(y_true, y_pred[:, 0])
    assert kind().call(y_true, y_pred).shape == (3, 1)
    for true, predicted in ((y_true, y_pred), (y_true[:, None], y_pred[:, 0])):
        np.testing.assert_allclose(kind()(true, predicted), flat, rtol=1e-6)


def test_targets_of_another_rank_are_refused():
    with pytest.raises(RetinaError, match=r"Logistic: expected targets of the predictions' shape \(2, 3\), got \(2,\)"):
        losses.Logistic()(np.zeros(2, np.float32), np.zeros((2, 3), np.float32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: losses.SigmoidFocal(gamma=-1), "SigmoidFocal: gamma: expected at least 0, got -1"),
        (lambda: losses.SigmoidFocal(alpha=1.5), "SigmoidFocal: alpha: expected 0 to 1, got 1.5"),
        (lambda: losses.QualityFocal(beta=math.nan), "QualityFocal: beta: expected at least 0, got nan"),
        (lambda: losses.Huber(delta=0), "Huber: delta: expected at least"),
        (lambda: losses.Triplet(margin=math.inf), "Triplet: margin: expected at least 0, got inf"),
        (
            lambda: losses.Center([1, 2]),
            r"Center: centers: expected finite numbers of shape \[classes, features\], got",
        ),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(RetinaError, match=message):
        make()


@pytest.mark.parametrize(
    ("loss", "outputs"),
    [(losses.SoftmaxFocal(gamma=1.0), 3), (losses.Triplet(margin=1.0), 2), (losses.MulticlassHinge(), 3)],
    ids=lambda value: type(value).__name__,
)
def test_fit_makes_it_smaller(loss, outputs, tmp_path):
    """And a saved model comes back compiled with it."""
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    labels = np.arange(48) % 3
    x = (np.eye(3)[labels] + random.normal(0, 0.2, (48, 3))).astype(np.float32)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(outputs)])
    model.compile(optimizer=keras.optimizers.SGD(0.2), loss=loss, jit_compile=False)
    before = model.evaluate(x, labels, batch_size=48, verbose=0)
    model.fit(x, labels, batch_size=48, epochs=15, verbose=0)
    after = model.evaluate(x, labels, batch_size=48, verbose=0)
    assert after < 0.7 * before
    # The whole batch at once, not in a trace, gives the same number.
    np.testing.assert_allclose(loss(labels, model.predict(x, batch_size=48, verbose=0)), after, rtol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.loss) is type(loss) and loaded.loss.get_config() == loss.get_config()
    np.testing.assert_allclose(loaded.evaluate(x, labels, batch_size=48, verbose=0), after, rtol=1e-5)
