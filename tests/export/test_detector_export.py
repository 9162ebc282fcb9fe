"""`Detector.export` writes what `retina export` writes, certificate aside."""

import keras
import numpy as np
import pytest

from retina import config as configuration
from retina.errors import RetinaError
from retina.export import exporting
from retina.export.runner import open_artefact
from retina.inference import Predictor
from tests.export.small import assert_same, make_predictor, noise

if keras.backend.backend() != "tensorflow":
    pytest.skip("exports are written on TensorFlow", allow_module_level=True)

RESIZE = configuration.Resize(short=48, long=96, multiple=32)
FORMATS = ("onnx", "litert")  # a SavedModel is compared with `Detector.predict`


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return make_predictor()


@pytest.mark.slow
def test_an_export_gives_the_detections_of_predict(predictor, tmp_path):
    detector, images = predictor.detector, np.stack([noise(64, 96, seed) for seed in range(3)])
    detector.compile(optimizer="sgd")
    before = detector.get_weights()
    detector.train_on_batch(images, {"boxes": [[[8, 8, 40, 44]]] * 3, "classes": [[0], [1], [2]]})
    detector.set_weights(before)  # an untrained step leaves a network that finds nothing
    detections = detector.predict(images, verbose=0)
    detector.export(tmp_path / "model")
    for row, found in enumerate(open_artefact(tmp_path / "model").detect(list(images))):
        count = detections["num_detections"][row]
        assert count == len(found) > 0
        np.testing.assert_array_equal(found.labels, detections["labels"][row, :count])
        np.testing.assert_allclose(found.scores, detections["scores"][row, :count], rtol=0, atol=1e-5)
        np.testing.assert_allclose(found.boxes, detections["boxes"][row, :count], rtol=0, atol=1e-3)
    detector.image_size = None


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_every_format_detects_as_the_predictor(predictor, format, tmp_path):
    path = tmp_path / {"onnx": "model.onnx", "litert": "model.tflite"}[format]
    if format == "onnx":
        pytest.importorskip("tf2onnx")
    predictor.detector.export(path, format=format, resize=RESIZE)
    runner = open_artefact(path)
    images = [noise(64, 64), noise(100, 75, seed=1)]
    for image, found in zip(images, runner.detect(images), strict=True):
        (expected,) = predictor.predict([image])
        assert len(expected) and runner.class_names == predictor.class_names
        assert_same(found, expected)


def test_the_writers_are_handed_the_detector_and_its_settings(predictor, tmp_path, monkeypatch):
    calls = []

    def write(*arguments):
        calls.append(arguments)
        arguments[2].write_text(arguments[1])

    monkeypatch.setattr(exporting, "_write", write)
    detector = predictor.detector
    detector.export(tmp_path / "new" / "model", resize=RESIZE, category_ids=[7, 3, 90])
    detector.export(tmp_path / "model.onnx", format="onnx", resize=RESIZE, raw=True, orientation="upright")
    (first, *saved_model), (second, *onnx) = calls
    assert saved_model == ["saved_model", tmp_path / "new" / ".partial.model", None, {"category_ids": [7, 3, 90]}, None]
    assert onnx == ["onnx", tmp_path / ".partial.model.onnx", "float32", {"category_ids": None, "raw": True}, None]
    written = {
        path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*") if path.is_file()
    }
    assert written == {"new/model": "saved_model", "model.onnx": "onnx"}
    for handed, orientation in ((first, "stored"), (second, "upright")):
        assert handed.detector is detector
        assert (handed.config.data.resize, handed.config.data.orientation) == (RESIZE, orientation)
        for name, section in detector.sections._asdict().items():
            assert getattr(handed.config, name) == section


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "openvino"}, "expected a format of tf_saved_model"),
        ({}, "expected resize="),
        ({"resize": RESIZE, "precision": "float16"}, "has no effect on saved_model"),
        ({"resize": RESIZE, "raw": True}, "--raw: it has no effect on saved_model"),
        ({"resize": RESIZE.model_copy(update={"multiple": 48})}, "multiple of 32"),
        ({"resize": RESIZE, "format": "litert", "precision": "int8"}, "expected images of the training data"),
    ],
)
def test_what_cannot_be_exported(predictor, settings, message, tmp_path):
    with pytest.raises(RetinaError, match=message):
        predictor.detector.export(tmp_path / "model", **settings)
    assert not (tmp_path / "model").exists()


def test_the_size_of_fit_and_a_place_that_is_taken(predictor, tmp_path):
    detector = type(predictor.detector).from_config({**predictor.detector.get_config(), "image_size": [64, 96]})
    assert detector.image_size == (64, 96)
    assert detector.get_config()["image_size"] == (64, 96)
    with pytest.raises(RetinaError, match="there is something"):
        detector.export(tmp_path)
    assert not list(tmp_path.iterdir())
