"""The scalars of the steps since the last line of `metrics.jsonl`: their means, their faults, and throughput."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any, NamedTuple

import keras
import numpy as np

# What must be a number for training to go on, as an error names it.
_WATCHED = {"loss": "loss", "gradient_norm": "norm of the gradient"}


class Fault(NamedTuple):
    """The first step whose loss or gradient is not finite, what it is called, and all its scalars."""

    step: int
    what: str
    value: float
    scalars: dict[str, float]


def state_fault(step: int, arrays: Mapping[str, np.ndarray]) -> Fault | None:
    """What is not finite in the state that a step left, though its loss and its gradient were: it must not be saved.

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
    """Collects a step's scalars; they stay on the device until they are asked for, so that the host runs ahead of it.

    Args:
        batch_size: images a step.
        pending: what `pending` gave before the run was interrupted: the means of a line are over all its steps.
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
        """Around the wait for a batch; what counts of it is the time in which the device has nothing to do."""
        start = time.perf_counter()
        yield
        self._waited += max(0.0, time.perf_counter() - max(start, self._device.idle_since()))

    @contextmanager
    def away(self) -> Iterator[None]:
        """Around what is no training: evaluations and checkpoints don't count in the throughput."""
        start = time.perf_counter()
        yield
        self._away += time.perf_counter() - start

    def add(self, scalars: Mapping[str, Any]) -> None:
        self._on_device.append(dict(scalars))
        self._device.give(scalars["loss"])
        self._steps += 1

    def fault(self, last: int) -> Fault | None:
        """Before anything is written: weights that are not finite must not become a checkpoint.

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
        """The scalars of each step since the last `read`, by name; exact in JSON."""
        self._settle()
        names = self._rows[0] if self._rows else ()
        return {name: [row[name] for row in self._rows] for name in names}

    def latest(self) -> dict[str, float]:
        """The scalars of the last step."""
        self._settle()
        return dict(self._rows[-1])

    def read(self) -> dict[str, float]:
        """Means since the last `read`, `images_per_second`, and `data_wait`.

        `data_wait` is the share of the time in which the device had done all that it was given, and the next batch was
        not there. While it still works on steps that it was given earlier, no wait of the host for a batch counts.
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
    """Since when the device has had nothing to do.

    A thread waits for each step's loss in turn: the host itself goes on, to hand out steps ahead of the device.
    """

    def __init__(self) -> None:
        self._given, self._done = 0, [(0, -math.inf)]
        self._queue: SimpleQueue[tuple[int, Any] | None] = SimpleQueue()

    def give(self, loss: Any) -> None:
        """Of a step that the device has been told to do; steps are done in this order."""
        if not self._given:
            # A daemon: a device that hangs must not keep the process from ending.
            threading.Thread(target=_watch, args=(self._queue, self._done), name="device clock", daemon=True).start()
            weakref.finalize(self, self._queue.put, None)
        self._given += 1
        self._queue.put((self._given, loss))

    def idle_since(self) -> float:
        """In seconds of `time.perf_counter`: -inf before the first step, +inf while the device has something to do."""
        number, when = self._done[0]
        return when if number == self._given else math.inf


def _watch(queue: SimpleQueue[tuple[int, Any] | None], done: list[tuple[int, float]]) -> None:
    """Puts into `done` the number of the step that was done last, and when, until the queue gives None."""
    while (given := queue.get()) is not None:
        number, loss = given
        with suppress(Exception):  # the loop meets it as soon as it reads the step's scalars
            keras.ops.convert_to_numpy(loss)
        done[0] = (number, time.perf_counter())
