"""What the summed losses are divided by: the batch's positives, or a moving average of them."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from retina import config

Tensor = Any


class PositivesAverage:
    """n ← m · n + (1 - m) · max(positives, 1), as detectron2's RetinaNet; one scalar variable, float32.

    With few positives in a batch, dividing by their number alone makes single images count for much or little.
    """

    def __init__(self, settings: config.EmaNormalizer):
        self.settings = settings
        self.average = keras.Variable(settings.initial, dtype="float32", trainable=False, name="positives")

    @property
    def variables(self) -> dict[str, keras.Variable]:
        return {"normalizer/positives": self.average}

    def divisor(self, positives: Tensor) -> Tensor:
        """The average once the batch's positives (a scalar) are in it; the variable stays as it is."""
        momentum = self.settings.momentum
        return momentum * ops.convert_to_tensor(self.average) + (1.0 - momentum) * ops.maximum(positives, 1.0)

    def update(self, positives: Tensor) -> None:
        self.average.assign(self.divisor(positives))
