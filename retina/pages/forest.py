"""Estimates and their intervals one below the other, as meta-analyses draw them: `forest` of `forest.html.jinja`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from retina.pages.charts import Axis, ticks

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
    known = _known(one.low) and _known(one.high)
    return Row(
        one.name,
        one.value if _known(one.value) else None,
        f"{one.value:+.{places}f}" if _known(one.value) else "–",
        f"{one.low:+.{places}f} to {one.high:+.{places}f}" if known else "–",
        axis.place(one.value) if _known(one.value) else None,
        axis.place(one.low) if known else None,
        axis.place(one.high) if known else None,
        one.clear,
        one.more,
    )


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
