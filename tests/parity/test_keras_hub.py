"""keras-hub's RetinaNet: what is imported computes what keras-hub computes, from every kind of its files."""

import json
import shutil
import sys
import zipfile

import keras
import numpy as np
import pytest

keras_hub = pytest.importorskip("keras_hub")
h5py = pytest.importorskip("h5py")

from retina import cli, config  # noqa: E402
from retina.errors import RetinaError  # noqa: E402
from retina.models import backbones  # noqa: E402
from retina.runs.importing import import_run  # noqa: E402
from retina.runs.loading import load_checkpoint  # noqa: E402
from retina.weights.coco_classes import CATEGORIES  # noqa: E402
from retina.weights.keras_file import KerasFile, read_keras  # noqa: E402
from retina.weights.keras_hub import conventions, pixels_of, recognise, tensors_of  # noqa: E402

CANVAS = (96, 160)  # C5 is 3 x 5: P6 and P7 are rounded up
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def encoder(bottleneck=False):
    blocks = [3, 4, 6, 3] if bottleneck else [2, 2, 2, 2]
    return keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=blocks,
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="bottleneck_block" if bottleneck else "basic_block",
    )


def randomise(model, seed=0):
    """Every variable random, statistics and the misplaced prior too."""
    draw = np.random.default_rng(seed)
    for variable in model.variables:
        name, shape = variable.path.split("/")[-1], variable.shape
        if name in ("moving_variance", "gamma"):
            variable.assign(draw.uniform(0.5, 1.0, shape))
        elif len(shape) == 4:
            variable.assign(draw.normal(0, np.sqrt(1.6 / np.prod(shape[:3])), shape))
        elif variable.dtype == "float32" and len(shape) == 1:
            variable.assign(draw.uniform(-0.2, 0.2, shape))
    return model


def retinanet(classes, *, norm, use_p5, bottleneck=False):
    backbone = keras_hub.models.RetinaNetBackbone(
        image_encoder=encoder(bottleneck), min_level=3, max_level=7, use_p5=use_p5
    )
    converter = keras_hub.layers.RetinaNetImageConverter(
        image_size=(128, 128),
        pad_to_aspect_ratio=True,
        crop_to_aspect_ratio=False,
        scale=[1 / std for std in STD],
        offset=[-mean / std for mean, std in zip(MEAN, STD, strict=True)],
    )
    model = keras_hub.models.RetinaNetObjectDetector(
        backbone=backbone,
        num_classes=classes,
        use_prediction_head_norm=norm,
        preprocessor=keras_hub.models.RetinaNetObjectDetectorPreprocessor(image_converter=converter),
    )
    return randomise(model)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("keras_hub")


@pytest.fixture(scope="module")
def second(folder):
    """Group normalisation, P6 from C5, and all its files."""
    model = retinanet(4, norm=True, use_p5=True)
    model.save_to_preset(str(folder / "preset"))
    model.save(folder / "whole.keras")
    model.save_weights(folder / "whole.weights.h5")
    return model, image_and_outputs(model)


def image_and_outputs(model, normalised=True):
    image = np.random.default_rng(1).integers(0, 256, (1, *CANVAS, 3)).astype(np.uint8)
    pixels = (image - np.array(MEAN)) / np.array(STD) if normalised else image
    return image, {name: np.asarray(x) for name, x in model(pixels.astype(np.float32), training=False).items()}


def same(run, image, wanted, columns=slice(None)):
    predictor, saved = load_checkpoint(run)
    batch = {"images": image, "size": np.array([CANVAS], np.int32)}
    found = predictor.detector(batch, training=False)
    for ours, theirs in (("logits", wanted["cls_logits"][..., columns]), ("deltas", wanted["bbox_regression"])):
        assert theirs.std() > 0.1
        np.testing.assert_allclose(np.asarray(found[ours]), theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())
    return predictor, saved


# ---------------------------------------------------------------------------------------------------------- detectors


def test_a_preset_folder(second, folder):
    model, (image, wanted) = second
    report = import_run("keras-hub", folder / "preset", folder / "run", classes=["a", "b", "c", "d"])
    predictor, saved = same(folder / "run", image, wanted)
    assert saved.class_names == ("a", "b", "c", "d")
    anchors = np.concatenate([np.asarray(x) for x in model.anchor_generator(image).values()])
    yxyx = [1, 0, 3, 2]
    np.testing.assert_array_equal(np.concatenate(predictor.detector.level_anchors(CANVAS))[:, yxyx], anchors)
    written = config.load(folder / "run" / "config.yaml")
    assert (written.model.backbone, written.model.fpn.p6_from, written.model.fpn.padding) == ("resnet18", "c5", "same")
    assert (written.model.head.norm, written.model.head.norm_epsilon) == ("group", 1e-3)
    np.testing.assert_allclose(written.model.pixel_mean, MEAN, rtol=1e-6)
    np.testing.assert_allclose(written.model.pixel_std, STD, rtol=1e-6)
    assert (written.inference.score_threshold, written.inference.max_detections) == (0.5, 100)
    assert written.inference.class_agnostic and written.inference.clip == "none"
    assert (written.assignment.force_match, written.anchors.max_size_ratio) == (False, 1e6)
    assert (written.data.resize.short, written.data.resize.long, written.data.resize.multiple) == (128, 128, 128)
    assert len(report.carried) == len(saved.arrays) and not report.unused
    # Every setting in its files has its place or is said to have none; the loss that it trained with is said.
    became = {one.name: one.became for one in report.settings}
    assert became["NonMaxSuppression.iou_threshold"] == "inference.nms_iou" and len(became) > 40
    assert "not carried" not in became.values()
    assert any("retina's default" in note and "loss.classification.alpha=null" in note for note in report.notes)
    assert any("evenly on both sides to 128 x 128" in note for note in report.notes)
    stored = json.loads((folder / "run" / "import.json").read_text())["settings"]
    assert {"name": "AnchorGenerator.num_scales", "value": 3, "became": "anchors.sizes"} in stored
    # keras-hub's source gives the prior to the box head; whatever stands there is carried as it is.
    bias = saved.arrays["weights/detector/box/prediction_bias"]
    np.testing.assert_array_equal(bias, model.box_head.prediction_layer.bias)


def same_tensors(first, second):
    first, second = (tensors_of(read_keras(path)).tensors for path in (first, second))
    assert sorted(first) == sorted(second)
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", ["whole.keras", "whole.weights.h5"])
def test_single_files(name, second, folder):
    same_tensors(folder / name, folder / "preset")
    file = read_keras(folder / name)
    found = recognise(file, tensors_of(file))
    sections, notes = conventions(found, name)
    wanted = conventions(recognise(read_keras(folder / "preset"), tensors_of(file)), "preset")[0]
    assert sections["model"]["head"] == wanted["model"]["head"] and sections["anchors"] == wanted["anchors"]
    assert (sections == wanted) == name.endswith(".keras")
    assert any("no pixel normalisation" in note for note in notes) == name.endswith(".h5")


def without_names(source, target):
    """As older versions of Keras wrote it: no layer says what it is called."""
    shutil.copytree(source, target)
    for file in target.glob("*.h5"):
        with h5py.File(file, "r+") as opened:
            opened.visititems(lambda _, node: node.attrs.pop("name", None) and None)


def test_files_without_names(second, folder):
    without_names(folder / "preset", folder / "nameless")
    assert all(group.name is None for group in read_keras(folder / "nameless").groups)
    same_tensors(folder / "nameless", folder / "preset")


@pytest.mark.slow
def test_the_first_version_of_resnet50_with_cocos_rows(folder):
    """Also the order of a bottleneck's layers in files without names."""
    model = retinanet(91, norm=False, use_p5=False, bottleneck=True)
    model.save_to_preset(str(folder / "first"))
    without_names(folder / "first", folder / "first_nameless")
    for name in ("first", "first_nameless"):
        report = import_run("keras-hub", folder / name, folder / f"run_{name}")
    _, saved = same(folder / "run_first_nameless", *image_and_outputs(model), columns=list(CATEGORIES))
    assert saved.class_names == tuple(CATEGORIES.values())
    assert config.load(folder / "run_first" / "config.yaml").model.fpn.p6_from == "p5"
    assert {one.source for one in report.unused} == {f"classification_head/prediction/{v}" for v in ("kernel", "bias")}
    assert report.arrays_sha256 == json.loads((folder / "run_first" / "import.json").read_text())["arrays_sha256"]


# ---------------------------------------------------------------------------------------------------------- backbones


@pytest.mark.parametrize("bottleneck", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_backbones(bottleneck, folder):
    """A ResNet's preset in keras-hub's own network and in ours: the same maps."""
    network = randomise(encoder(bottleneck))
    preset = folder / f"encoder_{bottleneck}"
    network.save_to_preset(str(preset))
    image = np.random.default_rng(0).normal(size=(1, *CANVAS, 3)).astype(np.float32)
    wanted = keras.Model(network.inputs, network.pyramid_outputs)(image, training=False)
    depth = 50 if bottleneck else 18
    for name in (f"keras_hub/resnet_{depth}_imagenet", f"resnet{depth}"):
        maps = backbones.build(name, str(preset))(image, training=False)
        for level in (3, 4, 5):
            theirs = np.asarray(wanted[f"P{level}"])
            np.testing.assert_allclose(np.asarray(maps[f"C{level}"]), theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_a_backbone_becomes_a_run(folder):
    """From a classifier's preset, as keras-hub publishes them."""
    preset = folder / "encoder_run"
    network = randomise(encoder())
    converter = keras_hub.layers.ResNetImageConverter(
        image_size=(64, 64), scale=[1 / std for std in STD], offset=[-m / s for m, s in zip(MEAN, STD, strict=True)]
    )
    keras_hub.models.ResNetImageClassifier(
        backbone=network,
        num_classes=5,
        dropout=0.1,
        preprocessor=keras_hub.models.ResNetImageClassifierPreprocessor(image_converter=converter),
    ).save_to_preset(str(preset))
    given = config.load(None, ["model.backbone=resnet18", "run.seed=3", "data.train.images=16"])
    report = import_run("keras-hub", preset, folder / "run_encoder", config=given)
    predictor, saved = load_checkpoint(folder / "run_encoder")
    assert saved.config["model"]["weights"] == str(preset) and saved.class_names[:2] == ("0", "1")
    kernel = predictor.detector.backbone.get_layer("conv1").kernel
    np.testing.assert_array_equal(kernel, network.get_layer("conv1_conv").kernel)
    assert not any(one.target.startswith("detector/") for one in report.carried)
    assert {one.reason for one in report.unused} >= {"the ImageNet classifier"}
    grey = config.override(given, ["model.pixel_mean=[127.5,127.5,127.5]"])
    with pytest.raises(RetinaError, match=r"was trained with pixel_mean \[123\.675, 116\.28, 103\.53\], the config"):
        import_run("keras-hub", preset, folder / "other", config=grey)
    without_names(preset, folder / "encoder_nameless")
    again = backbones.build("resnet18", str(folder / "encoder_nameless"))
    np.testing.assert_array_equal(again.get_layer("conv1").kernel, kernel)
    with pytest.raises(RetinaError, match=r"holds the weights of resnet18, .* add model\.backbone=resnet18"):
        import_run("keras-hub", preset, folder / "other", config=config.load(None, []))
    with pytest.raises(RetinaError, match=r"stride in the 3x3 convolution, resnet50_v1 in the 1x1"):
        backbones.build("resnet50_v1", str(preset))
    with pytest.raises(RetinaError, match=r"it lacks stack0_block0_0_conv/kernel"):
        backbones.build("resnet50", str(preset))
    with pytest.raises(RetinaError, match=r"expected a preset of keras_hub/resnet_50_imagenet .* block_type|blocks"):
        backbones.build("keras_hub/resnet_50_imagenet", str(preset))
    with pytest.raises(RetinaError, match="no preset 'nothing' of keras_hub/resnet_18_imagenet; keras-hub has: resn"):
        backbones.build("keras_hub/resnet_18_imagenet", "nothing")


# ---------------------------------------------------------------------------------------------------- what is refused


def test_other_architectures(second, folder):
    file = read_keras(folder / "preset")
    tensors = tensors_of(file)
    changed = {name: file.configs[name] for name in file.configs}
    for key, value, text in (
        ("encoding_format", "center_yxhw", "expected encoding_format center_xywh"),
        ("box_variance", [0.1, 0.1, 0.2, 0.2], "expected box_variance"),
        ("data_format", "channels_first", "expected data_format channels_last"),
    ):
        text_of = json.dumps(changed)
        if f'"{key}"' not in text_of:
            changed["config.json"] = {"class_name": "RetinaNetBackbone", "config": {key: value}}
            bad = file._replace(configs={"config.json": changed["config.json"]})
        else:
            bad = file._replace(configs={"x": {"class_name": "RetinaNetLabelEncoder", "config": {key: value}}})
        with pytest.raises(RetinaError, match=text):
            recognise(bad, tensors)
    without = tensors._replace(
        tensors={k: v for k, v in tensors.tensors.items() if not k.startswith("box_head/prediction")}
    )
    with pytest.raises(RetinaError, match="expected a box head and a classification head"):
        recognise(file, without)
    deeper = tensors._replace(tensors={**tensors.tensors, "stack2_block7_1_conv/kernel": np.zeros((1, 1, 1, 1))})
    with pytest.raises(RetinaError, match="expected a ResNet of 18 to 152 layers"):
        recognise(file, deeper)


def test_pixels_of_older_presets():
    file = KerasFile(None, "", (), {"image_converter.json": {"class_name": "ImageConverter", "config": {
        "scale": 1 / 255, "mean": [0.5, 0.4, 0.3], "variance": [0.04, 0.04, 0.01],
    }}})  # fmt: skip
    mean, std = pixels_of(file)
    np.testing.assert_allclose(mean, [127.5, 102, 76.5])
    np.testing.assert_allclose(std, [51, 51, 25.5])
    assert pixels_of(file._replace(configs={})) is None


def test_an_epsilon_without_a_norm():
    with pytest.raises(RetinaError, match="norm_epsilon has no effect with norm: none"):
        config.load(None, ["model.head.norm=none", "model.head.norm_epsilon=0.001"])


def run_cli(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["retina", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, capsys.readouterr()


def test_bad_files_exit_with_2(second, folder, tmp_path, monkeypatch, capsys):
    whole = (folder / "whole.weights.h5").read_bytes()
    (tmp_path / "truncated.weights.h5").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.weights.h5").write_bytes(b"")
    (tmp_path / "text.weights.h5").write_bytes(b"<html>404</html>")
    (tmp_path / "folder").mkdir()
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "model.weights.json").write_text("{}")
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    secret = tmp_path / "secret.bin"
    secret.write_bytes(b"\0" * 4000)
    with h5py.File(tmp_path / "elsewhere.weights.h5", "w") as file:  # values of another file, unfolded or linked
        file.create_dataset("layers/conv2d/vars/0", (10, 10), "f4", external=[(str(secret), 0, 400)])
    with h5py.File(tmp_path / "linked.weights.h5", "w") as file:
        file.create_group("layers/conv2d/vars")["0"] = h5py.ExternalLink("whole.weights.h5", "/layers")
    with h5py.File(tmp_path / "bomb.weights.h5", "w") as file:
        file.create_dataset("layers/conv2d/vars/0", (2**20, 2**20), "f4")
    with h5py.File(tmp_path / "infinite.weights.h5", "w") as file:
        file["layers/conv2d/vars/0"] = np.full((2, 2), np.inf, np.float32)
    with h5py.File(tmp_path / "nothing.weights.h5", "w") as file:
        file["layers/conv2d/vars/0"] = np.zeros((2, 2), np.float32)
    for name, text in (
        ("truncated.weights.h5", "damaged"),
        ("empty.weights.h5", "is empty"),
        ("text.weights.h5", "expected a preset folder of keras-hub"),
        ("folder", "it has no model.weights.h5"),
        ("shards", "its weights are in several files (model.weights.json); save the model again in one"),
        ("other.keras", "not a .keras file"),
        ("elsewhere.weights.h5", "is not stored plainly"),
        ("linked.weights.h5", "is a link to elsewhere"),
        ("bomb.weights.h5", "is not stored plainly"),
        ("infinite.weights.h5", "not finite"),
        ("nothing.weights.h5", "expected a ResNet of 18 to 152"),
        ("absent", "no such file or preset folder"),
    ):
        words = ["import-weights", "keras-hub", tmp_path / name, "--out", tmp_path / "run"]
        code, said = run_cli(monkeypatch, capsys, *words)
        assert code == 2 and text in said.err and said.err.count("\n") == 1, (name, said.err)
        assert said.err.startswith(f"retina: {tmp_path / name}: ") and not (tmp_path / "run").exists()
