"""Calibration: by hand, and against hotcoco."""

import numpy as np
import pytest

from retina.errors import RetinaError
from retina.evaluation.curves import reliability
from retina.evaluation.matching import match
from tests.evaluation.made import crowded, drawn, found, truth

BOX = (0, 0, 10, 10)
FAR = (50, 50, 10, 10)
NOWHERE = (80, 80, 10, 10)


# ------------------------------------------------------------------------------------------------------- degenerate


@pytest.mark.parametrize("there", [truth([], images=0), truth([(0, 0, BOX)])])
def test_without_detections(there):
    diagram = reliability(match(there, found([])), bins=4)
    assert diagram.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert diagram.count.tolist() == [0, 0, 0, 0]
    assert np.isnan(diagram.score).all() and np.isnan(diagram.precision).all()
    assert diagram.expected_error is None and diagram.maximum_error is None
    assert reliability(match(there, found([])), 0).expected_error is None


def test_only_ignored_detections():
    matches = match(truth([(0, 0, BOX, "crowd")]), found([(0, 0, BOX, 0.9)]))
    assert reliability(matches).expected_error is None


@pytest.mark.parametrize("score", [-0.1, 1.5])
def test_scores_that_are_no_probabilities(score):
    matches = match(truth([(0, 0, BOX)]), found([(0, 0, BOX, 0.5), (0, 0, FAR, score)]))
    with pytest.raises(RetinaError, match=f"expected scores from 0 to 1, got {score} in detection 1; "):
        reliability(matches)


def test_no_bins_and_another_overlap():
    matches = match(truth([(0, 0, BOX)]), found([]))
    with pytest.raises(RetinaError, match="bins: expected at least 1, got 0"):
        reliability(matches, bins=0)
    with pytest.raises(RetinaError, match="iou: expected one of"):
        reliability(matches, iou=0.33)


# ---------------------------------------------------------------------------------------------------------- by hand


def test_by_hand():
    there = truth([(0, 0, BOX), (0, 0, FAR), (1, 0, BOX), (1, 0, FAR, "difficult")], images=2, classes=2)
    rows = [
        (0, 0, BOX, 0.9),  # right
        (0, 0, FAR, 0.8),  # right
        (0, 0, NOWHERE, 0.76),  # wrong
        (1, 0, FAR, 0.99),  # neither
        (1, 1, BOX, 0.1),  # wrong: another class
    ]
    matches = match(there, found(rows))
    diagram = reliability(matches, bins=4)
    assert diagram.count.tolist() == [1, 0, 0, 3]
    assert diagram.score[[0, 3]] == pytest.approx([0.1, (0.9 + 0.8 + 0.76) / 3])
    assert diagram.precision[[0, 3]] == pytest.approx([0, 2 / 3])
    assert np.isnan(diagram.score[1:3]).all() and np.isnan(diagram.precision[1:3]).all()
    high = (0.9 + 0.8 + 0.76) / 3 - 2 / 3
    assert diagram.expected_error == pytest.approx((3 * high + 1 * 0.1) / 4)
    assert diagram.maximum_error == pytest.approx(max(high, 0.1))
    of_classes = [reliability(matches, label, bins=4).expected_error for label in range(2)]
    assert of_classes == [pytest.approx(high), pytest.approx(0.1)]
    assert reliability(matches, 1, bins=4).count.tolist() == [1, 0, 0, 0]


def test_the_overlap_decides():
    matches = match(truth([(0, 0, BOX)]), found([(0, 0, (0, 0, 10, 6), 1.0)]))
    assert reliability(matches, iou=0.5).expected_error == 0.0
    assert reliability(matches, iou=0.75).expected_error == 1.0


def test_edges_belong_to_the_bin_above_and_one_to_the_last():
    scores = [0.0, 0.1, 0.3, 0.6, 0.7, 0.7 - 1e-12, 1.0]
    matches = match(truth([(0, 0, BOX)]), found([(0, 0, NOWHERE, score) for score in scores]))
    assert reliability(matches, bins=10).count.tolist() == [1, 1, 0, 1, 0, 0, 2, 1, 0, 1]


# ------------------------------------------------------------------------------------------------------------- peers


def check_against_hotcoco(matches, bins):
    from hotcoco import metrics

    judged = ~matches.ignored[0]
    scores, right = matches.scores[judged], matches.right[0][judged]
    expected, largest = metrics.calibration_error(scores, right, bins)
    diagram = reliability(matches, bins=bins)
    assert diagram.expected_error == pytest.approx(expected, abs=1e-12)
    assert diagram.maximum_error == pytest.approx(largest, abs=1e-12)
    for place, entry in enumerate(metrics.calibration_curve(scores, right, bins)):
        assert diagram.count[place] == entry["count"]
        assert diagram.edges[place : place + 2] == pytest.approx([entry["bin_lower"], entry["bin_upper"]])
        if entry["count"]:
            assert diagram.score[place] == pytest.approx(entry["avg_confidence"])
            assert diagram.precision[place] == pytest.approx(entry["avg_accuracy"])
    return len(scores)


@pytest.mark.parametrize("seed", range(20))
def test_equal_to_hotcoco(seed):
    there, detected = drawn(seed, ties=False)
    matches = match(there, detected)
    if not (~matches.ignored[0]).any():
        pytest.skip("nothing was drawn")
    assert check_against_hotcoco(matches, 10) > 0


def test_equal_to_hotcoco_on_many():
    there, detected = crowded(3, images=100, per_image=50, classes=4)
    assert check_against_hotcoco(match(there, detected), 15) == 5000
