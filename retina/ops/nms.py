"""Exact greedy per-class non-maximum suppression and Soft-NMS, in the graph, with the same indices on every backend."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from retina.ops import boxes as box_ops

Tensor = Any


def stable_top_k(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of the last axis and their int32 indices, largest first; of equal values the lower index first."""
    values = _with_one_zero(values)
    if keras.backend.backend() == "torch":  # torch.topk promises no order among equals
        index = ops.argsort(-values, axis=-1)[..., :k]
        return ops.take_along_axis(values, index, axis=-1), ops.cast(index, "int32")
    top, index = ops.top_k(values, k)
    return top, ops.cast(index, "int32")


def nms(boxes: Tensor, scores: Tensor, labels: Tensor, *, iou_threshold: Tensor, max_detections: Tensor) -> Tensor:
    """Greedy per-class non-maximum suppression of a batch.

    Repeatedly keeps the best-scored box left and removes those of its class that overlap it by more than
    `iou_threshold`. One pass over the candidates a detection, so memory stays linear in their number.

    Args:
        boxes: [B, N, 4] xyxy pixels.
        scores: [B, N], in any unit that grows with the probability; a score of -inf marks what is no candidate.
        labels: [B, N] int.
        iou_threshold: boxes are suppressed strictly above it, as in `tf.image.non_max_suppression`.
        max_detections: D. Both may be scalar tensors, as in a graph that takes them as inputs.

    Returns:
        [B, D] int32 rows of the chosen candidates by falling score, -1 where there are fewer.
    """
    scores = _with_one_zero(scores)
    batch, count = ops.shape(scores)
    rows = ops.arange(count, dtype="int32")[None, :]
    slots = ops.arange(max_detections, dtype="int32")[None, :]
    chosen = ops.full((batch, max_detections), -1, dtype="int32")

    def keep_best(step: Tensor, left: Tensor, chosen: Tensor) -> tuple[Tensor, ...]:
        best = _first_largest(left)
        exists = ops.take_along_axis(left, best, axis=1) > -math.inf
        box = ops.take_along_axis(boxes, best[:, :, None], axis=1)
        same_class = labels == ops.take_along_axis(labels, best, axis=1)
        suppressed = ops.logical_and(box_ops.iou(box, boxes) > iou_threshold, same_class)
        # The chosen one is removed by its row: the IoU of an empty box with itself is 0.
        left = ops.where(ops.logical_or(suppressed, rows == best), -math.inf, left)
        chosen = ops.where(ops.logical_and(slots == step, exists), best, chosen)
        return left, chosen

    return _repeat(keep_best, (scores, chosen), max_detections)[1]


def soft_nms(
    boxes: Tensor,
    log_scores: Tensor,
    labels: Tensor,
    *,
    iou_threshold: Tensor | None,
    sigma: float,
    least: Tensor,
    max_detections: Tensor,
) -> tuple[Tensor, Tensor]:
    """Soft-NMS of a batch (arXiv:1704.04503, section 3): lowers the scores of overlapping boxes, removes none.

    Repeatedly keeps the best-scored box left and multiplies the scores of those of its class by 1 - IoU where that is
    above `iou_threshold`, or without one by exp(-IoU² / `sigma`).

    Args:
        boxes: [B, N, 4] xyxy pixels.
        log_scores: [B, N], logarithms of probabilities, so that a score near 1 keeps its order; -inf marks what is no
            candidate.
        labels: [B, N] int.
        least: logarithm of the score that a box must stay above, a scalar.
        max_detections: D; a scalar tensor where the graph takes it as an input.

    Returns:
        [B, D] int32 rows of the chosen candidates by falling score, -1 where there are fewer, and their [B, D]
        lowered logarithms.
    """
    batch, count = ops.shape(log_scores)
    rows = ops.arange(count, dtype="int32")[None, :]
    slots = ops.arange(max_detections, dtype="int32")[None, :]
    chosen = ops.full((batch, max_detections), -1, dtype="int32")
    lowered = ops.full((batch, max_detections), -math.inf, dtype=log_scores.dtype)

    def keep_best(step: Tensor, left: Tensor, chosen: Tensor, lowered: Tensor) -> tuple[Tensor, ...]:
        best = _first_largest(left)
        score = ops.take_along_axis(left, best, axis=1)
        box = ops.take_along_axis(boxes, best[:, :, None], axis=1)
        overlap = box_ops.iou(box, boxes)
        if iou_threshold is None:
            factor = -ops.square(overlap) / sigma
        else:
            factor = ops.where(overlap > iou_threshold, ops.log1p(-ops.minimum(overlap, 1.0)), 0.0)
        same_class = labels == ops.take_along_axis(labels, best, axis=1)
        left = ops.where(same_class, left + factor, left)
        left = ops.where(ops.logical_or(left <= least, rows == best), -math.inf, left)
        here = ops.logical_and(slots == step, score > -math.inf)
        return left, ops.where(here, best, chosen), ops.where(here, score, lowered)

    return _repeat(keep_best, (_with_one_zero(log_scores), chosen, lowered), max_detections)[1:]


def _repeat(
    keep_best: Callable[..., tuple[Tensor, ...]], state: tuple[Tensor, ...], max_detections: Tensor
) -> tuple[Tensor, ...]:
    """Apply `keep_best(step, *state)`, where state[0] [B, N] holds the scores of what is left, until nothing is left or
    `max_detections` are chosen. A step with nothing left changes nothing."""
    if isinstance(max_detections, int) and _host_waits(state[0]):
        return ops.fori_loop(0, max_detections, lambda step, state: keep_best(step, *state), state)

    def some_left(step: Tensor, left: Tensor, *_: Tensor) -> Tensor:
        return ops.logical_and(step < max_detections, ops.any(left > -math.inf))

    def counted(step: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        return step + 1, *keep_best(step, *state)

    return ops.while_loop(some_left, counted, (ops.zeros((), dtype="int32"), *state))[1:]


def _host_waits(values: Tensor) -> bool:
    """Whether a condition on values stops the device at every step, until the host has read it: with JAX and PyTorch
    off the CPU. On the CPU a loop of a fixed count would go on for nothing."""
    if keras.backend.backend() == "jax":
        import jax

        return bool(jax.default_backend() != "cpu")
    return keras.backend.backend() == "torch" and values.device.type != "cpu"


def _first_largest(values: Tensor) -> Tensor:
    """Places [B, 1] int32 of the largest of each row of values [B, N]; of equal values the first."""
    # Of integers: for floats Keras' argmax looks at the sign of zero, by a Bitcast that OpenVINO and TensorFlow.js
    # can't convert.
    largest = ops.cast(values == ops.max(values, axis=-1, keepdims=True), "int32")
    return ops.cast(ops.argmax(largest, axis=-1), "int32")[:, None]


def _with_one_zero(values: Tensor) -> Tensor:
    """-0.0 as 0.0: JAX's sort and Keras' argmax put it below, on some backends."""
    return ops.where(values == 0, 0.0, values)
