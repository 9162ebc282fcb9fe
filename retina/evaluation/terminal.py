"""Tables for the terminal that lose whole columns where it is narrow, never a digit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from retina.palette import class_hex

if TYPE_CHECKING:
    from rich.table import Table

# Names and sentences are folded to no less than this.
_NAME, _SENTENCE = 10, 16
NONE = "–"


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
    """A table of cells (with rich's markup), the first column being the names of the rows.

    Args:
        width: of the terminal in cells; the last groups of columns are left out, and named below the table, until the
            others fit. None leaves nothing out.
        notes: sentences below the table.
    """
    from rich import box
    from rich.table import Table

    widths = [_least(place, column, rows) for place, column in enumerate(columns)]
    kept = _fitting(columns, widths, width)
    notes = [*notes]
    if len(kept) < len(columns):
        left_out = [column.header for place, column in enumerate(columns) if place not in kept]
        notes.append(f"too narrow for {', '.join(left_out)}: see --json")
    made = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        caption="; ".join(notes) or None,
        caption_justify="left",
    )
    for place in kept:
        words = columns[place].justify == "left"
        made.add_column(
            columns[place].header,
            justify=columns[place].justify,
            no_wrap=not words,
            overflow="fold",
            min_width=widths[place] if words else None,
        )
    for row in rows:
        made.add_row(*(row[place] for place in kept))
    return made


def class_cell(name: str, label: int, coloured: bool) -> str:
    """A class's name as a cell; on a terminal that shows colours, behind a square in the class's own."""
    from rich.markup import escape

    return f"[{class_hex(label)}]■[/] {escape(name)}" if coloured else escape(name)


def value(figure: float) -> str:
    """A fraction to three decimals; a dash for -1, which says that nothing defines it."""
    return NONE if figure < 0 else f"{figure:.3f}"


def optional(number: float | None) -> str:
    """Any number to three decimals, or a dash."""
    return NONE if number is None else f"{number:.3f}"


def _least(place: int, column: Column, rows: Sequence[Sequence[str]]) -> int:
    """The cells that a column needs at least."""
    from rich.text import Text

    longest = max(Text.from_markup(text).cell_len for text in (column.header, *(row[place] for row in rows)))
    if column.justify == "right":
        return longest
    return min(longest, _SENTENCE if place else _NAME)


def _fitting(columns: Sequence[Column], widths: Sequence[int], width: int | None) -> list[int]:
    """The places of the columns that are shown."""
    kept = list(range(len(columns)))
    # Each column has a space on either side and a divider or an edge; one more edge ends the line.
    while width is not None and sum(widths[place] + 3 for place in kept) + 1 > width:
        groups = [columns[place].group for place in kept if columns[place].group]
        if not groups:
            break
        kept = [place for place in kept if columns[place].group != groups[-1]]
    return kept
