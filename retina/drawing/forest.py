"""Estimates and their intervals one below the other, as meta-analyses draw them: `forest` of `forest.html.jinja`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeGuard

from retina.drawing.charts import Axis, ticks
from retina.drawing.furniture import signed

# Each row is a small picture of its own, so that the figures beside it are text of a table.
WIDTH, HEIGHT = 240, 26
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
    width: int = WIDTH
    height: int = HEIGHT


def forest(estimates: Sequence[Estimate], places: int = 3) -> Forest:
    """Rows on one axis that holds 0 and every end of an interval.

    Args:
        places: of the figures, after the point.
    """
    ends = [0.0, *(end for one in estimates for end in (one.value, one.low, one.high) if _known(end))]
    low, high = min(ends), max(ends)
    if low == high:
        low, high = -1.0, 1.0
    axis = Axis(low, high, _MARGIN, WIDTH - _MARGIN)
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
