"""Box regression losses: on encoded deltas, or on boxes."""

from __future__ import annotations

import math
from typing import Any

from keras import ops

from retina.losses.arguments import floats
from retina.ops import boxes as box_ops

Tensor = Any

# Boxes with both sides below this, in pixels, have no aspect.
_POINT = 1e-6


def huber(prediction: Tensor, target: Tensor, *, delta: float) -> Tensor:
    """Huber loss (Huber 1964), elementwise: ½e² where |e| ≤ δ, else δ·(|e| - ½δ). Equals δ · smooth_l1(β = δ).

    Args:
        prediction, target: [...] numbers, broadcast against each other.
        delta: the error at which it turns linear, above 0.

    Returns:
        [...], of the broadcast shape.

    Raises:
        Nothing of its own: the backend's error where shapes can't be broadcast.

    Example: δ = 1 and errors 0.5 and 3 give 0.125 and 2.5.

    >>> retina.losses.huber([0.5, 3.0], [0.0, 0.0], delta=1.0).numpy()
    array([0.125, 2.5  ], dtype=float32)
    """
    error = _error(prediction, target)
    inner = ops.clip(error, -delta, delta)
    return inner * (error - 0.5 * inner)


def smooth_l1(prediction: Tensor, target: Tensor, *, beta: float) -> Tensor:
    """Smooth L1 loss (Girshick 2015, arXiv:1504.08083), elementwise: ½e²/β where |e| ≤ β, else |e| - ½β.

    Args:
        prediction, target: [...] numbers, broadcast against each other.
        beta: the error at which it turns linear, above 0.

    Returns:
        [...], of the broadcast shape.

    Raises:
        Nothing of its own: the backend's error where shapes can't be broadcast.

    Example: β = 1/9 and errors 0.1 and 1 give 0.045 and 0.94444.

    >>> losses = retina.losses.smooth_l1([0.1, 1.0], [0.0, 0.0], beta=1 / 9)
    >>> losses.numpy().round(5)
    array([0.045  , 0.94444], dtype=float32)
    """
    return huber(prediction, target, delta=beta) / beta


def l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Absolute error, elementwise: the limit of `smooth_l1` as β goes to 0. Its gradient is the error's sign.

    Example: errors 0.1 and -1 give 0.1 and 1.
    """
    return ops.abs(_error(prediction, target))


def giou_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """1 - GIoU (Rezatofighi et al. 2019, arXiv:1902.09630) of paired boxes.

    Args:
        prediction, target: [..., 4] xyxy pixels. A box without area overlaps nothing.

    Returns:
        [...] in [0, 2]; 0 for equal boxes, those without area included.

    Raises:
        Nothing of its own: the backend's error where shapes can't be broadcast.

    Example: (0, 0, 2, 2) and (1, 1, 3, 3): IoU 1/7, hull 9, union 7, so 1 - (1/7 - 2/9) = 1.07937.

    >>> float(retina.losses.giou_loss([0, 0, 2, 2], [1, 1, 3, 3]))
    1.07936...
    """
    prediction, target = _pair(prediction, target)
    overlap, union = _overlap(prediction, target)
    sides = _hull_sides(prediction, target)
    hull = sides[..., 0] * sides[..., 1]
    waste = (hull - union) / ops.where(hull > 0, hull, 1.0)
    return _zero_if_equal(1.0 - overlap + waste, prediction, target, union)


def diou_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """1 - DIoU (Zheng et al. 2020, arXiv:1911.08287, eq. 7) of paired boxes: 1 - IoU + ρ²/c².

    ρ is the distance of the centres, c the diagonal of the hull: boxes that don't overlap still attract each other.

    Args:
        prediction, target: [..., 4] xyxy pixels. A box without area overlaps nothing.

    Returns:
        [...] in [0, 2]; 0 for equal boxes, those without area included.

    Raises:
        Nothing of its own: the backend's error where shapes can't be broadcast.

    Example: (0, 0, 2, 2) and (1, 1, 3, 3): IoU 1/7, ρ² = 2, c² = 18, so 1 - 1/7 + 1/9 = 0.96825.

    >>> float(retina.losses.diou_loss([0, 0, 2, 2], [1, 1, 3, 3]))
    0.96825...
    """
    prediction, target = _pair(prediction, target)
    overlap, union = _overlap(prediction, target)
    return _zero_if_equal(1.0 - overlap + _centre_distance(prediction, target), prediction, target, union)


def ciou_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """1 - CIoU (Zheng et al. 2020, arXiv:1911.08287, eq. 8 to 11) of paired boxes: 1 - IoU + ρ²/c² + αv.

    v = 4/π²·(atan(w_t/h_t) - atan(w/h))² compares the aspects, α = v/(1 - IoU + v) weighs it and is a constant to the
    gradient, as in the authors' code and torchvision's. The gradient of v is exact, as torchvision's is; the authors
    replace its factor 1/(w² + h²) by 1 (below eq. 12).

    Args:
        prediction, target: [..., 4] xyxy pixels. A box without area overlaps nothing; the aspect of a point, a box
            with both sides below 1e-6, is 0.

    Returns:
        [...], at least 0; 0 for equal boxes, those without area included.

    Raises:
        Nothing of its own: the backend's error where shapes can't be broadcast.

    Example: (0, 0, 2, 2) and (0, 0, 4, 2): IoU 1/2, ρ² = 1, c² = 20, v = 4/π²·(atan 2 - atan 1)² = 0.041957,
    α = 0.077415, so 1/2 + 1/20 + 0.003248 = 0.55325.

    >>> float(retina.losses.ciou_loss([0, 0, 2, 2], [0, 0, 4, 2]))
    0.55324...
    """
    prediction, target = _pair(prediction, target)
    overlap, union = _overlap(prediction, target)
    aspect = (4.0 / math.pi**2) * ops.square(_aspect_angle(target) - _aspect_angle(prediction))
    total = 1.0 - overlap + aspect
    alpha = ops.stop_gradient(aspect / ops.where(total > 0, total, 1.0))
    loss = 1.0 - overlap + _centre_distance(prediction, target) + alpha * aspect
    return _zero_if_equal(loss, prediction, target, union)


def _pair(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both as tensors of the prediction's dtype."""
    prediction = floats(prediction)
    return prediction, floats(target, prediction.dtype)


def _error(prediction: Tensor, target: Tensor) -> Tensor:
    prediction, target = _pair(prediction, target)
    return prediction - target


def _overlap(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """IoU (0 where both boxes are empty) and union [...]."""
    shared = box_ops.intersection(prediction, target)
    union = box_ops.area(prediction) + box_ops.area(target) - shared
    return shared / ops.where(union > 0, union, 1.0), union


def _zero_if_equal(loss: Tensor, prediction: Tensor, target: Tensor, union: Tensor) -> Tensor:
    """The loss, or 0 for equal boxes without area, whose IoU is not defined."""
    same_without_area = ops.logical_and(union <= 0, ops.all(prediction == target, axis=-1))
    return ops.where(same_without_area, 0.0, loss)


def _hull_sides(prediction: Tensor, target: Tensor) -> Tensor:
    """Width and height [..., 2] of the smallest box around both."""
    low = ops.minimum(prediction[..., :2], target[..., :2])
    return ops.maximum(prediction[..., 2:], target[..., 2:]) - low


def _centre_distance(prediction: Tensor, target: Tensor) -> Tensor:
    """ρ²/c² [...], 0 for two equal points."""
    offset = 0.5 * ((prediction[..., :2] + prediction[..., 2:]) - (target[..., :2] + target[..., 2:]))
    diagonal = ops.sum(ops.square(_hull_sides(prediction, target)), axis=-1)
    return ops.sum(ops.square(offset), axis=-1) / ops.where(diagonal > 0, diagonal, 1.0)


def _aspect_angle(boxes: Tensor) -> Tensor:
    """atan(width / height) [...] in [0, π/2]; 0 for a point, whose angle has no gradient.

    Its gradient grows as 1 / side: squares of sides below 1e-19 would vanish, and it with them become NaN.
    """
    width = ops.maximum(boxes[..., 2] - boxes[..., 0], 0.0)
    height = ops.maximum(boxes[..., 3] - boxes[..., 1], 0.0)
    point = ops.logical_and(width < _POINT, height < _POINT)
    return ops.where(point, 0.0, ops.arctan2(width, ops.where(point, 1.0, height)))
