"""The way back: a detector's weights as a torchvision RetinaNet's, and the code that builds the model they fit.

The import's rules are read backwards, so that what came from torchvision returns bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from retina.config import Config, Focal
from retina.errors import RetinaError
from retina.ops.anchors import count_per_cell
from retina.weights.architectures import ARCHITECTURES
from retina.weights.coco_classes import CATEGORIES
from retina.weights.mapping import Rule
from retina.weights.tensor_file import sha256_of_arrays
from retina.weights.torchvision import Classes, Retinanet, retinanet_rules

# Row of the head that no class of the run has: its score is 2e-9 whatever the picture.
_NEVER = -20.0
_COUNTER = "num_batches_tracked"

# Depths of torchvision's ResNets.
_DEPTHS = sorted(ARCHITECTURES.keys() - {10})

_COCO_ROWS = 91
_COCO_SIZES = ((32, 40, 50), (64, 80, 101), (128, 161, 203), (256, 322, 406), (512, 645, 812))
_RATIOS = (0.5, 1.0, 2.0)
_CHANNELS, _LAYERS, _LEVELS, _MAX_SIZE_RATIO = 256, 4, 5, 62.5
# Channels of C5, without and with bottlenecks.
_C5 = (512, 2048)

_GROUP_EPSILON = 1e-5

# torchvision's transform and detector, by what they are called there and their default.
_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_SETTINGS = {
    "min_size": 800,
    "max_size": 1333,
    "size_divisible": 32,
    "score_thresh": 0.05,
    "nms_thresh": 0.5,
    "detections_per_img": 300,
    "topk_candidates": 1000,
    "fg_iou_thresh": 0.5,
    "bg_iou_thresh": 0.4,
}
# Box losses that both have by the same name; torchvision's have the weight 1.
_BOX_LOSSES = ("l1", "giou", "diou", "ciou")
_FOCAL = Focal(alpha=0.25, gamma=2.0)  # fmt: skip


class Written(NamedTuple):
    """A tensor of the file: `source` is the variable it came from, or None with the `reason` for its values."""

    name: str
    shape: tuple[int, ...]
    source: str | None
    axes: tuple[int, ...] | None
    reason: str


@dataclass(frozen=True)
class ExportReport:
    """The content of the file: `labels[i]` is the class that torchvision's label i means, None for a row that none has.

    `code` is Python that builds the model and loads the file.
    """

    file: str
    sha256: str
    arrays_sha256: str
    tensors: tuple[Written, ...]
    labels: tuple[str | None, ...]
    code: str

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "tensors": [tensor._asdict() for tensor in self.tensors]}


@dataclass(frozen=True)
class StateDict:
    """`tensors` by torchvision's names (float32, counters int64), and what the report says of them."""

    tensors: dict[str, np.ndarray]
    written: tuple[Written, ...]
    labels: tuple[str | None, ...]
    kind: Retinanet

    def report(self, file: str, sha256: str, code: str) -> ExportReport:
        return ExportReport(file, sha256, sha256_of_arrays(self.tensors), self.written, self.labels, code)


def state_dict(
    arrays: Mapping[str, np.ndarray],
    config: Config,
    class_names: tuple[str, ...],
    category_ids: tuple[int, ...],
    *,
    leftovers: Mapping[str, np.ndarray],
    imported_rows: int | None,
    step: int,
    where: str,
) -> StateDict:
    """A run's weights by torchvision's names.

    The head gets torchvision's rows: COCO's 91 for COCO's 80 classes, else one for the background and one for each
    class; a run that was imported gets the rows it came with. `leftovers` (by tensor) fill rows without a class.

    Args:
        arrays: by variable path (`detector/fpn/…`).
        leftovers: of the import, empty where there was none.
        imported_rows: of the head of the imported file.
        step: the number of training batches, for the batch normalisations' counters.
        where: for messages.

    Raises:
        RetinaError: torchvision's RetinaNet can't compute what this run computes; names the settings.
    """
    kind, classes = _kind_and_classes(config, class_names, category_ids, imported_rows, where)
    tensors: dict[str, np.ndarray] = {}
    written: list[Written] = []
    for rule in retinanet_rules(kind, classes):
        tensors[rule.source], reason = _backwards(rule, arrays[rule.target], leftovers.get(rule.source))
        written.append(Written(rule.source, tensors[rule.source].shape, rule.target, rule.axes, reason))
    if kind.live:
        for name in [name for name in tensors if name.endswith("running_var")]:
            counter = f"{name.removesuffix('running_var')}{_COUNTER}"
            known = leftovers.get(counter)
            # A file keeps its count: no other number says how many batches its statistics saw.
            tensors[counter] = np.asarray(step if known is None else known, np.int64)
            reason = "this run's steps" if known is None else "as in the file that was imported"
            written.append(Written(counter, (), None, None, reason))
    labels: list[str | None] = [None] * kind.rows
    for name, row in zip(class_names, classes.rows, strict=True):
        labels[row] = name
    return StateDict(tensors, tuple(written), tuple(labels), kind)


def _backwards(rule: Rule, values: np.ndarray, leftover: np.ndarray | None) -> tuple[np.ndarray, str]:
    """The tensor from which `rule` makes `values`, and where entries come from that no variable holds."""
    tensor = values if rule.axes is None else np.transpose(values, np.argsort(rule.axes))
    if rule.keep is None or rule.of is None:
        return np.ascontiguousarray(tensor, np.float32), ""
    rest = np.setdiff1d(np.arange(rule.of), rule.keep)
    whole = np.empty((rule.of, *tensor.shape[1:]), np.float32)
    whole[list(rule.keep)] = tensor
    if leftover is not None and leftover.shape == (len(rest), *tensor.shape[1:]):
        whole[rest] = leftover
        return whole, "rows without a class: as in the file that was imported"
    whole[rest] = _NEVER if tensor.ndim == 1 else 0.0
    return whole, f"rows without a class: weights 0, bias {_NEVER:g}"


def _kind_and_classes(
    config: Config, names: tuple[str, ...], ids: tuple[int, ...], imported_rows: int | None, where: str
) -> tuple[Retinanet, Classes]:
    model = config.model
    obstacles = list(_obstacles(config))
    if obstacles:
        raise RetinaError(
            f"{where}: torchvision's RetinaNet can't hold this detector: {'; '.join(obstacles)}. Train with these "
            "settings (`retina import-weights torchvision` writes a configuration that has them), or export by "
            "`retina export`"
        )
    if imported_rows is not None and len(names) in (imported_rows, imported_rows - 1):
        rows = tuple(range(imported_rows - len(names), imported_rows))
    elif names == tuple(CATEGORIES.values()) and ids == tuple(CATEGORIES):
        imported_rows, rows = _COCO_ROWS, ids
    else:
        imported_rows, rows = len(names) + 1, tuple(range(1, len(names) + 1))
    kind = Retinanet(
        depth=int(model.backbone.removeprefix("resnet")),
        rows=imported_rows,
        channels=model.fpn.channels,
        layers=model.head.layers,
        group_norm=model.head.norm == "group",
        p6_from=model.fpn.p6_from,
        live=model.batch_norm != "frozen",
        old_pyramid=False,
        old_heads=False,
        per_cell=count_per_cell(config.anchors),
    )
    return kind, Classes(names, ids, rows)


def _obstacles(config: Config) -> Iterator[str]:
    """Settings of the run that differ from what torchvision's code has fixed."""
    model, anchors, resize, inference = config.model, config.anchors, config.data.resize, config.inference
    fpn, head = model.fpn, model.head
    wanted: list[tuple[str, Any, str, bool]] = [
        ("model.backbone", model.backbone, f"resnet{'/'.join(map(str, _DEPTHS))}", _is_theirs(model.backbone)),
        ("model.fpn.min_level", fpn.min_level, "3", fpn.min_level == 3),
        ("model.fpn.max_level", fpn.max_level, "7", fpn.max_level == 7),
        # torchvision takes C5 for P5 where they are equally wide.
        ("model.fpn.p6_from", fpn.p6_from, "p5, or other channels", fpn.p6_from == "p5" or fpn.channels not in _C5),
        ("model.fpn.padding", fpn.padding, "symmetric", fpn.padding == "symmetric"),
        ("model.head.channels", head.channels, f"model.fpn.channels, {fpn.channels}", head.channels == fpn.channels),
        ("model.head.layers", head.layers, str(_LAYERS), head.layers == _LAYERS),
        ("model.head.conv_bias", head.conv_bias, "false with norm: group", head.conv_bias == (head.norm == "none")),
        ("model.head.norm_epsilon", head.norm_epsilon, str(_GROUP_EPSILON), head.norm_epsilon == _GROUP_EPSILON),
        ("anchors.offset", anchors.offset, "0.0", anchors.offset == 0.0),
        ("anchors.rounding", anchors.rounding, "true", anchors.rounding),
        (
            "anchors.spacing",
            anchors.spacing,
            "canvas, or a data.resize.multiple of 128",
            anchors.spacing == "canvas" or resize.multiple % 128 == 0,
        ),
        ("data.resize.antialias", True, "false", not resize.antialias),
        ("inference.class_agnostic", True, "false", not inference.class_agnostic),
        ("inference.candidates_per", "image", "level", inference.candidates_per == "level"),
        ("inference.clip", inference.clip, "before", inference.clip == "before"),
        ("inference.suppression", inference.suppression, "hard", inference.suppression == "hard"),
        ("anchors.box_weights", anchors.box_weights, "(1, 1, 1, 1)", set(anchors.box_weights) == {1.0}),
        (
            "anchors.max_size_ratio",
            anchors.max_size_ratio,
            str(_MAX_SIZE_RATIO),
            anchors.max_size_ratio == _MAX_SIZE_RATIO,
        ),
    ]
    for name, value, needed, fits in wanted:
        if not fits:
            yield f"{name} is {value} (needs {needed})"


def _is_theirs(backbone: str) -> bool:
    return backbone in {f"resnet{depth}" for depth in _DEPTHS}


# -------------------------------------------------------------------------------------------------------- how to build


def building_code(config: Config, kind: Retinanet, file: str) -> str:
    """Python that builds the detector in torchvision with this run's settings and loads the file into it.

    It detects as the run does. It also trains with the run's matching and box loss where torchvision has them; what it
    has not is named in a comment.
    """
    sizes = tuple(tuple(_plain(side) for side in level) for level in _sizes(config))
    ratios = config.anchors.ratios
    settings = _settings(config)
    builder = {("p5", False): "retinanet_resnet50_fpn", ("c5", True): "retinanet_resnet50_fpn_v2"}.get(
        (kind.p6_from, kind.group_norm)
    )
    standard_anchors = sizes == _COCO_SIZES and ratios == _RATIOS
    if kind.depth == 50 and kind.channels == _CHANNELS and builder and kind.live and standard_anchors:
        arguments = ["weights=None", "weights_backbone=None", f"num_classes={kind.rows}", *settings]
        built = "giou" if kind.group_norm else "l1"
        lines = [
            f"from torchvision.models.detection import {builder}",
            "",
            f"model = {builder}({', '.join(arguments)})",
        ]
    else:
        built, lines = "l1", _by_parts(kind, sizes, ratios, settings)
    lines += [*_norms(config), *_training(config, built)]
    if file.endswith(".safetensors"):
        reader, read = "from safetensors.torch import load_file", f"load_file({file!r})"
    else:
        reader, read = "import torch", f"torch.load({file!r}, weights_only=True)"
    return "\n".join([reader, *lines, f"model.load_state_dict({read})", "model.eval()"])


def _norms(config: Config) -> list[str]:
    """Lines that give the run's settings to batch normalisations, where they differ from torchvision's."""
    epsilon, momentum = config.model.batch_norm_epsilon, config.model.batch_norm_momentum
    set_there = [] if epsilon is None else [f"module.eps = {epsilon!r}"]
    # The share of the new statistics in PyTorch, whose default is 0.1, of the old in Keras.
    if momentum not in (None, 0.9):
        set_there.append(f"module.momentum = {1 - momentum:.6g}")
    if not set_there:
        return []
    return [
        "for module in model.modules():",
        '    if "BatchNorm" in type(module).__name__:',
        *(f"        {line}" for line in set_there),
    ]


def _training(config: Config, built: str) -> list[str]:
    """Matching and box loss, where they differ from those that the model was built with (`built`: the loss)."""
    loss, lines, elsewhere = config.loss, [], []
    if not config.assignment.force_match:
        lines.append("model.proposal_matcher.allow_low_quality_matches = False")
    elif config.assignment.force_match is True:
        elsewhere.append("assignment.force_match true (the model here: ties)")
    if loss.box.kind in _BOX_LOSSES and loss.box.weight == 1.0:
        if loss.box.kind != built:
            lines.append(f'model.head.regression_head._loss_type = "{loss.box.kind}"')
    else:
        elsewhere.append(f"loss.box {loss.box.model_dump(mode='json')} (the model here: {built} with weight 1)")
    if loss.classification != _FOCAL:
        elsewhere.append(f"loss.classification {loss.classification.model_dump(mode='json')} (the model here: focal)")
    if loss.class_weights is not None:
        elsewhere.append(f"loss.class_weights {loss.class_weights.kind} (the model here: none)")
    if loss.normalizer.kind != "image":
        elsewhere.append(f"loss.normalizer {loss.normalizer.kind} (the model here: image)")
    return [*lines, *(f"# torchvision can't train as this run did: {setting}" for setting in elsewhere)]


def _by_parts(kind: Retinanet, sizes: Any, ratios: tuple[float, ...], settings: list[str]) -> list[str]:
    c5, channels = _C5[ARCHITECTURES[kind.depth].bottleneck], kind.channels
    norm = "BatchNorm2d" if kind.live else "FrozenBatchNorm2d"
    head_norm = "partial(GroupNorm, 32)" if kind.group_norm else "None"
    arguments = [str(kind.rows), "anchor_generator=anchors", "head=head", *settings]
    return [
        "from functools import partial",
        "from torch.nn import BatchNorm2d, GroupNorm",
        f"from torchvision.models import resnet{kind.depth}",
        "from torchvision.models.detection import RetinaNet",
        "from torchvision.models.detection.anchor_utils import AnchorGenerator",
        "from torchvision.models.detection.backbone_utils import BackboneWithFPN",
        "from torchvision.models.detection.retinanet import RetinaNetHead",
        "from torchvision.ops import FrozenBatchNorm2d",
        "from torchvision.ops.feature_pyramid_network import LastLevelP6P7",
        "",
        f"anchors = AnchorGenerator({sizes}, ({ratios},) * {_LEVELS})",
        f"body = resnet{kind.depth}(weights=None, norm_layer={norm})",
        'maps = {"layer2": "0", "layer3": "1", "layer4": "2"}',
        f"coarse = LastLevelP6P7({c5 if kind.p6_from == 'c5' else channels}, {channels})",
        f"backbone = BackboneWithFPN(body, maps, {[c5 // 4, c5 // 2, c5]}, {channels}, coarse)",
        f"head = RetinaNetHead({channels}, anchors.num_anchors_per_location()[0], {kind.rows}, norm_layer={head_norm})",
        f"model = RetinaNet(backbone, {', '.join(arguments)})",
    ]


def _sizes(config: Config) -> list[tuple[float, ...]]:
    anchors = config.anchors
    if anchors.sizes is not None:
        return list(anchors.sizes[:_LEVELS])
    return [tuple(anchors.size * 2.0**level * scale for scale in anchors.scales) for level in range(3, 3 + _LEVELS)]


def _settings(config: Config) -> list[str]:
    """Arguments of torchvision's RetinaNet whose default is another value."""
    resize, inference = config.data.resize, config.inference
    settings = {
        "min_size": resize.short,
        "max_size": resize.long,
        "size_divisible": resize.multiple,
        "score_thresh": inference.score_threshold,
        "nms_thresh": inference.nms_iou,
        "detections_per_img": inference.max_detections,
        "topk_candidates": inference.candidates,
        "fg_iou_thresh": config.assignment.positive_iou,
        "bg_iou_thresh": config.assignment.negative_iou,
    }
    out = [f"{name}={value!r}" for name, value in settings.items() if value != _SETTINGS[name]]
    if config.model.pixel_mean != _MEAN:
        out.append(f"image_mean={[value / 255 for value in config.model.pixel_mean]}")
    if config.model.pixel_std != _STD:
        out.append(f"image_std={[value / 255 for value in config.model.pixel_std]}")
    return out


def _plain(number: float) -> float | int:
    return int(number) if float(number).is_integer() else number
