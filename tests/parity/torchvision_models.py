"""torchvision's RetinaNets with random weights, for comparison. Importing this module imports PyTorch."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch


def _import_torchvision() -> None:
    """Its compiled operators may not fit the installed torch: all but NMS works without, and that is written below."""
    try:
        import torchvision.ops

        return
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.impl("nms", _nms, "CPU")
    # The registration lives as long as the library object.
    torch.library._retina_tests = library
    import torchvision.extension

    torchvision.extension._has_ops = lambda: True


def _nms(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """Greedy suppression as torchvision documents it: the best first, of equals the first; overlaps above go."""
    order = torch.argsort(scores, descending=True, stable=True)
    boxes = boxes[order].numpy()
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    alive, kept = np.ones(len(boxes), bool), []
    for row in range(len(boxes)):
        if not alive[row]:
            continue
        kept.append(row)
        sides = np.minimum(boxes[row, 2:], boxes[:, 2:]) - np.maximum(boxes[row, :2], boxes[:, :2])
        shared = np.maximum(sides, 0).prod(axis=1)
        alive &= shared <= np.float32(threshold) * (areas[row] + areas - shared)
    return order[torch.as_tensor(kept, dtype=torch.int64)]


_import_torchvision()

from torchvision.models import detection, resnet  # noqa: E402
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor  # noqa: E402
from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead, _default_anchorgen  # noqa: E402
from torchvision.ops import misc  # noqa: E402
from torchvision.ops.feature_pyramid_network import LastLevelP6P7  # noqa: E402

VERSIONS = ("v1", "v2")


def retinanet(version: str, rows: int = 5, *, depth: int = 50, frozen: bool = False, seed: int = 0) -> RetinaNet:
    """As `retinanet_resnet50_fpn` (v1) or `…_v2` builds it, on any ResNet; every parameter and statistic random.

    Args:
        rows: of the classification head.
        frozen: batch normalisation as in a v1 model made from pretrained weights.
    """
    torch.manual_seed(seed)
    if depth == 50 and not frozen:
        build = {"v1": detection.retinanet_resnet50_fpn, "v2": detection.retinanet_resnet50_fpn_v2}[version]
        model = build(weights=None, weights_backbone=None, num_classes=rows)
    else:
        norm = misc.FrozenBatchNorm2d if frozen else torch.nn.BatchNorm2d
        body = getattr(resnet, f"resnet{depth}")(weights=None, norm_layer=norm)
        c5 = body.fc.in_features
        p6p7 = LastLevelP6P7(256 if version == "v1" else c5, 256)
        backbone = _resnet_fpn_extractor(body, 5, returned_layers=[2, 3, 4], extra_blocks=p6p7)
        generator = _default_anchorgen()
        norm_layer = partial(torch.nn.GroupNorm, 32) if version == "v2" else None
        head = RetinaNetHead(256, generator.num_anchors_per_location()[0], rows, norm_layer=norm_layer)
        model = RetinaNet(backbone, rows, anchor_generator=generator, head=head)
        if version == "v2":
            head.regression_head._loss_type = "giou"
    _randomise(model, seed)
    return model.eval()


def _randomise(model: torch.nn.Module, seed: int) -> None:
    """Parameters and statistics away from their initial values, and heads whose outputs spread like trained ones'."""
    draw = torch.Generator().manual_seed(seed)
    randomise_norms(model, draw)
    with torch.no_grad():
        for name, parameter in model.head.named_parameters():
            if name.endswith("bias") and "cls_logits" not in name and ".1." not in name:
                _uniform(parameter, draw, -0.05, 0.05)
            if "conv." in name and parameter.dim() == 4:
                parameter.mul_(4.0)
        for name, parameter in model.backbone.fpn.named_parameters():
            if name.endswith("bias"):
                _uniform(parameter, draw, -0.1, 0.1)
    _spread_outputs(model, draw)


def _spread_outputs(model: torch.nn.Module, draw: torch.Generator) -> None:
    """Logits of standard deviation 2 and deltas of 0.3, about as a trained detector's."""
    head, model = model.head, model.eval()
    predictions = (head.classification_head.cls_logits, 2.0), (head.regression_head.bbox_reg, 0.3)
    with torch.no_grad():
        outputs = head(list(model.backbone(torch.randn(1, 3, 128, 128, generator=draw)).values()))
        for (layer, wanted), found in zip(predictions, outputs.values(), strict=True):
            layer.weight.mul_(wanted / found.std())


def randomise_norms(model: torch.nn.Module, draw: torch.Generator) -> None:
    for module in model.modules():
        if isinstance(module, (torch.nn.BatchNorm2d, misc.FrozenBatchNorm2d, torch.nn.GroupNorm)):
            _uniform(module.weight, draw, 0.5, 1.0)
            _uniform(module.bias, draw, -0.2, 0.2)
        if isinstance(module, (torch.nn.BatchNorm2d, misc.FrozenBatchNorm2d)):
            _uniform(module.running_mean, draw, -0.3, 0.3)
            _uniform(module.running_var, draw, 0.5, 1.5)


def _uniform(tensor: torch.Tensor, draw: torch.Generator, low: float, high: float) -> None:
    with torch.no_grad():
        tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=draw))


def save(model: torch.nn.Module, path: Path, **options: object) -> Path:
    torch.save(model.state_dict(), path, **options)
    return path


def native_size(model: RetinaNet, height: int, width: int) -> None:
    """Makes the model take images of this size as they are, so that only padding is left to its transform."""
    model.transform.min_size, model.transform.max_size = (min(height, width),), max(height, width)
