"""The built-in digits: deterministic, disjoint, and boxes that are the tight boxes of the ink."""

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from retina.data.formats import digits
from retina.data.formats.digits import read_digits, sample_rows

LUMA = np.array([0.299, 0.587, 0.114])


@pytest.fixture(scope="module")
def data():
    return read_digits("train", 150, 128, seed=0)


def pixels(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)))


def test_the_table(data):
    assert len(data) == 150 and data.image_ids == tuple(range(150)) and data.name == "digits/train"
    assert data.class_names == tuple("0123456789") and data.category_ids == tuple(range(10))
    assert (data.sizes == 128).all() and data.notes == ()
    assert not data.crowd.any() and not data.difficult.any()
    assert all(image.startswith(b"\x89PNG") for image in data.images)
    picture = Image.open(io.BytesIO(data.images[0]))
    assert picture.size == (128, 128) and picture.mode == "RGB"


def test_counts_sizes_classes_and_overlaps(data):
    counts = np.diff(data.offsets)
    assert counts.max() == 6 and 0 <= (counts == 0).sum() <= 10 and 2.5 < counts.mean() < 4
    heights = data.boxes[:, 3] - data.boxes[:, 1]
    assert heights.min() >= 17 and heights.max() <= 64
    assert (heights < 28).mean() > 0.1 and (heights > 50).mean() > 0.1
    assert np.bincount(data.labels, minlength=10).min() > 20
    for index in range(len(data)):
        boxes = data.objects(index).boxes
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                shared = np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None))
                union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared
                assert shared / union < 0.1


def test_an_image_depends_on_seed_split_and_its_number_only(data):
    again = read_digits("train", 5, 128, seed=0)
    assert again.images == data.images[:5]
    assert again.boxes.tolist() == data.boxes[: len(again.boxes)].tolist()
    assert not set(read_digits("train", 5, 128, seed=1).images) & set(again.images)
    assert not set(read_digits("validation", 5, 128, seed=0).images) & set(again.images)


def test_boxes_are_the_tight_boxes_of_the_visible_ink(monkeypatch):
    """Drawn in white on black without noise, the box is that of the pixels of at least half the ink's brightness."""
    black = lambda handwriting, size, rng: Image.new("RGB", (size, size))  # noqa: E731
    monkeypatch.setattr(digits, "_background", black)
    monkeypatch.setattr(digits, "_contrasting", lambda luma, rng: np.full(3, 255.0, np.float32))
    monkeypatch.setattr(digits, "_NOISE", 0)
    table = read_digits("train", 40, 128, seed=3)
    alone = 0
    for index in range(len(table)):
        boxes = table.objects(index).boxes.astype(int)
        bright = pixels(table.images[index])[..., 0] >= 127.5
        inside = np.zeros_like(bright)
        for x1, y1, x2, y2 in boxes:
            inside[y1:y2, x1:x2] = True
        assert not (bright & ~inside).any()
        for x1, y1, x2, y2 in boxes:
            ink = bright[y1:y2, x1:x2]
            assert ink[0].any() and ink[-1].any() and ink[:, 0].any() and ink[:, -1].any()
        alone += len(boxes) == 1
    assert alone > 0


@pytest.mark.parametrize("luma", [0.0, 60.0, 79.0, 128.0, 176.0, 255.0])
def test_ink_stands_out_from_its_background(luma):
    rng = np.random.default_rng(0)
    colors = np.array([digits._contrasting(luma, rng) for _ in range(300)])
    assert colors.min() >= 0 and colors.max() <= 255.001
    apart = colors @ LUMA - luma
    assert np.abs(apart).min() >= 79.99
    if 90 < luma < 165:
        assert (apart > 0).any() and (apart < 0).any()


def test_digits_scale_with_the_image():
    large = read_digits("test", 30, 256, seed=0)
    heights = large.boxes[:, 3] - large.boxes[:, 1]
    assert (large.sizes == 256).all() and heights.min() >= 35 and 64 < heights.max() <= 128


def test_fewer_and_smaller_digits_of_one_class():
    table = read_digits("train", 60, 128, seed=0, most=2, height=(0.13, 0.26), single_class=True)
    counts, heights = np.diff(table.offsets), table.boxes[:, 3] - table.boxes[:, 1]
    assert counts.max() == 2 and (counts == 1).any()
    assert heights.min() >= 0.13 * 128 - 5 and 0.2 * 128 < heights.max() <= 0.26 * 128 + 1
    assert table.class_names == ("digit",) and table.category_ids == (0,) and not table.labels.any()
    # The defaults are the numbers that the demo has always had.
    plain, spelled = (read_digits("test", 3, **more) for more in ({}, {"most": 6, "height": (22 / 128, 64 / 128)}))
    assert plain.images == spelled.images


def test_the_handwriting_of_the_splits_is_disjoint_and_stratified():
    targets = load_digits().target
    rows = {split: sample_rows(targets, split) for split in ("train", "validation", "test")}
    together = np.concatenate(list(rows.values()))
    assert sorted(together) == list(range(1797))
    for split in rows.values():
        assert np.bincount(targets[split]).min() >= 24
    assert sample_rows(np.array([5, 5, 7]), "train").tolist() == [0, 1, 2]
    assert sample_rows(np.full(20, 5), "validation").tolist() == [14, 15, 16]
    assert sample_rows(np.full(20, 5), "test").tolist() == [17, 18, 19]
