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


def build_optimizer(optimizer: config.Optimizer, schedule: config.Schedule) -> keras.optimizers.Optimizer:
    """SGD with momentum, or AdamW, under the schedule.

    SGD's weight decay is not Keras' (decoupled from the momentum): `prepare_gradients` adds it to the gradient, as in
    the paper's code. AdamW's is decoupled, from kernels only.
    """
    rate = LearningRate(optimizer.learning_rate, schedule)
    if optimizer.kind == "sgd":
        return keras.optimizers.SGD(rate, momentum=optimizer.momentum, name="sgd")
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


def prepare_gradients(
    gradients: list[Tensor], variables: list[Any], optimizer: config.Optimizer
) -> tuple[list[Tensor], Tensor]:
    """Clips by global norm, then adds SGD's weight decay.

    Returns:
        The gradients for the optimizer, and the global norm before clipping.
    """
    norm = ops.sqrt(sum(ops.sum(ops.square(ops.cast(g, "float32"))) for g in gradients))
    if optimizer.clip_norm is not None:
        factor = optimizer.clip_norm / ops.maximum(norm, optimizer.clip_norm)
        gradients = [g * ops.cast(factor, g.dtype) for g in gradients]
    if optimizer.kind == "sgd" and optimizer.weight_decay:
        gradients = [
            g + optimizer.weight_decay * ops.convert_to_tensor(v) if decays(v) else g
            for g, v in zip(gradients, variables, strict=True)
        ]
    return gradients, norm
