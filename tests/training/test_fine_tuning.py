"""First weights from another run: rows of the classification head by class name, everything else as it was."""

from pathlib import Path
from unittest import mock

import keras
import numpy as np
import pytest

from retina import config as configuration
from retina.errors import RetinaError
from retina.models import backbones
from retina.models.detector import Detector
from retina.runs.checkpoint import Checkpoint, gather, save
from retina.runs.directory import BEST, LATEST, RunDirectory
from retina.training.fine_tuning import _conventions, _near, initialise, matching_classes, read_initial
from retina.weights import torchvision
from retina.weights.tensor_file import TensorFile
from tests.training.small_step import four_images, small_detector, tiny_backbone, weights

MODEL = ["model.fpn={channels: 16, max_level: 5}", "model.head={channels: 16, layers: 1, init_std: 0.1}"]


def config(*overrides: str) -> configuration.Config:
    return configuration.load(None, [*MODEL, "model.init_from=old", *overrides])


def detector(names: tuple[str, ...], seed: int, settings: configuration.Config | None = None):
    keras.utils.set_random_seed(seed)
    sections = settings or config()
    return small_detector(names, model=sections.model, anchors=sections.anchors)


def checkpoint(source, extra=None, settings: configuration.Config | None = None) -> Checkpoint:
    tree = (settings or config()).model_dump(mode="json")
    return Checkpoint(12, tree, source.class_names, (), None, gather(source, extra=extra))


def outputs(model) -> dict[str, np.ndarray]:
    return {name: keras.ops.convert_to_numpy(value) for name, value in model(four_images()).items()}


@pytest.fixture(scope="module")
def old():
    """Trained, as far as this matters: every weight is another than it was drawn, the prior's bias included."""
    made = detector(("cat", "dog", "cow"), 1)
    random = np.random.default_rng(0)
    for variable in made.weights:
        noise = np.abs(random.normal(0, 0.1, variable.shape)).astype(np.float32)
        variable.assign(keras.ops.convert_to_numpy(variable.value) + noise)
    return made


# ------------------------------------------------------------------------------------------------------------ classes


@pytest.mark.parametrize(
    ("here", "there", "translation", "pairs"),
    [
        ((), (), {}, []),
        (("a",), ("b",), {}, []),
        (("a", "b"), ("b", "c", "a"), {}, [(0, 2), (1, 0)]),
        (("aeroplane", "cow"), ("cow", "airplane"), {"aeroplane": "airplane"}, [(0, 1), (1, 0)]),
        # The translated name counts, also where the other side has this one's own.
        (("a",), ("a", "b"), {"a": "b"}, [(0, 1)]),
    ],
)
def test_classes_are_matched_by_name(here, there, translation, pairs):
    assert matching_classes(here, there, translation) == pairs


@pytest.mark.parametrize(
    ("translation", "message"),
    [
        ({"x": "b"}, "init_classes: 'x: b': expected one of this run's classes, got 'x'; they are a"),
        ({"a": "x"}, "init_classes: 'a: x': expected one of the checkpoint's classes, got 'x'; they are b, c"),
    ],
)
def test_a_translation_of_what_is_not_there(translation, message):
    with pytest.raises(RetinaError, match=message):
        matching_classes(("a",), ("b", "c"), translation)


# ------------------------------------------------------------------------------------------------------------ weights


def test_the_same_classes_take_everything(old):
    new = detector(old.class_names, 2)
    assert initialise(new, checkpoint(old), config()) == ["weights from old, step 12"]
    np.testing.assert_equal(weights(new), weights(old))


def test_other_classes_keep_their_rows_by_name_and_the_others_start_anew(old):
    new = detector(("dog", "sheep", "cat", "goat"), 2)
    fresh = outputs(new)
    before = weights(new)
    lines = initialise(new, checkpoint(old), config())
    assert lines == [
        "weights from old, step 12",
        "classification rows taken over for 2 classes (dog, cat)",
        "classification rows drawn anew, at the prior 0.01, for 2 classes (sheep, goat)",
        "classification rows of the checkpoint left out: 1 class (cow)",
    ]
    # What was known is said as before, to the bit of the last convolution's sums; boxes are all as before.
    ours, theirs = outputs(new), outputs(old)
    np.testing.assert_allclose(ours["logits"][..., [0, 2]], theirs["logits"][..., [1, 0]], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(ours["deltas"], theirs["deltas"])
    assert np.abs(fresh["deltas"] - ours["deltas"]).max() > 1e-2
    # The others have the bias of the prior, -log(99), and the kernels that were drawn for them.
    after = weights(new)
    anchors = new.classification.anchors
    bias = next(array for path, array in after.items() if path == new.classification.bias.path)
    np.testing.assert_allclose(bias.reshape(anchors, 4)[:, [1, 3]], -np.log(99), rtol=1e-6)
    path = new.classification.prediction.kernel.path
    rows, drawn = (array[path].reshape(3, 3, 16, anchors, 4) for array in (after, before))
    np.testing.assert_array_equal(rows[..., [1, 3]], drawn[..., [1, 3]])
    # All that is not of the last classification layer is the checkpoint's.
    for name, array in weights(old).items():
        if not name.startswith(path.rsplit("/", 1)[0]) and name != new.classification.bias.path:
            np.testing.assert_array_equal(after[name], array, err_msg=name)


@pytest.mark.parametrize(
    ("here", "there", "near"),
    [
        ("aeroplane", ["airplane", "person"], ["airplane"]),
        ("pottedplant", ["potted plant"], ["potted plant"]),
        ("Person", ["person"], ["person"]),
        ("cat", ["car"], []),
        ("a", [], []),
    ],
)
def test_names_that_may_be_the_same(here, there, near):
    assert _near(here, there) == near


def test_a_class_by_another_name_is_asked_about(old):
    lines = initialise(detector(("Cat", "dog"), 2), checkpoint(old), config())
    assert lines[-1] == "if these are the same classes, set model.init_classes={Cat: cat}"


def test_no_class_in_common_keeps_the_rest_of_the_network(old):
    new = detector(("x",), 2)
    lines = initialise(new, checkpoint(old), config())
    assert lines[1] == "classification rows taken over for 0 classes ()"
    np.testing.assert_array_equal(outputs(new)["deltas"], outputs(old)["deltas"])


def test_averages_take_the_place_of_the_weights(old):
    path = old.box.bias.path
    average = np.full(old.box.bias.shape, 0.25, np.float32)
    new = detector(old.class_names, 2)
    initialise(new, checkpoint(old, {f"ema/{path}": average}), config())
    np.testing.assert_array_equal(weights(new)[path], average)


# ----------------------------------------------------------------------------------------------------- what cannot fit


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.fpn.channels=32", r"model.init_from: old: checkpoint has other shapes for weights/.*Only classes may"),
        ("model.head.layers=2", r"model.init_from: old: checkpoint lacks weights/.*conv_1.*Only classes may"),
        ("anchors.ratios=[1.0]", r"old: weights/\S*: expected \[\d.*\] and 3 anchors times 3 classes, got \[.*27\]"),
    ],
)
def test_anything_else_that_differs_is_named_and_nothing_is_taken(old, override, message):
    settings = config(override)
    new = detector(old.class_names, 2, settings)
    before = weights(new)
    with pytest.raises(RetinaError, match=message):
        initialise(new, checkpoint(old), settings)
    np.testing.assert_equal(weights(new), before)


def test_other_conventions_are_said(old):
    settings = config("anchors.offset=0.0")
    lines = initialise(detector(old.class_names, 2, settings), checkpoint(old), settings)
    assert lines[1:] == ["these weights were trained with other settings: anchors.offset (0.5 → 0.0)"]


def test_padding_changes_no_shape_and_is_said(old):
    free = ["model.fpn.init=he_uniform", "model.head.prior=0.05", "model.batch_norm=frozen", "model.freeze=1"]
    settings = config("model.fpn.padding=symmetric", *free)
    lines = initialise(detector(old.class_names, 2), checkpoint(old), settings)
    assert lines[1:] == ["these weights were trained with other settings: model.fpn.padding (same → symmetric)"]


# ---------------------------------------------------------------------------------------------------------- the source


def test_a_file_a_run_with_a_best_and_one_without(old, tmp_path):
    run = RunDirectory.create(tmp_path / "run", configuration.to_yaml(config()), {})
    for step in (4, 8):
        made = Checkpoint(step, config().model_dump(mode="json"), old.class_names, (), None, gather(old))
        save(run.checkpoint_path(f"step_{step}"), made)
    run.point(LATEST, run.checkpoint_path("step_8"))
    assert read_initial(run.path).step == 8
    run.point(BEST, run.checkpoint_path("step_4"))
    assert read_initial(run.path).step == 4
    assert read_initial(run.checkpoint_path("step_8")).step == 8


def test_no_such_run(tmp_path):
    with pytest.raises(RetinaError, match="init_from: .*nothing: not a run directory .*`retina import-weights` or"):
        read_initial(tmp_path / "nothing")
    (tmp_path / "file.pth").write_bytes(b"")
    with pytest.raises(
        RetinaError, match="got a '.pth' file; make a run of other weights with `retina import-weights`"
    ):
        read_initial(tmp_path / "file.pth")
    (tmp_path / "file.npz").write_bytes(b"not a checkpoint")
    with pytest.raises(RetinaError, match="damaged or not a checkpoint"):
        read_initial(Path(tmp_path / "file.npz"))


def test_frozen_batch_normalisation_goes_with_weights_of_a_run():
    assert config("model.batch_norm=frozen").model.batch_norm == "frozen"
    with pytest.raises(RetinaError, match="init_classes has no effect without init_from"):
        configuration.load(None, [*MODEL, "model.init_classes={a: b}"])


@pytest.mark.parametrize("name", ["bccd_finetune", "voc_finetune"])
def test_the_configurations_have_the_conventions_of_their_weights(name):
    """Those of torchvision's V2, as its importer writes them."""
    kind = torchvision.Retinanet(50, 91, 256, 4, True, "c5", True, False, False)
    theirs, _ = torchvision.conventions(kind, TensorFile(Path("x.pth"), "0" * 64, {}))
    given = configuration.load(Path(__file__).parents[2] / "configs" / f"{name}.yaml")
    sections = {key: theirs[key] for key in ("model", "anchors", "assignment", "loss")}
    imported = configuration.parse({**configuration.load().model_dump(mode="json"), **sections})
    assert _conventions(given) == _conventions(imported)
    assert (given.assignment, given.loss) == (imported.assignment, imported.loss)


# --------------------------------------------------------------------------------------------------------- from_preset


@pytest.fixture
def of_tiny_backbones():
    """Detectors are made on them; the calls' arguments are those of `backbones.build_reported`."""
    built = mock.Mock(side_effect=lambda *_: backbones.Built(tiny_backbone(), None))
    with mock.patch.object(backbones, "build_reported", built):
        yield built


def test_from_preset_is_the_checkpoints_detector(old, tmp_path, of_tiny_backbones):
    path = tmp_path / "step_12.npz"
    save(path, checkpoint(old))
    same = Detector.from_preset(path, bounding_box_format="xywh")
    assert same.class_names == old.class_names and same.convention.box_format == "xywh"
    assert same.sections.anchors == old.sections.anchors and of_tiny_backbones.call_args.args[1] is None
    for name, expected in outputs(old).items():
        np.testing.assert_array_equal(outputs(same)[name], expected)


def test_from_preset_takes_rows_by_class(old, tmp_path, of_tiny_backbones):
    path = tmp_path / "step_12.npz"
    save(path, checkpoint(old))
    other = Detector.from_preset(path, class_names=["horse", "dog"])
    np.testing.assert_allclose(outputs(other)["logits"][..., 1], outputs(old)["logits"][..., 1], rtol=1e-5)
    np.testing.assert_array_equal(outputs(other)["deltas"], outputs(old)["deltas"])
    assert Detector.from_preset(path, num_classes=2).class_names == ("0", "1")


def test_from_preset_of_a_classifier(of_tiny_backbones):
    for name, expected in {
        "efficientnet_lite0": ("efficientnet_lite0", "imagenet"),
        "torchvision/resnet50_v1": ("resnet50", "torchvision/resnet50_v1"),
    }.items():
        assert Detector.from_preset(name, num_classes=3).class_names == ("0", "1", "2")
        assert of_tiny_backbones.call_args.args == expected
        with pytest.raises(RetinaError, match="give class_names= or num_classes="):
            Detector.from_preset(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "nowhere"}, "nowhere: no such run directory or checkpoint, and no preset; presets: efficientnet_l"),
        ({"preset": "retinanet_resnet50_fpn_v2"}, r"did you mean 'torchvision/retinanet_resnet50_fpn_v2'\?"),
        ({"preset": "resnet18"}, r"a network without weights; .* Detector\(class_names, model=.*backbone='resnet18'"),
        ({"preset": "nowhere", "num_classes": 2, "class_names": ["a"]}, "num_classes is 2, class_names are 1"),
    ],
)
def test_from_preset_refuses(arguments, message):
    with pytest.raises(RetinaError, match=message):
        Detector.from_preset(**arguments)


@pytest.mark.parametrize("export", ["saved_model", "model.onnx", "model.tflite"])
def test_from_preset_refuses_an_export(export, tmp_path):
    path = tmp_path / export
    if path.suffix:
        path.touch()
    else:
        path.mkdir()
        (path / "saved_model.pb").touch()
    with pytest.raises(RetinaError, match="expected weights to train on, got an export.*give the run"):
        Detector.from_preset(path)
