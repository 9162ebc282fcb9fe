"""The preflight: data seen through the anchors."""

from __future__ import annotations

import numpy as np

from retina import config
from retina.data import plan
from retina.data.dataset import DetectionDataset
from retina.ops.anchors import pyramid_anchors


def best_overlaps(
    dataset: DetectionDataset, resize: config.Resize, anchors: config.Anchors, fpn: config.Fpn
) -> np.ndarray:
    """How well the anchors can cover each box: [M] float64, the highest IoU of any anchor after the evaluation resize.

    A box below `assignment.positive_iou` has no positive anchor and is never learned unless forced.
    """
    geometry = plan.fit(dataset.sizes, resize)
    levels = tuple(range(fpn.min_level, fpn.max_level + 1))
    grids = [pyramid_anchors(anchors, tuple(canvas), levels).astype(np.float64) for canvas in geometry.canvases]
    best = np.zeros(len(dataset.boxes))
    for image in range(len(dataset)):
        rows = slice(dataset.offsets[image], dataset.offsets[image + 1])
        scale = geometry.resized[image] / dataset.sizes[image]
        boxes = dataset.boxes[rows] * np.tile(scale[::-1], 2)
        if len(boxes):
            best[rows] = _iou(grids[geometry.canvas_of[image]], boxes).max(axis=0)
    return best


def _iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[A, G] of [A, 4] and [G, 4]; the float64 twin of `ops.boxes.iou`, for tables rather than tensors."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=-1) for boxes in (first, second)]
    return shared / (areas[0][:, None] + areas[1][None, :] - shared)
