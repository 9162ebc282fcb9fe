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
    assert kind().call(y_true, y_pred).shape == (3,)
    for true, predicted in ((y_true, y_pred), (y_true[:, None], y_pred[:, 0])):
        np.testing.assert_allclose(kind()(true, predicted), flat, rtol=1e-6)


def test_targets_of_another_rank_are_refused():
    with pytest.raises(RetinaError, match=r"Logistic: expected targets of the predictions' shape \(2, 3\), got \(2,\)"):
        losses.Logistic()(np.zeros(2, np.float32), np.zeros((2, 3), np.float32))


ELEMENTWISE = ["SigmoidFocal", "Logistic", "QualityFocal", "Varifocal", "Huber", "SmoothL1", "Hinge"]


# The loss, its counterpart in Keras, targets of an element, and what the counterpart's values are multiplied by.
COUNTERPARTS = {
    "sigmoid_focal": (
        losses.SigmoidFocal(),
        keras.losses.BinaryFocalCrossentropy(apply_class_balancing=True, from_logits=True),
        (0, 1),
    ),
    "logistic": (losses.Logistic(), keras.losses.BinaryCrossentropy(from_logits=True), (0, 1)),
    "no_focus": (losses.QualityFocal(beta=0.0), keras.losses.BinaryCrossentropy(from_logits=True), (0, 1)),
    "all_positive": (losses.Varifocal(), keras.losses.BinaryCrossentropy(from_logits=True), (1, 1)),
    "huber": (losses.Huber(delta=0.5), keras.losses.Huber(delta=0.5), (0, 1)),
    "smooth_l1": (losses.SmoothL1(), keras.losses.Huber(), (0, 1)),
    "hinge": (losses.Hinge(), keras.losses.Hinge(), (-1, 1)),
}


@pytest.mark.parametrize("shape", [(4,), (4, 4), (4, 3), (2, 4, 3)])
@pytest.mark.parametrize("name", COUNTERPARTS)
def test_weights_and_masks_are_of_samples_as_in_keras(name, shape):
    """Also where there are as many classes as samples, [B, B], which would broadcast."""
    ours, keras_own, targets = COUNTERPARTS[name]
    draw = np.random.default_rng(3)
    y_true, y_pred = arrays(draw.choice(targets, shape), draw.normal(0, 2, shape))
    # Keras takes the mean over the last axis of whatever it is given: of single numbers a sample, that of one.
    theirs = (y_true[:, None], y_pred[:, None]) if len(shape) == 1 else (y_true, y_pred)
    samples = shape[:-1] or shape
    weight = np.zeros(samples, np.float32)
    weight.flat[0] = 1.0
    for options in ({}, {"sample_weight": weight}, {"sample_weight": draw.random(samples).astype(np.float32)}):
        np.testing.assert_allclose(ours(y_true, y_pred, **options), keras_own(*theirs, **options), rtol=1e-5)


def test_a_mask_leaves_samples_out_as_in_keras():
    """Of two steps of a sequence, [B, T, 3], the masking layer leaves the second of the first sequence out."""
    inputs = np.array([[[1.0, 2, 3], [0, 0, 0]], [[3, 2, 1], [1, 1, 1]]], np.float32)
    y_true = np.ones_like(inputs)
    values = []
    for loss in (losses.Logistic(), keras.losses.BinaryCrossentropy(from_logits=True)):
        model = keras.Sequential([keras.Input((2, 3)), keras.layers.Masking()])
        model.compile(optimizer="sgd", loss=loss)
        values.append(model.evaluate(inputs, y_true, verbose=0))
    shown = np.log1p(np.exp(-inputs)).mean(axis=-1)
    np.testing.assert_allclose(values, (shown.sum() - LN2) / 3, rtol=1e-5)


def test_the_weights_of_four_samples_do_not_weigh_four_classes():
    """Cross-entropy at logit 0 is ln 2 everywhere; with weights 1, 0, 0, 0 a quarter of that."""
    for loss in (losses.Logistic(), losses.SigmoidFocal(alpha=None, gamma=0.0)):
        y_true, y_pred = arrays(np.eye(4), [[0.0] * 4, [9.0] * 4, [9.0] * 4, [9.0] * 4])
        found = loss(y_true, y_pred, sample_weight=np.array([1, 0, 0, 0], np.float32))
        np.testing.assert_allclose(found, LN2 / 4, rtol=1e-6)


def test_class_weight_in_fit_is_of_samples():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    model.compile(optimizer=keras.optimizers.SGD(0.0), loss=losses.Logistic())
    history = model.fit(
        np.ones((3, 2), np.float32), np.array([0, 1, 1]), class_weight={0: 4.0, 1: 1.0}, batch_size=3, verbose=0
    )
    np.testing.assert_allclose(history.history["loss"], [LN2 * 6 / 3], rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 1), (1, 4), (3, 4), (4,), (2, 4, 4)])
@pytest.mark.parametrize("name", [*ELEMENTWISE, "Giou", "Diou", "Ciou"])
def test_targets_do_not_broadcast(name, shape):
    y_true, y_pred = arrays(np.ones(shape), np.ones((2, 4)))
    with pytest.raises(RetinaError, match=rf"{name}: expected targets of the predictions' shape \(2, 4\), got"):
        getattr(losses, name)()(y_true, y_pred)


@pytest.mark.parametrize("name", ["Giou", "Diou", "Ciou"])
def test_boxes_have_four_numbers(name):
    with pytest.raises(
        RetinaError, match=rf"{name}: expected boxes \[..., 4\] as xyxy, got predictions of shape \(2, 3\)"
    ):
        getattr(losses, name)()(*arrays(np.ones((2, 3)), np.ones((2, 3))))


def test_broadcasting_is_refused_in_fit():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    model.compile(optimizer="sgd", loss=losses.SigmoidFocal(), jit_compile=False)
    with pytest.raises(
        RetinaError, match=r"SigmoidFocal: expected targets of the predictions' shape \(.*, 3\), got \("
    ):
        model.fit(np.ones((4, 3), np.float32), np.ones((4, 1), np.float32), verbose=0)


def test_labels_of_embeddings_are_no_distribution():
    with pytest.raises(RetinaError, match="batch_hard_triplet: expected one label for each of the embeddings"):
        losses.Triplet()(*arrays([[1, 0], [0, 1]], [[0, 1], [2, 3]]))
    # A column of labels, and embeddings of one number: ½·1 and ½·4.
    found = losses.Center([[0], [1]], reduction=None)(*arrays([[0], [1]], [[1], [3]]))
    np.testing.assert_array_equal(found, [0.5, 2])


@pytest.mark.parametrize("alpha", [np.array([2.0, 0.5], np.float32), (2, 0.5), [2.0, 0.5]])
def test_weights_of_classes_serialise(alpha):
    copy = again(losses.SoftmaxFocal(gamma=0.0, alpha=alpha))
    assert copy.alpha == [2.0, 0.5]
    assert again(losses.SoftmaxFocal(alpha=np.float32(0.5))).alpha == 0.5
    np.testing.assert_allclose(copy.call(*arrays([0, 1], TWO)), [2 * math.log(4 / 3), LN2], rtol=1e-6)


@pytest.mark.parametrize("alpha", [[2.0], [1.0, 2.0, 3.0]])
def test_a_weight_for_each_class(alpha):
    with pytest.raises(
        RetinaError, match=r"softmax_focal: alpha: expected one number or 2, one for each class, got sh"
    ):
        losses.SoftmaxFocal(alpha=alpha)(*arrays([0, 1], TWO))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: losses.SigmoidFocal(gamma=-1), "SigmoidFocal: gamma: expected at least 0, got -1"),
        (lambda: losses.SigmoidFocal(alpha=1.5), "SigmoidFocal: alpha: expected 0 to 1, got 1.5"),
        (lambda: losses.QualityFocal(beta=math.nan), "QualityFocal: beta: expected at least 0, got nan"),
        (lambda: losses.Huber(delta=0), "Huber: delta: expected at least"),
        (lambda: losses.Triplet(margin=math.inf), "Triplet: margin: expected at least 0, got inf"),
        (lambda: losses.SoftmaxFocal(alpha=-0.5), "SoftmaxFocal: alpha: expected None, a finite number of at least 0"),
        (lambda: losses.SoftmaxFocal(alpha=[1, math.nan]), "SoftmaxFocal: alpha: .* got .1.0, nan.; change it"),
        (
            lambda: losses.SoftmaxFocal(alpha=np.array([1, math.inf])),
            "SoftmaxFocal: alpha: .* got .1.0, inf.; change it",
        ),
        (lambda: losses.SoftmaxFocal(alpha=[]), "SoftmaxFocal: alpha: .* got ..; change it"),
        (lambda: losses.SoftmaxFocal(alpha=[[1, 2]]), "SoftmaxFocal: alpha: .* got ..1, 2..; change it"),
        (lambda: losses.SoftmaxFocal(alpha="half"), "SoftmaxFocal: alpha: .* got half; change it"),
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


def target_of(name, count):
    """Targets of 12 samples that the loss takes, for a network of `count` outputs."""
    random = np.random.default_rng(1)
    if name in ("Giou", "Diou", "Ciou"):
        low = random.uniform(0, 2, (12, 2))
        return np.concatenate([low, low + random.uniform(1, 3, (12, 2))], axis=-1).astype(np.float32)
    if name in ELEMENTWISE:
        return random.choice([-1, 1] if name == "Hinge" else [0, 1], (12, count)).astype(np.float32)
    return np.arange(12) % 3


@pytest.mark.parametrize("name", [name for name in losses.__all__ if name[0].isupper() and name != "Centers"])
def test_every_loss_fits_and_comes_back(name, tmp_path):
    keras.utils.set_random_seed(0)
    count = 4 if name in ("Giou", "Diou", "Ciou") else 3
    loss = losses.Center(np.eye(3)) if name == "Center" else getattr(losses, name)()
    x, y = np.random.default_rng(0).normal(0, 1, (12, 5)).astype(np.float32), target_of(name, count)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(count, bias_initializer=keras.initializers.Ones())])
    model.compile(optimizer=keras.optimizers.SGD(0.01), loss=loss, jit_compile=False)
    expected = float(loss(ops.convert_to_tensor(y.astype(np.float32)), model(x)))
    kernel = ops.convert_to_numpy(model.layers[-1].kernel).copy()
    history = model.fit(x, y, batch_size=12, epochs=1, verbose=0).history
    np.testing.assert_allclose(history["loss"], [expected], rtol=1e-5)
    assert expected > 0 and np.isfinite(model.layers[-1].kernel).all()
    assert np.abs(ops.convert_to_numpy(model.layers[-1].kernel) - kernel).max() > 0
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.loss) is type(loss) and loaded.loss.get_config() == loss.get_config()
    np.testing.assert_array_equal(loaded.layers[-1].kernel, model.layers[-1].kernel)
    after = float(loss(ops.convert_to_tensor(y.astype(np.float32)), model(x)))
    found = float(loaded.loss(ops.convert_to_tensor(y.astype(np.float32)), loaded(x)))
    np.testing.assert_allclose(found, after, rtol=1e-6)
