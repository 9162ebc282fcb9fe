"""Precision, recall and F1 along the score: by hand, and against counting over again at each threshold."""

import numpy as np
import pytest

from retina.errors import RetinaError
from retina.evaluation.curves import (
    BestF1,
    OperatingPoint,
    best_f1,
    confidence_curve,
    precision_recall,
    threshold_index,
)
from retina.evaluation.matching import RECALLS, match, precision
from tests.evaluation.made import crowded, drawn, found, truth

BOX = (0, 0, 10, 10)
FAR = (50, 50, 10, 10)
NOWHERE = (80, 80, 10, 10)
UNDEFINED = OperatingPoint(None, None, None, None)
NOTHING = OperatingPoint(None, None, 0.0, 0.0)


# ------------------------------------------------------------------------------------------------------- degenerate


def test_without_boxes_there_is_no_recall():
    matches = match(truth([(0, 0, BOX, "difficult")], classes=2), found([(0, 0, NOWHERE, 0.9), (0, 1, BOX, 0.8)]))
    assert precision_recall(matches, 0) is None and precision_recall(matches, 1) is None
    assert confidence_curve(matches, 0) is None and confidence_curve(matches) is None
    assert best_f1(matches) == BestF1(UNDEFINED, (UNDEFINED, UNDEFINED))


def test_without_classes():
    assert best_f1(match(truth([], images=0, classes=0), found([]))) == BestF1(UNDEFINED, ())


def test_without_detections():
    matches = match(truth([(0, 0, BOX)]), found([]))
    curve = precision_recall(matches, 0)
    assert len(curve.recall) == len(curve.precision) == len(curve.scores) == 0
    along = confidence_curve(matches, 0)
    assert len(along.thresholds) == len(along.f1) == 0
    assert best_f1(matches) == BestF1(NOTHING, (NOTHING,))


def test_a_class_in_which_nothing_is_right():
    matches = match(truth([(0, 0, BOX)]), found([(0, 0, NOWHERE, 0.9)]))
    assert precision_recall(matches, 0).precision.tolist() == [0.0]
    assert best_f1(matches).per_class == (NOTHING,)


def test_an_overlap_that_was_not_matched():
    matches = match(truth([(0, 0, BOX)]), found([]), iou_thresholds=[0.5, 0.75])
    assert threshold_index(matches, 0.75) == 1
    assert threshold_index(matches, 0.1 + 0.2 + 0.2) == 0
    for function in (precision_recall, confidence_curve):
        with pytest.raises(RetinaError, match=r"iou: expected one of .*\(0.5, 0.75\), got 0.6; choose one"):
            function(matches, 0, iou=0.6)
    with pytest.raises(RetinaError, match="got 0.6"):
        best_f1(matches, iou=0.6)


# ---------------------------------------------------------------------------------------------------------- by hand


def four():
    """Right 0.9, wrong 0.8, neither 0.8, right 0.7 of three boxes of class a; class b is found at once."""
    there = truth([(0, 0, BOX), (0, 0, FAR), (1, 0, BOX), (1, 0, FAR, "difficult"), (1, 1, BOX)], images=2, classes=2)
    rows = [(0, 0, BOX, 0.9), (0, 0, NOWHERE, 0.8), (1, 0, FAR, 0.8), (0, 0, FAR, 0.7), (1, 1, BOX, 0.3)]
    return match(there, found(rows))


def test_precision_and_recall_by_hand():
    curve = precision_recall(four(), 0)
    assert curve.scores.tolist() == [0.9, 0.8, 0.7]
    assert curve.recall == pytest.approx([1 / 3, 1 / 3, 2 / 3])
    assert curve.precision == pytest.approx([1, 1 / 2, 2 / 3])


def test_confidence_by_hand():
    along = confidence_curve(four(), 0)
    assert along.thresholds.tolist() == [0.9, 0.8, 0.7]
    assert along.precision == pytest.approx([1, 1 / 2, 2 / 3])
    assert along.recall == pytest.approx([1 / 3, 1 / 3, 2 / 3])
    assert along.f1 == pytest.approx([1 / 2, 2 / 5, 2 / 3])
    together = confidence_curve(four())
    assert together.thresholds.tolist() == [0.9, 0.8, 0.7, 0.3]
    assert together.precision == pytest.approx([1, 1 / 2, 2 / 3, 3 / 4])
    assert together.recall == pytest.approx([1 / 4, 1 / 4, 2 / 4, 3 / 4])


def test_best_by_hand():
    points = best_f1(four())
    assert points.per_class[0] == OperatingPoint(0.7, pytest.approx(2 / 3), pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert points.per_class[1] == OperatingPoint(0.3, 1.0, 1.0, 1.0)
    assert points.overall == OperatingPoint(0.3, 0.75, 0.75, 0.75)


@pytest.mark.parametrize("first", ["right", "wrong"])
def test_a_threshold_cannot_part_equal_scores(first):
    rows = [(0, 0, BOX, 0.5), (1, 0, NOWHERE, 0.5), (1, 0, FAR, 0.5)]
    there = truth([(0, 0, BOX)], images=2)
    matches = match(there, found(rows if first == "right" else rows[::-1]))
    along = confidence_curve(matches, 0)
    assert along.thresholds.tolist() == [0.5]
    assert along.precision == pytest.approx([1 / 3]) and along.recall.tolist() == [1.0]
    # Not the precision of 1 that the hit alone would have.
    point = best_f1(matches).per_class[0]
    assert point == OperatingPoint(0.5, pytest.approx(1 / 3), 1.0, 0.5)


def test_equal_scores_of_different_classes_share_a_point():
    there = truth([(0, 0, BOX), (0, 1, BOX)], classes=2)
    together = confidence_curve(match(there, found([(0, 0, BOX, 0.5), (0, 1, BOX, 0.5), (0, 1, FAR, 0.7)])))
    assert together.thresholds.tolist() == [0.7, 0.5]
    assert together.precision == pytest.approx([0, 2 / 3]) and together.recall.tolist() == [0.0, 1.0]


def test_the_highest_of_equally_good_thresholds():
    # 2 · 1 / (1 + 2) = 2 · 2 / (4 + 2)
    there = truth([(0, 0, BOX), (0, 0, FAR)])
    rows = [(0, 0, BOX, 0.9), (0, 0, NOWHERE, 0.8), (0, 0, NOWHERE, 0.7), (0, 0, FAR, 0.6)]
    along = confidence_curve(match(there, found(rows)), 0)
    assert along.f1[0] == along.f1[3] == along.f1.max()
    assert best_f1(match(there, found(rows))).per_class[0].threshold == 0.9


# ------------------------------------------------------------------------------------------------------- other roads


@pytest.mark.parametrize("seed", range(20))
def test_counting_again_at_each_threshold(seed):
    there, detected = drawn(seed)
    matches = match(there, detected)
    for iou in (0.5, 0.75):
        t = threshold_index(matches, iou)
        for label in (None, 0, 1, 2):
            of_class = np.ones(len(matches), bool) if label is None else matches.labels == label
            boxes = int((there.counted & ((there.labels == label) | (label is None))).sum())
            along = confidence_curve(matches, label, iou=iou)
            if not boxes:
                assert along is None
                continue
            judged = of_class & ~matches.ignored[t]
            assert along.thresholds.tolist() == sorted(set(matches.scores[judged].tolist()), reverse=True)
            for place, threshold in enumerate(along.thresholds):
                kept = judged & (matches.scores >= threshold)
                hits = int((kept & (matches.truth[t] >= 0)).sum())
                assert along.precision[place] == pytest.approx(hits / kept.sum())
                assert along.recall[place] == pytest.approx(hits / boxes)
                assert along.f1[place] == pytest.approx(hits / (hits + 0.5 * (kept.sum() - hits + boxes - hits)))


def test_the_area_is_cocos():
    there, detected = crowded(2, images=40, per_image=30, classes=4)
    matches = match(there, detected)
    table = precision(matches)[threshold_index(matches, 0.5)]
    for label in range(4):
        curve = precision_recall(matches, label)
        points = [curve.precision[curve.recall >= recall].max(initial=0.0) for recall in RECALLS]
        assert np.mean(points) == pytest.approx(table[:, label].mean(), abs=1e-12)
        assert 0 < np.mean(points) < 1
