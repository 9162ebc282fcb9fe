"""torchvision's detectors as run directories: what is written, what is accounted for, and what is refused."""

import contextlib
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
theirs = pytest.importorskip("tests.parity.torchvision_models")

import retina  # noqa: E402
from retina import cli, config  # noqa: E402
from retina.errors import RetinaError  # noqa: E402
from retina.export.weights import export_weights  # noqa: E402
from retina.runs import importing  # noqa: E402
from retina.runs.checkpoint import read  # noqa: E402
from retina.runs.directory import RunDirectory  # noqa: E402
from retina.runs.importing import import_run  # noqa: E402
from retina.weights import torchvision  # noqa: E402
from retina.weights.coco_classes import CATEGORIES  # noqa: E402
from retina.weights.mapping import convert  # noqa: E402
from retina.weights.tensor_file import TensorFile, sha256_of_arrays, sha256_of_file  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("importing")


@pytest.fixture(scope="module")
def coco(folder):
    """A model of torchvision's default 91 rows, its file, and the run imported from it."""
    model = theirs.retinanet("v1", 91, depth=18)
    file = theirs.save(model, folder / "coco.pth")
    return model.state_dict(), file, folder / "coco", import_run("torchvision", file, folder / "coco")


@pytest.fixture(scope="module")
def second():
    """The tensors of a second version with three rows."""
    return {name: tensor.numpy() for name, tensor in theirs.retinanet("v2", 3, depth=18).state_dict().items()}


@pytest.fixture(scope="module")
def second_run(second, folder):
    """Its run, with a configuration, names for all rows but the first, and overrides."""
    given = config.load(None, ["run.seed=7", "data.resize.max_canvases=2"])
    overrides = ["data.invalid_boxes=clip", "inference.max_detections=50"]
    file = save(second, folder / "second.pth")
    import_run("torchvision", file, folder / "second", classes=["cat", "dog"], config=given, overrides=overrides)
    return folder / "second"


def file_of(state):
    return TensorFile(Path("x.pth"), "0" * 64, {name: np.asarray(value) for name, value in state.items()})


def save(state, path):
    torch.save({name: torch.from_numpy(np.array(value)) for name, value in state.items()}, path)
    return path


# ------------------------------------------------------------------------------------------------------------- the run


def test_the_run_directory(coco):
    _, file, run, report = coco
    saved = read(RunDirectory.open(run).checkpoint_path("best"))
    assert saved.step == 0 and RunDirectory.open(run).checkpoint_path("latest").stem == "step_0"
    assert saved.class_names == tuple(CATEGORIES.values()) and len(saved.class_names) == 80
    assert saved.category_ids == tuple(CATEGORIES) and (saved.category_ids[0], saved.category_ids[-1]) == (1, 90)
    written = config.load(run / "config.yaml")
    assert config.parse(saved.config) == written
    environment = json.loads((run / "environment.json").read_text())
    assert environment["weights"] == {"file": str(file), "sha256": sha256_of_file(file)}
    assert json.loads((run / "import.json").read_text()) == json.loads(json.dumps(report.to_json()))
    assert report.sha256 == sha256_of_file(file) and report.file == "coco.pth"
    assert not list(run.rglob(".partial*"))


def test_conventions_of_the_first_version(coco):
    written = config.load(coco[2] / "config.yaml")
    assert (written.model.backbone, written.model.batch_norm) == ("resnet18", "train")
    assert written.model.pixel_mean == (123.675, 116.28, 103.53) and written.model.pixel_std == (58.395, 57.12, 57.375)
    fpn, head = written.model.fpn, written.model.head
    assert (fpn.p6_from, fpn.padding, fpn.channels, fpn.min_level, fpn.max_level) == ("p5", "symmetric", 256, 3, 7)
    assert (head.norm, head.layers, head.channels, head.conv_bias) == ("none", 4, 256, True)
    anchors = written.anchors
    assert anchors.sizes == ((32, 40, 50), (64, 80, 101), (128, 161, 203), (256, 322, 406), (512, 645, 812))
    assert (anchors.offset, anchors.rounding, anchors.spacing) == (0.0, True, "canvas")
    assert anchors.ratios == (0.5, 1.0, 2.0) and anchors.box_weights == (1, 1, 1, 1) and anchors.max_size_ratio == 62.5
    inference = written.inference
    assert (inference.score_threshold, inference.nms_iou) == (0.05, 0.5)
    assert (inference.candidates, inference.max_detections) == (1000, 300)
    assert written.loss.box == config.L1Box(weight=1.0)
    assert written.loss.classification == config.Focal(alpha=0.25, gamma=2.0)
    assert (written.assignment.positive_iou, written.assignment.negative_iou) == (0.5, 0.4)
    resize = written.data.resize
    assert (resize.short, resize.long, resize.multiple) == (800, 1333, 32)
    assert written.data.crowd == "drop"
    assert written.data.root.is_absolute()


def test_rows_of_the_classes_that_coco_has(coco):
    """Output channels are anchor-major; of 91 rows the background and the ten unused ids have no place here."""
    state, _, run, _ = coco
    arrays = read(RunDirectory.open(run).checkpoint_path("best")).arrays
    theirs_weight = state["head.classification_head.cls_logits.weight"].numpy().reshape(9, 91, 256, 3, 3)
    kernel = arrays["weights/detector/classification/prediction/kernel"].reshape(3, 3, 256, 9, 80)
    for anchor, label, row in ((0, 0, 1), (4, 11, 13), (8, 79, 90), (5, 24, 27)):
        assert CATEGORIES[row] == list(CATEGORIES.values())[label]
        np.testing.assert_array_equal(kernel[..., anchor, label], theirs_weight[anchor, row].transpose(1, 2, 0))
    bias = arrays["weights/detector/classification/prediction_bias"].reshape(9, 80)
    theirs_bias = state["head.classification_head.cls_logits.bias"].numpy().reshape(9, 91)
    np.testing.assert_array_equal(bias, theirs_bias[:, list(CATEGORIES)])
    with np.load(run / "import_leftovers.npz") as file:
        gaps = [row for row in range(91) if row not in CATEGORIES]
        assert len(gaps) == 11
        left = file["head.classification_head.cls_logits.bias"]
        np.testing.assert_array_equal(left.reshape(9, 11), theirs_bias[:, gaps])
        counters = {name for name in state if name.endswith("num_batches_tracked")}
        assert set(file.files) == counters | {f"head.classification_head.cls_logits.{a}" for a in ("weight", "bias")}


def test_every_tensor_is_accounted_for(coco):
    state, _, run, report = coco
    assert sorted(one.source for one in report.carried) == sorted(
        name for name in state if not name.endswith("num_batches_tracked")
    )
    arrays = read(RunDirectory.open(run).checkpoint_path("best")).arrays
    carried = {f"weights/{one.target}": one for one in report.carried}
    assert set(carried) == {name for name in arrays if name.startswith("weights/")}
    for name, one in carried.items():
        assert one.target_shape == arrays[name].shape and one.source_shape == tuple(state[one.source].shape)
        if "cls_logits" not in one.source:
            wanted = state[one.source].numpy()
            wanted = wanted.transpose(2, 3, 1, 0) if wanted.ndim == 4 else wanted
            assert one.axes == ((2, 3, 1, 0) if wanted.ndim == 4 else None)
            np.testing.assert_array_equal(arrays[name], wanted)
    plain = {name.removeprefix("weights/"): values for name, values in arrays.items() if name in carried}
    assert report.arrays_sha256 == sha256_of_arrays(plain)
    assert {one.reason for one in report.unused} == {
        "PyTorch's count of training batches",
        "entries of classes that the detector here does not have",
    }


def test_the_second_version_with_a_config_and_names(second, second_run):
    given = config.load()
    saved = read(RunDirectory.open(second_run).checkpoint_path("best"))
    assert saved.class_names == ("cat", "dog") and saved.category_ids == (1, 2)  # the first row is the background
    written = config.load(second_run / "config.yaml")
    assert written.run.seed == 7 and written.schedule == given.schedule and written.data.train == given.data.train
    assert (written.data.invalid_boxes, written.inference.max_detections) == ("clip", 50)
    assert (written.data.resize.short, written.data.resize.max_canvases) == (800, 2)
    assert (written.model.fpn.p6_from, written.model.head.norm, written.model.head.conv_bias) == ("c5", "group", False)
    assert written.loss.box == config.GiouBox(weight=1.0)
    assert not (second_run / "pictures").exists()
    notes = json.loads((second_run / "import.json").read_text())["notes"]
    assert len(notes) == 3 and "rows without a class" in notes[0]
    assert "resizes normalised floats" in notes[1] and "max_canvases" in notes[2]
    norm = saved.arrays["weights/detector/box/norm_3/gamma"]
    np.testing.assert_array_equal(norm, second["head.regression_head.conv.3.1.weight"])


def test_names_of_older_versions(coco, folder):
    """Before torchvision 0.13 convolutions of heads and pyramid had no second number; the published V1 file is such."""
    state, _, _, report = coco
    old = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if ".conv." in name and "head" in name:
            parts = [*parts[:3], str(2 * int(parts[3])), parts[5]]
        elif "_blocks." in name and "extra" not in name:
            parts = [*parts[:4], parts[5]]
        if parts[-1] != "num_batches_tracked":
            old[".".join(parts)] = tensor.numpy()
    assert "head.regression_head.conv.6.bias" in old and "backbone.fpn.layer_blocks.2.weight" in old
    other = import_run("torchvision", save(old, folder / "old.pth"), folder / "old")
    assert other.arrays_sha256 == report.arrays_sha256 and other.sha256 != report.sha256
    assert "epsilon" in other.notes[0]
    written = config.load(folder / "old" / "config.yaml").model
    assert (written.batch_norm, written.batch_norm_epsilon) == ("frozen", None)


# ---------------------------------------------------------------------------------------------------------- recognising


def test_the_published_first_file_has_no_epsilon(second):
    frozen = {name: value for name, value in second.items() if not name.endswith("num_batches_tracked")}
    kind = torchvision.recognise(file_of(frozen))
    published = file_of(frozen)._replace(sha256="eeacb38b" + "0" * 56)
    assert torchvision.conventions(kind, published)[0]["model"]["batch_norm_epsilon"] == 0.0
    assert torchvision.conventions(kind, file_of(frozen))[0]["model"]["batch_norm_epsilon"] is None


@pytest.mark.parametrize(
    ("name", "shape", "text"),
    [
        ("head.classification_head.cls_logits.weight", None, "expected a RetinaNet's heads"),
        ("head.classification_head.cls_logits.weight", (28, 256, 3, 3), "expected a multiple of 9 logits, .* found 28"),
        ("head.regression_head.bbox_reg.weight", (12, 256, 3, 3), "expected 36 outputs of the box head, .* found 12"),
        ("backbone.fpn.extra_blocks.p6.weight", None, "expected a pyramid on C3 to C5 with P6 and P7"),
        ("backbone.fpn.inner_blocks.3.0.weight", (1,), "expected a pyramid on C3 to C5 .* found 4 levels"),
        ("backbone.body.layer3.2.conv1.weight", (1,), "expected the backbone of a ResNet of 18 to 152 layers"),
    ],
)
def test_other_architectures(second, name, shape, text):
    state = {key: value for key, value in second.items() if key != name}
    if shape is not None:
        state[name] = np.zeros(shape, np.float32)
    with pytest.raises(RetinaError, match=text):
        torchvision.recognise(file_of(state))


def test_a_classifier_is_shown_its_place(second):
    body = "backbone.body."
    state = {name.removeprefix(body): value for name, value in second.items() if name.startswith(body)}
    with pytest.raises(RetinaError, match=r"this is a classifier; .* model\.backbone=resnet18 model\.weights=x\.pth"):
        torchvision.recognise(file_of(state))


def test_names_and_rows(second):
    kind = torchvision.recognise(file_of(second))
    assert torchvision.classes_of(kind.rows, None, "x") == (("class_0", "class_1", "class_2"), (0, 1, 2), (0, 1, 2))
    assert torchvision.classes_of(kind.rows, ["a", "b", "c"], "x") == (("a", "b", "c"), (0, 1, 2), (0, 1, 2))
    assert torchvision.classes_of(kind.rows, ["a", "b"], "x") == (("a", "b"), (1, 2), (1, 2))
    whole = kind._replace(rows=91)
    assert torchvision.classes_of(whole.rows, [str(i) for i in range(90)], "x").rows == tuple(range(1, 91))
    for names, text in (
        (["a"], "x: its head has 3 rows: expected 3 names, or 2 .* gives 1"),
        (["a", "b", "c", "d"], "gives 4"),
        (["a", "a"], "--classes: expected distinct names"),
        (["a", ""], "--classes: expected distinct names"),
    ):
        with pytest.raises(RetinaError, match=text):
            torchvision.classes_of(kind.rows, names, "x")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"backbone.body.bn1.bias": None}, r"it lacks backbone\.body\.bn1\.bias\. Is it another network's"),
        ({"roi_heads.x": np.zeros(1, np.float32)}, r"it also holds roi_heads\.x\. Is it"),
        ({"backbone.body.bn1.bias": np.zeros(65, np.float32)}, r"bn1\.bias has shape \[65\] .* expects \[64\]"),
        ({"backbone.body.bn1.bias": np.zeros(64, np.int64)}, r"bn1\.bias has shape \[64\] of int64"),
        ({"head.regression_head.bbox_reg.bias": np.zeros(9, np.float32)}, r"bbox_reg\.bias has shape \[9\]"),
        ({"head.classification_head.cls_logits.bias": np.zeros(18, np.float32)}, r"cls_logits\.bias has shape \[18\]"),
    ],
)
def test_tensors_that_do_not_fit(second, second_run, change, text):
    state = {name: value for name, value in {**second, **change}.items() if value is not None}
    arrays = read(RunDirectory.open(second_run).checkpoint_path("best")).arrays
    shapes = {name.removeprefix("weights/"): values.shape for name, values in arrays.items()}
    kind = torchvision.recognise(file_of(second))
    rules = torchvision.retinanet_rules(kind, torchvision.classes_of(kind.rows, ["a", "b"], "x"))
    for values, problem in ((second, None), (state, text)):
        with pytest.raises(RetinaError, match=problem) if problem else contextlib.nullcontext():
            convert(file_of(values), rules, shapes, what="x", expected_unused=torchvision.DETECTOR_UNUSED)


# -------------------------------------------------------------------------------------------------- on the command line


def run_cli(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["retina", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, capsys.readouterr()


class Evil:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.trace),)


def test_bad_files_exit_with_2(tmp_path, monkeypatch, capsys, coco):
    trace = tmp_path / "it_ran"
    whole = coco[1].read_bytes()
    files = {
        "absent.pth": None,
        "empty.pth": b"",
        "text.pth": b"<html>404</html>",
        "truncated.pth": whole[: len(whole) // 2],
        "malicious.pth": None,
        "classifier.pth": None,
    }
    for name, content in files.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    torch.save({"model": Evil(trace)}, tmp_path / "malicious.pth", pickle_module=pickle)
    torch.save({"conv1.weight": torch.ones(1), "fc.weight": torch.ones(1)}, tmp_path / "classifier.pth")
    for name in files:
        code, said = run_cli(
            monkeypatch, capsys, "import-weights", "torchvision", tmp_path / name, "--out", tmp_path / "run"
        )
        assert code == 2 and said.out == ""
        assert said.err.startswith(f"retina: {tmp_path / name}: ") and said.err.count("\n") == 1
    assert not trace.exists() and not (tmp_path / "run").exists()


def test_a_taken_folder(tmp_path, monkeypatch, capsys, coco):
    code, said = run_cli(monkeypatch, capsys, "import-weights", "torchvision", coco[1], "--out", coco[2])
    assert code == 2 and said.err == (
        f"retina: {coco[2]}: expected a new or an empty folder, it is taken; choose another --out, or remove it\n"
    )


def test_the_commands_names_in_python():
    assert retina.import_weights is import_run and retina.export_weights is export_weights


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, capsys, coco):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("retina.runs.importing.save", full)
    words = "import-weights", "torchvision", coco[1], "--out", tmp_path / "run"
    code, said = run_cli(monkeypatch, capsys, *words)
    assert code == 2 and "cannot write the run directory: No space left on device; choose another --out" in said.err
    assert not (tmp_path / "run").exists()


def test_what_came_into_the_folder_meanwhile_stays(tmp_path, monkeypatch, capsys, coco):
    out = tmp_path / "run"
    read = importing.describe_environment

    def slowly(config):
        out.mkdir()
        (out / "mine.txt").write_text("kept")
        return read(config)

    monkeypatch.setattr(importing, "describe_environment", slowly)
    code, said = run_cli(monkeypatch, capsys, "import-weights", "torchvision", coco[1], "--out", out)
    assert code == 2 and "choose another --out" in said.err
    assert [file.name for file in out.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_predict_and_export_without_any_data(folder, monkeypatch, capsys, shared_data):
    """From the file to pictures and to an export with its certificate; nothing but the file is needed."""
    file = theirs.save(theirs.retinanet("v2", 3, depth=18), folder / "fresh.pth")
    run = folder / "fresh"
    code, said = run_cli(
        monkeypatch, capsys, "import-weights", "torchvision", file, "--out", run, "--classes", "a,b,c",
        "inference.max_detections=20",
    )  # fmt: skip
    assert not code, said.err
    assert "--split test" in said.out and "import.json" in said.out
    image = sorted((shared_data / "coco_mini").rglob("*.jpg"))[0]
    code, said = run_cli(
        monkeypatch, capsys, "predict", run, image, "--out", folder / "seen", "--score", 0.05, "--json"
    )
    assert not code, said.err
    assert len(json.loads(said.out)[0]["detections"]) > 5
    code, said = run_cli(monkeypatch, capsys, "export", run, "--split", "test", "--certify", 1, "--json")
    assert code in (0, None), said.err
    certificate = json.loads(said.out)
    assert certificate["passed"] and certificate["detections"]["checkpoint"] > 5
