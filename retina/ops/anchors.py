"""Anchor boxes of a feature pyramid (arXiv:1708.02002, section 4), as NumPy constants wherever the canvas is known."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from retina.config import Anchors
from retina.errors import RetinaError


def count_per_cell(config: Anchors) -> int:
    """Number of anchors in each cell of a feature map."""
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
    """Sides of the square anchors of a level, [S] float64 pixels."""
    if config.sizes is None:
        return config.size * 2.0**level * np.asarray(config.scales, np.float64)
    if not 3 <= level < 3 + len(config.sizes):
        raise RetinaError(
            f"anchors.sizes: expected a list for P{level}, there are {len(config.sizes)} from P3 on; add one, or "
            "change the levels of model.fpn"
        )
    return np.asarray(config.sizes[level - 3], np.float64)


def level_shapes(canvas: tuple[Any, Any], levels: tuple[int, ...]) -> list[tuple[Any, Any]]:
    """Feature map (height, width) of each level; every stride-2 layer rounds up."""
    return [(-(-canvas[0] // 2**level), -(-canvas[1] // 2**level)) for level in levels]


def level_anchors(config: Anchors, canvas: tuple[Any, Any], levels: tuple[int, ...]) -> list[Any]:
    """Anchors of each level: float32 [h·w·R·S, 4] xyxy pixels, ordered by row, column, then as `base_anchors`.

    Arrays for a canvas (height, width) of integers. Where a side is a tensor (an int32 scalar, known only when the
    graph runs), tensors of the same bits, on backends with float64, which the rounding to float32 has to start from.
    """
    xp = ops if any(map(ops.is_tensor, canvas)) else np
    out = []
    for level, shape in zip(levels, level_shapes(canvas, levels), strict=True):
        y, x = (
            (xp.arange(cells, dtype="float64") + config.offset) * _spacing(xp, config, side, cells, level)
            for side, cells in zip(canvas, shape, strict=True)
        )
        y, x = xp.broadcast_to(y[:, None], shape), xp.broadcast_to(x[None, :], shape)
        centres = xp.stack([x, y, x, y], axis=-1)
        boxes = centres[:, :, None, :] + xp.array(base_anchors(config, level))
        out.append(xp.array(xp.reshape(boxes, (-1, 4)), dtype="float32"))
    return out


def _spacing(xp: Any, config: Anchors, side: Any, cells: Any, level: int) -> Any:
    """Pixels from an anchor to its neighbour along a side of the canvas; `xp` is NumPy or `keras.ops`."""
    return 2.0**level if config.spacing == "stride" else xp.array(side // xp.maximum(cells, 1), dtype="float64")


def pyramid_anchors(config: Anchors, canvas: tuple[int, int], levels: tuple[int, ...]) -> np.ndarray:
    """All anchors [A, 4] of a canvas (height, width), finest level first: the order of the network's outputs."""
    return np.concatenate(level_anchors(config, canvas, levels))
