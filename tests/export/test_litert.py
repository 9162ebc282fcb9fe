"""A LiteRT export in its interpreter against the predictor that it was written from."""

import json
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from retina import config
from retina.errors import RetinaError
from tests.export.small import CLASSES, SIZES, assert_same, noise

if keras.backend.backend() != "tensorflow":
    pytest.skip("a LiteRT export is written on TensorFlow", allow_module_level=True)
pytest.importorskip("ai_edge_litert")

import tensorflow as tf

from retina.data.batches.evaluation import canvas_image
from retina.export import litert_graph
from retina.export.canvas import lay_out, resized
from retina.export.litert import LiteRtRunner, open_litert, write_litert
from retina.models.decode import decode
from retina.models.detector import Sections
from retina.ops.anchors import level_anchors
from retina.private_names import flatbuffers

MEAN = (124.0, 116.5, 103.25)


@pytest.fixture
def predictor(small_predictor):
    return small_predictor


@pytest.fixture
def path(litert_file) -> Path:
    return litert_file


@pytest.fixture(scope="module")
def runner(litert_file) -> LiteRtRunner:
    return open_litert(litert_file)


# ------------------------------------------------------------------------------------------------- what goes wrong


def test_no_image_gives_no_detections(runner):
    assert runner.detect([]) == []


@pytest.mark.parametrize(
    ("image", "message"),
    [(np.zeros((4, 4), np.uint8), "expected uint8 RGB"), (b"no image", "it is not an image")],
)
def test_what_is_no_image_is_an_error(runner, image, message):
    with pytest.raises(RetinaError, match=message):
        runner.detect([image])


def test_files_that_are_no_export(tmp_path, path):
    with pytest.raises(RetinaError, match="cannot read it"):
        open_litert(tmp_path / "absent.tflite")
    content = path.read_bytes()
    (tmp_path / "cut.tflite").write_bytes(content[:5000])
    with pytest.raises(RetinaError, match=r"cut\.tflite: expected an export of retina, it carries no retina\.json"):
        open_litert(tmp_path / "cut.tflite")
    (tmp_path / "broken.tflite").write_bytes(b"no" * 50 + content[-3000:])
    with pytest.raises(RetinaError, match=r"broken\.tflite: damaged or not a LiteRT model"):
        open_litert(tmp_path / "broken.tflite")


def test_writing_refuses_what_has_no_effect_or_lacks_data(predictor, tmp_path, monkeypatch):
    with pytest.raises(RetinaError, match="in int8: expected images of the training data"):
        write_litert(predictor, tmp_path / "a.tflite", precision="int8")
    with pytest.raises(RetinaError, match="in int8: expected images of the training data"):
        write_litert(predictor, tmp_path / "a.tflite", precision="int8", representative=[])
    with pytest.raises(RetinaError, match="in float16: expected no images"):
        write_litert(predictor, tmp_path / "a.tflite", precision="float16", representative=[noise(8, 8)])
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(RetinaError, match="expected the TensorFlow backend, got torch"):
        write_litert(predictor, tmp_path / "a.tflite", precision="float32")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------- the same detections


def test_detections_are_the_predictors_for_images_of_any_size(predictor, runner):
    images = [noise(*size, seed) for seed, size in enumerate(SIZES)]
    expected = predictor.predict(images)
    assert sum(map(len, expected)) > 60
    for found, wanted in zip(runner.detect(images), expected, strict=True):
        assert_same(found, wanted)


def test_a_batch_is_its_images(runner):
    laid = [runner.lay_out(noise(60, 70, seed)) for seed in range(2)]
    together = runner.run(*(np.stack(column) for column in zip(*laid, strict=True)))
    for row, one in enumerate(laid):
        alone = runner.run(*(value[None] for value in one))
        assert together["num_detections"][row] == alone["num_detections"][0] > 0
        assert together["labels"][row].tolist() == alone["labels"][0].tolist()
        np.testing.assert_allclose(together["boxes"][row], alone["boxes"][0], rtol=0, atol=1e-3)


def test_stages_of_an_image(predictor, runner):
    image = noise(100, 75)
    stages = runner.stages(image)
    canvas, _, size = canvas_image(image, predictor.config.data.resize)
    assert np.array_equal(stages["pixels"], image)
    assert stages["canvas"].dtype == np.uint8 and np.array_equal(stages["canvas"], canvas)
    expected = predictor.detector(
        {"images": tf.constant(canvas[None]), "size": tf.constant(size[None])}, training=False
    )
    for name in ("logits", "deltas"):
        np.testing.assert_allclose(stages[name], expected[name][0], rtol=0, atol=1e-4)


def test_the_file_describes_itself(path, predictor, runner):
    with zipfile.ZipFile(path) as archive:
        assert archive.read("labels.txt").decode().splitlines() == list(CLASSES)
        document = json.loads(archive.read("retina.json"))
    assert document["category_ids"] == [7, 3, 90]
    assert (document["run"], document["precision"]) == ("made up", "float32")
    assert config.parse(document["config"]) == predictor.config
    assert runner.class_names == CLASSES
    assert runner.interpreter.get_signature_list() == {
        "raw": {"inputs": ["canvas"], "outputs": ["deltas", "logits"]},
        "serving_default": {
            "inputs": ["canvas", "scale", "size"],
            "outputs": ["boxes", "labels", "num_detections", "scores"],
        },
    }


def test_every_tensor_has_a_name_of_its_own(path):
    """OpenVINO and tf2onnx find tensors by name; inputs and outputs have those of the signature."""
    _, utilities = flatbuffers()
    graphs = utilities.convert_bytearray_to_object(bytearray(path.read_bytes())).subgraphs
    for graph in graphs:
        names = [tensor.name for tensor in graph.tensors]
        assert len(set(names)) == len(names)
    named = [
        [{graph.tensors[i].name.decode() for i in ends} for ends in (graph.inputs, graph.outputs)] for graph in graphs
    ]
    assert named[0] == [{"canvas", "size", "scale"}, {"boxes", "scores", "labels", "num_detections"}]
    assert [{"canvas"}, {"logits", "deltas"}] in named


def test_openvino_reads_it(path, runner):
    openvino = pytest.importorskip("openvino")
    compiled = openvino.compile_model(openvino.Core().read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    laid = runner.lay_out(noise(100, 75))._asdict()
    inputs = {"canvas": laid["pixels"][None], "size": laid["size"][None], "scale": laid["scale"][None]}
    found = {output.any_name: value for output, value in compiled(inputs).items()}
    expected = runner.run(**inputs)
    assert expected["num_detections"][0] > 5
    assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-2)


def test_tensorflow_lite_runs_it_too(path, runner):
    image = noise(100, 75)
    (found,), (expected,) = open_litert(path, runtime="tensorflow").detect([image]), runner.detect([image])
    assert len(found) > 5
    assert_same(found, expected)


def test_small_precisions_are_small_and_near(predictor, path, runner, tmp_path):
    images = [noise(48, 64, seed) for seed in range(3)]
    sizes = {"float32": path.stat().st_size}
    exact = runner.stages(images[0])
    spread = {name: np.ptp(exact[name]) for name in ("logits", "deltas")}
    for precision, near in (("float16", 0.01), ("int8", 0.15)):
        file = tmp_path / f"{precision}.tflite"
        write_litert(predictor, file, precision=precision, representative=images if precision == "int8" else None)
        sizes[precision] = file.stat().st_size
        small = open_litert(file)
        found = small.stages(images[0])
        for name, range_ in spread.items():
            assert 0 < np.abs(found[name] - exact[name]).max() < near * range_, (precision, name)
        # Behind the network nothing is rounded: the best score is that of its own best logit.
        (detections,) = small.detect(images[:1])
        assert len(detections) > 0
        best = 1 / (1 + np.exp(-float(found["logits"].max())))
        assert detections.scores[0] == pytest.approx(best, abs=1e-6)
    assert sizes["float16"] < 0.55 * sizes["float32"] and sizes["int8"] < 0.35 * sizes["float32"]


# ---------------------------------------------------------------------------------------------------------- the parts


@pytest.mark.parametrize("size", [(480, 640), (333, 500), (97, 61), (1, 5), (1, 1)])
@pytest.mark.parametrize("target", [(64, 64), (203, 128), (1, 7), (333, 500)])
def test_resizing_is_tensorflows_bit_for_bit(size, target):
    image = noise(*size)
    assert np.array_equal(resized(image, target), tf.image.resize(image, target).numpy())


@pytest.mark.parametrize("size", SIZES)
def test_canvases_are_the_pipelines(size):
    resize = config.Resize(short=48, long=96, multiple=32)
    image = noise(*size)
    expected, scale, content = canvas_image(image, resize)
    canvas = lay_out(image, resize, MEAN)
    height, width = content
    assert canvas.size.dtype == np.int32 and canvas.size.tolist() == content.tolist()
    assert canvas.scale.dtype == np.float32 and canvas.scale.tolist() == scale.tolist()
    assert np.array_equal(canvas.black_padded(), expected)
    assert np.array_equal(canvas.pixels[:height, :width], expected[:height, :width])
    assert (canvas.pixels[height:] == MEAN).all() and (canvas.pixels[:, width:] == MEAN).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ties", [False, True])
def test_candidates_boxes_and_suppression_are_decodes(seed, ties):
    """On random outputs of all five levels, and on ones full of equal logits, zeros of both signs and wild deltas."""
    draw = np.random.default_rng(seed)
    spacing = "canvas" if seed == 2 else "stride"
    anchors = config.Anchors(
        offset=0.5 * (seed % 2), rounding=seed == 3, spacing=spacing, box_weights=(1.0, 1.0, 2.0, 2.0)
    )
    settings = config.Inference(
        candidates=50, max_detections=30, nms_iou=(0.5, 0.3, 0.0, 1.0)[seed], class_agnostic=seed < 2,
        candidates_per="image" if seed % 2 else "level", clip=("before", "after", "none", "none")[seed],
    )  # fmt: skip
    sections = Sections(config.Model(), anchors, config.Assignment(), config.load().loss, settings)
    height, width, levels = 96, 160, (3, 4, 5, 6, 7)
    constants = level_anchors(anchors, (height, width), levels)
    count = sum(map(len, constants))
    logits = draw.normal(-2, 2, (2, count, 3)).astype(np.float32)
    deltas = draw.normal(0, 0.5, (2, count, 4)).astype(np.float32)
    if ties:
        logits, deltas = np.round(logits), np.round(8 * deltas)
    outputs = {"logits": tf.constant(logits), "deltas": tf.constant(deltas)}
    size, scale = tf.constant([[90, 131]] * 2), tf.constant([[1.5, 1.25]] * 2)
    found = litert_graph.detections(outputs, tf.zeros([2, height, width, 3]), size, scale, sections, levels)
    expected = decode(outputs, constants, size, scale, inference=settings, box_weights=anchors.box_weights)
    assert (
        np.array_equal(found["num_detections"], expected["valid"].numpy().sum(1)) and min(found["num_detections"]) > 5
    )
    assert np.array_equal(found["labels"], expected["labels"])
    # Boxes that are not cut reach a thousand pixels: a rounding of float32 is 1e-4 there.
    rounding = 1e-6 if settings.clip == "none" else 0
    np.testing.assert_allclose(found["boxes"], expected["boxes"], rtol=rounding, atol=1e-4)
    np.testing.assert_allclose(found["scores"], expected["scores"], rtol=0, atol=1e-6)


def test_anchors_are_the_constants_within_a_rounding():
    anchors = config.Anchors(ratios=(0.7, 1.0, 1.4))
    for level, expected in zip((3, 7), level_anchors(anchors, (250, 1300), (3, 7)), strict=True):
        found = litert_graph.level_anchors(anchors, tf.constant([1, 250, 1300, 3]), level).numpy()
        np.testing.assert_allclose(found, expected, rtol=2e-7, atol=1e-5)
