import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from retina import config
from retina.models.heads import predictions
from retina.models.objective import LevelLogits, Objective, Sums
from retina.ops.anchors import pyramid_anchors
from tests import reference
from tests.gradient import value_and_gradient

ANCHORS = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]], np.float32)
PAPER, PAPERS_LOSS = config.Assignment(), config.Loss()
BOX_LOSSES = (config.HuberBox(), config.SmoothL1Box(), config.GiouBox(), config.DiouBox(), config.CiouBox())
ids = [box.kind for box in BOX_LOSSES]
CLASSIFICATION_LOSSES = (
    config.Focal(),
    config.CrossEntropy(),
    config.Ohem(hardest=8),
    config.Ohem(hardest=8, ratio=None),
    config.QualityFocal(),
    config.Varifocal(),
)
kinds = ["focal", "cross_entropy", "ohem", "ohem_without_ratio", "quality_focal", "varifocal"]


def batch_of(boxes, labels=None, valid=None, crowd=None):
    boxes = np.asarray(boxes, np.float32)
    shape = boxes.shape[:2]
    return {
        "boxes": boxes,
        "labels": np.zeros(shape, np.int32) if labels is None else np.asarray(labels, np.int32),
        "valid": np.ones(shape, bool) if valid is None else np.asarray(valid, bool),
        "crowd": np.zeros(shape, bool) if crowd is None else np.asarray(crowd, bool),
    }


def empty_batch(images=1, slots=2):
    return batch_of(np.zeros((images, slots, 4)), valid=np.zeros((images, slots)))


def sums_of(logits, deltas, batch, anchors=ANCHORS, assignment=PAPER, loss=PAPERS_LOSS, **further):
    outputs = {"logits": ops.convert_to_tensor(logits), "deltas": ops.convert_to_tensor(deltas)}
    batch = {name: ops.convert_to_tensor(field) for name, field in batch.items()}
    return Objective([anchors], assignment, loss, **further).sums(outputs, batch)


def numbers(sums):
    return [float(value) for value in (sums.classification, sums.box, sums.positives)]


def outputs_of(images=1, anchors=3, classes=2, seed=0):
    random = np.random.default_rng(seed)
    logits = random.normal(-1, 2, (images, anchors, classes)).astype(np.float32)
    return logits, random.normal(0, 0.5, (images, anchors, 4)).astype(np.float32)


# ------------------------------------------------------------------------------------------------------------- empty


@pytest.mark.parametrize("slots", [0, 1, 5])
@pytest.mark.parametrize("box", BOX_LOSSES, ids=ids)
def test_a_batch_without_objects_trains_the_background(box, slots):
    logits, deltas = np.zeros((2, 3, 2), np.float32), outputs_of(2)[1]
    sums = sums_of(logits, deltas, empty_batch(2, slots), loss=config.Loss(box=box))
    # 12 background logits of 0, each (1 - α) · (1/2)² · ln 2.
    classification = 12 * 0.75 * 0.25 * math.log(2)
    np.testing.assert_allclose(numbers(sums), [classification, 0, 0], rtol=1e-6)
    losses = sums.losses()
    assert float(losses["loss_box"]) == 0.0
    np.testing.assert_allclose([float(losses["loss"]), float(losses["loss_classification"])], classification, rtol=1e-6)


@pytest.mark.parametrize("box", BOX_LOSSES, ids=ids)
def test_gradients_of_a_batch_without_objects(box):
    logits, deltas = outputs_of(2)
    loss = config.Loss(box=box)
    _, slope = value_and_gradient(lambda x: sums_of(x, deltas, empty_batch(2), loss=loss).classification, logits)
    assert np.isfinite(slope).all() and (slope > 0).all()
    # Even deltas that overflow a box add nothing where there is no object.
    for extreme in (deltas, np.full_like(deltas, 1e30), np.full_like(deltas, -1e30)):
        value, slope = value_and_gradient(lambda x: sums_of(logits, x, empty_batch(2), loss=loss).box, extreme)
        assert value == 0 and (slope == 0).all()


@pytest.mark.parametrize("box", BOX_LOSSES, ids=ids)
def test_padding_and_boxes_without_area_never_make_a_gradient_nan(box):
    logits, deltas = outputs_of(1)
    boxes = [[[0, 0, 10, 10], [0, 0, 0, 0], [45, 5, 45, 5]]]
    for force in (False, True):
        batch = batch_of(boxes, valid=[[True, False, True]])
        arguments = {"loss": config.Loss(box=box), "assignment": config.Assignment(force_match=force)}
        value, slope = value_and_gradient(lambda x, a=arguments: sums_of(logits, x, batch, **a).box, deltas)  # noqa: B023
        assert np.isfinite(value) and value > 0 and np.isfinite(slope).all()
        assert (slope[0, 0] != 0).any() and (slope[0, 1:] == 0).all()


# ----------------------------------------------------------------------------------------------------------- by hand


def test_one_positive_by_hand():
    """Logits 0 make each positive term α/4·ln 2 and each negative one (1-α)/4·ln 2; deltas 0 against a moved box."""
    logits, deltas = np.zeros((1, 3, 4), np.float32), np.zeros((1, 3, 4), np.float32)
    batch = batch_of([[[1, 0, 11, 10]]], labels=[[2]])  # IoU 9/11 with the first anchor, dx = 0.1
    sums = sums_of(logits, deltas, batch)
    classification = (0.25 + 11 * 0.75) * 0.25 * math.log(2)
    box = 9 * 0.1**2 / 2  # 0.1 < 1/9
    np.testing.assert_allclose(numbers(sums), [classification, box, 1], rtol=1e-6)


def test_the_sum_is_over_classes_and_the_divisor_the_positives():
    logits, deltas = np.zeros((1, 3, 5), np.float32), np.zeros((1, 3, 4), np.float32)
    batch = batch_of([[[0, 0, 10, 10], [20, 0, 30, 10]]], labels=[[0, 4]])
    losses = sums_of(logits, deltas, batch).losses()
    expected = (2 * 0.25 + 13 * 0.75) * 0.25 * math.log(2) / 2
    np.testing.assert_allclose(float(losses["loss_classification"]), expected, rtol=1e-6)
    np.testing.assert_allclose(float(losses["loss"]), expected, rtol=1e-6)
    assert float(losses["loss_box"]) == 0.0


@pytest.mark.parametrize("kind", CLASSIFICATION_LOSSES, ids=lambda kind: kind.kind)
def test_the_divisor_of_images_gives_the_mean_of_their_losses(kind):
    """An image with two positives, one without, one with one: in a batch, in parts of it, and each alone."""
    logits, deltas = outputs_of(3)
    boxes = [[[1, 0, 11, 10], [20, 0, 30, 10]], [[0, 0, 0, 0]] * 2, [[40, 0, 50, 11], [0, 0, 0, 0]]]
    batch = batch_of(boxes, valid=[[True, True], [False, False], [True, False]])
    box = config.GiouBox() if kind.kind == "focal" else config.HuberBox()

    def of(rows, **normalizer):
        part = {name: values[rows] for name, values in batch.items()}
        loss = config.Loss(classification=kind, box=box, **normalizer)
        return sums_of(logits[rows], deltas[rows], part, loss=loss)

    by_image = {"normalizer": config.ImageNormalizer()}
    alone = [of(slice(row, row + 1)).losses() for row in range(3)]
    joined = of(slice(0, 1), **by_image) + of(slice(1, 3), **by_image)
    for found in (of(slice(None), **by_image), joined, Sums.zeros(1, of_images=True) + joined):
        for name in ("loss", "loss_classification", "loss_box"):
            expected = np.mean([float(losses[name]) for losses in alone])
            np.testing.assert_allclose(float(found.losses()[name]), expected, rtol=1e-5)
        assert float(found.positives) == 3 and float(found.images) == 3


def test_the_divisor_counts_the_batch_and_is_at_least_1():
    def sums(*values):
        return Sums.zeros(1)._replace(**dict(zip(("classification", "box", "positives"), values, strict=True)))

    two = sums(*map(ops.convert_to_tensor, (6.0, 3.0, 4.0))).losses()
    assert [float(two[name]) for name in ("loss", "loss_classification", "loss_box")] == [2.25, 1.5, 0.75]
    none = sums(*map(ops.convert_to_tensor, (6.0, 0.0, 0.0))).losses()
    assert float(none["loss"]) == 6.0


def test_sums_add_up():
    def sums(seed):
        values = np.random.default_rng(seed).random(9).astype(np.float32)
        return values, Sums(*map(ops.convert_to_tensor, (*values[:7], values[7:])))

    (first, a), (second, b) = sums(0), sums(1)
    total = a + b
    np.testing.assert_array_equal([*map(float, total[:7]), *ops.convert_to_numpy(total[7])], first + second)
    np.testing.assert_array_equal(float(total.undivided), (first + second)[0] + (first + second)[1])
    for value, unchanged in zip(a + Sums.zeros(2), a, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(value), ops.convert_to_numpy(unchanged))


def test_only_the_label_of_the_matched_box_is_the_target():
    logits, deltas = np.full((1, 3, 3), -20, np.float32), np.zeros((1, 3, 4), np.float32)
    batch = batch_of([[[20, 0, 30, 10], [0, 0, 10, 10]]], labels=[[2, 1]])
    logits[0, 0, 1] = logits[0, 1, 2] = 20
    assert float(sums_of(logits, deltas, batch).classification) < 1e-6
    logits[0, 0, 1], logits[0, 0, 0] = -20, 20  # the wrong class: 20 · α for the missed one, 20 · (1 - α) for the other
    np.testing.assert_allclose(float(sums_of(logits, deltas, batch).classification), 20, rtol=1e-5)


@pytest.mark.parametrize(("height", "anchors"), [(4.5, 2), (4.0, 2), (3.9, 3)])
def test_ignored_anchors_add_nothing(height, anchors):
    logits, deltas = outputs_of()
    batch = batch_of([[[0, 0, 10, height]]])
    background = reference.focal(logits, np.zeros_like(logits), 0.25, 2.0)[0, 3 - anchors :].sum()
    np.testing.assert_allclose(numbers(sums_of(logits, deltas, batch)), [background, 0, 0], rtol=1e-6)
    _, slope = value_and_gradient(lambda x: sums_of(x, deltas, batch).classification, logits)
    assert ((slope[0] == 0).all(axis=1) == [anchors == 2, False, False]).all()


def test_anchors_in_a_crowd_add_nothing():
    logits, deltas = outputs_of()
    # The crowd holds exactly half of the first anchor, all of the second, nothing of the third.
    batch = batch_of([[[5, 0, 35, 10]]], crowd=[[True]])
    background = reference.focal(logits, np.zeros_like(logits), 0.25, 2.0)[0, 2].sum()
    np.testing.assert_allclose(numbers(sums_of(logits, deltas, batch)), [background, 0, 0], rtol=1e-6)


def test_force_match_adds_a_positive():
    logits, deltas = outputs_of()
    batch = batch_of([[[0, 0, 2, 2]]], labels=[[1]])
    assert numbers(sums_of(logits, deltas, batch))[1:] == [0, 0]
    expected = reference.loss_sums(logits, deltas, ANCHORS, batch, force=True)
    found = numbers(sums_of(logits, deltas, batch, assignment=config.Assignment(force_match=True)))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found[2] == 1


ASPECT = 4 / math.pi**2 * (math.atan(1 / 2) - math.atan(1)) ** 2


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        (config.HuberBox(delta=1.0, weight=3.0), 3 * (0.1**2 + math.log(2) ** 2) / 2),
        (config.SmoothL1Box(beta=1 / 9, weight=2.0), 2 * (0.045 + math.log(2) - 1 / 18)),
        (config.GiouBox(weight=5.0), 5 * (1 - 0.5)),
        # Centres 2½ apart, a hull of 10 by 10.
        (config.DiouBox(weight=5.0), 5 * (0.5 + 6.25 / 200)),
        (config.CiouBox(weight=5.0), 5 * (0.5 + 6.25 / 200 + ASPECT**2 / (0.5 + ASPECT))),
    ],
    ids=ids,
)
def test_box_losses_by_hand(box, expected):
    """Anchor and box share the top left corner, the box is half as wide: centre -1/4, or the centre 0.1 off."""
    anchors = np.array([[0, 0, 10, 10]], np.float32)
    target = [[0, 0, 5, 10]] if box.kind in ("giou", "diou", "ciou") else [[3.5, 0, 8.5, 10]]
    zeros = np.zeros((1, 1, 4), np.float32)
    found = sums_of(zeros[..., :1], zeros, batch_of([target]), anchors=anchors, loss=config.Loss(box=box))
    np.testing.assert_allclose(float(found.box), expected, rtol=1e-6)


def test_default_huber_is_smooth_l1_at_a_ninth():
    logits, deltas = outputs_of()
    batch = batch_of([[[1, 1, 10, 9], [20, 0, 30, 10]]])
    huber = sums_of(logits, deltas, batch, loss=config.Loss(box=config.HuberBox())).box
    smooth = sums_of(logits, deltas, batch, loss=config.Loss(box=config.SmoothL1Box())).box
    np.testing.assert_allclose(float(huber), float(smooth), rtol=1e-6)


# ------------------------------------------------------------------------------------------- classification's kinds


def classification(logits, deltas, batch, kind, anchors=ANCHORS):
    return sums_of(logits, deltas, batch, anchors=anchors, loss=config.Loss(classification=kind)).classification


@pytest.mark.parametrize("kind", CLASSIFICATION_LOSSES, ids=kinds)
def test_every_kind_trains_the_background_of_a_batch_without_objects(kind):
    logits, deltas = outputs_of(2)
    value, slope = value_and_gradient(lambda x: classification(x, deltas, empty_batch(2), kind), logits)
    assert value > 0 and np.isfinite(slope).all() and (slope >= 0).all()
    assert ((slope != 0).any(axis=(1, 2))).all(), "in each image"


@pytest.mark.parametrize("kind", CLASSIFICATION_LOSSES, ids=kinds)
def test_no_kind_reads_ignored_anchors(kind):
    logits, deltas = outputs_of()
    batch = batch_of([[[0, 0, 10, 4.5]]])  # IoU 0.45 with the first anchor
    _, slope = value_and_gradient(lambda x: classification(x, deltas, batch, kind), logits)
    assert (slope[0, 0] == 0).all() and (slope[0, 1:] != 0).all()


@pytest.mark.parametrize("kind", CLASSIFICATION_LOSSES, ids=kinds)
def test_every_kind_adds_up_over_images(kind):
    """So it does over replicas; mining chooses in each image by itself."""
    anchors, batch = random_case(3, images=3)
    logits, deltas = outputs_of(3, len(anchors), 3, 3)
    whole = float(classification(logits, deltas, batch, kind, anchors))
    parts = [
        float(classification(logits[[i]], deltas[[i]], {n: f[[i]] for n, f in batch.items()}, kind, anchors))
        for i in range(3)
    ]
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-6)


@pytest.mark.parametrize("kind", CLASSIFICATION_LOSSES, ids=kinds)
def test_no_classification_loss_moves_a_box(kind):
    logits, deltas = outputs_of()
    batch = batch_of([[[0, 0, 10, 9], [20, 0, 30, 10]]], labels=[[1, 0]])
    _, slope = value_and_gradient(lambda x: classification(logits, x, batch, kind) + 0.0 * ops.sum(x), deltas)
    assert (slope == 0).all()


@pytest.mark.parametrize(("alpha", "positive", "negative"), [(0.75, 0.75, 0.25), (None, 1, 1)])
def test_cross_entropy_by_hand(alpha, positive, negative):
    logits, deltas = np.zeros((1, 3, 4), np.float32), np.zeros((1, 3, 4), np.float32)
    batch = batch_of([[[0, 0, 10, 10]]], labels=[[2]])
    found = classification(logits, deltas, batch, config.CrossEntropy(alpha=alpha))
    np.testing.assert_allclose(float(found), (positive + 11 * negative) * math.log(2), rtol=1e-6)


def quality_case():
    """Deltas 0: each anchor predicts itself. The first has IoU 0.8 with its box (class 1), the second 1 (class 0)."""
    batch = batch_of([[[0, 0, 10, 8], [20, 0, 30, 10]]], labels=[[1, 0]])
    return np.zeros((1, 3, 2), np.float32), np.zeros((1, 3, 4), np.float32), batch


def test_quality_focal_by_hand():
    # Targets 0.8 and 1 for a probability of 1/2, and four times 0.
    expected = (0.3**2 + 0.5**2 + 4 * 0.5**2) * math.log(2)
    np.testing.assert_allclose(float(classification(*quality_case(), config.QualityFocal())), expected, rtol=1e-6)
    expected = (0.3 + 0.5 + 4 * 0.5) * math.log(2)
    np.testing.assert_allclose(
        float(classification(*quality_case(), config.QualityFocal(beta=1.0))), expected, rtol=1e-6
    )


def test_varifocal_by_hand():
    expected = (0.8 + 1 + 4 * 0.75 * 0.5**2) * math.log(2)
    np.testing.assert_allclose(float(classification(*quality_case(), config.Varifocal())), expected, rtol=1e-6)


def test_the_quality_is_of_the_predicted_box():
    logits, deltas, batch = quality_case()
    deltas[0, 0] = [0, -0.1, 0, math.log(0.8)]  # from (0, 0, 10, 10) to the box itself
    expected = (2 + 4 * 0.75 * 0.5**2) * math.log(2)
    np.testing.assert_allclose(float(classification(logits, deltas, batch, config.Varifocal())), expected, rtol=1e-6)


def mining_case():
    """Six anchors of one class: cross-entropy ln(1 + e^-x) for the two positives, ln(1 + e^x) for three negatives.

    Positives have the logits 0 and 3, negatives 2, 1 and -1; one anchor, with the largest loss of all, is ignored.
    """
    anchors = np.array([[20 * i, 0, 20 * i + 10, 10] for i in range(6)], np.float32)
    batch = batch_of([[[0, 0, 10, 10], [20, 0, 30, 10], [100, 0, 110, 4.5]]])
    logits = np.array([0, 3, 2, 1, -1, 9], np.float32).reshape(1, 6, 1)
    losses = np.log1p(np.exp(np.array([0, -3, 2, 1, -1])))
    return (logits, np.zeros((1, 6, 4), np.float32), batch), anchors, losses


@pytest.mark.parametrize(
    ("kind", "kept"),
    [
        (config.Ohem(ratio=None, hardest=1), [2]),
        (config.Ohem(ratio=None, hardest=3), [2, 3, 0]),
        (config.Ohem(ratio=None, hardest=4), [2, 3, 0, 4]),
        (config.Ohem(ratio=None, hardest=100), [0, 1, 2, 3, 4]),
        (config.Ohem(ratio=1, hardest=2), [0, 2]),
        (config.Ohem(ratio=1, hardest=3), [0, 2]),  # no room for a second pair
        (config.Ohem(ratio=1, hardest=100), [0, 1, 2, 3]),  # two positives ask for two negatives
        (config.Ohem(ratio=2, hardest=3), [0, 2, 3]),
        (config.Ohem(ratio=3, hardest=100), [0, 1, 2, 3, 4]),  # there are no six
    ],
    ids=lambda value: f"{value.ratio}-{value.hardest}" if isinstance(value, config.Ohem) else None,
)
def test_mining_keeps_the_hardest(kind, kept):
    (logits, deltas, batch), anchors, losses = mining_case()
    value, slope = value_and_gradient(lambda x: classification(x, deltas, batch, kind, anchors), logits)
    np.testing.assert_allclose(value, losses[kept].sum(), rtol=1e-6)
    assert np.flatnonzero(slope).tolist() == sorted(kept)
    sigmoid = reference.sigmoid(logits[0, :, 0])
    expected = np.where(np.arange(6) < 2, sigmoid - 1, sigmoid)
    np.testing.assert_allclose(slope[0, kept, 0], expected[kept], rtol=1e-6)


def test_mining_ranks_anchors_by_their_loss_over_all_classes():
    """Three middling losses outrank one large one: 3 ln 2 = 2.08 against ln(1 + e^1.5) = 1.70."""
    logits = np.array([[[0, 0, 0], [1.5, -50, -50], [-50, -50, -50]]], np.float32)
    value = classification(logits, np.zeros((1, 3, 4), np.float32), empty_batch(), config.Ohem(ratio=None, hardest=1))
    np.testing.assert_allclose(float(value), 3 * math.log(2), rtol=1e-6)


@pytest.mark.parametrize("ratio", [1, 2])
def test_mining_without_a_positive_keeps_the_negatives_of_one(ratio):
    logits = np.array([[[0.0], [2.0], [1.0]]], np.float32)
    value = classification(logits, np.zeros((1, 3, 4), np.float32), empty_batch(), config.Ohem(ratio=ratio, hardest=60))
    np.testing.assert_allclose(float(value), np.log1p(np.exp([2.0, 1.0][:ratio])).sum(), rtol=1e-6)


def test_mining_is_divided_by_all_positives():
    (logits, deltas, batch), anchors, losses = mining_case()
    kind = config.Loss(classification=config.Ohem(ratio=1, hardest=2))
    found = sums_of(logits, deltas, batch, anchors, loss=kind).losses()
    np.testing.assert_allclose(float(found["loss_classification"]), losses[[0, 2]].sum() / 2, rtol=1e-6)


@pytest.mark.parametrize("kind", CLASSIFICATION_LOSSES[:2] + CLASSIFICATION_LOSSES[4:], ids=kinds[:2] + kinds[4:])
def test_class_weights_multiply_the_positives_of_their_class_alone(kind):
    logits, deltas = outputs_of()
    batch = batch_of([[[0, 0, 10, 9], [20, 0, 30, 10]]], labels=[[1, 0]])  # the third anchor is background

    def sums(weights):
        loss = config.Loss(classification=kind)
        return sums_of(logits, deltas, batch, loss=loss, class_weights=weights and np.array(weights))

    plain, none, first, second = (sums(weights) for weights in (None, [0.0, 0.0], [1.0, 0.0], [0.0, 1.0]))
    weighted = sums([0.5, 3.0])
    assert numbers(sums([1.0, 1.0])) == numbers(plain) and float(first.foreground) > 0 < float(second.foreground)
    np.testing.assert_allclose(none.classification, plain.background, rtol=1e-6)
    expected = float(plain.background) + 0.5 * float(first.foreground) + 3.0 * float(second.foreground)
    np.testing.assert_allclose(weighted.classification, expected, rtol=1e-6)
    assert float(weighted.box) == float(plain.box) and float(weighted.positives) == 2


def test_a_label_beyond_the_classes_is_no_error_of_the_lookup():
    logits, deltas = outputs_of()
    batch = batch_of([[[0, 0, 10, 9], [20, 0, 30, 10]]], labels=[[1, 7]])  # `fit` makes such a batch's loss NaN
    assert np.isfinite(float(sums_of(logits, deltas, batch, class_weights=np.array([1.0, 2.0])).classification))


def test_mining_ranks_by_the_weighted_losses():
    logits, deltas = np.zeros((1, 3, 2), np.float32), outputs_of()[1]
    logits[0, 0] = 1.0  # the hardest without weights
    batch = batch_of([[[0, 0, 10, 10], [20, 0, 30, 10]]], labels=[[0, 1]])
    loss = config.Loss(classification=config.Ohem(hardest=1, ratio=None))
    mined = sums_of(logits, deltas, batch, loss=loss, class_weights=np.array([1.0, 5.0])).classification
    np.testing.assert_allclose(mined, 5 * 2 * math.log(2), rtol=1e-6)


# --------------------------------------------------------------------------------------------- reference, invariances


def random_case(seed, images=2, classes=3):
    """Anchors of a 32-pixel canvas, and images of 4 slots with objects, crowds and padding."""
    settings_ = config.Anchors(scales=(1.0,), ratios=(0.25, 1.0, 4.0), size=2.0)
    anchors = pyramid_anchors(settings_, (32, 32), (3, 4))
    random = np.random.default_rng(seed)
    corner = random.integers(0, 20, (images, 4, 2))
    boxes = np.concatenate([corner, corner + random.integers(4, 24, (images, 4, 2))], axis=-1)
    labels, crowd = random.integers(0, classes, (images, 4)), random.random((images, 4)) < 0.2
    return anchors, batch_of(boxes, labels, random.random((images, 4)) < 0.8, crowd)


@pytest.mark.parametrize("weights", [{}, {"class_weights": np.array([0.25, 1.5, 6.0])}], ids=["plain", "weighted"])
def test_equals_reference(weights):
    positives = 0
    for seed in range(5):
        anchors, batch = random_case(seed)
        logits, deltas = outputs_of(2, len(anchors), 3, seed)
        expected = reference.loss_sums(logits, deltas, anchors, batch, **weights)
        found = numbers(sums_of(logits, deltas, batch, anchors=anchors, **weights))
        # rtol: sums of some hundred float32 terms.
        np.testing.assert_allclose(found, expected, rtol=2e-6)
        positives += found[2]
    assert positives > 10


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000), extra=st.integers(1, 6), where=st.sampled_from(BOX_LOSSES))
def test_padding_never_changes_a_loss(seed, extra, where):
    anchors, batch = random_case(seed)
    logits, deltas = outputs_of(2, len(anchors), 3, seed)
    # What lies in the padding must not matter either.
    padded = {
        name: np.concatenate([field, np.repeat(field[:, :1], extra, axis=1)], axis=1) for name, field in batch.items()
    }
    padded["valid"][:, -extra:] = False
    loss = config.Loss(box=where)
    assert numbers(sums_of(logits, deltas, padded, anchors, loss=loss)) == numbers(
        sums_of(logits, deltas, batch, anchors, loss=loss)
    )


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000), order=st.permutations(range(3)))
def test_batch_order_never_matters(seed, order):
    anchors, batch = random_case(seed, images=3)
    logits, deltas = outputs_of(3, len(anchors), 3, seed)
    order = list(order)
    first = numbers(sums_of(logits, deltas, batch, anchors))
    shuffled = numbers(
        sums_of(logits[order], deltas[order], {name: field[order] for name, field in batch.items()}, anchors)
    )
    np.testing.assert_allclose(shuffled, first, rtol=1e-6)  # a sum in another order
    alone = [
        numbers(sums_of(logits[[i]], deltas[[i]], {name: field[[i]] for name, field in batch.items()}, anchors))
        for i in range(3)
    ]
    np.testing.assert_allclose(np.sum(alone, axis=0), first, rtol=1e-6)


def test_the_order_of_an_images_boxes_never_matters():
    anchors, batch = random_case(4)
    logits, deltas = outputs_of(2, len(anchors), 3, 4)
    turned = {name: field[:, ::-1].copy() for name, field in batch.items()}
    np.testing.assert_allclose(
        numbers(sums_of(logits, deltas, turned, anchors)), numbers(sums_of(logits, deltas, batch, anchors)), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("kind", "weights"),
    [(kind, None) for kind in CLASSIFICATION_LOSSES] + [(config.Focal(), np.array([0.5, 3.0]))],
    ids=[*kinds, "class_weights"],
)
def test_levels_give_what_joined_logits_give(kind, weights):
    """Values and the gradients of each level and of the bias, observed probabilities included."""
    random = np.random.default_rng(5)
    shapes, anchors_per_cell, classes = ((3, 4), (2, 3), (1, 1)), 3, 2
    sizes = [height * width * anchors_per_cell for height, width in shapes]
    boxes = np.sort(random.uniform(0, 40, (sum(sizes), 2, 2)), axis=1).reshape(-1, 4).astype(np.float32)
    level_anchors = np.split(boxes, np.cumsum(sizes)[:-1])
    batch = batch_of(boxes[None, [2, 40, 56]].repeat(2, 0) + 0.1, labels=random.integers(0, 2, (2, 3)))
    deltas = random.normal(0, 0.3, (2, sum(sizes), 4)).astype(np.float32)
    levels = [random.normal(0, 2, (2, *shape, anchors_per_cell * classes)).astype(np.float32) for shape in shapes]
    bias = random.normal(-1, 1, anchors_per_cell * classes).astype(np.float32)
    objective = Objective(level_anchors, PAPER, config.Loss(classification=kind), class_weights=weights)

    def total(logits):
        sums = objective.sums({"logits": logits, "deltas": ops.convert_to_tensor(deltas)}, batch)
        return sums.classification + ops.stop_gradient(sums.foreground + 3.0 * sums.probability + sums.sampled)

    def of_level(place, value):
        others = [value if i == place else ops.convert_to_tensor(x) for i, x in enumerate(levels)]
        return LevelLogits(others, value if place is None else ops.convert_to_tensor(bias), classes)

    def joined(logits):
        return ops.concatenate([predictions(x, logits.bias, classes) for x in logits.levels], axis=1)

    for place, value in ((None, bias), *enumerate(levels)):
        found = value_and_gradient(lambda x, place=place: total(of_level(place, x)), value)
        expected = value_and_gradient(lambda x, place=place: total(joined(of_level(place, x))), value)
        for ours, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())
