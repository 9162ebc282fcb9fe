"""The sections `optimizer`, `schedule` and `run`."""

from __future__ import annotations

from pathlib import Path
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
from retina.errors import RetinaError

NO_DECAY = ("*bias", "*gamma", "*beta")
WARMUP_FACTOR, STEP_FACTOR = 0.001, 0.1


class _Optimizer(Section):
    """Settings that both kinds share. `no_decay` and `rates` name weights by patterns, with `*` for anything:
    `backbone/*`, `fpn/*`, `classification/*`, `box/*`, `*/kernel`.
    """

    kind: str
    """Kind of optimizer."""

    learning_rate: PositiveFloat
    """Learning rate at the schedule's peak."""

    base_batch_size: PositiveInt | None = None
    """Number of images that `learning_rate` is meant for: it is multiplied by `run.batch_size / base_batch_size`
    (linear scaling, arXiv:1706.02677, section 2.1). Null takes it as it is."""

    weight_decay: NonNegativeFloat = 1e-4
    """Factor of the weight decay: added to the gradient for sgd, apart from it for adamw (w ← w - rate · decay · w).
    1e-4 is that of arXiv:1708.02002, section 4.1."""

    no_decay: tuple[str, ...] = NO_DECAY
    """Patterns of the weights without weight decay; the default are biases and normalisations. A pattern of your own
    must match."""

    rates: dict[str, NonNegativeFloat] = Field(default={})
    """Patterns of weights and the factors of their learning rate, for instance {backbone/*: 0.1}; the first match
    counts, and a pattern must match."""

    clip_norm: PositiveFloat | None = None
    """Bound on the norm of all gradients together: where it is larger, they are all scaled down to it, before SGD's
    weight decay is added. Null clips nothing."""

    @model_validator(mode="after")
    def _decays_something(self) -> _Optimizer:
        if self.no_decay != NO_DECAY and not self.weight_decay:
            raise ValueError("no_decay has no effect with weight_decay: 0; remove one of them")
        return self


class Sgd(_Optimizer):
    """Stochastic gradient descent with momentum, v ← m · v + g and w ← w - rate · v, as in the paper's code and in
    PyTorch."""

    kind: Literal["sgd"] = "sgd"
    """SGD with momentum; the default, as in arXiv:1708.02002, section 4.1."""

    learning_rate: PositiveFloat = 0.01
    """Learning rate at the schedule's peak. 0.01 is the paper's for batches of 16 images (section 4.1): with 8, set
    `base_batch_size: 16` or lower it."""

    momentum: Annotated[Float, Field(ge=0, lt=1)] = 0.9
    """Share m of the old velocity that a step keeps; 0.9 is the paper's."""


class AdamW(_Optimizer):
    """Adam with decoupled weight decay (arXiv:1711.05101)."""

    kind: Literal["adamw"] = "adamw"
    """AdamW, as in the digits demo."""

    learning_rate: PositiveFloat = 1e-3
    """Learning rate at the schedule's peak; 1e-3 is Adam's customary one (arXiv:1412.6980)."""

    beta_1: Annotated[Float, Field(ge=0, lt=1)] = 0.9
    """Share of the old mean of the gradients that a step keeps; 0.9 is Adam's."""

    beta_2: Annotated[Float, Field(ge=0, lt=1)] = 0.999
    """Share of the old mean of the squared gradients that a step keeps; 0.999 is Adam's."""


Optimizer = Annotated[Union[Sgd, AdamW], Field(discriminator="kind")]


class _Warmup(Section):
    """Length of the run, and a linear warm-up from its start. A step is one update of the weights."""

    steps: PositiveInt | None = None
    """Steps of the whole run, warm-up included. Give these or `epochs`."""

    epochs: PositiveFloat | None = None
    """Length of the whole run in epochs, each of which shows every training image once, in the place of `steps`. A run
    turns them into steps before its first, logs how many, and keeps the steps in their place."""

    warmup_steps: NonNegativeInt = 0
    """Steps over which a factor of the learning rate rises linearly from `warmup_factor` to 1; at most `steps`."""

    warmup_factor: Fraction = WARMUP_FACTOR
    """Factor of the learning rate at the first step of a warm-up; 0.001 is detectron2's."""

    @property
    def length(self) -> int:
        """Steps of the whole run.

        Raises:
            RetinaError: it is given in `epochs`, which `retina.data.batches.plan.with_steps` turns into steps.
        """
        if self.steps is None:
            raise RetinaError(
                f"schedule.epochs: expected a number of steps here, got {self.epochs:g} epochs, whose steps follow "
                "from the training images; set schedule.steps"
            )
        return self.steps

    @model_validator(mode="after")
    def _shorter(self) -> _Warmup:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"give either steps or epochs, got {'neither' if self.steps is None else 'both'}")
        if self.steps is not None and self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must not exceed steps ({self.steps})")
        if self.warmup_factor != WARMUP_FACTOR and not self.warmup_steps:
            raise ValueError("warmup_factor has no effect with warmup_steps: 0; remove it, or set warmup_steps")
        return self


class StepSchedule(_Warmup):
    """The learning rate falls in steps, as in arXiv:1708.02002, section 4.1."""

    kind: Literal["step"] = "step"
    """Multiplied by `factor` at each of `milestones`."""

    milestones: tuple[PositiveInt, ...] = ()
    """Steps at which the learning rate falls, increasing, below `steps`. The paper's are 60000 and 80000 of 90000."""

    factor: Annotated[Float, Field(gt=0, lt=1)] = STEP_FACTOR
    """Factor of the learning rate at each of `milestones`; 0.1 is the paper's."""

    @model_validator(mode="after")
    def _increasing(self) -> StepSchedule:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must increase, got {list(self.milestones)}")
        if self.milestones and self.steps is not None and self.milestones[-1] >= self.steps:
            raise ValueError(f"milestone {self.milestones[-1]} has no effect: it must be below steps ({self.steps})")
        if self.factor != STEP_FACTOR and not self.milestones:
            raise ValueError("factor has no effect without milestones; remove it, or set milestones")
        return self


class CosineSchedule(_Warmup):
    """The learning rate falls along a half cosine (arXiv:1608.03983, without restarts)."""

    kind: Literal["cosine"] = "cosine"
    """A half cosine over all of `steps`."""

    final_factor: Fraction = 0.0
    """Learning rate of the last step as a share of the peak."""


class ConstantSchedule(_Warmup):
    """The learning rate stays at its peak."""

    kind: Literal["constant"] = "constant"
    """The peak throughout, after the warm-up."""


Schedule = Annotated[Union[StepSchedule, CosineSchedule, ConstantSchedule], Field(discriminator="kind")]


class Ema(Section):
    """A moving average of the weights, a ← d · a + (1 - d) · w after each update; evaluation and export use it.

    The moving statistics of batch normalisation are averaged like the weights that they belong to.
    """

    decay: Annotated[Float, Field(gt=0, lt=1)] = 0.9998
    """Share d of the old average that an update keeps; 0.9998 is that of the code of YOLOX (arXiv:2107.08430) and
    averages over some 5,000 updates."""

    warmup: bool = True
    """Whether d is at most (1 + t) / (10 + t) after t updates, so that the first weights, far from any that are good,
    don't linger."""


class EarlyStopping(Section):
    """End of the run once the validation data has not shown a better detector for a while."""

    patience: PositiveInt
    """Evaluations in a row without a rise of `metric` by more than `min_delta` after which the run ends."""

    min_delta: NonNegativeFloat = 0.0
    """Rise that counts, a fraction as AP is: 0.001 is a tenth of a point."""

    metric: Literal["AP", "AP50", "AP75"] | None = None
    """Figure to watch; null takes `evaluation.metric`."""


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
    """The machines that train one run together, a process on each (JAX only)."""

    coordinator: Annotated[str, AfterValidator(_address)]
    """Address (`name:port`) of host 0 that every host reaches, such as node1:1234."""

    count: Annotated[Int, Field(ge=2)]
    """Number of hosts."""

    index: NonNegativeInt
    """Number of this host, from 0 to `count` - 1; host 0 writes the run."""

    @model_validator(mode="after")
    def _below_count(self) -> Hosts:
        if self.index >= self.count:
            raise ValueError(f"index ({self.index}) must be below count ({self.count}); the first host's is 0")
        return self


class Run(Section):
    """The course of a run: batches, precision, devices, and what is written when."""

    seed: Annotated[Int, Field(ge=0, lt=2**32)] = 0
    """Seed of everything drawn by chance: first weights, order of the images, augmentation."""

    batch_size: PositiveInt = 8
    """Images of one update, over all devices and hosts; a multiple of `accumulate` x `devices` x hosts. The paper
    trains with 16."""

    accumulate: PositiveInt = 1
    """Parts that a batch is split into, which go through the network one after another for less memory: the same
    update, except that batch normalisation in training sees a part at a time."""

    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    """Number format of the network's layers; boxes, losses and weights are float32 under all. `mixed_bfloat16` saves
    memory and time on hardware that has it; `mixed_float16` also scales the loss."""

    xla: Literal["auto", "on", "off"] = "auto"
    """Whether XLA compiles the step. JAX always does, PyTorch never; TensorFlow with `auto` does on one GPU, which is
    not measured yet, and not on a CPU, where it is slower."""

    compilation_cache: Literal["auto"] | Path | None = "auto"
    """Folder in which JAX keeps what it has compiled, so that the next run of the same network and canvases starts at
    once. `auto` is a folder of retina's in the user's cache (`XDG_CACHE_HOME`, `~/.cache`), or JAX's own
    `JAX_COMPILATION_CACHE_DIR` where that is set; null keeps nothing. It changes no result."""

    ema: Ema | None = None
    """Moving average of the weights; null keeps none. `run.ema={}` switches it on."""

    deterministic: bool = False
    """Whether equal runs on equal hardware and versions give equal bits, for which slower kernels may be needed."""

    devices: Annotated[int | Literal["all"], BeforeValidator(_devices)] = 1
    """Devices of one host that share each batch: a number of at least 1, or `all` that the backend sees; PyTorch takes
    one. It changes a result by no more than rounding, except that `model.batch_norm: train` on TensorFlow normalises by
    the images of a device."""

    hosts: Hosts | None = None
    """Machines that share each batch, where there are several; null is this one alone. It changes a result by no more
    than rounding."""

    evaluate_every: PositiveInt | None = None
    """Steps between evaluations on the validation data, each with a checkpoint; null evaluates at the end only."""

    early_stopping: EarlyStopping | None = None
    """End of the run before `schedule.steps` once evaluations no longer improve, with `evaluate_every`; null never ends
    early."""

    checkpoint_every: PositiveInt | None = None
    """Steps between checkpoints; null writes them after evaluations, at the end and by `checkpoint_minutes` only. It
    changes no result."""

    checkpoint_minutes: PositiveFloat | None = 15.0
    """Minutes without a checkpoint after which one is written, the most that a crash can cost; null never does. It
    changes no result."""

    keep: PositiveInt = 2
    """Number of the newest checkpoints that stay, beside the best on the validation data. It changes no result."""

    log_every: PositiveInt = 20
    """Steps between lines of `metrics.jsonl` and the log. It changes no result."""

    pictures: NonNegativeInt = 6
    """Validation images of which each evaluation draws the detections; 0 draws none."""

    report: bool = True
    """Whether `retina train` ends with the run's page, `report/index.html` (in Python: `retina.write_report`)."""

    trackers: tuple[Literal["wandb", "mlflow"], ...] = ()
    """Services that are also sent the settings and the figures of `metrics.jsonl`: `wandb` (project `retina`) and
    `mlflow`, each with the extra of its name, set up by its own environment variables (`WANDB_MODE=offline`,
    `MLFLOW_TRACKING_URI`). A run that goes on is their same run. A service that fails is a warning in the log, and the
    run goes on without it. It changes no result."""

    preflight: Literal["refuse", "warn", "off"] = "refuse"
    """Check of the data before the first step, as by `retina doctor`: `refuse` ends the command where training would be
    hopeless, `warn` says so in the log and trains, `off` does not look."""

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
