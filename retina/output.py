"""Printed output that can get lost without harm: the work that it is about goes on; and its words for numbers."""

from __future__ import annotations

import html
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


_ENDLESS = 10_000

Watch = Callable[[Iterable[Any], int], Iterable[Any]]
"""A function that passes items on, and shows how many of that number are done."""


class Output:
    """Stream of text that never raises when it can't be written: a closed terminal, a reader that went, a full disk.

    Everything else of the stream is passed on.

    Attributes:
        lost: the error of the first write that failed; None before.
    """

    def __init__(self, stream: IO[str]):
        self.stream = stream
        self.lost: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self._attempt(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._attempt(self.stream.flush)

    def _attempt(self, act: Any, *arguments: str) -> None:
        # Tried again each time: a disk may get room again.
        try:
            act(*arguments)
        except OSError as error:
            self.lost = self.lost or error
        except ValueError as error:  # of a closed stream; any other is about the text
            if not self.stream.closed:
                raise
            self.lost = self.lost or error


def guarded(stream: IO[str] | Output | None) -> Output:
    """Return a stream as `Output`; one that is missing, since it was closed before the start, is lost already."""
    if isinstance(stream, Output):
        return stream
    if stream is not None:
        return Output(stream)
    output = Output(open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (it lives as long as the process)
    output.lost = OSError("it was closed from the start")
    return output


def console(stderr: bool = False) -> Console:
    """Return a console that prints texts as they are, without colours for numbers and paths, and never fails to.

    Into a file or a pipe no line is broken and no column left out, unless `COLUMNS` says how wide it is.
    """
    from rich.console import Console

    terminal = Console(file=guarded(sys.stderr if stderr else sys.stdout), highlight=False)  # type: ignore[arg-type]
    if not terminal.is_terminal and "COLUMNS" not in os.environ:
        terminal.width = _ENDLESS
    return terminal


def count(number: int, thing: str, form: str = "") -> str:
    """Return a number with its noun: "1 box", "2 boxes", "3 images", "2 classes"; with the form "," 1000 is "1,000"."""
    if number != 1:
        thing += "es" if thing.endswith(("x", "s")) else "s"
    return f"{number:{form}} {thing}"


def unwatched(items: Iterable[Any], count: int) -> Iterable[Any]:
    """Return the items as they are: a `Watch` that shows nothing."""
    return items


def bar(title: str) -> Watch:
    """Return a `Watch` with a bar on standard error, where that is a terminal."""

    def watch(items: Iterable[Any], count: int) -> Iterable[Any]:
        from rich.progress import track

        terminal = console(stderr=True)
        return track(items, title, count, console=terminal, transient=True, disable=not terminal.is_terminal)

    return watch


def html_table(title: str, rows: Mapping[str, Any]) -> str:
    """A table of names and values, as a notebook shows an object."""

    def text(value: Any) -> str:
        return html.escape(f"{value:g}" if isinstance(value, float) else str(value))

    lines = (f"<tr><td>{text(name)}</td><td>{text(value)}</td></tr>" for name, value in rows.items())
    return f"<table><caption>{text(title)}</caption>{''.join(lines)}</table>"
