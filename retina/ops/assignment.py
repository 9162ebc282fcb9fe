"""The assignment of ground-truth boxes to anchors (arXiv:1708.02002, section 4)."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
from keras import ops

from retina.config import Assignment
from retina.ops import boxes as box_ops

Tensor = Any
State = dict[str, Tensor]

# Boxes of an image that are matched at once, where not all are.
PIECE = 16
# Most pairs of an anchor and a box of an image whose overlaps JAX has at once: 134 MB in float32, a little more than
# COCO needs (201,600 anchors on 800 x 1344 pixels, 96 boxes).
MOST_PAIRS = 2**25


class Match(NamedTuple):
    """`index` [B, A] int32: the ground-truth row of each anchor, meaningful where `positive`.

    `positive` and `ignored` [B, A] bool; an anchor that is neither is background.
    """

    index: Tensor
    positive: Tensor
    ignored: Tensor


def boxes_at_once(anchors: int, boxes: int) -> int:
    """Return the number of padded boxes of an image that are matched at once.

    JAX's compiler joins overlaps and their maxima into a pass that keeps no overlap, and a loop of unknown length would
    make an accelerator wait: there it is all boxes up to `MOST_PAIRS`. Elsewhere every overlap is written to memory.
    """
    if keras.backend.backend() == "jax" and anchors * boxes <= MOST_PAIRS:
        return boxes
    return min(boxes, PIECE)


def match(anchors: Tensor, boxes: Tensor, valid: Tensor, crowd: Tensor, config: Assignment) -> Match:
    """Match every anchor to at most one box.

    IoU at least `positive_iou` is positive, below `negative_iou` negative, between them ignored; of several boxes the
    box with the highest IoU counts, the first of equals. A crowd box is never matched; a negative anchor of which at
    least `crowd_overlap` lies inside a crowd box is ignored.

    Many boxes are matched in pieces (`boxes_at_once`), one after another, up to the last piece that holds a valid box
    in any image of the batch; the result is the same bit for bit.

    Args:
        anchors: [A, 4] xyxy pixels.
        boxes: [B, G, 4] xyxy pixels, padded to at least one; G may be known only when the graph runs.
        valid: [B, G] bool, False for padding.
        crowd: [B, G] bool.
        config: the thresholds, and whether each box's best anchor is positive at any IoU above 0; with
            `force_match: ties` all of its best anchors are, and keep the box that they overlap most.
    """
    count = boxes.shape[1]
    size = PIECE if count is None else boxes_at_once(anchors.shape[0], count)
    if count is not None and size >= count:
        best = _best(anchors, boxes, valid, crowd, config)
    else:
        best = _best_of_pieces(anchors, boxes, valid, crowd, config, size)
    index, positive = best["index"], best["overlap"] >= config.positive_iou
    if config.force_match:
        forced = best["forced"] > 0
        positive = ops.logical_or(positive, forced)
        if config.force_match is True:
            index = ops.where(forced, best["forced_index"], index)
    ignored = ops.logical_or(best["overlap"] >= config.negative_iou, best["crowded"])
    return Match(index, positive, ops.logical_and(ignored, ops.logical_not(positive)))


def _best(anchors: Tensor, boxes: Tensor, valid: Tensor, crowd: Tensor, config: Assignment) -> State:
    """Return the best match of each anchor, by name, [B, A] each.

    - `overlap`: the highest with any box, -1 where there is none; `index`: the first box that has it.
    - `crowded`: whether the anchor lies in a crowd.
    - `forced`, with `force_match`: the highest overlap with a box whose best anchor it is, at most 0 where there is
      none; `forced_index`: that box, unless ties keep the box that they overlap most.
    """
    of_box, of_anchor = _axes()
    usable = ops.logical_and(valid, ops.logical_not(crowd))
    # What empty slots hold may be NaN, of which no minimum is the lower number.
    solid = ops.where(usable[..., None], boxes, 0.0)
    overlap = box_ops.iou(ops.expand_dims(anchors[None], of_box), ops.expand_dims(solid, of_anchor))
    # No overlap is above 2: a minimum takes one pass over [B, A, G], where a choice takes several.
    overlap = ops.minimum(overlap, ops.expand_dims(ops.where(usable, 2.0, -1.0), of_anchor))
    index = ops.cast(ops.argmax(overlap, axis=of_box), "int32")
    best = {
        "overlap": _highest(overlap, index, anchors, boxes, usable),
        "index": index,
        "crowded": _inside_crowd(anchors, boxes, ops.logical_and(valid, crowd), config.crowd_overlap),
    }
    if config.force_match == "ties":
        is_best = overlap == ops.max(overlap, axis=of_anchor, keepdims=True)
        best["forced"] = ops.max(ops.where(is_best, overlap, -1.0), axis=of_box)
    elif config.force_match:
        best_anchor = ops.cast(ops.argmax(overlap, axis=of_anchor), "int32")
        rows = ops.expand_dims(ops.arange(anchors.shape[0], dtype="int32")[None], of_box)
        forced = ops.where(rows == ops.expand_dims(best_anchor, of_anchor), overlap, -1.0)
        best["forced"] = ops.max(forced, axis=of_box)
        best["forced_index"] = ops.cast(ops.argmax(forced, axis=of_box), "int32")
    return best


def _axes() -> tuple[int, int]:
    """The axes of boxes and of anchors in tensors of all pairs.

    Where each operation passes over memory, anchors stand last: their long rows are computed several at a time. JAX's
    compiler joins the operations, and its program is measured with the boxes last.
    """
    return (2, 1) if keras.backend.backend() == "jax" else (1, 2)


def _highest(overlap: Tensor, index: Tensor, anchors: Tensor, boxes: Tensor, usable: Tensor) -> Tensor:
    """The maximum of the overlaps [B, A, G], which lies at `index` [B, A].

    Two reductions would make JAX's compiler write all overlaps to memory, where many boxes are padded. It computes that
    of the best box once more instead.
    """
    if keras.backend.backend() != "jax":
        return ops.max(overlap, axis=1)
    best = box_ops.iou(anchors[None], ops.take_along_axis(boxes, index[..., None], axis=1))
    return ops.where(ops.take_along_axis(usable, index, axis=1), best, -1.0)


def _best_of_pieces(
    anchors: Tensor, boxes: Tensor, valid: Tensor, crowd: Tensor, config: Assignment, size: int
) -> State:
    """`_best`, of `size` boxes of each image at a time."""
    count = ops.shape(boxes)[1]
    pieces = -(-count // size)
    missing = pieces * size - count

    def divided(field: Tensor) -> Tensor:
        """Reshape [B, G, …] to [pieces, B, size, …], padded."""
        tail = [(0, 0)] * (len(field.shape) - 2)
        field = ops.pad(field, [(0, 0), (0, missing), *tail])
        return ops.swapaxes(ops.reshape(field, (-1, pieces, size, *field.shape[2:])), 0, 1)

    fields = [divided(field) for field in (boxes, valid, crowd)]
    holds_box = ops.any(fields[1], axis=(1, 2))
    last = ops.max(ops.where(holds_box, ops.arange(1, pieces + 1, dtype="int32"), 0))

    def add(piece: Tensor, best: State) -> tuple[Tensor, State]:
        some_boxes, some_valid, some_crowd = (ops.take(field, piece, axis=0) for field in fields)
        best = _better(best, _best(anchors, some_boxes, some_valid, some_crowd, config), piece * size)
        # Always 1, but known only when the piece is done: TensorFlow would begin several pieces at once.
        return piece + ops.minimum(ops.max(best["index"]) + 1, 1), best

    blank = ops.zeros_like(boxes[:, :1, 0]) + ops.zeros_like(anchors[None, :, 0])
    none = {
        "overlap": blank - 1.0,
        "index": ops.cast(blank, "int32"),
        "crowded": ops.cast(blank, "bool"),
    }
    if config.force_match:
        none["forced"] = blank - 1.0
    if config.force_match is True:
        none["forced_index"] = none["index"]
    return ops.while_loop(lambda piece, _: piece < last, add, (ops.zeros((), "int32"), none))[1]


def _better(best: State, other: State, first: Tensor) -> State:
    """The better of two states; the indices of the `other` count from the box `first`, and it wins no tie."""
    joined = {"crowded": ops.logical_or(best["crowded"], other["crowded"])}
    for overlap, index in (("overlap", "index"), ("forced", "forced_index")):
        if overlap in best:
            joined[overlap] = ops.maximum(best[overlap], other[overlap])
        if index in best:
            joined[index] = ops.where(other[overlap] > best[overlap], other[index] + first, best[index])
    return joined


def _inside_crowd(anchors: Tensor, boxes: Tensor, crowd: Tensor, share: float) -> Tensor:
    """Mask [B, A] of the anchors of which at least this share lies inside a crowd box."""
    of_box, of_anchor = _axes()

    def inside() -> Tensor:
        shared = box_ops.intersection(ops.expand_dims(anchors[None], of_box), ops.expand_dims(boxes, of_anchor))
        enough = ops.expand_dims(share * box_ops.area(anchors)[None], of_box)
        return ops.any(ops.logical_and(shared >= enough, ops.expand_dims(crowd, of_anchor)), axis=of_box)

    if keras.backend.backend() == "jax":
        return inside()
    nowhere = ops.zeros_like(boxes[:, :1, 0]) > ops.zeros_like(anchors[None, :, 0])
    return ops.cond(ops.any(crowd), inside, lambda: nowhere)
