"""From network outputs to detections: candidates, boxes, exact NMS, per class or not (arXiv:1708.02002, section 4)."""

from __future__ import annotations

import math
from typing import Any

from keras import ops

from retina import config
from retina.ops import boxes as box_ops
from retina.ops.nms import nms, soft_nms, stable_top_k

Tensor = Any


def decode(
    outputs: dict[str, Tensor],
    anchors: list[Tensor],
    size: Tensor,
    scale: Tensor,
    *,
    inference: config.Inference,
    box_weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
    max_size_ratio: float = box_ops.MAX_SIZE_RATIO,
) -> dict[str, Tensor]:
    """The detections of a batch.

    Args:
        outputs: `logits` [B, A, K] and `deltas` [B, A, 4].
        anchors: [A_l, 4] of each level, in the order of the outputs.
        size: [B, 2] height and width of the content on the canvas, to which boxes are cut.
        scale: [B, 2] canvas pixels per original pixel (y, x).
        inference: section of the configuration. Its score threshold, NMS IoU and most detections may be scalar
            tensors, in a graph that takes them as inputs.
        box_weights, max_size_ratio: of the box encoding, as in `config.Anchors`.

    Returns:
        `boxes` [B, D, 4] in the original image's pixels, `scores` [B, D], `labels` [B, D] int32 and `valid` [B, D]
        bool, by falling score; zeros where not valid. A box that is not finite is no detection.
    """
    if inference.candidates_per == "image":
        anchors = [ops.concatenate(anchors, axis=0)]
    candidates = []
    start = 0
    for level in anchors:
        stop = start + ops.shape(level)[0]
        logits, deltas = outputs["logits"][:, start:stop], outputs["deltas"][:, start:stop]
        pairs = _candidates(logits, deltas, level, inference)
        candidates.append((box_ops.decode(pairs[0], pairs[1], box_weights, max_size_ratio), *pairs[2:]))
        start = stop
    boxes, logits, labels = (ops.concatenate(parts, axis=1) for parts in zip(*candidates, strict=True))
    # Of a diverged network: cut to the image, NaN would pass for a box.
    finite = ops.sum(ops.abs(boxes), axis=-1) < math.inf
    boxes, logits = ops.where(finite[..., None], boxes, 0.0), ops.where(finite, logits, -math.inf)
    if inference.clip == "before":
        boxes = box_ops.clip(boxes, size[:, None, :])

    groups = ops.zeros_like(labels) if inference.class_agnostic else labels
    survivors, lowered = _suppress(boxes, logits, groups, inference)
    valid = survivors >= 0
    rows = ops.maximum(survivors, 0)
    per_original = 1.0 / ops.cast(scale, boxes.dtype)
    per_original = ops.concatenate([per_original[:, 1:], per_original[:, :1]] * 2, axis=-1)
    boxes = ops.take_along_axis(boxes, rows[..., None], axis=1)
    if inference.clip == "after":
        boxes = box_ops.clip(boxes, size[:, None, :])
    boxes = boxes * per_original[:, None, :]
    boxes = ops.where(valid[..., None], boxes, 0.0)
    scores = ops.sigmoid(ops.take_along_axis(logits, rows, axis=1)) if lowered is None else ops.exp(lowered)
    return {
        "boxes": boxes,
        "scores": ops.where(valid, scores, 0.0),
        "labels": ops.where(valid, ops.take_along_axis(labels, rows, axis=1), 0),
        "valid": valid,
    }


def _suppress(
    boxes: Tensor, logits: Tensor, groups: Tensor, inference: config.Inference
) -> tuple[Tensor, Tensor | None]:
    """Rows [B, D] of the surviving candidates, -1 where there are fewer; and with soft suppression the logarithms of
    their lowered scores."""
    most, overlap = inference.max_detections, inference.nms_iou
    if inference.suppression == "hard":
        return nms(boxes, logits, groups, iou_threshold=overlap, max_detections=most), None
    return soft_nms(
        boxes,
        ops.log_sigmoid(logits),
        groups,
        iou_threshold=None if inference.suppression == "gaussian" else overlap,
        sigma=inference.soft_sigma,
        least=_log(inference.score_threshold),
        max_detections=most,
    )


def _candidates(
    logits: Tensor, deltas: Tensor, anchors: Tensor, inference: config.Inference
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A level's best pairs: anchors, deltas [B, N, 4], logits (-inf below the threshold), labels [B, N].

    The best N pairs lie on the N anchors with the best top class, so that only those anchors' classes are sorted; with
    a single class, or N anchors at most, there is nothing to choose first.
    """
    classes, anchor_count = logits.shape[-1], ops.shape(logits)[1]
    few = isinstance(anchor_count, int) and anchor_count <= inference.candidates
    rows = None
    if classes > 1 and not few:
        anchor_count = _least(inference.candidates, anchor_count)
        _, rows = stable_top_k(ops.max(logits, axis=-1), anchor_count)
        # Sorted rows keep equal scores in the order of the flat (anchor, class) index.
        rows = ops.sort(rows, axis=-1)
        logits = ops.take_along_axis(logits, rows[..., None], axis=1)

    pair_count = _least(inference.candidates, anchor_count * classes)
    top, pairs = stable_top_k(ops.reshape(logits, (-1, anchor_count * classes)), pair_count)
    labels, places = pairs % classes, pairs // classes
    rows = places if rows is None else ops.take_along_axis(rows, places, axis=1)

    anchors = ops.take(ops.convert_to_tensor(anchors), rows, axis=0)
    deltas = ops.take_along_axis(deltas, rows[..., None], axis=1)
    # Suppression goes by logits: a vectorised sigmoid gives equal logits scores that differ in the last bit, depending
    # on where in the array they stand, and high logits the same score.
    above = top > logit(inference.score_threshold)
    return anchors, deltas, ops.where(above, top, -math.inf), labels


def _least(candidates: int, count: Tensor) -> Tensor:
    """The smaller number; `count` is a tensor where the canvas is known only when the graph runs."""
    return min(candidates, count) if isinstance(count, int) else ops.minimum(candidates, count)


def _log(probability: Tensor) -> Tensor:
    """The logarithm of a probability, a float or a scalar tensor."""
    if not isinstance(probability, float):
        return ops.log(probability)
    return math.log(probability) if probability > 0.0 else -math.inf


def logit(probability: Tensor) -> Tensor:
    """The logit whose sigmoid is the probability, a float or a scalar tensor."""
    if not isinstance(probability, float):
        return ops.log(probability) - ops.log1p(-probability)
    if probability in (0.0, 1.0):
        return -math.inf if probability == 0.0 else math.inf
    return math.log(probability / (1.0 - probability))
