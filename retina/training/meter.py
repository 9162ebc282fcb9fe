"""The scalars of the steps since the last line of `metrics.jsonl`: their means, their faults, and throughput."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
        self._restart()

    def _restart(self) -> None:
        self._steps, self._waited, self._away, self._start = 0, 0.0, 0.0, time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for a batch."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextmanager
    def away(self) -> Iterator[None]:
        """Around what is no training: evaluations and checkpoints don't count in the throughput."""
        start = time.perf_counter()
        yield
        self._away += time.perf_counter() - start

    def add(self, scalars: Mapping[str, Any]) -> None:
        self._on_device.append(dict(scalars))
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
        """Means since the last `read`, `images_per_second`, and `data_wait`: the share of time spent waiting."""
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
