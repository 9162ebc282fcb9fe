"""Learning-rate schedules: linear warm-up, then a constant, steps or a half cosine."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from retina import config

Tensor = Any


@keras.saving.register_keras_serializable("retina")
class LearningRate(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate of step s (0-based: the rate that update s uses).

    During warm-up the factor rises linearly from `warmup_factor` at step 0 to 1 at `warmup_steps`. It multiplies the
    schedule, which counts its steps from the start of the run, warm-up included.
    """

    def __init__(self, peak: float, schedule: config.Schedule):
        self.peak, self.schedule = peak, schedule

    def __call__(self, step: Tensor) -> Tensor:
        step = ops.cast(step, "float32")
        return self.peak * self._warmup(step) * self._decay(step)

    def _warmup(self, step: Tensor) -> Tensor:
        s = self.schedule
        if s.warmup_steps == 0:
            return ops.ones_like(step)
        share = ops.minimum(step / s.warmup_steps, 1.0)
        return s.warmup_factor + (1.0 - s.warmup_factor) * share

    def _decay(self, step: Tensor) -> Tensor:
        s = self.schedule
        if s.kind == "cosine":
            # The rate of the last update, not of the one after it, is the final one.
            share = ops.minimum(step / max(s.steps - 1, 1), 1.0)
            return s.final_factor + (1.0 - s.final_factor) * 0.5 * (1.0 + ops.cos(math.pi * share))
        factor = ops.ones_like(step)
        if s.kind == "constant":
            return factor
        for milestone in s.milestones:
            factor = ops.where(step >= milestone, factor * s.factor, factor)
        return factor

    def get_config(self) -> dict[str, Any]:
        return {"peak": self.peak, "schedule": self.schedule.model_dump(mode="json")}

    @classmethod
    def from_config(cls, values: dict[str, Any]) -> LearningRate:
        kinds: dict[str, type[config.StepSchedule] | type[config.CosineSchedule] | type[config.ConstantSchedule]] = {
            "step": config.StepSchedule,
            "cosine": config.CosineSchedule,
            "constant": config.ConstantSchedule,
        }
        return cls(values["peak"], kinds[values["schedule"]["kind"]].model_validate(values["schedule"]))
