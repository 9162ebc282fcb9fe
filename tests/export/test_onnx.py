"""An ONNX export in onnxruntime against the predictor that it was written from."""

import io
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from PIL import Image

from retina import config
from retina.errors import RetinaError
from tests.export.small import CLASSES, SIZES, assert_same, make_predictor, noise

if keras.backend.backend() != "tensorflow":
    pytest.skip("an ONNX export is written on TensorFlow", allow_module_level=True)
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("tf2onnx")

import onnx
import onnxruntime
import tensorflow as tf

from retina.data.batches import plan
from retina.data.batches.evaluation import canvas_image
from retina.export import onnx as onnx_module
from retina.export.description import float32_detector
from retina.export.litert import write_litert
from retina.export.onnx import OnnxRunner, open_onnx, open_parts, write_onnx
from retina.export.onnx_graph import OPSET, after_network, content_size, text
from retina.models.decode import decode
from retina.models.detector import Sections
from retina.ops.anchors import level_anchors


@pytest.fixture
def predictor(small_predictor):
    return small_predictor


@pytest.fixture
def path(onnx_file) -> Path:
    return onnx_file


@pytest.fixture(scope="module")
def runner(onnx_file) -> OnnxRunner:
    return open_onnx(onnx_file)


@pytest.fixture(scope="module")
def parts(onnx_file):
    return open_parts(onnx_file)


# ------------------------------------------------------------------------------------------------- what goes wrong


def test_no_image_gives_no_detections(runner):
    assert runner.detect([]) == []


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4), np.uint8), "expected uint8 RGB"),
        (np.zeros((4, 4, 3), np.float32), "expected uint8 RGB"),
        (np.zeros((0, 4, 3), np.uint8), "expected uint8 RGB"),
        (b"", "it is empty"),
        (b"no image", "it is not an image"),
        (Path("nowhere.jpg"), "nowhere.jpg: expected an image file"),
    ],
)
def test_what_is_no_image_is_an_error(runner, image, message):
    with pytest.raises(RetinaError, match=message):
        runner.detect([image])


def test_files_that_are_no_export(tmp_path, path):
    with pytest.raises(RetinaError, match="there is none"):
        open_onnx(tmp_path / "absent.onnx")
    (tmp_path / "cut.onnx").write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RetinaError, match=r"cut\.onnx: damaged or not an ONNX model"):
        open_onnx(tmp_path / "cut.onnx")
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(RetinaError, match="expected an export of retina"):
        open_onnx(tmp_path / "foreign.onnx")


def test_writing_refuses_what_it_cannot_do(predictor, tmp_path, monkeypatch):
    with pytest.raises(RetinaError, match="expected 3 category ids, one a class, got 2"):
        write_onnx(predictor, tmp_path / "a.onnx", category_ids=[1, 2])
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(RetinaError, match="expected the TensorFlow backend, got jax"):
        write_onnx(predictor, tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "write"), [("onnx", write_onnx), ("litert", partial(write_litert, precision="float32"))]
)
def test_what_the_graph_lacks_is_refused_by_name(kind, write, tmp_path):
    for inference, resize, reason in (
        (config.Inference(suppression="linear"), config.Resize(), "inference.suppression: expected hard, got linear"),
        (config.Inference(), config.Resize(antialias=True), "data.resize.antialias: expected false, got true"),
    ):
        detector = SimpleNamespace(sections=SimpleNamespace(inference=inference))
        settings = SimpleNamespace(data=SimpleNamespace(resize=resize))
        with pytest.raises(RetinaError, match=f"export to {kind}: {reason}; add"):
            write(SimpleNamespace(detector=detector, config=settings), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("shape", [(0, 40, 50, 3), (2, 0, 5, 3), (2, 5, 0, 3), (0, 0, 0, 3)])
def test_no_images_and_images_without_pixels(path, runtime, shape):
    """As the SavedModel has it: as many rows as images, no detection in any."""
    pytest.importorskip(runtime)
    found = open_onnx(path, runtime=runtime).run(np.zeros(shape, np.uint8))
    assert {name: value.shape for name, value in found.items()} == {
        "boxes": (shape[0], 20, 4),
        "scores": (shape[0], 20),
        "labels": (shape[0], 20),
        "num_detections": (shape[0],),
    }
    assert not any(value.any() for value in found.values())


# ---------------------------------------------------------------------------------------------- the same detections


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_openvino_detects_the_same_for_images_of_any_size(predictor, path, float16_file, precision):
    """Its own arithmetic rounds a few resized pixels the other way (it divides by a reciprocal), so that boxes of these
    images of noise move by up to 0.03 px."""
    pytest.importorskip("openvino")
    runner = open_onnx(path if precision == "float32" else float16_file, runtime="openvino")
    for seed, size in enumerate(SIZES):
        image = noise(*size, seed)
        (found,), (expected,) = runner.detect([image]), predictor.predict([image])
        assert len(found) == len(expected)
        if precision == "float32":
            assert_same(found, expected, box=0.05, score=1e-3)
        stages = runner.stages(image)
        canvas, _, _ = canvas_image(image, predictor.config.data.resize)
        assert np.abs(stages["canvas"].astype(int) - canvas).max() <= 1


@pytest.fixture(scope="module")
def float16_file(small_predictor, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("onnx16") / "model.onnx"
    write_onnx(small_predictor, path, precision="float16")
    return path


def test_float16_is_small_and_near(path, float16_file, runner):
    assert float16_file.stat().st_size < 0.55 * path.stat().st_size
    small, image = open_onnx(float16_file), noise(48, 64)
    assert small.document["precision"] == "float16"
    exact, found = runner.stages(image), small.stages(image)
    for name in ("logits", "deltas"):
        assert found[name].dtype == np.float32
        assert 0 < np.abs(found[name] - exact[name]).max() < 0.01 * np.ptp(exact[name]), name
    # After the network nothing is rounded.
    (detections,) = small.detect([image])
    assert detections.scores[0] == pytest.approx(1 / (1 + np.exp(-float(found["logits"].max()))), abs=1e-6)


def test_shapes_are_integers_and_quotients_have_no_scalar_above(path):
    """What float16 can't hold does not occur; no constant scalar is divided, which OpenVINO inverts before a Pad."""
    graph = onnx.load(path).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
    assert len(constants) > 100
    for name, values in constants.items():
        if np.issubdtype(values.dtype, np.floating):
            assert (np.abs(values[np.isfinite(values)]) <= np.finfo(np.float16).max).all(), name
    casts = [node for node in graph.node if node.op_type == "Cast" and node.output[0].startswith("network/")]
    assert {cast.attribute[0].i for cast in casts} <= {onnx.TensorProto.INT32, onnx.TensorProto.INT64}
    divided = [node.input[0] for node in graph.node if node.op_type == "Div"]
    assert len(divided) > 5 and all(constants[name].ndim for name in divided if name in constants)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("short", "long", "rounding"), [(800, 1333, "nearest"), (320, 533, "nearest"), (416, 416, "floor")]
)
def test_sizes_are_the_plans(runtime, short, long, rounding):
    """For onnxruntime also where float64's rounding decides: a side ends exactly between two pixels, or on one."""
    pytest.importorskip(runtime)
    resize = config.Resize(short=short, long=long, rounding=rounding)
    model = onnx.parser.parse_model(text("sizes", "int64[2] stored", "int64[2] size", content_size(resize)))
    sizes = np.random.default_rng(short).integers(1, 2049, (1000, 2))
    numbers = np.arange(1, 301)
    small = np.stack(np.meshgrid(numbers, numbers), -1).reshape(-1, 2)
    goal = np.where(short * small.max(1) <= long * small.min(1), short, long)
    side = np.where(short * small.max(1) <= long * small.min(1), small.min(1), small.max(1))
    added = 0 if rounding == "floor" else side[:, None]
    between = ((2 * small * goal[:, None] + added) % (2 * side[:, None]) == 0).any(1)
    assert between.sum() > 100
    if runtime == "onnxruntime":
        sizes = np.concatenate([sizes, small[between][:2000], [(105, 1302), (15, 130), (27, 192)]])
    else:
        sizes = sizes[:300]
    run = onnx_module._compiled(Path("sizes"), model.SerializeToString(), runtime, ["CPUExecutionProvider"]).run
    found = np.stack([run({"stored": size})["size"] for size in sizes])
    expected = plan.fit(sizes, resize).resized
    if runtime == "openvino":  # leave out the other sides that end on a pixel: float64's rounding decides on them
        decided = (sizes * 416 % sizes.max(1, keepdims=True) == 0).all(1) & (rounding == "floor")
        found, expected = found[~decided], expected[~decided]
    assert np.array_equal(found, expected)


def test_detections_are_the_predictors_for_images_of_any_size(predictor, runner):
    images = [noise(*size, seed) for seed, size in enumerate(SIZES)]
    expected = predictor.predict(images)
    assert sum(map(len, expected)) > 60
    assert len({name for one in expected for name in one.names}) == 3
    for found, wanted in zip(runner.detect(images), expected, strict=True):
        assert_same(found, wanted)


def test_bytes_and_paths_are_decoded(predictor, runner, tmp_path):
    encoded = io.BytesIO()
    Image.fromarray(noise(40, 50)).save(encoded, "JPEG")
    file = tmp_path / "a.jpg"
    file.write_bytes(encoded.getvalue())
    (expected,) = predictor.predict([file])
    for found in runner.detect([file, encoded.getvalue()]):
        assert_same(found, expected)


def test_a_batch_is_its_images(runner):
    images = [noise(60, 70, seed) for seed in range(3)]
    together = runner.run(np.stack(images))
    for row, image in enumerate(images):
        alone = runner.run(image[None])
        assert together["num_detections"][row] == alone["num_detections"][0] > 0
        assert together["labels"][row].tolist() == alone["labels"][0].tolist()
        np.testing.assert_allclose(together["boxes"][row], alone["boxes"][0], rtol=0, atol=1e-3)


def test_signature(path, runner):
    session = onnxruntime.InferenceSession(path)
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape) == ("images", "tensor(uint8)", ["B", "H", "W", 3])
    found = runner.run(noise(48, 48)[None])
    assert {name: (value.dtype.name, value.shape) for name, value in found.items()} == {
        "boxes": ("float32", (1, 20, 4)),
        "scores": ("float32", (1, 20)),
        "labels": ("int32", (1, 20)),
        "num_detections": ("int32", (1,)),
    }


def test_the_file_describes_itself(path, predictor, runner):
    model = onnx.load(path)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", OPSET)]
    properties = {one.key: one.value for one in model.metadata_props}
    assert json.loads(properties["class_names"]) == list(CLASSES)
    document = json.loads(properties["retina"])
    assert document["category_ids"] == [7, 3, 90]
    assert document["run"] == "made up"
    assert config.parse(document["config"]) == predictor.config
    assert runner.class_names == CLASSES


def test_a_run_in_bfloat16_is_exported_in_float32(predictor):
    mixed = make_predictor("run={precision: mixed_bfloat16}")
    exact = float32_detector(mixed)
    assert (mixed.detector.compute_dtype, exact.compute_dtype) == ("bfloat16", "float32")
    assert {layer.compute_dtype for layer in exact._flatten_layers()} == {"float32"}
    assert all(map(np.array_equal, exact.get_weights(), mixed.detector.get_weights()))
    assert float32_detector(predictor) is predictor.detector


# ---------------------------------------------------------------------------------------------------- stage by stage


def test_a_head_with_group_normalisation(tmp_path):
    predictor = make_predictor("model.head={channels: 32, layers: 1, prior: 0.2, norm: group, init_std: 0.3}")
    write_onnx(predictor, tmp_path / "group.onnx")
    image = noise(48, 64)
    (found,), (expected,) = open_onnx(tmp_path / "group.onnx").detect([image]), predictor.predict([image])
    assert len(found.scores) == 20
    assert_same(found, expected)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_network_alone(predictor, runner, raw_file, runtime):
    """Canvases to logits and deltas; opened by retina, which lays out and decodes around it, a whole export again."""
    pytest.importorskip(runtime)
    model = onnx.load(raw_file)
    shapes = {
        value.name: [dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"canvas": ["B", "h", "w", 3], "logits": ["B", "A", 3], "deltas": ["B", "A", 4]}
    raw = open_onnx(raw_file, runtime=runtime)
    for seed, size in enumerate(SIZES):
        image = noise(*size, seed)
        (found,), (expected,) = raw.detect([image]), predictor.predict([image])
        assert_same(found, expected)
    stages, expected = raw.stages(image), runner.stages(image)
    assert np.array_equal(stages["canvas"], expected["canvas"])
    np.testing.assert_allclose(stages["logits"], expected["logits"], rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def raw_file(small_predictor, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("onnx_raw") / "model.onnx"
    write_onnx(small_predictor, path, raw=True)
    return path


@pytest.mark.parametrize("size", SIZES)
def test_the_canvas_is_equal_bit_for_bit(predictor, parts, size):
    image = noise(*size)
    canvas, scale, content = canvas_image(image, predictor.config.data.resize)
    found = parts.before(np.stack([image, image]))
    levels = canvas[: content[0], : content[1]]
    assert found["canvas"].tolist() == list(canvas.shape[:2])
    assert found["size"].tolist() == content.tolist()
    assert np.array_equal(found["levels"], np.stack([levels, levels]).astype(np.float32))
    pixels = predictor.detector.normalization(tf.constant(canvas[None]), tf.constant(content[None])).numpy()
    np.testing.assert_allclose(found["pixels"][:1], pixels, rtol=0, atol=1e-6)
    assert not found["pixels"][:, content[0] :].any()
    assert np.array_equal(found["per_original"], np.tile(np.float32(1) / scale[::-1], 2))


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


def decoders(settings: config.Inference, anchors: config.Anchors, classes: int, levels: tuple[int, ...]):
    """The text after the network as a session of its own, and the function that it stands for."""
    sections = Sections(config.Model(), anchors, config.Assignment(), config.load().loss, settings)
    text = after_network(sections, levels, classes)
    session = onnxruntime.InferenceSession(onnx.parser.parse_model(text).SerializeToString())

    def in_onnx(logits, deltas, canvas, size, scale):
        given = {
            "logits": logits,
            "deltas": deltas,
            "given": np.array([len(logits), 1, 1], np.int64),
            "canvas": np.array(canvas, np.int64),
            "size": np.array(size, np.int64),
            "per_original": np.tile(1 / np.array(scale, np.float32)[::-1], 2),
        }
        names = [one.name for one in session.get_outputs()]
        return dict(zip(names, session.run(names, given), strict=True))

    def in_keras(logits, deltas, canvas, size, scale):
        batch = len(logits)
        found = decode(
            {"logits": tf.constant(logits), "deltas": tf.constant(deltas)},
            level_anchors(anchors, canvas, levels),
            tf.constant([size] * batch),
            tf.constant([scale] * batch, tf.float32),
            inference=settings,
            box_weights=anchors.box_weights,
            max_size_ratio=anchors.max_size_ratio,
        )
        return {name: value.numpy() for name, value in found.items()}

    return in_onnx, in_keras


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
    canvas, levels, classes = (96, 160), (3, 4, 5, 6, 7), 3
    count = sum(len(one) for one in level_anchors(anchors, canvas, levels))
    logits = draw.normal(-2, 2, (2, count, classes)).astype(np.float32)
    deltas = draw.normal(0, 0.5, (2, count, 4)).astype(np.float32)
    if ties:
        logits, deltas = np.round(logits), np.round(8 * deltas)
        assert np.signbit(logits[logits == 0]).any()
    in_onnx, in_keras = decoders(settings, anchors, classes, levels)
    given = (logits, deltas, canvas, (90, 131), (1.5, 1.25))
    found, expected = in_onnx(*given), in_keras(*given)
    assert found["num_detections"].tolist() == expected["valid"].sum(1).tolist()
    assert found["num_detections"].min() > 5
    assert np.array_equal(found["labels"], expected["labels"])
    # Boxes that are not cut reach a thousand pixels: a rounding of float32 is 1e-4 there.
    rounding = 1e-6 if settings.clip == "none" else 0
    np.testing.assert_allclose(found["boxes"], expected["boxes"], rtol=rounding, atol=1e-4)
    np.testing.assert_allclose(found["scores"], expected["scores"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("threshold", [0.9999, 1.0])
def test_nothing_above_the_threshold_is_nothing(threshold):
    settings = config.Inference(score_threshold=threshold, max_detections=7)
    in_onnx, _ = decoders(settings, config.Anchors(), 2, (5,))
    logits, deltas = np.zeros((1, 9, 2), np.float32), np.zeros((1, 9, 4), np.float32)
    found = in_onnx(logits, deltas, (32, 32), (32, 32), (1.0, 1.0))
    assert found["num_detections"].tolist() == [0]
    assert found["boxes"].shape == (1, 7, 4) and not found["boxes"].any() and not found["scores"].any()


def test_one_box_by_hand():
    """One cell, one anchor of 128 px around (16, 16), shifted by a tenth of its side and cut to the content."""
    settings = config.Inference(score_threshold=0.5, max_detections=3)
    anchors = config.Anchors(scales=(1.0,), ratios=(1.0,))
    in_onnx, _ = decoders(settings, anchors, 2, (5,))
    logits = np.array([[[-1.0, np.log(3.0)]]], np.float32)
    deltas = np.array([[[0.1, 0.0, np.log(0.25), np.log(0.125)]]], np.float32)
    found = in_onnx(logits, deltas, (32, 32), (30, 31), (0.5, 2.0))
    # Centre (16 + 12.8, 16), sides 32 and 16: x 12.8 to 44.8 cut at 31, y 8 to 24; then x / 2 and y / 0.5.
    assert found["num_detections"].tolist() == [1]
    np.testing.assert_allclose(found["boxes"][0, 0], [6.4, 16.0, 15.5, 48.0], rtol=1e-6)
    np.testing.assert_allclose(found["scores"][0], [0.75, 0, 0], rtol=1e-6)
    assert found["labels"][0].tolist() == [1, 0, 0]
