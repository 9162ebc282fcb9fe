"""Dynamic loss scaling for float16 (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2).

The loss is multiplied before its gradient is taken, so that small gradients don't vanish in float16, and the gradient
divided afterwards. A step whose gradient overflows is left out, and the scale halved; it doubles after a while without.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

Tensor = Any

# As in PyTorch's GradScaler.
INITIAL, GROWTH_INTERVAL = 2.0**16, 2000


class LossScale:
    """`scale` (float32, a power of 2, at least 1), and the number of good steps since it last changed (int32)."""

    def __init__(self, initial: float = INITIAL, growth_interval: int = GROWTH_INTERVAL):
        self.growth_interval = growth_interval
        self.scale = keras.Variable(initial, dtype="float32", trainable=False, name="scale")
        self.good_steps = keras.Variable(0, dtype="int32", trainable=False, name="good_steps")

    @property
    def variables(self) -> dict[str, keras.Variable]:
        return {"loss_scale/scale": self.scale, "loss_scale/good_steps": self.good_steps}

    def update(self, finite: Tensor) -> None:
        """After a step whose gradients were all finite, or not (a scalar, bool)."""
        scale, good = ops.convert_to_tensor(self.scale), ops.convert_to_tensor(self.good_steps) + 1
        grows = good >= self.growth_interval
        self.scale.assign(ops.where(finite, ops.where(grows, scale * 2.0, scale), ops.maximum(scale * 0.5, 1.0)))
        self.good_steps.assign(ops.where(ops.logical_and(finite, ops.logical_not(grows)), good, 0))
