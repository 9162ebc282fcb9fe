"""The charts of a run's page: how training went over its steps, and how good the detector is."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from retina.drawing.charts import Chart, Series, lines
from retina.evaluation.curves import confidence_curve, precision_recall
from retina.evaluation.matching import RECALLS, Matches, interpolated_precision
from retina.palette import class_hexes
from retina.runs.record import Record

# The axis of the time spent waiting reaches at least this far: a smaller share does not matter.
_WAITS = 0.1
_IOUS = (0.5, 0.6, 0.7, 0.8, 0.9)
# More curves than this can't be distinguished.
_MOST_CLASSES = 7
_UNIT = (0.0, 1.0)


def curves(record: Record) -> list[Chart]:
    """Return charts of the training; a figure that the run did not record has no chart."""
    named = {"loss": "both", "loss_classification": "classification", "loss_box": "boxes"}
    steps = [float(step) for step, _ in record.evaluations]
    every = [
        Series(name, steps, [_defined(figures.get(name)) for _, figures in record.evaluations])
        for name in ("AP", "AP50", "AP75")
    ]
    highest = max([value for curve in every for value in curve.y if value > 0], default=1.0)
    shares = {"foreground_share": "positive anchors", "background_share": "background"}
    levels = sorted(name for name in record.names() if re.fullmatch(r"positives_p\d+", name))
    per_level = {name: name.removeprefix("positives_").upper() for name in levels}
    start = Series("prior π", [0.0, float(record.last_step)], [record.config.model.head.prior] * 2)
    drift = _series(record, {"background_probability": "mean over background"})
    waits = _series(record, {"data_wait": "waiting"})
    longest = max([_WAITS, *(value for curve in waits for value in curve.y)])
    plots = [
        _chart(record, "loss, mean since the last log line", _series(record, named), log=True),
        _chart(record, "AP on validation data", every, y_range=(0.0, highest)),
        _chart(record, "learning rate", _series(record, {"learning_rate": "learning rate"})),
        _chart(record, "images per second", _series(record, {"images_per_second": "images per second"})),
        _chart(record, "share of the time spent waiting for data", waits, y_range=(0.0, longest)),
        _chart(record, "norm of the gradient", _series(record, {"gradient_norm": "norm"}), log=True),
        _chart(
            record,
            "positive anchors a step, by pyramid level" if per_level else "positive anchors a step",
            _series(record, per_level or {"positives": "positive anchors"}),
            log=bool(per_level),
        ),
        _chart(record, "share of the classification loss", _series(record, shares)),
        _chart(record, "probability of background anchors", [*drift, start] if drift else [], log=True),
        _chart(record, "scale of the loss", _series(record, {"loss_scale": "scale"}), log=True),
        _chart(
            record,
            "memory, MB",
            _series(record, {"memory": "process", "memory_peak": "its peak", "device_memory_peak": "device, its peak"}),
        ),
    ]
    return [plot for plot in plots if plot.curves]


def _series(record: Record, names: dict[str, str]) -> list[Series]:
    return [Series(label, *record.series(name)) for name, label in names.items() if record.series(name)[0]]


def _chart(
    record: Record, title: str, series: list[Series], *, log: bool = False, y_range: tuple[float, float] | None = None
) -> Chart:
    """Chart from step 0 to the last step, so that charts side by side can be compared; logarithmic only if the values
    span a factor of ten."""
    values = [value for curve in series for value in curve.y if value > 0]
    log = log and bool(values) and max(values) >= 10 * min(values)
    return lines(title, series, x_range=(0.0, float(record.last_step)), y_range=y_range, log_y=log)


def _defined(value: float | None) -> float:
    """NaN, which a chart leaves out, for a figure that nothing defines."""
    return math.nan if value is None or value < 0 else value


def quality_charts(matches: Matches, class_names: Sequence[str], figures: dict[str, Any]) -> list[Chart]:
    """Return precision–recall curves of the mean and of classes, and precision, recall and F1 by threshold.

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
    """Precision over recall of all classes if they are few, else of those with the lowest AP50."""
    defined = np.flatnonzero(matches.positives).tolist()
    title = "precision over recall by class at IoU 0.5"
    if len(defined) > _MOST_CLASSES:
        defined = sorted(defined, key=lambda k: per_class[class_names[k]]["AP50"])[:_MOST_CLASSES]
        title += f", the {_MOST_CLASSES} worst"
    series, colours = [], class_hexes(class_names)
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
                    colour=colours[k],
                    cased=True,
                )
            )
    return lines(title, series, x_label="recall", x_range=_UNIT, y_range=_UNIT)


def _of_thresholds(matches: Matches) -> Chart:
    curve = confidence_curve(matches, iou=0.5)
    series = []
    if curve is not None and len(curve.thresholds):
        # A hundred places along the score: a chart shows no more, and thinning by count would crowd the low scores.
        grid = np.linspace(max(float(curve.thresholds[-1]), 0.0), float(curve.thresholds[0]), 101)
        at = np.searchsorted(-curve.thresholds, -grid, side="right") - 1
        at = np.clip(at, 0, len(curve.thresholds) - 1)
        for name, values in (("precision", curve.precision), ("recall", curve.recall), ("F1", curve.f1)):
            series.append(Series(name, grid.tolist(), values[at].tolist()))
    return lines("all classes at IoU 0.5, by score threshold", series, x_label="score threshold", y_range=_UNIT)


def calibration_chart(calibration: dict[str, Any]) -> Chart:
    """Return the share that is right over the score, with the diagonal of perfectly calibrated scores."""
    bins = [filled for filled in calibration["bins"] if filled["count"]]
    series = [
        Series("share that is right", [filled["score"] for filled in bins], [filled["precision"] for filled in bins]),
        Series("perfectly calibrated", list(_UNIT), list(_UNIT), colour="var(--soft)"),
    ]
    return lines("calibration: share right over score", series if bins else [], x_label="score", x_range=_UNIT,
                 y_range=_UNIT)  # fmt: skip
