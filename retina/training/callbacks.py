"""Keras callbacks (those of W&B, MLflow or the user) in the loop of `retina.train`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from retina.models.detector import Detector


class Callbacks:
    """Caller of Keras callbacks: it calls them as `fit` would, with the detector as their model.

    An epoch is the stretch from one evaluation to the next, `every` steps; batches are counted from 0 in each.
    `on_train_batch_end` gets the step's scalars, `on_test_end` the validation figures, and `on_epoch_end` the means of
    the last line of `metrics.jsonl` with the validation figures as `val_AP`, …. `model.stop_training = True` ends the
    run after the step, with an evaluation and a checkpoint; such a run is not finished, and resuming it trains on
    until the callback asks again. A callback's state is not in a checkpoint.

    Values that a callback assigns to the model's weights are trained on, on every backend; over several hosts, where
    the others would not have them, they are an error.

    Args:
        callbacks: called in this order; none costs nothing.
        every: steps of an epoch.
        steps: of the run.
        sync: copies the weights into the model before a callback may read them.
        reload: takes over the weights that a callback has assigned.
    """

    def __init__(
        self,
        callbacks: Sequence[keras.callbacks.Callback],
        model: Detector,
        optimizer: keras.optimizers.Optimizer,
        *,
        every: int,
        steps: int,
        sync: Callable[[], None],
        reload: Callable[[], None],
    ):
        self._callbacks, self._model, self._every, self._sync = list(callbacks), model, every, sync
        self._steps, self._reload = steps, reload
        self._each_batch = [callback for callback in self._callbacks if _wants_batches(callback)]
        if not self._callbacks:
            return
        # As in `fit`, but not by `compile`, which would wrap the optimizer again under mixed_float16.
        model.optimizer = optimizer
        model.stop_training = False
        for callback in self._callbacks:
            callback.set_params({"epochs": -(-steps // every), "steps": every, "verbose": 0})
            callback.set_model(model)

    @property
    def stop(self) -> bool:
        """Tell whether a callback has asked to end the run."""
        return bool(self._callbacks) and bool(self._model.stop_training)

    def train_begin(self) -> None:
        self._call("on_train_begin")

    def batch_begin(self, step: int) -> None:
        """Call the callbacks before step `step` (from 1)."""
        batch = (step - 1) % self._every
        if batch == 0:
            self._call("on_epoch_begin", (step - 1) // self._every)
        for callback in self._each_batch:
            callback.on_train_batch_begin(batch, logs={})
        if self._each_batch:
            self._reload()

    def batch_end(self, step: int, scalars: Callable[[], Mapping[str, float]]) -> None:
        """Call them after it; `scalars`, which waits for the device, is called only if a callback needs it."""
        if self._each_batch:
            self._sync()
            logs = dict(scalars())
            for callback in self._each_batch:
                callback.on_train_batch_end((step - 1) % self._every, logs=dict(logs))
            self._reload()

    def test_begin(self) -> None:
        self._call("on_test_begin")

    def test_end(self, step: int, line: Mapping[str, float], figures: Mapping[str, float]) -> None:
        """Call them after the evaluation that ends an epoch."""
        if self._callbacks:
            self._model.detection_metrics.rising = tuple(figures)
        self._call("on_test_end", logs=figures)
        logs = {name: value for name, value in line.items() if name != "step"}
        logs |= {f"val_{name}": value for name, value in figures.items()}
        self._call("on_epoch_end", (step - 1) // self._every, logs=logs)

    def train_end(self, line: Mapping[str, float]) -> None:
        self._call("on_train_end", logs=line)

    def _call(self, method: str, *arguments: Any, logs: Mapping[str, float] | None = None) -> None:
        if self._callbacks:
            self._sync()
        for callback in self._callbacks:
            getattr(callback, method)(*arguments, logs=dict(logs or {}))
        if self._callbacks:
            self._reload()


def _wants_batches(callback: keras.callbacks.Callback) -> bool:
    base = keras.callbacks.Callback
    names = ("on_train_batch_begin", "on_train_batch_end", "on_batch_begin", "on_batch_end")
    # LambdaCallback puts plain functions into the instance.
    return any(getattr(getattr(callback, name), "__func__", None) is not getattr(base, name) for name in names)
