"""The certificate's parts: the resized copies, the runtimes that it tries, and certificates of before."""

import io
import json

import keras
import numpy as np
import pytest
from PIL import Image

from retina import config
from retina.data.images import load_image
from retina.data.load import load_split
from retina.errors import RetinaError
from retina.export import certificate as certificates
from retina.export.agreement import LIMITS
from retina.export.certificate import Certificate, certify, resized_copies
from retina.export.runner import installed_runtimes
from tests.export.small import CLASSES, SETTINGS, make_predictor, noise

if keras.backend.backend() != "tensorflow":
    pytest.skip("an export is certified on TensorFlow", allow_module_level=True)


def encoded(height: int, width: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(noise(height, width)).save(out, "PNG")
    return out.getvalue()


def test_copies_ask_for_every_kind_of_resizing():
    data = config.load(None, SETTINGS).data
    sizes = np.array([load_image(copy).shape[:2] for copy in resized_copies(encoded(60, 70), data)])
    zoom = np.minimum(48 / sizes.min(1), 96 / sizes.max(1))
    assert (zoom > 1).any() and (zoom < 1).any() and (zoom == 1).any()
    shown = np.round(sizes * zoom[:, None])
    padded = shown % 32 != 0
    assert (~padded).any() and padded[:, 0].any() and padded[:, 1].any()
    assert (sizes.max(1) / sizes.min(1) > 20).any()
    small = data.model_copy(update={"max_pixels": 2000})
    assert 0 < len(resized_copies(encoded(60, 70), small)) < len(sizes)


def test_runtimes_are_those_that_are_installed(monkeypatch):
    present = {"openvino"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name in present or None)
    assert installed_runtimes("onnx") == ("onnxruntime", "openvino")
    present.clear()
    assert installed_runtimes("onnx") == ("onnxruntime",)
    assert installed_runtimes("litert") == ("ai-edge-litert",)
    assert installed_runtimes("saved_model") == ("tensorflow",)


@pytest.fixture
def certified(small_predictor, tmp_path, monkeypatch):
    """A certificate of an export that `run` stands for: a function of the runtime and the checkpoint's detections."""
    (tmp_path / "model.onnx").write_bytes(b"played by the test")
    settings = config.override(small_predictor.config, ["data.train={format: digits, images: 3, size: 64}"])
    dataset = load_split(settings.data, "train")
    labels = np.zeros(len(dataset.labels), dataset.labels.dtype)
    from dataclasses import replace

    dataset = replace(dataset, labels=labels, class_names=CLASSES, category_ids=(7, 3, 90), name="/srv/me/birds (val)")
    monkeypatch.setattr(certificates, "installed_runtimes", lambda _: ("onnxruntime", "openvino"))

    def call(run, predictor=small_predictor, stages_of=lambda file: {}) -> Certificate:
        def work(artefact, runtime, files, *, stages):
            if stages:
                return {f"{row}/{name}": x for row, file in enumerate(files) for name, x in stages_of(file).items()}
            found = run(runtime, predictor.predict(files), files)
            columns = {
                name: np.concatenate([getattr(one, name) for one in found]) for name in ("boxes", "scores", "labels")
            }
            return {"counts": np.array(list(map(len, found))), "seconds": np.ones(len(found)), **columns}

        monkeypatch.setattr(certificates, "_run_worker", work)
        return certify(tmp_path / "model.onnx", predictor, dataset, limits=LIMITS["onnx, float32"])

    return call


def test_every_runtime_is_tried_and_counts(certified):
    def run(runtime, detections, files):
        if runtime == "onnxruntime":
            return detections
        return [type(one)(one.boxes + 0.5, one.scores, one.labels, one.names) for one in detections]

    found = certified(run)
    assert not found.passed and len(found.runtimes) == 2
    names = list(found.runtimes)
    assert names[0].startswith("onnxruntime") and names[1].startswith("openvino")
    assert found.problems[0].startswith(f"in {names[1]}: a box is shifted by 0.5 px")
    assert found.delta_ap == 0 and found.agreement["box_shift"] == 0
    assert found.runtimes[names[0]]["problems"] == []
    assert f"In {names[1]}: AP differs by" in found.words()
    assert Certificate.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_fault_that_only_resized_images_show(certified):
    def run(runtime, detections, files):
        return [
            one if row < 3 else type(one)(one.boxes + 0.5, one.scores, one.labels, one.names)
            for row, one in enumerate(detections)
        ]

    found = certified(run)
    assert (
        not found.passed and found.copies["images"] == 5 and found.copies["box_shift"] == pytest.approx(0.5, abs=1e-4)
    )
    assert found.problems[0].startswith("on resized copies of an image, a box is shifted by 0.5 px")
    assert found.agreement["box_shift"] == 0


def test_on_copies_boxes_that_the_edge_cut_to_nothing_do_not_count(certified):
    empty = np.array([[0, 5, 60, 5]] * 9, np.float32)

    def run(runtime, detections, files):
        return [
            type(one)(
                np.concatenate([one.boxes, empty]),
                np.concatenate([one.scores, np.full(9, 0.06, np.float32)]),
                np.concatenate([one.labels, np.zeros(9, np.int32)]),
                (*one.names, *[CLASSES[0]] * 9),
            )
            if row >= 3
            else one
            for row, one in enumerate(detections)
        ]

    found = certified(run)
    assert found.passed and found.copies["unmatched_share"] == 0 and found.copies["matched"] > 10


def test_ties_that_rounding_settles_otherwise_are_no_fault(certified, monkeypatch):
    """An export whose logits differ by rounding where the checkpoint's are all the same, and whose decoding is right;
    then one whose boxes are not."""
    monkeypatch.setattr(certificates, "installed_runtimes", lambda _: ("onnxruntime",))
    predictor = make_predictor()
    head = predictor.detector.classification
    head.prediction.kernel.assign(keras.ops.zeros_like(head.prediction.kernel))
    head.bias.assign(keras.ops.ones_like(head.bias))
    make_reference = certificates._reference
    references = []
    monkeypatch.setattr(certificates, "_reference", lambda *of: references.append(make_reference(*of)) or references[0])

    def stages(file):
        tensors = certificates._stages_of_checkpoint(references[0], int(file.name))
        rounding = np.random.default_rng(5).normal(0, 1e-6, tensors["logits"].shape)
        return {**tensors, "logits": (tensors["logits"] + rounding).astype(np.float32)}

    def run(runtime, detections, files):
        return [certificates._decoded(references[0], row, stages(file)) for row, file in enumerate(files)]

    found = certified(run, predictor)
    assert not found.passed and found.ties == 0 and found.agreement["unmatched_share"] > 0.1
    found = certified(run, predictor, stages)
    assert found.passed and found.ties > 3 and found.agreement["unmatched_share"] == 0
    assert f"On {found.ties} images candidates score alike within rounding" in found.words()
    assert Certificate.from_json(json.loads(json.dumps(found.to_json()))) == found

    def shifted(*of):
        return [type(image)(image.boxes * 1.6, image.scores, image.labels, image.names) for image in run(*of)]

    found = certified(shifted, predictor, stages)
    assert not found.passed and found.ties == 0 and found.stage == "NMS"


def test_a_runtime_that_stops_is_named(certified):
    def run(runtime, detections, files):
        if runtime == "openvino":
            raise certificates._CannotRun("it does not run in a process of its own: no")
        return detections

    found = certified(run)
    assert not found.passed and "does not run in a process of its own" in found.problems[0]
    assert found.delta_ap == 0 and found.words()


def test_certificates_of_before_are_read(certified):
    tree = certified(lambda runtime, detections, files: detections).to_json()
    assert tree["passed"] and tree["data"] == "birds (val)"
    old = {name: value for name, value in tree.items() if name not in ("copies", "runtimes")}
    found = Certificate.from_json(old)
    assert found.passed and found.runtimes == {} and "Passed" in found.words()


def test_no_export(tmp_path, small_predictor):
    with pytest.raises(RetinaError, match="expected an export"):
        certify(tmp_path / "none.onnx", small_predictor, None, limits=LIMITS["onnx, float32"])
