"""What a batch shows beside its loss, against NumPy: shares of the loss, background probability, positives by level."""

import numpy as np
import pytest
from keras import ops

from retina import config
from retina.models.objective import Objective, Sums
from retina.training.update import observations
from tests import reference

# Two levels: 40 anchors of side 8 and 10 of side 16, on a row.
LEVELS = [
    np.array([[side * x, 0, side * x + side, side] for x in range(count)], np.float32)
    for side, count in ((8, 40), (16, 10))
]
LOSSES = [
    config.Focal(),
    config.CrossEntropy(),
    config.QualityFocal(),
    config.Ohem(),
    config.Ohem(ratio=None, hardest=6),
]


def batch_of(boxes: list) -> dict:
    rows = np.zeros((len(boxes), 3, 4), np.float32)
    valid = np.zeros((len(boxes), 3), bool)
    for image, corners in enumerate(boxes):
        rows[image, : len(corners)], valid[image, : len(corners)] = np.reshape(corners, (-1, 4)), True
    plain = np.zeros((len(boxes), 3))
    return {"boxes": rows, "labels": plain.astype(np.int32), "valid": valid, "crowd": plain.astype(bool)}


def sums_of(logits: np.ndarray, batch: dict, kind: config.ClassificationLoss) -> Sums:
    outputs = {"logits": ops.convert_to_tensor(logits), "deltas": ops.zeros((*logits.shape[:2], 4))}
    tensors = {name: ops.convert_to_tensor(x) for name, x in batch.items()}
    return Objective(LEVELS, config.Assignment(), config.Loss(classification=kind)).sums(outputs, tensors)


@pytest.mark.parametrize("kind", LOSSES, ids=lambda kind: f"{kind.kind}")
def test_without_objects_all_is_background(kind):
    logits = np.zeros((2, 50, 2), np.float32)
    sums = sums_of(logits, batch_of([[], []]), kind)
    assert float(sums.foreground) == 0 and float(sums.background) == pytest.approx(float(sums.classification))
    # Every 17th of 50 anchors: 3 in each of 2 images, 2 classes.
    assert float(sums.sampled) == 12 and float(sums.probability) == pytest.approx(6)
    assert ops.convert_to_numpy(sums.positives_by_level).tolist() == [0, 0]


def test_no_background_and_no_loss_divide_nothing_by_nothing():
    scalars = observations(Sums.zeros(1), (3,))
    assert {name: float(value) for name, value in scalars.items()} == dict.fromkeys(
        ("positives", "positives_p3", "foreground_share", "background_share", "background_probability"), 0.0
    )


def test_focal_against_numpy():
    random = np.random.default_rng(0)
    logits = random.normal(-2, 2, (2, 50, 3)).astype(np.float32)
    # Anchor 0 and 5 of the first level, 3 of the second, whose four neighbours on the first overlap by a quarter;
    # the second image's box overlaps anchor 34 by 0.45: ignored.
    boxes = [[[0, 0, 8, 8], [41, 0, 48, 8], [48, 0, 64, 16]], [[272, 0, 275.6, 8]]]
    batch = batch_of(boxes)
    positive = np.zeros((2, 50), bool)
    positive[0, [0, 5, 43]] = True
    ignored = np.zeros((2, 50), bool)
    ignored[1, 34] = True
    targets = np.zeros_like(logits)
    targets[..., 0] = positive
    of_anchor = reference.focal(logits, targets, 0.25, 2.0).sum(-1)
    sums = sums_of(logits, batch, config.Focal())
    assert float(sums.positives) == 3 and ops.convert_to_numpy(sums.positives_by_level).tolist() == [2, 1]
    np.testing.assert_allclose(float(sums.foreground), of_anchor[positive].sum(), rtol=1e-5)
    background = ~positive & ~ignored
    np.testing.assert_allclose(float(sums.background), of_anchor[background].sum(), rtol=1e-5)
    probabilities = (1 / (1 + np.exp(-logits.astype(np.float64))))[:, ::17][background[:, ::17]]
    assert float(sums.sampled) == probabilities.size == 12  # anchor 0 of one image, 34 of the other left out
    np.testing.assert_allclose(float(sums.probability), probabilities.sum(), rtol=1e-5)
    scalars = {name: float(value) for name, value in observations(sums, (3, 4)).items()}
    assert scalars["positives_p3"] == 2 and scalars["positives_p4"] == 1
    assert scalars["background_probability"] == pytest.approx(probabilities.mean(), rel=1e-5)
    share = of_anchor[positive].sum() / of_anchor[positive | background].sum()
    assert scalars["foreground_share"] == pytest.approx(share, rel=1e-5)
    assert scalars["background_share"] == pytest.approx(1 - share, rel=1e-5)


@pytest.mark.parametrize("ratio", [None, 3])
def test_mining_counts_what_it_keeps(ratio):
    """Losses that rise with the anchor: the hardest of each kind are the last ones."""
    logits = np.linspace(-2, 2, 50, dtype=np.float32)[None, :, None]
    batch = batch_of([[[0, 0, 8, 8], [8, 0, 16, 8]]])
    loss = np.log1p(np.exp(logits[0, :, 0].astype(np.float64)))
    loss[:2] = np.log1p(np.exp(-logits[0, :2, 0].astype(np.float64)))  # 2.13 and 2.05, as hard as the last anchors
    sums = sums_of(logits, batch, config.Ohem(ratio=ratio, hardest=8))
    if ratio is None:
        kept = np.argsort(-loss)[:8]
        foreground, background = loss[[k for k in kept if k < 2]].sum(), loss[[k for k in kept if k >= 2]].sum()
    else:
        foreground, background = loss[:2].sum(), np.sort(loss[2:])[-6:].sum()
    np.testing.assert_allclose([float(sums.foreground), float(sums.background)], [foreground, background], rtol=1e-5)
    assert foreground > 4
