"""keras-hub's RetinaNet, its names and conventions.

They are read off keras-hub 0.32: `models/retinanet/*.py`, `models/resnet/resnet_backbone.py`,
`layers/modeling/anchor_generator.py`, `non_max_supression.py` and `layers/preprocessing/image_converter.py`. Weights go
where its source has them: it gives the prior to the box head, and so does a file of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from retina.errors import RetinaError
from retina.weights import keras_settings
from retina.weights.architectures import ARCHITECTURES, Architecture
from retina.weights.keras_file import Group, KerasFile
from retina.weights.keras_settings import Settings, read_settings
from retina.weights.mapping import Rule
from retina.weights.tensor_file import TensorFile
from retina.weights.torchvision import Classes

# Variables of a layer, by how many it has.
_VARIABLES = {1: ("kernel",), 2: ("kernel", "bias"), 4: ("gamma", "beta", "moving_mean", "moving_variance")}
_NORM = ("gamma", "beta")
_HEADS = {"box_head": "box", "classification_head": "classification"}
CLASSIFIER = {
    r"(predictions|(.*/)?dense)/(kernel|bias)": "the ImageNet classifier",
    r".*seed_generator.*": "the state of a dropout's random numbers",
}
# There is no bound; a float32 stands this one.
_NO_BOUND = 1e6


class KerasRetinanet(NamedTuple):
    """The architecture of a RetinaNet, as its file shows it. `rows` are classes; `settings` are its configuration's."""

    depth: int
    rows: int
    per_cell: int
    channels: int
    layers: int
    group_norm: bool
    p6_from: str
    max_level: int
    settings: Settings


def tensors_of(file: KerasFile) -> TensorFile:
    """The weights by names that don't depend on how they were saved: `stack0_block0_1_conv/kernel`,
    `lateral_conv_P3/bias`, `box_head/conv_0/kernel`, `classification_head/prediction/bias`, ….

    Raises:
        RetinaError: two layers have the same name.
    """
    named: dict[str, np.ndarray] = {}
    full = [group for group in file.groups if group.variables]
    heads = _heads(file)
    encoder = _encoder_names(full)
    for group in full:
        name = _head_layer(group, heads) or _pyramid_layer(group) or encoder.get(group.path) or group.name or group.path
        labels = _NORM if "/norm_" in name else _VARIABLES.get(len(group.variables), ())
        for number, values in enumerate(group.variables):
            key = f"{name}/{labels[number] if number < len(labels) else number}"
            if key in named:
                raise RetinaError(f"{file.path}: two layers are called {name}; expected one RetinaNet of keras-hub")
            named[key] = values
    return TensorFile(file.path, file.sha256, named)


def _heads(file: KerasFile) -> dict[str, str]:
    """The head at each path `…/prediction_head…`; without names the box head is the first, as in the network."""
    heads: dict[str, str | None] = {}
    for group in file.groups:
        head = re.match(r"((?:.*/)?(?:prediction_head(?:_\d+)?|box_head|classification_head))(/|$)", group.path)
        if head:
            heads[head[1]] = heads.get(head[1]) or (group.name if group.path == head[1] else None)
    if all(name in _HEADS for name in heads.values()):
        return {path: str(name) for path, name in heads.items()}
    return dict(zip(sorted(heads), _HEADS, strict=False))


def _head_layer(group: Group, heads: dict[str, str]) -> str | None:
    for path, head in heads.items():
        if not group.path.startswith(f"{path}/"):
            continue
        rest = group.path.removeprefix(f"{path}/")
        if rest == "prediction_layer":
            return f"{head}/prediction"
        layer = re.fullmatch(r"(conv_layers/conv2d|group_norm_layers/group_normalization)(?:_(\d+))?", rest)
        if layer:
            return f"{head}/{'conv' if layer[1].startswith('conv') else 'norm'}_{layer[2] or 0}"
    return None


def _pyramid_layer(group: Group) -> str | None:
    """Lateral and output convolutions, numbered from P3 on; P6 and P7 follow the outputs."""
    layer = re.search(r"(lateral|output)_conv_layers/conv2d(?:_(\d+))?$", group.path)
    if layer is None:
        return None
    level = 3 + int(layer[2] or 0)
    return f"coarser_P{level}" if layer[1] == "output" and level > 5 else f"{layer[1]}_conv_P{level}"


def _encoder_names(groups: list[Group]) -> dict[str, str]:
    """Names of the ResNet's layers, by path, for files that don't have them: they are numbered in the network's order,
    in which a shortcut stands before the last convolution of its block."""
    layers: dict[str, dict[int, Group]] = {"conv2d": {}, "batch_normalization": {}}
    for group in groups:
        layer = re.search(r"(?:^|/)layers/(conv2d|batch_normalization)(?:_(\d+))?$", group.path)
        if layer and group.name is None:
            layers[layer[1]][int(layer[2] or 0)] = group
    for architecture in ARCHITECTURES.values():
        names = list(_order(architecture))
        if len(names) == len(layers["conv2d"]) == len(layers["batch_normalization"]):
            shapes = [layers["conv2d"][number].variables[0].shape[:2] for number in sorted(layers["conv2d"])]
            if (shapes[1] == (1, 1)) == architecture.bottleneck:
                return {
                    layers[kind][number].path: f"{name}_{suffix}"
                    for kind, suffix in (("conv2d", "conv"), ("batch_normalization", "bn"))
                    for number, name in zip(sorted(layers[kind]), names, strict=True)
                }
    return {}


def _order(architecture: Architecture) -> Iterator[str]:
    yield "conv1"
    last = 3 if architecture.bottleneck else 2
    for stage, count in enumerate(architecture.blocks):
        for block in range(count):
            where = f"stack{stage}_block{block}"
            for number in range(1, last):
                yield f"{where}_{number}"
            if block == 0 and (stage > 0 or architecture.bottleneck):
                yield f"{where}_0"
            yield f"{where}_{last}"


# ----------------------------------------------------------------------------------------------------- what it holds


def recognise(file: KerasFile, tensors: TensorFile) -> KerasRetinanet:
    """Return the architecture of the RetinaNet in a file.

    Raises:
        RetinaError: it is none, or of an architecture that the network here can't take.
    """
    shapes = {name: tensor.shape for name, tensor in tensors.tensors.items()}
    settings = read_settings(file)

    def expect(fits: bool, expected: str, given: object) -> None:
        if not fits:
            raise RetinaError(
                f"{file.path}: expected {expected}, as in keras-hub's RetinaNetObjectDetector on a ResNet, found "
                f"{given}; only those can be imported"
            )

    boxes, logits = (shapes.get(f"{head}/prediction/bias", ()) for head in _HEADS)
    expect(len(boxes) == len(logits) == 1, "a box head and a classification head", ", ".join([*list(shapes)[:2], "…"]))
    expect(boxes[0] % 4 == 0 and boxes[0] > 0, "four outputs of the box head an anchor", boxes[0])
    per_cell = boxes[0] // 4
    expect(logits[0] % per_cell == 0 and logits[0] > 0, f"a multiple of {per_cell} logits", logits[0])
    levels = sorted(int(name[-8]) for name in shapes if re.fullmatch(r"(output_conv|coarser)_P\d/kernel", name))
    expect(levels in ([3, 4, 5], [3, 4, 5, 6], [3, 4, 5, 6, 7]), "a pyramid from P3 to P5, P6 or P7", levels)
    depth = next((depth for depth, known in ARCHITECTURES.items() if _is_of(shapes, known)), None)
    expect(depth is not None, 'a ResNet of 18 to 152 layers that is neither pre-activated nor a "vd"', "another")
    assert depth is not None
    c5, extra = shapes["lateral_conv_P5/kernel"][2], shapes.get("coarser_P6/kernel", (3, 3, 0, 0))
    p6_from = "c5" if extra[2] == c5 else "p5"
    layers = sum(re.fullmatch(r"box_head/conv_\d+/kernel", name) is not None for name in shapes)
    group_norm, rows = "box_head/norm_0/gamma" in shapes, logits[0] // per_cell
    for name, shown in (
        ("num_classes", rows), ("pre_logits_num_conv_layers", layers), ("use_prediction_head_norm", group_norm),
        ("max_level", levels[-1]), *([("use_p5", p6_from == "c5")] if extra[3] else []),
    ):  # fmt: skip
        stated = settings.values.get(name, shown)
        expect(stated == shown, f"a configuration of these weights, whose {name} is {shown}", stated)
    return KerasRetinanet(
        depth=depth,
        rows=rows,
        per_cell=per_cell,
        channels=shapes["lateral_conv_P5/kernel"][3],
        layers=layers,
        group_norm=group_norm,
        p6_from=p6_from,
        max_level=levels[-1],
        settings=settings,
    )


def _is_of(shapes: dict[str, tuple[int, ...]], architecture: Architecture) -> bool:
    theirs = {name.removesuffix("_conv/kernel") for name in shapes if name.endswith("_conv/kernel")}
    return {name for name in theirs if name.startswith(("stack", "conv"))} == set(_order(architecture))


def retinanet_rules(kind: KerasRetinanet, classes: Classes) -> list[Rule]:
    """Rules from the names of `tensors_of` to a `Detector` named "detector" with its conventions."""
    rules = encoder_rules(ARCHITECTURES[kind.depth])
    pyramid = {f"lateral_conv_P{level}": f"lateral_p{level}" for level in (3, 4, 5)}
    pyramid |= {f"output_conv_P{level}": f"smooth_p{level}" for level in (3, 4, 5)}
    pyramid |= {f"coarser_P{level}": f"extra_p{level}" for level in range(6, kind.max_level + 1)}
    rules += [
        Rule(f"{theirs}/{variable}", f"detector/fpn/{ours}/{variable}")
        for theirs, ours in pyramid.items()
        for variable in ("kernel", "bias")
    ]
    for theirs, ours in _HEADS.items():
        for layer in range(kind.layers):
            variables = ("kernel",) if kind.group_norm else ("kernel", "bias")
            rules += [Rule(f"{theirs}/conv_{layer}/{v}", f"detector/{ours}/conv_{layer}/{v}") for v in variables]
            if kind.group_norm:
                rules += [Rule(f"{theirs}/norm_{layer}/{v}", f"detector/{ours}/norm_{layer}/{v}") for v in _NORM]
        selection: dict[str, Any] = {}
        if ours == "classification" and len(classes.rows) < kind.rows:
            selection["keep"] = tuple(
                anchor * kind.rows + row for anchor in range(kind.per_cell) for row in classes.rows
            )
            selection["of"] = kind.per_cell * kind.rows
        rules.append(Rule(f"{theirs}/prediction/bias", f"detector/{ours}/prediction_bias", None, **selection))
        # Rules keep entries of the first axis: outputs first, as PyTorch stores them.
        rules.append(
            Rule(f"{theirs}/prediction/kernel", f"detector/{ours}/prediction/kernel", (1, 2, 3, 0), **selection)
        )
    return rules


def outputs_first(file: TensorFile) -> TensorFile:
    """The predictions' kernels [3, 3, c, outputs] as [outputs, 3, 3, c], whose entries a rule can choose."""
    tensors = {
        name: np.moveaxis(values, -1, 0) if name.endswith("/prediction/kernel") and values.ndim == 4 else values
        for name, values in file.tensors.items()
    }
    return file._replace(tensors=tensors)


def encoder_rules(architecture: Architecture) -> list[Rule]:
    """Rules of its ResNet to `retina.models.resnet`'s, which computes the same."""
    rules = []
    for name in _order(architecture):
        convolution, norm = _ours(name)
        rules.append(Rule(f"{name}_conv/kernel", f"{convolution}/kernel"))
        rules += [Rule(f"{name}_bn/{variable}", f"{norm}/{variable}") for variable in _VARIABLES[4]]
    return rules


def _ours(name: str) -> tuple[str, str]:
    if name == "conv1":
        return "conv1", "bn1"
    stage, block, number = (int(part) for part in re.findall(r"\d+", name))
    where = f"layer{stage + 1}_{block}"
    if number == 0:
        return f"{where}_downsample_0", f"{where}_downsample_1"
    return f"{where}_conv{number}", f"{where}_bn{number}"


def encoder_depth(file: TensorFile) -> int:
    """Layers of the ResNet in a file.

    Raises:
        RetinaError: it is none of 18 to 152 layers, or a detector's.
    """
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    if not holds_encoder_alone(file):
        raise RetinaError(
            f"{file.path}: expected a backbone of keras-hub, this is a whole detector; bring it in with `retina "
            f"import-weights keras-hub {file.path} --out RUN`"
        )
    depth = next((depth for depth, known in ARCHITECTURES.items() if _is_of(shapes, known)), None)
    if depth is None:
        raise RetinaError(
            f'{file.path}: expected a ResNet of 18 to 152 layers of keras-hub, neither pre-activated nor a "vd", found '
            f"{', '.join([*list(shapes)[:2], '…'])}; those are backbones of their own (keras_hub/…)"
        )
    return depth


def holds_encoder_alone(file: TensorFile) -> bool:
    """Return whether the file has neither heads nor a pyramid."""
    return not any(name.startswith((*_HEADS, "lateral_conv_")) for name in file.tensors)


def pixels_of(file: KerasFile) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation in [0, 255] of the normalisation, where the file has one."""
    read = read_settings(file).values
    return keras_settings.pixels(read)[:2] if keras_settings.gives_pixels(read) else None


# ------------------------------------------------------------------------------------------------------- conventions


def conventions(kind: KerasRetinanet, where: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The sections of a configuration in which keras-hub's detector computes what it computes there, and notes on what
    differs or is not said."""
    read = kind.settings.values
    scales, size = read.get("num_scales", 3), read.get("anchor_size", 4)
    mean, std, notes = keras_settings.pixels(read)
    resize, resize_notes = keras_settings.resize(read)
    if kind.per_cell != scales * len(read.get("aspect_ratios", (0.5, 1.0, 2.0))):
        raise RetinaError(
            f"{where}: the heads have {kind.per_cell} anchors a cell, the configuration {scales} scales; expected the "
            "configuration of these weights: import the preset folder that both came in"
        )
    sections = {
        "model": {
            "backbone": f"resnet{kind.depth}",
            "batch_norm": "train",
            "pixel_mean": mean,
            "pixel_std": std,
            "fpn": {
                "channels": kind.channels,
                "max_level": kind.max_level,
                "p6_from": kind.p6_from if kind.max_level > 5 else "c5",
                "padding": "same",
            },
            "head": {
                "channels": kind.channels,
                "layers": kind.layers,
                "norm": "group" if kind.group_norm else "none",
                "conv_bias": not kind.group_norm,
                **({"norm_epsilon": 1e-3} if kind.group_norm else {}),
            },
        },
        "anchors": {
            # Truncated to whole pixels there.
            "sizes": [
                [int(2**level * size * 2 ** (scale / scales)) for scale in range(scales)]
                for level in range(3, kind.max_level + 1)
            ],
            "ratios": read.get("aspect_ratios", [0.5, 1.0, 2.0]),
            "offset": 0.0,
            "rounding": True,
            "spacing": "canvas",
            "max_size_ratio": _NO_BOUND,
        },
        "assignment": {
            "positive_iou": read.get("positive_threshold", 0.5),
            "negative_iou": read.get("negative_threshold", 0.4),
            "force_match": bool(read.get("box_matcher_force_match_for_each_col", False)),
        },
        "inference": {
            "score_threshold": read.get("confidence_threshold", 0.5),
            "nms_iou": read.get("iou_threshold", 0.5),
            "max_detections": read.get("max_detections", 100),
            "class_agnostic": True,
            "clip": "none",
        },
        "resize": resize,
    }
    return sections, (
        *notes,
        *keras_settings.notes_of(kind.settings),
        *resize_notes,
        "the loss is retina's default, arXiv:1708.02002's, and not the one that keras-hub trains with (focal without "
        "alpha, in the mean over classes; Huber at 1, in the mean over the 4 numbers; nothing for a batch without "
        "positives): loss.classification.alpha=null loss.box='{kind: huber, delta: 1.0, weight: 0.25}' gives its box "
        "loss, and its classification loss times the number of classes",
        "keras-hub normalises the padding like pixels, here it is zero; it takes every anchor above the threshold for "
        "a candidate, retina 1000 a level: with a low inference.score_threshold, raise inference.candidates",
    )
