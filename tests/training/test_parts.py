"""The parts of a run: what the training data decide of the loss."""

import numpy as np
import pytest

from retina import config
from retina.data.dataset import DetectionDataset
from retina.errors import RetinaError
from retina.losses.class_weights import effective_weights
from retina.training.parts import _with_class_weights
from tests.training.small_step import MODEL, small_detector

CANVAS = (64, 64)


def cells() -> DetectionDataset:
    """Two images, seven boxes of class a and five of b, of which a crowd and a difficult one don't count."""
    labels = np.array([0] * 6 + [1] * 5 + [0])
    flags = np.arange(12)
    return DetectionDataset(
        name="cells", class_names=("a", "b"), category_ids=(1, 2), image_ids=(1, 2), images=(b"", b""),
        sizes=np.array([(64, 64)] * 2), offsets=np.array([0, 6, 12]), boxes=np.array([[0, 0, 9, 9]] * 12),
        labels=labels, crowd=flags == 6, difficult=flags == 7, areas=np.full(12, 81.0),
    )  # fmt: skip


def test_effective_weights_count_the_boxes_that_train():
    section = config.EffectiveWeights(beta=0.9)
    given = config.load(None, ["loss.class_weights={kind: effective, beta: 0.9}"])
    changed, notes = _with_class_weights(given, cells())
    detector = small_detector(("a", "b"), model=MODEL, loss=changed.loss)
    expected = effective_weights(np.array([7, 3]), section.beta)
    assert detector.objective(CANVAS).class_weights.tolist() == expected.tolist()
    assert notes == [f"class weights (effective): a {expected[0]:.3g}, b {expected[1]:.3g}"]
    assert changed.model_copy(update={"loss": given.loss}) == given and given.loss.class_weights == section


def test_without_weights_nothing_changes():
    given = config.load(None)
    assert _with_class_weights(given, cells()) == (given, [])
    assert small_detector(("a", "b"), model=MODEL).objective(CANVAS).class_weights is None


def test_given_weights_need_no_data_and_effective_ones_do():
    loss = config.Loss(class_weights=config.GivenWeights(weights={"b": 2.5}))
    assert small_detector(("a", "b"), model=MODEL, loss=loss).objective(CANVAS).class_weights.tolist() == [1, 2.5]
    effective = small_detector(("a", "b"), model=MODEL, loss=config.Loss(class_weights=config.EffectiveWeights()))
    with pytest.raises(RetinaError, match="which only retina.train counts"):
        effective.objective(CANVAS)
    wrong = config.load(None, ["loss.class_weights={kind: given, weights: {c: 2}}"])
    with pytest.raises(RetinaError, match="got 'c'; the classes are a, b"):
        _with_class_weights(wrong, cells())
