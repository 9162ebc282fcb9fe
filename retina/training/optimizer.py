"""Optimizers, and what happens to gradients on the way to them."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from retina import config
from retina.training.schedule import LearningRate

Tensor = Any

# What `decays` says by shape, by name: Keras searches this in `conv/bias:0` on TensorFlow and in `bias` elsewhere.
_NO_DECAY = r"(^|/)(bias|prediction_bias|gamma|beta)(:\d+)?$"


@keras.saving.register_keras_serializable("retina")
class MomentumSGD(keras.optimizers.SGD):
    """v ← m·v + g, w ← w - rate·v, as in the paper's code and in PyTorch.

    Keras' own keeps rate·g in v, so that after a step of the schedule old gradients go on at the old rate.
    """

    def update_step(self, gradient: Tensor, variable: Any, learning_rate: Tensor) -> None:
        gradient = ops.cast(gradient, variable.dtype)
        velocity = gradient
        if self.momentum:
            slot = self.momentums[self._get_variable_index(variable)]
            velocity = ops.cast(self.momentum, variable.dtype) * slot + gradient
            self.assign(slot, velocity)
        self.assign_sub(variable, ops.cast(learning_rate, variable.dtype) * velocity)


def build_optimizer(optimizer: config.Optimizer, schedule: config.Schedule) -> keras.optimizers.Optimizer:
    """SGD with momentum, or AdamW, under the schedule.

    SGD's weight decay is not Keras' (decoupled from the momentum): `prepare_gradients` adds it to the gradient, as in
    the paper's code. AdamW's is decoupled, from kernels only.
    """
    rate = LearningRate(optimizer.learning_rate, schedule)
    if optimizer.kind == "sgd":
        return MomentumSGD(rate, momentum=optimizer.momentum, name="sgd")
    adamw = keras.optimizers.AdamW(
        rate,
        weight_decay=optimizer.weight_decay,
        beta_1=optimizer.beta_1,
        beta_2=optimizer.beta_2,
        name="adamw",
    )
    adamw.exclude_from_weight_decay(var_names=[_NO_DECAY])
    return adamw


def decays(variable: Any) -> bool:
    """Weight decay is for kernels: biases and normalisation parameters are left alone."""
    return len(variable.shape) > 1


def global_norm(gradients: list[Tensor]) -> Tensor:
    """The root of the sum of all squares, a float32 scalar."""
    return ops.sqrt(sum(ops.sum(ops.square(ops.cast(g, "float32"))) for g in gradients))


def prepare_gradients(
    gradients: list[Tensor], variables: list[Any], optimizer: config.Optimizer, norm: Tensor
) -> list[Tensor]:
    """The gradients for the optimizer: clipped, given their global norm, and with SGD's weight decay added."""
    if optimizer.clip_norm is not None:
        factor = optimizer.clip_norm / ops.maximum(norm, optimizer.clip_norm)
        gradients = [g * ops.cast(factor, g.dtype) for g in gradients]
    if optimizer.kind == "sgd" and optimizer.weight_decay:
        gradients = [
            g + optimizer.weight_decay * ops.convert_to_tensor(v) if decays(v) else g
            for g, v in zip(gradients, variables, strict=True)
        ]
    return gradients
