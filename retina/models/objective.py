"""The training objective: the only place where losses are summed and divided (arXiv:1708.02002, sections 3 and 4)."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
from keras import ops

from retina import config
from retina.losses.box import giou_loss, huber, smooth_l1
from retina.losses.focal import sigmoid_focal_hard
from retina.ops import boxes as box_ops
from retina.ops.assignment import Match, match

Tensor = Any


class LossSums(NamedTuple):
    """Scalars: the classification loss summed over anchors and classes, the weighted box loss summed over positives
    and coordinates, and the number of positive anchors. They add up over replicas and micro-batches."""

    classification: Tensor
    box: Tensor
    positives: Tensor


def loss_sums(
    outputs: dict[str, Tensor],
    batch: dict[str, Tensor],
    anchors: Tensor,
    *,
    assignment: config.Assignment,
    loss: config.Loss,
    box_weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
    max_size_ratio: float = box_ops.MAX_SIZE_RATIO,
) -> LossSums:
    """Matches anchors to boxes and sums both losses over the batch.

    Args:
        outputs: `logits` [B, A, K] and `deltas` [B, A, 4], float32.
        batch: `boxes` [B, G, 4] canvas pixels, `labels` [B, G], `valid` [B, G], `crowd` [B, G].
        anchors: [A, 4].
        assignment, loss: sections of the configuration.
        box_weights, max_size_ratio: of the box encoding, as in `config.Anchors`.
    """
    if batch["boxes"].shape[1] == 0:
        batch = {**batch, **{name: _with_one_slot(batch[name]) for name in ("boxes", "labels", "valid", "crowd")}}
    found = match(anchors, batch["boxes"], batch["valid"], batch["crowd"], assignment)
    return LossSums(
        _classification_sum(outputs["logits"], batch["labels"], found, loss.classification),
        loss.box.weight
        * _box_sum(outputs["deltas"], batch["boxes"], anchors, found, loss.box, box_weights, max_size_ratio),
        ops.sum(ops.cast(found.positive, "float32")),
    )


def objective(sums: LossSums) -> dict[str, Tensor]:
    """`loss`, `loss_classification`, `loss_box`: the sums divided by the number of positives, at least 1."""
    divisor = ops.maximum(sums.positives, 1.0)
    classification, box = sums.classification / divisor, sums.box / divisor
    return {"loss": classification + box, "loss_classification": classification, "loss_box": box}


def _with_one_slot(padded: Tensor) -> Tensor:
    """[B, 0, …] to [B, 1, …] of zeros: no anchor has a best box among none."""
    shape = (*ops.shape(padded)[:1], 1, *padded.shape[2:])
    return ops.zeros(shape, dtype=keras.backend.standardize_dtype(padded.dtype))


def _classification_sum(logits: Tensor, labels: Tensor, found: Match, focal: config.Focal) -> Tensor:
    # Background anchors get class -1, which no class equals.
    anchor_labels = ops.take_along_axis(ops.cast(labels, "int32"), found.index, axis=1)
    anchor_labels = ops.where(found.positive, anchor_labels, -1)
    is_positive = anchor_labels[..., None] == ops.arange(logits.shape[-1], dtype="int32")
    loss = sigmoid_focal_hard(logits, is_positive, alpha=focal.alpha, gamma=focal.gamma)
    return ops.sum(ops.where(found.ignored[..., None], 0.0, loss))


def _box_sum(
    deltas: Tensor,
    boxes: Tensor,
    anchors: Tensor,
    found: Match,
    kind: config.BoxLoss,
    weights: tuple[float, ...],
    max_size_ratio: float,
) -> Tensor:
    matched = ops.take_along_axis(boxes, found.index[..., None], axis=1)
    positive = found.positive[..., None]
    # Replaced before the loss, not after: 0 · inf of a padded box would poison the gradient.
    deltas = ops.where(positive, deltas, 0.0)
    if kind.kind == "giou":
        matched = ops.where(positive, matched, anchors)
        return ops.sum(giou_loss(box_ops.decode(anchors, deltas, weights, max_size_ratio), matched))
    target = ops.where(positive, box_ops.encode(anchors, matched, weights), 0.0)
    if kind.kind == "huber":
        return ops.sum(huber(deltas, target, delta=kind.delta))
    return ops.sum(smooth_l1(deltas, target, beta=kind.beta))
