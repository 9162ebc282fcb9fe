"""Matches of detections and boxes by COCO's greedy rule, for all images, classes and thresholds together, in NumPy.

The engines of `retina.evaluation.coco` return the twelve figures without the matches that they come from. Everything
that needs these (intervals, curves, calibration, pictures of mistakes) starts from the matches made here, which give
exactly the precision of pycocotools; a test holds them to it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retina.data.ground_truth import GroundTruth, Results, check_results

# The same float64 numbers as pycocotools': 0.1-steps added up would differ in the last bit, and with them the matches.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
ALL_AREAS = (0.0, 1e10)
# About 150 bytes a pair with its boxes and overlaps: tens of MB at a time, however large the tables are.
_PAIRS = 1 << 18


@dataclass(frozen=True, eq=False)
class Matches:
    """n detections of K classes, matched at T overlaps with the M boxes of the ground truth.

    At threshold t a detection is right where `truth[t] >= 0`, wrong where it is -1, and neither where `ignored[t]`.

    Attributes:
        iou_thresholds: [T] float64.
        rows: [n] int64, rows of `Results`: by class, within one by descending score, equal scores by ascending image id
            and then in the table's order, as pycocotools ranks them. A class has at most `max_detections` in an image.
        image, labels: [n] int64, scores: [n] float64, of those rows.
        offsets: [K + 1] int64; class k has the places `offsets[k]:offsets[k + 1]`.
        truth: [T, n] int64, the matched row of `GroundTruth`, -1 for none.
        ignored: [T, n] bool: matched to a crowd, a difficult box or one outside the area range, or unmatched and itself
            outside the area range.
        counted: [M] bool, the boxes that should be found: neither crowd nor difficult, and inside the area range.
        truth_labels, truth_image: [M] int64, of the ground truth.
        images: N.
    """

    iou_thresholds: np.ndarray
    rows: np.ndarray
    image: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    offsets: np.ndarray
    truth: np.ndarray
    ignored: np.ndarray
    counted: np.ndarray
    truth_labels: np.ndarray
    truth_image: np.ndarray
    images: int

    def __len__(self) -> int:
        """n."""
        return len(self.rows)

    @property
    def right(self) -> np.ndarray:
        """[T, n] bool: true positives."""
        return (self.truth >= 0) & ~self.ignored

    @property
    def wrong(self) -> np.ndarray:
        """[T, n] bool: false positives."""
        return (self.truth < 0) & ~self.ignored

    @property
    def positives(self) -> np.ndarray:
        """[K] int64: boxes of each class that should be found."""
        return np.bincount(self.truth_labels[self.counted], minlength=len(self.offsets) - 1)


def match(
    truth: GroundTruth,
    detections: Results,
    *,
    iou_thresholds: Sequence[float] | np.ndarray = IOU_THRESHOLDS,
    area_range: tuple[float, float] = ALL_AREAS,
    max_detections: int = 100,
) -> Matches:
    """Match detections and boxes by COCO's rule (cocodataset.org/#detection-eval).

    In each image and class the detections choose by descending score. Each takes, among the counted boxes that are
    still free, the one with the largest overlap of at least the threshold (the later row of two equal ones); where
    there is none, an ignored box in the same way; a crowd is never used up, and with it the overlap is the share of the
    detection's own area.

    Args:
        iou_thresholds: [T], ascending or not; 1 means 1 - 1e-10, as in pycocotools.
        area_range: pixels², both ends included.
        max_detections: limit in an image and class; those of the highest scores count.

    Raises:
        RetinaError: a detection lies in an image or class that the ground truth does not have.
    """
    check_results(detections, truth)
    thresholds = np.asarray(iou_thresholds, np.float64)
    ignored_truth = ~truth.counted | (truth.areas < area_range[0]) | (truth.areas > area_range[1])
    order, rank = _ranked(truth, detections, max_detections)
    taken, detection_ignored = _greedy(truth, detections, order, rank, ignored_truth, thresholds)
    area = detections.boxes[order, 2] * detections.boxes[order, 3]
    outside = (area < area_range[0]) | (area > area_range[1])
    classes = np.arange(len(truth.class_names) + 1)
    return Matches(
        thresholds,
        rows=order,
        image=detections.image[order],
        labels=detections.labels[order],
        scores=detections.scores[order],
        offsets=np.searchsorted(detections.labels[order], classes),
        truth=taken,
        ignored=detection_ignored | ((taken < 0) & outside),
        counted=~ignored_truth,
        truth_labels=truth.labels,
        truth_image=truth.image,
        images=len(truth),
    )


def precision(matches: Matches) -> np.ndarray:
    """[T, 101, K] COCO's interpolated precision at `RECALLS`, -1 for a class without counted boxes."""
    table = np.full((len(matches.iou_thresholds), len(RECALLS), len(matches.offsets) - 1), -1.0)
    right, wrong, positives = matches.right, matches.wrong, matches.positives
    for k in np.flatnonzero(positives):
        places = slice(matches.offsets[k], matches.offsets[k + 1])
        for t in range(len(table)):
            table[t, :, k] = interpolated_precision(right[t, places], wrong[t, places], positives[k])
    return table


def interpolated_precision(right: np.ndarray, wrong: np.ndarray, positives: int) -> np.ndarray:
    """[101] precision of one class at `RECALLS`, from flags [n] in the order of the ranking; 0 beyond its recall."""
    hits, misses = np.cumsum(right, dtype=np.float64), np.cumsum(wrong, dtype=np.float64)
    raw = hits / (hits + misses + np.spacing(1))
    envelope = np.maximum.accumulate(raw[::-1])[::-1]
    places = np.searchsorted(hits / positives, RECALLS, side="left")
    return np.append(envelope, 0.0)[places]


def average_precision(table: np.ndarray) -> float:
    """The mean of what is defined in a part of `precision`'s table; -1 where nothing is."""
    defined = table[table > -1]
    return float(defined.mean()) if defined.size else -1.0


def id_order(image_ids: Sequence[Any]) -> np.ndarray:
    """[N] int64, the place of each image in ascending order of ids (of the table, where ids can't be compared):
    pycocotools visits images in that order, which decides between equal scores."""
    rows = range(len(image_ids))
    try:
        order = sorted(rows, key=lambda row: image_ids[row])
    except TypeError:  # Numbers and strings mixed.
        order = list(rows)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return place


def overlaps(detections: np.ndarray, boxes: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """[p] intersection over union of paired boxes [p, 4] (x, y, width, height), over the detection's area where `crowd`
    [p]; the same operations in the same order as pycocotools', so that no bit differs."""
    width = np.minimum(detections[:, 2] + detections[:, 0], boxes[:, 2] + boxes[:, 0]) - np.maximum(
        detections[:, 0], boxes[:, 0]
    )
    height = np.minimum(detections[:, 3] + detections[:, 1], boxes[:, 3] + boxes[:, 1]) - np.maximum(
        detections[:, 1], boxes[:, 1]
    )
    shared = np.where((width > 0) & (height > 0), width * height, 0.0)
    area = detections[:, 2] * detections[:, 3]
    union = np.where(crowd, area, area + boxes[:, 2] * boxes[:, 3] - shared)
    # Without an intersection the overlap is 0 even where the union is: pycocotools skips such pairs.
    return np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)


def pairs(keys: np.ndarray, box_keys: np.ndarray, limit: int = _PAIRS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield every detection with every box of the same key, for instance of the same image.

    Args:
        keys: [n] int64, of the detections.
        box_keys: [m] int64, of the boxes.
        limit: pairs in a piece, about; a detection's pairs are never split.

    Yields:
        [p] rows of `keys` ascending, and [p] rows of `box_keys` ascending within a detection. Detections without a box
        of their key appear nowhere.
    """
    by_key = np.argsort(box_keys, kind="stable")
    low = np.searchsorted(box_keys[by_key], keys, side="left")
    counts = np.searchsorted(box_keys[by_key], keys, side="right") - low
    ends = np.cumsum(counts)
    start = 0
    while start < len(keys):
        done = ends[start] - counts[start]
        stop = max(int(np.searchsorted(ends, done + limit, side="right")), start + 1)
        piece = counts[start:stop]
        if piece.any():
            first = np.cumsum(piece) - piece
            steps = np.arange(piece.sum()) + np.repeat(low[start:stop] - first, piece)
            yield np.repeat(np.arange(start, stop), piece), by_key[steps]
        start = stop


def best_of_each(group: np.ndarray, value: np.ndarray) -> np.ndarray:
    """[g] index of the largest value in each group, the first of equals.

    Args:
        group: [p] whole numbers from 0, equal numbers next to each other.
        value: [p].
    """
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    if not len(starts):
        return starts
    lengths = np.diff(np.append(starts, len(group)))
    largest = np.repeat(np.maximum.reduceat(value, starts), lengths)
    return np.minimum.reduceat(np.where(value == largest, np.arange(len(group)), len(group)), starts)


def _ranked(truth: GroundTruth, detections: Results, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `detections` in the order of `Matches.rows`, and [n] the rank of each in its image and class."""
    image = id_order(truth.image_ids)[detections.image]
    grouped = np.lexsort((np.arange(len(detections)), -detections.scores, image, detections.labels))
    labels, images = detections.labels[grouped], image[grouped]
    starts = np.flatnonzero(np.diff(labels, prepend=-1) | np.diff(images, prepend=-1))
    lengths = np.diff(np.append(starts, len(grouped)))
    rank = np.arange(len(grouped)) - np.repeat(starts, lengths)
    grouped, rank = grouped[rank < limit], rank[rank < limit]
    ranking = np.lexsort((rank, image[grouped], -detections.scores[grouped], detections.labels[grouped]))
    return grouped[ranking], rank[ranking]


def _greedy(
    truth: GroundTruth,
    detections: Results,
    order: np.ndarray,
    rank: np.ndarray,
    ignored_truth: np.ndarray,
    thresholds: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """[T, n] the row taken by each detection of `order` (-1: none), and whether that row is an ignored one.

    The r-th detections of all images and classes choose together: they can't compete for a box.
    """
    taken = np.full((len(thresholds), len(order)), -1, np.int64)
    ignored = np.zeros_like(taken, np.bool_)
    least = np.minimum(thresholds, 1 - 1e-10)
    detection, box, overlap = _near(truth, detections, order, least.min(initial=np.inf))
    by_rank = np.lexsort((box, detection, rank[detection]))
    detection, box, overlap = detection[by_rank], box[by_rank], overlap[by_rank]
    free = np.ones((len(thresholds), len(truth.boxes)), np.bool_)
    bounds = np.append(np.flatnonzero(np.diff(rank[detection], prepend=-1)), len(detection))
    for start, stop in itertools.pairwise(bounds):
        pair = slice(start, stop)
        _choose(detection[pair], box[pair], overlap[pair], least, truth.crowd, ignored_truth, free, taken, ignored)
    return taken, ignored


def _near(
    truth: GroundTruth, detections: Results, order: np.ndarray, least: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each pair of a detection (index in `order`) and a box (row of `truth`) of its image and class that overlap by at
    least `least`, and the overlap."""
    classes = len(truth.class_names)
    keys = detections.image[order] * classes + detections.labels[order]
    places, boxes, values = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
    for detection, box in pairs(keys, truth.image * classes + truth.labels):
        overlap = overlaps(detections.boxes[order[detection]], truth.boxes[box], truth.crowd[box])
        near = overlap >= least
        places.append(detection[near])
        boxes.append(box[near])
        values.append(overlap[near])
    return np.concatenate(places), np.concatenate(boxes), np.concatenate(values)


def _choose(
    detection: np.ndarray,
    box: np.ndarray,
    overlap: np.ndarray,
    least: np.ndarray,
    crowd: np.ndarray,
    ignored_truth: np.ndarray,
    free: np.ndarray,
    taken: np.ndarray,
    ignored: np.ndarray,
) -> None:
    """Choose a box for each detection of the p pairs, ordered by detection and box. Fills the last three arguments."""
    first = np.flatnonzero(np.diff(detection, prepend=-1))
    lengths = np.diff(np.append(first, len(detection)))
    chooser = detection[first]
    eligible = (overlap >= least[:, None]) & (free[:, box] | crowd[box])
    undecided = np.ones((len(least), len(chooser)), np.bool_)
    for is_ignored in (False, True):
        candidate = eligible & (ignored_truth[box] == is_ignored) & np.repeat(undecided, lengths, axis=1)
        value = np.where(candidate, overlap, -1.0)
        best = np.repeat(np.maximum.reduceat(value, first, axis=1), lengths, axis=1)
        place = np.where(candidate & (value == best), np.arange(len(box)), -1)
        chosen = np.maximum.reduceat(place, first, axis=1)
        t, which = np.nonzero(chosen >= 0)
        rows = box[chosen[t, which]]
        taken[t, chooser[which]] = rows
        ignored[t, chooser[which]] = is_ignored
        free[t, rows] = False
        undecided[t, which] = False
