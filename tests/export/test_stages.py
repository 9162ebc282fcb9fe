"""Which stage of an export differs first."""

import numpy as np
import pytest

from retina.export.stages import Difference, first_difference


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
