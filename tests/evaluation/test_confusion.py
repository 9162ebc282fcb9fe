"""The confusion matrix: by hand, against a plain loop, and against hotcoco."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retina.errors import RetinaError
from retina.evaluation.confusion import confusion
from tests.evaluation.made import drawn, found, iou, truth

BOX = (0, 0, 10, 10)
FAR = (50, 50, 10, 10)
NOWHERE = (80, 80, 10, 10)


def matrix(there, detected, score_threshold=0.0, **options):
    return confusion(there, detected, score_threshold=score_threshold, **options).matrix.tolist()


# ------------------------------------------------------------------------------------------------------- degenerate


def test_nothing_at_all():
    assert matrix(truth([], images=0, classes=0), found([])) == [[0]]
    result = confusion(truth([], images=0, classes=2), found([]), score_threshold=0.5)
    assert result.matrix.tolist() == [[0, 0, 0]] * 3
    assert result.names == ("a", "b", "background")
    assert np.isnan(result.shares).all()


def test_one_side_only():
    assert matrix(truth([(0, 0, BOX), (0, 1, BOX)], classes=2), found([])) == [[0, 0, 1], [0, 0, 1], [0, 0, 0]]
    assert matrix(truth([], classes=2), found([(0, 1, BOX, 0.9)])) == [[0, 0, 0], [0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("threshold", [0.0, 1.1, float("nan")])
def test_wrong_overlap(threshold):
    with pytest.raises(RetinaError, match="iou: expected a number above 0 and up to 1"):
        confusion(truth([]), found([]), score_threshold=0.5, iou=threshold)


def test_detections_of_another_table():
    with pytest.raises(RetinaError, match="row 0: labels: expected 0 to 0, got 1"):
        confusion(truth([(0, 0, BOX)]), found([(0, 1, BOX, 0.9)]), score_threshold=0.5)


# ---------------------------------------------------------------------------------------------------------- by hand


def test_by_hand():
    there = truth([(0, 0, BOX), (0, 0, FAR), (1, 1, BOX)], images=2, classes=2)
    rows = [(0, 0, BOX, 0.9), (0, 1, FAR, 0.8), (0, 1, NOWHERE, 0.7), (1, 1, (0, 0, 10, 4), 0.6)]
    result = confusion(there, found(rows), score_threshold=0.5)
    assert result.matrix.tolist() == [[1, 1, 0], [0, 0, 1], [0, 2, 0]]
    assert result.shares.tolist() == [[0.5, 0.5, 0], [0, 0, 1], [0, 1, 0]]
    assert matrix(there, found(rows), 0.8) == [[1, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert matrix(there, found(rows), 0.5, iou=0.4) == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]


def test_the_class_plays_no_part_in_the_choice():
    """COCO would give the box to the second; here the wrong class comes first."""
    there = truth([(0, 0, BOX)], classes=2)
    assert matrix(there, found([(0, 1, BOX, 0.9), (0, 0, BOX, 0.8)])) == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]
    assert matrix(there, found([(0, 0, BOX, 0.8), (0, 1, BOX, 0.9)])) == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]


def test_a_taken_box_leaves_the_next_best():
    there = truth([(0, 0, BOX), (0, 1, (2, 0, 10, 10))], classes=2)
    assert matrix(there, found([(0, 0, BOX, 0.9), (0, 1, BOX, 0.8)])) == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_equal_scores_keep_the_order_and_equal_overlaps_the_first_box():
    there = truth([(0, 0, BOX), (0, 1, BOX)], classes=2)
    assert matrix(there, found([(0, 0, BOX, 0.5), (0, 1, BOX, 0.5)])) == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert matrix(there, found([(0, 1, BOX, 0.5), (0, 0, BOX, 0.5)])) == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("flag", ["crowd", "difficult"])
def test_flagged_boxes_are_neither(flag, label):
    there = truth([(0, 0, FAR, flag), (0, 0, BOX)], classes=2)
    # Any number of detections, of any class.
    rows = [(0, label, FAR, 0.9), (0, label, FAR, 0.8), (0, 0, BOX, 0.7)]
    assert matrix(there, found(rows)) == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_a_part_of_a_crowd_lies_on_it_and_a_part_of_a_difficult_box_does_not():
    part = (0, 0, 10, 2)
    for flag, expected in (("crowd", 0), ("difficult", 1)):
        assert matrix(truth([(0, 0, BOX, flag)]), found([(0, 0, part, 0.9)])) == [[0, 0], [expected, 0]]


def test_a_counted_box_comes_before_a_crowd():
    there = truth([(0, 0, (0, 0, 40, 40), "crowd"), (0, 0, BOX)])
    assert matrix(there, found([(0, 0, BOX, 0.9)])) == [[1, 0], [0, 0]]


# ------------------------------------------------------------------------------------------------------------- peers


def loop(there, detected, score_threshold, threshold):
    """One detection after the other, image by image."""
    classes = len(there.class_names)
    table = np.zeros((classes + 1, classes + 1), int)
    for image in range(len(there)):
        boxes = [box for box in range(len(there.boxes)) if there.image[box] == image]
        free = {box for box in boxes if there.counted[box]}
        rows = [row for row in range(len(detected)) if detected.image[row] == image]
        for row in sorted(rows, key=lambda row: -detected.scores[row]):
            if detected.scores[row] < score_threshold:
                continue
            overlap = {
                box: iou(detected.boxes[row].tolist(), there.boxes[box].tolist(), there.crowd[box]) for box in boxes
            }
            open_boxes = [box for box in boxes if box in free and overlap[box] >= threshold]
            if open_boxes:
                chosen = max(open_boxes, key=overlap.get)
                free.remove(chosen)
                table[there.labels[chosen], detected.labels[row]] += 1
            elif not any(overlap[box] >= threshold and not there.counted[box] for box in boxes):
                table[classes, detected.labels[row]] += 1
        for box in free:
            table[there.labels[box], classes] += 1
    return table


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    score_threshold=st.sampled_from([0.0, 0.3, 0.95]),
    threshold=st.sampled_from([0.1, 0.5, 1.0]),
)
def test_equal_to_the_loop(seed, score_threshold, threshold):
    there, detected = drawn(seed)
    result = confusion(there, detected, score_threshold=score_threshold, iou=threshold)
    assert result.matrix.tolist() == loop(there, detected, score_threshold, threshold).tolist()
    # Every counted box stands in its row once.
    boxes = np.bincount(there.labels[there.counted], minlength=3)
    assert result.matrix[:3].sum(axis=1).tolist() == boxes.tolist()


def hotcoco_matrix(there, detected, score_threshold):
    import hotcoco

    names = ("image_id", "category_id")
    coco = hotcoco.COCO(
        {
            "images": [{"id": image + 1, "width": 500, "height": 500} for image in range(len(there))],
            "categories": [{"id": label + 1, "name": name} for label, name in enumerate(there.class_names)],
            "annotations": [
                {
                    "id": row + 1,
                    **dict(zip(names, (int(there.image[row]) + 1, int(there.labels[row]) + 1), strict=True)),
                    "bbox": there.boxes[row].tolist(),
                    "area": float(there.areas[row]),
                    "iscrowd": int(there.crowd[row]),
                }
                for row in range(len(there.boxes))
            ],
        }
    )
    entries = [
        {
            **dict(zip(names, (int(detected.image[row]) + 1, int(detected.labels[row]) + 1), strict=True)),
            "bbox": detected.boxes[row].tolist(),
            "score": float(detected.scores[row]),
        }
        for row in range(len(detected))
    ]
    evaluation = hotcoco.COCOeval(coco, coco.load_res(entries), "bbox")
    return evaluation.confusion_matrix(iou_thr=0.5, min_score=score_threshold)["matrix"].tolist()


@pytest.mark.parametrize("score_threshold", [0.0, 0.02])
def test_equal_to_hotcoco_without_flags_and_ties(score_threshold):
    compared = 0
    for seed in range(60):
        there, detected = drawn(seed, flags=False, ties=False)
        if not len(detected):
            continue
        compared += 1
        assert matrix(there, detected, score_threshold) == hotcoco_matrix(there, detected, score_threshold)
    assert compared > 50


def test_hotcoco_takes_detections_on_a_crowd_for_background():
    there, detected = truth([(0, 0, BOX, "crowd")]), found([(0, 0, BOX, 0.9)])
    assert matrix(there, detected) == [[0, 0], [0, 0]]
    assert hotcoco_matrix(there, detected, 0.0) == [[0, 0], [1, 0]]
