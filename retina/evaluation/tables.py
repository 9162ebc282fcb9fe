"""The figures of an evaluation as tables for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.table import Table

    from retina.evaluation.assessment import Assessment, Interval, Intervals
    from retina.evaluation.coco import Metrics

Column = tuple[str, Literal["left", "right"]]

_SIZES = {
    "s": "small objects (up to 32² px)",
    "m": "medium objects (32² to 96² px)",
    "l": "large objects (above 96² px)",
}
_OPERATING: tuple[Column, ...] = (("best F1", "right"), ("at score", "right"))
_KINDS = {
    "Cls": "well placed, but the wrong class",
    "Loc": "the right class, but badly placed",
    "Both": "the wrong class and badly placed",
    "Dupe": "a second detection of a box that has a better one",
    "Bkg": "a detection where nothing is",
    "Miss": "a box that nothing found",
}


def metrics_table(metrics: Metrics, intervals: Intervals | None = None) -> Table:
    """One row a figure: its name, its value (or in words why there is none), its interval and what it means."""
    table = _table(
        f"{metrics.images:,} images, {metrics.boxes:,} boxes, {metrics.detections:,} detections",
        ("figure", "left"),
        ("value", "right"),
        *_interval_column(intervals),
        ("meaning", "left"),
    )
    for name, value in metrics.metrics.items():
        ends = [_interval(intervals.metrics.get(name))] if intervals else []
        said = meaning(name) if value >= 0 else f"[dim]{undefined(name)}[/dim]"
        table.add_row(name, _value(value), *ends, said)
    return table


def class_table(metrics: Metrics, assessment: Assessment | None = None) -> Table:
    """One row a class, in the dataset's order; after an assessment with intervals of AP and the best threshold."""
    from rich.markup import escape

    intervals = assessment.intervals if assessment else None
    table = _table(
        "per class",
        ("class", "left"),
        ("boxes", "right"),
        ("AP", "right"),
        *_interval_column(intervals),
        ("AP50", "right"),
        ("AP75", "right"),
        *(_OPERATING if assessment else ()),
    )
    for k, (name, figures) in enumerate(metrics.per_class.items()):
        values = [_value(figures[key]) for key in ("AP", "AP50", "AP75")]
        ends = [_interval(intervals.per_class[name].get("AP"))] if intervals else []
        point = assessment.operating.per_class[k] if assessment else None
        best = [_optional(point.f1), _optional(point.threshold)] if point else []
        table.add_row(escape(name), f"{int(figures['boxes']):,}", values[0], *ends, *values[1:], *best)
    if any(figures["AP"] < 0 for figures in metrics.per_class.values()):
        table.caption = "–: no ground truth, or no score that finds any; left out of the means"
        table.caption_justify = "left"
    return table


def errors_table(assessment: Assessment) -> Table:
    """One row a kind of error, by its cost."""
    errors = assessment.errors
    table = _table(
        f"what keeps AP50 down (TIDE, IoU {errors.iou:g})",
        ("error", "left"),
        ("AP50 lost", "right"),
        ("number", "right"),
        ("meaning", "left"),
    )
    for kind, cost in sorted(errors.delta_ap.items(), key=lambda item: -(item[1] or 0.0)):
        table.add_row(kind, _optional(cost), f"{errors.counts[kind]:,}", _KINDS[kind])
    return table


def advice(assessment: Assessment) -> list[str]:
    """Sentences on what to set and whom to believe: the threshold, the calibration, the interval's origin."""
    lines = []
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


def meaning(name: str) -> str:
    """What a figure is, in words: `AP50`, `ARs`, `AR100`, …"""
    kind, rest = name[:2], name[2:]
    what = "average precision" if kind == "AP" else "average recall"
    if rest.isalpha():
        return f"{what}, {_SIZES.get(rest, f'objects of the area range {rest!r}')}"
    if kind == "AP":
        return f"{what} at IoU {f'0.{rest}' if rest else '0.50 to 0.95'}"
    return f"{what} with at most {rest} detection{'' if rest == '1' else 's'} per class and image"


def undefined(name: str) -> str:
    """Why a figure is -1."""
    return "no ground truth of that size" if name[2:].isalpha() else "no ground truth"


def _value(value: float) -> str:
    return f"{value:.3f}" if value >= 0 else "–"


def _optional(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _interval(ends: Interval | None) -> str:
    return "–" if ends is None else f"{ends[0]:.3f}–{ends[1]:.3f}"


def _interval_column(intervals: Intervals | None) -> list[Column]:
    return [(f"{intervals.level:.0%} interval", "right")] if intervals else []


def _table(title: str, *columns: Column) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for header, justify in columns:
        table.add_column(header, justify=justify, no_wrap=justify == "right", overflow="fold")
    return table
