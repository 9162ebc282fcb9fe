"""Prediction and evaluation run the same network on the same pixels; what `predict` takes and refuses."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from retina import config
from retina.data.batches.evaluation import evaluation_batches
from retina.data.dataset import DetectionDataset
from retina.errors import RetinaError
from retina.inference import (
    CocoMetrics,
    Detections,
    Predictor,
    build_detector,
    detect,
    detect_images,
    detect_in_tiles,
    detect_rows,
)
from retina.training.devices import Distribution
from retina.training.validation import Evaluator

SETTINGS = config.parse(
    {
        "data": {
            "train": {"format": "digits"},
            "validation": {"format": "digits"},
            "resize": {"short": 64, "long": 96, "multiple": 32},
        },
        "model": {
            "backbone": "keras_cv/resnet10",
            "fpn": {"channels": 16, "max_level": 5},
            # Untrained, yet with scores to look at.
            "head": {"channels": 16, "layers": 1, "prior": 0.3, "init_std": 0.1},
        },
        "schedule": {"kind": "cosine", "steps": 1},
        "inference": {"max_detections": 20},
    }
)
SIZES = [(64, 96), (50, 50), (48, 72), (128, 128), (64, 96)]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    keras.utils.set_random_seed(1)
    return Predictor(build_detector(SETTINGS, ("ring", "cross")), SETTINGS)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> DetectionDataset:
    """Five images of four sizes in two canvases, so that batches of two need a filler."""
    folder = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    for number, (height, width) in enumerate(SIZES):
        small = random.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        Image.fromarray(small).resize((width, height)).save(folder / f"{number}.png")
    return DetectionDataset(
        name="photographs",
        class_names=("ring", "cross"),
        category_ids=(1, 2),
        image_ids=tuple(range(len(SIZES))),
        images=tuple(str(folder / f"{number}.png") for number in range(len(SIZES))),
        sizes=np.array(SIZES),
        offsets=np.zeros(len(SIZES) + 1),
        boxes=np.zeros((0, 4)),
        labels=np.zeros(0),
        crowd=np.zeros(0),
        difficult=np.zeros(0),
        areas=np.zeros(0),
    )


@pytest.fixture(scope="module")
def predictions(predictor, photographs) -> list[Detections]:
    return predictor.predict(list(photographs.images))


def assert_same(first: Detections, second: Detections, atol: float = 0.0) -> None:
    np.testing.assert_allclose(first.boxes, second.boxes, rtol=0, atol=atol)
    np.testing.assert_allclose(first.scores, second.scores, rtol=0, atol=atol)
    np.testing.assert_array_equal(first.labels, second.labels)
    assert first.names == second.names


def test_no_images_give_no_detections(predictor):
    assert predictor.predict([]) == []
    assert predictor.predict(()) == []
    assert predictor.predict(np.zeros((0, 64, 64, 3), np.uint8)) == []


def test_detections_by_falling_score_inside_their_own_image(predictions):
    assert len(predictions) == len(SIZES)
    for found, (height, width) in zip(predictions, SIZES, strict=True):
        assert 0 < len(found) <= 20
        assert (np.diff(found.scores) <= 0).all() and found.scores.min() > 0.05
        assert (found.boxes >= 0).all()
        assert (found.boxes[:, 2] <= width + 1e-3).all() and (found.boxes[:, 3] <= height + 1e-3).all()
        assert found.names == tuple(("ring", "cross")[label] for label in found.labels)
        assert (found.boxes.dtype, found.scores.dtype, found.labels.dtype) == (np.float32, np.float32, np.int32)


def test_prediction_is_evaluation(predictor, photographs, predictions):
    table = detect(predictor.run, photographs, evaluation_batches(photographs, SETTINGS.data, batch_size=2))
    assert set(table.image.tolist()) == set(range(len(SIZES)))
    for row, found in enumerate(predictions):
        mine = table.image == row
        names = tuple(predictor.class_names[label] for label in table.labels[mine])
        evaluated = Detections(table.boxes[mine], table.scores[mine], table.labels[mine], names)
        assert_same(found, evaluated, atol=1e-4)


def test_paths_arrays_and_lists_give_the_same(predictor, photographs, predictions):
    path = photographs.images[1]
    pixels = np.asarray(Image.open(path))
    for given in (path, pixels, [path], [pixels], pixels[None], (image for image in [path])):
        found = predictor.predict(given)
        assert len(found) == 1
        assert_same(found[0], predictions[1])


def test_pillow_images_and_bytes_give_the_same(predictor, photographs, predictions):
    path = Path(photographs.images[1])
    with Image.open(path) as image:
        rgba = image.convert("RGBA")
        for given in (image, [image], rgba, path.read_bytes()):
            (result,) = predictor.predict(given)
            assert_same(result, predictions[1])
        grey = image.convert("L")
        (result,) = predictor.predict(grey)
        assert_same(result, predictor.predict(np.stack([np.asarray(grey)] * 3, axis=-1))[0])


@pytest.mark.parametrize(
    ("image", "remedy"),
    [
        (np.zeros((8, 8)), r"float64 \[8, 8\]; give \(255 \* image\).round\(\).astype\('uint8'\)"),
        (np.full((8, 8, 3), 200.0), r"scale it to 0..255"),
        (np.zeros((8, 8), np.uint8), r"three times: np.stack\(\[image\] \* 3, axis=-1\)"),
        (np.zeros((8, 8, 4), np.uint8), r"image\[..., :3\]"),
        (np.zeros((3, 8, 8), np.uint8), r"image.transpose\(1, 2, 0\)"),
        (Image.fromarray(np.zeros((8, 8), np.uint16)), r"got Pillow's mode I;16; scale it to 0..255"),
        (b"no image", "it is not an image"),
    ],
)
def test_what_is_no_image_of_bytes_says_what_to_do(predictor, image, remedy):
    with pytest.raises(RetinaError, match=remedy):
        predictor.predict(image)


def test_the_array_handed_in_stays_as_it_was(predictor):
    pixels = np.full((40, 60, 3), 7, np.uint8)
    predictor.predict(pixels)
    np.testing.assert_array_equal(pixels, 7)


@pytest.mark.parametrize(
    ("image", "came"),
    [
        (np.zeros((8, 8, 3), np.float32), r"float32 \[8, 8, 3\]"),
        (np.zeros((8, 8, 4), np.uint8), r"uint8 \[8, 8, 4\]"),
        (np.zeros((3, 8, 8), np.uint8), r"uint8 \[3, 8, 8\]"),
        (np.zeros((0, 8, 3), np.uint8), r"uint8 \[0, 8, 3\]"),
        ([np.zeros((8, 8), np.uint8)], r"uint8 \[8, 8\]"),
        ([7], r"int64 \[\]"),
    ],
)
def test_arrays_that_are_no_images_are_refused(predictor, image, came):
    with pytest.raises(RetinaError, match=rf"predict: expected uint8 RGB \[H, W, 3\], got {came}"):
        predictor.predict(image)


def test_a_missing_file_is_named(predictor, tmp_path):
    with pytest.raises(RetinaError, match="nowhere.jpg: expected an image file"):
        predictor.predict(tmp_path / "nowhere.jpg")


def test_a_damaged_file_is_named(predictor, photographs, tmp_path):
    (tmp_path / "half.png").write_bytes(Path(photographs.images[0]).read_bytes()[:200])
    with pytest.raises(RetinaError, match="half.png: .*damaged or cut short"):
        predictor.predict([photographs.images[0], tmp_path / "half.png"])


def test_a_tiny_image_works(predictor):
    found = predictor.predict(np.zeros((1, 1, 3), np.uint8))[0]
    assert (found.boxes >= 0).all() and (found.boxes <= 1).all()


def test_an_empty_dataset_gives_an_empty_table(predictor, photographs):
    nothing = photographs.subset([])
    assert len(detect(predictor.run, nothing, evaluation_batches(nothing, SETTINGS.data, batch_size=2))) == 0


# ---------------------------------------------------------------------------------------------------- Detections


def made_up() -> Detections:
    boxes = np.array([[0, 0, 1, 2], [1, 1, 3, 3], [0, 0, 9, 9]], np.float32)
    return Detections(boxes, np.array([0.75, 0.5, 0.25], np.float32), np.array([1, 0, 1], np.int32), ("b", "a", "b"))


@pytest.mark.parametrize(("score", "kept"), [(0.0, 3), (0.5, 2), (0.51, 1), (1.0, 0)])
def test_above_keeps_its_own_score(score, kept):
    found = made_up().above(score)
    assert len(found) == kept == len(found.boxes) == len(found.labels)
    assert found.names == ("b", "a", "b")[:kept]


def test_to_list_is_plain_json():
    assert json.loads(json.dumps(made_up().above(0.5).to_list())) == [
        {"name": "b", "label": 1, "score": 0.75, "box": [0.0, 0.0, 1.0, 2.0]},
        {"name": "a", "label": 0, "score": 0.5, "box": [1.0, 1.0, 3.0, 3.0]},
    ]
    assert made_up().above(1.0).to_list() == []


def test_a_detector_for_a_checkpoint_needs_no_preset():
    with_preset = config.override(
        SETTINGS,
        [
            "model={weights: resnet50_imagenet, backbone: keras_cv/resnet10, pixel_mean: [0.0, 0.0, 0.0], "
            "pixel_std: [255.0, 255.0, 255.0]}"
        ],
    )
    detector = build_detector(with_preset, ("a",), load_weights=False)
    assert detector.class_names == ("a",)
    assert detector.sections.model.weights == "resnet50_imagenet"


# ---------------------------------------------------------------------------------------------------------- CocoMetrics

BOX, FAR = [10.0, 10, 60, 60], [100.0, 100, 150, 150]


def batch_of_boxes(*images, fields=("boxes", "labels")):
    """Padded fields of images, each a list of (box, label) or (box, label, score)."""
    width = max(map(len, images), default=0)
    boxes = np.full((len(images), width, 4), -1, np.float32)
    rest = [np.full((len(images), width), -1, kind) for kind in (np.int64, np.float32)]
    for row, image in enumerate(images):
        for slot, (box, *values) in enumerate(image):
            boxes[row, slot] = box
            for field, value in zip(rest, values, strict=False):
                field[row, slot] = value
    return {"boxes": boxes, "labels": rest[0], "scores": rest[1], "num_detections": np.array(list(map(len, images)))}


def test_coco_metrics_by_hand():
    """A class that is found, one that is not, a false alarm after the hit, an image without anything."""
    metric = CocoMetrics()
    metric.update_state(batch_of_boxes([(BOX, 0), (FAR, 1)]), batch_of_boxes([(BOX, 0, 0.9), (FAR, 0, 0.8)]))
    metric.update_state(batch_of_boxes([]), batch_of_boxes([]))
    np.testing.assert_allclose([metric.result()["AP"], metric.result()["AR100"]], 0.5, rtol=1e-9)
    # Of the third image's two boxes of class 0 none is found: 2 of 3 are missing.
    metric.update_state(batch_of_boxes([(BOX, 0), (FAR, 0)]), batch_of_boxes([]))
    np.testing.assert_allclose(metric.result()["AR100"], (1 / 3 + 0) / 2)
    metric.reset_state()
    metric.update_state(batch_of_boxes([(BOX, 2)]), batch_of_boxes([(BOX, 2, 0.1)]))
    np.testing.assert_allclose([metric.result()["AP50"], metric.result()["APs"]], [1, -1], rtol=1e-9)


def test_coco_metrics_of_our_batches():
    """Slots by `valid`; a crowd is neither a hit nor a miss."""
    metric = CocoMetrics()
    true = batch_of_boxes([(BOX, 0), (FAR, 0), (FAR, 0)])
    true |= {"valid": np.array([[True, True, False]]), "crowd": np.array([[False, True, False]])}
    metric.update_state(true, batch_of_boxes([(BOX, 0, 0.1), (FAR, 0, 0.9)]))
    np.testing.assert_allclose([metric.result()["AP"], metric.result()["AR1"]], [1, 0], rtol=1e-9)


def test_coco_metrics_serialise_and_refuse():
    metric = CocoMetrics(config.Evaluation(max_detections=(1, 5)), name="mine")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(metric))
    assert again.get_config() == metric.get_config() and again.evaluation.max_detections == (1, 5)
    with pytest.raises(RetinaError, match="CocoMetrics: expected images, got none"):
        metric.result()
    with pytest.raises(RetinaError, match="CocoMetrics: sample_weight"):
        metric.update_state({}, {}, np.ones(1))


# ----------------------------------------------------------------------------------------------------------- tiles


def test_tiles_go_to_the_detector_in_batches_of_one_size_and_come_back_in_their_places():
    """The objects are squares of a grey of their own, which the detector sees without error."""
    image = np.zeros((150, 330, 3), np.uint8)
    corners = [(5, 5), (85, 30), (95, 100), (170, 70), (250, 10), (310, 130)]
    for grey, (x, y) in enumerate(corners, start=1):
        image[y : y + 20, x : x + 20] = grey
    batches = []

    def squares(images):
        batches.append([pixels.shape for pixels in images])
        return [_squares(pixels[..., 0]) for pixels in images]

    found = detect_in_tiles(squares, image, ("square",) * 7, config.Inference(batch_size=3), 100, 0.3)
    boxes = [[x, y, x + 20, y + 20] for x, y in corners]
    assert sorted(found.boxes.tolist()) == sorted(boxes) and len(found.names) == len(boxes)
    assert found.boxes.dtype == found.scores.dtype == np.float32
    assert batches == [[(150, 330, 3)], *[[(100, 100, 3)] * 3] * 3, [(100, 100, 3)]]


def _squares(grey: np.ndarray) -> Detections:
    boxes = []
    for value in np.unique(grey[grey > 0]):
        rows, columns = np.nonzero(grey == value)
        boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    array = np.array(boxes, np.float32).reshape(-1, 4)
    labels = np.zeros(len(array), np.int32)
    return Detections(array, np.full(len(array), 0.5, np.float32), labels, ("square",) * len(array))


def test_an_image_of_one_tile_is_detected_as_ever(predictor):
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    (whole,), (tiled,) = predictor.predict(image), predictor.predict(image, tile=90)
    np.testing.assert_array_equal(whole.boxes, tiled.boxes)
    (tiles,) = predictor.predict(image, tile=40, overlap=0.5)
    assert tiles.boxes.shape == (len(tiles), 4) and (tiles.boxes >= 0).all() and (tiles.boxes[:, 2] <= 90).all()
    with pytest.raises(RetinaError, match="--tile 8: expected at least 32 pixels"):
        predictor.predict(image, tile=8)


def test_evaluations_in_tiles_detect_what_predictions_in_tiles_do(predictor, photographs):
    """Of a run's evaluation and of a training's."""
    tiles = config.Evaluation(tiles=config.Tiles(size=40, overlap=0.5))
    settings = SETTINGS.model_copy(update={"evaluation": tiles})
    predicted = predictor.predict(list(photographs.images), tile=40, overlap=0.5)
    evaluator = Evaluator(settings, photographs, None, predictor.detector, Distribution())
    detector = partial(detect_images, predictor.run, settings, photographs.class_names)
    for table in (
        detect_rows(detector, photographs, range(len(photographs)), settings),
        evaluator.detect(evaluator.batches),
    ):
        assert table.image.tolist() == np.repeat(np.arange(5), [len(detections) for detections in predicted]).tolist()
        for name in ("boxes", "scores", "labels"):
            expected = np.concatenate([getattr(detections, name) for detections in predicted])
            assert getattr(table, name).tobytes() == expected.tobytes()
    other = dataclasses.replace(photographs, sizes=photographs.sizes + 1)
    with pytest.raises(RetinaError, match="0.png: expected 97x65 pixels .* as declared, the image has 96x64"):
        detect_rows(detector, other, [0], settings)


def test_the_digest_is_that_of_the_weights(predictor):
    before = predictor.digest()
    bias = predictor.detector.trainable_variables[-1]
    value = keras.ops.convert_to_numpy(bias)
    bias.assign(value + 1)
    assert predictor.digest() != before
    bias.assign(value)
    assert predictor.digest() == before
