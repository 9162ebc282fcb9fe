"""From summed losses and their gradients to new weights, written once for every backend.

A backend's step differentiates `Update.target` and hands the result to `Update.apply`. Whatever both keep from one step
to the next stands in Keras variables, so that it can be donated (JAX) and stored (checkpoints) like the weights.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from retina import config
from retina.models.detector import Detector
from retina.models.objective import Sums
from retina.runs.ema import WeightAverage, averaged_variables
from retina.training.loss_scale import LossScale
from retina.training.normalizer import PositivesAverage
from retina.training.optimizer import global_norm, prepare_gradients
from retina.training.scalars import observations

Tensor = Any


class Update:
    """One update of a detector's weights, with everything that is switched on beside the optimizer.

    Args:
        detector, optimizer: changed by `apply`.
        settings: of the optimizer.
        run: `accumulate` and `ema`.
        undivided: whether gradients are taken of a share of the batch, whose divisor is not known yet; those of a part
            are.
    """

    def __init__(
        self,
        detector: Detector,
        optimizer: keras.optimizers.Optimizer,
        settings: config.Optimizer,
        run: config.Run,
        undivided: bool = False,
    ):
        self.detector, self.optimizer, self.settings = detector, optimizer, settings
        self.parts = run.accumulate
        self.undivided = undivided or self.parts > 1
        normalizer = detector.sections.loss.normalizer
        self.normalizer = PositivesAverage(normalizer) if isinstance(normalizer, config.EmaNormalizer) else None
        self.scale = LossScale() if detector.dtype_policy.compute_dtype == "float16" else None
        self.ema = None if run.ema is None else WeightAverage(averaged_variables(detector), run.ema)
        kept = [part.variables for part in (self.normalizer, self.scale, self.ema) if part is not None]
        self.variables: dict[str, keras.Variable] = {name: v for part in kept for name, v in part.items()}

    def nothing(self) -> Sums:
        """The sums before the first micro-batch."""
        return Sums.zeros(len(self.detector.fpn.levels))

    def target(self, sums: Sums) -> Tensor:
        """The scalar to differentiate: a whole batch's loss, or a share's undivided sum; times the scale."""
        loss = sums.undivided if self.undivided else sums.losses(self._divisor(sums))["loss"]
        return loss if self.scale is None else loss * ops.convert_to_tensor(self.scale.scale)

    def apply(self, sums: Sums, gradients: list[Tensor]) -> dict[str, Tensor]:
        """Updates weights, slots and its own state.

        Args:
            sums: of the global batch, all micro-batches and replicas together.
            gradients: of `target`, added up likewise, in the order of `detector.trainable_variables`.

        Returns:
            The step's scalars.

        An update whose gradient overflowed float16 leaves weights and slots as they were. `optimizer.iterations` counts
        on, so that it is the number of steps and the schedule ends with the run. Adam's bias correction counts such
        steps as well: while its averages are young it divides by a little too much, and later by a little too little
        (ten left out at the start: half an update at first, at most 13 % too long around the 25th; 1 % from the
        400th on). A warm-up hides it.
        """
        variables, divisor = self.detector.trainable_variables, self._divisor(sums)
        gradients = self._true_gradients(gradients, divisor)
        norm = global_norm(gradients)
        finite = None if self.scale is None else ops.isfinite(norm)
        slots = [v for v in self.optimizer.variables if v is not self.optimizer.iterations]
        changed = [] if finite is None else [*variables, *slots]
        before = [ops.copy(ops.convert_to_tensor(v)) for v in changed]
        self.optimizer.apply(prepare_gradients(gradients, variables, self.settings, norm), variables)
        for variable, old in zip(changed, before, strict=True):
            variable.assign(ops.where(finite, ops.convert_to_tensor(variable), old))
        scalars = {
            **sums.losses(divisor),
            **observations(sums, self.detector.fpn.levels),
            "gradient_norm": norm,
        }
        if self.normalizer is not None:
            self.normalizer.update(sums.positives)
        if self.ema is not None:
            self.ema.update(finite)
        if self.scale is not None:
            scalars |= self._scaled(norm, finite)
            self.scale.update(finite)
        return scalars

    def _divisor(self, sums: Sums) -> Tensor:
        if self.normalizer is not None:
            return self.normalizer.divisor(sums.positives)
        return ops.maximum(sums.positives, 1.0)

    def _true_gradients(self, gradients: list[Tensor], divisor: Tensor) -> list[Tensor]:
        """Those of the loss: neither scaled nor summed over shares without a divisor."""
        if not self.undivided and self.scale is None:
            return gradients
        factor = 1.0 if self.scale is None else 1.0 / ops.convert_to_tensor(self.scale.scale)
        factor = factor / divisor if self.undivided else factor
        return [g * ops.cast(factor, g.dtype) for g in gradients]

    def _scaled(self, norm: Tensor, finite: Tensor) -> dict[str, Tensor]:
        """`loss_scale`, and `overflow`: 1 where the update was left out. That is no failure, and its norm reads 0, as
        long as a lower scale is left to try."""
        assert self.scale is not None
        scale = ops.convert_to_tensor(self.scale.scale)
        overflow = ops.logical_and(ops.logical_not(finite), scale > 1.0)
        return {
            "gradient_norm": ops.where(overflow, 0.0, norm),
            "loss_scale": ops.copy(scale),
            "overflow": ops.cast(ops.logical_not(finite), "float32"),
        }
