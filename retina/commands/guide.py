"""`retina guide`: parses, lists the pages of the manual or shows one in the terminal."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from retina.guide import page, topics
from retina.output import console

if TYPE_CHECKING:
    from rich.console import RenderableType

_PIPE_WIDTH = 100
"""Columns at most where the page goes to a file or a pipe: longer lines are hard to read."""


def guide(
    topic: Annotated[str | None, typer.Argument(help="A page of the manual; without one, the list of pages.")] = None,
) -> None:
    """Show the manual, a page a topic."""
    if topic is None:
        _show(_contents(topics()))
    else:
        text = for_terminal(page(topic))
        _show(_rendered(text if console().is_terminal else with_backticks(text)))


def for_terminal(text: str) -> str:
    """Return a page's Markdown with links and pictures in the words that a terminal can use.

    A link to another page becomes the command that shows it, a link to a file of the checkout the file's name. Pictures
    become a line with what they show.
    """
    text = re.sub(r"!\[([^\]]*)\]\(([^)]*)\)", r"*(Picture: \1.)*", text)
    text = re.sub(r"\[([^\]]+)\]\((\w+)\.md(?:#[^)]*)?\)", _command, text)
    text = re.sub(r"\[([^\]]+)\]\((?:\.\./)+([^)]*)\)", lambda link: f"`{link[2]}`", text)
    return re.sub(r"\[([^\]]+)\]\(#[^)]*\)", r"\1", text)


def with_backticks(text: str) -> str:
    """Return Markdown whose code in single backticks is shown with them, for where no colour sets it apart."""
    parts = re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else re.sub(r"`([^`]+)`", r"`` `\1` ``", part) for part in parts)


def _command(link: re.Match[str]) -> str:
    shown = f"`retina guide {link[2]}`"
    return shown if link[1] == link[2] else f"{link[1]} ({shown})"


def _contents(lines: dict[str, str]) -> RenderableType:
    """Return the list of pages as a table without a frame."""
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for name, about in lines.items():
        table.add_row(name, about)
    table.add_row()
    table.add_row("", "`retina guide TOPIC` shows a page.")
    return table


def _rendered(text: str) -> RenderableType:
    """Return rich's Markdown of a page, with headings that stand out without colours, and nothing cut off."""
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.markdown import Heading, Markdown, TableElement
    from rich.table import Table
    from rich.text import Text

    class LeftHeading(Heading):
        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            title = self.text.plain
            yield Text(title, style="bold")
            yield Text(("═" if self.tag == "h1" else "─") * len(title), style="bold")

    class WholeTable(TableElement):
        """A table whose long words are broken: rich cuts them off."""

        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            for part in super().__rich_console__(console, options):
                for column in part.columns if isinstance(part, Table) else ():
                    column.overflow = "fold"
                yield part

    class Page(Markdown):
        elements: ClassVar = {**Markdown.elements, "heading_open": LeftHeading, "table_open": WholeTable}

    return Page(text, hyperlinks=False, code_theme="ansi_dark")


def _show(renderable: RenderableType) -> None:
    """Print to a terminal; to a pipe as plain text, without the blanks with which rich fills its lines."""
    from rich.theme import Theme

    terminal = console()
    terminal.push_theme(Theme({"markdown.code": "bold cyan"}))  # rich's own has a black ground, also on white
    if terminal.is_terminal:
        terminal.print(renderable)
        return
    terminal.width = min(terminal.width, _PIPE_WIDTH)
    with terminal.capture() as captured:
        terminal.print(renderable)
    lines = (line.rstrip() for line in captured.get().splitlines())
    sys.stdout.write("\n".join(lines) + "\n")
