"""Overlaps of a table's boxes with the anchors, after the resize of the network's input.

Anchors of one shape on one level stand on a regular grid, and an overlap never grows as an anchor moves away from a box
along either axis. So the best anchor of a shape is the one at the nearest cell, and all anchors above an overlap lie in
a window of cells around it: no box is ever compared with all anchors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from retina import config
from retina.data.batches import plan
from retina.data.dataset import DetectionDataset
from retina.ops.anchors import base_anchors, level_shapes, pyramid_anchors

# Training drops boxes with a side below this after the resize, in canvas pixels.
LEAST_SIDE = 1.0
# Overlaps are preselected in float64 and decided in float32, as the assignment decides them.
_SLACK = 1e-3
# Below this overlap the windows would be whole levels; with a threshold that low every box has its anchors anyway.
_LOWEST = 0.02
_CELLS_AT_ONCE = 4_000_000
_IMAGES_AT_ONCE = 2_000


@dataclass(frozen=True, eq=False)
class Placed:
    """The m boxes of a table that training learns (no crowds, no difficult ones) on their canvases.

    `rows` [m] are their rows in the table, `image` [m] their image, `boxes` [m,4] float64 xyxy canvas pixels, `canvas`
    [m,2] (height, width) of the padded canvas, `trained` [m] whether each side is at least a pixel there.
    """

    rows: np.ndarray
    image: np.ndarray
    boxes: np.ndarray
    canvas: np.ndarray
    trained: np.ndarray


@dataclass(frozen=True, eq=False)
class Coverage:
    """Anchors that the assignment gives to the m boxes of `placed`.

    `best` [m] float64 is the highest overlap of any anchor, `reached` [m] whether an anchor has the overlap that the
    configuration asks of a positive, `positives` [m,L] int64 the number of anchors on each level that learn the box. A
    box that is reached and has no positive lost all its anchors to neighbours that overlap them more.
    """

    placed: Placed
    levels: tuple[int, ...]
    best: np.ndarray
    reached: np.ndarray
    positives: np.ndarray

    @property
    def covered(self) -> np.ndarray:
        """[m] bool: boxes with at least one positive anchor."""
        return (self.positives > 0).max(axis=1, initial=False)


class _Grid(NamedTuple):
    """A level for each of m boxes: `cells` [m,2] (rows, columns) of the level on the box's canvas, `spacing`
    [m,2] pixels from an anchor to its neighbour, `offset` of the first one in these units, `first` [m] the place of the
    level's first anchor among all of the canvas, `shapes` [S,4] anchors around the origin, float64 xyxy."""

    level: int
    cells: np.ndarray
    spacing: np.ndarray
    offset: float
    first: np.ndarray
    shapes: np.ndarray


class _Pairs(NamedTuple):
    """Anchors and boxes that overlap enough: rows of the boxes, places of the anchors, overlaps float32, levels."""

    box: np.ndarray
    anchor: np.ndarray
    overlap: np.ndarray
    level: np.ndarray


def place(dataset: DetectionDataset, resize: config.Resize, everything: bool = False) -> Placed:
    """Place the boxes on their canvases by the evaluation resize, which is training's without zoom or crop.

    Args:
        everything: whether crowds and difficult boxes are placed too.
    """
    geometry = plan.fit(dataset.sizes, resize)
    image = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))
    learned = np.ones(len(image), bool) if everything else ~(dataset.crowd | dataset.difficult)
    rows = np.flatnonzero(learned)
    image = image[rows]
    # In float32, as the pipeline moves boxes: of nearly equal overlaps the last bit decides which is the best.
    scale = (geometry.resized.astype(np.float32) / dataset.sizes.astype(np.float32))[image]
    boxes = (dataset.boxes[rows].astype(np.float32) * np.tile(scale[:, ::-1], 2)).astype(np.float64)
    trained = (boxes[:, 2:] - boxes[:, :2] >= LEAST_SIDE).all(axis=1)
    return Placed(rows, image, boxes, geometry.canvases[geometry.canvas_of[image]], np.asarray(trained))


def best_overlaps(
    dataset: DetectionDataset, resize: config.Resize, anchors: config.Anchors, fpn: config.Fpn
) -> np.ndarray:
    """Return for each box the highest IoU of any anchor after the evaluation resize: [M] float64.

    A box below `assignment.positive_iou` has no positive anchor and is never learned unless forced.
    """
    placed = place(dataset, resize, everything=True)
    return overlaps(placed.boxes, placed.canvas, anchors, fpn)


def overlaps(boxes: np.ndarray, canvas: np.ndarray, anchors: config.Anchors, fpn: config.Fpn) -> np.ndarray:
    """Return the highest IoU of any anchor with each box: [m] float64.

    Args:
        boxes: [m,4] xyxy canvas pixels.
        canvas: [m,2] (height, width) of each box's canvas.
    """
    best = np.zeros(len(boxes))
    for grid in _grids(canvas, anchors, fpn):
        np.maximum(best, _nearest(boxes, grid).max(axis=1), out=best)
    return best


def coverage(
    dataset: DetectionDataset,
    resize: config.Resize,
    anchors: config.Anchors,
    fpn: config.Fpn,
    assignment: config.Assignment,
) -> Coverage:
    """Return the positives that `retina.ops.assignment.match` gives to each box at the evaluation size, unaugmented.

    Of several boxes an anchor learns the box that it overlaps most, the first of equals; under `force_match` each box
    gets its best anchor, the first of equals, unless a box that overlaps it more claims it as well. With
    `force_match: ties` all of a box's best anchors are positive, and still learn the box that they overlap most.
    """
    placed = place(dataset, resize)
    levels = pyramid_levels(fpn)
    best = overlaps(placed.boxes, placed.canvas, anchors, fpn)
    reached = np.zeros(len(best), bool)
    positives = np.zeros((len(best), len(levels)), np.int64)
    bounds = np.searchsorted(placed.image, np.arange(0, len(dataset) + _IMAGES_AT_ONCE, _IMAGES_AT_ONCE))
    for start, stop in pairwise(bounds.tolist()):
        part = start + np.flatnonzero(placed.trained[start:stop])
        if not len(part):
            continue
        boxes, canvas = placed.boxes[part], placed.canvas[part]
        pairs = _above(boxes, canvas, anchors, fpn, np.full(len(part), max(assignment.positive_iou, _LOWEST)))
        pairs = _rows(pairs, pairs.overlap >= np.float32(assignment.positive_iou))
        reached[part[pairs.box]] = True
        image = placed.image[part]
        if assignment.force_match == "ties":
            tied = _tied(boxes, canvas, anchors, fpn, best[part], image)
            pairs = _Pairs(*(np.concatenate(pair) for pair in zip(pairs, tied, strict=True)))
        won = _won(pairs, image)
        if assignment.force_match is True:
            won = _with_forced(won, _best_anchors(boxes, canvas, anchors, fpn, best[part]), image)
        np.add.at(positives, (part[won.box], won.level - levels[0]), 1)
    return Coverage(placed, levels, best, reached, positives)


# ------------------------------------------------------------------------------------------------- grids and windows


def pyramid_levels(fpn: config.Fpn) -> tuple[int, ...]:
    """Return the levels that have anchors."""
    return tuple(range(fpn.min_level, fpn.max_level + 1))


def _grids(canvas: np.ndarray, anchors: config.Anchors, fpn: config.Fpn) -> Iterator[_Grid]:
    """The levels of each box's canvas, finest first: the order of the network's anchors."""
    distinct, which = np.unique(canvas.reshape(-1, 2), axis=0, return_inverse=True)
    levels = pyramid_levels(fpn)
    # [canvases, L, 2]
    cells = np.array([level_shapes(tuple(size), levels) for size in distinct.tolist()]).reshape(-1, len(levels), 2)
    first = np.zeros(len(distinct), np.int64)
    which = which.reshape(-1)
    for level, here in zip(levels, cells.transpose(1, 0, 2), strict=True):
        shapes = base_anchors(anchors, level)
        spacing = np.full(here.shape, 2.0**level) if anchors.spacing == "stride" else (distinct // here).astype(float)
        yield _Grid(level, here[which], spacing[which], anchors.offset, first[which], shapes)
        first = first + here.prod(axis=1) * len(shapes)


def _nearest_cells(boxes: np.ndarray, grid: _Grid) -> np.ndarray:
    """[m,2] int64 (row, column) of the cell nearest to each box's centre."""
    centre = (boxes[:, :2] + boxes[:, 2:])[:, ::-1] / 2
    return np.clip(np.rint(centre / grid.spacing - grid.offset), 0, grid.cells - 1).astype(np.int64)


def _nearest(boxes: np.ndarray, grid: _Grid) -> np.ndarray:
    """[m,S]: the overlap with the anchor of each shape at the nearest cell, the best of that shape."""
    centre = (_nearest_cells(boxes, grid) + grid.offset) * grid.spacing
    sides = []
    for axis in (0, 1):
        low = np.maximum(centre[:, None, 1 - axis] + grid.shapes[None, :, axis], boxes[:, None, axis])
        high = np.minimum(centre[:, None, 1 - axis] + grid.shapes[None, :, axis + 2], boxes[:, None, axis + 2])
        sides.append(np.maximum(high - low, 0.0))
    shared = sides[0] * sides[1]
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)[:, None] + _areas(grid.shapes)[None]
    return shared / (areas - shared)


def _areas(shapes: np.ndarray) -> np.ndarray:
    return (shapes[:, 2:] - shapes[:, :2]).prod(axis=1)


def _above(
    boxes: np.ndarray, canvas: np.ndarray, anchors: config.Anchors, fpn: config.Fpn, least: np.ndarray
) -> _Pairs:
    """Return every pair of an anchor and a box whose overlap is at least about the box's `least` [m]."""
    least = least * (1 - _SLACK)
    pieces = [_Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.int64))]
    for grid in _grids(canvas, anchors, fpn):
        near = _nearest(boxes, grid)
        for shape in range(len(grid.shapes)):
            rows = np.flatnonzero(near[:, shape] >= least)
            if len(rows):
                pieces += _windows(boxes, grid, shape, rows, least)
    return _Pairs(*(np.concatenate(column) for column in zip(*pieces, strict=True)))


def _windows(boxes: np.ndarray, grid: _Grid, shape: int, rows: np.ndarray, least: np.ndarray) -> Iterator[_Pairs]:
    """Yield `_above` for anchors of one shape on one level and the boxes in `rows`, in pieces that fit into memory."""
    base = grid.shapes[shape]
    reach = _reach(boxes[rows], base, least[rows], grid.spacing[rows])
    # Boxes with windows of like size share a piece: few large windows don't blow up the many small ones.
    rows, reach = rows[order := np.argsort(reach.max(axis=1), kind="stable")], reach[order]
    start = 0
    while start < len(rows):
        cells = (2 * reach[start:].max(axis=1) + 1) ** 2
        fits = np.arange(1, len(cells) + 1) * np.maximum.accumulate(cells) <= _CELLS_AT_ONCE
        stop = start + max(int(fits.sum()), 1)
        yield _window(boxes, grid, shape, rows[start:stop], reach[start:stop].max(axis=0), least)
        start = stop


def _reach(boxes: np.ndarray, base: np.ndarray, least: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """[n,2] int64 (rows, columns): number of cells from the nearest within which an overlap of `least` [n] is possible.

    The shared area must be `least` / (1 + `least`) of both areas together; divided by the smaller of the two heights
    this is the shared width that is needed at least, and that bounds the distance of the centres.
    """
    sides, anchor = boxes[:, 2:] - boxes[:, :2], base[2:] - base[:2]
    shared = least / (1 + least) * (sides.prod(axis=1) + anchor.prod())
    needed = shared[:, None] / np.minimum(sides, anchor)[:, ::-1]
    distance = np.maximum((sides + anchor) / 2 - needed, 0.0)
    return np.ceil(distance[:, ::-1] / spacing).astype(np.int64) + 1


def _window(
    boxes: np.ndarray, grid: _Grid, shape: int, rows: np.ndarray, reach: np.ndarray, least: np.ndarray
) -> _Pairs:
    """Return the pairs of n boxes with the anchors at most `reach` (rows, columns) cells from their nearest cell.

    In float32 and in the order of `retina.ops.boxes.iou`, so that thresholds and equal overlaps are decided as there.
    """
    grid = grid._replace(cells=grid.cells[rows], spacing=grid.spacing[rows], first=grid.first[rows])
    base, cells = grid.shapes[shape], grid.cells
    exact = boxes[rows].astype(np.float32)
    nearest = _nearest_cells(boxes[rows], grid)
    places, shared, lengths = [], [], []
    for axis in (0, 1):  # rows and columns of cells
        at = nearest[:, axis, None] + np.arange(-reach[axis], reach[axis] + 1)
        centre = (at + grid.offset) * grid.spacing[:, axis, None]
        low, high = ((centre + base[1 - axis + end]).astype(np.float32) for end in (0, 2))
        inside = np.minimum(high, exact[:, 3 - axis, None]) - np.maximum(low, exact[:, 1 - axis, None])
        places.append(at)
        shared.append(np.where((at >= 0) & (at < cells[:, axis, None]), np.maximum(inside, 0), 0))
        lengths.append(high - low)
    area = (exact[:, 2] - exact[:, 0]) * (exact[:, 3] - exact[:, 1])
    both = shared[1][:, None, :] * shared[0][:, :, None]
    union = lengths[1][:, None, :] * lengths[0][:, :, None] + area[:, None, None] - both
    overlap = both / union
    box, row, column = np.nonzero(overlap >= least[rows, None, None].astype(np.float32))
    cell = places[0][box, row] * cells[box, 1] + places[1][box, column]
    anchor = grid.first[box] + cell * len(grid.shapes) + shape
    return _Pairs(rows[box], anchor, overlap[box, row, column], np.full(len(box), grid.level))


# ------------------------------------------------------------------------------------- which anchor learns which box


def _rows(pairs: _Pairs, chosen: np.ndarray) -> _Pairs:
    return _Pairs(*(column[chosen] for column in pairs))


def _won(pairs: _Pairs, image: np.ndarray) -> _Pairs:
    """Return for each anchor the pair with the highest overlap, the first box of equals."""
    order = np.lexsort((pairs.box, -pairs.overlap, pairs.anchor, image[pairs.box]))
    pairs = _rows(pairs, order)
    owner = image[pairs.box]
    again = (owner[1:] == owner[:-1]) & (pairs.anchor[1:] == pairs.anchor[:-1])
    return _rows(pairs, np.concatenate([np.ones(min(len(owner), 1), bool), ~again]))


def _best_anchors(
    boxes: np.ndarray, canvas: np.ndarray, anchors: config.Anchors, fpn: config.Fpn, best: np.ndarray
) -> _Pairs:
    """Return each box's best anchor, the first of equals; no pair for a box that no anchor overlaps."""
    pairs = _above(boxes, canvas, anchors, fpn, best)
    pairs = _rows(pairs, np.lexsort((pairs.anchor, -pairs.overlap, pairs.box)))
    return _rows(pairs, np.concatenate([np.ones(min(len(pairs.box), 1), bool), pairs.box[1:] != pairs.box[:-1]]))


def _with_forced(won: _Pairs, forced: _Pairs, image: np.ndarray) -> _Pairs:
    """Give each anchor that is a box's best to that box, whatever else it overlaps."""
    forced = _won(forced, image)
    taken = set(zip(image[forced.box].tolist(), forced.anchor.tolist(), strict=True))
    free = [key not in taken for key in zip(image[won.box].tolist(), won.anchor.tolist(), strict=True)]
    unclaimed = _rows(won, np.array(free, bool))
    return _Pairs(*(np.concatenate(pair) for pair in zip(unclaimed, forced, strict=True)))


def _tied(
    boxes: np.ndarray,
    canvas: np.ndarray,
    anchors: config.Anchors,
    fpn: config.Fpn,
    best: np.ndarray,
    image: np.ndarray,
) -> _Pairs:
    """Every anchor that overlaps a box (above 0) as much as any anchor does, with all boxes of its image.

    `image` [m] must not fall.
    """
    pairs = _above(boxes, canvas, anchors, fpn, best)
    highest = np.zeros(len(boxes), np.float32)
    np.maximum.at(highest, pairs.box, pairs.overlap)
    pairs = _rows(pairs, (pairs.overlap == highest[pairs.box]) & (pairs.overlap > 0))
    corners = _corners(canvas[pairs.box], pairs.anchor, anchors, fpn)
    first, stop = (np.searchsorted(image, image[pairs.box], side) for side in ("left", "right"))
    count = stop - first
    box = np.repeat(first - np.cumsum(count) + count, count) + np.arange(count.sum())
    corners = np.repeat(corners, count, axis=0)
    anchor, level = (np.repeat(column, count) for column in (pairs.anchor, pairs.level))
    return _Pairs(box, anchor, _overlaps(corners, boxes[box].astype(np.float32)), level)


def _corners(canvas: np.ndarray, anchor: np.ndarray, anchors: config.Anchors, fpn: config.Fpn) -> np.ndarray:
    """[n,4] float32: the anchors in the places `anchor` [n] of the canvases [n,2]."""
    corners = np.zeros((len(anchor), 4), np.float32)
    for size in np.unique(canvas, axis=0):
        here = (canvas == size).all(axis=1)
        corners[here] = pyramid_anchors(anchors, (int(size[0]), int(size[1])), pyramid_levels(fpn))[anchor[here]]
    return corners


def _overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[n] float32: the overlap of anchors [n,4] with boxes [n,4], in the order of `retina.ops.boxes.iou`."""
    shared = np.maximum(np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2]), 0)
    both = shared[:, 0] * shared[:, 1]
    return np.asarray(both / (_areas(first) + _areas(second) - both))


def sampled(dataset: DetectionDataset, most: int, seed: int = 0) -> DetectionDataset:
    """Return the table, or of a larger table a random `most` of its images in the table's order."""
    if len(dataset) <= most:
        return dataset
    return dataset.subset(np.sort(np.random.default_rng(seed).choice(len(dataset), most, replace=False)))


def resized_sides(placed: Placed) -> np.ndarray:
    """Return the square root of each box's area in canvas pixels: [m] float64."""
    return np.sqrt((placed.boxes[:, 2:] - placed.boxes[:, :2]).prod(axis=1))
