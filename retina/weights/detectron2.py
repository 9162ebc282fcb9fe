"""detectron2's RetinaNet (R50, R101): its names and conventions.

They are read off its public source: `modeling/meta_arch/retinanet.py`, `modeling/backbone/resnet.py` and `fpn.py`,
`modeling/anchor_generator.py`, `modeling/box_regression.py` and `config/defaults.py`. Its images are BGR; here the
first convolution's input channels are turned round instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from retina.errors import RetinaError
from retina.weights.architectures import ARCHITECTURES, Architecture
from retina.weights.mapping import KERNEL, Rule
from retina.weights.tensor_file import TensorFile
from retina.weights.torchvision import Classes

_STATISTICS = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
_FIRST = "backbone.bottom_up.stem.conv1.weight"
# The zoo's configuration; anchors vary by ratio first, here by size first.
_SIZES, _RATIOS = 3, 3
_PER_CELL = _SIZES * _RATIOS
_BGR_MEAN = (103.53, 116.28, 123.675)

UNUSED = {
    r"anchor_generator\.cell_anchors\.\d+": "anchors, which the configuration gives",
    r"pixel_(mean|std)": "pixel normalisation, which the configuration gives",
    r".*\.num_batches_tracked": "PyTorch's count of training batches",
}


class DetectronRetinanet(NamedTuple):
    """The architecture of a RetinaNet, as its state dict shows it. `rows` are classes; there is no background."""

    depth: int
    rows: int
    channels: int
    layers: int
    p6_from: str
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]


def recognise(file: TensorFile) -> DetectronRetinanet:
    """Return the architecture of the RetinaNet in a file.

    Raises:
        RetinaError: there is none, or its architecture is one that the network here can't take.
    """
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}

    def expect(fits: bool, expected: str, given: object) -> None:
        if not fits:
            raise RetinaError(
                f"{file.path}: expected {expected}, as in detectron2's RetinaNet R50 and R101, found {given}; only "
                "those can be imported"
            )

    logits, deltas = (shapes.get(f"head.{name}.weight", ()) for name in ("cls_score", "bbox_pred"))
    expect(len(logits) == len(deltas) == 4, "head.cls_score and head.bbox_pred", ", ".join([*list(shapes)[:2], "…"]))
    expect(deltas[0] == 4 * _PER_CELL, f"{4 * _PER_CELL} outputs of the box head", deltas[0])
    expect(logits[0] % _PER_CELL == 0 and logits[0] > 0, f"a multiple of {_PER_CELL} logits", logits[0])
    expect(0 not in logits, "logits of features", f"a shape of {list(logits)}")
    depth = next((depth for depth, known in ARCHITECTURES.items() if known == _blocks(shapes)), None)
    expect(depth is not None, "a ResNet of 18 to 152 layers", ", ".join([*list(shapes)[:2], "…"]))
    assert depth is not None
    levels = sorted(name for name in shapes if re.fullmatch(r"backbone\.fpn_lateral\d\.weight", name))
    p6 = shapes.get("backbone.top_block.p6.weight", ())
    expect(len(levels) == 3 and len(p6) == 4, "a pyramid on C3 to C5 with P6 and P7", f"{levels}, P6 {list(p6)}")
    layers = [name for name in shapes if re.fullmatch(r"head\.cls_subnet\.\d+\.weight", name)]
    norms = [name for name in layers if len(shapes[name]) == 1]
    expect(not norms, "heads without normalisation", ", ".join(norms[:2]))
    return DetectronRetinanet(
        depth=depth,
        rows=logits[0] // _PER_CELL,
        channels=p6[0],
        layers=len(layers),
        p6_from="p5" if p6[0] == p6[1] else "c5",
        pixel_mean=_pixels(file, "pixel_mean", _BGR_MEAN),
        pixel_std=_pixels(file, "pixel_std", (1.0, 1.0, 1.0)),
    )


def _pixels(file: TensorFile, name: str, default: tuple[float, ...]) -> tuple[float, ...]:
    """The file's own normalisation, which older versions store; in its order of channels."""
    stored = file.tensors.get(name)
    if stored is None:
        return default
    if stored.size != 3:
        raise RetinaError(f"{file.path}: expected 3 numbers of {name}, got {stored.size}; is it another network's?")
    # The digits that a configuration had before they were rounded to float32.
    return tuple(float(str(np.float32(value))) for value in stored.reshape(-1))


def _blocks(shapes: dict[str, tuple[int, ...]]) -> tuple[tuple[int, ...], bool]:
    start = "backbone.bottom_up.res"
    blocks = tuple(
        len({name.split(".")[3] for name in shapes if name.startswith(f"{start}{stage}.")}) for stage in range(2, 6)
    )
    return blocks, f"{start}2.0.conv3.weight" in shapes


def colours_turned(file: TensorFile) -> TensorFile:
    """The file with a first convolution for RGB in place of BGR."""
    first = file.tensors.get(_FIRST)
    if first is None or first.ndim != 4 or first.shape[1] != 3:
        return file
    return file._replace(tensors={**file.tensors, _FIRST: np.ascontiguousarray(first[:, ::-1])})


def retinanet_rules(kind: DetectronRetinanet, classes: Classes) -> list[Rule]:
    """Rules from a RetinaNet of detectron2 to a `Detector` named "detector" with its conventions."""
    rules = list(_encoder_rules(ARCHITECTURES[kind.depth]))
    pyramid = {f"backbone.fpn_lateral{level}": f"lateral_p{level}" for level in (3, 4, 5)}
    pyramid |= {f"backbone.fpn_output{level}": f"smooth_p{level}" for level in (3, 4, 5)}
    pyramid |= {f"backbone.top_block.p{level}": f"extra_p{level}" for level in (6, 7)}
    for theirs, ours in pyramid.items():
        rules.append(Rule(f"{theirs}.weight", f"detector/fpn/{ours}/kernel", KERNEL))
        rules.append(Rule(f"{theirs}.bias", f"detector/fpn/{ours}/bias"))
    for subnet, prediction, ours, width, chosen in (
        ("cls_subnet", "cls_score", "classification", kind.rows, classes.rows),
        ("bbox_subnet", "bbox_pred", "box", 4, range(4)),
    ):
        for layer in range(kind.layers):  # a rectifier stands between convolutions
            rules.append(Rule(f"head.{subnet}.{2 * layer}.weight", f"detector/{ours}/conv_{layer}/kernel", KERNEL))
            rules.append(Rule(f"head.{subnet}.{2 * layer}.bias", f"detector/{ours}/conv_{layer}/bias"))
        keep = tuple(anchor * width + row for anchor in _our_order() for row in chosen)
        of = _PER_CELL * width
        rules.append(Rule(f"head.{prediction}.weight", f"detector/{ours}/prediction/kernel", KERNEL, keep, of))
        rules.append(Rule(f"head.{prediction}.bias", f"detector/{ours}/prediction_bias", None, keep, of))
    return rules


def _our_order() -> list[int]:
    """Their number of each of our anchors: theirs count ratios within a size, ours sizes within a ratio."""
    return [size * _RATIOS + ratio for ratio in range(_RATIOS) for size in range(_SIZES)]


def _encoder_rules(architecture: Architecture) -> Iterator[Rule]:
    yield from _convolution_and_norm("stem.conv1", "conv1", "bn1")
    for stage, count in enumerate(architecture.blocks, start=1):
        for block in range(count):
            theirs, ours = f"res{stage + 1}.{block}", f"layer{stage}_{block}"
            for number in range(1, 4 if architecture.bottleneck else 3):
                yield from _convolution_and_norm(f"{theirs}.conv{number}", f"{ours}_conv{number}", f"{ours}_bn{number}")
            if block == 0 and (stage > 1 or architecture.bottleneck):
                yield from _convolution_and_norm(f"{theirs}.shortcut", f"{ours}_downsample_0", f"{ours}_downsample_1")


def _convolution_and_norm(theirs: str, convolution: str, norm: str) -> Iterator[Rule]:
    yield Rule(f"backbone.bottom_up.{theirs}.weight", f"{convolution}/kernel", KERNEL)
    for source, target in _STATISTICS.items():
        yield Rule(f"backbone.bottom_up.{theirs}.norm.{source}", f"{norm}/{target}")


def conventions(kind: DetectronRetinanet, file: TensorFile) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The sections of a configuration in which detectron2's detector computes what it computes there, and notes on
    what the file does not say."""
    bottleneck = ARCHITECTURES[kind.depth].bottleneck
    sections = {
        "model": {
            "backbone": f"resnet{kind.depth}{'_v1' if bottleneck else ''}",
            "batch_norm": "frozen",
            "pixel_mean": kind.pixel_mean[::-1],
            "pixel_std": kind.pixel_std[::-1],
            "fpn": {"channels": kind.channels, "p6_from": kind.p6_from, "padding": "symmetric"},
            "head": {"channels": kind.channels, "layers": kind.layers},
        },
        "anchors": {
            "sizes": [[2.0**level * 4 * 2 ** (scale / 3) for scale in range(_SIZES)] for level in range(3, 8)],
            "ratios": [0.5, 1.0, 2.0],
            "offset": 0.0,
            "rounding": False,
        },
        "assignment": {"positive_iou": 0.5, "negative_iou": 0.4, "force_match": "ties"},
        "loss": {
            "classification": {"kind": "focal", "alpha": 0.25, "gamma": 2.0},
            "box": {"kind": "smooth_l1", "beta": 0.1, "weight": 1.0},
            "normalizer": {"kind": "ema", "momentum": 0.9, "initial": 100.0},
        },
        "inference": {
            "score_threshold": 0.05,
            "candidates": 1000,
            "nms_iou": 0.5,
            "max_detections": 100,
            "clip": "after",
        },
        "resize": {"short": 800, "long": 1333, "multiple": 32, "antialias": True},
        "crowd": "drop",
    }
    notes = [
        "BGR images there: the first convolution's input channels are turned round for RGB",
        "detectron2 pads a batch to its largest image; retina has data.resize.max_canvases (4) canvases for a data "
        "set, on which images of like shape share one",
    ]
    if bottleneck:
        notes.append(
            "STRIDE_IN_1X1 as in detectron2's defaults and its zoo's R50 and R101; if the model was trained with "
            f"STRIDE_IN_1X1: False, add model.backbone=resnet{kind.depth}"
        )
    return sections, tuple(notes)
