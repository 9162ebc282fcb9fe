"""Boxes as absolute-pixel `xyxy` float32: areas, overlaps, and the encoding that the network regresses.

Legend: B batch, A anchors, G padded ground-truth boxes.
"""

from __future__ import annotations

import math
from typing import Any

from keras import ops

Tensor = Any

# A box may be this many times its anchor at most: exp() of a wild size delta overflows (arXiv:1506.01497's code).
MAX_SIZE_RATIO = 1000.0 / 16.0

# A padded box has no size; its logarithm is taken of this instead and the result is never used.
_TINY = 1e-6


def area(boxes: Tensor) -> Tensor:
    """Areas [...] of boxes [..., 4], in square pixels; a reversed box has area 0."""
    width = ops.maximum(boxes[..., 2] - boxes[..., 0], 0.0)
    height = ops.maximum(boxes[..., 3] - boxes[..., 1], 0.0)
    return width * height


def intersection(first: Tensor, second: Tensor) -> Tensor:
    """Overlap areas of boxes whose leading dimensions broadcast: [..., 4] and [..., 4] give [...]."""
    width = ops.minimum(first[..., 2], second[..., 2]) - ops.maximum(first[..., 0], second[..., 0])
    height = ops.minimum(first[..., 3], second[..., 3]) - ops.maximum(first[..., 1], second[..., 1])
    return ops.maximum(width, 0.0) * ops.maximum(height, 0.0)


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of boxes whose leading dimensions broadcast; 0 where both boxes are empty.

    `iou(a[:, None], b[None])` is the [A, G] matrix of a [A, 4] and b [G, 4].
    """
    shared = intersection(first, second)
    return ops.divide_no_nan(shared, area(first) + area(second) - shared)


def encode(anchors: Tensor, boxes: Tensor, weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """The deltas that turn anchors into boxes (arXiv:1311.2524, appendix C).

    Args:
        anchors: [..., 4] with positive sides.
        boxes: [..., 4], broadcast against `anchors`; a side below 1e-6 px is taken as 1e-6 px.
        weights: factors of (dx, dy, dw, dh).

    Returns:
        [..., 4]: centre shifts in units of the anchor's sides, and logarithms of the ratios of sides, times `weights`.
    """
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    anchor_centre = anchors[..., :2] + 0.5 * anchor_size
    size = boxes[..., 2:] - boxes[..., :2]
    centre = boxes[..., :2] + 0.5 * size
    shift = (centre - anchor_centre) / anchor_size
    stretch = ops.log(ops.maximum(size, _TINY) / anchor_size)
    return ops.concatenate([shift, stretch], axis=-1) * ops.convert_to_tensor(weights, dtype=anchors.dtype)


def decode(
    anchors: Tensor,
    deltas: Tensor,
    weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
    max_size_ratio: float = MAX_SIZE_RATIO,
) -> Tensor:
    """The inverse of `encode`: boxes [..., 4] from anchors and deltas [..., 4].

    Size deltas above log(`max_size_ratio`) are cut.
    """
    deltas = deltas / ops.convert_to_tensor(weights, dtype=deltas.dtype)
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    centre = anchors[..., :2] + 0.5 * anchor_size + deltas[..., :2] * anchor_size
    half = 0.5 * anchor_size * ops.exp(ops.minimum(deltas[..., 2:], math.log(max_size_ratio)))
    return ops.concatenate([centre - half, centre + half], axis=-1)


def clip(boxes: Tensor, size: Tensor) -> Tensor:
    """Boxes [..., 4] cut to an image of `size` [..., 2] (height, width), which broadcasts against `boxes[..., :2]`."""
    limit = ops.concatenate([size[..., 1:], size[..., :1]] * 2, axis=-1)
    return ops.minimum(ops.maximum(boxes, 0.0), ops.cast(limit, boxes.dtype))
