"""The graph of a LiteRT export, of operations that LiteRT has built in, and the joining of two models.

`retina.models.decode` in other words: LiteRT lacks some of what Keras' `argmax`, `sort` and `arange` become. The order
of candidates, ties and arithmetic are the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from retina import config
from retina.models.decode import logit
from retina.models.detector import Detector, Sections
from retina.ops.anchors import base_anchors
from retina.private_names import flatbuffers

if TYPE_CHECKING:
    import tensorflow as tf

Tensors = dict[str, Any]


def network(detector: Detector, canvas: tf.Tensor) -> Tensors:
    """`logits` [B, A, K] and `deltas` [B, A, 4] of `canvas` [B, h, w, 3] float32, levels 0…255 of RGB.

    Padding holds the mean colour, which normalising turns into (nearly) zero: a mask made of the content's size would
    have a shape that LiteRT knows only while it runs, and its fast kernels want to know it before.
    """
    pixels = canvas * detector.normalization.factor + detector.normalization.shift
    maps = detector.fpn(detector.backbone(pixels, training=False))
    return {"logits": detector.classification(maps), "deltas": detector.box(maps)}


def detections(
    outputs: Tensors, canvas: tf.Tensor, size: tf.Tensor, scale: tf.Tensor, sections: Sections, levels: Sequence[int]
) -> Tensors:
    """Decode and suppress.

    Args:
        outputs: of `network`.
        canvas: its input; only the shape counts.
        size: [B, 2] int32 (h, w) of the content, in pixels of the canvas.
        scale: [B, 2] float32 (y, x): canvas pixels per pixel of the image.

    Returns:
        `boxes` [B, D, 4] xyxy in pixels of the image, `scores` [B, D], `labels` [B, D] int32 by falling score, zeros
        after the first `num_detections` [B] int32.
    """
    import tensorflow as tf

    inference = sections.inference
    parts: list[tuple[tf.Tensor, tf.Tensor, tf.Tensor]] = []
    start: tf.Tensor | int = 0
    grids = [level_anchors(sections.anchors, tf.shape(canvas), level) for level in levels]
    for anchors in grids if inference.candidates_per == "level" else [tf.concat(grids, axis=0)]:
        stop = start + tf.shape(anchors)[0]
        logits, deltas = (outputs[name][:, start:stop] for name in ("logits", "deltas"))
        parts.append(_candidates(logits, deltas, anchors, sections))
        start = stop
    boxes, strength, labels = (tf.concat(columns, axis=1) for columns in zip(*parts, strict=True))
    raw = boxes
    if inference.clip != "none":
        boxes = tf.minimum(tf.maximum(boxes, 0.0), tf.expand_dims(_xyxy(tf.cast(size, tf.float32)), 1))
    compared = boxes if inference.clip == "before" else raw
    groups = tf.zeros_like(labels) if inference.class_agnostic else labels
    survivors = suppress(compared, strength, groups, inference.nms_iou, inference.max_detections)
    valid = survivors >= 0
    rows = tf.maximum(survivors, 0)
    boxes = tf.gather(boxes, rows, batch_dims=1) * tf.expand_dims(_xyxy(1.0 / scale), 1)
    scores = tf.sigmoid(tf.gather(strength, rows, batch_dims=1))
    return {
        "boxes": tf.where(tf.expand_dims(valid, -1), boxes, 0.0),
        "scores": tf.where(valid, scores, 0.0),
        "labels": tf.where(valid, tf.gather(labels, rows, batch_dims=1), 0),
        "num_detections": tf.reduce_sum(tf.cast(valid, tf.int32), axis=1),
    }


def level_anchors(anchors: config.Anchors, canvas: tf.Tensor, level: int) -> tf.Tensor:
    """Anchors [A_l, 4] of a canvas' shape [4]; float32, within one rounding of `retina.ops.anchors`' float64."""
    import tensorflow as tf

    stride = 2**level
    base = base_anchors(anchors, level).astype(np.float32)
    rows, columns = ((canvas[axis] + stride - 1) // stride for axis in (1, 2))
    y, x = (
        (tf.cast(tf.range(count), tf.float32) + anchors.offset)
        * (float(stride) if anchors.spacing == "stride" else tf.cast(canvas[axis] // count, tf.float32))
        for axis, count in ((1, rows), (2, columns))
    )
    centres = tf.reshape(y, [-1, 1, 1, 1]) * [0.0, 1.0, 0.0, 1.0] + tf.reshape(x, [1, -1, 1, 1]) * [1.0, 0.0, 1.0, 0.0]
    return tf.reshape(centres + base, [-1, 4])


def suppress(
    boxes: tf.Tensor, strength: tf.Tensor, labels: tf.Tensor, iou_threshold: float, max_detections: int
) -> tf.Tensor:
    """Greedy per-class suppression as `retina.ops.nms.nms`: rows [B, D] int32, -1 where there are fewer.

    Args:
        boxes: [B, N, 4].
        strength: [B, N], -inf for what is no candidate.
        labels: [B, N] int32.
    """
    import tensorflow as tf

    shape = tf.shape(strength)
    rows = tf.expand_dims(tf.range(shape[1]), 0)
    slots = tf.expand_dims(tf.range(max_detections), 0)
    chosen = tf.fill([shape[0], max_detections], -1)
    corners = tf.unstack(boxes, axis=-1)
    areas = _area(corners)

    def some_left(step: tf.Tensor, left: tf.Tensor, chosen: tf.Tensor) -> tf.Tensor:
        return tf.logical_and(step < max_detections, tf.reduce_max(left) > -math.inf)

    def keep_best(step: tf.Tensor, left: tf.Tensor, chosen: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        best = tf.expand_dims(tf.argmax(left, axis=-1, output_type=tf.int32), 1)
        exists = tf.gather(left, best, batch_dims=1) > -math.inf
        box = [tf.gather(corner, best, batch_dims=1) for corner in corners]
        same_class = tf.equal(labels, tf.gather(labels, best, batch_dims=1))
        width = tf.minimum(box[2], corners[2]) - tf.maximum(box[0], corners[0])
        height = tf.minimum(box[3], corners[3]) - tf.maximum(box[1], corners[1])
        shared = tf.maximum(width, 0.0) * tf.maximum(height, 0.0)
        union = _area(box) + areas - shared
        suppressed = tf.logical_and(shared / tf.where(union > 0, union, 1.0) > iou_threshold, same_class)
        left = tf.where(tf.logical_or(suppressed, tf.equal(rows, best)), -math.inf, left)
        return step + 1, left, tf.where(tf.logical_and(tf.equal(slots, step), exists), best, chosen)

    shapes = (tf.TensorShape([]), tf.TensorShape([None, None]), tf.TensorShape([None, max_detections]))
    return tf.while_loop(some_left, keep_best, (tf.constant(0), strength, chosen), shape_invariants=shapes)[2]


def _candidates(
    logits: tf.Tensor, deltas: tf.Tensor, anchors: tf.Tensor, sections: Sections
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """A level's best pairs of anchor and class: boxes [B, N, 4], logits [B, N] (-inf below the threshold), labels."""
    import tensorflow as tf

    inference, classes = sections.inference, logits.shape[-1]
    anchor_count = tf.minimum(inference.candidates, tf.shape(logits)[1])
    rows = tf.math.top_k(tf.reduce_max(logits, axis=-1), anchor_count)[1]
    rows = -tf.math.top_k(-rows, anchor_count)[0]
    logits = tf.gather(logits, rows, batch_dims=1)
    pair_count = tf.minimum(inference.candidates, anchor_count * classes)
    top, pairs = tf.math.top_k(tf.reshape(logits, [tf.shape(logits)[0], -1]), pair_count)
    rows = tf.gather(rows, pairs // classes, batch_dims=1)
    boxes = _decode(tf.gather(anchors, rows), tf.gather(deltas, rows, batch_dims=1), sections.anchors)
    finite = tf.reduce_sum(tf.abs(boxes), axis=-1) < math.inf
    above = tf.logical_and(top > logit(inference.score_threshold), finite)
    return boxes, tf.where(above, top, -math.inf), pairs % classes


def _decode(anchors: tf.Tensor, deltas: tf.Tensor, section: config.Anchors) -> tf.Tensor:
    import tensorflow as tf

    deltas = deltas / tf.constant(section.box_weights, tf.float32)
    side = anchors[..., 2:] - anchors[..., :2]
    centre = anchors[..., :2] + 0.5 * side + deltas[..., :2] * side
    half = 0.5 * side * tf.exp(tf.minimum(deltas[..., 2:], math.log(section.max_size_ratio)))
    return tf.concat([centre - half, centre + half], axis=-1)


def _area(corners: Sequence[tf.Tensor]) -> tf.Tensor:
    import tensorflow as tf

    return tf.maximum(corners[2] - corners[0], 0.0) * tf.maximum(corners[3] - corners[1], 0.0)


def _xyxy(pairs: tf.Tensor) -> tf.Tensor:
    """Pairs (y, x) [B, 2] as (x, y, x, y) [B, 4]."""
    import tensorflow as tf

    return tf.gather(pairs, [1, 0, 1, 0], axis=1)


# ------------------------------------------------------------------------------------- two models joined into one
#
# The converter quantises a whole model or nothing of it. An int8 network must not drag the arithmetic of boxes along (a
# 256th of an image's width is no box), so that both are converted apart and their flatbuffers joined.


def join(first: bytes, second: bytes, *, whole: str, alone: str) -> bytes:
    """A model with two signatures: `whole`, the first model followed by the second, and `alone`, the first.

    Both models have one signature each. An input of the second is fed by the first's output of that name, or else by
    its input of that name; what is neither is an input of the whole. Constants are shared between the signatures.
    """
    schema, flatbuffer_utils = flatbuffers()
    a, b = (flatbuffer_utils.convert_bytearray_to_object(bytearray(model)) for model in (first, second))
    head, end = a.signatureDefs[0], b.signatureDefs[0]
    network = a.subgraphs[head.subgraphIndex]
    tail = b.subgraphs[end.subgraphIndex]
    _renumber(b, buffers=len(a.buffers), codes=len(a.operatorCodes), subgraphs=len(a.subgraphs))

    given = _by_name(head.inputs) | _by_name(head.outputs)
    wanted = _by_name(end.inputs)
    offset = len(network.tensors)
    place = {index: index + offset for index in range(len(tail.tensors))}
    place |= {index: given[name] for name, index in wanted.items() if name in given}
    for operator in tail.operators:
        operator.inputs, operator.outputs = (_moved(row, place) for row in (operator.inputs, operator.outputs))
        operator.intermediates = _moved(operator.intermediates, place)

    joined = schema.SubGraphT()
    joined.name = whole.encode()
    joined.tensors = [*network.tensors, *tail.tensors]
    joined.operators = [*network.operators, *tail.operators]
    further = {name: place[index] for name, index in wanted.items() if name not in given}
    inputs = {**_by_name(head.inputs), **further}
    outputs = {name: place[index] for name, index in _by_name(end.outputs).items()}
    joined.inputs, joined.outputs = list(inputs.values()), list(outputs.values())

    by_signature = {**inputs, **outputs, **_by_name(head.outputs)}
    _name_tensors([joined, *b.subgraphs], {joined.tensors[index]: name for name, index in by_signature.items()})

    a.buffers += b.buffers
    a.operatorCodes += b.operatorCodes
    a.subgraphs += b.subgraphs
    # The second model's main subgraph is part of the joined one, whose place it takes; the first interpreter call
    # without a signature runs subgraph 0, so the whole goes there.
    a.subgraphs[a.subgraphs.index(tail)] = network
    a.subgraphs[a.subgraphs.index(network)] = joined
    a.signatureDefs = [
        _signature(schema, whole, inputs, outputs, a.subgraphs.index(joined)),
        _signature(schema, alone, _by_name(head.inputs), _by_name(head.outputs), a.subgraphs.index(network)),
    ]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(a))


def _name_tensors(graphs: Sequence[Any], by_signature: Mapping[Any, str]) -> None:
    """Give inputs and outputs the names that they have in the signature, and every other tensor a name of its own.

    Both models number their constants from zero, and OpenVINO and tf2onnx find tensors by name.
    """
    taken = set(by_signature.values())
    for tensor in dict.fromkeys(tensor for graph in graphs for tensor in graph.tensors):
        name = by_signature.get(tensor)
        if name is None:
            given = tensor.name.decode()
            numbered = (f"{given}_{number}" for number in itertools.count(2))
            name = next(name for name in itertools.chain([given], numbered) if name not in taken)
            taken.add(name)
        tensor.name = name.encode()


def _renumber(model: Any, *, buffers: int, codes: int, subgraphs: int) -> None:
    """Give the model the numbers that its parts have after those of another model."""
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.buffer += buffers
        for operator in graph.operators:
            operator.opcodeIndex += codes
            options = operator.builtinOptions
            for name in ("condSubgraphIndex", "bodySubgraphIndex"):
                if hasattr(options, name):
                    setattr(options, name, getattr(options, name) + subgraphs)


def _moved(indices: Sequence[int] | None, place: Mapping[int, int]) -> list[int] | None:
    """The places of numbered tensors; -1 stands for an optional input that is not there."""
    return None if indices is None else [place.get(int(index), -1) for index in indices]


def _by_name(maps: Sequence[Any]) -> dict[str, int]:
    return {entry.name.decode(): entry.tensorIndex for entry in maps}


def _signature(schema: Any, key: str, inputs: Mapping[str, int], outputs: Mapping[str, int], subgraph: int) -> Any:
    made = schema.SignatureDefT()
    made.signatureKey, made.subgraphIndex = key.encode(), subgraph
    for name, values in (("inputs", inputs), ("outputs", outputs)):
        maps = []
        for key_, index in values.items():
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = key_.encode(), index
            maps.append(entry)
        setattr(made, name, maps)
    return made
