"""Tiles cover an image with the overlap that was asked for; their detections come together as those of the image, and
training sees each as an image of its own."""

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from retina import config
from retina.data.batches.evaluation import evaluation_batches
from retina.data.batches.table_reader import TableReader
from retina.data.batches.training import training_batches
from retina.data.dataset import DetectionDataset
from retina.data.images import load_image
from retina.data.load import load_split, load_training
from retina.data.tiles import TileDetections, Tiling, at_seam, check_tiles, in_tiles, merged, noted, tiling
from retina.drawing.notebook import load_dataset
from retina.errors import RetinaError
from tests.doctor.made import table

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


# ------------------------------------------------------------------------------------------------ tiles of a table

BOX = [10, 10, 20, 20]
BACKGROUND = 99  # the brightest level of what is not painted


def encoded(pixels: np.ndarray, **options: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, **options)
    return content.getvalue()


def painted(rng: np.random.Generator, size: tuple[int, int], first: int) -> tuple[np.ndarray, np.ndarray]:
    """An image of noise with boxes of one level each, from `first` on; and the boxes."""
    boxes = np.unique(np.floor(scattered(rng, size, 35, 30)), axis=0)
    pixels = rng.integers(0, BACKGROUND + 1, (*size, 3), np.uint8)
    for level, (x1, y1, x2, y2) in enumerate(boxes.astype(int).tolist(), start=first):
        pixels[y1:y2, x1:x2] = level
    return pixels, boxes


@pytest.fixture(scope="module")
def photographs() -> DetectionDataset:
    """A painted PNG that is turned, one that is smaller than most tiles, and one of another shape; a class a box."""
    rng = np.random.default_rng(0)
    parts = [painted(rng, size, 100 + 50 * row) for row, size in enumerate([(150, 260), (40, 50), (200, 90)])]
    stored = [np.rot90(parts[0][0]), *(pixels for pixels, _ in parts[1:])]
    exif = Image.Exif()
    exif[0x0112] = 6  # upright after a quarter turn clockwise
    boxes = [each.tolist() for _, each in parts]
    made = table(
        [pixels.shape[:2] for pixels, _ in parts],
        boxes,
        [50 * row + box for row, each in enumerate(boxes) for box in range(len(each))],
        tuple(map(str, range(150))),
        images=tuple(
            encoded(pixels, format="PNG", exif=exif if row == 0 else None) for row, pixels in enumerate(stored)
        ),
    )
    return dataclasses.replace(made, orientations=np.array([6, 1, 1]), orientation="upright")


@pytest.mark.parametrize(("size", "overlap"), [(64, 0.3), (100, 0.0), (37, 0.5)])
def test_pixels_and_boxes_of_a_tile_are_those_of_its_window(photographs, size, overlap):
    tiles = in_tiles(photographs, config.TrainingTiles(size=size, overlap=overlap))
    wholes = [load_image(photographs.photograph(row)) for row in range(3)]
    reader, rows = TableReader(tiles), 0
    for row, tile in enumerate(tiles.images):
        x1, y1, x2, y2 = tile.window
        expected = wholes[tile.row][y1:y2, x1:x2]
        assert tiles.image_ids[row] == f"{photographs.image_ids[tile.row]} ({x1}, {y1})"
        assert tuple(tiles.sizes[row]) == expected.shape[:2] and len(tile.read()) == tile.length
        for pixels in (load_image(tiles.photograph(row)), reader.read(row)[0]):
            np.testing.assert_array_equal(pixels, expected)
        objects = tiles.objects(row)
        levels = 100 + objects.labels
        for (left, top, right, bottom), level in zip(objects.boxes.astype(int).tolist(), levels, strict=True):
            assert (expected[top:bottom, left:right] == level).all()
            assert (expected[..., 0] == level).sum() == (right - left) * (bottom - top)
        assert set(np.unique(expected)) - set(range(BACKGROUND + 1)) == set(levels)
        rows += len(levels)
    assert rows > len(photographs.boxes) and (tiles.boxes % 1 == 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_a_box_that_fits_the_overlap_is_whole_in_a_tile_and_what_is_cut_is_ignored(seed):
    rng = np.random.default_rng(seed)
    sizes = [(int(rng.integers(90, 400)), int(rng.integers(90, 400))) for _ in range(3)]
    boxes = [scattered(rng, size, 0.3 * 80, 60).tolist() for size in sizes]
    whole = table(sizes, boxes, np.arange(sum(map(len, boxes))), tuple(map(str, range(200))))
    tiles = in_tiles(whole, config.TrainingTiles(size=80, overlap=0.3, min_visible=0.6))
    shown = np.repeat(np.arange(len(tiles)), np.diff(tiles.offsets))
    complete = set()
    for tile, box, label, crowd, area in zip(shown, tiles.boxes, tiles.labels, tiles.crowd, tiles.areas, strict=True):
        x1, y1, x2, y2 = whole.boxes[label].tolist()
        left, top, right, bottom = tiles.images[tile].window
        part = [max(x1, left) - left, max(y1, top) - top, min(x2, right) - left, min(y2, bottom) - top]
        assert box.tolist() == pytest.approx(part, abs=1e-9)
        share = (part[2] - part[0]) * (part[3] - part[1]) / ((x2 - x1) * (y2 - y1))
        assert crowd == (share < 0.6) and area == pytest.approx(share * whole.areas[label])
        if share == 1:
            complete.add(int(label))
    assert complete == set(range(len(whole.boxes))) and tiles.crowd.any() and not tiles.crowd.all()
    assert len(tiles) == sum(len(tiling(*size, 80, 0.3).windows) for size in sizes)


def test_cuts_by_hand():
    boxes = [[[50, 10, 70, 30], [0, 0, 9, 9], [95, 50, 100, 60]], []]
    whole = table([(60, 100), (60, 60)], boxes, crowd=[False, True, False])
    tiles = in_tiles(whole, config.TrainingTiles(size=60))
    assert tiles.image_ids == ("0 (0, 0)", "0 (40, 0)", "1 (0, 0)") and tiles.sizes.tolist() == [[60, 60]] * 3
    assert tiles.offsets.tolist() == [0, 2, 4, 4]  # a tile without boxes is background
    assert tiles.boxes.tolist() == [[50, 10, 60, 30], [0, 0, 9, 9], [10, 10, 30, 30], [55, 50, 60, 60]]
    assert tiles.crowd.tolist() == [True, True, False, False] and tiles.areas[0] == 200
    assert tiles.notes[-1] == "made up: data.tiles: 2 images are 3 tiles of up to 60 pixels"
    half = in_tiles(whole, config.TrainingTiles(size=60, min_visible=0.5))
    assert half.crowd.tolist() == [False, True, False, False]
    assert in_tiles(whole, None) is whole


def test_tiles_that_cut_nothing():
    whole = table([(60, 100), (60, 60)], [[BOX], []])
    with pytest.raises(RetinaError, match=r"data.tiles.size: expected less than .* images, 100 pixels, got 100, which"):
        in_tiles(whole, config.TrainingTiles(size=100))
    assert noted(whole, None) is whole and noted(whole, config.Tiles(size=99)) is whole
    (note,) = noted(whole, config.Tiles(size=100)).notes
    assert note.startswith("made up: evaluation.tiles.size: 100 has no effect: the longest side of an image is 100")


def test_a_tile_of_a_broken_image_names_its_file(tmp_path):
    (tmp_path / "broken.png").write_bytes(encoded(np.zeros((60, 100, 3), np.uint8), format="PNG")[:-30])
    whole = table([(60, 100)], [[BOX]], images=(str(tmp_path / "broken.png"),))
    tiles = in_tiles(whole, config.TrainingTiles(size=60))
    with pytest.raises(RetinaError, match=r"broken\.png: expected a .* image, it is damaged"):
        list(training_batches(tiles, SETTINGS, batch_size=1, seed=0, steps=1))
    larger = dataclasses.replace(whole, images=(encoded(np.zeros((60, 101, 3), np.uint8), format="PNG"),))
    with pytest.raises(RetinaError, match=r"made up: image 0: expected 100x60 pixels .*, the image has 101x60"):
        in_tiles(larger, config.TrainingTiles(size=60)).images[1].read()


SETTINGS = config.load(
    None,
    [
        "data.resize={short: 48, long: 80, multiple: 32}",
        "data.augment={scale: [0.5, 1.5], mosaic: {probability: 0.5}, vertical_flip: 0.5}",
    ],
).data


def test_training_takes_tiles_for_images_of_their_own(photographs, monkeypatch):
    """Batches are those of files that hold the windows; from any step on, and from memory."""
    tiles = in_tiles(photographs, config.TrainingTiles(size=64, overlap=0.3))
    stored = [encoded(load_image(tiles.photograph(row)), format="PNG") for row in range(len(tiles))]
    files = dataclasses.replace(tiles, images=tuple(stored))
    expected = list(training_batches(files, SETTINGS, batch_size=3, seed=5, steps=9))
    reads = []
    whole = TableReader.read
    monkeypatch.setattr(TableReader, "read", lambda self, *place: (reads.append(self), whole(self, *place))[1])
    memory = SETTINGS.model_copy(update={"cache": "memory"})
    tiles = in_tiles(photographs, config.TrainingTiles(size=64, overlap=0.3))
    cached = training_batches(tiles, memory, batch_size=3, seed=5, steps=9, threads=4)
    # Each image once, and each tile once.
    assert len(reads) == len(photographs) + len(tiles)
    for batches, first_step in (
        (cached, 0),
        (training_batches(tiles, SETTINGS, batch_size=3, seed=5, first_step=4, steps=9), 4),
    ):
        for batch, other in zip(batches, expected[first_step:], strict=True):
            for name in other:
                np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


def test_evaluation_reads_the_same_tiles(photographs):
    """As the check of batch normalisation does, of a few training images."""
    tiles = in_tiles(photographs, config.TrainingTiles(size=64, overlap=0.3))
    data = SETTINGS.model_copy(update={"resize": config.Resize(short=64, long=64, multiple=64)})
    for batch in evaluation_batches(tiles, data, batch_size=1).as_numpy_iterator():
        expected = load_image(tiles.photograph(int(batch["index"][0])))
        if expected.shape[:2] == (64, 64):
            np.testing.assert_array_equal(batch["images"][0], expected)


def test_the_training_split_alone_is_cut():
    data = config.load(
        None,
        ["data.train={format: digits, images: 3}", "data.validation={format: digits, images: 2}", "data.tiles.size=96"],
    ).data
    assert (
        len(load_split(data, "train")) == 3
        and len(load_training(data)) == 12
        and len(load_split(data, "validation")) == 2
    )
    assert load_dataset(config.load(None, ["data.train={format: digits, images: 3}", "data.tiles.size=96"])).image(
        5
    ).shape == (96, 96, 3)
