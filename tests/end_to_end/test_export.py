"""`retina export`: the artefact, its certificate, and the broken exports that it refuses."""

import json
import os
import subprocess
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest

from retina import cli
from retina.errors import RetinaError
from retina.inference import Detections

if keras.backend.backend() != "tensorflow":
    pytest.skip("in this process a SavedModel is written on TensorFlow", allow_module_level=True)

import tensorflow as tf

import retina as package
from retina import config as configuration
from retina.export import certificate as certificates
from retina.export import exporting, loading, saved_model
from retina.export.agreement import LIMITS
from retina.export.certificate import Certificate, certify
from retina.export.description import portable
from retina.export.serving import Serving
from tests.quick_jax import QUICK_JAX


@pytest.fixture(scope="module")
def exported(retina, trained):
    """`retina export` in a process of its own: the folder and what it printed."""
    done = retina(trained.folder, "export", "run", "--json")
    assert done.code == 0, done.err
    return trained.run / "export" / "saved_model", done


@pytest.fixture
def main(monkeypatch, capsys):
    """The command line in this process: (code, out, err)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["retina", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return call


def run_here(artefact: Path, runtime: str, files: list[Path], *, stages: bool) -> dict[str, np.ndarray]:
    """What the worker's process gives, without its start: TensorFlow takes seconds to import."""
    runner = saved_model.open_saved_model(artefact)
    if stages:
        return {
            f"{row}/{name}": array
            for row, file in enumerate(files)
            for name, array in runner.stages(file.read_bytes()).items()
        }
    found = runner.detect(files)
    columns = {name: np.concatenate([getattr(one, name) for one in found]) for name in ("boxes", "scores", "labels")}
    return {"counts": np.array([len(one) for one in found]), "seconds": np.ones(len(found)), **columns}


# ------------------------------------------------------------------------------------------------------ what is refused


class SwappedChannels(Serving):
    def decoded(self, encoded):
        return super().decoded(encoded)[..., ::-1]


class ShiftedByHalfAPixel(Serving):
    def detections(self, *arguments):
        detections = super().detections(*arguments)
        return {**detections, "boxes": detections["boxes"] + tf.where(detections["valid"], 0.5, 0.0)[..., None]}


class WithoutSuppression(Serving):
    def _detected(self, canvas, size, scale, limits):
        # An IoU of 1 suppresses nothing.
        trained = self.detector.sections.inference
        open_limits = trained.model_copy(update={"nms_iou": 1.0})
        return self.detections(self._network(canvas, size), canvas, size, scale, open_limits)


class ShiftedContent(Serving):
    def canvas(self, image):
        laid = super().canvas(image)
        return laid._replace(image=tf.roll(laid.image, 1, axis=1))


class Unsaved:
    """A SavedModel's runner around the graph itself: saving and loading it again takes longer than all the rest."""

    def __init__(self, predictor, serving):
        self.module = serving(predictor.detector, predictor.config)
        self.module.signatures = self.module.signatures()
        self._bytes, self.class_names = self.module.signatures["serving_default"], predictor.class_names

    detect, stages, _detected = (vars(saved_model.SavedModel)[name] for name in ("detect", "stages", "_detected"))


@pytest.mark.parametrize(
    ("broken", "stage", "saved"),
    [
        (SwappedChannels, "decode", True),
        (ShiftedContent, "resize", False),
        (ShiftedByHalfAPixel, "NMS", False),
        (WithoutSuppression, "NMS", False),
    ],
)
def test_a_broken_export_is_refused(main, monkeypatch, trained, tmp_path, broken, stage, saved):
    write = partial(saved_model.write_saved_model, serving=broken)
    if not saved:
        graphs = []

        def write(predictor, folder, **_):
            graphs.append(Unsaved(predictor, broken))
            folder.mkdir()
            (folder / "saved_model.pb").write_bytes(b"it is in memory")

        monkeypatch.setattr(saved_model, "open_saved_model", lambda _: graphs[0])
    monkeypatch.setattr(saved_model, "write_saved_model", write)
    monkeypatch.setattr(certificates, "_run_worker", run_here)
    code, out, err = main("export", trained.run, "--out", tmp_path / "model", "--certify", 2)
    assert code == 1
    assert f"the first difference arises in {stage}: " in err and "Traceback" not in err
    settings, verdict = out.split("\n", 1)
    assert settings.startswith("detects: scores above 0.05")
    assert verdict.startswith("Refused: model (saved_model) on 2 images of digits/validation")
    # Nothing stands at the place that was asked for; what was refused can be looked at.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.refused"]
    written = json.loads((tmp_path / "model.refused" / "assets.extra" / "certificate.json").read_text())
    assert written["passed"] is False and written["stage"] == stage and written["problems"]


def test_an_export_that_does_not_run_is_refused(trained, tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"not a graph")
    predictor = package.load(trained.run)
    dataset = package.load_split(predictor.config.data, "validation").subset(np.arange(2))
    found = certify(tmp_path, predictor, dataset, limits=LIMITS["saved_model"])
    assert not found.passed and found.stage is None and found.ap["export"] is None
    assert "it does not run in a process of its own" in found.problems[0]
    assert found.detections["export"] == 0 < found.detections["checkpoint"]
    assert found.latency_ms["export"] == {} and "Refused" in found.words()
    json.dumps(found.to_json(), allow_nan=False)


def test_detections_that_cannot_be_scored_are_refused(monkeypatch, exported, trained):
    def nonsense(artefact, runtime, files, *, stages):
        found = run_here(artefact, runtime, files, stages=stages)
        return found if stages else {**found, "labels": found["labels"] + 10}

    monkeypatch.setattr(certificates, "_run_worker", nonsense)
    predictor = package.load(trained.run)
    dataset = package.load_split(predictor.config.data, "validation").subset(np.arange(2))
    found = certify(exported[0], predictor, dataset, limits=LIMITS["saved_model"])
    assert not found.passed and found.delta_ap is None
    assert "its detections can't be scored" in found.problems[0] and found.stage == "NMS"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "float16"], "--precision float16: it has no effect on saved_model"),
        (["model.freeze=1"], "an export takes only data.*, export.* and inference.*; the rest is the checkpoint's"),
        (["inference.nms_iuo=0.3"], "unknown key 'inference.nms_iuo'; did you mean 'nms_iou'?"),
        (["--format", "onnx", "--precision", "int8"], "--precision int8: it has no effect on onnx; it takes float32"),
        (["--raw"], "--raw: it has no effect on saved_model, which has a signature `raw`"),
        (["export.certfy=3"], "unknown key 'export.certfy'; did you mean 'certify'?"),
        (["--checkpoint", "step_99"], "no such checkpoint"),
        (["--split", "test", "data.test=null"], "this split is not configured"),
        (["--certify", "0"], "--certify"),
        (["--format", "tfjs"], "--format"),
    ],
)
def test_bad_input(main, trained, tmp_path, arguments, message):
    code, out, err = main("export", trained.run, "--out", tmp_path / "model", *arguments)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_taken_place(main, trained, tmp_path):
    (tmp_path / "model").mkdir()
    code, _, err = main("export", trained.run, "--out", tmp_path / "model")
    assert code == 2 and "expected a place for the export, there is something" in err


def test_no_run(main, tmp_path):
    code, _, err = main("export", tmp_path, "--out", tmp_path / "model")
    assert code == 2 and "not a run directory" in err


# ------------------------------------------------------------------------------------------------------- what is proved


def test_the_certificate(exported, trained):
    folder, done = exported
    assert done.err == ""
    printed = json.loads(done.out)
    assert printed.pop("path") == str(Path("run") / "export" / "saved_model")
    assert [note.split(":")[0] for note in printed.pop("notes")] == ["detects"]
    assert json.loads((folder / "assets.extra" / "certificate.json").read_text()) == printed
    found = Certificate.from_json(printed)
    assert found.passed and found.problems == () and found.stage is None and found.delta_ap == 0.0
    assert (found.images, found.export, found.format) == (6, "saved_model", "saved_model")
    assert (
        found.agreement["box_shift"] == found.agreement["score_difference"] == found.agreement["unmatched_share"] == 0
    )
    assert found.agreement["matched"] == found.detections["export"] == found.detections["checkpoint"] > 0
    assert found.latency_ms["export"]["median"] > 0
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and file.stem != "certificate")
    assert found.size_bytes == size
    assert found.to_json() == printed
    assert (folder / "assets.extra" / "certificate.txt").read_text() == found.words() + "\n"
    assert "difference exactly 0" in found.words()


def test_an_export_keeps_other_inference_settings(main, trained, tmp_path):
    """They are printed, stand in the export, and are what it detects with; the run stays as it is."""
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    settings = ["inference.max_detections=3", "inference.score_threshold=0.06", "inference.nms_iou=0.3"]
    options = ["--out", tmp_path / "model", "--certify", "2", "--json"]
    code, out, err = main("export", trained.run, *settings, *options)
    assert (code, err) == (0, "")
    tree = json.loads(out)
    assert any("0.06" in note and "0.3" in note and "3" in note for note in tree["notes"])
    kept, own = package.load(tmp_path / "model"), package.load(trained.run)
    inference = kept.config.inference
    assert (inference.max_detections, inference.score_threshold, inference.nms_iou) == (3, 0.06, 0.3)
    assert own.config.inference.max_detections == 20
    (theirs,) = kept.predict(image)
    (ours,) = package.load(trained.run, overrides=settings).predict(image)
    assert len(theirs) == len(ours) == 3 < len(own.predict(image)[0])
    np.testing.assert_array_equal(theirs.boxes, ours.boxes)


def test_evaluate_and_predict_take_an_export(exported, trained, main, tmp_path):
    folder, _ = exported
    figures = []
    for what in (trained.run, folder):
        code, out, err = main("evaluate", what, "--json", "--replicates", "0")
        assert (code, err) == (0, "")
        figures.append({key: value for key, value in json.loads(out).items() if key != "run"})
    # A run is evaluated in batches, whose convolutions round otherwise.
    assert figures[0].pop("metrics") == pytest.approx(figures[1].pop("metrics"), abs=1e-6)
    assert figures[0]["detections"] == figures[1]["detections"]
    image = tmp_path / "image.png"
    image.write_bytes(package.load_split(package.load(folder).config.data, "test").images[0])
    found = []
    for what in (trained.run, folder):
        code, out, _ = main("predict", what, image, "--score", "0.1", "--json", "--out", tmp_path / "p")
        assert code == 0
        found.append(json.loads(out))
    assert found[0] == found[1] and found[0][0]["detections"]


def test_python_loads_an_export(exported, trained):
    predictor = package.load(str(exported[0]))
    assert predictor.class_names == tuple("0123456789")
    image = np.zeros((40, 60, 3), np.uint8)
    ours, theirs = package.load(trained.run).predict(image)[0], predictor.predict(image)[0]
    assert isinstance(theirs, Detections) and len(theirs) == len(ours)
    np.testing.assert_array_equal(ours.boxes, theirs.boxes)
    with pytest.raises(RetinaError, match="it has no effect on an export"):
        package.load(exported[0], "latest")
    with pytest.raises(RetinaError, match=r"none.onnx: expected an export"):
        package.load("none.onnx")


def test_an_export_is_evaluated_in_tiles_as_it_predicts_in_tiles(exported, trained):
    folder, _ = exported
    overrides = ("evaluation.tiles={size: 48, overlap: 0.5}",)
    metrics, table, dataset = package.evaluate(folder, "test", overrides=overrides)
    predicted = package.load(folder).predict(list(dataset.images), tile=48, overlap=0.5)
    counts = [len(detections) for detections in predicted]
    assert table.image.tolist() == np.repeat(np.arange(len(dataset)), counts).tolist()
    for name in ("boxes", "scores", "labels"):
        expected = np.concatenate([getattr(detections, name) for detections in predicted])
        assert getattr(table, name).tobytes() == expected.tobytes(), name
    of_run, detections, _ = package.evaluate(trained.run, "test", overrides=overrides)
    assert len(table.scores) == len(detections.scores) > len(package.evaluate(folder, "test")[1].scores)
    assert metrics.metrics == pytest.approx(of_run.metrics, abs=1e-6)
    judged = package.judge(folder, "test", replicates=0, overrides=("evaluation.tiles.size=64",))
    assert any("evaluation.tiles.size: 64 has no effect" in note for note in judged.notes)


def test_an_export_takes_the_places_of_its_run(tmp_path):
    """Its own configuration says no absolute path; the run's does, if it is the same but for that."""
    config = configuration.load(None, ["data.root=/data/birds"])
    assert loading._with_places(portable(config), tmp_path / "export" / "model.onnx") == portable(config)
    (tmp_path / "config.yaml").write_text(configuration.to_yaml(config))
    found = loading._with_places(portable(config), tmp_path / "export" / "model.onnx")
    assert found.data == config.data and str(found.data.root) == "/data/birds"
    assert loading._with_places(portable(config), tmp_path / "elsewhere" / "model.onnx") == portable(config)
    (tmp_path / "config.yaml").write_text(configuration.to_yaml(configuration.load(None, ["data.root=/data/fish"])))
    assert loading._with_places(portable(config), tmp_path / "export" / "model.onnx") == portable(config)


def test_a_broken_image_is_named(exported, main, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    code, _, err = main("predict", exported[0], tmp_path / "broken.png", "--out", tmp_path / "p")
    assert code == 2 and "broken.png: expected a JPEG, PNG" in err


def test_another_backend_exports_in_a_child_on_tensorflow(monkeypatch, exported, trained, tmp_path):
    """The child's command line and environment; the slow test below lets it run."""
    _, done = exported
    calls = []

    def child(command, env, **_):
        calls.append((command[1:], env["KERAS_BACKEND"]))
        return subprocess.CompletedProcess(command, 0, done.out, "")

    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    monkeypatch.setattr(exporting.subprocess, "run", child)
    found = exporting.export(trained.run, out=tmp_path / "m", certify_images=2, overrides=["data.root=/data"])
    options = ["--format", "saved_model", "--out", str(tmp_path / "m"), "--checkpoint", "best"]
    options += ["--split", "validation", "--certify", "2", "--json"]
    assert calls == [(["-m", "retina", "export", str(trained.run), "data.root=/data", *options], "tensorflow")]
    assert found.certificate.passed and found.path == Path("run/export/saved_model")
    monkeypatch.setattr(
        exporting.subprocess,
        "run",
        lambda command, **_: subprocess.CompletedProcess(command, 2, "", "retina: no good\n"),
    )
    with pytest.raises(RetinaError, match="^no good$"):
        exporting.export(trained.run, out=tmp_path / "m")


@pytest.mark.slow
def test_a_run_of_another_backend_is_exported(retina, tiny, tmp_path):
    environment = {"KERAS_BACKEND": "jax", **QUICK_JAX}
    done = retina(tmp_path, "train", *tiny, "--run-dir", "run", **environment)
    assert done.code == 0, done.err
    done = retina(tmp_path, "export", "run", "--certify", 3, **environment)
    assert done.code == 0, done.err
    assert "difference exactly 0" in done.out
    assert os.path.isfile(tmp_path / "run" / "export" / "saved_model" / "saved_model.pb")
