"""A SavedModel against the predictor that it was written from: bit for bit, in a graph without Python."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from PIL import Image

from retina import config
from retina.errors import RetinaError

if keras.backend.backend() != "tensorflow":
    pytest.skip("a SavedModel is written on TensorFlow", allow_module_level=True)

import tensorflow as tf

from retina.data.batches.evaluation import canvas_image
from retina.data.images import load_image
from retina.export.description import portable
from retina.export.runner import format_of, open_artefact
from retina.export.saved_model import open_saved_model, read_description, write_saved_model
from retina.export.serving import Serving
from retina.inference import Predictor, build_detector
from retina.models.decode import decode

SETTINGS = [
    "data.train={format: digits, images: 4, size: 64}",
    "data.resize={short: 48, long: 96, multiple: 32}",
    "model.fpn={channels: 16, max_level: 5}",
    "model.head={channels: 16, layers: 1, prior: 0.2, norm: none, init_std: 0.1}",
    "inference={max_detections: 20}",
]
CLASSES = ("zèbre", "cat", "dog")


def encoded(width: int, height: int, seed: int = 0, kind: str = "PNG") -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, kind)
    return out.getvalue()


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    keras.utils.set_random_seed(1)
    settings = config.load(None, SETTINGS)
    return Predictor(build_detector(settings, CLASSES), settings)


@pytest.fixture(scope="module")
def folder(predictor, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "model"
    write_saved_model(predictor, folder, category_ids=[7, 3, 90], notes={"run": "made up"})
    return folder


@pytest.fixture(scope="module")
def runner(folder):
    return open_artefact(folder)


@pytest.fixture(scope="module")
def serve(runner):
    """The signature `serving_default` of a list of bytes, as arrays."""

    def call(*images: bytes) -> dict[str, np.ndarray]:
        found = runner.module.signatures["serving_default"](image_bytes=tf.constant(list(images), tf.string))
        return {name: value.numpy() for name, value in found.items()}

    return call


def assert_equal(ours, theirs) -> None:
    assert len(ours) > 0
    for name in ("boxes", "scores", "labels"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert ours.names == theirs.names


# ----------------------------------------------------------------------------------------------- empty and bad inputs


def test_an_empty_batch(serve):
    found = serve()
    assert {name: value.shape for name, value in found.items()} == {
        "boxes": (0, 20, 4),
        "scores": (0, 20),
        "labels": (0, 20),
        "label_names": (0, 20),
        "num_detections": (0,),
        "readable": (0,),
    }


def test_an_empty_batch_of_arrays(runner):
    found = runner.module.signatures["images"](images=tf.zeros([0, 40, 50, 3], tf.uint8))
    assert found["boxes"].shape == (0, 20, 4)


@pytest.mark.parametrize("bad", [b"", b"not an image", encoded(40, 30)[:60], encoded(40, 30, kind="JPEG")[:80]])
def test_a_bad_image_alone_and_among_good_ones(serve, predictor, bad):
    found = serve(bad)
    assert found["num_detections"].tolist() == [0] and found["readable"].tolist() == [False]
    assert not found["boxes"].any() and not found["scores"].any() and set(found["label_names"].ravel()) == {b""}
    good, third, other = encoded(64, 48, 1), encoded(64, 48, 3), encoded(48, 64, 2)
    served, undisturbed = serve(good, bad, other), serve(good, third, other)
    assert served["readable"].tolist() == [True, False, True]
    for row, image in ((0, good), (2, other)):
        for name in ("boxes", "scores", "labels", "num_detections"):
            np.testing.assert_array_equal(served[name][row], undisturbed[name][row])
        # The size of a batch moves sums by rounding on some processors (AMD EPYC: 2e-5 px).
        expected = predictor.predict(load_image(image))[0]
        assert served["num_detections"][row] == len(expected) > 0
        np.testing.assert_allclose(served["boxes"][row, : len(expected)], expected.boxes, rtol=1e-5, atol=1e-4)


def test_arrays_without_pixels(runner):
    found = runner.module.signatures["images"](images=tf.zeros([2, 0, 5, 3], tf.uint8))
    assert found["num_detections"].numpy().tolist() == [0, 0] and not found["readable"].numpy().any()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"", "image: expected an image, it is empty"),
        (b"not an image", "it is not an image"),
        (Path("nowhere.png"), "nowhere.png: expected an image file, cannot read it"),
        (np.zeros((4, 5), np.uint8), "expected uint8 RGB"),
        (np.zeros((4, 5, 3), np.float32), "expected uint8 RGB"),
    ],
)
def test_the_runner_refuses_with_the_reason(runner, image, message):
    with pytest.raises(RetinaError, match=message):
        runner.detect([image])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score_threshold": 1.5}, "score_threshold: expected 0 to 1"),
        ({"nms_iou": -0.1}, "nms_iou: expected 0 to 1"),
        ({"max_detections": 0}, "max_detections: expected at least 1"),
    ],
)
def test_settings_that_mean_nothing(runner, options, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        runner.module.detect(tf.constant([encoded(64, 48)]), **options)


def test_a_folder_in_use_is_refused(predictor, folder):
    with pytest.raises(RetinaError, match="expected a new folder"):
        write_saved_model(predictor, folder)


def test_what_is_no_export(tmp_path):
    assert format_of(tmp_path) is None and format_of(tmp_path / "none.onnx") is None
    for path in (tmp_path, tmp_path / "none.onnx"):
        with pytest.raises(RetinaError, match="expected an export"):
            open_artefact(path)
    with pytest.raises(RetinaError, match="no saved_model.pb"):
        open_saved_model(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"x")
    assert format_of(tmp_path) == "saved_model"
    with pytest.raises(RetinaError, match="expected the description of an export"):
        open_artefact(tmp_path)
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "retina.json").write_text('{"class_names": ["a"], "category_ids": [1], "config": {}}')
    with pytest.raises(RetinaError, match="cannot load it"):
        open_artefact(tmp_path)


# ------------------------------------------------------------------------------------------------------------ equality


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (200, 31), (1, 90), (96, 96)])
def test_every_size_gives_what_prediction_gives(predictor, runner, size):
    image = encoded(*size)
    expected = predictor.predict(load_image(image))[0]
    for given in (image, load_image(image)):
        assert_equal(expected, runner.detect([given])[0])


def test_a_file_of_each_format(predictor, runner, tmp_path):
    for kind in ("JPEG", "WEBP", "BMP", "GIF"):
        path = tmp_path / f"image.{kind.lower()}"
        path.write_bytes(encoded(70, 50, kind=kind))
        assert_equal(predictor.predict(path)[0], runner.detect([path])[0])


def test_a_batch_of_one_canvas_goes_through_the_network_together(predictor, serve):
    images = [encoded(64, 48, seed) for seed in range(3)]
    found = serve(*images)
    for row, image in enumerate(images):
        expected = predictor.predict(load_image(image))[0]
        assert found["num_detections"][row] == len(expected)
        # Convolutions of a batch round otherwise than those of one image.
        np.testing.assert_allclose(found["boxes"][row, : len(expected)], expected.boxes, atol=1e-3)


def test_a_batch_of_arrays(predictor, runner):
    images = np.stack([load_image(encoded(70, 50, seed)) for seed in range(2)])
    found = runner.module.signatures["images"](images=tf.constant(images))
    for row in range(2):
        expected = predictor.predict(images[row])[0]
        assert int(found["num_detections"][row]) == len(expected)
        np.testing.assert_allclose(found["boxes"][row, : len(expected)], expected.boxes, atol=1e-3)


def test_slots_behind_the_last_detection_are_empty(runner, serve):
    sixth = float(serve(encoded(64, 48))["scores"][0, 5])
    found = runner.module.detect(tf.constant([encoded(64, 48)]), score_threshold=sixth, max_detections=50)
    count = int(found["num_detections"][0])
    assert found["boxes"].shape == (1, 50, 4) and 5 <= count <= 6  # the sixth stands on the threshold
    for name in ("boxes", "scores", "labels"):
        assert not np.asarray(found[name])[0, count:].any()
    names = found["label_names"].numpy()[0]
    assert set(names[count:]) == {b""}
    assert names[:count].tolist() == [CLASSES[k].encode() for k in found["labels"].numpy()[0, :count]]


def test_raw_is_the_network(predictor, runner):
    canvas = np.random.default_rng(0).integers(0, 256, (2, 32, 64, 3), np.uint8)
    size = np.array([[32, 64], [20, 64]], np.int32)
    found = runner.module.signatures["raw"](canvas=tf.constant(canvas), size=tf.constant(size))
    expected = predictor.detector({"images": tf.constant(canvas), "size": tf.constant(size)}, training=False)
    assert set(found) == {"logits", "deltas"}
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------- options


def test_options_default_to_the_trained_settings(predictor, runner):
    image = encoded(64, 48)
    expected = predictor.predict(load_image(image))[0]
    found = runner.module.detect(tf.constant([image]))
    np.testing.assert_array_equal(found["boxes"][0, : len(expected)], expected.boxes)
    assert int(found["num_detections"][0]) == len(expected)
    found = runner.module.detect_images(tf.constant(load_image(image)[None]))
    np.testing.assert_array_equal(found["scores"][0, : len(expected)], expected.scores)


def test_options_are_those_of_the_configuration(predictor, runner):
    """A threshold, an IoU and a number handed in give what decoding configured with them gives."""
    pixels = load_image(encoded(64, 48))
    canvas, scale, size = canvas_image(pixels, predictor.config.data.resize)
    batch = {"images": canvas[None], "size": size[None], "scale": scale[None]}
    detector = predictor.detector
    inference = config.Inference(score_threshold=0.22, nms_iou=0.2, max_detections=7)
    expected = decode(
        detector(batch, training=False),
        detector.level_anchors(canvas.shape[:2]),
        size[None],
        scale[None],
        inference=inference,
    )
    count = int(np.sum(expected["valid"]))
    assert 0 < count <= 7
    options = {"score_threshold": tf.constant(0.22), "nms_iou": tf.constant(0.2), "max_detections": tf.constant(7)}
    for found in (
        runner.module.signatures["serving_with_options"](image_bytes=tf.constant([encoded(64, 48)]), **options),
        runner.module.signatures["images_with_options"](images=tf.constant(pixels[None]), **options),
    ):
        assert int(found["num_detections"][0]) == count
        np.testing.assert_allclose(found["boxes"][0, :count], expected["boxes"][0, :count], atol=1e-3)


def test_an_overlap_without_effect_is_refused(predictor):
    """Gaussian suppression has no threshold; the other options work."""
    sections = predictor.detector.sections
    gaussian = sections.inference.model_copy(update={"suppression": "gaussian"})
    serving = Serving.__new__(Serving)
    serving.detector = SimpleNamespace(sections=sections._replace(inference=gaussian))
    given = [tf.constant(0.3), tf.constant(gaussian.nms_iou), tf.constant(5)]
    limits = serving._limits(*given)
    assert limits.suppression == "gaussian" and float(limits.score_threshold) == pytest.approx(0.3)
    given[1] = tf.constant(0.2)
    with pytest.raises(tf.errors.InvalidArgumentError, match="nms_iou: without effect on gaussian suppression"):
        serving._limits(*given)


def test_the_defaults_stand_in_the_signature(folder):
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    saved = SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    signatures = saved.meta_graphs[0].signature_def
    assert set(signatures["serving_default"].inputs) == {"image_bytes"}
    recorded = {name: tf.make_ndarray(value) for name, value in signatures["serving_with_options"].defaults.items()}
    assert {name: pytest.approx(value) for name, value in recorded.items()} == {
        "score_threshold": 0.05,
        "nms_iou": 0.5,
        "max_detections": 20,
    }


# ------------------------------------------------------------------------------------------------------- what is inside


def test_no_python_and_no_training_in_the_graph(folder):
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    graph = SavedModel.FromString((folder / "saved_model.pb").read_bytes()).meta_graphs[0].graph_def
    kinds = {node.op for node in graph.node} | {node.op for f in graph.library.function for node in f.node_def}
    assert "Conv2D" in kinds
    assert [kind for kind in kinds if "PyFunc" in kind or "Gradient" in kind or "Backprop" in kind] == []


@pytest.mark.parametrize("signature", ["images", "raw"])
def test_openvino_converts_what_takes_no_files(runner, signature):
    """Decoding is TensorFlow's own; what takes pixels has no operation that others can't convert."""
    openvino = pytest.importorskip("openvino")
    converted = openvino.convert_model(runner.module.signatures[signature])
    for output in converted.outputs:
        if "label_names" in output.names:  # the CPU has no kernels of strings
            converted.remove_result(output.node)
    # Of twice the size: other ratios round a few pixels the other way in OpenVINO.
    pixels = np.random.default_rng(0).integers(0, 256, (1, 96, 128, 3), np.uint8)
    inputs = {"images": pixels} if signature == "images" else {"canvas": pixels, "size": np.array([[96, 90]], np.int32)}
    expected = runner.module.signatures[signature](**{name: tf.constant(value) for name, value in inputs.items()})
    compiled = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    outputs = compiled(inputs)
    found = {name: value for output, value in outputs.items() for name in output.names}
    names = ("boxes", "scores") if signature == "images" else ("logits", "deltas")
    for name in names:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-2)


def test_no_bitcast_in_the_graph(folder):
    """TensorFlow.js has none, and OpenVINO stops at it."""
    assert b"Bitcast" not in (folder / "saved_model.pb").read_bytes()


def test_no_place_of_the_machine_that_trained():
    settings = config.load(None, [*SETTINGS, "data.root=/srv/me/data", "model.weights=null", "run.seed=3"])
    moved = portable(settings)
    assert moved.data.root == Path("data") and "/srv" not in config.to_yaml(moved)
    assert moved.model_copy(update={"data": settings.data}) == settings
    relative = config.load(None, [*SETTINGS, "data.root=../data"])
    assert portable(relative) == relative


def test_the_description(folder, predictor, runner):
    document = read_description(folder)
    assert document["class_names"] == list(CLASSES) and document["category_ids"] == [7, 3, 90]
    assert document["config"] == predictor.config.model_dump(mode="json") and document["run"] == "made up"
    assert set(document["signatures"]) == set(runner.module.signatures)
    assert config.load(folder / "assets" / "config.yaml") == predictor.config
    assert runner.class_names == CLASSES
    # With TensorFlow alone the path of the file is at hand too.
    paths = [Path(asset.asset_path.numpy().decode()) for asset in runner.module.files]
    assert json.loads(paths[0].read_text(encoding="utf-8")) == document


def test_the_warm_up_requests_are_photographs_of_the_trained_size(folder):
    file = folder / "assets.extra" / "tf_serving_warmup_requests"
    records = [record.numpy() for record in tf.data.TFRecordDataset(str(file))]
    sizes = []
    for record in records:
        assert b"serving_default" in record
        sizes.append(load_image(record[record.index(b"\xff\xd8") :]).shape[:2])
    assert sizes == [(48, 64), (64, 48)]


def test_folded_batch_normalisations_change_the_last_digits_only(predictor):
    folding = config.override(predictor.config, ["export.fold_batch_norm=true"])
    canvas = np.random.default_rng(0).integers(0, 256, (1, 32, 64, 3), np.uint8)
    inputs = tf.constant(canvas), tf.constant([[32, 64]])
    plain, folded = Serving(predictor.detector, predictor.config), Serving(predictor.detector, folding)
    assert plain.weights and not folded.weights  # constants of the graph instead
    ours, theirs = plain.raw(*inputs), folded.raw(*inputs)
    for name in ("logits", "deltas"):
        np.testing.assert_allclose(theirs[name], ours[name], rtol=1e-4, atol=1e-4)
