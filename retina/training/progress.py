"""Progress of a run: the meter of its steps' scalars and speed, and the report that the user reads."""

from __future__ import annotations

import math
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, NamedTuple

import keras
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from retina.output import guarded

# What must be a number for training to go on, as an error names it.
_WATCHED = {"loss": "loss", "gradient_norm": "norm of the gradient"}


class Report:
    """Report of a run: a live line on a terminal, plain lines elsewhere, and every line in `log.txt`.

    Context manager; `say` prints a line, `scalars` updates the live figures. What the terminal or the log does not take
    is lost, and the other of them says so once: output is no reason to end a run.

    Args:
        log: the file that every line is appended to, with its time; None for a host that says nothing.
        steps: of the whole run.
        first_step: the step after which the run starts (resumed runs).
    """

    def __init__(self, log: Path | None, steps: int, first_step: int = 0):
        self.output = guarded(sys.stderr)  # standard error, so that `--json` output stays clean
        self.console = Console(file=self.output, highlight=False, quiet=log is None)  # type: ignore[arg-type]
        self.log = log
        self.warned = False
        self.live = self.console.is_terminal and log is not None
        self.progress = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=16),
            TimeRemainingColumn(),
            _Figures(table_column=Column()),
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
        self._print(text)
        self._write(text)

    def advance(self, step: int) -> None:
        self.progress.update(self.task, completed=step)

    def scalars(self, line: dict[str, Any], remaining_seconds: float) -> None:
        """Show a line of `metrics.jsonl`."""
        parts = f"(class {line['loss_classification']:.4f}, box {line['loss_box']:.4f})"
        rate, pace = f"lr {line['learning_rate']:.2e}", f"{line['images_per_second']:.1f} images/s"
        waiting = f"waiting for data {line['data_wait']:.0%}"
        loss = f"loss {line['loss']:.4f}"
        figures = f"{loss} {parts}  {rate}  {pace}  {waiting}"
        # By what is missed least at the end, which a narrow terminal cuts off.
        live = f"{loss}  {pace}  {parts}  {rate}  {waiting}"
        self.progress.update(self.task, completed=line["step"], figures=live)
        text = f"step {line['step']}/{self.steps}  {figures}  ETA {_duration(remaining_seconds)}"
        if not self.live:
            self._print(text)
        self._write(text)

    def _print(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, markup=False)

    def _write(self, text: str) -> None:
        if self.log is None:
            return
        if self.output.lost is not None and not self.warned:
            self.warned = True
            text += f"\nwarning: the terminal takes no output ({self.output.lost}); the run and this log go on"
        try:
            with open(self.log, "a", encoding="utf-8", errors="backslashreplace") as file:
                for line in text.splitlines():
                    file.write(f"{datetime.now().isoformat(timespec='seconds')}  {line}\n")
        except OSError as error:
            if not self.warned:
                self.warned = True
                self._print(f"warning: {self.log}: it can't be written ({error.strerror}); the run goes on without it")


class _Figures(ProgressColumn):
    """Figures of the last line; they alone are cut where the terminal is narrow."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["figures"], no_wrap=True, overflow="ellipsis")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Fault(NamedTuple):
    """The first step with a value that is not finite.

    Attributes:
        step: its number.
        what: the name of the value, as an error message uses it.
        value: NaN or an infinity.
        scalars: all scalars of the step.
    """

    step: int
    what: str
    value: float
    scalars: dict[str, float]


def state_fault(step: int, arrays: Mapping[str, np.ndarray]) -> Fault | None:
    """Return the fault of a state that is not finite, though the step's loss and gradient were: it must not be saved.

    Args:
        arrays: by name, as in `retina.runs.checkpoint.Checkpoint`.
    """
    bad = [
        name
        for name, array in arrays.items()
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all()
    ]
    if not bad:
        return None
    array = arrays[bad[0]]
    value = float(array[~np.isfinite(array)][0])
    more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    return Fault(step, f"array {bad[0]}{more} after the update", value, {bad[0]: value})


class Meter:
    """Meter of the steps since the last line of `metrics.jsonl`: means of their scalars, faults, and throughput.

    Scalars stay on the device until they are asked for, so that the host runs ahead of it.

    Args:
        batch_size: images a step.
        pending: the value of `pending()` before the run was interrupted: a line's means are over all its steps.
    """

    def __init__(self, batch_size: int, pending: Mapping[str, list[float]] | None = None):
        self.batch_size = batch_size
        columns = pending or {}
        self._rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        self._on_device: list[dict[str, Any]] = []
        self._device = _DeviceClock()
        self._restart()

    def _restart(self) -> None:
        self._steps, self._waited, self._away, self._start = 0, 0.0, 0.0, time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Measure the wait for a batch; only time in which the device has nothing to do counts."""
        start = time.perf_counter()
        yield
        self._waited += max(0.0, time.perf_counter() - max(start, self._device.idle_since()))

    @contextmanager
    def away(self) -> Iterator[None]:
        """Leave evaluations and checkpoints, which are no training, out of the throughput."""
        start = time.perf_counter()
        yield
        self._away += time.perf_counter() - start

    def add(self, scalars: Mapping[str, Any]) -> None:
        self._on_device.append(dict(scalars))
        self._device.give(scalars["loss"])
        self._steps += 1

    def fault(self, last: int) -> Fault | None:
        """Return the first fault since the last `read`, None if there is none; to be asked before anything is written.

        Args:
            last: the step that was added last.
        """
        self._settle()
        for step, scalars in enumerate(self._rows, start=last - len(self._rows) + 1):
            for name, what in _WATCHED.items():
                if not math.isfinite(scalars[name]):
                    return Fault(step, what, scalars[name], scalars)
        return None

    def pending(self) -> dict[str, list[float]]:
        """Return the scalars of each step since the last `read`, by name; exact in JSON."""
        self._settle()
        names = self._rows[0] if self._rows else ()
        return {name: [row[name] for row in self._rows] for name in names}

    def latest(self) -> dict[str, float]:
        """Return the scalars of the last step."""
        self._settle()
        return dict(self._rows[-1])

    def read(self) -> dict[str, float]:
        """Return the means since the last `read`, `images_per_second` and `data_wait`, and start anew.

        `data_wait` is the share of the time in which the device was idle because the next batch was not there. While
        it still works on earlier steps, no wait of the host for a batch counts.
        """
        means = {name: float(np.mean(np.array(column))) for name, column in self.pending().items()}
        elapsed = time.perf_counter() - self._start - self._away
        means["images_per_second"] = self._steps * self.batch_size / elapsed
        means["data_wait"] = self._waited / elapsed
        self._rows = []
        self._restart()
        return means

    def _settle(self) -> None:
        self._rows += [
            {name: float(keras.ops.convert_to_numpy(value)) for name, value in scalars.items()}
            for scalars in self._on_device
        ]
        self._on_device = []


class _DeviceClock:
    """Clock that tells since when the device has been idle.

    A thread waits for each step's loss in turn: the host itself goes on, to hand out steps ahead of the device.
    """

    def __init__(self) -> None:
        self._given, self._done = 0, [(0, -math.inf)]
        self._queue: SimpleQueue[tuple[int, Any] | None] = SimpleQueue()

    def give(self, loss: Any) -> None:
        """Take the loss of a step that was handed to the device; steps are done in this order."""
        if not self._given:
            # A daemon: a device that hangs must not keep the process from ending.
            threading.Thread(target=_watch, args=(self._queue, self._done), name="device clock", daemon=True).start()
            weakref.finalize(self, self._queue.put, None)
        self._given += 1
        self._queue.put((self._given, loss))

    def idle_since(self) -> float:
        """Return seconds of `time.perf_counter`: -inf before the first step, +inf while the device is busy."""
        number, when = self._done[0]
        return when if number == self._given else math.inf


def _watch(queue: SimpleQueue[tuple[int, Any] | None], done: list[tuple[int, float]]) -> None:
    """Keep in `done` the number of the last step that was done, and when, until the queue gives None."""
    while (given := queue.get()) is not None:
        number, loss = given
        with suppress(Exception):  # the loop meets it as soon as it reads the step's scalars
            keras.ops.convert_to_numpy(loss)
        done[0] = (number, time.perf_counter())
