"""The figures of an evaluation as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from retina.evaluation.document import area_in_words
from retina.evaluation.terminal import NONE, Column, class_cell, optional, table, value
from retina.evaluation.tide import MEANINGS

if TYPE_CHECKING:
    from rich.table import Table

    from retina.evaluation.assessment import Assessment, Interval, Intervals
    from retina.evaluation.coco import Metrics

_OPERATING = (Column("best F1", group="operating"), Column("at score", group="operating"))


def metrics_table(metrics: Metrics, intervals: Intervals | None = None) -> Table:
    """One row a figure: its name, its value (or in words why there is none), its interval and what it means."""
    rows = []
    for name, figure in metrics.metrics.items():
        ends = [_interval(intervals.metrics.get(name))] if intervals else []
        said = meaning(name, metrics.area_ranges) if figure >= 0 else f"[dim]{undefined(name)}[/dim]"
        rows.append([name, value(figure), *ends, said])
    title = f"{metrics.images:,} images, {metrics.boxes:,} boxes, {metrics.detections:,} detections"
    columns = [Column("figure", "left"), Column("value"), *_interval_column(intervals), Column("meaning", "left")]
    return table(title, columns, rows)


def class_table(
    metrics: Metrics, assessment: Assessment | None = None, width: int | None = None, *, coloured: bool = False
) -> Table:
    """One row a class, in the dataset's order; after an assessment with intervals of AP and the best threshold.

    Args:
        width: of the terminal; None leaves no column out.
        coloured: the terminal shows colours, so classes are given theirs.
    """
    intervals = assessment.intervals if assessment else None
    rows = []
    for k, (name, figures) in enumerate(metrics.per_class.items()):
        values = [value(figures[key]) for key in ("AP", "AP50", "AP75")]
        ends = [_interval(intervals.per_class[name].get("AP"))] if intervals else []
        point = assessment.operating.per_class[k] if assessment else None
        best = [optional(point.f1), optional(point.threshold)] if point else []
        rows.append([class_cell(name, k, coloured), f"{int(figures['boxes']):,}", values[0], *ends, *values[1:], *best])
    columns = [
        Column("class", "left"),
        Column("boxes"),
        Column("AP"),
        *_interval_column(intervals),
        Column("AP50"),
        Column("AP75"),
        *(_OPERATING if assessment else ()),
    ]
    return table("per class", columns, rows, width=width, notes=_dashes(metrics, assessment))


def errors_table(assessment: Assessment) -> Table:
    """One row a kind of error, by its cost."""
    errors = assessment.errors
    rows = [
        [kind, optional(cost), f"{errors.counts[kind]:,}", MEANINGS[kind]]
        for kind, cost in sorted(errors.delta_ap.items(), key=lambda item: -(item[1] or 0.0))
    ]
    columns = [Column("error", "left"), Column("AP50 lost"), Column("number"), Column("meaning", "left")]
    return table(f"what keeps AP50 down (TIDE, IoU {errors.iou:g})", columns, rows)


def advice(assessment: Assessment) -> list[str]:
    """Lines on what to set and how far to believe it: AP by overlap, threshold, calibration, the interval's origin."""
    lines = ["AP by IoU: " + ", ".join(f"{iou} {value(ap)}" for iou, ap in assessment.metrics.per_iou.items())]
    point, calibration, intervals = assessment.operating.overall, assessment.calibration, assessment.intervals
    if point.threshold is not None:
        lines.append(
            f"Best F1 over all classes: {point.f1:.3f} (precision {point.precision:.3f}, recall {point.recall:.3f}) "
            f"with detections of score {point.threshold:.3f} and above."
        )
    if calibration is None:
        lines.append("Calibration: none, because the scores are not within 0 and 1.")
    elif calibration.expected_error is not None:
        lines.append(f"Scores are off by {calibration.expected_error:.3f} on average from the share that is right.")
    if intervals:
        lines.append(
            f"Intervals: {intervals.level:.0%}, from {intervals.replicates:,} resamples of the images (seed "
            f"{intervals.seed}); they say how much other images of the same kind would change the figure, not another "
            "training."
        )
    return lines


def meaning(name: str, area_ranges: Mapping[str, tuple[float, float]]) -> str:
    """What a figure is, in words: `AP50`, `ARs`, `AR100`, …"""
    kind, rest = name[:2], name[2:]
    what = "average precision" if kind == "AP" else "average recall"
    if rest.isalpha():
        return f"{what}, objects {area_in_words(*area_ranges[rest])}"
    if kind == "AP":
        return f"{what} at IoU {f'0.{rest}' if rest else '0.50 to 0.95'}"
    return f"{what} with at most {rest} detection{'' if rest == '1' else 's'} per class and image"


def undefined(name: str) -> str:
    """Why a figure is -1."""
    return "no ground truth of that size" if name[2:].isalpha() else "no ground truth"


def _interval(ends: Interval | None) -> str:
    return NONE if ends is None else f"{ends[0]:.3f}–{ends[1]:.3f}"


def _interval_column(intervals: Intervals | None) -> list[Column]:
    return [Column(f"{intervals.level:.0%} interval", group="interval")] if intervals else []


def _dashes(metrics: Metrics, assessment: Assessment | None) -> list[str]:
    """What the dashes of `class_table` mean, those that there are."""
    there = [name for name, figures in metrics.per_class.items() if figures["AP"] >= 0]
    notes = []
    if len(there) < len(metrics.per_class):
        notes.append(f"{NONE}: no ground truth, left out of the means")
    if assessment and assessment.intervals and any("AP" not in assessment.intervals.per_class[name] for name in there):
        notes.append(f"{NONE} as interval: all boxes lie in one image")
    points = assessment.operating.per_class if assessment else ()
    if any(point.threshold is None and point.f1 is not None for point in points):
        notes.append(f"{NONE} at score: no detection of the class is right")
    return notes
