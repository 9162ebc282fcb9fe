"""Anchor boxes of a feature pyramid (arXiv:1708.02002, section 4), as NumPy constants wherever the canvas is known."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from retina.config import Anchors
from retina.errors import RetinaError


def count_per_cell(config: Anchors) -> int:
    return len(config.scales if config.sizes is None else config.sizes[0]) * len(config.ratios)


def base_anchors(config: Anchors, level: int) -> np.ndarray:
    """Anchors [R·S, 4] around the origin, xyxy pixels float64; ratios vary slowest, scales fastest.

    Every ratio keeps the area: width = side / sqrt(ratio), height = side * sqrt(ratio).

    Raises:
        RetinaError: `config.sizes` has no list for the level.
    """
    sides = _sides(config, level)
    roots = np.sqrt(np.asarray(config.ratios, np.float64))
    width = (sides[None, :] / roots[:, None]).reshape(-1)
    height = (sides[None, :] * roots[:, None]).reshape(-1)
    corners = np.stack([-width, -height, width, height], axis=1) / 2
    return np.round(corners) if config.rounding else corners


def _sides(config: Anchors, level: int) -> np.ndarray:
    """[S] float64 pixels."""
    if config.sizes is None:
        return config.size * 2.0**level * np.asarray(config.scales, np.float64)
    if not 3 <= level < 3 + len(config.sizes):
        raise RetinaError(
            f"anchors.sizes: expected a list for P{level}, there are {len(config.sizes)} from P3 on; add one, or "
            "change the levels of model.fpn"
        )
    return np.asarray(config.sizes[level - 3], np.float64)


def level_shapes(canvas: tuple[int, int], levels: tuple[int, ...]) -> list[tuple[int, int]]:
    """Feature map (height, width) of each level; every stride-2 layer rounds up."""
    return [(-(-canvas[0] // 2**level), -(-canvas[1] // 2**level)) for level in levels]


def level_anchors(config: Anchors, canvas: tuple[int, int], levels: tuple[int, ...]) -> list[np.ndarray]:
    """Anchors of each level: float32 [h·w·R·S, 4] xyxy pixels, ordered by row, column, then as `base_anchors`."""
    out = []
    for level, (height, width) in zip(levels, level_shapes(canvas, levels), strict=True):
        y = (np.arange(height) + config.offset) * _spacing(config, canvas[0], height, level)
        x = (np.arange(width) + config.offset) * _spacing(config, canvas[1], width, level)
        centres = np.stack(np.broadcast_arrays(x[None, :], y[:, None], x[None, :], y[:, None]), axis=-1)
        boxes = centres[:, :, None, :] + base_anchors(config, level)
        out.append(boxes.reshape(-1, 4).astype(np.float32))
    return out


def _spacing(config: Anchors, side: int, cells: int, level: int) -> float:
    """Pixels from an anchor to its neighbour along a side of the canvas."""
    return 2.0**level if config.spacing == "stride" else float(side // max(cells, 1))


def level_anchors_in_graph(config: Anchors, canvas: tuple[Any, Any], levels: tuple[int, ...]) -> list[Any]:
    """`level_anchors`, bit for bit, of a canvas whose sides are known only when the graph runs: int32 scalars.

    For backends with float64, which the rounding to float32 has to start from.
    """
    out = []
    for level in levels:
        height, width = ((side + (2**level - 1)) // 2**level for side in canvas)
        y = (ops.arange(height, dtype="float64") + config.offset) * _spacing_in_graph(config, canvas[0], height, level)
        x = (ops.arange(width, dtype="float64") + config.offset) * _spacing_in_graph(config, canvas[1], width, level)
        y, x = ops.broadcast_to(y[:, None], (height, width)), ops.broadcast_to(x[None, :], (height, width))
        centres = ops.stack([x, y, x, y], axis=-1)
        boxes = centres[:, :, None, :] + ops.convert_to_tensor(base_anchors(config, level), dtype="float64")
        out.append(ops.cast(ops.reshape(boxes, (-1, 4)), "float32"))
    return out


def _spacing_in_graph(config: Anchors, side: Any, cells: Any, level: int) -> Any:
    if config.spacing == "stride":
        return 2.0**level
    return ops.cast(side // ops.maximum(cells, 1), "float64")


def pyramid_anchors(config: Anchors, canvas: tuple[int, int], levels: tuple[int, ...]) -> np.ndarray:
    """All anchors [A, 4] of a canvas (height, width), finest level first: the order of the network's outputs."""
    return np.concatenate(level_anchors(config, canvas, levels))
