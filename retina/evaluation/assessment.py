"""The whole answer to "how good is it, how sure are we, what to improve": figures, intervals and reasons together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retina import config
from retina.data.ground_truth import GroundTruth, Results
from retina.evaluation.bootstrap import NAMES, Method, bootstrap, interval, observed, resampled
from retina.evaluation.coco import Metrics, evaluate_as
from retina.evaluation.confusion import Confusion, confusion
from retina.evaluation.curves import BestF1, Reliability, best_f1, reliability
from retina.evaluation.matching import Matches, match
from retina.evaluation.tide import Tide, tide

IOU = 0.5
Interval = tuple[float, float]


@dataclass(frozen=True)
class Intervals:
    """Intervals from resampled images (see `retina.evaluation.bootstrap`).

    Attributes:
        level: of confidence, in (0, 1).
        method: of `retina.evaluation.bootstrap.interval`.
        replicates, seed: of the bootstrap.
        metrics: low and high of `AP AP50 AP75`; left out where nothing defines them, or boxes lie in one image only.
        per_class: the same for each class name.
    """

    level: float
    method: Method
    replicates: int
    seed: int
    metrics: dict[str, Interval]
    per_class: dict[str, dict[str, Interval]]


@dataclass(frozen=True, eq=False)
class Assessment:
    """COCO's figures, their intervals and what keeps them down. All but `metrics` and `intervals` are at IoU 0.5.

    Attributes:
        metrics: COCO's figures.
        intervals: None where none were asked for.
        errors: TIDE's kinds of error and their costs.
        operating: the score thresholds of the largest F1.
        calibration: None where scores lie outside [0, 1] and so are no probabilities.
        confusion: at the overall threshold of `operating`, or at 0.5 where no threshold finds a box.
        matches: at COCO's ten overlaps, for curves.
    """

    metrics: Metrics
    intervals: Intervals | None
    errors: Tide
    operating: BestF1
    calibration: Reliability | None
    confusion: Confusion
    matches: Matches


def assess(
    truth: GroundTruth,
    detections: Results,
    settings: config.Evaluation,
    *,
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Assessment:
    """Return COCO's figures with their intervals, and what keeps them down.

    Args:
        replicates: of the bootstrap; 0 for no intervals.

    Raises:
        RetinaError: the detections don't fit the ground truth, or a bad `replicates`, `seed` or `level`.
    """
    # First, since it checks the settings.
    metrics = evaluate_as(settings, truth, detections)
    limit = settings.max_detections[-1]
    matches = match(truth, detections, max_detections=limit)
    operating = best_f1(matches, iou=IOU)
    threshold = operating.overall.threshold
    return Assessment(
        metrics=metrics,
        intervals=intervals(matches, truth.class_names, replicates, seed, level) if replicates else None,
        errors=tide(truth, detections, iou=IOU, max_detections=limit),
        operating=operating,
        calibration=_calibration(matches),
        confusion=confusion(truth, detections, score_threshold=IOU if threshold is None else threshold, iou=IOU),
        matches=matches,
    )


def intervals(
    matches: Matches, class_names: tuple[str, ...], replicates: int, seed: int = 0, level: float = 0.95
) -> Intervals:
    """Bootstrap over images, of the means and of each class: bias-corrected percentiles.

    Plain percentiles of mean AP hold the true value too seldom, because AP of few images is too high and that of their
    resamples is higher still (`scripts/reproduce/interval_coverage.py` has the figures of both).

    Raises:
        RetinaError: a bad `replicates`, `seed` or `level`.
    """
    method: Method = "bias-corrected"
    figures, plain = bootstrap(matches, replicates=replicates, seed=seed), observed(matches)
    several = resampled(matches)
    overall = {name: interval(figures[name], level, method=method, estimate=plain[name][0]) for name in NAMES}
    each = {
        name: interval(figures.per_class[name], level, method=method, estimate=plain.per_class[name][0])
        for name in NAMES
    }
    return Intervals(
        level,
        method,
        replicates,
        seed,
        {name: _pair(ends) for name, ends in overall.items() if several[0] and not np.isnan(ends[0])},
        {
            label: {
                name: _pair(ends[:, k]) for name, ends in each.items() if several[1 + k] and not np.isnan(ends[0, k])
            }
            for k, label in enumerate(class_names)
        },
    )


def _pair(ends: np.ndarray) -> Interval:
    return float(ends[0]), float(ends[1])


def _calibration(matches: Matches) -> Reliability | None:
    if ((matches.scores < 0) | (matches.scores > 1)).any():
        return None
    return reliability(matches, iou=IOU, bins=10)
