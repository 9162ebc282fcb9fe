"""The confusion matrix of a detector at one score threshold: which class is taken for which."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from retina.data.ground_truth import GroundTruth, Results, check_results
from retina.errors import RetinaError
from retina.evaluation.matching import best_of_each, overlaps, pairs

BACKGROUND = "background"


@dataclass(frozen=True, eq=False)
class Confusion:
    """Confusion matrix of boxes by their class and the class given to them.

    Attributes:
        matrix: [K + 1, K + 1] int64; rows are the class of the box, columns the class given to it. The last column
            holds the boxes that were not found, the last row the detections where there is no box; the last cell is 0.
        names: [K + 1] the class names and "background".
        score_threshold, iou: as given.
    """

    matrix: np.ndarray
    names: tuple[str, ...]
    score_threshold: float
    iou: float

    @property
    def shares(self) -> np.ndarray:
        """[K + 1, K + 1] each row divided by its sum, NaN in an empty row: what becomes of the boxes of a class."""
        matrix = self.matrix.astype(np.float64)
        total = matrix.sum(axis=1, keepdims=True)
        return np.divide(matrix, total, out=np.full(matrix.shape, np.nan), where=total > 0)


def confusion(truth: GroundTruth, detections: Results, *, score_threshold: float, iou: float = 0.5) -> Confusion:
    """Count boxes by their class and the class they were given.

    In each image the detections of at least `score_threshold`, whatever their class, choose by descending score (equal
    scores in the table's order). Each takes the box, of any class, with the largest overlap of at least `iou` among
    those still free (the first of equals). A detection left without a box is background taken for its class, unless
    it lies on a crowd (by the share of its own area) or on a difficult box, of any class, with at least `iou`: then it
    is not counted at all. Crowds and difficult boxes are no rows either.

    Since the class plays no part in the choice, the diagonal is not COCO's number of true positives: a detection of the
    wrong class and a higher score takes the box first.

    Raises:
        RetinaError: `iou` is not in (0, 1], or a detection lies in an image or class that the ground truth does not
            have.
    """
    if not 0 < iou <= 1:
        raise RetinaError(f"iou: expected a number above 0 and up to 1, got {iou:g}; 0.5 is usual")
    check_results(detections, truth)
    order = np.lexsort((-detections.scores, detections.image))  # Stable: equal scores keep the table's order.
    order = order[detections.scores[order] >= score_threshold]
    box, excused = _choose(truth, detections, order, iou)
    hit = box >= 0
    missed = truth.counted.copy()
    missed[box[hit]] = False
    spurious = ~hit & ~excused
    background = len(truth.class_names)
    rows = np.concatenate((truth.labels[box[hit]], truth.labels[missed], np.full(spurious.sum(), background, np.int64)))
    labels = detections.labels[order]
    columns = np.concatenate((labels[hit], np.full(missed.sum(), background, np.int64), labels[spurious]))
    side = background + 1
    matrix = np.bincount(rows * side + columns, minlength=side * side).reshape(side, side)
    return Confusion(matrix, (*truth.class_names, BACKGROUND), score_threshold, iou)


def _choose(truth: GroundTruth, detections: Results, order: np.ndarray, iou: float) -> tuple[np.ndarray, np.ndarray]:
    """[n] row of the box that each detection of `order` takes (-1: none), and [n] whether it lies on an ignored box."""
    counted, excused = truth.counted, np.zeros(len(order), np.bool_)
    near: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for place, box in pairs(detections.image[order], truth.image):
        overlap = overlaps(detections.boxes[order[place]], truth.boxes[box], truth.crowd[box])
        close = overlap >= iou
        excused[place[close & ~counted[box]]] = True
        close &= counted[box]
        near.append((place[close], box[close], overlap[close]))
    chosen = np.full(len(order), -1, np.int64)
    if not near:
        return chosen, excused
    place, box, overlap = (np.concatenate(columns) for columns in zip(*near, strict=True))
    image = detections.image[order]
    rank = np.arange(len(order)) - np.searchsorted(image, image)
    by_rank = np.argsort(rank[place], kind="stable")
    place, box, overlap = place[by_rank], box[by_rank], overlap[by_rank]
    bounds = np.append(np.flatnonzero(np.diff(rank[place], prepend=-1)), len(place))
    free = np.ones(len(truth.boxes), np.bool_)
    # The r-th detections of all images choose together: they can't compete for a box.
    for start, stop in pairwise(bounds):
        open_pairs = start + np.flatnonzero(free[box[start:stop]])
        taken = open_pairs[best_of_each(place[open_pairs], overlap[open_pairs])]
        chosen[place[taken]] = box[taken]
        free[box[taken]] = False
    return chosen, excused
