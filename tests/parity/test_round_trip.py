"""torchvision to retina and back: equal tensors, loaded strictly by the code that the export gives."""

import importlib.util
import json
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if importlib.util.find_spec("torchvision") is None:  # importing it is for torchvision_models to do
    pytest.skip("needs torchvision", allow_module_level=True)

from retina import cli, config  # noqa: E402
from retina.errors import RetinaError  # noqa: E402
from retina.export.weights import export_weights  # noqa: E402
from retina.inference import build_detector  # noqa: E402
from retina.runs.checkpoint import Checkpoint, gather, save  # noqa: E402
from retina.runs.directory import RunDirectory  # noqa: E402
from retina.runs.importing import import_run  # noqa: E402
from retina.weights.coco_classes import CATEGORIES  # noqa: E402
from retina.weights.export_torchvision import state_dict  # noqa: E402
from retina.weights.tensor_file import read_tensors, sha256_of_file  # noqa: E402
from tests.parity import torchvision_models as theirs  # noqa: E402


def loaded(code):
    """The model that an export's own code builds, with the file in it."""
    space = {}
    exec(code, space)
    return space["model"]


def same(state, other):
    assert sorted(state) == sorted(other)
    for name, tensor in state.items():
        assert tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]), name


def counted(model):
    """Counters of batches that differ from layer to layer, as in no untrained model."""
    for number, (name, buffer) in enumerate(model.named_buffers()):
        if name.endswith("num_batches_tracked"):
            buffer.fill_(100 + number)
    return model


@pytest.mark.parametrize(
    ("version", "rows", "names", "frozen", "suffix"),
    [
        ("v1", 91, None, False, ".pth"),  # eleven rows have no class here
        # The background's row has none.
        pytest.param("v2", 4, ["a", "b", "c"], False, ".safetensors", marks=pytest.mark.slow),
        # Every row has one, and there are no counters.
        pytest.param("v1", 3, None, True, ".safetensors", marks=pytest.mark.slow),
    ],
)
def test_what_came_goes_back(version, rows, names, frozen, suffix, tmp_path, monkeypatch):
    model = counted(theirs.retinanet(version, rows, depth=18, frozen=frozen))
    if not frozen:
        assert model.state_dict()["backbone.body.bn1.num_batches_tracked"] >= 100
    import_run("torchvision", theirs.save(model, tmp_path / "theirs.pth"), tmp_path / "run", classes=names)
    report = export_weights("torchvision", tmp_path / "run", tmp_path / f"back{suffix}")
    if suffix == ".pth":
        same(model.state_dict(), torch.load(tmp_path / "back.pth", weights_only=True))
    same(
        {name: tensor.float() for name, tensor in model.state_dict().items()},
        {
            name: torch.from_numpy(np.array(values)).float()
            for name, values in read_tensors(tmp_path / f"back{suffix}").tensors.items()
        },
    )
    assert report.sha256 == sha256_of_file(tmp_path / f"back{suffix}")
    assert len(report.labels) == rows
    expected = list(names) if names else [None] * 11 if rows == 91 else [f"class_{row}" for row in range(3)]
    if rows == 91:
        assert report.labels[1] == "person" and report.labels[90] == "toothbrush" and report.labels[12] is None
        assert [label for label in report.labels if label is None] == expected
    else:
        assert [label for label in report.labels if label] == expected
    if suffix == ".pth":  # the code reads safetensors by their own library, which tests can do without
        same(model.state_dict(), loaded(report.code).state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("version", theirs.VERSIONS)
def test_the_builders_by_name(version, tmp_path):
    """ResNet-50: the file goes into torchvision's own two builders, strictly."""
    model = counted(theirs.retinanet(version, 91))
    import_run("torchvision", theirs.save(model, tmp_path / "theirs.pth"), tmp_path / "run")
    report = export_weights("torchvision", tmp_path / "run", tmp_path / "back.pth")
    builder = "retinanet_resnet50_fpn" + ("_v2" if version == "v2" else "")
    assert f"model = {builder}(weights=None, weights_backbone=None, num_classes=91)\n" in report.code
    back = loaded(report.code)
    same(model.state_dict(), back.state_dict())
    assert back.head.regression_head._loss_type == model.head.regression_head._loss_type


# ------------------------------------------------------------------------------------------------------- trained here

THEIRS = [
    "model.backbone=resnet18", "model.fpn.padding=symmetric", "anchors.offset=0.0", "anchors.rounding=true",
    "data.resize.short=96", "data.resize.long=128", "data.resize.multiple=32", "anchors.spacing=canvas",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of three classes that never was torchvision's, as training leaves it behind at step 7."""
    folder = tmp_path_factory.mktemp("round_trip") / "run"
    resolved = config.load(
        None,
        [
            *THEIRS, "model.pixel_mean=[100.0,110.0,120.0]", "inference.score_threshold=0.2", "model.head.layers=4",
            "model.batch_norm_epsilon=0.001", "anchors.sizes=null", "anchors.size=3.0", "model.head.channels=256",
            "model.fpn.channels=256", "model.head.norm=none", "anchors.scales=[1.0,1.5]", "model.fpn.max_level=7",
            "model.pixel_std=[50.0,60.0,70.0]",
        ],
    )  # fmt: skip
    names, ids = ("cat", "dog", "eel"), (3, 9, 4)
    detector = build_detector(resolved, names)
    draw = np.random.default_rng(0)
    for variable in detector.variables:
        if "prediction" in variable.path or variable.path.endswith(("moving_mean", "beta")):
            variable.assign(draw.normal(size=variable.shape, scale=0.1))
    run = RunDirectory.create(folder, config.to_yaml(resolved), {})
    arrays = gather(detector)
    save(run.checkpoint_path("step_7"), Checkpoint(7, resolved.model_dump(mode="json"), names, ids, None, arrays))
    run.point("best", run.checkpoint_path("step_7"))
    return folder, resolved, detector, arrays


def test_a_run_of_ones_own_computes_the_same_there(trained, tmp_path):
    folder, _, detector, _ = trained
    report = export_weights("torchvision", folder, tmp_path / "own.pth")
    assert report.labels == (None, "cat", "dog", "eel")
    model = loaded(report.code)
    theirs.native_size(model, 90, 120)
    assert model.score_thresh == 0.2 and model.state_dict()["backbone.body.bn1.num_batches_tracked"] == 7
    canvas = np.zeros((96, 128, 3), np.uint8)
    canvas[:90, :120] = np.random.default_rng(1).integers(0, 256, (90, 120, 3))
    ours = detector({"images": canvas[None], "size": np.array([[90, 120]], np.int32)}, training=False)
    with torch.no_grad():
        listed, _ = model.transform([torch.from_numpy(canvas[:90, :120].copy()).permute(2, 0, 1).float() / 255])
        assert tuple(listed.tensors.shape[-2:]) == (96, 128)
        features = list(model.backbone(listed.tensors).values())
        found = model.head(features)
        anchors = model.anchor_generator(listed, features)[0].numpy()
    np.testing.assert_array_equal(np.concatenate(detector.level_anchors((96, 128))), anchors)
    logits = found["cls_logits"].numpy()
    assert (logits[..., 0] == -20).all()
    for mine, wanted in ((ours["logits"], logits[..., 1:]), (ours["deltas"], found["bbox_regression"].numpy())):
        assert wanted.std() > 0.01
        np.testing.assert_allclose(np.asarray(mine), wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


def test_cocos_classes_get_cocos_rows(trained):
    _, resolved, _, arrays = trained
    plain = {name.removeprefix("weights/"): values for name, values in arrays.items()}
    for name in ("kernel", "bias"):
        key = f"detector/classification/prediction{'/' if name == 'kernel' else '_'}{name}"
        plain[key] = np.tile(np.arange(80, dtype=np.float32), (*plain[key].shape[:-1], 6))
    names, ids = tuple(CATEGORIES.values()), tuple(CATEGORIES)
    given = {"leftovers": {}, "imported_rows": None, "step": 0, "where": "x"}
    state = state_dict(plain, resolved, names, ids, **given)
    assert len(state.labels) == 91 and state.labels[13] == "stop sign" and state.labels[12] is None
    bias = state.tensors["head.classification_head.cls_logits.bias"].reshape(6, 91)
    assert (bias[:, [1, 11, 13, 90]] == [0, 10, 11, 79]).all() and (bias[:, [0, 12, 91 - 8]] == -20).all()
    other = state_dict(plain, resolved, names, tuple(range(80)), **given)
    assert len(other.labels) == 81 and other.labels[:2] == (None, "person")  # ids that are not COCO's tell nothing


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("model.backbone=keras_cv/resnet50", r"model\.backbone is keras_cv/resnet50 \(needs resnet18/34/50/101/152\)"),
        ("model.backbone=resnet50_v1", r"model\.backbone is resnet50_v1"),
        ("model.fpn.padding=same", r"model\.fpn\.padding is same \(needs symmetric\)"),
        ("model.fpn.max_level=6", r"model\.fpn\.max_level is 6 \(needs 7\)"),
        ("model.fpn.channels=512", r"model\.fpn\.p6_from is c5 \(needs p5, or other channels\)"),
        ("model.head.channels=64", r"model\.head\.channels is 64 \(needs model\.fpn\.channels, 256\)"),
        ("model.head.layers=2", r"model\.head\.layers is 2 \(needs 4\)"),
        ("model.head.norm=group", r"model\.head\.conv_bias is True \(needs false with norm: group\)"),
        ("anchors.offset=0.5", r"anchors\.offset is 0\.5 \(needs 0\.0\)"),
        ("anchors.rounding=false", r"anchors\.rounding is False \(needs true\)"),
        ("anchors.spacing=stride", r"anchors\.spacing is stride \(needs canvas, or a data\.resize\.multiple of 128\)"),
        ("anchors.box_weights=[10.0,10.0,5.0,5.0]", r"anchors\.box_weights is \(10\.0"),
        ("anchors.max_size_ratio=10.0", r"anchors\.max_size_ratio is 10\.0 \(needs 62\.5\)"),
        ("inference.clip=none", r"inference\.clip is none \(needs before\)"),
        ("inference.candidates_per=image", r"inference\.candidates_per is image \(needs level\)"),
        ("inference.suppression=linear", r"inference\.suppression is linear \(needs hard\)"),
    ],
)
def test_what_torchvision_cannot_hold(trained, override, text):
    resolved = config.override(trained[1], [override])
    given = {"leftovers": {}, "imported_rows": None, "step": 0, "where": "runs/mine"}
    with pytest.raises(RetinaError, match=f"runs/mine: torchvision's RetinaNet can't hold this detector: {text}"):
        state_dict({}, resolved, ("a",), (1,), **given)


# ----------------------------------------------------------------------------------------------------- command line


def run_cli(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["retina", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, capsys.readouterr()


def test_on_the_command_line(trained, tmp_path, monkeypatch, capsys):
    file = tmp_path / "own.safetensors"
    code, said = run_cli(monkeypatch, capsys, "export-weights", "torchvision", trained[0], file, "--json")
    assert not code, said.err
    report = json.loads(said.out)
    tensors = read_tensors(file).tensors
    assert {one["name"] for one in report["tensors"]} == set(tensors)
    assert report["labels"] == [None, "cat", "dog", "eel"] and "load_file(" in report["code"]
    rows = next(one for one in report["tensors"] if one["name"].endswith("cls_logits.bias"))
    assert rows["source"] == "detector/classification/prediction_bias" and rows["reason"].endswith("bias -20")
    code, said = run_cli(monkeypatch, capsys, "export-weights", "torchvision", trained[0], tmp_path / "w.pth")
    assert not code and "AnchorGenerator(((24, 36), (48, 72)," in said.out and "4 rows for 3 classes" in said.out


def test_bad_usage(trained, tmp_path, monkeypatch, capsys):
    (tmp_path / "taken.pth").write_bytes(b"mine")
    cases = [
        (trained[0], tmp_path / "x.onnx", "expected a file name that ends in .safetensors, .pth, .pt"),
        (trained[0], tmp_path / "taken.pth", "is there already"),
        (trained[0], tmp_path / "no" / "x.pth", "there is no folder"),
        (tmp_path / "absent", tmp_path / "x.pth", "absent"),
        (trained[0], tmp_path / "x.pth", "step_99"),
    ]
    for run, file, text in cases:
        words = ["--checkpoint", "step_99"] if text == "step_99" else []
        code, said = run_cli(monkeypatch, capsys, "export-weights", "torchvision", run, file, *words)
        assert code == 2 and text in said.err and said.err.count("\n") == 1 and said.out == ""
    assert (tmp_path / "taken.pth").read_bytes() == b"mine" and not (tmp_path / "x.pth").exists()


def test_a_damaged_account_of_an_import(trained, tmp_path):
    import shutil

    shutil.copytree(trained[0], tmp_path / "run")
    (tmp_path / "run" / "import.json").write_text('{"carried": [{}]}')
    with pytest.raises(RetinaError, match="its import.json or import_leftovers.npz is damaged or missing"):
        export_weights("torchvision", tmp_path / "run", tmp_path / "x.pth")
    assert not (tmp_path / "x.pth").exists()
