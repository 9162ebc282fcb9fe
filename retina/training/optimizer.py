"""Optimizers, their learning-rate schedules, and the gradients' clipping and weight decay."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import keras
from keras import ops

from retina import config
from retina.config.recipe import NO_DECAY
from retina.errors import RetinaError
from retina.private_names import adam_slots, updates_in_turn, variable_index

Tensor = Any


@keras.saving.register_keras_serializable("retina")
class LearningRate(keras.optimizers.schedules.LearningRateSchedule):
    """Learning rate of step s (0-based): a linear warm-up, then a constant, steps or a half cosine.

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
            share = ops.minimum(step / max(s.length - 1, 1), 1.0)
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


def _in_a_mirrored_update() -> bool:
    """Tell whether `MirroredStep` calls: it has added the gradients up and goes through the replicas itself."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return tf.distribute.has_strategy() and tf.distribute.in_cross_replica_context()


@updates_in_turn(_in_a_mirrored_update)
class _WithRates(keras.optimizers.Optimizer):
    """Base of optimizers whose `rates` multiply the learning rate of the variables that a pattern matches."""

    rates: Mapping[str, float]

    def build(self, variables: list[keras.Variable]) -> None:
        super().build(variables)
        _check_patterns("rates", self.rates, variables)
        self._factors = [_factor(v, self.rates) for v in variables]

    def rate_of(self, variable: Any, learning_rate: Tensor) -> Tensor:
        """Return a variable's learning rate."""
        factor = self._factors[variable_index(self, variable)]
        return learning_rate if factor == 1.0 else factor * learning_rate


def _on_tensorflow(rule: str, **arguments: Any) -> None:
    """Update a variable and its slots by TensorFlow's kernel of a rule: it takes a single pass over them, where
    operations of their own take three to five."""
    import tensorflow as tf

    variables = {name: x.value if isinstance(x, keras.Variable) else x for name, x in arguments.items()}
    handles = {name: x.handle if isinstance(x, tf.Variable) else x for name, x in variables.items()}
    getattr(tf.raw_ops, f"ResourceApply{rule}")(**handles)


@keras.saving.register_keras_serializable("retina")
class MomentumSGD(_WithRates, keras.optimizers.SGD):
    """Stochastic gradient descent with momentum, as in the paper's code and in PyTorch: v ← m·v + g, w ← w - rate·v.

    `keras.optimizers.SGD` keeps rate·g in v, so that after a step of the schedule old gradients go on at the old rate.

    Args:
        rates: factors of the learning rate by pattern, see `config.Sgd`; the others as of `keras.optimizers.SGD`.
    """

    def __init__(self, *args: Any, rates: Mapping[str, float] | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.rates = dict(rates or {})

    def update_step(self, gradient: Tensor, variable: Any, learning_rate: Tensor) -> None:
        gradient = ops.cast(gradient, variable.dtype)
        rate = ops.cast(self.rate_of(variable, learning_rate), variable.dtype)
        velocity = gradient
        if self.momentum:
            slot = self.momentums[variable_index(self, variable)]
            if keras.backend.backend() == "tensorflow":
                _on_tensorflow("Momentum", var=variable, accum=slot, lr=rate, grad=gradient, momentum=self.momentum)
                return
            velocity = ops.cast(self.momentum, variable.dtype) * slot + gradient
            self.assign(slot, velocity)
        self.assign_sub(variable, rate * velocity)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rates": self.rates}


@keras.saving.register_keras_serializable("retina")
class AdamW(_WithRates, keras.optimizers.Adam):
    """Adam with decoupled weight decay: w ← w - rate·decay·w before each update (Loshchilov & Hutter 2019,
    arXiv:1711.05101).

    `keras.optimizers.AdamW` chooses the variables that decay by names without their layers, and differently on each
    backend.

    Args:
        decay: the factor.
        no_decay, rates: patterns, see `config.AdamW`; the others as of `keras.optimizers.Adam`.
    """

    def __init__(
        self,
        *args: Any,
        decay: float = 0.0,
        no_decay: Sequence[str] = NO_DECAY,
        rates: Mapping[str, float] | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.decay, self.no_decay, self.rates = decay, tuple(no_decay), dict(rates or {})

    def build(self, variables: list[keras.Variable]) -> None:
        super().build(variables)
        check_no_decay(self.no_decay, variables)
        self._decays = [decays(v, self.no_decay) for v in variables]

    def update_step(self, gradient: Tensor, variable: Any, learning_rate: Tensor) -> None:
        rate = ops.cast(self.rate_of(variable, learning_rate), variable.dtype)
        index = variable_index(self, variable)
        if self.decay and self._decays[index]:
            self.assign_sub(variable, ops.convert_to_tensor(variable) * (ops.cast(self.decay, variable.dtype) * rate))
        if keras.backend.backend() != "tensorflow" or self.amsgrad:
            super().update_step(gradient, variable, rate)
            return
        momentum, velocity = adam_slots(self, index)
        step = ops.cast(self.iterations + 1, variable.dtype)
        _on_tensorflow(
            "Adam",
            var=variable,
            m=momentum,
            v=velocity,
            beta1_power=ops.power(self.beta_1, step),
            beta2_power=ops.power(self.beta_2, step),
            lr=rate,
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=ops.cast(gradient, variable.dtype),
        )

    def get_config(self) -> dict[str, Any]:
        settings = {"decay": self.decay, "no_decay": list(self.no_decay), "rates": self.rates}
        return {**super().get_config(), **settings}


def build_optimizer(
    optimizer: config.Optimizer, schedule: config.Schedule, batch_size: int | None = None
) -> keras.optimizers.Optimizer:
    """Build SGD with momentum, or AdamW, with the schedule as its learning rate.

    SGD's weight decay is not Keras' (decoupled from the momentum): `prepare_gradients` adds it to the gradient, as in
    the paper's code. AdamW's is decoupled.

    Args:
        batch_size: images an update, over all devices; needed where `optimizer.base_batch_size` is set.

    Raises:
        RetinaError: `batch_size` is missing; or, when the optimizer is built, a pattern matches no variable.
    """
    rate = learning_rate(optimizer, schedule, batch_size)
    if optimizer.kind == "sgd":
        return MomentumSGD(rate, momentum=optimizer.momentum, rates=optimizer.rates, name="sgd")
    return AdamW(
        rate,
        decay=optimizer.weight_decay,
        no_decay=optimizer.no_decay,
        rates=optimizer.rates,
        beta_1=optimizer.beta_1,
        beta_2=optimizer.beta_2,
        name="adamw",
    )


def learning_rate(
    optimizer: config.Optimizer, schedule: config.Schedule, batch_size: int | None = None
) -> LearningRate:
    """Return the learning rate as a function of the step; arguments and errors as of `build_optimizer`."""
    return LearningRate(peak_rate(optimizer, batch_size), schedule)


def peak_rate(optimizer: config.Optimizer, batch_size: int | None) -> float:
    """Return the learning rate at the schedule's peak: scaled to the batch where `base_batch_size` is set.

    Example: 0.01 for a base batch of 16 is 0.04 for a batch of 64.
    """
    if optimizer.base_batch_size is None:
        return optimizer.learning_rate
    if batch_size is None:
        raise RetinaError(
            "optimizer.base_batch_size: expected a batch size beside it, got none; give build_optimizer one"
        )
    return optimizer.learning_rate * batch_size / optimizer.base_batch_size


def part_path(path: str) -> str:
    """Return a variable's path as patterns match it: from the part of the detector on.

    Example: `conv1_conv/kernel` is `backbone/conv1_conv/kernel`, `detector/fpn/smooth_p3/bias` is `fpn/smooth_p3/bias`.
    """
    return path.removeprefix("detector/") if path.startswith("detector/") else f"backbone/{path}"


def decays(variable: keras.Variable, no_decay: Sequence[str] = NO_DECAY) -> bool:
    """Tell whether a variable has weight decay: by default kernels have, biases and normalisations have not."""
    return not any(fnmatchcase(part_path(variable.path), pattern) for pattern in no_decay)


def check_no_decay(patterns: Sequence[str], variables: Sequence[keras.Variable]) -> None:
    """Check that every pattern matches a variable, those of the default left out.

    Raises:
        RetinaError: a pattern matches no variable.
    """
    _check_patterns("no_decay", [pattern for pattern in patterns if pattern not in NO_DECAY], variables)


def _check_patterns(key: str, patterns: Sequence[str] | Mapping[str, float], variables: Sequence[Any]) -> None:
    paths = [part_path(v.path) for v in variables]
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in paths):
            near = difflib.get_close_matches(pattern, paths, n=1, cutoff=0.0)
            raise RetinaError(
                f"optimizer.{key}: '{pattern}' matches no trainable variable; the nearest is '{near[0]}': correct it, "
                "or remove it"
            )


def _factor(variable: keras.Variable, rates: Mapping[str, float]) -> float:
    return next((rate for pattern, rate in rates.items() if fnmatchcase(part_path(variable.path), pattern)), 1.0)


def global_norm(gradients: list[Tensor]) -> Tensor:
    """Return the root of the sum of all squares, a float32 scalar."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.linalg.global_norm(gradients)  # its kernel is several times faster than squares and sums
    return ops.sqrt(sum(ops.sum(ops.square(ops.cast(g, "float32"))) for g in gradients))


def prepare_gradients(
    gradients: list[Tensor], variables: list[keras.Variable], optimizer: config.Optimizer, norm: Tensor
) -> list[Tensor]:
    """Return the gradients for the optimizer: clipped by their global `norm`, and with SGD's weight decay added."""
    if optimizer.clip_norm is not None:
        factor = optimizer.clip_norm / ops.maximum(norm, optimizer.clip_norm)
        gradients = [g * ops.cast(factor, g.dtype) for g in gradients]
    if optimizer.kind == "sgd" and optimizer.weight_decay:
        gradients = [
            g + optimizer.weight_decay * ops.convert_to_tensor(v) if decays(v, optimizer.no_decay) else g
            for g, v in zip(gradients, variables, strict=True)
        ]
    return gradients
