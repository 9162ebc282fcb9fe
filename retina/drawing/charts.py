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
# A curve of more points is averaged: a screen has no more places to draw them.
MOST_POINTS = 200
_MOST_DOTS = 30
_COLOURS = 7
_DASHES = ("", "6 3", "2 2", "8 3 2 3", "1 3", "10 4", "4 2 1 2")


@dataclass(frozen=True)
class Series:
    """One curve: `x` ascending and `y` [n], finite; `low` and `high` [n] make a band around it.

    `colour` is CSS; by default the palette's next. Of a class's own colour, which may be too light or too dark for the
    page, `cased` lines the edges.
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
    """Everything `chart` of the macros draws; `data` is what the page's script tells under the pointer."""

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
    """A chart of several curves; those without points are left out.

    Args:
        x_range, y_range: what the axes show; by default all points, and y from zero unless that wastes over half of it.
        log_x, log_y: logarithmic axes; points at or below zero are left out.
    """
    kept = [cut for one in series if (cut := _drawable(one, log_x, log_y))]
    if not kept:
        return Chart(title, x_label, [], [], [], {})
    xs = [x for one in kept for x in one.x]
    ys = [y for one in kept for part in (one.y, one.low, one.high) if part is not None for y in part]
    x_low, x_high = x_range or (min(xs), max(xs))
    y_low, y_high = y_range or _span(min(ys), max(ys), log_y)
    horizontal = Axis(*_apart(x_low, x_high, log_x), _LEFT, WIDTH - _RIGHT, log_x)
    vertical = Axis(*_apart(y_low, y_high, log_y), HEIGHT - _BOTTOM, _TOP, log_y)
    return Chart(
        title,
        x_label,
        [_curve(one, number, horizontal, vertical) for number, one in enumerate(kept)],
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
                {"name": one.name, "x": [_short(x) for x in one.x], "y": [_short(y) for y in one.y]} for one in kept
            ],
        },
    )


def thinned(one: Series, most: int = MOST_POINTS) -> Series:
    """At most `most` points: means of neighbours, with their least and greatest value as the band if it has none."""
    size = len(one.x)
    if size <= most:
        return one
    edges = np.linspace(0, size, most + 1).astype(int)[:-1]
    width = np.diff([*edges, size])
    low, high = (one.y if part is None else part for part in (one.low, one.high))

    def mean(values: Sequence[float]) -> list[float]:
        return list(np.add.reduceat(np.asarray(values, np.float64), edges) / width)

    return Series(
        one.name,
        mean(one.x),
        mean(one.y),
        list(np.minimum.reduceat(np.asarray(low, np.float64), edges)),
        list(np.maximum.reduceat(np.asarray(high, np.float64), edges)),
        one.colour,
        one.cased,
    )


def _drawable(one: Series, log_x: bool, log_y: bool) -> Series | None:
    """Only finite points, and on logarithmic axes only positive ones; None where none is left."""
    x, y = np.asarray(one.x, np.float64), np.asarray(one.y, np.float64)
    keep = np.isfinite(x) & np.isfinite(y) & ((x > 0) | (not log_x)) & ((y > 0) | (not log_y))
    if not keep.any():
        return None
    low, high = (None if part is None else np.asarray(part, np.float64)[keep] for part in (one.low, one.high))
    if low is not None and log_y:
        low = np.maximum(low, y[keep].min())
    return thinned(
        Series(
            one.name,
            x[keep].tolist(),
            y[keep].tolist(),
            None if low is None else low.tolist(),
            None if high is None else high.tolist(),
            one.colour,
            one.cased,
        )
    )


def _curve(one: Series, number: int, horizontal: Axis, vertical: Axis) -> Curve:
    def points(values: Sequence[float]) -> list[tuple[float, float]]:
        return [
            (horizontal.place(x), vertical.place(min(max(y, vertical.low), vertical.high)))
            for x, y in zip(one.x, values, strict=True)
        ]

    dots = points(one.y)
    spread = ""
    if one.low is not None and one.high is not None:
        spread = _path([*points(one.low), *reversed(points(one.high))]) + "Z"
    return Curve(
        one.name,
        _path(dots),
        spread,
        dots if len(dots) <= _MOST_DOTS else [],
        one.colour or f"var(--series-{number % _COLOURS})",
        # The eighth curve has the first one's colour, and another dash.
        _DASHES[(number + number // _COLOURS) % len(_DASHES)],
        one.cased,
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)


def _span(low: float, high: float, log: bool) -> tuple[float, float]:
    """From zero, unless the values would then fill less than half of the height."""
    if log or not low * high > 0:
        return low, high
    if low > 0:
        return (0.0 if low < 0.5 * high else low), high
    return low, (0.0 if high > 0.5 * low else high)


def _apart(low: float, high: float, log: bool) -> tuple[float, float]:
    """A range that is one; a single value lies in the middle of one that begins, or ends, at zero."""
    if high > low:
        return low, high
    if log:
        return low / 2, low * 2
    return (min(0.0, 2 * low), max(0.0, 2 * low)) if low else (0.0, 1.0)


def ticks(axis: Axis, about: int) -> list[tuple[float, str]]:
    """Round values along an axis, some `about` of them: where each lies, and how it is written."""
    if axis.log:
        return [(axis.place(value), _told(value)) for value in _log_ticks(axis.low, axis.high, about)]
    raw = (axis.high - axis.low) / about
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * magnitude for unit in (1, 2, 2.5, 5, 10) if unit * magnitude >= raw * 0.999)
    first = math.ceil(axis.low / step - 1e-9)
    count = math.floor(axis.high / step + 1e-9) - first + 1
    return [(axis.place((first + i) * step), _told((first + i) * step)) for i in range(count)]


def _log_ticks(low: float, high: float, about: int) -> list[float]:
    """Powers of ten; where fewer than three lie in the range also their doubles and fives, or else its ends."""
    powers = range(math.floor(math.log10(low) - 1e-9), math.ceil(math.log10(high) + 1e-9) + 1)

    def inside(*units: int) -> list[float]:
        values = [unit * 10.0**power for power in powers for unit in units]
        return [value for value in values if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]

    decades = inside(1)
    if len(decades) >= 3:
        return decades[:: math.ceil(len(decades) / about)]
    found = inside(1, 2, 5)
    return found if len(found) >= 2 else [low, high]


def _told(value: float) -> str:
    if abs(value) >= 10_000:
        told = f"{value / 1000:g}k" if abs(value) < 1e6 else f"{value / 1e6:g}M"
    else:
        told = f"{round(value, 10):g}"
    return told.replace("-", "−", 1) if value < 0 else told


def _short(value: float) -> float:
    return float(f"{value:.6g}")


# --------------------------------------------------------------------------------------------------- forest plots

# Each row is a small picture of its own, so that the figures beside it are text of a table.
FOREST_WIDTH, ROW_HEIGHT = 240, 26
_MARGIN = 12
_TICKS = 5


class Estimate(NamedTuple):
    """A figure and its interval; None or NaN where there is none.

    Attributes:
        clear: the figure is told from 0, which fills its mark.
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
    told: str
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
    """Rows on one axis that holds 0 and every end of an interval.

    Args:
        places: of the figures, after the point.
    """
    ends = [0.0, *(end for one in estimates for end in (one.value, one.low, one.high) if _known(end))]
    low, high = min(ends), max(ends)
    if low == high:
        low, high = -1.0, 1.0
    axis = Axis(low, high, _MARGIN, FOREST_WIDTH - _MARGIN)
    return Forest(tuple(_row(one, axis, places) for one in estimates), axis.place(0.0), tuple(ticks(axis, _TICKS)))


def _row(one: Estimate, axis: Axis, places: int) -> Row:
    value, told, x = None, "–", None
    if _known(one.value):
        value, told, x = one.value, signed(one.value, places), axis.place(one.value)
    interval, start, end = "–", None, None
    if _known(one.low) and _known(one.high):
        interval, start, end = (
            f"{signed(one.low, places)} to {signed(one.high, places)}",
            axis.place(one.low),
            axis.place(one.high),
        )
    return Row(one.name, value, told, interval, x, start, end, one.clear, one.more)


def _known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)
