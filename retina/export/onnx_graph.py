"""Everything around the network in an ONNX export, as text in ONNX's own syntax (`onnx.parser`).

The same operations in the same order and precision as `batches.pixels` and `models.decode` have, with NumPy's
float64 where those use it, so that onnxruntime's results differ by the network's rounding alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from retina import config
from retina.models.decode import logit
from retina.models.detector import Sections
from retina.ops.anchors import base_anchors

OPSET, IR_VERSION = 18, 8

_LISTED = 16384  # pixels; longer sides are left to the runtime's float64

_FLOAT, _INT32, _INT64, _DOUBLE = 1, 6, 7, 11  # TensorProto.DataType


def before_network(resize: config.Resize, model: config.Model) -> str:
    """`images` uint8 [B, H, W, 3] to normalised `pixels` [B, h, w, 3] on their canvas.

    Beside them what decoding needs: `given` int64 [3] (B, H, W), `canvas` int64 [2] (h, w), `size` int64 [2] (the
    content's), and `per_original` float32 [4], the factors that bring xyxy boxes back to the image's pixels. An empty
    batch, and images without a row or a column, get black pixels, since no network takes nothing.
    """
    lines = [
        *_normalisation(model),
        *_constants(
            multiple=("int64", [1], [resize.multiple]),
            multiple_less=("int64", [1], [resize.multiple - 1]),
            one_float=("float", [1], [1.0]),
            no=("int64", [1], [0]),
            xyxy=("int64", [4], [1, 0, 1, 0]),
            least=("int64", [1], [1]),
        ),
        "given = Shape<start = 0, end = 3>(images)",
        "up_to_one = Sub(least, given)",
        "added = Max(up_to_one, no)",
        "added_after = Concat<axis = 0>(no, no, no, no, added, no)",
        'some = Pad<mode = "constant">(images, added_after)',
        "stored = Shape<start = 1, end = 3>(some)",
        *content_size(resize),
        "size_up = Add(size, multiple_less)",
        "blocks = Div(size_up, multiple)",
        "canvas = Mul(blocks, multiple)",
        f"stored_float = Cast<to = {_FLOAT}>(stored)",
        f"size_float = Cast<to = {_FLOAT}>(size)",
        "scale = Div(size_float, stored_float)",
        "inverse = Div(one_float, scale)",
        "per_original = Gather<axis = 0>(inverse, xyxy)",
        # Bilinear by hand: onnxruntime's Resize is off by up to 0.02 of a level, so that some pixels round the other
        # way; this is TensorFlow's arithmetic, equal bit for bit.
        "step = Div(stored_float, size_float)",
        *_interpolation("y", 0),
        *_interpolation("x", 1),
        f"source = Cast<to = {_FLOAT}>(some)",
        "left = Gather<axis = 2>(source, low_x)",
        "right = Gather<axis = 2>(source, high_x)",
        *_blend("row", "left", "right", "share_x", [-1, 1]),
        "top = Gather<axis = 1>(row, low_y)",
        "bottom = Gather<axis = 1>(row, high_y)",
        *_blend("blended", "top", "bottom", "share_y", [-1, 1, 1]),
        "levels = Round(blended)",
        "scaled = Mul(levels, factor)",
        "normalised = Add(scaled, shift)",
        "missing = Sub(canvas, size)",
        "pads = Concat<axis = 0>(no, no, no, no, no, missing, no)",
        'pixels = Pad<mode = "constant">(normalised, pads)',
    ]
    return text(
        "before",
        "uint8[B, H, W, 3] images",
        "float[B, h, w, 3] pixels, int64[3] given, int64[2] canvas, int64[2] size, float[4] per_original",
        lines,
    )


def normalised_canvas(model: config.Model) -> str:
    """`canvas` float32 [B, h, w, 3], levels 0…255 of RGB, to normalised `pixels`: what comes before a network alone."""
    lines = [*_normalisation(model), "scaled = Mul(canvas, factor)", "pixels = Add(scaled, shift)"]
    return text("before", "float[B, h, w, 3] canvas", "float[B, h, w, 3] pixels", lines)


def _normalisation(model: config.Model) -> list[str]:
    std = np.asarray(model.pixel_std, np.float64)
    factor = (1.0 / std).astype(np.float32)
    shift = (-np.asarray(model.pixel_mean, np.float64) / std).astype(np.float32)
    return _constants(factor=("float", [3], factor), shift=("float", [3], shift))


def content_size(resize: config.Resize) -> list[str]:
    """`size` [2], the height and width that an image of `stored` [2] gets: `retina.data.batches.plan.fit` in integers.

    A runtime that computes float64 in less (OpenVINO) gets the same sizes. Exactly between two pixels, or with
    `rounding: floor` exactly on one, it is the rounding of float64 that decides there, so there it decides here.
    """
    floor = resize.rounding == "floor"
    return [
        *_constants(
            short=("int64", [1], [resize.short]),
            long=("int64", [1], [resize.long]),
            two=("int64", [1], [2]),
            yes=("int64", [1], [1]),
            # Not a scalar: OpenVINO inverts a quotient of one that leads to the amounts of a Pad.
            half=("double", [1], [0.5]),
        ),
        "shorter = ReduceMin<keepdims = 1>(stored)",
        "longer = ReduceMax<keepdims = 1>(stored)",
        "short_longer = Mul(short, longer)",
        "long_shorter = Mul(long, shorter)",
        "by_short = LessOrEqual(short_longer, long_shorter)",
        "goal = Where(by_short, short, long)",
        "side = Where(by_short, shorter, longer)",
        "product = Mul(stored, goal)",
        "product_twice = Mul(product, two)",
        f"raised = {'Identity(product_twice)' if floor else 'Add(product_twice, side)'}",
        "side_twice = Mul(side, two)",
        "nearest = Div(raised, side_twice)",
        "nearest_back = Mul(nearest, side_twice)",
        "between = Equal(nearest_back, raised)",
        *[f"{name}_exact = Cast<to = {_DOUBLE}>({name})" for name in ("stored", "goal", "side")],
        "zoom = Div(goal_exact, side_exact)",
        "zoomed = Mul(stored_exact, zoom)",
        f"zoomed_raised = {'Identity(zoomed)' if floor else 'Add(zoomed, half)'}",
        "zoomed_floor = Floor(zoomed_raised)",
        f"zoomed_nearest = Cast<to = {_INT64}>(zoomed_floor)",
        f"{'rounded_alike' if floor else 'rounded'} = Where(between, zoomed_nearest, nearest)",
        *(_short_of_its_goal(resize) if floor else []),
        "size = Max(rounded, yes)",
    ]


def _short_of_its_goal(resize: config.Resize) -> list[str]:
    """`rounded` of `rounded_alike`: a limiting side whose zoom float64 puts below its goal gets a pixel less.

    With `rounding: floor` that is every eighth side or so; the sides are listed here up to `_LISTED`, for runtimes
    without float64.
    """
    sides = np.arange(1.0, _LISTED + 1)
    short, long = ([0, *sides[sides * (goal / sides) < goal]] for goal in (resize.short, resize.long))
    return [
        *_constants(
            short_below=("int64", [len(short)], short), long_below=("int64", [len(long)], long),
            listed=("int64", [1], [_LISTED]),
        ),
        "is_short_below = Equal(side, short_below)",
        "is_long_below = Equal(side, long_below)",
        f"short_number = Cast<to = {_INT64}>(is_short_below)",
        f"long_number = Cast<to = {_INT64}>(is_long_below)",
        "short_less = ReduceMax<keepdims = 1>(short_number)",
        "long_less = ReduceMax<keepdims = 1>(long_number)",
        "less = Where(by_short, short_less, long_less)",
        "goal_reached = Sub(goal, less)",
        "is_side = Equal(stored, side)",
        "is_listed = LessOrEqual(side, listed)",
        "is_limiting = And(is_side, is_listed)",
        "rounded = Where(is_limiting, goal_reached, rounded_alike)",
    ]  # fmt: skip


def _interpolation(axis: str, index: int) -> list[str]:
    """`low_`, `high_` (source rows) and `share_` (weight of the high one) of each target row."""
    return [
        *_constants(
            **{
                f"index_{axis}": ("int64", [], [index]),
                f"zero_{axis}": ("int64", [], [0]),
                f"one_{axis}": ("int64", [], [1]),
                f"half_{axis}": ("float", [], [0.5]),
            }
        ),
        f"step_{axis} = Gather<axis = 0>(step, index_{axis})",
        f"into_{axis} = Gather<axis = 0>(size, index_{axis})",
        f"from_{axis} = Gather<axis = 0>(stored, index_{axis})",
        f"number_{axis} = Range(zero_{axis}, into_{axis}, one_{axis})",
        f"number_float_{axis} = Cast<to = {_FLOAT}>(number_{axis})",
        f"centre_{axis} = Add(number_float_{axis}, half_{axis})",
        f"source_{axis} = Mul(centre_{axis}, step_{axis})",
        f"place_{axis} = Sub(source_{axis}, half_{axis})",
        f"floor_{axis} = Floor(place_{axis})",
        f"share_{axis} = Sub(place_{axis}, floor_{axis})",
        f"floor_index_{axis} = Cast<to = {_INT64}>(floor_{axis})",
        f"low_{axis} = Max(floor_index_{axis}, zero_{axis})",
        f"next_{axis} = Add(floor_index_{axis}, one_{axis})",
        f"last_{axis} = Sub(from_{axis}, one_{axis})",
        f"high_{axis} = Min(next_{axis}, last_{axis})",
    ]


def _blend(out: str, low: str, high: str, share: str, shape: list[int]) -> list[str]:
    return [
        *_constants(**{f"{out}_shape": ("int64", [len(shape)], shape)}),
        f"{out}_share = Reshape({share}, {out}_shape)",
        f"{out}_gap = Sub({high}, {low})",
        f"{out}_part = Mul({out}_gap, {out}_share)",
        f"{out} = Add({low}, {out}_part)",
    ]


def after_network(sections: Sections, levels: Sequence[int], classes: int) -> str:
    """`logits` [B, A, K], `deltas` [B, A, 4] and what `before_network` gives to detections.

    `boxes` [B, D, 4] float32 xyxy pixels of the image, `scores` [B, D], `labels` [B, D] int32 by falling score, zeros
    after the first `num_detections` [B] int32. Suppression is onnx's NonMaxSuppression over one row of scores a class.
    """
    inference, anchors = sections.inference, sections.anchors
    groups: Sequence[int | str] = levels if inference.candidates_per == "level" else ["all"]
    lines = [
        *_constants(
            most=("int64", [1], [inference.candidates]),
            classes=("int64", [1], [classes]),
            minus_one=("int64", [1], [-1]),
            axis_two=("int64", [1], [2]),
            three=("int64", [1], [3]),
            axis_one=("int64", [1], [1]),
            flat=("int64", [2], [0, -1]),
            yx_xyxy=("int64", [4], [1, 0, 1, 0]),
            floor=("float", [1], [logit(inference.score_threshold)]),
            nothing=("float", [1], [-math.inf]),
            endless=("float", [1], [math.inf]),
            zero=("float", [1], [0.0]),
            half=("float", [1], [0.5]),
            weights=("float", [4], anchors.box_weights),
            widest=("float", [1], [math.log(anchors.max_size_ratio)]),
        ),
        "zero_index = Constant<value_ints = [0]>()",
        *[line for level in levels for line in _level(anchors, level)],
        *(_all_levels(levels) if groups != levels else []),
        *_candidate_ranges(groups),
        *[line for group in groups for line in _candidates(group)],
        *[
            f"{name} = Concat<axis = 1>({', '.join(f'{name}_{group}' for group in groups)})"
            for name in ("best", "label", "raw_boxes")
        ],
        f"size_float = Cast<to = {_FLOAT}>(size)",
        "limit = Gather<axis = 0>(size_float, yx_xyxy)",
        "positive = Max(raw_boxes, zero)",
        "cut = Min(positive, limit)",
        "count = Slice(given, zero_index, axis_one)",
        "sides = Slice(given, axis_one, three)",
        "shortest = ReduceMin<keepdims = 1>(sides)",
        "readable = Greater(shortest, zero_index)",
        "high = Greater(best, floor)",
        "magnitudes = Abs(raw_boxes)",
        "extent = ReduceSum<keepdims = 0>(magnitudes, axis_two)",
        "finite = Less(extent, endless)",
        "detected = And(high, finite)",
        "above = And(detected, readable)",
        "strength = Where(above, best, nothing)",
        *_suppression(inference, classes),
    ]
    return text(
        "behind",
        "float[B, A, K] logits, float[B, A, 4] deltas, "
        "int64[3] given, int64[2] canvas, int64[2] size, float[4] per_original",
        "float[B, D, 4] boxes, float[B, D] scores, int32[B, D] labels, int32[B] num_detections",
        lines,
    )


def _level(anchors: config.Anchors, level: int) -> list[str]:
    """`anchors_l` [A_l, 4] float32 and `count_l` [1], as `retina.ops.anchors.level_anchors`."""
    base = base_anchors(anchors, level)
    lines = _constants(
        **{
            f"stride_{level}": ("int64", [1], [2**level]),
            f"stride_less_{level}": ("int64", [1], [2**level - 1]),
            f"base_{level}": ("double", base.shape, base),
            f"offset_{level}": ("double", [], [anchors.offset]),
            f"as_rows_{level}": ("int64", [2], [-1, 4]),
            f"none_{level}": ("int64", [], [0]),
            f"next_{level}": ("int64", [], [1]),
            f"first_{level}": ("int64", [], [0]),
        }
    )
    lines += [
        f"rounded_{level} = Add(canvas, stride_less_{level})",
        f"cells_{level} = Div(rounded_{level}, stride_{level})",
    ]
    for axis, index, shape, mask in (("y", 0, [-1, 1, 1, 1], [0, 1, 0, 1]), ("x", 1, [1, -1, 1, 1], [1, 0, 1, 0])):
        at = f"{axis}_{level}"
        lines += [
            *_constants(
                **{
                    f"which_{at}": ("int64", [], [index]),
                    f"shape_{at}": ("int64", [4], shape),
                    f"mask_{at}": ("double", [4], mask),
                }
            ),
            f"number_{at} = Gather<axis = 0>(cells_{level}, which_{at})",
            *_pitch(anchors, level, at),
            f"index_{at} = Range(none_{level}, number_{at}, next_{level})",
            f"exact_{at} = Cast<to = {_DOUBLE}>(index_{at})",
            f"moved_{at} = Add(exact_{at}, offset_{level})",
            f"centre_{at} = Mul(moved_{at}, pitch_{at})",
            f"shaped_{at} = Reshape(centre_{at}, shape_{at})",
            f"corner_{at} = Mul(shaped_{at}, mask_{at})",
        ]
    return [
        *lines,
        f"centres_{level} = Add(corner_y_{level}, corner_x_{level})",
        f"grid_{level} = Add(centres_{level}, base_{level})",
        f"rows_{level} = Reshape(grid_{level}, as_rows_{level})",
        f"anchors_{level} = Cast<to = {_FLOAT}>(rows_{level})",
        f"count_{level} = Shape<start = 0, end = 1>(anchors_{level})",
    ]


def _pitch(anchors: config.Anchors, level: int, at: str) -> list[str]:
    """`pitch_at`, the distance of neighbouring anchors, as `anchors.spacing` asks."""
    if anchors.spacing == "stride":
        return _constants(**{f"pitch_{at}": ("double", [], [2.0**level])})
    return [
        f"side_{at} = Gather<axis = 0>(canvas, which_{at})",
        f"whole_{at} = Div(side_{at}, number_{at})",
        f"pitch_{at} = Cast<to = {_DOUBLE}>(whole_{at})",
    ]


def _all_levels(levels: Sequence[int]) -> list[str]:
    """`anchors_all` and `count_all` of the levels together."""
    named = ", ".join(f"anchors_{level}" for level in levels)
    return [f"anchors_all = Concat<axis = 0>({named})", "count_all = Shape<start = 0, end = 1>(anchors_all)"]


def _candidate_ranges(levels: Sequence[int | str]) -> list[str]:
    lines, start = [], "zero_index"
    for level in levels:
        lines += [f"start_{level} = Identity({start})", f"stop_{level} = Add(start_{level}, count_{level})"]
        start = f"stop_{level}"
    return lines


def _candidates(level: int | str) -> list[str]:
    """The best pairs of anchor and class, as `retina.models.decode` picks them: `best`, `label`, `raw_boxes`."""
    lines = [
        "mine = Slice(logits, start, stop, axis_one)",
        "shifts = Slice(deltas, start, stop, axis_one)",
        "top_class = ReduceMax<keepdims = 0>(mine, axis_two)",
        "anchor_count = Min(most, count)",
        "unused_top, top_rows = TopK<axis = 1>(top_class, anchor_count)",
        # Sorted rows keep equal scores in the order of the flat (anchor, class) index.
        "sorted_rows, unused_order = TopK<axis = 1, largest = 0>(top_rows, anchor_count)",
        "row_places = Unsqueeze(sorted_rows, minus_one)",
        "chosen_rows = GatherND<batch_dims = 1>(mine, row_places)",
        "pair_logits = Reshape(chosen_rows, flat)",
        "all_pairs = Mul(anchor_count, classes)",
        "pair_count = Min(most, all_pairs)",
        "best, pairs = TopK<axis = 1>(pair_logits, pair_count)",
        "label = Mod(pairs, classes)",
        "pair_rows = Div(pairs, classes)",
        "rows_of = GatherElements<axis = 1>(sorted_rows, pair_rows)",
        "places = Unsqueeze(rows_of, minus_one)",
        "delta = GatherND<batch_dims = 1>(shifts, places)",
        "anchor = Gather<axis = 0>(anchors, rows_of)",
        # retina.ops.boxes.decode
        "low, high = Split<axis = -1, num_outputs = 2>(anchor)",
        "side = Sub(high, low)",
        "unweighted = Div(delta, weights)",
        "shift, stretch = Split<axis = -1, num_outputs = 2>(unweighted)",
        "half_side = Mul(half, side)",
        "middle = Add(low, half_side)",
        "moved_by = Mul(shift, side)",
        "centre = Add(middle, moved_by)",
        "bounded = Min(stretch, widest)",
        "growth = Exp(bounded)",
        "reach = Mul(half_side, growth)",
        "least = Sub(centre, reach)",
        "greatest = Add(centre, reach)",
        "raw_boxes = Concat<axis = -1>(least, greatest)",
    ]
    shared = {"logits", "deltas", "most", "classes", "minus_one", "axis_two", "axis_one", "flat", "half", "weights"}
    return [_with_suffix(line, f"_{level}", shared | {"widest"}) for line in lines]


def _suppression(inference: config.Inference, classes: int) -> list[str]:
    slots = inference.max_detections
    same = inference.class_agnostic  # then every label counts as the first
    compared = "cut" if inference.clip == "before" else "raw_boxes"
    shown = "raw_boxes" if inference.clip == "none" else "cut"
    return [
        *_constants(
            per_class=("int64", [1], [slots]),
            overlap=("float", [1], [inference.nms_iou]),
            class_rows=("int64", [1, 1 if same else classes, 1], range(1 if same else classes)),
            slots=("int64", [1], [slots]),
            two_and_none=("int64", [4], [0, 0, 0, slots]),
            batch_and_box=("int64", [2], [0, 2]),
            no_label=("int64", [1], [0]),
        ),
        "label_row = Unsqueeze(label, axis_one)",
        "strength_row = Unsqueeze(strength, axis_one)",
        *(["group_row = Sub(label_row, label_row)"] if same else []),
        f"is_class = Equal({'group_row' if same else 'label_row'}, class_rows)",
        "by_class = Where(is_class, strength_row, nothing)",
        f"selected = NonMaxSuppression<center_point_box = 0>({compared}, by_class, per_class, overlap, floor)",
        "survivors = Gather<axis = 1>(selected, batch_and_box)",
        "their_logits = GatherND(strength, survivors)",
        "strength_shape = Shape(strength)",
        "blank = Expand(nothing, strength_shape)",
        "surviving = ScatterND(blank, survivors, their_logits)",
        # Fewer candidates than slots: the rest of the slots stay empty.
        'padded = Pad<mode = "constant">(surviving, two_and_none, nothing)',
        "final, raw_places = TopK<axis = 1>(padded, slots)",
        "valid = Greater(final, nothing)",
        "safe_places = Where(valid, raw_places, no_label)",
        "final_places = Unsqueeze(safe_places, minus_one)",
        f"chosen = GatherND<batch_dims = 1>({shown}, final_places)",
        "unscaled = Mul(chosen, per_original)",
        "valid_column = Unsqueeze(valid, minus_one)",
        "all_boxes = Where(valid_column, unscaled, zero)",
        "probability = Sigmoid(final)",
        "all_scores = Where(valid, probability, zero)",
        "chosen_label = GatherElements<axis = 1>(label, safe_places)",
        "whole_labels = Where(valid, chosen_label, no_label)",
        f"all_labels = Cast<to = {_INT32}>(whole_labels)",
        f"ones = Cast<to = {_INT32}>(valid)",
        "all_num_detections = ReduceSum<keepdims = 0>(ones, axis_one)",
        *[f"{name} = Slice(all_{name}, zero_index, count)" for name in ("boxes", "scores", "labels", "num_detections")],
    ]


# ------------------------------------------------------------------------------------------------------------ text


def _constants(**tensors: tuple[str, Sequence[int], Any]) -> list[str]:
    """`name = Constant…` of `name=(type, shape, values)`, exact to the last bit."""
    return [
        f"{name} = Constant<value: tensor = {kind}{list(shape) or ''} {{{_numbers(kind, values)}}}>()"
        for name, (kind, shape, values) in tensors.items()
    ]


def _numbers(kind: str, values: Iterable[Any]) -> str:
    flat = np.asarray(list(values)).reshape(-1)
    if kind == "int64":
        return ", ".join(str(int(value)) for value in flat)
    exact = flat.astype(np.float32 if kind == "float" else np.float64)
    return ", ".join(repr(float(value)) for value in exact)


def _with_suffix(line: str, suffix: str, shared: set[str]) -> str:
    """The line with every value name but the shared ones made the level's own."""
    outputs, _, call = line.partition(" = ")
    head, _, arguments = call.partition("(")
    names = [part.strip() for part in arguments.rstrip(")").split(",")]
    inputs = ", ".join(name if name in shared else name + suffix for name in names)
    return f"{', '.join(name.strip() + suffix for name in outputs.split(','))} = {head}({inputs})"


def text(name: str, inputs: str, outputs: str, lines: list[str]) -> str:
    body = "\n".join(f"  {line}" for line in lines)
    return f'<ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}]>\n{name} ({inputs}) => ({outputs})\n{{\n{body}\n}}'
