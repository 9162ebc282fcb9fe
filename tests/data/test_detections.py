"""The table of detections and the COCO results format."""

import json

import numpy as np
import pytest

from retina.data.dataset import DetectionDataset
from retina.data.detections import DetectionTable, check, concatenate
from retina.data.formats.coco import coco_columns, to_coco
from retina.errors import RetinaError


def dataset(image_ids=("b", "a"), category_ids=(0, 90)):
    n = len(image_ids)
    return DetectionDataset(
        name="made by hand",
        class_names=tuple(f"class {identifier}" for identifier in category_ids),
        category_ids=category_ids,
        image_ids=image_ids,
        images=tuple(f"{row}.jpg" for row in range(n)),
        sizes=np.full((n, 2), 100, np.int32),
        offsets=np.zeros(n + 1, np.int64),
        boxes=np.zeros((0, 4)),
        labels=np.zeros(0, np.int32),
        crowd=np.zeros(0, bool),
        difficult=np.zeros(0, bool),
        areas=np.zeros(0),
    )


def table(n=2):
    return DetectionTable(np.arange(n), [[10.0, 20.0, 30.5, 60.0]] * n, np.linspace(0.5, 0.25, n), np.arange(n)[::-1])


def entry(**changes):
    return {"image_id": "a", "category_id": 90, "bbox": [1, 2, 3, 4], "score": 0.5} | changes


def columns(entries, where="detections", image_ids=("b", "a"), category_ids=(0, 90)):
    rows = {identifier: row for row, identifier in enumerate(image_ids)}
    labels = {identifier: label for label, identifier in enumerate(category_ids)}
    return coco_columns(entries, rows, labels, where)


def test_empty_tables():
    for empty in (
        DetectionTable.empty(),
        concatenate([]),
        concatenate([DetectionTable.empty()] * 2),
    ):
        assert len(empty) == 0
        assert empty.boxes.shape == (0, 4)
        assert to_coco(empty, dataset()) == []
    nothing = columns([])
    assert nothing.boxes.shape == (0, 4) and nothing.image.shape == nothing.scores.shape == nothing.labels.shape == (0,)
    # A model that found nothing may hand over a flat empty array.
    assert DetectionTable([], [], [], []).boxes.shape == (0, 4)


def test_types_are_converted_and_shapes_checked():
    made = table()
    assert [getattr(made, name).dtype for name in ("image", "boxes", "scores", "labels")] == [
        np.int64, np.float64, np.float32, np.int32,
    ]  # fmt: skip
    kept = np.zeros((1, 4), np.float32)
    assert DetectionTable([0], kept, [0], [0]).boxes is kept
    assert DetectionTable([0], np.array([[1, 2, 3, 4]]), [0], [0]).boxes.dtype == np.float64
    for parts in (([0], [[1, 2, 3]], [0], [0]), ([0, 1], [[1, 2, 3, 4]], [0], [0]), ([0], [[1, 2, 3, 4]], [[0]], [0])):
        with pytest.raises(RetinaError, match=r"expected image \[n\], boxes \[n, 4\]"):
            DetectionTable(*parts)


def test_concatenate_keeps_the_order():
    both = concatenate([table(2), DetectionTable.empty(), table(1)])
    assert both.image.tolist() == [0, 1, 0]
    assert both.labels.tolist() == [1, 0, 0]
    assert both.scores.tolist() == [0.5, 0.25, 0.5]
    assert len(both) == 3


def test_to_coco_speaks_the_sources_ids():
    entries = to_coco(table(), dataset())
    assert entries == [
        {"image_id": "b", "category_id": 90, "bbox": [10.0, 20.0, 20.5, 40.0], "score": 0.5},
        {"image_id": "a", "category_id": 0, "bbox": [10.0, 20.0, 20.5, 40.0], "score": 0.25},
    ]
    back = columns(json.loads(json.dumps(entries)))
    for name in ("image", "scores", "labels"):
        np.testing.assert_array_equal(getattr(back, name), getattr(table(), name))
    np.testing.assert_array_equal(back.boxes, [[10.0, 20.0, 20.5, 40.0]] * 2)


def test_numpy_ids_become_plain_numbers():
    data = dataset(tuple(np.array([7, 0])), tuple(np.array([3, 5])))
    assert json.loads(json.dumps(to_coco(table(), data)))[1] == {
        "image_id": 0, "category_id": 3, "bbox": [10.0, 20.0, 20.5, 40.0], "score": 0.25,
    }  # fmt: skip


def test_float32_boxes_are_subtracted_in_float64():
    x1, x2 = np.float32(0.1), np.float32(1000.7)
    made = DetectionTable([0], np.array([[x1, 0, x2, 1]], np.float32), [0.5], [0])
    assert to_coco(made, dataset())[0]["bbox"][2] == float(x2) - float(x1)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (
            {"image_id": "c"},
            r"f.json: entry 1: image_id: expected one of the dataset's 2 images \(such as 'b'\), got 'c'",
        ),
        ({"image_id": ["a"]}, r"entry 1: image_id: .* got \['a'\]"),
        ({"category_id": 1}, r"entry 1: category_id: expected one of the dataset's 2 categories \(such as 0\), got 1"),
        ({"category_id": False}, r"entry 1: category_id: .* got False"),
        ({"bbox": [1, 2, 3]}, r"entry 1: expected bbox as four finite numbers x, y, width, height, got \[1, 2, 3\]"),
        ({"bbox": [1, 2, 3, "4"]}, r"entry 1: expected bbox as four finite numbers"),
        ({"bbox": [1, 2, float("nan"), 4]}, r"entry 1: expected bbox as four finite numbers"),
        ({"bbox": [1, 2, -3, 4]}, r"entry 1: expected a bbox with width and height of at least 0"),
        ({"score": None}, r"entry 1: expected a finite score, got None"),
        ({"score": float("inf")}, r"entry 1: expected a finite score, got inf;"),
        ({"score": np.float64(0.5)}, r"entry 1: expected a finite score, got np.float64"),
        ({"score": -1e200}, r"entry 1: expected a finite score, got -1e\+200 \(beyond 1e\+100\); fix"),
        ({"bbox": [1, 2, 3, 1e200]}, r"entry 1: expected bbox as four .*, got \[1, 2, 3, 1e\+200\] \(beyond 1e\+100\)"),
        ({"bbox": [1, 10**120, 3, 4]}, r"entry 1: expected bbox as four .* \(beyond 1e\+100\); fix"),
    ],
)
def test_bad_entry_is_named(bad, said):
    with pytest.raises(RetinaError, match=said):
        columns([entry(), entry(**bad)], "f.json")


def test_other_bad_results():
    with pytest.raises(RetinaError, match="f.json: expected a list of detections .* got dict"):
        columns({"annotations": []}, "f.json")
    with pytest.raises(RetinaError, match="entry 0: expected a mapping, got int"):
        columns([3])
    for key in entry():
        with pytest.raises(RetinaError, match=f"entry 0: .* but {key} is missing"):
            columns([{name: value for name, value in entry().items() if name != key}])


def test_rows_that_do_not_fit_the_dataset():
    check(table(), dataset())
    with pytest.raises(RetinaError, match="row 1: image: expected a row of the dataset, 0 to 0, got 1"):
        check(table(), dataset(("a",)))
    with pytest.raises(RetinaError, match="row 0: labels: expected a class of the dataset, 0 to 0, got 1"):
        to_coco(table(), dataset(category_ids=(4,)))
    with pytest.raises(RetinaError, match="row 0: boxes: expected x1 <= x2"):
        check(DetectionTable([0], [[5, 0, 4, 1]], [0.5], [0]), dataset())
