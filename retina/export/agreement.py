"""How far two lists of detections of the same images agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retina.inference import Detections

MATCH_IOU = 0.9


@dataclass(frozen=True)
class Agreement:
    """Pairs matched by class and IoU ≥ 0.9, and what stays unmatched.

    Attributes:
        matched: pairs.
        box_shift: largest difference of a coordinate over the pairs, pixels of the image.
        score_difference: largest over the pairs.
        unmatched_checkpoint, unmatched_export: detections of one side without a partner.
        worst: the image that disagrees most: by its unmatched detections, then by its largest shift; -1 for none.
    """

    matched: int
    box_shift: float
    score_difference: float
    unmatched_checkpoint: int
    unmatched_export: int
    worst: int

    @property
    def unmatched(self) -> int:
        return self.unmatched_checkpoint + self.unmatched_export

    @property
    def unmatched_share(self) -> float:
        """Of the detections of both sides."""
        total = 2 * self.matched + self.unmatched
        return self.unmatched / total if total else 0.0


def agreement(checkpoint: Sequence[Detections], export: Sequence[Detections]) -> Agreement:
    """Compares image by image.

    Going down the checkpoint's scores, each detection takes the export's free one of its class with the largest IoU, if
    that is at least 0.9.
    """
    matched, shift, score, missing, surplus = 0, 0.0, 0.0, 0, 0
    worst, worst_key = -1, (0, 0.0)
    for image, (ours, theirs) in enumerate(zip(checkpoint, export, strict=True)):
        pairs = _pairs(ours, theirs)
        rows, columns = pairs.T
        here = float(np.abs(_boxes(ours)[rows] - _boxes(theirs)[columns]).max(initial=0.0))
        gap = np.abs(ours.scores.astype(np.float64)[rows] - theirs.scores.astype(np.float64)[columns])
        alone = len(ours) + len(theirs) - 2 * len(pairs)
        matched, shift, score = matched + len(pairs), max(shift, here), max(score, float(gap.max(initial=0.0)))
        missing, surplus = missing + len(ours) - len(pairs), surplus + len(theirs) - len(pairs)
        if (alone, here) > worst_key:
            worst, worst_key = image, (alone, here)
    return Agreement(matched, shift, score, missing, surplus, worst)


def _pairs(ours: Detections, theirs: Detections) -> np.ndarray:
    """[P, 2] rows of both."""
    overlaps = _iou(_boxes(ours), _boxes(theirs))
    # A box that is not finite overlaps nothing.
    overlaps = np.where(ours.labels[:, None] == theirs.labels[None], np.nan_to_num(overlaps), -1.0)
    pairs = []
    for row in np.argsort(-ours.scores, kind="stable"):
        column = int(np.argmax(overlaps[row])) if overlaps.shape[1] else 0
        if overlaps.shape[1] and overlaps[row, column] >= MATCH_IOU:
            pairs.append((int(row), column))
            overlaps[:, column] = -1.0
    return np.array(pairs, np.int64).reshape(-1, 2)


def _boxes(detections: Detections) -> np.ndarray:
    return np.asarray(detections.boxes, np.float64).reshape(-1, 4)


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[n, m] of [n, 4] and [m, 4]; equal boxes without area overlap wholly."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low, 0.0, None).prod(-1)
    areas = [np.clip(x[:, 2:] - x[:, :2], 0.0, None).prod(-1) for x in (a, b)]
    union = areas[0][:, None] + areas[1][None] - shared
    same = (a[:, None] == b[None]).all(-1)
    return np.where(same, 1.0, shared / np.where(union > 0, union, 1.0))
