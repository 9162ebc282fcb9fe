"""From summed losses and their gradients to new weights, written once for every backend.

A backend's step differentiates `Update.target` and hands the gradients to `Update.apply`. All state that outlives a
step stands in Keras variables, so that it can be donated (JAX) and stored (checkpoints) like the weights: the average
of the positives, the loss scale and the moving average of the weights.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from retina import config
from retina.models.detector import Detector
from retina.models.objective import Sums
from retina.runs.ema import WeightAverage, averaged_variables
from retina.training.optimizer import global_norm, prepare_gradients

Tensor = Any

# The loss scale's first value and how many good steps double it: as in PyTorch's GradScaler.
INITIAL_SCALE, GROWTH_INTERVAL = 2.0**16, 2000


class Update:
    """Update of a detector's weights, with everything that is switched on beside the optimizer.

    Args:
        detector, optimizer: changed by `apply`.
        settings: the section `optimizer`.
        run: its `accumulate` and `ema` count.
        undivided: gradients are taken of a share of the batch, whose divisor is not known yet. With `accumulate` they
            always are.
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
        stateful = [part for part in (self.normalizer, self.scale, self.ema) if part is not None]
        self.variables: dict[str, keras.Variable] = {
            name: variable for part in stateful for name, variable in part.variables.items()
        }

    def zeros(self) -> Sums:
        """Return the sums before the first micro-batch."""
        of_images = self.detector.sections.loss.normalizer.kind == "image"
        return Sums.zeros(len(self.detector.fpn.levels), of_images=of_images)

    def target(self, sums: Sums) -> Tensor:
        """Return the scalar to differentiate: a whole batch's loss, or a share's undivided sum; times the scale."""
        loss = sums.undivided if self.undivided else sums.losses(self._divisor(sums))["loss"]
        return loss if self.scale is None else loss * ops.convert_to_tensor(self.scale.scale)

    def apply(self, sums: Sums, gradients: list[Tensor]) -> dict[str, Tensor]:
        """Update weights, slots and `variables`; return the step's scalars.

        Args:
            sums: over the global batch, all micro-batches and replicas together.
            gradients: of `target`, added up likewise, in the order of `detector.trainable_variables`.

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
        return sums.divisor

    def _true_gradients(self, gradients: list[Tensor], divisor: Tensor) -> list[Tensor]:
        """Return the gradients of the loss itself: the scale taken out, the divisor of undivided sums put in."""
        if not self.undivided and self.scale is None:
            return gradients
        factor = 1.0 if self.scale is None else 1.0 / ops.convert_to_tensor(self.scale.scale)
        factor = factor / divisor if self.undivided else factor
        return [g * ops.cast(factor, g.dtype) for g in gradients]

    def _scaled(self, norm: Tensor, finite: Tensor) -> dict[str, Tensor]:
        """Return `loss_scale`, and `overflow`: 1 where the update was left out. That is no failure, and its norm reads
        0, as long as a lower scale is left to try."""
        assert self.scale is not None
        scale = ops.convert_to_tensor(self.scale.scale)
        overflow = ops.logical_and(ops.logical_not(finite), scale > 1.0)
        return {
            "gradient_norm": ops.where(overflow, 0.0, norm),
            "loss_scale": ops.copy(scale),
            "overflow": ops.cast(ops.logical_not(finite), "float32"),
        }


class LossScale:
    """Dynamic loss scale for float16 (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2).

    The loss is multiplied before its gradient is taken, so that small gradients don't vanish in float16, and the
    gradient divided afterwards. A step whose gradient overflows is left out, and the scale halved; it doubles after a
    while without.

    Attributes:
        scale: float32, a power of 2, at least 1.
        good_steps: the number of steps without an overflow since the scale last changed, int32.
    """

    def __init__(self, initial: float = INITIAL_SCALE, growth_interval: int = GROWTH_INTERVAL):
        self.growth_interval = growth_interval
        self.scale = keras.Variable(initial, dtype="float32", trainable=False, name="scale")
        self.good_steps = keras.Variable(0, dtype="int32", trainable=False, name="good_steps")

    @property
    def variables(self) -> dict[str, keras.Variable]:
        return {"loss_scale/scale": self.scale, "loss_scale/good_steps": self.good_steps}

    def update(self, finite: Tensor) -> None:
        """Adapt the scale after a step whose gradients were all finite, or not (a scalar, bool)."""
        scale, good = ops.convert_to_tensor(self.scale), ops.convert_to_tensor(self.good_steps) + 1
        grows = good >= self.growth_interval
        self.scale.assign(ops.where(finite, ops.where(grows, scale * 2.0, scale), ops.maximum(scale * 0.5, 1.0)))
        self.good_steps.assign(ops.where(ops.logical_and(finite, ops.logical_not(grows)), good, 0))


class PositivesAverage:
    """Moving average of the positives, to divide the summed losses by: n ← m · n + (1 - m) · max(positives, 1).

    As detectron2's RetinaNet does; a scalar variable, float32. With few positives in a batch, dividing by their number
    alone makes single images count for much or little.
    """

    def __init__(self, settings: config.EmaNormalizer):
        self.settings = settings
        self.average = keras.Variable(settings.initial, dtype="float32", trainable=False, name="positives")

    @property
    def variables(self) -> dict[str, keras.Variable]:
        return {"normalizer/positives": self.average}

    def divisor(self, positives: Tensor) -> Tensor:
        """Return the average once the batch's positives (a scalar) are in it; the variable stays as it is."""
        momentum = self.settings.momentum
        return momentum * ops.convert_to_tensor(self.average) + (1.0 - momentum) * ops.maximum(positives, 1.0)

    def update(self, positives: Tensor) -> None:
        self.average.assign(self.divisor(positives))


def observations(sums: Sums, levels: tuple[int, ...]) -> dict[str, Tensor]:
    """Scalars that a step reports beside its losses, by name, from sums over the global batch.

    - `positives`: positive anchors; `positives_p3` … of each pyramid level.
    - `foreground_share`, `background_share`: the parts of the classification loss that positive and other anchors have
      (arXiv:1708.02002, section 5.1, looks at these two); both 0 where that loss is 0.
    - `background_probability`: mean σ(logit) over classes and background anchors, a sample of one in 17. It starts at
      the prior π and should fall from there.
    """
    both = sums.foreground + sums.background
    return {
        "positives": sums.positives,
        **{f"positives_p{level}": sums.positives_by_level[place] for place, level in enumerate(levels)},
        "foreground_share": ops.divide_no_nan(sums.foreground, both),
        "background_share": ops.divide_no_nan(sums.background, both),
        "background_probability": ops.divide_no_nan(sums.probability, sums.sampled),
    }
