"""Moving average of the weights: evaluation and export use it, training goes on with the weights themselves.

Polyak & Juditsky 1992; in detectors YOLOX, arXiv:2107.08430.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from retina import config
from retina.private_names import all_layers

Tensor = Any
PREFIX = "ema/"


class WeightAverage:
    """Averages of variables, as variables: `averages[i]` is that of `sources[i]`, and starts at its value.

    Args:
        sources: the variables that training changes, see `averaged_variables`.
        settings: decay and its warm-up.
    """

    def __init__(self, sources: list[keras.Variable], settings: config.Ema):
        self.sources, self.settings = sources, settings
        self.averages = [
            keras.Variable(
                ops.convert_to_numpy(ops.convert_to_tensor(v)), dtype=v.dtype, trainable=False, name="average"
            )
            for v in sources
        ]
        self.updates = keras.Variable(0, dtype="int32", trainable=False, name="updates")

    @property
    def variables(self) -> dict[str, keras.Variable]:
        by_path = {f"{PREFIX}{v.path}": a for v, a in zip(self.sources, self.averages, strict=True)}
        return {**by_path, "ema_updates": self.updates}

    def decay(self, updates: Tensor) -> Tensor:
        """Return the share d of the old average after so many updates (a scalar, float32)."""
        if not self.settings.warmup:
            return ops.convert_to_tensor(self.settings.decay, dtype="float32")
        updates = ops.cast(updates, "float32")
        return ops.minimum(self.settings.decay, (1.0 + updates) / (10.0 + updates))

    def update(self, happened: Tensor | None = None) -> None:
        """Update each average: a ← d · a + (1 - d) · w; nothing changes where `happened` (a scalar, bool) is False."""
        share, count = 1.0 - self.decay(self.updates), 1
        if happened is not None:
            share, count = share * ops.cast(happened, "float32"), ops.cast(happened, "int32")
        for source, average in zip(self.sources, self.averages, strict=True):
            average.assign(average + ops.cast(share, average.dtype) * (source - average))
        self.updates.assign(self.updates + count)


def averaged_variables(model: keras.Model) -> list[keras.Variable]:
    """Return the variables that training changes: trainable ones, and statistics of batch normalisations that train."""
    statistics = [
        v
        for layer in all_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
        for v in (layer.moving_mean, layer.moving_variance)
    ]
    return [*model.trainable_variables, *statistics]


def averaged_weights(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a checkpoint's arrays for evaluation: the averages in place of the weights, if it has averages.

    Args:
        arrays: by `weights/<path>`, and averages by `extra/ema/<path>`; see `retina.runs.checkpoint.Checkpoint`.
    """
    stored = f"extra/{PREFIX}"
    averages = {f"weights/{name.removeprefix(stored)}": a for name, a in arrays.items() if name.startswith(stored)}
    return {**arrays, **averages}
