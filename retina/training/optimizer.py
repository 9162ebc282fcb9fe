"""Optimizers, and what happens to gradients on the way to them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import keras
from keras import ops

from retina import config
from retina.config.recipe import NO_DECAY
from retina.errors import RetinaError
from retina.training.schedule import LearningRate

Tensor = Any


class _Rated(keras.optimizers.Optimizer):
    """Multiplies the learning rate of the variables that `rates` names."""

    rates: Mapping[str, float]

    def build(self, variables: list[keras.Variable]) -> None:
        super().build(variables)
        _check_patterns("rates", self.rates, variables)
        self._factors = [_factor(v, self.rates) for v in variables]

    def _backend_update_step(self, gradients: list[Tensor], variables: list[Any], learning_rate: Tensor) -> None:
        if not _in_a_mirrored_update():
            return super()._backend_update_step(gradients, variables, learning_rate)
        # Keras would add up the gradients and go through the devices: `retina.training.mirrored` has done both.
        for gradient, variable in zip(gradients, variables, strict=True):
            self.update_step(gradient, variable, learning_rate)

    def rate_of(self, variable: Any, learning_rate: Tensor) -> Tensor:
        factor = self._factors[self._get_variable_index(variable)]
        return learning_rate if factor == 1.0 else factor * learning_rate


def _in_a_mirrored_update() -> bool:
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return tf.distribute.has_strategy() and tf.distribute.in_cross_replica_context()


@keras.saving.register_keras_serializable("retina")
class MomentumSGD(_Rated, keras.optimizers.SGD):
    """v ← m·v + g, w ← w - rate·v, as in the paper's code and in PyTorch.

    Keras' own keeps rate·g in v, so that after a step of the schedule old gradients go on at the old rate.

    Args:
        rates: factors of the learning rate by pattern, see `config.Sgd`; the others as of `keras.optimizers.SGD`.
    """

    def __init__(self, *args: Any, rates: Mapping[str, float] | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.rates = dict(rates or {})

    def update_step(self, gradient: Tensor, variable: Any, learning_rate: Tensor) -> None:
        gradient = ops.cast(gradient, variable.dtype)
        velocity = gradient
        if self.momentum:
            slot = self.momentums[self._get_variable_index(variable)]
            velocity = ops.cast(self.momentum, variable.dtype) * slot + gradient
            self.assign(slot, velocity)
        self.assign_sub(variable, ops.cast(self.rate_of(variable, learning_rate), variable.dtype) * velocity)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rates": self.rates}


@keras.saving.register_keras_serializable("retina")
class AdamW(_Rated, keras.optimizers.Adam):
    """Adam, and w ← w - rate·decay·w before each update (Loshchilov & Hutter 2019, arXiv:1711.05101).

    Keras' own tells the variables that decay by names without their layers, and differently on each backend.

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
        if self.decay and self._decays[self._get_variable_index(variable)]:
            self.assign_sub(variable, ops.convert_to_tensor(variable) * ops.cast(self.decay, variable.dtype) * rate)
        super().update_step(gradient, variable, rate)

    def get_config(self) -> dict[str, Any]:
        own = {"decay": self.decay, "no_decay": list(self.no_decay), "rates": self.rates}
        return {**super().get_config(), **own}


def build_optimizer(
    optimizer: config.Optimizer, schedule: config.Schedule, batch_size: int | None = None
) -> keras.optimizers.Optimizer:
    """SGD with momentum, or AdamW, under the schedule.

    SGD's weight decay is not Keras' (decoupled from the momentum): `prepare_gradients` adds it to the gradient, as in
    the paper's code. AdamW's is decoupled.

    Args:
        batch_size: images an update, over all devices; needed where `optimizer.base_batch_size` is set.

    Raises:
        RetinaError: `batch_size` is missing; or, when the optimizer is built, a pattern matches no variable.
    """
    rate = LearningRate(peak_rate(optimizer, batch_size), schedule)
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


def peak_rate(optimizer: config.Optimizer, batch_size: int | None) -> float:
    """The learning rate at the schedule's peak: scaled to the batch where `base_batch_size` is set.

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
    """A variable's path as patterns see it: from the part of the detector on.

    Example: `conv1_conv/kernel` is `backbone/conv1_conv/kernel`, `detector/fpn/smooth_p3/bias` is `fpn/smooth_p3/bias`.
    """
    return path.removeprefix("detector/") if path.startswith("detector/") else f"backbone/{path}"


def decays(variable: keras.Variable, no_decay: Sequence[str] = NO_DECAY) -> bool:
    """Whether a variable has weight decay: by default kernels have, biases and normalisations have not."""
    return not any(fnmatchcase(part_path(variable.path), pattern) for pattern in no_decay)


def check_no_decay(patterns: Sequence[str], variables: Sequence[keras.Variable]) -> None:
    """Patterns that are not the default's must match.

    Raises:
        RetinaError: one matches no variable.
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
    """The root of the sum of all squares, a float32 scalar."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.linalg.global_norm(gradients)  # its kernel is several times faster than squares and sums
    return ops.sqrt(sum(ops.sum(ops.square(ops.cast(g, "float32"))) for g in gradients))


def prepare_gradients(
    gradients: list[Tensor], variables: list[keras.Variable], optimizer: config.Optimizer, norm: Tensor
) -> list[Tensor]:
    """The gradients for the optimizer: clipped, given their global norm, and with SGD's weight decay added."""
    if optimizer.clip_norm is not None:
        factor = optimizer.clip_norm / ops.maximum(norm, optimizer.clip_norm)
        gradients = [g * ops.cast(factor, g.dtype) for g in gradients]
    if optimizer.kind == "sgd" and optimizer.weight_decay:
        gradients = [
            g + optimizer.weight_decay * ops.convert_to_tensor(v) if decays(v, optimizer.no_decay) else g
            for g, v in zip(gradients, variables, strict=True)
        ]
    return gradients
