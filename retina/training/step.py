"""One training step on each backend: forward, objective, gradients, update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import keras
import numpy as np

from retina import config
from retina.models.detector import Detector
from retina.models.objective import objective
from retina.training.optimizer import global_norm, prepare_gradients

Tensor = Any
Batch = dict[str, Tensor]
INPUTS = ("images", "size", "boxes", "labels", "valid", "crowd")


class TrainStep(Protocol):
    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Updates the weights; gives `loss`, `loss_classification`, `loss_box`, `positives`, `gradient_norm`."""

    def sync(self) -> None:
        """Brings the state back into the detector's and the optimizer's variables."""


def build_step(detector: Detector, optimizer: keras.optimizers.Optimizer, settings: config.Optimizer) -> TrainStep:
    """The step of the Keras backend in use; each canvas shape is compiled once."""
    optimizer.build(detector.trainable_variables)
    kinds: dict[str, Callable[..., TrainStep]] = {"tensorflow": TensorFlowStep, "jax": JaxStep, "torch": TorchStep}
    return kinds[keras.backend.backend()](detector, optimizer, settings)


class TensorFlowStep:
    def __init__(self, detector: Detector, optimizer: keras.optimizers.Optimizer, settings: config.Optimizer):
        import tensorflow as tf

        from retina.training.fused_batch_norm import fuse_batch_norms

        fuse_batch_norms(detector.backbone)

        @tf.function
        def step(batch: Batch) -> dict[str, Tensor]:
            with tf.GradientTape() as tape:
                sums = detector.loss_sums(detector(batch, training=True), batch)
                losses = objective(sums)
            variables = detector.trainable_variables
            gradients = tape.gradient(losses["loss"], [v.value for v in variables])
            norm = tf.linalg.global_norm(gradients)  # its kernel is several times faster than squares and sums
            optimizer.apply(prepare_gradients(gradients, variables, settings, norm), variables)
            return {**losses, "positives": sums.positives, "gradient_norm": norm}

        self._step = step

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        return self._step({name: batch[name] for name in INPUTS})

    def sync(self) -> None:
        pass


class JaxStep:
    def __init__(self, detector: Detector, optimizer: keras.optimizers.Optimizer, settings: config.Optimizer):
        import jax

        self.detector, self.optimizer = detector, optimizer

        def loss(trainable: list, frozen: list, batch: Batch) -> tuple[Tensor, tuple]:
            outputs, frozen = detector.stateless_call(trainable, frozen, batch, training=True)
            sums = detector.loss_sums(outputs, batch)
            losses = objective(sums)
            return losses["loss"], ({**losses, "positives": sums.positives}, frozen)

        def step(state: tuple, batch: Batch) -> tuple[tuple, dict[str, Tensor]]:
            trainable, frozen, slots = state
            (_, (scalars, frozen)), gradients = jax.value_and_grad(loss, has_aux=True)(trainable, frozen, batch)
            norm = global_norm(gradients)
            gradients = prepare_gradients(gradients, trainable, settings, norm)
            trainable, slots = optimizer.stateless_apply(slots, gradients, trainable)
            return (trainable, frozen, slots), {**scalars, "gradient_norm": norm}

        self._step = jax.jit(step, donate_argnums=0)
        self._state = self._read()

    def _read(self) -> tuple:
        # Copies: the step donates its state, the variables keep theirs.
        groups = (
            self.detector.trainable_variables,
            self.detector.non_trainable_variables,
            self.optimizer.variables,
        )
        return tuple([v.value.copy() for v in group] for group in groups)

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        self._state, scalars = self._step(self._state, {name: np.asarray(batch[name]) for name in INPUTS})
        return scalars

    def sync(self) -> None:
        groups = (
            self.detector.trainable_variables,
            self.detector.non_trainable_variables,
            self.optimizer.variables,
        )
        for variables, values in zip(groups, self._state, strict=True):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value.copy())


class TorchStep:
    def __init__(self, detector: Detector, optimizer: keras.optimizers.Optimizer, settings: config.Optimizer):
        self.detector, self.optimizer, self.settings = detector, optimizer, settings

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        import torch

        batch = {name: keras.ops.convert_to_tensor(np.asarray(batch[name])) for name in INPUTS}
        sums = self.detector.loss_sums(self.detector(batch, training=True), batch)
        losses = objective(sums)
        variables = self.detector.trainable_variables
        gradients = list(torch.autograd.grad(losses["loss"], [v.value for v in variables]))
        with torch.no_grad():
            norm = global_norm(gradients)
            self.optimizer.apply(prepare_gradients(gradients, variables, self.settings, norm), variables)
        scalars = {**losses, "positives": sums.positives, "gradient_norm": norm}
        return {name: value.detach() for name, value in scalars.items()}

    def sync(self) -> None:
        pass
