"""The charts of the doctor's page: bars and labels in the coordinates of an SVG, which the template draws."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log2, sqrt

from retina.doctor.ceiling import AnchorReport, Level
from retina.doctor.statistics import Histogram

# Narrow enough for the text to be legible where the picture is as wide as a phone.
WIDTH = 460
_LEFT, _RIGHT, _TOP, _TALL = 40, 12, 18, 120
_TICKS = 20  # pixels below the axis
_BAND = 15  # pixels for a level
_MOST_TICKS = 7
_LEAST_SIDE, _MOST_SIDE = 4.0, 1024.0  # levels beyond are cut off


@dataclass(frozen=True)
class Bar:
    """A bin: its lower part of `height`, and above it the `rest`, both in pixels; `number` is written above."""

    x: float
    y: float
    width: float
    height: float
    rest: float
    number: int
    tooltip: str


@dataclass(frozen=True)
class Band:
    """A pyramid level under the axis: the sides of the boxes that its anchors fit."""

    name: str
    x: float
    y: float
    width: float
    tooltip: str


@dataclass(frozen=True)
class Chart:
    """A chart; `ticks` are (x, text)."""

    title: str
    height: float
    bottom: float
    left: float
    bars: tuple[Bar, ...]
    ticks: tuple[tuple[float, str], ...]
    bands: tuple[Band, ...]
    highest: int


def bars(histogram: Histogram, title: str, edges: Sequence[float]) -> Chart:
    """Return a histogram on the axis `edges`, whose steps are those of the histogram."""
    return _chart(title, histogram, histogram.counts, edges, ())


def covered_bars(report: AnchorReport, title: str, edges: Sequence[float], threshold: float) -> Chart:
    """Return boxes by their side on the canvas, those with a positive anchor below the others, over the levels' reach.

    Args:
        threshold: `assignment.positive_iou`.
    """
    return _chart(title, report.canvas_side, report.canvas_side_covered, edges, _bands(report.levels, edges, threshold))


def axis(parts: Iterable[tuple[float, ...]]) -> tuple[float, ...]:
    """Return a common axis for several histograms: half octaves around all of their edges."""
    ends = [edge for edges in parts for edge in (edges[0], edges[-1])]
    first, last = floor(2 * log2(min(ends)) + 1e-6), ceil(2 * log2(max(ends)) - 1e-6)
    return tuple(2.0 ** (step / 2) for step in range(first, last + 1))


def side_axis(reports: Sequence[AnchorReport], threshold: float) -> tuple[float, ...]:
    """Return the axis of `covered_bars`, with room for the levels: anchors may be larger or smaller than all boxes.

    Args:
        threshold: `assignment.positive_iou`.
    """
    ends = [
        (min(max(side, _LEAST_SIDE), _MOST_SIDE),)
        for report in reports
        for level in report.levels
        for side in reach(level, threshold)
    ]
    return axis([*(report.canvas_side.edges for report in reports), *ends])


def reach(level: Level, threshold: float) -> tuple[float, float]:
    """Return the sides of boxes that a level's anchors of the same shape and place overlap by `threshold`."""
    return level.sides[0] * sqrt(threshold), level.sides[1] / sqrt(threshold)


def _chart(
    title: str, histogram: Histogram, lower: Sequence[int], edges: Sequence[float], bands: tuple[Band, ...]
) -> Chart:
    highest = max(histogram.counts, default=0) or 1
    step = _step(edges)
    drawn = []
    for low, high, number, part in zip(histogram.edges, histogram.edges[1:], histogram.counts, lower, strict=False):
        height = _TALL * number / highest
        solid = _TALL * part / highest
        with_anchor = "" if part == number else f", {part} with a positive anchor"
        drawn.append(
            Bar(
                x=round(_place(low, edges) + 1, 1),
                y=round(_TOP + _TALL - height, 1),
                width=round(step - 2, 1),
                height=round(solid, 1),
                rest=round(height - solid, 1),
                number=number,
                tooltip=f"{low:.3g} to {high:.3g}: {number}{with_anchor}",
            )
        )
    every = -(-len(edges) // _MOST_TICKS)
    every += every % 2  # whole octaves
    first = next((place for place, edge in enumerate(edges) if not round(2 * log2(edge)) % 2), 0)
    return Chart(
        title=title,
        height=_TOP + _TALL + _TICKS + _BAND * len(bands),
        bottom=_TOP + _TALL,
        left=_LEFT,
        bars=tuple(drawn),
        ticks=tuple((round(_place(edge, edges), 1), f"{edge:.4g}") for edge in edges[first::every]),
        bands=bands,
        highest=highest,
    )


def _bands(levels: Sequence[Level], edges: Sequence[float], threshold: float) -> tuple[Band, ...]:
    bands = []
    for place, level in enumerate(levels):
        low, high = reach(level, threshold)
        start, end = (_place(min(max(side, edges[0]), edges[-1]), edges) for side in (low, high))
        bands.append(
            Band(
                name=f"P{level.level}",
                x=round(start, 1),
                y=_TOP + _TALL + _TICKS + _BAND * place,
                width=round(max(end - start, 1), 1),
                tooltip=f"anchors of P{level.level} fit sides of {low:.0f} to {high:.0f} pixels",
            )
        )
    return tuple(bands)


def _step(edges: Sequence[float]) -> float:
    return (WIDTH - _LEFT - _RIGHT) / max(len(edges) - 1, 1)


def _place(value: float, edges: Sequence[float]) -> float:
    """x of a value on the axis, two steps to the octave."""
    return _LEFT + 2 * log2(value / edges[0]) * _step(edges)
