"""What the user sees while a run trains: a live line on a terminal, plain lines elsewhere, and both in `log.txt`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from retina.runs.storage import storing


class Report:
    """Context manager; `say` prints a line, `scalars` updates the live figures.

    Args:
        log: the file that every line is appended to, with its time; None for a host that says nothing.
        steps: of the whole run.
        first_step: where it starts (resumed runs).
        console: None prints to standard error, so that `--json` output stays clean.
    """

    def __init__(self, log: Path | None, steps: int, first_step: int = 0, console: Console | None = None):
        self.console = console or Console(stderr=True, highlight=False, quiet=log is None)
        self.log = log
        self.live = self.console.is_terminal and log is not None
        self.progress = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.live,
        )
        self.task = self.progress.add_task("train", total=steps, completed=first_step, figures="compiling…")
        self.steps = steps

    def __enter__(self) -> Report:
        self.progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    def say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, markup=False)
        self._write(text)

    def advance(self, step: int) -> None:
        self.progress.update(self.task, completed=step)

    def scalars(self, line: dict[str, Any], remaining_seconds: float) -> None:
        """One line of `metrics.jsonl`, shown."""
        figures = (
            f"loss {line['loss']:.4f} (class {line['loss_classification']:.4f}, box {line['loss_box']:.4f})  "
            f"lr {line['learning_rate']:.2e}  {line['images_per_second']:.1f} images/s  "
            f"waiting for data {line['data_wait']:.0%}"
        )
        self.progress.update(self.task, completed=line["step"], figures=figures)
        text = f"step {line['step']}/{self.steps}  {figures}  ETA {_duration(remaining_seconds)}"
        if not self.live:
            self.console.print(text, soft_wrap=True, markup=False)
        self._write(text)

    def _write(self, text: str) -> None:
        if self.log is None:
            return
        with storing(self.log.parent), open(self.log, "a", encoding="utf-8", errors="backslashreplace") as file:
            for line in text.splitlines():
                file.write(f"{datetime.now().isoformat(timespec='seconds')}  {line}\n")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
