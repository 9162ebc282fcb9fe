"""The sections `optimizer`, `schedule` and `run`."""

from __future__ import annotations

from typing import Annotated, Literal, Union

from pydantic import Field, model_validator

from retina.config.values import (
    Float,
    Fraction,
    Int,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
)


class Sgd(Section):
    kind: Literal["sgd"] = "sgd"
    learning_rate: PositiveFloat = 0.01
    momentum: Annotated[Float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegativeFloat = 1e-4
    clip_norm: PositiveFloat | None = None


class AdamW(Section):
    kind: Literal["adamw"] = "adamw"
    learning_rate: PositiveFloat = 1e-3
    beta_1: Annotated[Float, Field(ge=0, lt=1)] = 0.9
    beta_2: Annotated[Float, Field(ge=0, lt=1)] = 0.999
    weight_decay: NonNegativeFloat = 1e-4
    clip_norm: PositiveFloat | None = None


Optimizer = Annotated[Union[Sgd, AdamW], Field(discriminator="kind")]


class _Warmup(Section):
    steps: PositiveInt
    warmup_steps: NonNegativeInt = 0
    warmup_factor: Fraction = 0.001

    @model_validator(mode="after")
    def _shorter(self) -> _Warmup:
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must not exceed steps ({self.steps})")
        return self


class StepSchedule(_Warmup):
    """The learning rate is multiplied by `factor` at each of `milestones` (steps)."""

    kind: Literal["step"] = "step"
    milestones: tuple[PositiveInt, ...] = ()
    factor: Annotated[Float, Field(gt=0, lt=1)] = 0.1

    @model_validator(mode="after")
    def _increasing(self) -> StepSchedule:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must increase, got {list(self.milestones)}")
        if self.milestones and self.milestones[-1] >= self.steps:
            raise ValueError(f"milestone {self.milestones[-1]} has no effect: it must be below steps ({self.steps})")
        return self


class CosineSchedule(_Warmup):
    """The learning rate falls along a half cosine to `final_factor` times its peak."""

    kind: Literal["cosine"] = "cosine"
    final_factor: Fraction = 0.0


Schedule = Annotated[Union[StepSchedule, CosineSchedule], Field(discriminator="kind")]


class Run(Section):
    """`evaluate_every` and `checkpoint_every` are in steps; null means at the end only."""

    seed: Annotated[Int, Field(ge=0, lt=2**32)] = 0
    batch_size: PositiveInt = 8
    precision: Literal["float32", "mixed_bfloat16"] = "float32"
    deterministic: bool = False
    evaluate_every: PositiveInt | None = None
    checkpoint_every: PositiveInt | None = None
    log_every: PositiveInt = 20
    pictures: NonNegativeInt = 6
