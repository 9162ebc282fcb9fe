import numpy as np
import pytest

from retina import config
from retina.errors import RetinaError
from retina.losses.class_weights import class_weights, effective_weights
from tests import reference

CELLS = np.array([4155, 372, 361])
NAMES = ("RBC", "WBC", "Platelets")


def test_by_hand():
    np.testing.assert_allclose(effective_weights(np.array([1, 2]), 0.5), [9 / 7, 6 / 7], rtol=1e-12)


@pytest.mark.parametrize("beta", [0.9, 0.999, 0.9999, 1 - 1e-12])
def test_equals_reference(beta):
    weights = effective_weights(CELLS, beta)
    effective = np.array([reference.effective_number(int(boxes), beta) for boxes in CELLS])
    np.testing.assert_allclose(weights * effective, weights[0] * effective[0], rtol=1e-9)
    np.testing.assert_allclose((weights * CELLS).sum(), CELLS.sum(), rtol=1e-12)


def test_limits_of_beta():
    np.testing.assert_allclose(effective_weights(CELLS, 1e-9), 1.0, atol=1e-8)
    np.testing.assert_allclose(effective_weights(CELLS, 1 - 1e-12), CELLS.sum() / 3 / CELLS, rtol=1e-8)


def test_a_class_without_boxes_changes_no_other():
    weights = effective_weights(np.array([8, 2, 0]), 0.9)
    np.testing.assert_allclose(weights[:2], effective_weights(np.array([8, 2]), 0.9), rtol=1e-12)
    assert np.isfinite(weights).all()


def test_given_weights_are_by_name_and_1_elsewhere():
    section = config.GivenWeights(weights={"Platelets": 4.0})
    assert class_weights(section, NAMES).tolist() == [1.0, 1.0, 4.0]


@pytest.mark.parametrize(
    ("section", "boxes", "message"),
    [
        (config.GivenWeights(weights={"platelets": 4.0}), None, "got 'platelets'; the classes are RBC, WBC, Platelets"),
        (config.EffectiveWeights(), None, "only retina.train counts"),
        (config.EffectiveWeights(), np.array([5, 5, 5]), "got 5 of each"),
        (config.EffectiveWeights(), np.array([5, 0, 5]), "got 5 of each that has any"),
        (config.EffectiveWeights(), np.array([0, 0, 0]), "got 0 of each"),
    ],
)
def test_what_cannot_be_weighed(section, boxes, message):
    with pytest.raises(RetinaError, match=message):
        class_weights(section, NAMES, boxes)
