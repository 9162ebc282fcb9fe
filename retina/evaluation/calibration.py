"""Does a score of 0.8 mean right four times out of five? (Guo et al. 2017, arXiv:1706.04599, section 2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retina.errors import RetinaError
from retina.evaluation.curves import threshold_index
from retina.evaluation.matching import Matches


@dataclass(frozen=True, eq=False)
class Reliability:
    """A reliability diagram: detections in B bins of equal width by score.

    A bin holds its lower edge and not its upper one, the last both. Boxes that nothing found play no part: this is
    about the scores given, not about what is missing.

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


def reliability(matches: Matches, label: int | None = None, *, iou: float = 0.5, bins: int = 10) -> Reliability:
    """How far the scores of one class, or of all together (None), are from the share that is right.

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
