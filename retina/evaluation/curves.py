"""Precision, recall and F1 along the score, the threshold that a user should set, and the calibration of scores.

Calibration: does a score of 0.8 mean right four times out of five? (Guo et al. 2017, arXiv:1706.04599, section 2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retina.errors import RetinaError
from retina.evaluation.matching import Matches


@dataclass(frozen=True, eq=False)
class PrecisionRecall:
    """Recall and precision after each of the p judged detections of a class, as ranked and counted for AP.

    Attributes:
        recall, precision: [p] fractions in [0, 1]; recall never falls.
        scores: [p] descending.
    """

    recall: np.ndarray
    precision: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True, eq=False)
class ConfidenceCurve:
    """Precision, recall and F1 after dropping detections below a score, for each of the q different scores.

    A threshold can't separate equal scores, so they share a point.

    Attributes:
        thresholds: [q] descending; detections with at least this score are kept.
        precision, recall, f1: [q] fractions in [0, 1].
    """

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


@dataclass(frozen=True)
class OperatingPoint:
    """The threshold of the largest F1; of several, the highest.

    Attributes:
        threshold: keep detections with at least this score; None if no threshold finds a box.
        precision: None if no threshold finds a box.
        recall, f1: 0 if no threshold finds a box; None without boxes to find.
    """

    threshold: float | None
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class BestF1:
    """The operating points of `best_f1`.

    Attributes:
        overall: one threshold for all classes, their detections and boxes taken together (micro average).
        per_class: [K], one threshold for each class.
    """

    overall: OperatingPoint
    per_class: tuple[OperatingPoint, ...]


@dataclass(frozen=True, eq=False)
class Reliability:
    """A reliability diagram: detections in B bins of equal width by score.

    A bin holds its lower edge and not its upper one, the last both. Missed boxes play no part: this is about
    the scores given, not about what is missing.

    Attributes:
        edges: [B + 1] from 0 to 1.
        count: [B] int64, detections that are right or wrong; those that are neither are left out.
        score: [B] their mean score, NaN in an empty bin.
        precision: [B] the share that is right, NaN in an empty bin.
        expected_error: the mean of |precision - score| over the detections (ECE); None without detections.
        maximum_error: the largest |precision - score| of a bin that is not empty (MCE); None without detections.
    """

    edges: np.ndarray
    count: np.ndarray
    score: np.ndarray
    precision: np.ndarray
    expected_error: float | None
    maximum_error: float | None


def threshold_index(matches: Matches, iou: float) -> int:
    """Return the index of an overlap in `matches.iou_thresholds`, whatever the rounding of its last digits.

    Raises:
        RetinaError: the matches were not made at this overlap.
    """
    places = np.flatnonzero(np.isclose(matches.iou_thresholds, iou, rtol=0, atol=1e-9))
    if not len(places):
        made = ", ".join(f"{threshold:g}" for threshold in matches.iou_thresholds)
        raise RetinaError(f"iou: expected one of the overlaps that were matched ({made}), got {iou:g}; choose one")
    return int(places[0])


def precision_recall(matches: Matches, label: int, *, iou: float = 0.5) -> PrecisionRecall | None:
    """Return the curve under which AP is measured, of one class; detections neither right nor wrong leave no trace.

    Returns:
        None for a class without boxes to find: it has no recall.

    Raises:
        RetinaError: the matches were not made at this overlap.
    """
    t = threshold_index(matches, iou)
    positives = matches.positives[label]
    if not positives:
        return None
    right, scores = _judged(matches, t, label)
    hits = np.cumsum(right)
    return PrecisionRecall(hits / positives, hits / np.arange(1, len(hits) + 1), scores)


def confidence_curve(matches: Matches, label: int | None = None, *, iou: float = 0.5) -> ConfidenceCurve | None:
    """Return precision, recall and F1 by score threshold, of one class or of all together (None).

    Returns:
        None without boxes to find: there is no recall.

    Raises:
        RetinaError: the matches were not made at this overlap.
    """
    t = threshold_index(matches, iou)
    positives = int(matches.positives.sum() if label is None else matches.positives[label])
    if not positives:
        return None
    right, scores = _judged(matches, t, label)
    if label is None:
        order = np.argsort(-scores, kind="stable")
        right, scores = right[order], scores[order]
    # The last of equal scores: from there on the threshold keeps all of them.
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)[: len(scores)])
    hits, counts = np.cumsum(right)[last], last + 1
    return ConfidenceCurve(scores[last], hits / counts, hits / positives, 2 * hits / (counts + positives))


def best_f1(matches: Matches, *, iou: float = 0.5) -> BestF1:
    """Return the score threshold with the largest F1, for all classes together and for each.

    The figure is the best on these very images; on new ones the same threshold does somewhat worse.

    Raises:
        RetinaError: the matches were not made at this overlap.
    """
    classes = range(len(matches.offsets) - 1)
    return BestF1(
        overall=_best(confidence_curve(matches, iou=iou)),
        per_class=tuple(_best(confidence_curve(matches, label, iou=iou)) for label in classes),
    )


def reliability(matches: Matches, label: int | None = None, *, iou: float = 0.5, bins: int = 10) -> Reliability:
    """Return how far scores are from the share that is right, for one class or for all together (None).

    Raises:
        RetinaError: the matches were not made at this overlap, there is less than one bin, or a score is outside
            [0, 1] and so no probability.
    """
    t = threshold_index(matches, iou)
    if bins < 1:
        raise RetinaError(f"bins: expected at least 1, got {bins}; 10 to 15 are usual")
    outside = (matches.scores < 0) | (matches.scores > 1)
    if outside.any():
        raise RetinaError(
            f"calibration: expected scores from 0 to 1, got {matches.scores[np.argmax(outside)]:g} in detection "
            f"{matches.rows[np.argmax(outside)]}; give probabilities, for instance the sigmoid of the logits"
        )
    places = slice(None) if label is None else slice(matches.offsets[label], matches.offsets[label + 1])
    judged = ~matches.ignored[t, places]
    return _diagram(matches.scores[places][judged], matches.right[t, places][judged], bins)


def _best(curve: ConfidenceCurve | None) -> OperatingPoint:
    if curve is None:
        return OperatingPoint(None, None, None, None)
    if not curve.f1.any():
        return OperatingPoint(None, None, 0.0, 0.0)
    place = int(np.argmax(curve.f1))
    return OperatingPoint(
        float(curve.thresholds[place]),
        float(curve.precision[place]),
        float(curve.recall[place]),
        float(curve.f1[place]),
    )


def _judged(matches: Matches, t: int, label: int | None) -> tuple[np.ndarray, np.ndarray]:
    """[p] right and [p] scores of the detections that are right or wrong, in the order of `matches`."""
    places = slice(None) if label is None else slice(matches.offsets[label], matches.offsets[label + 1])
    judged = ~matches.ignored[t, places]
    return matches.right[t, places][judged], matches.scores[places][judged]


def _diagram(scores: np.ndarray, right: np.ndarray, bins: int) -> Reliability:
    # Quotients, not multiples of 1 / bins, are the numbers that a score such as 0.3 is written as.
    edges = np.arange(bins + 1) / bins
    place = np.minimum(np.searchsorted(edges, scores, side="right") - 1, bins - 1)
    count = np.bincount(place, minlength=bins)
    empty = np.full(bins, np.nan)
    score = np.divide(np.bincount(place, scores, bins), count, out=empty.copy(), where=count > 0)
    precision = np.divide(np.bincount(place, right, bins), count, out=empty.copy(), where=count > 0)
    if not len(scores):
        return Reliability(edges, count, score, precision, None, None)
    gap = np.abs(precision - score)
    expected = float(np.nansum(gap * count) / len(scores))
    return Reliability(edges, count, score, precision, expected, float(np.nanmax(gap)))
