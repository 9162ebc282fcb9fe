"""The settings of a RetinaNet in the JSON of a keras-hub file, and what becomes of each here.

Read off keras-hub 0.32, the constructors and `get_config` of: `models/retinanet/*.py`,
`models/resnet/resnet_backbone.py`, `layers/modeling/anchor_generator.py`, `non_max_supression.py`, `box_matcher.py`,
and `layers/preprocessing/image_converter.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from retina.errors import RetinaError
from retina.weights.keras_file import KerasFile
from retina.weights.mapping import Setting

_IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
_DEFAULT_SIDE = 800

_FORMAT = "no effect: boxes are xyxy pixels here, whatever their format there"
_MARK = "no effect: a mark within its training targets"
_NAME = "no effect: a name or a description of the layer"
_WEIGHTS = "what the weights show, to which it must be equal"
_ONLY = "the only value that can be imported"
_LEFT = "not carried"

# Of every class: what becomes of a setting. Values of `_ONLY` ones stand in `_REQUIRED`.
_ANYWHERE = {"name": _NAME, "trainable": _NAME, "image_shape": "no effect: canvases are of any size", "dtype": _NAME}
_CONVERTER = {
    "image_size": "data.resize.short, long and multiple",
    "height": "data.resize.short, long and multiple",
    "width": "data.resize.short, long and multiple",
    **dict.fromkeys(("scale", "offset", "mean", "variance"), "model.pixel_mean and pixel_std"),
    "crop_to_aspect_ratio": "a note on resizing",
    "pad_to_aspect_ratio": "a note on resizing",
    "interpolation": "bilinear, or a note",
    "antialias": "none, or a note",
    "bounding_box_format": _FORMAT,
    "data_format": _ONLY,
}
_CLASSES = {
    "RetinaNetObjectDetector": {
        "num_classes": _WEIGHTS,
        "use_prediction_head_norm": _WEIGHTS,
        "pre_logits_num_conv_layers": _WEIGHTS,
        "bounding_box_format": _FORMAT,
    },
    "RetinaNetObjectDetectorPreprocessor": {"config_file": _NAME},
    "RetinaNetBackbone": {
        "min_level": _ONLY,
        "max_level": _WEIGHTS,
        "use_p5": _WEIGHTS,
        "use_fpn_batch_norm": _ONLY,
        "data_format": _ONLY,
    },
    "ResNetBackbone": {
        **dict.fromkeys(("stackwise_num_filters", "stackwise_num_blocks", "block_type"), _WEIGHTS),
        **dict.fromkeys(("input_conv_filters", "input_conv_kernel_sizes", "stackwise_num_strides"), _ONLY),
        "use_pre_activation": _ONLY,
        "data_format": _ONLY,
    },
    "AnchorGenerator": {
        "min_level": _ONLY,
        "max_level": _WEIGHTS,
        "num_scales": "anchors.sizes",
        "aspect_ratios": "anchors.ratios",
        "anchor_size": "anchors.sizes",
        "bounding_box_format": _FORMAT,
    },
    "RetinaNetLabelEncoder": {
        "positive_threshold": "assignment.positive_iou",
        "negative_threshold": "assignment.negative_iou",
        "box_matcher_force_match_for_each_col": "assignment.force_match",
        "box_matcher_match_values": _ONLY,
        "encoding_format": _ONLY,
        "box_variance": _ONLY,
        "background_class": _MARK,
        "ignore_class": _MARK,
        "bounding_box_format": _FORMAT,
    },
    "NonMaxSuppression": {
        "iou_threshold": "inference.nms_iou",
        "confidence_threshold": "inference.score_threshold",
        "max_detections": "inference.max_detections",
        "from_logits": "logits, or a note",
        "bounding_box_format": _FORMAT,
    },
    **dict.fromkeys(("RetinaNetImageConverter", "ImageConverter", "ResNetImageConverter"), _CONVERTER),
}
_REQUIRED: dict[str, Any] = {
    "data_format": "channels_last",
    "min_level": 3,
    "use_fpn_batch_norm": False,
    "use_pre_activation": False,
    "input_conv_filters": [64],
    "input_conv_kernel_sizes": [7],
    "stackwise_num_strides": [1, 2, 2, 2],
    "encoding_format": "center_xywh",
    "box_variance": [1.0, 1.0, 1.0, 1.0],
    "box_matcher_match_values": [-1, -2, 1],
}


class Settings(NamedTuple):
    """`values` of what is known, by name without its class ({} for a file of weights alone); `account` of all."""

    values: dict[str, Any]
    account: tuple[Setting, ...]


def read_settings(file: KerasFile) -> Settings:
    """The settings of a file's configuration.

    Raises:
        RetinaError: a setting has two values, or one that can't be imported.
    """
    values: dict[str, Any] = {}
    account: dict[tuple[str, str], Setting] = {}
    first: dict[str, Any] = {}
    for owner, name, value in _plain_settings(file):
        known = _CLASSES.get(owner)
        if known is None and name in _ANYWHERE:
            continue  # the class itself is reported as unknown
        became = {**_ANYWHERE, **(known or {})}.get(name, _LEFT)
        qualified = f"{owner}.{name}"
        account.setdefault((qualified, json.dumps(value)), Setting(qualified, value, became))
        if name in _ANYWHERE or became == _LEFT or (value is None and name not in ("scale", "offset")):
            continue
        before = first.setdefault(qualified, value)
        if before is not value and before != value:
            raise RetinaError(
                f"{file.path}: expected one value of {qualified}, found {before} and {value}; retina has one "
                "for training and inference alike: save the model with one"
            )
        if became == _ONLY and value != _REQUIRED[name]:
            raise RetinaError(
                f"{file.path}: expected {name} {_REQUIRED[name]}, found {value} in {owner}; only that can be imported"
            )
        values[name] = value
    _check_kinds(file, values)
    return Settings(values, tuple(account.values()))


def _plain_settings(file: KerasFile) -> Iterator[tuple[str, str, Any]]:
    """Triples (class, setting, value) of every object in the configurations; an unknown class is a setting, too."""
    left: list[Any] = list(reversed(list(file.configs.values())))
    while left:
        node = left.pop()
        if isinstance(node, list):
            left.extend(reversed(node))
        if not isinstance(node, dict) or not isinstance(node.get("class_name"), str):
            continue
        owner, config = node["class_name"], node.get("config")
        if node.get("compile_config"):
            yield owner, "compile_config", sorted(node["compile_config"])
        if owner not in _CLASSES:
            yield owner, "class_name", owner
        for name, value in config.items() if isinstance(config, dict) else ():
            if name == "dtype":
                yield owner, name, _policy(value)
            elif _holds_objects(value):
                left.append(value)
            else:
                yield owner, name, value


def _holds_objects(value: Any) -> bool:
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and isinstance(first.get("class_name"), str)


def _policy(value: Any) -> Any:
    config = value.get("config") if isinstance(value, dict) else None
    return config.get("name") if isinstance(config, dict) else value


def _check_kinds(file: KerasFile, values: dict[str, Any]) -> None:
    """Refuse values to compute with that are no numbers, or too many or too few."""
    counts: dict[str, tuple[int, ...]] = {
        **dict.fromkeys(("num_scales", "max_detections", "height", "width", "anchor_size"), (0,)),
        **dict.fromkeys(("iou_threshold", "confidence_threshold", "positive_threshold", "negative_threshold"), (0,)),
        **dict.fromkeys(("num_classes", "max_level", "pre_logits_num_conv_layers"), (0,)),
        **dict.fromkeys(("scale", "offset"), (0, 3)),
        **dict.fromkeys(("mean", "variance"), (3,)),
        "image_size": (2,),
        "aspect_ratios": tuple(range(1, 20)),
    }
    whole = ("num_scales", "max_detections", "height", "width", "num_classes", "max_level", "image_size")
    positive = ("num_scales", "height", "width", "anchor_size", "scale", "variance", "image_size", "aspect_ratios")
    for name, lengths in counts.items():
        value = values.get(name)
        if value is None:
            continue
        numbers = value if isinstance(value, list) else [value]
        fits = all(isinstance(x, (int, float)) and not isinstance(x, bool) and abs(x) < 1e9 for x in numbers)
        fits = fits and (name not in whole or all(isinstance(x, int) for x in numbers))
        fits = fits and (len(numbers) if isinstance(value, list) else 0) in lengths
        if not fits or (name in positive and min(numbers) <= 0):
            raise RetinaError(
                f"{file.path}: its configuration has {name} {json.dumps(value)[:80]}, expected "
                f"{'positive ' if name in positive else ''}numbers as keras-hub writes them; fetch it again"
            )
    if ("mean" in values) != ("variance" in values) or ("mean" in values and isinstance(values.get("scale"), list)):
        raise RetinaError(
            f"{file.path}: its configuration has mean or variance alone, or beside a scale of each channel; expected "
            "mean, variance and one scale, or scale and offset: fetch it again"
        )


def notes_of(settings: Settings) -> tuple[str, ...]:
    """Notes on settings that work otherwise there, or are not carried."""
    read, notes = settings.values, []
    if read.get("from_logits") is False:
        notes.append(
            "keras-hub's decoder takes the logits themselves as scores (from_logits False), retina their sigmoid"
        )
    if read.get("interpolation", "bilinear") != "bilinear":
        notes.append(f"keras-hub resizes with interpolation {json.dumps(read['interpolation'])}, retina bilinearly")
    if read.get("antialias"):
        notes.append("keras-hub resizes with antialias: add data.resize.antialias=true for it")
    policies = {setting.value for setting in settings.account if setting.name.endswith(".dtype")} - {"float32", None}
    if policies:
        notes.append(
            f"dtype {', '.join(sorted(map(str, policies)))} there; here run.precision decides, float32 at first"
        )
    compiled = next((setting.value for setting in settings.account if setting.name.endswith(".compile_config")), None)
    if compiled:
        notes.append(
            f"its compile_config ({', '.join(map(str, compiled))}) is not carried: see optimizer, schedule, loss"
        )
    left = [
        setting
        for setting in settings.account
        if setting.became == _LEFT and not setting.name.endswith(".compile_config")
    ]
    if left:
        named = ", ".join(f"{json.dumps(setting.name)[1:-1]} {json.dumps(setting.value)[:80]}" for setting in left)
        notes.append(f"settings that retina does not know and has not carried: {named}")
    if "box_matcher_force_match_for_each_col" not in read:
        notes.append(
            "keras-hub does not write down its label encoder's box_matcher_force_match_for_each_col and "
            "box_matcher_match_values: their defaults are taken; if the model was trained with the first, add "
            "assignment.force_match=true"
        )
    return tuple(notes)


def pixels(read: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...], tuple[str, ...]]:
    """Mean and standard deviation of which the converter's `pixel * scale + offset` is the normalisation, and notes."""
    if not gives_pixels(read):
        return (*_IMAGENET, ("the file gives no pixel normalisation: ImageNet's, as its presets have it",))
    if "mean" in read and "variance" in read:  # in presets of older versions, in units of the scaled pixel
        factor = float(read.get("scale") or 1.0)
        mean, variance = ([float(x) for x in read[name]] for name in ("mean", "variance"))
        return tuple(x / factor for x in mean), tuple(x**0.5 / factor for x in variance), ()
    scale, offset = (
        [float(x) for x in (value if isinstance(value, list) else [value] * 3)]
        for value in (read.get("scale") or 1.0, read.get("offset") or 0.0)
    )
    shifts = tuple(-shift / factor for factor, shift in zip(scale, offset, strict=True))
    return shifts, tuple(1.0 / factor for factor in scale), ()


def gives_pixels(read: dict[str, Any]) -> bool:
    """Return whether the settings normalise pixels."""
    return bool({"scale", "offset", "mean"} & set(read))


def resize(read: dict[str, Any]) -> tuple[dict[str, int], tuple[str, ...]]:
    """`data.resize`, and in what it differs from the converter's `image_size` and its way of filling it."""
    notes = []
    size = read.get("image_size") or [read.get("height"), read.get("width")]
    if None in size:
        size = [_DEFAULT_SIDE, _DEFAULT_SIDE]
        notes.append(f"the file gives no image_size: {_DEFAULT_SIDE} px, as its presets have it")
    height, width = (int(side) for side in size)
    if height != width:
        notes.append(
            f"image_size is {height} x {width} there (height x width) for every image; here the short side is at most "
            f"{min(size)} px and the long one at most {max(size)} px, upright images stand on upright canvases, and "
            "canvases are no larger than they need be"
        )
    # A key that is not written has the constructor's default.
    cropped, padded = read.get("crop_to_aspect_ratio", True), read.get("pad_to_aspect_ratio", False)
    if padded:
        notes.append(
            f"pad_to_aspect_ratio: keras-hub pads an image evenly on both sides to {height} x {width}, retina at the "
            "bottom and on the right"
        )
    elif cropped:
        source = "" if "crop_to_aspect_ratio" in read else " (its default; the file does not say)"
        notes.append(
            f"crop_to_aspect_ratio{source}: keras-hub cuts an image to the shape {height} x {width}, retina shows all "
            "of it and pads"
        )
    else:
        notes.append(
            f"neither crop_to_aspect_ratio nor pad_to_aspect_ratio: keras-hub stretches an image to {height} x {width},"
            " retina keeps its aspect and pads"
        )
    square = height == width and height % 32 == 0
    return {"short": min(height, width), "long": max(height, width), "multiple": height if square else 32}, tuple(notes)
