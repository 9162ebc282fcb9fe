"""Tiles of a large image, and the detections in them as those of the image.

A network sees an image at its training's scale, and loses what becomes too small. Tiles are windows of one size, at
their own scale, that overlap. What they detect is brought together in two steps:

1. By places alone: a box that ends at an inner edge of its tile, and lies in another tile away from that one's inner
   edges, is left to the other tile, which sees all that this one sees of the object and more. It doesn't matter whether
   the other tile found something, nor what: half an 8 may pass for a 3, with a high score.
2. By suppression among what is left, of each class, across tiles: by IoU, as non-maximum suppression does; boxes that
   end at an inner edge come last, whatever their scores, and go by intersection over their own area, since a part may
   have a small IoU with the whole.

Suppression by IoU alone leaves parts beside the wholes, and intersection over the smaller area for all boxes, as SAHI
(arXiv:2202.06934) merges, also removes a small object in front of a large one of its class. Here only boxes at seams
pay that price. Boxes of one tile are not compared again: the detector has done that, by its own settings.

An object is whole in at least one tile if its sides are at most the overlap. Larger ones come from the image as a
whole.

Training (`data.tiles`) takes the same windows, each as an image of a table: see `in_tiles`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from retina import config
from retina.data.batches.decoding import imported
from retina.data.batches.table_reader import ImageError, TableReader
from retina.data.dataset import DetectionDataset, Objects
from retina.data.stored import StoredImage, TableImage
from retina.errors import RetinaError

# Parts of a box's side, and pixels, within which its end counts as being at an edge: detected boxes are not exact.
_NEAR, _NEAR_PIXELS = 0.1, 2.0
# Decoded images kept for further tiles: with tiles in order, as `data.cache` reads them, each image is decoded once;
# shuffled ones seldom meet.
_DECODED = 2
_BMP_HEADER = 54  # bytes


class Tiling(NamedTuple):
    """Tiles of an image: `windows` [T, 4] int64 xyxy pixels, all of one size, row by row; `overlap` in pixels, the
    least of any two neighbours, along y and x, infinite along a side that one tile spans."""

    windows: np.ndarray
    overlap: tuple[float, float]


def check_tiles(tile: int | None, overlap: float | None) -> None:
    """Check the side and the overlap of tiles.

    Raises:
        RetinaError: one is out of its range, or there is an overlap without tiles.
    """
    if tile is None:
        if overlap is not None:
            raise RetinaError(f"--overlap {overlap:g}: it has no effect without --tile; give both, or leave it out")
        return
    if tile < 32:
        raise RetinaError(f"--tile {tile}: expected at least 32 pixels; about the size of the training images is usual")
    if overlap is not None and not 0 <= overlap <= 0.9:
        raise RetinaError(f"--overlap {overlap:g}: expected a share of a tile's side, from 0 to 0.9; 0.2 is usual")


def tiling(height: int, width: int, tile: int, overlap: float) -> Tiling:
    """Return the fewest tiles that cover an image and overlap by at least a share of their side, evenly spread.

    Args:
        tile: side in pixels; along a side of the image that is shorter, the tile is as long as that.
        overlap: share of a tile's side that neighbours have in common, at least.
    """
    ys, xs = (_starts(length, tile, overlap) for length in (height, width))
    y, x = (part.ravel() for part in np.meshgrid(ys, xs, indexing="ij"))
    windows = np.stack([x, y, x + min(tile, width), y + min(tile, height)], axis=1)
    return Tiling(windows, (_least_overlap(ys, tile), _least_overlap(xs, tile)))


def _starts(length: int, tile: int, overlap: float) -> np.ndarray:
    """Start of each tile along a side of the image."""
    if length <= tile:
        return np.zeros(1, np.int64)
    stride = max(int(tile * (1 - overlap)), 1)
    gaps = -(-(length - tile) // stride)
    # Floored: two neighbours are then at most `stride` apart, for (length - tile) / gaps is not more.
    return np.arange(gaps + 1) * (length - tile) // gaps


def _least_overlap(starts: np.ndarray, tile: int) -> float:
    return float(tile - np.diff(starts).max()) if len(starts) > 1 else np.inf


class TileDetections(NamedTuple):
    """n detections of T tiles: `tile` [n] int64, the row of the window, or -1 for the whole image; `boxes` [n, 4] xyxy
    in the image's pixels; `scores` [n] float32; `labels` [n] int32."""

    tile: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def rows(self, chosen: np.ndarray) -> TileDetections:
        """The detections of a mask [n] or of rows."""
        return TileDetections(*(column[chosen] for column in self))


def merged(
    detections: TileDetections, size: tuple[int, int], tiles: Tiling, *, iou: float, class_agnostic: bool = False
) -> TileDetections:
    """Return the detections of tiles as those of the image, by falling score; see the module's docstring.

    Args:
        size: height and width of the image.
        iou: above which the lower-ranked of two boxes of different tiles goes; also of a part's share in another box.
        class_agnostic: compares boxes of all classes.
    """
    detections = detections.rows(~shown_whole(detections, tiles))
    cut = (detections.tile >= 0) & at_seam(detections.boxes, tiles.windows[detections.tile], size)
    stays = ~cut
    for row in np.flatnonzero(cut):
        box = detections.boxes[row]
        inside = (box[:2] >= tiles.windows[:, :2]).all(axis=1) & (box[2:] <= tiles.windows[:, 2:]).all(axis=1)
        stays[row] = not (inside & ~at_seam(box, tiles.windows, size)).any()
    order = np.flatnonzero(stays)
    order = order[np.lexsort((-detections.scores[order], cut[order]))]
    detections, cut = detections.rows(order), cut[order]
    survivors = detections.rows(_unsuppressed(detections, cut, iou, class_agnostic))
    return survivors.rows(np.argsort(-survivors.scores, kind="stable"))


def shown_whole(detections: TileDetections, tiles: Tiling) -> np.ndarray:
    """[n] True for a detection of the whole image of an object that some tile shows whole, and larger."""
    sides = detections.boxes[:, 2:] - detections.boxes[:, :2]
    return (detections.tile < 0) & (sides <= np.array(tiles.overlap[::-1])).all(axis=1)


def at_seam(boxes: np.ndarray, windows: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[...] True for a box that ends at, or beyond, an edge of a window that is not the image's edge.

    Args:
        boxes, windows: [..., 4] xyxy pixels of the image, of shapes that broadcast.
        size: height and width of the image.
    """
    boxes = np.asarray(boxes, np.float64)
    near = _NEAR_PIXELS + _NEAR * (boxes[..., 2:] - boxes[..., :2])
    low = (boxes[..., :2] - windows[..., :2] <= near) & (windows[..., :2] > 0)
    high = (windows[..., 2:] - boxes[..., 2:] <= near) & (windows[..., 2:] < np.array(size[::-1]))
    return (low | high).any(axis=-1)


def _unsuppressed(detections: TileDetections, cut: np.ndarray, iou: float, class_agnostic: bool) -> np.ndarray:
    """[n] True for a detection that stays, greedily, in the given order."""
    boxes = detections.boxes.astype(np.float64)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    stays = np.ones(len(boxes), bool)
    for row in range(len(boxes)):
        if not stays[row]:
            continue
        later = slice(row + 1, None)
        common = np.minimum(boxes[row, 2:], boxes[later, 2:]) - np.maximum(boxes[row, :2], boxes[later, :2])
        shared = np.maximum(common, 0).prod(axis=1)
        of = np.where(cut[later], areas[later], areas[row] + areas[later] - shared)
        comparable = detections.tile[later] != detections.tile[row]
        if not class_agnostic:
            comparable &= detections.labels[later] == detections.labels[row]
        stays[later] &= ~(comparable & (shared > iou * of))
    return stays


# ------------------------------------------------------------------------------------------------ tiles of a table


def noted(table: DetectionDataset, tiles: config.Tiles | None) -> DetectionDataset:
    """Return the table with a note where `evaluation.tiles` cut none of its images."""
    largest = table.sizes.max(initial=0)
    if tiles is None or largest > tiles.size:
        return table
    note = (
        f"{table.name}: evaluation.tiles.size: {tiles.size} has no effect: the longest side of an image is {largest} "
        "pixels, so that each is detected as a whole"
    )
    return replace(table, notes=(*table.notes, note))


class WholeImages:
    """Reader of the images of a table, of which the last few stay decoded."""

    def __init__(self, table: DetectionDataset):
        self.table, self._reader = table, TableReader(table)
        self._decoded = lru_cache(maxsize=_DECODED)(self._reader.read)
        self._locks = [Lock() for _ in range(len(table))]  # threads that want one image wait for the first of them

    def read(self, row: int) -> np.ndarray:
        """Return the image of a row, uint8 [h, w, 3], turned as the table says; it may be shared, and stays as it is.

        Raises:
            RetinaError: it can't be read.
        """
        try:
            with self._locks[row]:
                return self._decoded(row)[0]
        except ImageError as error:
            raise self._reader.reason(error) from None


@dataclass(frozen=True, slots=True)
class TileImage(StoredImage):
    """A `window` x1, y1, x2, y2 of a row's image, encoded as a bitmap of `length` bytes: that costs least."""

    images: WholeImages
    row: int
    window: tuple[int, int, int, int]
    length: int

    @property
    def whole(self) -> TableImage:
        """The image that it is a tile of."""
        return self.images.table.images[self.row]

    def read(self) -> bytes:
        x1, y1, x2, y2 = self.window
        _, content = imported("cv2").imencode(".bmp", self.images.read(self.row)[y1:y2, x1:x2, ::-1])
        encoded: bytes = content.tobytes()
        return encoded


def in_tiles(table: DetectionDataset, tiles: config.TrainingTiles | None) -> DetectionDataset:
    """Return the table with each image's tiles in its place, row by row; without tiles (None) as it is.

    An id tells the tile's corner, "17 (480, 0)". Boxes are cut to their tiles; those of which less than
    `tiles.min_visible` of the area is left become crowds.

    Raises:
        RetinaError: no image is larger than a tile.
    """
    if tiles is None:
        return table
    windows = [tiling(h, w, tiles.size, tiles.overlap).windows for h, w in table.sizes.tolist()]
    image = np.repeat(np.arange(len(table)), [len(each) for each in windows])
    if len(image) == len(table):
        raise RetinaError(
            f"data.tiles.size: expected less than the longest side of {table.name}'s images, "
            f"{table.sizes.max(initial=0)} pixels, got {tiles.size}, which cuts none; leave data.tiles out"
        )
    window = np.concatenate(windows)
    parts = [_cut(table, row, each, tiles.min_visible) for row, each in enumerate(windows)]
    counts = np.concatenate([count for count, _ in parts])
    columns: dict[str, Any] = {
        field: np.concatenate([getattr(objects, field) for _, objects in parts]) for field in Objects._fields
    }
    sizes = window[:, [3, 2]] - window[:, [1, 0]]
    lengths = _BMP_HEADER + sizes[:, 0] * (-(-3 * sizes[:, 1] // 4) * 4)
    wholes, places = WholeImages(table), list(zip(image.tolist(), map(tuple, window.tolist()), strict=True))
    note = f"{table.name}: data.tiles: {len(table)} images are {len(image)} tiles of up to {tiles.size} pixels"
    return replace(
        table,
        image_ids=tuple(f"{table.image_ids[row]} ({x1}, {y1})" for row, (x1, y1, _, _) in places),
        images=tuple(TileImage(wholes, *place, length) for place, length in zip(places, lengths.tolist(), strict=True)),
        sizes=sizes,
        orientations=None,  # what is read of a tile is upright
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        **columns,
        notes=(*table.notes, note),
    )


def _cut(table: DetectionDataset, row: int, windows: np.ndarray, min_visible: float) -> tuple[np.ndarray, Objects]:
    """The number of boxes [T] in each window of an image, and these boxes, window by window."""
    objects = table.objects(row)
    low = np.maximum(objects.boxes[:, :2], windows[:, None, :2])
    high = np.minimum(objects.boxes[:, 2:], windows[:, None, 2:])
    tile, box = np.nonzero((low < high).all(axis=-1))
    low, high = low[tile, box], high[tile, box]
    sides = objects.boxes[box, 2:] - objects.boxes[box, :2]
    visible = ((high - low) / sides).prod(axis=1)
    corner = windows[tile, :2]
    cut = Objects(
        np.concatenate([low - corner, high - corner], axis=1),
        objects.labels[box],
        objects.crowd[box] | (visible < min_visible),
        objects.difficult[box],
        objects.areas[box] * visible,
    )
    return np.bincount(tile, minlength=len(windows)), cut
