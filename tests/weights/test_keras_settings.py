"""Settings in keras-hub's JSON: each is carried, refused or said; none is dropped."""

from pathlib import Path

import numpy as np
import pytest

from retina.errors import RetinaError
from retina.weights.keras_file import KerasFile
from retina.weights.keras_hub import KerasRetinanet, conventions
from retina.weights.keras_settings import notes_of, pixels, read_settings, resize

CONVERTER = {"image_size": [96, 96], "crop_to_aspect_ratio": False, "pad_to_aspect_ratio": True}


def one(name, config, **beside):
    return {"class_name": name, "config": config, **beside}


def settings_of(*nodes):
    return read_settings(KerasFile(Path("x"), "", (), {str(number): node for number, node in enumerate(nodes)}))


def test_no_configuration():
    found = settings_of()
    assert found.values == {} and found.account == ()
    sizes, notes = resize(found.values)
    assert sizes == {"short": 800, "long": 800, "multiple": 800}
    assert "gives no image_size" in notes[0] and "its default; the file does not say" in notes[1]
    assert pixels(found.values)[2] == ("the file gives no pixel normalisation: ImageNet's, as its presets have it",)


@pytest.mark.parametrize("node", [[], {}, None, 3, {"class_name": 3}, one("AnchorGenerator", None), [one("X", [])]])
def test_other_json_holds_no_setting(node):
    assert settings_of(node).values == {}


def test_every_setting_is_accounted_for():
    inner = one("AnchorGenerator", {"name": "a", "num_scales": 2, "brightness": 7})
    outer = one("RetinaNetLabelEncoder", {"anchor_generator": inner, "positive_threshold": 0.6, "ignore_class": -2})
    decoder = one("MyDecoder", {"name": "d", "beta": [1, 2]}, compile_config={"optimizer": {}, "loss": {}})
    found = settings_of(outer, decoder)
    assert found.values == {"num_scales": 2, "positive_threshold": 0.6, "ignore_class": -2}
    assert {setting.name: (setting.value, setting.became) for setting in found.account} == {
        "RetinaNetLabelEncoder.positive_threshold": (0.6, "assignment.positive_iou"),
        "RetinaNetLabelEncoder.ignore_class": (-2, "no effect: a mark within its training targets"),
        "AnchorGenerator.name": ("a", "no effect: a name or a description of the layer"),
        "AnchorGenerator.num_scales": (2, "anchors.sizes"),
        "AnchorGenerator.brightness": (7, "not carried"),
        "MyDecoder.compile_config": (["loss", "optimizer"], "not carried"),
        "MyDecoder.class_name": ("MyDecoder", "not carried"),
        "MyDecoder.beta": ([1, 2], "not carried"),
    }
    notes = notes_of(found)
    assert any("its compile_config (loss, optimizer) is not carried" in note for note in notes)
    (left,) = [note for note in notes if "does not know" in note]
    assert left.endswith('AnchorGenerator.brightness 7, MyDecoder.class_name "MyDecoder", MyDecoder.beta [1, 2]')


@pytest.mark.parametrize(
    ("name", "config", "text"),
    [
        ("NonMaxSuppression", {"from_logits": False}, "takes the logits themselves as scores"),
        ("ImageConverter", {"interpolation": "nearest"}, 'interpolation "nearest", retina bilinearly'),
        ("ImageConverter", {"antialias": True}, "resizes with antialias"),
        ("AnchorGenerator", {"dtype": one("DTypePolicy", {"name": "mixed_float16"})}, "dtype mixed_float16 there"),
        ("RetinaNetLabelEncoder", {}, "does not write down its label encoder's box_matcher_force_match_for_each_col"),
    ],
)
def test_notes(name, config, text):
    assert any(text in note for note in notes_of(settings_of(one(name, config))))
    told = one("RetinaNetLabelEncoder", {"box_matcher_force_match_for_each_col": False})
    plain = one("ImageConverter", {"interpolation": "bilinear", "antialias": False, "dtype": "float32"})
    assert notes_of(settings_of(told, plain, one("NonMaxSuppression", {"from_logits": True}))) == ()


@pytest.mark.parametrize(
    ("config", "sizes", "texts"),
    [
        (CONVERTER, (96, 96, 96), ["pads an image evenly on both sides to 96 x 96"]),
        ({**CONVERTER, "image_size": [90, 90]}, (90, 90, 32), ["pads"]),
        ({**CONVERTER, "image_size": [800, 1344]}, (800, 1344, 32), ["image_size is 800 x 1344", "pads"]),
        ({"height": 160, "width": 96, "crop_to_aspect_ratio": True}, (96, 160, 32), ["160 x 96", "cuts an image"]),
        ({"image_size": [64, 64], "crop_to_aspect_ratio": False}, (64, 64, 64), ["stretches an image to 64 x 64"]),
        ({"image_size": [64, 64]}, (64, 64, 64), ["(its default; the file does not say): keras-hub cuts"]),
    ],
)
def test_resizing(config, sizes, texts):
    found, notes = resize(settings_of(one("RetinaNetImageConverter", config)).values)
    assert tuple(found[name] for name in ("short", "long", "multiple")) == sizes
    assert len(notes) == len(texts) and all(text in note for text, note in zip(texts, notes, strict=True))


def test_pixels_without_scaling():
    """`scale: null` is no scaling, unlike a file that tells nothing."""
    assert pixels(settings_of(one("ImageConverter", {"scale": None, "offset": None})).values) == (
        (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (),
    )  # fmt: skip
    mean, std, _ = pixels(settings_of(one("ImageConverter", {"scale": 1 / 127.5, "offset": -1})).values)
    np.testing.assert_allclose([mean, std], np.full((2, 3), 127.5))


@pytest.mark.parametrize(
    ("name", "config", "text"),
    [
        ("ResNetBackbone", {"stackwise_num_strides": [1, 2, 2, 1]}, r"expected stackwise_num_strides \[1, 2, 2, 2\]"),
        ("ResNetBackbone", {"input_conv_kernel_sizes": [3, 3, 3]}, r"expected input_conv_kernel_sizes \[7\]"),
        ("RetinaNetLabelEncoder", {"box_matcher_match_values": [-1, -1, 1]}, "expected box_matcher_match_values"),
        ("RetinaNetBackbone", {"min_level": 2}, "expected min_level 3, found 2 in RetinaNetBackbone"),
        ("ImageConverter", {"data_format": "channels_first"}, "expected data_format channels_last"),
        ("ImageConverter", {"image_size": "large"}, 'has image_size "large", expected positive numbers'),
        ("ImageConverter", {"image_size": [800]}, r"has image_size \[800\]"),
        ("ImageConverter", {"image_size": [0, 800]}, r"has image_size \[0, 800\]"),
        ("ImageConverter", {"scale": [1, 0, 1]}, r"has scale \[1, 0, 1\]"),
        ("ImageConverter", {"scale": float("nan")}, "has scale NaN"),
        ("ImageConverter", {"mean": [0, 0, 0]}, "mean or variance alone"),
        ("AnchorGenerator", {"num_scales": 3.0}, "has num_scales 3.0"),
        ("AnchorGenerator", {"aspect_ratios": []}, r"has aspect_ratios \[\]"),
        ("NonMaxSuppression", {"max_detections": True}, "has max_detections true"),
    ],
)
def test_refused(name, config, text):
    with pytest.raises(RetinaError, match=f"^x: .*{text}"):
        settings_of(one(name, config))


def test_two_anchor_generators():
    """The detector's and its label encoder's: retina has one for both."""
    first, second = (one("AnchorGenerator", {"anchor_size": size}) for size in (4, 8))
    assert settings_of(first, [first]).values == {"anchor_size": 4}
    with pytest.raises(RetinaError, match=r"x: expected one value of AnchorGenerator\.anchor_size, found 4 and 8"):
        settings_of(first, second)


@pytest.mark.parametrize("force", [False, True])
def test_force_match(force):
    told = settings_of(one("RetinaNetLabelEncoder", {"box_matcher_force_match_for_each_col": force}))
    kind = KerasRetinanet(50, 80, 9, 256, 4, False, "p5", 7, told)
    sections, notes = conventions(kind, "x")
    assert sections["assignment"]["force_match"] is force
    assert not any("does not write down" in note for note in notes)
