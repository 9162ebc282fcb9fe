"""Tiles cover an image with the overlap that was asked for; their detections come together as those of the image."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from retina.data.tiles import TileDetections, Tiling, at_seam, check_tiles, merged, tiling
from retina.errors import RetinaError

SIDES = st.integers(1, 3000)
OVERLAPS = st.floats(0, 0.9)


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.integers(32, 800), OVERLAPS)
def test_tiles_cover_the_image_and_overlap(height, width, tile, overlap):
    assume(max(height, width) < 40 * tile * (1 - overlap))
    tiles = tiling(height, width, tile, overlap)
    x1, y1, x2, y2 = tiles.windows.T
    assert (x2 - x1 == min(tile, width)).all() and (y2 - y1 == min(tile, height)).all()
    assert x1.min() == y1.min() == 0 and x2.max() == width and y2.max() == height
    for starts, length, common in ((np.unique(y1), height, tiles.overlap[0]), (np.unique(x1), width, tiles.overlap[1])):
        if len(starts) == 1:
            assert length <= tile and common == np.inf
            continue
        assert common == tile - np.diff(starts).max() >= np.floor(tile * overlap)
        # One fewer would not do.
        assert (len(starts) - 2) * max(int(tile * (1 - overlap)), 1) + tile < length
    assert len(tiles.windows) == len(np.unique(tiles.windows, axis=0)) == len(np.unique(x1)) * len(np.unique(y1))


def test_tiles_by_hand():
    assert tiling(100, 100, 100, 0.2).windows.tolist() == [[0, 0, 100, 100]]
    tiles = tiling(50, 250, 100, 0.2)
    assert tiles.windows.tolist() == [[0, 0, 100, 50], [75, 0, 175, 50], [150, 0, 250, 50]]
    assert tiles.overlap == (np.inf, 25)


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [
        (None, 0.2, "no effect without --tile"),
        (31, None, "at least 32"),
        (64, 0.95, "0 to 0.9"),
        (64, -0.1, "0 to 0.9"),
    ],
)
def test_settings_out_of_range(tile, overlap, message):
    with pytest.raises(RetinaError, match=message):
        check_tiles(tile, overlap)


def ideal(objects: np.ndarray, labels: np.ndarray, tiles: Tiling, seed: int, *, of_parts: bool) -> TileDetections:
    """What a detector without errors sees: the visible part of each object in each tile, and all in the whole image.

    Parts have high scores, and with `of_parts` a class of their own: the worst case.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for tile, window in enumerate(tiles.windows.tolist()):
        for box, label in zip(objects.tolist(), labels.tolist(), strict=True):
            part = [*map(max, box[:2], window[:2]), *map(min, box[2:], window[2:])]
            if part[0] < part[2] and part[1] < part[3]:
                whole = part == box
                score = rng.uniform(0.1, 0.5) if whole else rng.uniform(0.9, 1)
                rows.append((tile, *part, score, label if whole or not of_parts else 1 - label))
    rows += [(-1, *box, 0.7, label) for box, label in zip(objects.tolist(), labels.tolist(), strict=True)]
    table = np.array(rows).reshape(-1, 7)[rng.permutation(len(rows))]
    return TileDetections(table[:, 0].astype(int), table[:, 1:5], table[:, 5], table[:, 6].astype(int))


def scattered(rng: np.random.Generator, size: tuple[int, int], most: float, count: int) -> np.ndarray:
    """Boxes of up to `most` pixels that don't overlap."""
    boxes = np.zeros((0, 4))
    for _ in range(count):
        sides = rng.uniform(4, most, 2)
        corner = rng.uniform(0, np.array(size[::-1]) - sides)
        box = np.concatenate([corner, corner + sides])
        if not ((box[:2] < boxes[:, 2:]) & (boxes[:, :2] < box[2:])).all(axis=1).any():
            boxes = np.concatenate([boxes, box[None]])
    return boxes


@pytest.mark.parametrize("seed", range(8))
def test_each_object_that_fits_the_overlap_is_there_once_and_no_part_of_it(seed):
    """Whatever the class and the score of its parts, and although boxes at seams are taken for parts too easily."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(200, 900)), int(rng.integers(200, 900))
    tiles = tiling(*size, 200, 0.3)
    objects = scattered(rng, size, (60 - 2) / 1.1, 60)
    labels = rng.integers(0, 2, len(objects))
    detections = merged(ideal(objects, labels, tiles, seed, of_parts=True), size, tiles, iou=0.5)
    assert (np.diff(detections.scores) <= 0).all()
    order, expected = np.lexsort(detections.boxes.T), np.lexsort(objects.T)
    np.testing.assert_array_equal(detections.boxes[order], objects[expected])
    np.testing.assert_array_equal(detections.labels[order], labels[expected])


@pytest.mark.parametrize("seed", range(4))
def test_objects_larger_than_the_overlap_come_from_the_whole_image(seed):
    rng = np.random.default_rng(seed)
    size = 700, 800
    tiles = tiling(*size, 200, 0.25)
    objects = np.array([[20.0, 30, 420, 130], [430, 150, 530, 690], [30, 200, 400, 600], [600, 20, 690, 70]])
    objects += rng.uniform(-9, 9, (4, 2))[:, [0, 1, 0, 1]]
    labels = rng.integers(0, 2, 4)
    detections = merged(ideal(objects, labels, tiles, seed, of_parts=False), size, tiles, iou=0.5)
    order, expected = np.lexsort(detections.boxes.T), np.lexsort(objects.T)
    np.testing.assert_array_equal(detections.boxes[order], objects[expected])
    assert (detections.tile[order[:1]] == -1).all()


def test_a_small_object_before_a_large_one_of_its_class_stays():
    """Merging by intersection over the smaller area, as SAHI does, would lose it."""
    tiles = tiling(100, 180, 100, 0.2)
    boxes = np.array([[10, 10, 60, 90], [20, 30, 40, 50], [120, 10, 160, 60.0]])
    detections = TileDetections(np.array([0, 0, 1]), boxes, np.array([0.9, 0.8, 0.7]), np.zeros(3, int))
    np.testing.assert_array_equal(merged(detections, (100, 180), tiles, iou=0.5).boxes, boxes)


def test_no_detections():
    tiles = tiling(100, 300, 100, 0.2)
    nothing = TileDetections(np.zeros(0, int), np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    assert len(merged(nothing, (100, 300), tiles, iou=0.5).scores) == 0


# ------------------------------------------------------------------------------------------------------- reference


def reference(
    detections: TileDetections, size: tuple[int, int], tiles: Tiling, iou: float, agnostic: bool
) -> list[int]:
    """Rows of the detections that stay: the rules of the module, a pair at a time, in float64."""

    def near(box, window):
        width, height = float(box[2]) - float(box[0]), float(box[3]) - float(box[1])
        ends = (
            (box[0] - window[0], width, window[0] > 0),
            (box[1] - window[1], height, window[1] > 0),
            (window[2] - box[2], width, window[2] < size[1]),
            (window[3] - box[3], height, window[3] < size[0]),
        )
        return any(inner and float(into) <= 2 + 0.1 * side for into, side, inner in ends)

    def inside(box, window):
        return box[0] >= window[0] and box[1] >= window[1] and box[2] <= window[2] and box[3] <= window[3]

    rows, cut = [], {}
    for row, (tile, box) in enumerate(zip(detections.tile, detections.boxes, strict=True)):
        if tile < 0:
            cut[row] = False
            if box[3] - box[1] > tiles.overlap[0] or box[2] - box[0] > tiles.overlap[1]:
                rows.append(row)
            continue
        cut[row] = near(box, tiles.windows[tile])
        if not cut[row] or not any(inside(box, other) and not near(box, other) for other in tiles.windows):
            rows.append(row)
    rows.sort(key=lambda row: (cut[row], -detections.scores[row]))
    stays: list[int] = []
    for row in rows:
        box = detections.boxes[row].astype(np.float64)
        area = (box[2] - box[0]) * (box[3] - box[1])
        for other in stays:
            better = detections.boxes[other].astype(np.float64)
            common = max(min(box[2], better[2]) - max(box[0], better[0]), 0)
            common *= max(min(box[3], better[3]) - max(box[1], better[1]), 0)
            union = area + (better[2] - better[0]) * (better[3] - better[1]) - common
            same = agnostic or detections.labels[row] == detections.labels[other]
            if detections.tile[row] != detections.tile[other] and same and common > iou * (area if cut[row] else union):
                break
        else:
            stays.append(row)
    return sorted(stays, key=lambda row: -detections.scores[row])


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_merging_is_that_of_the_reference(seed, agnostic):
    rng = np.random.default_rng(seed)
    size = 260, 340
    tiles = tiling(*size, 100, 0.25)
    tile = rng.integers(-1, len(tiles.windows), 300)
    windows = np.where(tile[:, None] >= 0, tiles.windows[tile], [0, 0, size[1], size[0]]).astype(np.float32)
    ends = np.sort(rng.uniform(0, 1, (300, 2, 2)), axis=1).astype(np.float32)
    ends[rng.random(300) < 0.3, 1] = 1.0  # cut by the tile
    boxes = windows[:, None, :2] + ends * (windows[:, 2:] - windows[:, :2])[:, None]
    detections = TileDetections(
        tile, boxes.reshape(300, 4), rng.permutation(300).astype(np.float32), rng.integers(0, 3, 300)
    )
    rows = reference(detections, size, tiles, 0.4, agnostic)
    assert 40 < len(rows) < 260
    for column, expected in zip(
        merged(detections, size, tiles, iou=0.4, class_agnostic=agnostic), detections, strict=True
    ):
        np.testing.assert_array_equal(column, expected[rows])


def test_the_edges_of_the_image_are_no_seams():
    windows = np.array([[0, 0, 100, 100], [80, 0, 180, 100]])
    boxes = np.array([[0, 0, 20, 20], [85, 50, 100, 60], [90, 90, 130, 100]], np.float32)
    expected = [[False, True], [True, False], [True, False]]
    assert at_seam(boxes[:, None], windows, (100, 180))[:2].tolist() == expected[:2]
    assert at_seam(boxes[2], windows[1], (100, 180)) == expected[2][1]
