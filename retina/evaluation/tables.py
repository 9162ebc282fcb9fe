"""The figures of an evaluation as tables for the terminal; a narrow one loses whole columns, never a digit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from retina.evaluation.assessment import Assessment, Interval, Intervals
from retina.evaluation.coco import Metrics
from retina.evaluation.document import area_in_words, flat_classes, voc_columns
from retina.evaluation.judging import Score
from retina.evaluation.tide import MEANINGS
from retina.evaluation.voc import VocMetrics
from retina.palette import class_hexes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# Least widths to which names and sentences are folded.
_NAME, _SENTENCE = 10, 16
NONE = "–"
_WORDS = {"voc07": "mean of 11 precisions (VOC 2007)", "voc10": "area under every point (VOC 2010 and later)"}


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        header: its title.
        justify: "right" for numbers, which are never folded, "left" for words, which may be.
        group: columns of one group go together where the terminal is too narrow; those without one stay.
    """

    header: str
    justify: Literal["left", "right"] = "right"
    group: str = ""


def table(
    title: str,
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    *,
    width: int | None = None,
    notes: Sequence[str] = (),
) -> Table:
    """Return a table of cells (with rich's markup); the first column holds the names of the rows.

    Args:
        width: of the terminal in cells; the last groups of columns are left out, and named below the table, until the
            others fit. None leaves nothing out.
        notes: sentences below the table.
    """
    from rich import box
    from rich.table import Table

    widths = [_least(place, column, rows) for place, column in enumerate(columns)]
    shown = _fitting(columns, widths, width)
    notes = [*notes]
    if len(shown) < len(columns):
        left_out = [column.header for place, column in enumerate(columns) if place not in shown]
        notes.append(f"too narrow for {', '.join(left_out)}: see --json")
    out = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        caption="; ".join(notes) or None,
        caption_justify="left",
    )
    for place in shown:
        words = columns[place].justify == "left"
        out.add_column(
            columns[place].header,
            justify=columns[place].justify,
            no_wrap=not words,
            overflow="fold",
            min_width=widths[place] if words else None,
        )
    for row in rows:
        out.add_row(*(row[place] for place in shown))
    return out


def class_cells(names: Iterable[str], coloured: bool) -> dict[str, str]:
    """Return the cell of each class's name, after a square in the class's colour where the terminal shows colours."""
    from rich.markup import escape

    names = list(names)
    squares = [f"[{colour}]■[/] " if coloured else "" for colour in class_hexes(names)]
    return {name: square + escape(name) for name, square in zip(names, squares, strict=True)}


def value(figure: float) -> str:
    """Return a fraction to three decimals; a dash for -1, an undefined figure."""
    return NONE if figure < 0 else f"{figure:.3f}"


def optional(number: float | None) -> str:
    """Return any number to three decimals, or a dash for None."""
    return NONE if number is None else f"{number:.3f}"


_OPERATING = (Column("best F1", group="operating"), Column("at score", group="operating"))


def metrics_table(metrics: Metrics, intervals: Intervals | None = None) -> Table:
    """Return a row for each figure: its name, value (or the reason for a missing value), interval and meaning."""
    rows = []
    for name, figure in metrics.metrics.items():
        ends = [_interval(intervals.metrics.get(name))] if intervals else []
        words = meaning(name, metrics.area_ranges) if figure >= 0 else f"[dim]{undefined(name)}[/dim]"
        rows.append([name, value(figure), *ends, words])
    title = f"{metrics.images:,} images, {metrics.boxes:,} boxes, {metrics.detections:,} detections"
    columns = [Column("figure", "left"), Column("value"), *_interval_column(intervals), Column("meaning", "left")]
    return table(title, columns, rows)


def class_table(
    metrics: Metrics, assessment: Assessment | None = None, width: int | None = None, *, coloured: bool = False
) -> Table:
    """Return a row for each class, in the dataset's order; after an assessment with AP's interval and the threshold.

    Args:
        width: of the terminal; None leaves no column out.
        coloured: the terminal shows colours, so classes are given theirs.
    """
    intervals = assessment.intervals if assessment else None
    rows, cells = [], class_cells(metrics.per_class, coloured)
    for k, (name, figures) in enumerate(metrics.per_class.items()):
        values = [value(figures[key]) for key in ("AP", "AP50", "AP75")]
        ends = [_interval(intervals.per_class[name].get("AP"))] if intervals else []
        point = assessment.operating.per_class[k] if assessment else None
        best = [optional(point.f1), optional(point.threshold)] if point else []
        rows.append([cells[name], f"{int(figures['boxes']):,}", values[0], *ends, *values[1:], *best])
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
    """Return a row for each kind of error, by its cost."""
    errors = assessment.errors
    rows = [
        [kind, optional(cost), f"{errors.counts[kind]:,}", MEANINGS[kind]]
        for kind, cost in sorted(errors.delta_ap.items(), key=lambda item: -(item[1] or 0.0))
    ]
    columns = [Column("error", "left"), Column("AP50 lost"), Column("number"), Column("meaning", "left")]
    return table(f"what keeps AP50 down (TIDE, IoU {errors.iou:g})", columns, rows)


def advice(assessment: Assessment) -> list[str]:
    """Return lines of advice: AP by overlap, the threshold to set, calibration, and where the intervals come from."""
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


def voc_metrics_table(voc: Sequence[VocMetrics], title: str) -> Table:
    """Return a row for each figure: its name, its value (or the reason for a missing value) and its meaning."""
    rows = []
    for name, figures, protocol in voc_columns(voc):
        meaning = f"mean over classes at IoU {name.partition('@')[2]}, {_WORDS[protocol]}"
        words = meaning if figures["mAP"] >= 0 else "[dim]no ground truth[/dim]"
        rows.append([f"mAP_{name}", value(figures["mAP"]), words])
    return table(title, [Column("figure", "left"), Column("value"), Column("meaning", "left")], rows)


def voc_class_table(voc: Sequence[VocMetrics], width: int | None = None, *, coloured: bool = False) -> Table:
    """Return a row for each class, in the order of the labels.

    Args:
        width: of the terminal; None leaves no column out.
        coloured: the terminal shows colours, so classes are given theirs.
    """
    classes = flat_classes(voc)
    names = [name for name, _, _ in voc_columns(voc)]
    cells = class_cells(classes, coloured)
    rows = [
        [cells[label], f"{int(figures['boxes']):,}", *(value(figures[f"AP_{name}"]) for name in names)]
        for label, figures in classes.items()
    ]
    # The first figure always stays; each other one may be left out.
    groups = ["", *names[1:]]
    columns = [Column("class", "left"), Column("boxes")]
    columns += [Column(name, group=group) for name, group in zip(names, groups, strict=False)]
    nothing = any(not figures["boxes"] for figures in classes.values())
    notes = [f"{NONE}: no ground truth, left out of the mean"] if nothing else []
    return table("AP per class", columns, rows, width=width, notes=notes)


def print_score(console: Console, result: Score, *, conventions: bool = False) -> None:
    """Print figures with intervals, per class, errors and advice; and where asked the conventions in words."""
    coloured = console.color_system is not None
    if result.assessment is not None:
        console.print(metrics_table(result.assessment.metrics, result.assessment.intervals))
        console.print(class_table(result.assessment.metrics, result.assessment, console.width, coloured=coloured))
        console.print(errors_table(result.assessment))
        for line in advice(result.assessment):
            console.print(line, markup=False, soft_wrap=True)
    else:
        title = f"{len(result.truth):,} images, {result.boxes:,} boxes, {len(result.detections):,} detections"
        console.print(voc_metrics_table(result.voc, title))
        console.print(voc_class_table(result.voc, console.width, coloured=coloured))
    left_out = result.detections.left_out
    if left_out.detections:
        total = left_out.detections + len(result.detections)
        line = f"Left out, {left_out.detections} of {total} detections: {left_out.words()}; --strict refuses them"
        console.print(line, markup=False, soft_wrap=True)
    if not conventions:
        console.print(f"Conventions: {result.protocol}; --conventions says which they are.", soft_wrap=True)
        return
    console.print(f"Conventions ({result.protocol}):", markup=False)
    for key, words in result.conventions.items():
        console.print(f"  {key.replace('_', ' ')}: {words}", markup=False, soft_wrap=True)


def meaning(name: str, area_ranges: Mapping[str, tuple[float, float]]) -> str:
    """Return the meaning of a figure in words: `AP50`, `ARs`, `AR100`, …"""
    kind, rest = name[:2], name[2:]
    what = "average precision" if kind == "AP" else "average recall"
    if rest.isalpha():
        return f"{what}, objects {area_in_words(*area_ranges[rest])}"
    if kind == "AP":
        return f"{what} at IoU {f'0.{rest}' if rest else '0.50 to 0.95'}"
    return f"{what} with at most {rest} detection{'' if rest == '1' else 's'} per class and image"


def undefined(name: str) -> str:
    """Return the reason why a figure is -1."""
    return "no ground truth of that size" if name[2:].isalpha() else "no ground truth"


def _interval(ends: Interval | None) -> str:
    return NONE if ends is None else f"{ends[0]:.3f}–{ends[1]:.3f}"


def _interval_column(intervals: Intervals | None) -> list[Column]:
    return [Column(f"{intervals.level:.0%} interval", group="interval")] if intervals else []


def _dashes(metrics: Metrics, assessment: Assessment | None) -> list[str]:
    """Notes on the meaning of each kind of dash in `class_table`."""
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


def _least(place: int, column: Column, rows: Sequence[Sequence[str]]) -> int:
    """Least width of a column, in cells."""
    from rich.text import Text

    longest = max(Text.from_markup(text).cell_len for text in (column.header, *(row[place] for row in rows)))
    if column.justify == "right":
        return longest
    return min(longest, _SENTENCE if place else _NAME)


def _fitting(columns: Sequence[Column], widths: Sequence[int], width: int | None) -> list[int]:
    """Indices of the columns that are shown."""
    shown = list(range(len(columns)))
    # Each column has a space on either side and a divider or an edge; one more edge ends the line.
    while width is not None and sum(widths[place] + 3 for place in shown) + 1 > width:
        groups = [columns[place].group for place in shown if columns[place].group]
        if not groups:
            break
        shown = [place for place in shown if columns[place].group != groups[-1]]
    return shown
