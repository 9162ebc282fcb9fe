import keras
import numpy as np
import pytest
from keras import ops

from retina.config import Anchors, Assignment
from retina.ops import assignment, boxes
from retina.ops.anchors import pyramid_anchors
from retina.ops.assignment import boxes_at_once, match
from tests import reference

ANCHOR = [0, 0, 10, 10]
FAR = [100, 100, 110, 110]
PAPER = Assignment()


def matched(anchors, boxes, valid=None, crowd=None, config=PAPER):
    """One image: (row or -1, ignored) of each anchor."""
    boxes = np.asarray(boxes, np.float32).reshape(1, -1, 4)
    valid = np.ones(boxes.shape[:2], bool) if valid is None else np.asarray([valid], bool)
    crowd = np.zeros(boxes.shape[:2], bool) if crowd is None else np.asarray([crowd], bool)
    found = match(
        ops.convert_to_tensor(np.asarray(anchors, np.float32)),
        *(ops.convert_to_tensor(field) for field in (boxes, valid, crowd)),
        config,
    )
    index, positive, ignored = (ops.convert_to_numpy(field)[0] for field in found)
    assert index.dtype == np.int32 and positive.dtype == bool and ignored.dtype == bool
    assert not (positive & ignored).any()
    return np.where(positive, index, -1).tolist(), ignored.tolist()


def test_no_valid_box_makes_everything_background():
    assert matched([ANCHOR, FAR], [ANCHOR, [0, 0, 0, 0]], valid=[False, False]) == ([-1, -1], [False, False])


def test_a_box_without_area_matches_nothing():
    assert matched([ANCHOR], [[5, 5, 5, 5]]) == ([-1], [False])
    assert matched([ANCHOR], [[5, 5, 5, 5]], config=Assignment(force_match=True)) == ([-1], [False])


def test_padding_is_never_matched_even_where_it_overlaps():
    assert matched([ANCHOR], [FAR, ANCHOR], valid=[True, False]) == ([-1], [False])


@pytest.mark.parametrize(
    ("height", "row", "ignored"),
    [
        (10, 0, False),
        (5, 0, False),
        (4.9, -1, True),
        (4.5, -1, True),
        (4.0, -1, True),
        (3.9, -1, False),
        (0.1, -1, False),
    ],
)
def test_thresholds(height, row, ignored):
    """A box as wide as the anchor and `height` of its 10 pixels has an IoU of `height` / 10; the lower ends count."""
    assert matched([ANCHOR], [[0, 0, 10, height]]) == ([row], [ignored])


def test_the_highest_overlap_wins_and_the_first_of_equals():
    assert matched([ANCHOR], [[0, 0, 10, 6], [0, 0, 10, 9], [0, 0, 10, 8]])[0] == [1]
    assert matched([ANCHOR], [[0, 0, 10, 6], [0, 4, 10, 10], ANCHOR, ANCHOR])[0] == [2]


@pytest.mark.parametrize("filling", [np.nan, np.inf])
def test_what_empty_slots_hold_is_of_no_matter(filling):
    assert matched([ANCHOR], [ANCHOR, [filling] * 4], valid=[True, False]) == ([0], [False])


def test_thresholds_of_the_config():
    config = Assignment(positive_iou=0.7, negative_iou=0.3)
    assert matched([ANCHOR], [[0, 0, 10, 6]], config=config) == ([-1], [True])
    assert matched([ANCHOR], [[0, 0, 10, 3.5]], config=config) == ([-1], [True])
    assert matched([ANCHOR], [[0, 0, 10, 2.5]], config=config) == ([-1], [False])


@pytest.mark.parametrize(("x", "ignored"), [(5, True), (4, True), (5.5, False), (11, False)])
def test_half_an_anchor_inside_a_crowd_is_ignored(x, ignored):
    """The crowd holds the anchor's right part from x on: at x = 5 exactly half of it; its IoU is always small."""
    assert matched([ANCHOR], [[x, 0, 200, 200]], crowd=[True]) == ([-1], [ignored])


def test_a_crowd_is_never_positive():
    assert matched([ANCHOR], [ANCHOR], crowd=[True]) == ([-1], [True])
    assert matched([ANCHOR], [ANCHOR], crowd=[True], config=Assignment(force_match=True)) == ([-1], [True])


def test_a_padded_crowd_ignores_nothing():
    assert matched([ANCHOR], [ANCHOR], valid=[False], crowd=[True]) == ([-1], [False])


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="its compiler joins both, without a branch")
def test_a_batch_without_crowds_looks_for_none(monkeypatch):
    calls = []
    monkeypatch.setattr(boxes, "intersection", lambda *pair, of=boxes.intersection: calls.append(pair) or of(*pair))
    matched([ANCHOR], [ANCHOR], valid=[False], crowd=[True])
    assert len(calls) == 1  # the IoU's
    matched([ANCHOR], [ANCHOR], crowd=[True])
    assert len(calls) == 3


def test_an_object_in_a_crowd_stays_positive():
    assert matched([ANCHOR], [[0, 0, 100, 100], ANCHOR], crowd=[True, False]) == ([1], [False])


def test_crowd_overlap_of_the_config():
    config = Assignment(crowd_overlap=0.8)
    assert matched([ANCHOR], [[5, 0, 99, 99]], crowd=[True], config=config) == ([-1], [False])
    assert matched([ANCHOR], [[2, 0, 99, 99]], crowd=[True], config=config) == ([-1], [True])


def test_force_match():
    force = Assignment(force_match=True)
    tiny, tiny_too = [0, 0, 2, 2], [3, 3, 4, 4]
    assert matched([FAR, ANCHOR], [tiny]) == ([-1, -1], [False, False])
    assert matched([FAR, ANCHOR], [tiny], config=force) == ([-1, 0], [False, False])
    # Of equal anchors the first; a box that no anchor touches stays without one.
    assert matched([ANCHOR, ANCHOR], [tiny], config=force)[0] == [0, -1]
    assert matched([ANCHOR], [FAR], config=force)[0] == [-1]
    # Both boxes want the same anchor: the higher overlap gets it.
    assert matched([ANCHOR], [tiny_too, tiny], config=force)[0] == [1]
    # An anchor that was ignored (IoU 0.45) becomes positive, and one that had another box is taken over.
    assert matched([ANCHOR], [[0, 0, 10, 4.5]], config=force) == ([0], [False])
    wide = [0, 0, 10, 20]
    assert matched([ANCHOR, wide], [wide, [0, 0, 10, 3]], config=force)[0] == [1, 0]


def test_force_match_with_ties():
    ties = Assignment(force_match="ties")
    tiny = [0, 0, 2, 2]
    assert matched([ANCHOR], [[5, 5, 5, 5]], config=ties) == ([-1], [False])
    assert matched([ANCHOR], [ANCHOR], crowd=[True], config=ties) == ([-1], [True])
    assert matched([ANCHOR], [FAR, ANCHOR], valid=[True, False], config=ties) == ([-1], [False])
    # Every anchor of the highest overlap (4 / 100), also one that was ignored; the rest stays as it was.
    assert matched([ANCHOR, FAR, ANCHOR, [0, 0, 10, 11]], [tiny], config=ties)[0] == [0, -1, 0, -1]
    assert matched([ANCHOR, ANCHOR], [[0, 0, 10, 4.5]], config=ties) == ([0, 0], [False, False])
    # Each keeps the box that it overlaps most: here 0.45 with the second box, though it is the first one's best.
    assert matched([ANCHOR], [tiny, [0, 0, 10, 4.5]], config=ties) == ([1], [False])
    assert matched([ANCHOR], [tiny, [0, 0, 10, 4.5]], config=Assignment(force_match=True)) == ([1], [False])
    wide = [0, 0, 10, 20]
    assert matched([ANCHOR, wide], [wide, [0, 0, 10, 3]], config=ties)[0] == [0, 0]
    # Of equal boxes the first.
    assert matched([ANCHOR], [FAR, tiny, tiny], config=ties)[0] == [1]


@pytest.mark.parametrize("value", ["tie", "yes", 2, None])
def test_force_match_is_one_of_three(value):
    with pytest.raises(ValueError, match="False, True or 'ties'"):
        Assignment(force_match=value)


@pytest.mark.parametrize("piece", [1, 2, 16])
@pytest.mark.parametrize("force", [False, True, "ties"])
def test_random_images_equal_reference(monkeypatch, force, piece):
    monkeypatch.setattr(assignment, "PIECE", piece)
    # Square roots of these ratios are exact, so that equal overlaps are equal in any precision.
    anchors = pyramid_anchors(Anchors(scales=(1.0,), ratios=(0.25, 1.0, 4.0), size=3.0), (64, 64), (3, 4, 5))
    random = np.random.default_rng(11)
    images = []
    for _ in range(6):
        corner = random.integers(0, 40, (5, 2))
        boxes = np.concatenate([corner, corner + random.integers(4, 40, (5, 2))], axis=1).astype(np.float32)
        images.append((boxes, random.random(5) < 0.8, random.random(5) < 0.2))
    batch = [ops.convert_to_tensor(np.stack(field)) for field in zip(*images, strict=True)]
    found = match(ops.convert_to_tensor(anchors), *batch, Assignment(force_match=force))
    index, positive, ignored = (ops.convert_to_numpy(field) for field in found)
    assert positive.sum() > 12 and ignored.sum() > 12
    for i, image in enumerate(images):
        rows, skipped = reference.match(anchors, *image, force=force)
        np.testing.assert_array_equal(np.where(positive[i], index[i], -1), rows)
        np.testing.assert_array_equal(ignored[i], skipped)


@pytest.mark.parametrize("force", [False, True, "ties"])
@pytest.mark.parametrize("valid", [0, 1, 7, 23])
def test_pieces_give_the_whole_bit_for_bit(monkeypatch, force, valid):
    """Up to the last valid box; boxes on a coarse grid tie often, within a piece and across."""
    anchors = ops.convert_to_tensor(pyramid_anchors(Anchors(size=3.0), (64, 64), (3, 4, 5)))
    random = np.random.default_rng(valid)
    corner = 4 * random.integers(0, 10, (3, 23, 2))
    boxes = np.concatenate([corner, corner + 4 * random.integers(0, 8, (3, 23, 2))], axis=-1).astype(np.float32)
    present = np.arange(23)[None] < np.array([[valid], [valid // 2], [0]])
    fields = [ops.convert_to_tensor(field) for field in (boxes, present, random.random((3, 23)) < 0.2)]
    matches = []
    for piece in (23, 5):
        monkeypatch.setattr(assignment, "PIECE", piece)
        assert boxes_at_once(len(anchors), 23) == piece
        matches.append(match(anchors, *fields, Assignment(force_match=force)))
    for whole, pieces in zip(*matches, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(whole), ops.convert_to_numpy(pieces))


def test_no_more_boxes_at_once_than_are_stated(monkeypatch):
    assert boxes_at_once(201_600, 1504) == 16 and boxes_at_once(201_600, 8) == 8
    monkeypatch.setattr("keras.backend.backend", lambda: "jax")
    assert boxes_at_once(201_600, 96) == 96 and boxes_at_once(201_600, 1504) == 16
