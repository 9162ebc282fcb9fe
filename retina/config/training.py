"""The sections `optimizer`, `schedule` and `run`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Union

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

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

NO_DECAY = ("*bias", "*gamma", "*beta")
WARMUP_FACTOR, STEP_FACTOR = 0.001, 0.1


class _Optimizer(Section):
    """What both kinds share.

    `learning_rate` is multiplied by `run.batch_size / base_batch_size` where that is given (linear scaling,
    arXiv:1706.02677, section 2.1). Weight decay leaves alone what `no_decay` names, by default biases and
    normalisations; `rates` multiplies the learning rate of what it names, the first match counts. Both name weights by
    patterns, with `*` for anything: `backbone/*`, `fpn/*`, `classification/*`, `box/*`, `*/kernel`.
    """

    kind: str
    learning_rate: PositiveFloat
    base_batch_size: PositiveInt | None = None
    weight_decay: NonNegativeFloat = 1e-4
    no_decay: tuple[str, ...] = NO_DECAY
    rates: dict[str, NonNegativeFloat] = Field(default={})
    clip_norm: PositiveFloat | None = None

    @model_validator(mode="after")
    def _decays_something(self) -> _Optimizer:
        if self.no_decay != NO_DECAY and not self.weight_decay:
            raise ValueError("no_decay has no effect with weight_decay: 0; remove one of them")
        return self


class Sgd(_Optimizer):
    kind: Literal["sgd"] = "sgd"
    learning_rate: PositiveFloat = 0.01
    momentum: Annotated[Float, Field(ge=0, lt=1)] = 0.9


class AdamW(_Optimizer):
    kind: Literal["adamw"] = "adamw"
    learning_rate: PositiveFloat = 1e-3
    beta_1: Annotated[Float, Field(ge=0, lt=1)] = 0.9
    beta_2: Annotated[Float, Field(ge=0, lt=1)] = 0.999


Optimizer = Annotated[Union[Sgd, AdamW], Field(discriminator="kind")]


class _Warmup(Section):
    steps: PositiveInt
    warmup_steps: NonNegativeInt = 0
    warmup_factor: Fraction = WARMUP_FACTOR

    @model_validator(mode="after")
    def _shorter(self) -> _Warmup:
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must not exceed steps ({self.steps})")
        if self.warmup_factor != WARMUP_FACTOR and not self.warmup_steps:
            raise ValueError("warmup_factor has no effect with warmup_steps: 0; remove it, or set warmup_steps")
        return self


class StepSchedule(_Warmup):
    """The learning rate is multiplied by `factor` at each of `milestones` (steps)."""

    kind: Literal["step"] = "step"
    milestones: tuple[PositiveInt, ...] = ()
    factor: Annotated[Float, Field(gt=0, lt=1)] = STEP_FACTOR

    @model_validator(mode="after")
    def _increasing(self) -> StepSchedule:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must increase, got {list(self.milestones)}")
        if self.milestones and self.milestones[-1] >= self.steps:
            raise ValueError(f"milestone {self.milestones[-1]} has no effect: it must be below steps ({self.steps})")
        if self.factor != STEP_FACTOR and not self.milestones:
            raise ValueError("factor has no effect without milestones; remove it, or set milestones")
        return self


class CosineSchedule(_Warmup):
    """The learning rate falls along a half cosine to `final_factor` times its peak."""

    kind: Literal["cosine"] = "cosine"
    final_factor: Fraction = 0.0


class ConstantSchedule(_Warmup):
    """The learning rate stays at its peak."""

    kind: Literal["constant"] = "constant"


Schedule = Annotated[Union[StepSchedule, CosineSchedule, ConstantSchedule], Field(discriminator="kind")]


class Ema(Section):
    """A moving average of the weights, a ← d · a + (1 - d) · w after each update; evaluation and export use it.

    The moving statistics of batch normalisation are averaged like the weights that they belong to. With `warmup`, d is
    at most (1 + t) / (10 + t) after t updates, so that the first weights, far from any that are good, don't linger.
    """

    decay: Annotated[Float, Field(gt=0, lt=1)] = 0.9998
    warmup: bool = True


class EarlyStopping(Section):
    """The run ends once `patience` evaluations in a row have not raised `metric` by more than `min_delta`.

    `metric` null is `evaluation.metric`.
    """

    patience: PositiveInt
    min_delta: NonNegativeFloat = 0.0
    metric: Literal["AP", "AP50", "AP75"] | None = None


def _address(text: str) -> str:
    name, _, port = text.rpartition(":")
    if not name or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"expected an address with its port, such as node1:1234, got '{text}'")
    return text


def _devices(value: Any) -> Any:
    if value != "all" and (type(value) is not int or value < 1):
        raise ValueError(f"expected a number of at least 1, or all, got {value!r}")
    return value


class Hosts(Section):
    """The machines that train one run together, a process on each, this one's `index` counted from 0.

    `coordinator` is an address (`name:port`) of host 0 that every host reaches.
    """

    coordinator: Annotated[str, AfterValidator(_address)]
    count: Annotated[Int, Field(ge=2)]
    index: NonNegativeInt

    @model_validator(mode="after")
    def _one_of_them(self) -> Hosts:
        if self.index >= self.count:
            raise ValueError(f"index ({self.index}) must be below count ({self.count}); the first host's is 0")
        return self


class Run(Section):
    """`batch_size` images make one update, over all devices. `accumulate` splits them into that many parts, which go
    through the network one after another for less memory: the same update, except that batch normalisation in training
    sees a part at a time. `xla` compiles the step by XLA. JAX always does; TensorFlow with `auto` does on a GPU, which
    is not measured yet, and not on a CPU, where it is slower.

    `devices` are those of one host that share each batch, or `all` that its backend sees; `hosts` are the machines that
    share it, where there are several (JAX only). Neither changes a result by more than rounding, except that
    `model.batch_norm: train` on TensorFlow normalises by the images of a device.

    `evaluate_every` and `checkpoint_every` are in steps; null means at the end only.

    Every evaluation is followed by a checkpoint, and `checkpoint_minutes` without one are, too (null: never). The
    newest `keep` stay, and the best on the validation data. None of this changes a run's result.

    `report`: the command `retina train` ends with the run's page, `report/index.html` (in Python:
    `retina.write_report`).
    """

    seed: Annotated[Int, Field(ge=0, lt=2**32)] = 0
    batch_size: PositiveInt = 8
    accumulate: PositiveInt = 1
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    xla: Literal["auto", "on", "off"] = "auto"
    ema: Ema | None = None
    deterministic: bool = False
    devices: Annotated[int | Literal["all"], BeforeValidator(_devices)] = 1
    hosts: Hosts | None = None
    evaluate_every: PositiveInt | None = None
    early_stopping: EarlyStopping | None = None
    checkpoint_every: PositiveInt | None = None
    checkpoint_minutes: PositiveFloat | None = 15.0
    keep: PositiveInt = 2
    log_every: PositiveInt = 20
    pictures: NonNegativeInt = 6
    report: bool = True
    preflight: Literal["refuse", "warn", "off"] = "refuse"

    @model_validator(mode="after")
    def _equal_parts(self) -> Run:
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size ({self.batch_size}) must be a multiple of accumulate ({self.accumulate})")
        hosts = 1 if self.hosts is None else self.hosts.count
        devices = 1 if self.devices == "all" else self.devices
        if self.batch_size % (self.accumulate * devices * hosts):
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of accumulate ({self.accumulate}) x devices "
                f"({devices}) x hosts ({hosts}): each device gets as many images of each part"
            )
        return self

    @model_validator(mode="after")
    def _stops_at_evaluations(self) -> Run:
        if self.early_stopping is not None and self.evaluate_every is None:
            raise ValueError("early_stopping has no effect without evaluations on the way; set run.evaluate_every")
        return self
