"""torchvision's retinanet_resnet50_fpn: automatic mixed precision in bfloat16, channels last, fused SGD.

Everything that makes it faster without changing its result is on: images come as uint8 from pinned memory and are
converted on the device, its transform's resizing is left out, cuDNN looks for its best algorithms.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from inputs import CANDIDATES, CLASSES, KEPT, LEARNING_RATE, MOMENTUM, NMS_IOU, PRIOR, THRESHOLD, WEIGHT_DECAY
from plan import Part

sys.path.append(str(Path(__file__).resolve().parents[1]))

from peers import load_torchvision

load_torchvision(suppression=True)

from torchvision.models import resnet  # noqa: E402
from torchvision.models.detection import RetinaNet  # noqa: E402
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor  # noqa: E402
from torchvision.models.detection.retinanet import RetinaNetHead  # noqa: E402
from torchvision.ops import FrozenBatchNorm2d  # noqa: E402
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def model(part: Part) -> RetinaNet:
    """`retinanet_resnet50_fpn` (or with `tiny` a small sister) as its constructor builds it: `frozen` is what it does
    with trained weights by default, three trainable stages and frozen batch normalisation."""
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    norm = FrozenBatchNorm2d if part.frozen else torch.nn.BatchNorm2d
    network = (resnet.resnet18 if part.tiny else resnet.resnet50)(weights=None, norm_layer=norm)
    backbone = _resnet_fpn_extractor(
        network, 3 if part.frozen else 5, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )
    if part.tiny:
        backbone.fpn = FeaturePyramidNetwork([128, 256, 512], 32, LastLevelP6P7(32, 32))
        backbone.out_channels = 32
    prior = PRIOR if part.kind == "infer" else 0.01
    detector = RetinaNet(
        backbone,
        CLASSES,
        min_size=part.canvas[0],
        max_size=part.canvas[1],
        score_thresh=THRESHOLD,
        topk_candidates=CANDIDATES,
        nms_thresh=NMS_IOU,
        detections_per_img=KEPT,
        _skip_resize=True,
    )
    assert isinstance(detector.head, RetinaNetHead)
    torch.nn.init.constant_(detector.head.classification_head.cls_logits.bias, -math.log((1 - prior) / prior))
    detector = detector.to(DEVICE, memory_format=torch.channels_last)
    if part.compiled:
        # Its losses and its suppression branch on data; the network in front of them does not.
        detector.backbone, detector.head = torch.compile(detector.backbone), torch.compile(detector.head)
    return detector


def work(part: Part, batch: dict[str, Any]) -> tuple[Callable[[], Any], Callable[[], float | None]]:
    """One training step or one inference of a batch, and its loss (None for inference)."""
    detector = model(part)
    host = torch.from_numpy(batch["images"]).permute(0, 3, 1, 2)  # a view: the memory stays channels last
    boxes, labels = torch.from_numpy(batch["boxes"]), torch.from_numpy(batch["labels"]).long()
    if DEVICE == "cuda":
        host, boxes, labels = host.pin_memory(), boxes.pin_memory(), labels.pin_memory()

    def images() -> list[torch.Tensor]:
        return list(host.to(DEVICE, non_blocking=True).float().div_(255))

    def mixed() -> AbstractContextManager:
        return torch.autocast(DEVICE, torch.bfloat16, enabled=part.precision == "bfloat16")

    if part.kind == "infer":
        detector.eval()
        if DEVICE == "cpu":
            # The stand-in for suppression knows no bfloat16; torchvision's own casts under autocast.
            detector.head.register_forward_hook(lambda *call: {name: x.float() for name, x in call[2].items()})

        def infer() -> Any:
            with torch.inference_mode(), mixed():
                return detector(images())

        return infer, lambda: None

    detector.train()
    trained = [p for p in detector.parameters() if p.requires_grad]
    options: dict[str, Any] = {"fused": True} if DEVICE == "cuda" else {}
    optimizer = torch.optim.SGD(trained, lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, **options)
    losses: list[torch.Tensor] = []

    def train() -> None:
        on_device, classes = boxes.to(DEVICE, non_blocking=True), labels.to(DEVICE, non_blocking=True)
        targets = [{"boxes": b, "labels": c} for b, c in zip(on_device, classes, strict=True)]
        optimizer.zero_grad(set_to_none=True)
        with mixed():
            loss = sum(detector(images(), targets).values())
        loss.backward()
        optimizer.step()
        losses[:] = [loss.detach()]

    return train, lambda: float(losses[0])
