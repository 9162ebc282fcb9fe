"""The curves of how good a detector is: precision over recall and over the threshold, and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from retina.drawing.charts import Chart, Series, lines
from retina.evaluation.curves import confidence_curve, precision_recall
from retina.evaluation.matching import RECALLS, Matches, interpolated_precision
from retina.palette import class_hex

_IOUS = (0.5, 0.6, 0.7, 0.8, 0.9)
# More curves than this can't be told apart.
_MOST_CLASSES = 7
_UNIT = (0.0, 1.0)


def quality_charts(matches: Matches, class_names: Sequence[str], figures: dict[str, Any]) -> list[Chart]:
    """Precision–recall of the means and of classes, and precision, recall and F1 along the threshold.

    Args:
        figures: see `retina.evaluation.document`.
    """
    charts = [
        _of_means(matches),
        _of_classes(matches, class_names, figures["per_class"]),
        _of_thresholds(matches),
    ]
    if figures.get("calibration"):
        charts.append(calibration_chart(figures["calibration"]))
    return [chart for chart in charts if chart.curves]


def _of_means(matches: Matches) -> Chart:
    right, wrong, positives = matches.right, matches.wrong, matches.positives
    defined = np.flatnonzero(positives)
    series = []
    for iou in _IOUS:
        t = int(np.argmin(np.abs(matches.iou_thresholds - iou)))
        rows = []
        for k in defined:
            places = slice(matches.offsets[k], matches.offsets[k + 1])
            rows.append(interpolated_precision(right[t, places], wrong[t, places], int(positives[k])))
        if rows:
            series.append(Series(f"IoU {iou:g}", RECALLS.tolist(), np.mean(rows, axis=0).tolist()))
    return lines("precision over recall, mean of the classes", series, x_label="recall", x_range=_UNIT, y_range=_UNIT)


def _of_classes(matches: Matches, class_names: Sequence[str], per_class: dict[str, dict[str, float]]) -> Chart:
    """All classes where they are few, else those of the lowest AP50."""
    defined = np.flatnonzero(matches.positives).tolist()
    title = "precision over recall by class at IoU 0.5"
    if len(defined) > _MOST_CLASSES:
        defined = sorted(defined, key=lambda k: per_class[class_names[k]]["AP50"])[:_MOST_CLASSES]
        title += f", the {_MOST_CLASSES} worst"
    series = []
    for k in defined:
        curve = precision_recall(matches, k, iou=0.5)
        if curve is not None and len(curve.recall):
            envelope = np.maximum.accumulate(curve.precision[::-1])[::-1]
            at = np.searchsorted(curve.recall, RECALLS, side="left")
            inside = at < len(envelope)
            series.append(
                Series(
                    class_names[k],
                    RECALLS[inside].tolist(),
                    envelope[at[inside]].tolist(),
                    colour=class_hex(k),
                    cased=True,
                )
            )
    return lines(title, series, x_label="recall", x_range=_UNIT, y_range=_UNIT)


def _of_thresholds(matches: Matches) -> Chart:
    curve = confidence_curve(matches, iou=0.5)
    series = []
    if curve is not None and len(curve.thresholds):
        # A hundred places along the score: a chart has no more, and thinning by count would crowd the low scores.
        grid = np.linspace(max(float(curve.thresholds[-1]), 0.0), float(curve.thresholds[0]), 101)
        at = np.searchsorted(-curve.thresholds, -grid, side="right") - 1
        at = np.clip(at, 0, len(curve.thresholds) - 1)
        for name, values in (("precision", curve.precision), ("recall", curve.recall), ("F1", curve.f1)):
            series.append(Series(name, grid.tolist(), values[at].tolist()))
    return lines("all classes at IoU 0.5, by score threshold", series, x_label="score threshold", y_range=_UNIT)


def calibration_chart(calibration: dict[str, Any]) -> Chart:
    """The share that is right over the score, against the diagonal of scores that can be taken at their word."""
    bins = [one for one in calibration["bins"] if one["count"]]
    series = [
        Series("share that is right", [one["score"] for one in bins], [one["precision"] for one in bins]),
        Series("if scores were shares", list(_UNIT), list(_UNIT), colour="var(--soft)"),
    ]
    return lines("calibration: share right over score", series if bins else [], x_label="score", x_range=_UNIT,
                 y_range=_UNIT)  # fmt: skip
