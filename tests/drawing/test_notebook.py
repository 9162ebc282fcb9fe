"""`retina.draw`, `retina.show` and `retina.load_dataset`."""

import dataclasses
import types

import numpy as np
import pytest

import retina
from retina.drawing import pictures
from retina.drawing.notebook import Dataset, draw, load_dataset, show
from retina.errors import RetinaError
from retina.inference import Detections
from tests.data.formats import folders

IMAGE = np.full((480, 640, 3), 128, np.uint8)
BOXES, LABELS, SCORES = np.array([[10, 20, 300, 400], [50, 60, 200, 220]], np.float32), [1, 0], [0.9, 0.5]
PLAIN = {"boxes": BOXES, "labels": LABELS, "scores": SCORES}


@pytest.fixture(scope="module")
def digits():
    return load_dataset(retina.load_config(overrides=["data.train.images=5"]))


@pytest.mark.parametrize(
    "detections",
    [
        PLAIN,
        types.SimpleNamespace(**{**PLAIN, "labels": np.array(LABELS)}, names=("1", "0")),
        {"boxes": BOXES, "classes": np.array(LABELS), "confidence": np.array(SCORES)},
        {
            "boxes": np.concatenate([BOXES, BOXES]),
            "labels": [*LABELS, 1, 1],
            "scores": [*SCORES, 0, 0],
            "num_detections": np.int32(2),
        },
        {"boxes": np.concatenate([BOXES, BOXES]), "labels": [*LABELS, -1, -1], "scores": [*SCORES, 0, 0]},
    ],
    ids=["names of retina", "Detections", "names of keras_cv", "num_detections", "padded with -1"],
)
def test_draws_what_the_room_of_drawing_does(detections):
    expected = pictures.draw(IMAGE, BOXES, np.array(LABELS), ["0", "1"], np.array(SCORES))
    np.testing.assert_array_equal(draw(IMAGE, detections), expected)
    assert (expected != IMAGE).any()


def test_names_of_detections_and_of_the_caller():
    named = types.SimpleNamespace(boxes=BOXES, labels=np.array(LABELS), scores=None, names=("dog", "cat"))
    expected = pictures.draw(IMAGE, BOXES, np.array(LABELS), ["cat", "dog"])
    np.testing.assert_array_equal(draw(IMAGE, named), expected)
    for names in (["cat", "dog"], np.array(["cat", "dog"])):
        np.testing.assert_array_equal(draw(IMAGE, {**PLAIN, "scores": None}, class_names=names), expected)


def test_a_class_has_its_colour_in_every_image_of_a_detector():
    """Also where the others are not in the image, whose ranks decide on it."""
    row, classes = {"boxes": BOXES[:1], "scores": np.array([0.5])}, ("dog", "ant", "cat")
    expected = pictures.draw(IMAGE, BOXES[:1], [0], classes, [0.5])
    detections = Detections(**row, labels=np.array([0]), names=("dog",), class_names=classes)
    np.testing.assert_array_equal(draw(IMAGE, detections), expected)
    np.testing.assert_array_equal(draw(IMAGE, detections.above(0.2)), expected)
    assert (draw(IMAGE, dataclasses.replace(detections, class_names=())) != expected).any()


def test_ground_truth_alone_is_dashed():
    truth = {"boxes": BOXES, "labels": LABELS}
    expected = pictures.draw(
        IMAGE, BOXES[:0], np.zeros(0, int), ["0", "1"], truth_boxes=BOXES, truth_labels=np.array(LABELS)
    )
    np.testing.assert_array_equal(draw(IMAGE, ground_truth=truth), expected)
    np.testing.assert_array_equal(draw(IMAGE), IMAGE)


def test_shows_several_side_by_side():
    batch = {"boxes": np.stack([BOXES, BOXES]), "labels": np.array([LABELS, [0, -1]])}
    rows = [{"boxes": BOXES, "labels": LABELS}, {"boxes": BOXES[:1], "labels": [0]}]
    expected = pictures.contact_sheet([draw(IMAGE, row) for row in rows], 3, max_side=480)
    for images in ([IMAGE, IMAGE], np.stack([IMAGE, IMAGE])):
        np.testing.assert_array_equal(show(images, batch), expected)
        np.testing.assert_array_equal(show(images, rows), expected)
    assert show(IMAGE, PLAIN).size == (480 + 24, 360 + 24)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: draw(IMAGE, {"boxes": BOXES}), "draw: detections: expected boxes and labels, got dict"),
        (lambda: draw(IMAGE, None, {"boxes": BOXES[None], "labels": [LABELS]}), "of a single image"),
        (lambda: draw(IMAGE[..., 0]), r"expected an image \[H, W, 3\]"),
        (lambda: draw(IMAGE, PLAIN, class_names=["cat"]), "expected labels from 0 to 0, got 0 to 1"),
        (lambda: show([IMAGE] * 3, [PLAIN]), "show: detections: expected those of 3 images, got 1"),
    ],
)
def test_refused(call, message):
    with pytest.raises(RetinaError, match=message):
        call()


def test_a_dataset(digits):
    table = digits.table
    figures = digits.summary()
    assert figures["images"] == len(digits) == 5 and figures["boxes"] == len(table.boxes)
    assert sum(figures["boxes_per_class"].values()) == len(table.boxes)
    assert list(figures["boxes_per_class"]) == list(digits.class_names)
    sides = np.sqrt((table.boxes[:, 2] - table.boxes[:, 0]) * (table.boxes[:, 3] - table.boxes[:, 1]))
    assert figures["median_side"] == np.median(sides)
    of_each = [draw(digits.image(row), table.objects(row), class_names=digits.class_names) for row in range(2)]
    np.testing.assert_array_equal(digits.show(2), pictures.contact_sheet(of_each, 3, max_side=480))
    page = digits._repr_html_()
    assert page.startswith("<table>") and "<td>images</td><td>5</td>" in page


def test_batches_are_those_of_training(digits):
    batches = list(digits.as_dataset(batch_size=2))
    assert len(batches) == 3 and batches[0]["images"].shape[0] == 2
    shown = np.concatenate([batch["index"] for batch in batches])
    assert set(shown.tolist()) == set(range(5))


def test_a_folder_with_splits(tmp_path):
    folders.ultralytics(tmp_path)
    dataset = retina.load_dataset(tmp_path)  # its training split
    assert isinstance(dataset, Dataset) and len(dataset) == 3
    assert dataset.summary()["boxes_per_class"] == {"cat": 2, "dog": 1}
    assert len(retina.load_dataset(str(tmp_path), "val")) == 2
    with pytest.raises(RetinaError, match="split: expected one of .*, got 'elsewhere'; choose one"):
        retina.load_dataset(tmp_path, "elsewhere")
