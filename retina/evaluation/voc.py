"""Pascal VOC's average precision (Everingham et al., IJCV 2010 and 2015; the development kit's VOCevaldet and VOCap).

The same detections give different numbers under different conventions, so `VocMetrics.conventions` names each in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from retina.data.ground_truth import GroundTruth, Results, check_results
from retina.errors import RetinaError
from retina.evaluation.matching import best_of_each, overlaps, pairs

Protocol = Literal["voc07", "voc10"]
Difficult = Literal["ignore", "use"]

# Multiples of 0.1, of which three lie above their tenth (0.30000000000000004), so that a recall of exactly 3/10 falls
# short of it. The published figures were made that way; `conventions` says so.
_ELEVEN = np.arange(11) * 0.1


@dataclass(frozen=True)
class VocMetrics:
    """VOC's average precision, and the rules it follows.

    Attributes:
        protocol: "voc07" or "voc10".
        conventions: the rules of the figures, in words.
        figures: for each overlap, written as by `f"{iou:g}"`, `mAP`, a fraction in [0, 1], and `per_class`: for each
            class name `AP` and `boxes`, the number of boxes that count. -1 where no box defines a figure; such classes
            are left out of the mean.
    """

    protocol: Protocol
    conventions: dict[str, str]
    figures: dict[str, dict[str, Any]]


def evaluate_voc(
    truth: GroundTruth,
    detections: Results,
    *,
    protocol: Protocol,
    iou: Sequence[float] = (0.5,),
    difficult: Difficult = "ignore",
) -> VocMetrics:
    """Return average precision by the rules of the VOC development kit, at one or more overlaps.

    The detections of a class, over all images, are taken by descending score (equal scores in the table's order). Each
    considers one box only: that of its image and class which it overlaps most (the first of equals), already found or
    not. From the threshold on it is right if the box has not been found yet, wrong if it has, and neither if the box
    is difficult; below the threshold it is wrong. The number of detections is not limited.

    Boxes are continuous: where a file counts inclusive pixels, its reader turns xmin..xmax into [xmin - 1, xmax], and
    the plain overlap then is the development kit's, pixel for pixel.

    Args:
        protocol: "voc07", the mean of the largest precision at recall 0, 0.1, ... 1; or "voc10" (used from 2010 on),
            the area under the precision made monotone.
        iou: thresholds in (0, 1]; the development kit's is 0.5.
        difficult: "use" counts difficult boxes like any other. Crowds are treated as difficult in either case.

    Raises:
        RetinaError: an unknown protocol or difficult, no or bad thresholds, two that are written alike, or a
            detection in an image or class that the ground truth does not have.
    """
    _check(protocol, difficult, iou)
    check_results(detections, truth)
    counted = truth.counted if difficult == "ignore" else ~truth.crowd
    order = np.lexsort((-detections.scores, detections.labels))  # Stable: equal scores keep the table's order.
    offsets = np.searchsorted(detections.labels[order], np.arange(len(truth.class_names) + 1))
    box, overlap = _most_overlapped(truth, detections, order)
    positives = np.bincount(truth.labels[counted], minlength=len(truth.class_names))
    figures = {}
    for threshold in iou:
        right, wrong = _judge(box, overlap, counted, threshold)
        figures[f"{threshold:g}"] = _figures(truth.class_names, right, wrong, offsets, positives, protocol)
    return VocMetrics(protocol, _conventions(protocol, difficult), figures)


def _check(protocol: str, difficult: str, iou: Sequence[float]) -> None:
    for name, value, allowed in (
        ("protocol", protocol, ("voc07", "voc10")),
        ("difficult", difficult, ("ignore", "use")),
    ):
        if value not in allowed:
            raise RetinaError(f"{name}: expected {' or '.join(allowed)}, got {value!r}; give one of these")
    written = [f"{threshold:g}" for threshold in iou]
    if not written or not all(0 < threshold <= 1 for threshold in iou) or len(set(written)) < len(written):
        raise RetinaError(
            f"iou: expected one or more different thresholds above 0 and up to 1, got {list(iou)}; VOC's is [0.5]"
        )


def _most_overlapped(truth: GroundTruth, detections: Results, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[n] the row of the box that each detection of `order` overlaps most (-1: none in its image), and the overlap."""
    classes = len(truth.class_names)
    box = np.full(len(order), -1, np.int64)
    overlap = np.zeros(len(order))
    keys = (detections.image * classes + detections.labels)[order]
    for place, row in pairs(keys, truth.image * classes + truth.labels):
        value = overlaps(detections.boxes[order[place]], truth.boxes[row], np.zeros(len(row), np.bool_))
        largest = best_of_each(place, value)
        box[place[largest]] = row[largest]
        overlap[place[largest]] = value[largest]
    return box, overlap


def _judge(
    box: np.ndarray, overlap: np.ndarray, counted: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """[n] right and [n] wrong, of detections in the order of their ranking; neither on a box that is not counted."""
    near = np.flatnonzero((box >= 0) & (overlap >= threshold))
    on_counted = counted[box[near]]
    wrong = np.ones(len(box), np.bool_)
    wrong[near[~on_counted]] = False
    near = near[on_counted]
    # Only detections of one class share a box, so the first place is the one with the highest score.
    _, first = np.unique(box[near], return_index=True)
    right = np.zeros(len(box), np.bool_)
    right[near[first]] = True
    return right, wrong & ~right


def _figures(
    names: Sequence[str],
    right: np.ndarray,
    wrong: np.ndarray,
    offsets: np.ndarray,
    positives: np.ndarray,
    protocol: Protocol,
) -> dict[str, Any]:
    per_class = {}
    for k, name in enumerate(names):
        places = slice(offsets[k], offsets[k + 1])
        figure = _average_precision(right[places], wrong[places], int(positives[k]), protocol) if positives[k] else -1.0
        per_class[name] = {"AP": figure, "boxes": int(positives[k])}
    defined = [figures["AP"] for figures in per_class.values() if figures["boxes"]]
    return {"mAP": float(np.mean(defined)) if defined else -1.0, "per_class": per_class}


def _average_precision(right: np.ndarray, wrong: np.ndarray, positives: int, protocol: Protocol) -> float:
    """AP of one class, from flags [n] in the order of the ranking; detections with neither flag leave no trace."""
    judged = right | wrong
    hits = np.cumsum(right[judged])
    recall = hits / positives
    precision = hits / np.arange(1, len(hits) + 1)
    if protocol == "voc07":
        envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
        return float(envelope[np.searchsorted(recall, _ELEVEN, side="left")].mean())
    recall = np.concatenate(([0.0], recall, [1.0]))
    precision = np.concatenate(([0.0], precision, [0.0]))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall) * envelope[1:]))


def _conventions(protocol: Protocol, difficult: Difficult) -> dict[str, str]:
    return {
        "average_precision": (
            "mean of the largest precision at the 11 recalls 0, 0.1, ... 1 (VOC 2007); a recall of exactly 3/10, 6/10 "
            "or 7/10 falls short of its point by rounding, as in the usual Python ports of the development kit"
            if protocol == "voc07"
            else "area under the precision-recall curve made monotone, every point (VOC 2010 and later)"
        ),
        "overlap": "intersection over union of continuous boxes, a hit from the threshold on (>=); inclusive pixels "
        "of VOC's files are converted when read",
        "matching": "each detection looks at the one box of its class it overlaps most, even if that is found already; "
        "a second detection of a box is wrong",
        "difficult": (
            "difficult boxes don't count, detections of them are neither right nor wrong"
            if difficult == "ignore"
            else "difficult boxes count like any other"
        ),
        "crowd": "crowds don't count, detections that overlap one most are neither right nor wrong",
        "limit": "no limit on the number of detections in an image",
        "ties": "equal scores keep the order in which the detections were given",
        "mean": "over the classes with at least one box that counts; the others have AP -1 and are left out",
    }
