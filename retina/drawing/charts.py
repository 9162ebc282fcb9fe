"""Curves and forest plots in the coordinates of an SVG; `macros.html.jinja` and `forest.html.jinja` draw them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from retina.drawing.furniture import signed

# About as wide as it is shown, on a telephone and three in a row, so that its text has the size of the page's notes.
WIDTH, HEIGHT = 380, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 8, 38
# A curve of more points is averaged: a screen can't show more.
MOST_POINTS = 200
_MOST_DOTS = 30
_COLOURS = 7
_DASHES = ("", "6 3", "2 2", "8 3 2 3", "1 3", "10 4", "4 2 1 2")


@dataclass(frozen=True)
class Series:
    """One curve: `x` ascending and `y` [n], finite; `low` and `high` [n] make a band around it.

    `colour` is CSS; by default the palette's next. A class's colour may be too light or too dark for the page: `cased`
    lines its edges.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    colour: str | None = None
    cased: bool = False


class Curve(NamedTuple):
    """A curve as SVG paths; `dots` where points are few."""

    name: str
    path: str
    spread: str
    dots: list[tuple[float, float]]
    colour: str
    dashes: str
    cased: bool


@dataclass(frozen=True)
class Chart:
    """Everything `chart` of the macros draws; the page's script shows `data` under the pointer."""

    title: str
    x_label: str
    curves: list[Curve]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    data: dict[str, Any]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


class Axis(NamedTuple):
    """A range of values laid over a range of pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        low, high, at = (
            (math.log(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        return round(self.start + (at - low) / (high - low) * (self.end - self.start), 1)


def lines(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str = "step",
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    log_x: bool = False,
    log_y: bool = False,
) -> Chart:
    """Return a chart of several curves; those without points are left out.

    Args:
        x_range, y_range: what the axes show; by default all points, and y from zero unless that wastes over half of it.
        log_x, log_y: logarithmic axes; points at or below zero are left out.
    """
    drawn = [cut for curve in series if (cut := _drawable(curve, log_x, log_y))]
    if not drawn:
        return Chart(title, x_label, [], [], [], {})
    xs = [x for curve in drawn for x in curve.x]
    ys = [y for curve in drawn for part in (curve.y, curve.low, curve.high) if part is not None for y in part]
    x_low, x_high = x_range or (min(xs), max(xs))
    y_low, y_high = y_range or _span(min(ys), max(ys), log_y)
    horizontal = Axis(*_apart(x_low, x_high, log_x), _LEFT, WIDTH - _RIGHT, log_x)
    vertical = Axis(*_apart(y_low, y_high, log_y), HEIGHT - _BOTTOM, _TOP, log_y)
    return Chart(
        title,
        x_label,
        [_curve(curve, number, horizontal, vertical) for number, curve in enumerate(drawn)],
        ticks(horizontal, 6),
        ticks(vertical, 5),
        {
            "label": x_label,
            "left": _LEFT,
            "right": WIDTH - _RIGHT,
            "width": WIDTH,
            "x": [horizontal.low, horizontal.high],
            "logX": log_x,
            "curves": [
                {"name": curve.name, "x": [_short(x) for x in curve.x], "y": [_short(y) for y in curve.y]}
                for curve in drawn
            ],
        },
    )


def thinned(series: Series, most: int = MOST_POINTS) -> Series:
    """Return a curve of at most `most` points: means of neighbours, with their range as the band if it has none."""
    size = len(series.x)
    if size <= most:
        return series
    edges = np.linspace(0, size, most + 1).astype(int)[:-1]
    width = np.diff([*edges, size])
    low, high = (series.y if part is None else part for part in (series.low, series.high))

    def mean(values: Sequence[float]) -> list[float]:
        return list(np.add.reduceat(np.asarray(values, np.float64), edges) / width)

    return Series(
        series.name,
        mean(series.x),
        mean(series.y),
        list(np.minimum.reduceat(np.asarray(low, np.float64), edges)),
        list(np.maximum.reduceat(np.asarray(high, np.float64), edges)),
        series.colour,
        series.cased,
    )


def _drawable(series: Series, log_x: bool, log_y: bool) -> Series | None:
    """Return the finite points, on logarithmic axes only the positive; None where none is left."""
    x, y = np.asarray(series.x, np.float64), np.asarray(series.y, np.float64)
    keep = np.isfinite(x) & np.isfinite(y) & ((x > 0) | (not log_x)) & ((y > 0) | (not log_y))
    if not keep.any():
        return None
    low, high = (None if part is None else np.asarray(part, np.float64)[keep] for part in (series.low, series.high))
    if low is not None and log_y:
        low = np.maximum(low, y[keep].min())
    return thinned(
        Series(
            series.name,
            x[keep].tolist(),
            y[keep].tolist(),
            None if low is None else low.tolist(),
            None if high is None else high.tolist(),
            series.colour,
            series.cased,
        )
    )


def _curve(series: Series, number: int, horizontal: Axis, vertical: Axis) -> Curve:
    def points(values: Sequence[float]) -> list[tuple[float, float]]:
        return [
            (horizontal.place(x), vertical.place(min(max(y, vertical.low), vertical.high)))
            for x, y in zip(series.x, values, strict=True)
        ]

    dots = points(series.y)
    spread = ""
    if series.low is not None and series.high is not None:
        spread = _path([*points(series.low), *reversed(points(series.high))]) + "Z"
    return Curve(
        series.name,
        _path(dots),
        spread,
        dots if len(dots) <= _MOST_DOTS else [],
        series.colour or f"var(--series-{number % _COLOURS})",
        # The eighth curve has the colour of the first and another dash.
        _DASHES[(number + number // _COLOURS) % len(_DASHES)],
        series.cased,
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)


def _span(low: float, high: float, log: bool) -> tuple[float, float]:
    """Return the range of an axis: from zero, unless the values would then fill less than half of the height."""
    if log or not low * high > 0:
        return low, high
    if low > 0:
        return (0.0 if low < 0.5 * high else low), high
    return low, (0.0 if high > 0.5 * low else high)


def _apart(low: float, high: float, log: bool) -> tuple[float, float]:
    """Return a range with distinct ends; a single value lies in the middle of a range that begins or ends at zero."""
    if high > low:
        return low, high
    if log:
        return low / 2, low * 2
    return (min(0.0, 2 * low), max(0.0, 2 * low)) if low else (0.0, 1.0)


def ticks(axis: Axis, about: int) -> list[tuple[float, str]]:
    """Return round values along an axis, roughly `about` of them: the place of each, and its text."""
    values = _log_ticks(axis.low, axis.high, about) if axis.log else []
    if len(values) < 2:  # also of a logarithmic axis too short for powers of ten
        values = _even_ticks(axis, about)
    return [(axis.place(value), _tick_text(value)) for value in values]


def _even_ticks(axis: Axis, about: int) -> list[float]:
    raw = (axis.high - axis.low) / about
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * magnitude for unit in (1, 2, 2.5, 5, 10) if unit * magnitude >= raw * 0.999)
    first = math.ceil(axis.low / step - 1e-9)
    count = math.floor(axis.high / step + 1e-9) - first + 1
    return [(first + i) * step for i in range(count)]


def _log_ticks(low: float, high: float, about: int) -> list[float]:
    """Powers of ten; where fewer than three lie in the range also their doubles and fives."""
    powers = range(math.floor(math.log10(low) - 1e-9), math.ceil(math.log10(high) + 1e-9) + 1)

    def inside(*units: int) -> list[float]:
        values = [unit * 10.0**power for power in powers for unit in units]
        return [value for value in values if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]

    decades = inside(1)
    if len(decades) >= 3:
        return decades[:: math.ceil(len(decades) / about)]
    return inside(1, 2, 5)


def _tick_text(value: float) -> str:
    if abs(value) >= 10_000:
        text = f"{value / 1000:g}k" if abs(value) < 1e6 else f"{value / 1e6:g}M"
    else:
        text = f"{round(value, 10):g}"
    return text.replace("-", "−", 1) if value < 0 else text


def _short(value: float) -> float:
    return float(f"{value:.6g}")


# --------------------------------------------------------------------------------------------------- forest plots

# Each row is a small separate picture, so that the figures next to it are text of a table.
FOREST_WIDTH, ROW_HEIGHT = 240, 26
_MARGIN = 12
_TICKS = 5


class Estimate(NamedTuple):
    """A figure and its interval; None or NaN where there is none.

    Attributes:
        clear: the figure differs clearly from 0, which fills its mark.
        more: further cells of its row, text.
    """

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    clear: bool = False
    more: tuple[str, ...] = ()


class Row(NamedTuple):
    """`x`, `start` and `end` in the picture's units; None where there is nothing to draw."""

    name: str
    value: float | None
    text: str
    interval: str
    x: float | None
    start: float | None
    end: float | None
    clear: bool
    more: tuple[str, ...]


@dataclass(frozen=True)
class Forest:
    """Everything the macro draws; `zero` is where no difference lies."""

    rows: tuple[Row, ...]
    zero: float
    ticks: tuple[tuple[float, str], ...]
    width: int = FOREST_WIDTH
    height: int = ROW_HEIGHT


def forest(estimates: Sequence[Estimate], places: int = 3) -> Forest:
    """Return rows on a common axis that holds 0 and every end of an interval.

    Args:
        places: digits after the point.
    """
    ends = [
        0.0,
        *(end for estimate in estimates for end in (estimate.value, estimate.low, estimate.high) if _known(end)),
    ]
    low, high = min(ends), max(ends)
    if low == high:
        low, high = -1.0, 1.0
    axis = Axis(low, high, _MARGIN, FOREST_WIDTH - _MARGIN)
    return Forest(
        tuple(_row(estimate, axis, places) for estimate in estimates), axis.place(0.0), tuple(ticks(axis, _TICKS))
    )


def _row(estimate: Estimate, axis: Axis, places: int) -> Row:
    value, text, x = None, "–", None
    if _known(estimate.value):
        value, text, x = estimate.value, signed(estimate.value, places), axis.place(estimate.value)
    interval, start, end = "–", None, None
    if _known(estimate.low) and _known(estimate.high):
        interval, start, end = (
            f"{signed(estimate.low, places)} to {signed(estimate.high, places)}",
            axis.place(estimate.low),
            axis.place(estimate.high),
        )
    return Row(estimate.name, value, text, interval, x, start, end, estimate.clear, estimate.more)


def _known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)
