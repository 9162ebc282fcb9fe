"""Agreement of detections, the limits that it exceeds, and the first stage that differs; figures derived by hand."""

import numpy as np
import pytest

from retina.export.agreement import LIMITS, Difference, Limits, agreement, first_difference, problems
from retina.inference import Detections


def detections(*rows) -> Detections:
    """Rows of (x1, y1, x2, y2, score, label)."""
    table = np.array(rows, np.float64).reshape(-1, 6)
    labels = table[:, 5].astype(np.int32)
    return Detections(table[:, :4].astype(np.float32), table[:, 4], labels, tuple(map(str, labels)))


NONE = detections()
BOX = (10, 20, 110, 70)


def test_no_image_and_no_detection():
    for sides in (([], []), ([NONE], [NONE])):
        found = agreement(*sides)
        assert (found.matched, found.unmatched, found.unmatched_share, found.box_shift) == (0, 0, 0.0, 0.0)
        assert found.worst == -1


def test_detections_of_one_side_only():
    found = agreement([NONE, detections((*BOX, 0.9, 0))], [detections((*BOX, 0.9, 0)), NONE])
    assert (found.matched, found.unmatched_checkpoint, found.unmatched_export) == (0, 1, 1)
    assert found.unmatched_share == 1.0


def test_equal_boxes_without_area_are_a_pair():
    point = detections((5, 5, 5, 9, 0.5, 1))
    assert agreement([point], [point]).matched == 1


def test_a_box_that_is_not_finite_has_no_partner():
    found = agreement([detections((*BOX, 0.9, 0))], [detections((10, np.nan, 110, 70, 0.9, 0))])
    assert (found.matched, found.unmatched) == (0, 2)


def test_shift_and_score_difference():
    # IoU of the shifted box: 99.5 · 50 / (2 · 5000 - 99.5 · 50) = 0.990.
    found = agreement([detections((*BOX, 0.9, 0))], [detections((10.5, 20, 110.5, 70, 0.8, 0))])
    assert (found.matched, found.unmatched) == (1, 0)
    assert found.box_shift == 0.5
    assert found.score_difference == pytest.approx(0.1)
    assert found.worst == 0


def test_an_overlap_below_nine_tenths_is_no_pair():
    # 10 of 100 columns shifted: 90 / 110 = 0.82.
    found = agreement([detections((*BOX, 0.9, 0))], [detections((20, 20, 120, 70, 0.9, 0))])
    assert (found.matched, found.unmatched, found.box_shift) == (0, 2, 0.0)


def test_another_class_is_no_pair():
    assert agreement([detections((*BOX, 0.9, 0))], [detections((*BOX, 0.9, 1))]).matched == 0


def test_the_better_score_chooses_first_and_takes_the_closest():
    ours = detections((*BOX, 0.3, 0), (10, 20, 111, 70, 0.8, 0))
    theirs = detections((10, 20, 111, 70, 0.8, 0), (*BOX, 0.3, 0))
    found = agreement([ours], [theirs])
    assert (found.matched, found.box_shift, found.score_difference) == (2, 0.0, 0.0)
    # With one left to take, the better score has it, although the other one lies closer.
    found = agreement([ours], [detections((*BOX, 0.3, 0))])
    assert (found.matched, found.unmatched_checkpoint, found.box_shift) == (1, 1, 1.0)


def test_the_worst_image_is_that_with_most_unmatched():
    shifted = detections((10.5, 20, 110.5, 70, 0.9, 0))
    ours = [detections((*BOX, 0.9, 0))] * 3
    assert agreement(ours, [ours[0], shifted, ours[0]]).worst == 1
    assert agreement(ours, [ours[0], shifted, NONE]).worst == 2


def test_limits_of_the_formats():
    assert LIMITS["saved_model"].delta_ap == 0.0
    names = ("onnx, float32", "onnx, float16", "litert, float32", "litert, float16", "litert, int8")
    assert [LIMITS[name].delta_ap for name in names] == [0.001, 0.002, 0.001, 0.002, 0.02]
    for name in ("saved_model", "onnx, float32", "litert, float32"):
        assert (LIMITS[name].box_shift, LIMITS[name].unmatched) == (0.05, 0.001)


def test_what_exceeds_a_limit():
    same = agreement([detections((*BOX, 0.9, 0))], [detections((*BOX, 0.9, 0))])
    shifted = agreement([detections((*BOX, 0.9, 0))], [detections((10.5, 20, 110.5, 70, 0.9, 0))])
    lost = agreement([detections((*BOX, 0.9, 0))], [NONE])
    limits = Limits(0.0, 0.05, 0.001)
    assert problems(limits, 0.0, same) == ()
    assert problems(limits, -1e-9, same) == ("AP differs by -0.000000, allowed is none",)
    assert problems(limits, 0.0, shifted) == ("a box is shifted by 0.5 px, allowed is 0.05 px",)
    assert problems(limits, None, lost) == ("1 detections (100.00%) have no partner, allowed are 0.1%",)
    assert problems(Limits(0.02), 0.02, lost) == ()
    assert problems(Limits(0.02), float("nan"), same) == ("AP differs by +nan, allowed is ±0.02",)


# ---------------------------------------------------------------------------------------------------------- stages


def tensors(**changes) -> dict[str, np.ndarray]:
    return {
        "pixels": np.full((4, 6, 3), 7, np.uint8),
        "canvas": np.full((32, 32, 3), 9, np.uint8),
        "maps": np.linspace(-1, 1, 9, dtype=np.float32),
        "logits": np.full((5, 2), -4.0, np.float32),
        "deltas": np.zeros((5, 4), np.float32),
        **changes,
    }


def test_an_export_that_shows_nothing():
    assert first_difference(tensors(), {"boxes": np.zeros((1, 4))}, 1e-3).stage is None


def test_equal_tensors_leave_what_comes_after_them():
    assert first_difference(tensors(), tensors(), 0.0) == Difference(
        "NMS", "pixels, canvas, maps, logits, deltas agree; boxes, candidates or suppression differ"
    )


@pytest.mark.parametrize(
    ("changes", "stage"),
    [
        ({"pixels": np.full((4, 6, 3), 8, np.uint8)}, "decode"),
        ({"pixels": np.zeros((0, 0, 3), np.uint8)}, "decode"),
        ({"canvas": np.full((32, 32, 3), 8, np.uint8), "logits": np.zeros((5, 2), np.float32)}, "resize"),
        ({"maps": np.linspace(-1, 1.1, 9, dtype=np.float32)}, "backbone"),
        ({"logits": np.full((5, 2), np.nan, np.float32)}, "head"),
        ({"deltas": np.full((5, 4), 1e-6, np.float32)}, "head"),  # zeros have no magnitude to be relative to
    ],
)
def test_the_first_that_differs(changes, stage):
    assert first_difference(tensors(), tensors(**changes), 1e-3).stage == stage


def test_the_tolerance_is_relative_to_the_largest_magnitude():
    near = tensors(logits=np.full((5, 2), -4.003, np.float32))
    assert first_difference(tensors(), near, 1e-3).stage == "NMS"
    assert first_difference(tensors(), near, 1e-4).stage == "head"
    assert first_difference(tensors(), near, 1e-4).words.startswith("logits: off by up to 0.003 (magnitudes reach 4,")
