"""detectron2's RetinaNet: what is imported computes what its conventions say, written out in plain torch functions."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from retina import cli, config  # noqa: E402
from retina.errors import RetinaError  # noqa: E402
from retina.runs.importing import import_run  # noqa: E402
from retina.runs.loading import load_checkpoint  # noqa: E402
from retina.weights import detectron2  # noqa: E402
from retina.weights.coco_classes import CATEGORIES  # noqa: E402
from retina.weights.tensor_file import TensorFile, read_tensors  # noqa: E402
from tests.parity import detectron2_model as theirs  # noqa: E402
from tests.parity import runner  # noqa: E402

CANVAS = (64, 96)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("detectron2")


@pytest.fixture(scope="module")
def zoo(folder):
    """A small one as the model zoo publishes: a pickle of arrays, with anchors and other things beside the weights."""
    state = theirs.state(18, 3)
    extra = {"anchor_generator.cell_anchors.0": np.zeros((9, 4), np.float32)}
    extra["pixel_mean"] = np.array(theirs.MEAN_BGR, np.float32).reshape(3, 1, 1)
    extra["pixel_std"] = np.ones((3, 1, 1), np.float32)
    file = folder / "model_final.pkl"
    file.write_bytes(pickle.dumps({"model": {**state, **extra}, "__author__": "somebody"}, protocol=2))
    return state, file


def noise():
    return np.random.default_rng(3).integers(0, 256, (*CANVAS, 3)).astype(np.uint8)


def same(run, state):
    predictor, saved = load_checkpoint(run)
    batch = {"images": noise()[None], "size": np.array([CANVAS], np.int32)}
    found = {name: np.asarray(x)[0] for name, x in predictor.detector(batch, training=False).items()}
    compare(theirs.outputs(state, noise()), found, np.concatenate(predictor.detector.level_anchors(CANVAS)))
    return saved


def compare(wanted, found, anchors):
    # Ours count sizes within a ratio, theirs ratios within a size.
    order = np.arange(len(anchors)).reshape(-1, 3, 3).transpose(0, 2, 1).reshape(-1)
    np.testing.assert_allclose(anchors, wanted["anchors"][order], rtol=1e-6, atol=1e-5)
    for name in ("logits", "deltas"):
        assert wanted[name].std() > 0.05
        tolerance = 1e-4 * np.abs(wanted[name]).max()
        np.testing.assert_allclose(found[name], wanted[name][order], rtol=0, atol=tolerance)


def test_a_file_of_the_zoo(zoo, folder):
    state, file = zoo
    report = import_run("detectron2", file, folder / "run")
    saved = same(folder / "run", state)
    assert saved.class_names == ("class_0", "class_1", "class_2")
    assert {one.source for one in report.unused} == {
        "anchor_generator.cell_anchors.0", "pixel_mean", "pixel_std",
    }  # fmt: skip
    assert sorted(one.source for one in report.carried) == sorted(state)
    written = config.load(folder / "run" / "config.yaml")
    assert written.model.backbone == "resnet18" and written.model.batch_norm == "frozen"
    assert written.model.pixel_mean == (123.675, 116.28, 103.53) and written.model.pixel_std == (1.0, 1.0, 1.0)
    assert (written.model.fpn.p6_from, written.model.fpn.padding) == ("c5", "symmetric")
    assert (written.anchors.offset, written.anchors.rounding, written.anchors.spacing) == (0.0, False, "stride")
    assert written.anchors.max_size_ratio == 1000 / 16 and written.anchors.box_weights == (1, 1, 1, 1)
    assert written.loss.box == config.SmoothL1Box(beta=0.1, weight=1.0)
    assert (written.loss.normalizer.kind, written.assignment.force_match) == ("ema", "ties")
    assert (written.inference.score_threshold, written.inference.max_detections) == (0.05, 100)
    assert (written.inference.clip, written.data.resize.antialias, written.data.crowd) == ("after", True, "drop")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends(backend, zoo, folder):
    pytest.importorskip(backend)
    state, file = zoo
    if not (folder / "shared").exists():
        import_run("detectron2", file, folder / "shared")
    cases = {
        "canvas_0": noise(), "size_0": np.array(CANVAS),
        "boxes_0": np.array([[4, 4, 40, 40]], np.float32), "labels_0": np.array([1]),
    }  # fmt: skip
    (found,) = runner.on_backend(backend, folder, cases, [folder / "shared"])
    compare(
        theirs.outputs(state, noise()),
        {name: found[f"{name}_0"][0] for name in ("logits", "deltas")},
        found["anchors_0"],
    )


@pytest.mark.slow
def test_resnet50_with_cocos_classes(folder):
    """Stride in the 1x1, as the zoo's; a checkpoint of torch's, with what training leaves beside the weights."""
    state = theirs.state(50, 80)
    tensors = {name: torch.from_numpy(value) for name, value in state.items()}
    torch.save({"model": tensors, "iteration": 7}, folder / "r50.pth")
    report = import_run("detectron2", folder / "r50.pth", folder / "r50")
    assert same(folder / "r50", state).category_ids == tuple(CATEGORIES)
    assert config.load(folder / "r50" / "config.yaml").model.backbone == "resnet50_v1"
    assert any("STRIDE_IN_1X1" in note for note in report.notes)


def file_of(state):
    return TensorFile(Path("x.pkl"), "0" * 64, state)


def test_the_zoos_names_and_classes(zoo):
    kind = detectron2.recognise(read_tensors(zoo[1]))
    assert (kind.depth, kind.rows, kind.channels, kind.layers, kind.p6_from) == (18, 3, 256, 4, "c5")
    assert kind.pixel_mean == theirs.MEAN_BGR and kind.pixel_std == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("name", "shape", "text"),
    [
        ("head.cls_score.weight", None, "expected head.cls_score and head.bbox_pred"),
        ("head.cls_score.weight", (28, 256, 3, 3), "expected a multiple of 9 logits, .* found 28"),
        ("head.bbox_pred.weight", (12, 256, 3, 3), "expected 36 outputs of the box head, .* found 12"),
        ("backbone.top_block.p6.weight", None, "expected a pyramid on C3 to C5 with P6 and P7"),
        ("backbone.fpn_lateral2.weight", (256, 64, 1, 1), "expected a pyramid on C3 to C5"),
        ("backbone.bottom_up.res4.2.conv1.weight", (1,), "expected a ResNet of 18 to 152 layers"),
        ("head.cls_subnet.1.weight", (256,), "expected heads without normalisation"),
    ],
)
def test_other_architectures(zoo, name, shape, text):
    state = {key: value for key, value in zoo[0].items() if key != name}
    if shape is not None:
        state[name] = np.zeros(shape, np.float32)
    with pytest.raises(RetinaError, match=f"x.pkl: {text}"):
        detectron2.recognise(file_of(state))


# ------------------------------------------------------------------------------------------------- pickles of arrays


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_arrays(protocol, tmp_path):
    arrays = {
        "c": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
        "big": np.arange(3, dtype=">i4"),
        "half": np.array([0.5, -2], np.float16),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(5, np.int64),
        "flag": np.array([True, False]),
    }
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(arrays, protocol=protocol))
    found = read_tensors(tmp_path / "x.pkl").tensors
    assert list(found) == list(arrays)
    for name, values in arrays.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].dtype == (np.float32 if values.dtype.kind == "f" else values.dtype.newbyteorder("="))


class Evil:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.trace),)


def run_cli(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["retina", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, capsys.readouterr()


def test_bad_files_exit_with_2(zoo, tmp_path, monkeypatch, capsys):
    trace = tmp_path / "it_ran"
    whole = zoo[1].read_bytes()
    weights = np.zeros((2, 2), np.float32)
    files = {
        "truncated.pkl": (whole[: len(whole) // 2], "damaged"),
        "empty.pkl": (b"", "is empty"),
        "text.pkl": (b"<html>404</html>", "expected a file of torch.save"),
        "malicious.pkl": (pickle.dumps({"model": {"a": weights, "b": Evil(trace)}}, protocol=2), "nothing was run"),
        "objects.pkl": (
            pickle.dumps({"model": {"a": np.array([Evil(trace)], object)}}, protocol=4),
            "expected plain numbers",
        ),
        "nested.pkl": (pickle.dumps({"model": {"a": np.array([{}], object)}}, protocol=2), "expected plain numbers"),
        "list.pkl": (pickle.dumps([weights], protocol=2), "expected a state dict"),
        "nan.pkl": (pickle.dumps({"a": weights * np.nan}, protocol=2), "not finite"),
        "other.pkl": (pickle.dumps({"a": weights}, protocol=2), "expected head.cls_score"),
        # The state of an array that says more than its bytes hold, and one set on a function.
        "long.pkl": (pickle.dumps({"a": weights}, protocol=2).replace(b"K\x02K\x02\x86", b"K\x02K\x09\x86"), "damaged"),
        "setting.pkl": (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n}X\x01\x00\x00\x00aK\x01sb.", "damaged"),
    }
    for name, (content, text) in files.items():
        (tmp_path / name).write_bytes(content)
        words = ["import-weights", "detectron2", tmp_path / name, "--out", tmp_path / "run"]
        code, said = run_cli(monkeypatch, capsys, *words)
        assert code == 2 and text in said.err and said.err.count("\n") == 1, (name, said.err)
        assert said.err.startswith(f"retina: {tmp_path / name}: ") and said.out == ""
    assert not trace.exists() and not (tmp_path / "run").exists()


# --------------------------------------------------------------------------------------------------------- backbones


def test_a_backbone_of_timm_becomes_a_run(tmp_path, monkeypatch, capsys):
    """The names of torchvision's and timm's ResNets; a run to start from, whose heads are the seed's."""
    layers = pytest.importorskip("tests.parity.torchvision_models").resnet.resnet18(weights=None)
    torch.save(layers.state_dict(), tmp_path / "timm.pth")
    (tmp_path / "given.yaml").write_text(
        config.to_yaml(config.load(None, ["model.backbone=resnet18", "data.train.images=16"]))
    )
    words = ["import-weights", "torchvision-backbone", tmp_path / "timm.pth", "--config", tmp_path / "given.yaml"]
    code, said = run_cli(monkeypatch, capsys, *words, "--out", tmp_path / "run")
    assert not code, said.err
    assert f"model.init_from={tmp_path / 'run'}" in said.out.replace("\n", "")
    _, saved = load_checkpoint(tmp_path / "run")
    kernel = layers.conv1.weight.detach().numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(saved.arrays["weights/conv1/kernel"], kernel)
    bias = saved.arrays["weights/detector/classification/prediction_bias"]
    np.testing.assert_allclose(bias, -np.log(99), rtol=1e-6)
    assert saved.class_names == tuple("0123456789") and saved.step == 0
    state = layers.state_dict()
    for name, changed, text in (
        ("d", {"conv1.0.weight": state["conv1.weight"], "conv1.weight": None}, "expected a ResNet of 18 to 152 layers"),
        ("wide", {"layer1.0.conv1.weight": torch.zeros(128, 64, 3, 3)}, "ResNeXt, wide, pre-activated and other"),
        ("detector", {"backbone.bottom_up.x": torch.zeros(1)}, "import-weights detectron2"),
        ("more", {"layer1.0.se.weight": torch.zeros(1)}, "it also holds layer1.0.se.weight"),
    ):
        bad = {key: value for key, value in {**state, **changed}.items() if value is not None}
        torch.save(bad, tmp_path / f"{name}.pth")
        words[2] = tmp_path / f"{name}.pth"
        code, said = run_cli(monkeypatch, capsys, *words, "--out", tmp_path / "bad")
        assert code == 2 and text in said.err and said.err.count("\n") == 1, said.err
        assert not (tmp_path / "bad").exists()
