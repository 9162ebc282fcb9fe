"""The images and mistakes to look at first: those of the lowest F1, and those of the highest scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from retina.data.ground_truth import Results
from retina.errors import RetinaError
from retina.evaluation.curves import threshold_index
from retina.evaluation.matching import Matches
from retina.evaluation.tide import KINDS, Tide


class ImageScore(NamedTuple):
    """Hits and mistakes of one image at the operating threshold.

    `image` is its row; `right` and `wrong` count detections, `missed` boxes; `f1` is in [0, 1], None for an image
    without boxes and detections.
    """

    image: int
    f1: float | None
    right: int
    wrong: int
    missed: int


class Mistake(NamedTuple):
    """A wrong detection: its `row` in the `Results`, its `kind` (see `retina.evaluation.tide`), its `score`, the row
    of its `image`, and the row of the `box` it belongs to, None for Bkg."""

    row: int
    kind: str
    score: float
    image: int
    box: int | None


def worst_images(
    matches: Matches, thresholds: float | Sequence[float], *, iou: float = 0.5, limit: int | None = None
) -> list[ImageScore]:
    """Return the images by ascending F1; of equals the one with more mistakes first, then in the table's order.

    Images without boxes and detections come last.

    Args:
        thresholds: detections with at least this score count; one number, or [K] one for each class.
        limit: number of images, all by default.

    Raises:
        RetinaError: the matches were not made at this overlap, the number of thresholds is not K, or a negative limit.
    """
    t = threshold_index(matches, iou)
    classes = len(matches.offsets) - 1
    least = np.asarray(thresholds, np.float64)
    if least.shape not in ((), (classes,)):
        raise RetinaError(f"thresholds: expected one number or {classes}, got {list(least.shape)}; give one a class")
    if limit is not None and limit < 0:
        raise RetinaError(f"limit: expected at least 0, got {limit}; leave it out for all images")
    counted = matches.scores >= np.broadcast_to(least, (classes,))[matches.labels]
    right = np.bincount(matches.image[counted & matches.right[t]], minlength=matches.images)
    wrong = np.bincount(matches.image[counted & matches.wrong[t]], minlength=matches.images)
    missed = np.bincount(matches.truth_image[matches.counted], minlength=matches.images) - right
    total = 2 * right + wrong + missed
    f1 = np.divide(2.0 * right, total, out=np.full(matches.images, np.inf), where=total > 0)
    order = np.lexsort((-(wrong + missed), f1))[:limit]
    return [
        ImageScore(int(row), float(f1[row]) if total[row] else None, int(right[row]), int(wrong[row]), int(missed[row]))
        for row in order
    ]


def most_confident_mistakes(
    errors: Tide, detections: Results, limit: int, *, kinds: Sequence[str] = KINDS
) -> list[Mistake]:
    """Return the wrong detections of the given kinds by descending score, equal scores in the table's order.

    Raises:
        RetinaError: an unknown kind, a negative limit, or errors of other results.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise RetinaError(f"kinds: expected some of {', '.join(KINDS)}, got {unknown[0]!r}; a Miss has no detection")
    if limit < 0:
        raise RetinaError(f"limit: expected at least 0, got {limit}; give the number of mistakes to show")
    if len(errors.kinds) != len(detections):
        raise RetinaError(
            f"{detections.name}: expected the {len(errors.kinds)} detections that the errors were found in, "
            f"got {len(detections)}; give the same results"
        )
    rows = np.flatnonzero(np.isin(errors.kinds, [KINDS.index(kind) for kind in kinds]))
    rows = rows[np.argsort(-detections.scores[rows], kind="stable")][:limit]
    return [
        Mistake(
            int(row),
            KINDS[errors.kinds[row]],
            float(detections.scores[row]),
            int(detections.image[row]),
            int(errors.boxes[row]) if errors.boxes[row] >= 0 else None,
        )
        for row in rows
    ]
