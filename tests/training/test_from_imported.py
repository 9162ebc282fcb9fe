"""Training on from what was imported: by the run's own configuration, and from files of backbones, said in the log."""

import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
theirs = pytest.importorskip("tests.parity.torchvision_models")

from retina import cli, config  # noqa: E402
from retina.data.formats.digits import read_digits  # noqa: E402
from retina.errors import RetinaError  # noqa: E402
from retina.models import backbones  # noqa: E402
from retina.runs.checkpoint import gather, read  # noqa: E402
from retina.runs.directory import RunDirectory  # noqa: E402
from retina.runs.importing import import_run  # noqa: E402
from retina.training.parts import _weights_notes, assemble  # noqa: E402
from retina.training.train import train, with_absolute_paths  # noqa: E402
from retina.weights import torchvision  # noqa: E402
from retina.weights.tensor_file import read_tensors, sha256_of_file  # noqa: E402
from retina.weights.tensor_writing import write_tensors  # noqa: E402
from tests.weights.test_weights_reading import safetensors  # noqa: E402

SMALL = [
    "data.train={format: digits, images: 4, size: 96}",
    "data.validation={format: digits, split: validation, images: 2}", "data.resize.short=96", "data.resize.long=128",
    "schedule={kind: cosine, steps: 2, warmup_steps: 1}",
    "run={batch_size: 2, checkpoint_every: 2, evaluate_every: 2, log_every: 1, pictures: 0, preflight: warn}",
]  # fmt: skip


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A detector's file, and its run; two of its three classes are the digits' 3 and 7."""
    folder = tmp_path_factory.mktemp("imported")
    file = theirs.save(theirs.retinanet("v1", 3, depth=18), folder / "detector.pth")
    import_run("torchvision", file, folder / "run", classes=["7", "cat", "3"])
    return file, folder / "run"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    torch.manual_seed(0)
    return theirs.save(theirs.resnet.resnet18(weights=None), tmp_path_factory.mktemp("classifier") / "resnet18.pth")


def test_the_configuration_of_an_imported_run_starts_from_it(imported):
    file, run = imported
    given = config.load(run / "config.yaml", SMALL)
    assert given.model.weights is None and given.model.init_from == run
    environment = json.loads((run / "environment.json").read_text())
    assert environment["weights"] == {"file": str(file), "sha256": sha256_of_file(file)}
    parts = assemble(given, read_digits("train", 4, 96))
    assert parts.notes[:2] == (f"weights from {run}, step 0", "classification rows taken over for 2 classes (3, 7)")
    assert not any("trained with other settings" in note for note in parts.notes)
    before, after = read(RunDirectory.open(run).checkpoint_path("best")).arrays, gather(parts.detector)
    rows = "weights/detector/classification/prediction/kernel"
    for name, values in after.items():
        if name.startswith("weights/") and "classification/prediction" not in name:
            np.testing.assert_array_equal(values, before[name], err_msg=name)
    old, new = before[rows].reshape(3, 3, 256, 9, 3), after[rows].reshape(3, 3, 256, 9, 10)
    np.testing.assert_array_equal(new[..., [7, 3]], old[..., [0, 2]])


@pytest.mark.slow
def test_it_trains(imported, tmp_path):
    train(config.load(imported[1] / "config.yaml", SMALL), tmp_path / "new")
    saved = read(RunDirectory.open(tmp_path / "new").checkpoint_path("latest"))
    assert saved.step == 2 and len(saved.class_names) == 10
    assert f"weights from {imported[1]}, step 0" in (tmp_path / "new" / "log.txt").read_text()


def test_a_detectors_file_as_a_backbone_says_how_to_go_on(imported):
    text = (
        r"this is a whole detector; .* `retina import-weights torchvision .*detector\.pth --out RUN`, and train from "
    )
    with pytest.raises(RetinaError, match=text + r"it with model\.weights=null model\.init_from=RUN"):
        backbones.build("resnet18", str(imported[0]))


def test_an_imported_run_that_was_moved(imported, tmp_path):
    given = config.override(config.load(imported[1] / "config.yaml", SMALL), [f"model.init_from={tmp_path / 'moved'}"])
    with pytest.raises(RetinaError, match=r"moved: not a run directory .* names the folder it was made in"):
        assemble(given, read_digits("train", 4, 96))


def test_counters_beside_some_statistics_only(imported):
    file = read_tensors(imported[0])
    tensors = {name: value for name, value in file.tensors.items() if name != "backbone.body.bn1.num_batches_tracked"}
    text = (
        r"expected num_batches_tracked beside every running_var .* found it at 19 of 20, not at backbone\.body\.bn1\."
    )
    with pytest.raises(RetinaError, match=text):
        torchvision.recognise(file._replace(tensors=tensors))


@pytest.mark.parametrize(
    ("name", "shape", "text"),
    [
        ("head.classification_head.cls_logits.weight", (9 * 10**9, 0, 3, 3), "expected logits of features"),
        (
            "backbone.fpn.extra_blocks.p6.weight",
            (10**6, 0, 3, 3),
            "a pyramid of 1000000 channels and heads of 4 layers",
        ),
        ("head.classification_head.conv.{}.0.weight", (1, 1, 3, 3), "channels and heads of 104 layers follow"),
    ],
)
def test_shapes_that_ask_for_a_vast_network(imported, tmp_path, name, shape, text):
    """Refused before anything of that size is built."""
    tensors = read_tensors(imported[0]).tensors
    wanted = [name.format(4 + number) for number in range(100)] if "{}" in name else [name]
    file = tmp_path / "vast.safetensors"
    write_tensors(file, {**tensors, **{one: np.zeros(shape, np.float32) for one in wanted}})
    with pytest.raises(RetinaError, match=f"vast.safetensors: .*{text}"):
        import_run("torchvision", file, tmp_path / "run")


def test_a_folder_is_no_file(tmp_path):
    text = r"Is a directory; give the \.pth or \.safetensors file in it.*`retina import-weights keras-hub"
    with pytest.raises(RetinaError, match=text):
        import_run("torchvision", tmp_path, tmp_path / "run")


class Evil:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("kind", ["torchvision", "keras-hub", "detectron2", "torchvision-backbone"])
def test_bad_files_of_every_kind(kind, imported, tmp_path, monkeypatch, capsys):
    trace, whole = tmp_path / "it_ran", imported[0].read_bytes()
    files = {
        "absent.pth": None,
        "empty.h5": b"",
        "text.pkl": b"<html>404</html>",
        "truncated.pth": whole[: len(whole) // 3],
        "truncated.weights.h5": b"\x89HDF\r\n\x1a\n" + bytes(30),
        "truncated.keras": b"PK\x03\x04" + bytes(30),
        "malicious.pkl": pickle.dumps({"model": {"a": Evil(trace)}}, protocol=2),
        "memory.pkl": b"\x80\x02}r\xff\xff\xff\x7f.",
        "other.safetensors": safetensors({"roi_heads.weight": np.zeros(3, np.float32)}),
    }
    for name, content in files.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")  # which would be waited for without end
    for name in [*files, "folder", "pipe"]:
        words = ["retina", "import-weights", kind, str(tmp_path / name), "--out", str(tmp_path / "run")]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert ended.value.code == 2 and said.out == "", name
        assert said.err.startswith(f"retina: {tmp_path / name}: ") and said.err.count("\n") == 1, said.err
        if name == "pipe":
            assert "expected a file, it is a pipe" in said.err and "damaged" not in said.err
    assert not trace.exists() and not (tmp_path / "run").exists()


# --------------------------------------------------------------------------------------------------- files of backbones


def small_config(file, *more):
    return config.load(
        None,
        [
            "model.backbone=resnet18", f"model.weights={file}", "model.fpn={channels: 16, max_level: 5}",
            "model.head={channels: 16, layers: 1}", *SMALL, *more,
        ],
    )  # fmt: skip


def test_a_file_of_weights_is_named_so_that_it_is_found_from_any_folder(tmp_path, monkeypatch):
    coco = Path(__file__).parents[2] / "configs" / "coco_r50_fpn_1x.yaml"
    monkeypatch.chdir(tmp_path)
    assert with_absolute_paths(small_config("resnet18.pth")).model.weights == str(tmp_path / "resnet18.pth")
    assert with_absolute_paths(config.load(coco)).model.weights == "resnet50_imagenet"  # a preset of keras-cv's


def test_what_became_of_the_backbones_file(classifier):
    given = small_config(classifier)
    parts = assemble(given, read_digits("train", 4, 96))
    report = parts.detector.weights_report
    assert report.sha256 == sha256_of_file(classifier)
    assert parts.notes == (
        f"backbone weights from {classifier}: 100 tensors, 22 without a place (PyTorch's count of training batches, "
        f"the ImageNet classifier); SHA-256 {report.sha256} of the file, {report.arrays_sha256} of the variables",
    )
    wanted = read_tensors(classifier).tensors["bn1.weight"]
    np.testing.assert_array_equal(gather(parts.detector)["weights/bn1/gamma"], wanted)
    assert "weights_report" not in "".join(gather(parts.detector))


def test_other_pixels_than_imagenets_are_said(classifier, tmp_path):
    pixels = ["model.pixel_mean=[0.0, 0.0, 0.0]", "model.pixel_std=[255.0, 255.0, 255.0]"]
    given = small_config(classifier, *pixels)
    notes = _weights_notes(given, assemble(given, read_digits("train", 4, 96)).detector)[1:]
    assert notes == [
        "model.pixel_mean is [0.0, 0.0, 0.0], the ImageNet weights of torchvision and timm expect [123.675, 116.28, "
        "103.53]: unless resnet18.pth was trained with yours, set model.pixel_mean=[123.675, 116.28, 103.53]",
        "model.pixel_std is [255.0, 255.0, 255.0], the ImageNet weights of torchvision and timm expect [58.395, 57.12, "
        "57.375]: unless resnet18.pth was trained with yours, set model.pixel_std=[58.395, 57.12, 57.375]",
    ]
    report = import_run("torchvision-backbone", classifier, tmp_path / "run", classes=["a"], config=given)
    assert list(report.notes) == notes


def test_a_negative_variance_is_refused(classifier, tmp_path):
    state = torch.load(classifier, weights_only=True)
    state["layer4.1.bn2.running_var"][3] = -1e-3
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(RetinaError, match=r"tensor layer4\.1\.bn2\.running_var is a variance, .* got -0\.001"):
        backbones.build("resnet18", str(tmp_path / "x.pth"))
