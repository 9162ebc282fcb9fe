"""Box regression losses: on encoded deltas, or on boxes."""

from __future__ import annotations

from typing import Any

from keras import ops

from retina.ops import boxes as box_ops

Tensor = Any


def huber(prediction: Tensor, target: Tensor, *, delta: float) -> Tensor:
    """Huber loss (Huber 1964), elementwise: ½e² where |e| ≤ δ, else δ·(|e| - ½δ). Equals δ · smooth_l1(β = δ).

    Args:
        prediction, target: [...] float, broadcast against each other.
        delta: the error at which it turns linear, above 0.

    Example: δ = 1 and errors 0.5 and 3 give 0.125 and 2.5.
    """
    error = prediction - target
    inner = ops.clip(error, -delta, delta)
    return inner * (error - 0.5 * inner)


def smooth_l1(prediction: Tensor, target: Tensor, *, beta: float) -> Tensor:
    """Smooth L1 loss (Girshick 2015, arXiv:1504.08083), elementwise: ½e²/β where |e| ≤ β, else |e| - ½β.

    Example: β = 1/9 and errors 0.1 and 1 give 0.045 and 0.94444.
    """
    return huber(prediction, target, delta=beta) / beta


def giou_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """1 - GIoU (Rezatofighi et al. 2019, arXiv:1902.09630) of paired boxes.

    Args:
        prediction, target: [..., 4] xyxy pixels. A box without area overlaps nothing.

    Returns:
        [...] in [0, 2]; 0 for equal boxes, those without area included.

    Example: (0, 0, 2, 2) and (1, 1, 3, 3): IoU 1/7, hull 9, union 7, so 1 - (1/7 - 2/9) = 1.07937.
    """
    shared = box_ops.intersection(prediction, target)
    union = box_ops.area(prediction) + box_ops.area(target) - shared
    low = ops.minimum(prediction[..., :2], target[..., :2])
    high = ops.maximum(prediction[..., 2:], target[..., 2:])
    hull = (high[..., 0] - low[..., 0]) * (high[..., 1] - low[..., 1])
    overlap = shared / ops.where(union > 0, union, 1.0)
    waste = (hull - union) / ops.where(hull > 0, hull, 1.0)
    same_without_area = ops.logical_and(union <= 0, ops.all(prediction == target, axis=-1))
    return ops.where(same_without_area, 0.0, 1.0 - overlap + waste)
