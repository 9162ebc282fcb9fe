"""The assignment of ground-truth boxes to anchors (arXiv:1708.02002, section 4)."""

from __future__ import annotations

from typing import Any, NamedTuple

from keras import ops

from retina.config import Assignment
from retina.ops import boxes as box_ops

Tensor = Any


class Match(NamedTuple):
    """`index` [B, A] int32: the ground-truth row of each anchor, meaningful where `positive`.

    `positive` and `ignored` [B, A] bool; an anchor that is neither is background.
    """

    index: Tensor
    positive: Tensor
    ignored: Tensor


def match(anchors: Tensor, boxes: Tensor, valid: Tensor, crowd: Tensor, config: Assignment) -> Match:
    """Match every anchor to at most one box.

    IoU at least `positive_iou` is positive, below `negative_iou` negative, between them ignored; of several boxes the
    box with the highest IoU counts, the first of equals. A crowd box is never matched; a negative anchor of which at
    least `crowd_overlap` lies inside a crowd box is ignored.

    Args:
        anchors: [A, 4] xyxy pixels.
        boxes: [B, G, 4] xyxy pixels, padded to at least one.
        valid: [B, G] bool, False for padding.
        crowd: [B, G] bool.
        config: the thresholds, and whether each box's best anchor is positive at any IoU above 0; with
            `force_match: ties` all of its best anchors are, and keep the box that they overlap most.
    """
    overlap = box_ops.iou(anchors[None, :, None, :], boxes[:, None, :, :])
    usable = ops.logical_and(valid, ops.logical_not(crowd))
    overlap = ops.where(usable[:, None, :], overlap, -1.0)
    index = ops.cast(ops.argmax(overlap, axis=-1), "int32")
    best = ops.max(overlap, axis=-1)
    positive = best >= config.positive_iou

    if config.force_match == "ties":
        positive = ops.logical_or(positive, _best_of_some_box(overlap))
    elif config.force_match:
        forced = _best_anchor_of_each_box(overlap)
        forced_overlap = ops.where(forced, overlap, -1.0)
        is_forced = ops.any(forced, axis=-1)
        index = ops.where(is_forced, ops.cast(ops.argmax(forced_overlap, axis=-1), "int32"), index)
        positive = ops.logical_or(positive, is_forced)

    between = best >= config.negative_iou
    ignored = ops.logical_or(
        between, _inside_crowd(anchors, boxes, ops.logical_and(valid, crowd), config.crowd_overlap)
    )
    return Match(index, positive, ops.logical_and(ignored, ops.logical_not(positive)))


def _best_anchor_of_each_box(overlap: Tensor) -> Tensor:
    """The anchor with the highest overlap (above 0) of each box, as a mask [B, A, G]."""
    best_anchor = ops.cast(ops.argmax(overlap, axis=1), "int32")
    rows = ops.arange(overlap.shape[1], dtype="int32")
    is_best = rows[None, :, None] == best_anchor[:, None, :]
    return ops.logical_and(is_best, overlap > 0)


def _best_of_some_box(overlap: Tensor) -> Tensor:
    """Mask [B, A] of the anchors that overlap a box (above 0) as much as any anchor does, ties included."""
    highest = ops.max(overlap, axis=1, keepdims=True)
    return ops.any(ops.logical_and(overlap == highest, overlap > 0), axis=-1)


def _inside_crowd(anchors: Tensor, boxes: Tensor, crowd: Tensor, share: float) -> Tensor:
    """Mask [B, A] of the anchors of which at least this share lies inside a crowd box."""
    shared = box_ops.intersection(anchors[None, :, None, :], boxes[:, None, :, :])
    enough = share * box_ops.area(anchors)[None, :, None]
    return ops.any(ops.logical_and(shared >= enough, crowd[:, None, :]), axis=-1)
