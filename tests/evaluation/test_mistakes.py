"""The worst images and the most confident mistakes."""

import numpy as np
import pytest

from retina.errors import RetinaError
from retina.evaluation.matching import match
from retina.evaluation.mistakes import ImageScore, Mistake, most_confident_mistakes, worst_images
from retina.evaluation.tide import KINDS, tide
from tests.evaluation.made import drawn, found, truth

BOX = (0, 0, 10, 10)
FAR = (50, 50, 10, 10)
NOWHERE = (80, 80, 10, 10)


# ------------------------------------------------------------------------------------------------------- degenerate


def test_no_images_and_nothing_in_them():
    assert worst_images(match(truth([], images=0), found([])), 0.5) == []
    assert worst_images(match(truth([], images=2), found([])), 0.5) == [
        ImageScore(0, None, 0, 0, 0),
        ImageScore(1, None, 0, 0, 0),
    ]
    assert most_confident_mistakes(tide(truth([]), found([])), found([]), 5) == []


def test_wrong_options():
    matches = match(truth([(0, 0, BOX)], classes=2), found([]))
    with pytest.raises(RetinaError, match=r"thresholds: expected one number or 2, got \[3\]"):
        worst_images(matches, [0.5, 0.5, 0.5])
    with pytest.raises(RetinaError, match="limit: expected at least 0, got -1"):
        worst_images(matches, 0.5, limit=-1)
    with pytest.raises(RetinaError, match="iou: expected one of"):
        worst_images(matches, 0.5, iou=0.33)
    errors = tide(truth([]), found([]))
    with pytest.raises(RetinaError, match="kinds: expected some of Cls, Loc, Both, Dupe, Bkg, got 'Miss'"):
        most_confident_mistakes(errors, found([]), 5, kinds=["Miss"])
    with pytest.raises(RetinaError, match="limit: expected at least 0, got -1"):
        most_confident_mistakes(errors, found([]), -1)
    with pytest.raises(RetinaError, match="expected the 0 detections that the errors were found in, got 1"):
        most_confident_mistakes(errors, found([(0, 0, BOX, 0.9)]), 5)


# ---------------------------------------------------------------------------------------------------------- by hand


def five():
    there = truth(
        [(0, 0, BOX), (0, 0, FAR), (1, 0, BOX), (2, 1, BOX), (4, 0, BOX), (4, 1, FAR, "crowd")], images=5, classes=2
    )
    rows = [
        (0, 0, BOX, 0.9),  # one of two found
        (1, 0, NOWHERE, 0.8),  # one wrong, one missed
        (2, 1, BOX, 0.6),  # all right at 0.5
        (4, 0, BOX, 0.7),
        (4, 1, FAR, 0.9),  # on the crowd: neither
        (3, 0, BOX, 0.4),  # wrong, below the threshold
    ]
    return there, found(rows)


def test_images_by_hand():
    matches = match(*five())
    assert worst_images(matches, 0.5) == [
        ImageScore(1, 0.0, 0, 1, 1),
        ImageScore(0, pytest.approx(2 / 3), 1, 0, 1),
        ImageScore(2, 1.0, 1, 0, 0),
        ImageScore(4, 1.0, 1, 0, 0),
        ImageScore(3, None, 0, 0, 0),
    ]
    assert [score.image for score in worst_images(matches, 0.5, limit=2)] == [1, 0]
    assert worst_images(matches, 0.5, limit=0) == []
    # From 0.4 on image 3 has a wrong one; of F1 0 the one with two mistakes stands first.
    assert worst_images(matches, 0.4)[:2] == [ImageScore(1, 0.0, 0, 1, 1), ImageScore(3, 0.0, 0, 1, 0)]


def test_a_threshold_for_each_class():
    matches = match(*five())
    by_image = {score.image: score for score in worst_images(matches, [0.65, 0.65])}
    assert by_image[2] == ImageScore(2, 0.0, 0, 0, 1)
    by_image = {score.image: score for score in worst_images(matches, [0.75, 0.6])}
    assert by_image[2] == ImageScore(2, 1.0, 1, 0, 0) and by_image[4] == ImageScore(4, 0.0, 0, 0, 1)


def test_the_overlap_decides():
    matches = match(truth([(0, 0, BOX)]), found([(0, 0, (0, 0, 10, 6), 0.9)]))
    assert worst_images(matches, 0.5) == [ImageScore(0, 1.0, 1, 0, 0)]
    assert worst_images(matches, 0.5, iou=0.75) == [ImageScore(0, 0.0, 0, 1, 1)]


def test_mistakes_by_hand():
    there = truth([(0, 0, BOX), (1, 0, BOX)], images=2, classes=2)
    detected = found(
        [
            (0, 0, BOX, 0.99),  # right
            (1, 0, NOWHERE, 0.5),
            (0, 0, BOX, 0.8),
            (1, 1, BOX, 0.9),
            (0, 0, NOWHERE, 0.5),
        ]
    )
    errors = tide(there, detected)
    expected = [
        Mistake(3, "Cls", 0.9, 1, 1),
        Mistake(2, "Dupe", 0.8, 0, 0),
        Mistake(1, "Bkg", 0.5, 1, None),
        Mistake(4, "Bkg", 0.5, 0, None),
    ]
    assert most_confident_mistakes(errors, detected, 10) == expected
    assert most_confident_mistakes(errors, detected, 2) == expected[:2]
    assert most_confident_mistakes(errors, detected, 10, kinds=["Bkg"]) == expected[2:]
    assert most_confident_mistakes(errors, detected, 10, kinds=["Both"]) == []
    assert most_confident_mistakes(errors, detected, 10, kinds=[]) == []


@pytest.mark.parametrize("seed", range(10))
def test_counts_add_up(seed):
    there, detected = drawn(seed)
    matches = match(there, detected)
    scores = worst_images(matches, 0.3)
    assert sorted(score.image for score in scores) == list(range(len(there)))
    kept = matches.scores >= 0.3
    assert sum(score.right for score in scores) == (kept & matches.right[0]).sum()
    assert sum(score.wrong for score in scores) == (kept & matches.wrong[0]).sum()
    assert sum(score.right + score.missed for score in scores) == there.counted.sum()
    known = [score.f1 for score in scores if score.f1 is not None]
    assert known == sorted(known) and all(score.f1 is None for score in scores[len(known) :])
    mistakes = most_confident_mistakes(tide(there, detected), detected, 1000)
    assert len(mistakes) == matches.wrong[0].sum() and {mistake.kind for mistake in mistakes} <= set(KINDS)
    assert np.all(np.diff([mistake.score for mistake in mistakes]) <= 0)
