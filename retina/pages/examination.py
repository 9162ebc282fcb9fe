"""The page of an examination by `retina doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from retina.doctor.ceiling import AnchorReport, Share
from retina.doctor.cost import duration, operations, size
from retina.doctor.findings import GRADES
from retina.doctor.statistics import Statistics
from retina.drawing import furniture
from retina.output import count
from retina.pages import examination_charts as charts

if TYPE_CHECKING:
    from retina.doctor.examine import Examination

_TEMPLATE = Path(__file__).with_name("examination.html.jinja")
# Examples of a finding; the JSON holds more.
_EXAMPLES = 50
_MOST_CLASSES = 400
FIGURES = ("AP", "AP50", "APs", "APm", "APl")
_KINDS = {
    "assigned": "as configured",
    "findable": "with boxes near the threshold",
    "forced": "with force_match",
    "suggested": "suggested",
}


class Cell(NamedTuple):
    """A share in a table: its text, its length in percent or None, and its grade."""

    text: str
    percent: float | None
    grade: str


class Tile(NamedTuple):
    """A figure at the head of the page and its meaning."""

    figure: str
    label: str


def render(examined: Examination) -> str:
    """Return the page's text; every name and message in it is escaped."""
    grades = {grade: sum(finding.grade == grade for finding in examined.findings) for grade in GRADES}
    return furniture.render(
        _TEMPLATE,
        title=f"retina doctor: {examined.name}",
        percent="{:.1%}".format,
        size=size,
        operations=operations,
        duration=duration,
        examined=examined,
        grades=[(grade, count(number, grade)) for grade, number in grades.items() if number],
        tiles=list(_tiles(examined)),
        classes=_class_rows(examined.splits),
        plots=_plots(examined.splits),
        coverage=_coverage_rows(examined.anchors),
        class_coverage=_class_coverage(examined.anchors),
        coverage_charts=_coverage_charts(examined),
        figures=FIGURES,
        ceilings=list(_ceiling_rows(examined)),
        sampled=any(report.images < report.all_images for report in examined.anchors.values()),
        suggestion=_suggestion(examined),
        examples=_EXAMPLES,
        chart_width=charts.WIDTH,
    )


def _tiles(examined: Examination) -> Iterator[Tile]:
    splits = examined.splits
    if splits:
        images, boxes = (sum(getattr(split, name) for split in splits.values()) for name in ("images", "boxes"))
        classes = len({name for split in splits.values() for name in split.classes})
        yield Tile(f"{images:,}", f"images in {count(len(splits), 'split')}")
        yield Tile(f"{boxes:,}", f"boxes of {count(classes, 'class')}")
    if examined.anchors:
        name, report = _main(examined.anchors)
        better = None if examined.suggestion is None else examined.suggestion.after[name]
        label = f"of the boxes in {name} have a positive anchor"
        yield Tile(f"{report.total.share:.1%}", label + _instead(f"{better.total.share:.1%}" if better else ""))
        highest = report.ceilings["assigned"]["AP"]
        if highest >= 0:
            label = f"AP that the anchors allow on {name}"
            yield Tile(f"{highest:.3f}", label + _instead(f"{better.ceilings['assigned']['AP']:.3f}" if better else ""))
    if examined.cost is not None:
        yield Tile(size(examined.cost.total), "memory of a training step, estimated")
        if examined.timing is None:
            yield Tile(operations(examined.cost.run_flops), "arithmetic of the run; --time measures the time")
        else:
            yield Tile(duration(examined.timing["hours"]), "for the run, measured")


def _instead(figure: str) -> str:
    return f" ({figure} with the suggested ones)" if figure else ""


def _main(anchors: dict[str, AnchorReport]) -> tuple[str, AnchorReport]:
    """The split at the head of the page: that of training."""
    name = "train" if "train" in anchors else next(iter(anchors))
    return name, anchors[name]


def _plots(splits: dict[str, Statistics]) -> list[tuple[str, charts.Chart, charts.Chart]]:
    """Sides and aspects of each split, on the same axes."""
    filled = {name: split for name, split in splits.items() if split.boxes}
    if not filled:
        return []
    sides = charts.axis(split.side.edges for split in filled.values())
    aspects = charts.axis(split.aspect.edges for split in filled.values())
    return [
        (
            name,
            charts.bars(split.side, "side (square root of the area), pixels of the stored image", sides),
            charts.bars(split.aspect, "height / width", aspects),
        )
        for name, split in filled.items()
    ]


def _coverage_charts(examined: Examination) -> list[charts.Chart]:
    """Boxes of the training split by side, with and without a positive anchor; as configured, and as suggested."""
    if not examined.anchors:
        return []
    name, trained = _main(examined.anchors)
    if not trained.total.boxes:
        return []
    reports = {f"{name}: boxes by side on the canvas, pixels": trained}
    if examined.suggestion is not None:
        reports[f"{name}: the same with the suggested anchors"] = examined.suggestion.after[name]
    edges = charts.side_axis(list(reports.values()), examined.positive_iou)
    return [
        charts.covered_bars(anchor_report, title, edges, examined.positive_iou)
        for title, anchor_report in reports.items()
    ]


def _class_rows(splits: dict[str, Statistics]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Boxes and images of each class in each split, the most frequent class first."""
    names = dict.fromkeys(name for split in splits.values() for name in split.classes)
    totals = {name: sum(split.classes.get(name, 0) for split in splits.values()) for name in names}
    ordered = sorted(names, key=lambda name: -totals[name])[:_MOST_CLASSES]
    return [
        (
            name,
            [
                (f"{split.classes[name]:,}", f"{split.class_images[name]:,}") if name in split.classes else ("–", "–")
                for split in splits.values()
            ],
        )
        for name in ordered
    ]


def _coverage_rows(anchors: dict[str, AnchorReport]) -> list[tuple[str, list[Cell]]]:
    """All boxes and each size: a title, and a cell for each split."""
    reports = list(anchors.values())
    if not reports:
        return []
    rows: list[tuple[str, list[Share | None]]] = [("all boxes", [report.total for report in reports])]
    rows += [(f"{name} in the stored image", [report.sizes[name] for report in reports]) for name in reports[0].sizes]
    rows += [
        (f"{name} on the canvas", [report.canvas_sizes[name] for report in reports]) for name in reports[0].canvas_sizes
    ]
    return [(title, [_cell(share) for share in shares]) for title, shares in rows]


def _class_coverage(anchors: dict[str, AnchorReport]) -> list[tuple[str, list[Cell]]]:
    """Each class, the least covered first."""
    reports = list(anchors.values())
    names = sorted(
        dict.fromkeys(name for report in reports for name in report.classes), key=lambda name: _worst(reports, name)
    )
    return [(name, [_cell(report.classes.get(name)) for report in reports]) for name in names[:_MOST_CLASSES]]


def _worst(reports: list[AnchorReport], name: str) -> float:
    return min(report.classes[name].share for report in reports if name in report.classes)


def _cell(share: Share | None) -> Cell:
    if share is None or not share.boxes:
        return Cell("–", None, "")
    grade = "error" if share.share < 0.5 else "warning" if share.share < 0.9 else ""
    return Cell(f"{share.share:.1%} of {share.boxes:,}", round(100 * share.share, 1), grade)


def _ceiling_rows(examined: Examination) -> Iterator[tuple[str, str, list[str]]]:
    """Split, kind and figures."""
    for name, report in examined.anchors.items():
        ceilings = dict(report.ceilings)
        if examined.suggestion is not None:
            ceilings["suggested"] = examined.suggestion.after[name].ceilings["assigned"]
        for kind, label in _KINDS.items():
            if kind in ceilings:
                values = [ceilings[kind].get(figure, -1) for figure in FIGURES]
                yield name, label, [f"{value:.3f}" if value >= 0 else "–" for value in values]


def _suggestion(examined: Examination) -> dict[str, Any] | None:
    if examined.suggestion is None:
        return None
    before, after = examined.suggestion.before, examined.suggestion.after
    return {
        "yaml": examined.suggestion.proposal.to_yaml(),
        "overrides": " ".join(f"'{text}'" for text in examined.suggestion.proposal.overrides),
        "rows": [
            (
                name,
                before[name].total.share,
                after[name].total.share,
                before[name].ceilings["assigned"]["AP"],
                after[name].ceilings["assigned"]["AP"],
            )
            for name in after
        ],
    }
