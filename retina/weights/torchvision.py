"""torchvision's names and conventions: its ResNets (timm's have the same names) and its RetinaNets.

The conventions are read off torchvision 0.28: `models/detection/retinanet.py`, `anchor_utils.py`, `transform.py`,
`backbone_utils.py`, `ops/feature_pyramid_network.py` and `models/resnet.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from retina.errors import RetinaError
from retina.weights.architectures import ARCHITECTURES, Architecture
from retina.weights.coco_classes import CATEGORIES
from retina.weights.mapping import KERNEL, Rule
from retina.weights.tensor_file import TensorFile, read_tensors

_NORM = {"weight": "gamma", "bias": "beta"}
_STATISTICS = {**_NORM, "running_mean": "moving_mean", "running_var": "moving_variance"}

_COUNTERS = {r".*\.num_batches_tracked": "PyTorch's count of training batches"}
CLASSIFIER = {
    r"(fc|classifier|head(\.fc)?)\.(weight|bias)": "the ImageNet classifier",
    **_COUNTERS,
}

# Anchors of torchvision's builders at each location: 3 sizes by 3 ratios.
_PER_CELL = 9
_COCO_ROWS = 91

# The published files, by the first digits of their SHA-256, which their names end in.
_PUBLISHED_WITHOUT_EPSILON = "eeacb38b"


_LOSSES = (
    "torchvision's classification loss has the rows without a class too (background, unused numbers of COCO's), "
    "retina's the classes' rows alone"
)

# Measured by scripts/reproduce/imported_resizing.py on one photograph of 640 x 480, on a CPU.
_RESIZING = (
    "torchvision resizes normalised floats where retina rounds to whole pixel values: with random weights that moved "
    "the boxes of one photograph by 0.02 px in the median (V1), and the same 300 were detected",
    "torchvision pads a batch to its largest image; retina has data.resize.max_canvases (4) canvases for a data set, "
    "on which images of like shape share one: with more padding the anchors of P6 and P7 move, and group normalisation "
    "sees it (with random weights and a canvas of 832 x 1344 in place of 800 x 1088, 252 of V1's and 233 of V2's 300 "
    "detections were found again, in the median 0.0 and 0.7 px away). data.resize.max_canvases=100 gives nearly every "
    "image the canvas that it has alone in torchvision",
)


class Retinanet(NamedTuple):
    """The architecture of a RetinaNet, as its state dict shows it.

    `old_pyramid`, `old_heads`: names of torchvision before 0.13. `live`: batch normalisation trained with the
    network, else frozen. `rows`: of the classification head, background and gaps in COCO's numbers included.
    `per_cell`: anchors.
    """

    depth: int
    rows: int
    channels: int
    layers: int
    group_norm: bool
    p6_from: str
    live: bool
    old_pyramid: bool
    old_heads: bool
    per_cell: int = _PER_CELL


class Classes(NamedTuple):
    """`names` and `category_ids` of the classes kept, and `rows`, the head's row of each."""

    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    rows: tuple[int, ...]


# ------------------------------------------------------------------------------------------------------- backbones


def read_classifier(path: Path) -> TensorFile:
    """Read the file of an ImageNet network of torchvision or timm, .pth or .safetensors.

    Raises:
        RetinaError: the file can't be read, or is a detector's.
    """
    file = read_tensors(path)
    if any(tensor.startswith("backbone.") for tensor in file.tensors):
        kind = "detectron2" if any(name.startswith("backbone.bottom_up.") for name in file.tensors) else "torchvision"
        raise RetinaError(
            f"{file.path}: expected the weights of a classifier, this is a whole detector; bring it in with "
            f"`retina import-weights {kind} {file.path} --out RUN`, and train from it with model.weights=null "
            "model.init_from=RUN"
        )
    return file


def classifier_depth(file: TensorFile) -> int:
    """Layers of the ResNet whose classifier's tensors a file holds.

    Raises:
        RetinaError: it is of another network.
    """
    depth = _depth({name: tensor.shape for name, tensor in file.tensors.items()}, "")
    if depth is None or "conv1.weight" not in file.tensors:
        raise RetinaError(
            f"{file.path}: expected a ResNet of 18 to 152 layers as torchvision and timm name its tensors, found "
            f"{_sample(file.tensors)}; ResNet-D (resnet50d), ResNeXt, wide, pre-activated and other networks can't be "
            "imported"
        )
    return depth


def resnet_rules(architecture: Architecture, prefix: str = "") -> list[Rule]:
    """Rules of a ResNet whose tensors' names start with `prefix`."""
    rules = list(_convolution_and_norm(prefix, "conv1", "bn1"))
    for stage, count in enumerate(architecture.blocks, start=1):
        for block in range(count):
            where = f"layer{stage}.{block}."
            for number in range(1, 4 if architecture.bottleneck else 3):
                rules += _convolution_and_norm(prefix, f"{where}conv{number}", f"{where}bn{number}")
            if block == 0 and (stage > 1 or architecture.bottleneck):
                rules += _convolution_and_norm(prefix, f"{where}downsample.0", f"{where}downsample.1")
    return rules


def _convolution_and_norm(prefix: str, convolution: str, norm: str) -> Iterator[Rule]:
    yield Rule(f"{prefix}{convolution}.weight", f"{convolution.replace('.', '_')}/kernel", KERNEL)
    for source, target in _STATISTICS.items():
        yield Rule(f"{prefix}{norm}.{source}", f"{norm.replace('.', '_')}/{target}")


# ------------------------------------------------------------------------------------------------------- detectors


def recognise(file: TensorFile) -> Retinanet:
    """Return the architecture of the RetinaNet in a file.

    Raises:
        RetinaError: it is none, or of an architecture that the network here can't take.
    """
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    if (depth := _depth(shapes, "")) is not None:
        raise RetinaError(
            f"{file.path}: expected a torchvision RetinaNet, this is a classifier; a detector starts from it with "
            f"model.backbone=resnet{depth} model.weights={file.path}"
        )

    def expect(fits: bool, expected: str, given: str) -> None:
        if not fits:
            raise RetinaError(
                f"{file.path}: expected {expected}, as in torchvision's retinanet_resnet50_fpn and "
                f"retinanet_resnet50_fpn_v2, found {given}; only those and their kin can be imported"
            )

    logits, deltas = (
        shapes.get(f"head.{head}.weight", ()) for head in ("classification_head.cls_logits", "regression_head.bbox_reg")
    )
    expect(len(logits) == 4 and len(deltas) == 4, "a RetinaNet's heads (head.classification_head.…)", _sample(shapes))
    expect(deltas[0] == 4 * _PER_CELL, f"{4 * _PER_CELL} outputs of the box head", str(deltas[0]))
    expect(logits[0] % _PER_CELL == 0 and logits[0] > 0, f"a multiple of {_PER_CELL} logits", str(logits[0]))
    expect(0 not in logits, "logits of features", f"a shape of {list(logits)}")
    levels = len({name.split(".")[3] for name in shapes if name.startswith("backbone.fpn.inner_blocks.")})
    p6 = shapes.get("backbone.fpn.extra_blocks.p6.weight", ())
    expect(levels == 3 and len(p6) == 4, "a pyramid on C3 to C5 with P6 and P7", f"{levels} levels, P6 {list(p6)}")
    depth = _depth(shapes, "backbone.body.")
    expect(depth is not None, "the backbone of a ResNet of 18 to 152 layers", _sample(shapes))
    assert depth is not None
    norms = [
        name.removesuffix("running_var") for name in shapes if re.fullmatch(r"backbone\.body\..*running_var", name)
    ]
    uncounted = [name for name in norms if f"{name}num_batches_tracked" not in shapes]
    expect(
        len(uncounted) in (0, len(norms)),
        "num_batches_tracked beside every running_var (live batch normalisation) or beside none (frozen)",
        f"it at {len(norms) - len(uncounted)} of {len(norms)}, not at {', '.join(uncounted[:1])}…",
    )
    head = "head.classification_head.conv."
    old_heads = f"{head}0.weight" in shapes
    pattern = re.compile(re.escape(head) + (r"\d+\.weight" if old_heads else r"\d+\.0\.weight"))
    return Retinanet(
        depth=depth,
        rows=logits[0] // _PER_CELL,
        channels=p6[0],
        layers=sum(pattern.fullmatch(name) is not None for name in shapes),
        group_norm=f"{head}0.1.weight" in shapes,
        # LastLevelP6P7 takes P5 if it was made for as many channels as it gives.
        p6_from="p5" if p6[0] == p6[1] else "c5",
        live=not uncounted,
        old_pyramid="backbone.fpn.inner_blocks.0.weight" in shapes,
        old_heads=old_heads,
    )


def _depth(shapes: Mapping[str, Any], prefix: str) -> int | None:
    names = [name.removeprefix(prefix) for name in shapes if name.startswith(prefix)]
    blocks = tuple(
        len({name.split(".")[1] for name in names if name.startswith(f"layer{stage}.")}) for stage in range(1, 5)
    )
    bottleneck = f"{prefix}layer1.0.conv3.weight" in shapes
    # ResNeXt's and wide ResNets' tensors have the same names.
    if shapes.get(f"{prefix}layer1.0.conv1.weight", (64,))[:1] != (64,):
        return None
    return next((depth for depth, known in ARCHITECTURES.items() if known == (blocks, bottleneck)), None)


def _sample(names: Mapping[str, Any]) -> str:
    return ", ".join([*list(names)[:2], "…"])


def classes_of(rows: int, names: Sequence[str] | None, where: str) -> Classes:
    """The classes of a head of so many rows.

    91 rows are COCO's category ids 0 to 90: the 80 that name a category are kept. Elsewhere `names` name all rows, or
    all but the first, which torchvision keeps for the background; without names every row is kept as `class_0`, ….

    Raises:
        RetinaError: the names don't fit the rows.
    """
    if names is None and rows == _COCO_ROWS:
        ids = tuple(CATEGORIES)
        return Classes(tuple(CATEGORIES.values()), ids, ids)
    if names is None:
        return Classes(tuple(f"class_{row}" for row in range(rows)), tuple(range(rows)), tuple(range(rows)))
    if len(set(names)) != len(names) or not all(names):
        raise RetinaError(f"--classes: expected distinct names, got {list(names)}")
    if len(names) not in (rows, rows - 1):
        raise RetinaError(
            f"{where}: its head has {rows} rows: expected {rows} names, or {rows - 1} if its first row "
            f"is the background; --classes gives {len(names)}"
        )
    named = tuple(range(rows - len(names), rows))
    return Classes(tuple(names), named, named)


def retinanet_rules(kind: Retinanet, classes: Classes) -> list[Rule]:
    """Rules from a torchvision RetinaNet to a `Detector` named "detector" with its conventions."""
    rules = resnet_rules(ARCHITECTURES[kind.depth], "backbone.body.")
    middle = "" if kind.old_pyramid else ".0"
    for number, level in enumerate((3, 4, 5)):
        rules += _convolution(f"backbone.fpn.inner_blocks.{number}{middle}", f"detector/fpn/lateral_p{level}")
        rules += _convolution(f"backbone.fpn.layer_blocks.{number}{middle}", f"detector/fpn/smooth_p{level}")
    for level in (6, 7):
        rules += _convolution(f"backbone.fpn.extra_blocks.p{level}", f"detector/fpn/extra_p{level}")
    # Output channels are ordered by anchor (ratio, then size), then by class: as here.
    keep = tuple(anchor * kind.rows + row for anchor in range(kind.per_cell) for row in classes.rows)
    all_rows: tuple[None, None] = (None, None)
    named_rows = (keep, kind.per_cell * kind.rows) if len(classes.rows) < kind.rows else all_rows
    for theirs, ours, prediction, selection in (
        ("classification_head", "classification", "cls_logits", named_rows),
        ("regression_head", "box", "bbox_reg", all_rows),
    ):
        for layer in range(kind.layers):
            source = f"head.{theirs}.conv.{2 * layer if kind.old_heads else f'{layer}.0'}"
            target = f"detector/{ours}/conv_{layer}"
            if kind.group_norm:
                rules.append(Rule(f"{source}.weight", f"{target}/kernel", KERNEL))
                norm = source.removesuffix("0") + "1"
                rules += [Rule(f"{norm}.{a}", f"detector/{ours}/norm_{layer}/{b}") for a, b in _NORM.items()]
            else:
                rules += _convolution(source, target)
        rules.append(
            Rule(f"head.{theirs}.{prediction}.weight", f"detector/{ours}/prediction/kernel", KERNEL, *selection)
        )
        rules.append(Rule(f"head.{theirs}.{prediction}.bias", f"detector/{ours}/prediction_bias", None, *selection))
    return rules


def _convolution(source: str, target: str) -> list[Rule]:
    return [Rule(f"{source}.weight", f"{target}/kernel", KERNEL), Rule(f"{source}.bias", f"{target}/bias")]


DETECTOR_UNUSED = _COUNTERS


def conventions(kind: Retinanet, file: TensorFile) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The sections of a configuration in which torchvision's detector computes what it computes there, and notes on
    what the file does not say."""
    epsilon, notes = _epsilon(kind, file)
    sides = [32 * 2**level for level in range(5)]
    sections = {
        "model": {
            "backbone": f"resnet{kind.depth}",
            "batch_norm": "train" if kind.live else "frozen",
            "batch_norm_epsilon": epsilon,
            "fpn": {"channels": kind.channels, "p6_from": kind.p6_from, "padding": "symmetric"},
            "head": {
                "channels": kind.channels,
                "layers": kind.layers,
                "norm": "group" if kind.group_norm else "none",
                "conv_bias": not kind.group_norm,
            },
        },
        "anchors": {
            # Truncated to whole pixels there.
            "sizes": [[side, int(side * 2 ** (1 / 3)), int(side * 2 ** (2 / 3))] for side in sides],
            "ratios": [0.5, 1.0, 2.0],
            "offset": 0.0,
            "rounding": True,
            "spacing": "canvas",
        },
        "assignment": {"positive_iou": 0.5, "negative_iou": 0.4, "force_match": "ties"},
        "loss": {
            "classification": {"kind": "focal", "alpha": 0.25, "gamma": 2.0},
            "box": {"kind": "giou" if kind.group_norm else "l1", "weight": 1.0},
            "normalizer": {"kind": "image"},
        },
        "inference": {"score_threshold": 0.05, "candidates": 1000, "nms_iou": 0.5, "max_detections": 300},
        "resize": {"short": 800, "long": 1333, "multiple": 32, "rounding": "floor"},
        "crowd": "drop",  # in its training script, references/detection/coco_utils.py
    }
    return sections, (*notes, _LOSSES, *_RESIZING)


def _epsilon(kind: Retinanet, file: TensorFile) -> tuple[float | None, tuple[str, ...]]:
    """torchvision sets the epsilon of its published first RetinaNet to 0 when it loads it: no file says so."""
    if kind.live:
        return None, ()
    if file.sha256.startswith(_PUBLISHED_WITHOUT_EPSILON):
        return 0.0, ("published COCO_V1 weights: batch normalisation without epsilon, as torchvision loads them",)
    return None, (
        "frozen batch normalisation, epsilon 1e-5: if the model was fine-tuned from torchvision's COCO_V1 weights, "
        "which it loads with epsilon 0, add model.batch_norm_epsilon=0.0",
    )
