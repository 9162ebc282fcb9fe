"""The training objective: the only place where losses are summed and divided (arXiv:1708.02002, sections 3 and 4)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from retina import config
from retina.losses.box import ciou_loss, diou_loss, giou_loss, huber, l1, smooth_l1
from retina.losses.focal import quality_focal, sigmoid_focal_of_labels, varifocal
from retina.losses.labels import is_class
from retina.models.heads import predictions
from retina.ops import boxes as box_ops
from retina.ops.assignment import Match, match
from retina.ops.derivative import with_tangent
from retina.ops.nms import stable_top_k

Tensor = Any

# The background's probability is observed at every 17th anchor: a prime meets each shape of a cell's anchors.
OBSERVED = 17


class LevelLogits(NamedTuple):
    """Logits as the network leaves them: of each pyramid level the last convolution [B, h, w, anchors·K], the bias
    [anchors·K] float32, and K (`retina.models.heads.predictions`).

    Joined in float32, [B, A, K], they would be the largest tensor of a step. Logits that are joined already stand here
    as a single level without bias.
    """

    levels: list[Tensor]
    bias: Tensor | None
    classes: int


class Sums(NamedTuple):
    """Sums over the anchors of a batch, scalars but for the levels'; they add up over replicas and micro-batches.

    Attributes:
        classification: the loss summed over anchors and classes.
        box: the weighted loss summed over positive anchors and coordinates.
        positives: the number of positive anchors.
        foreground, background: the parts of the classification loss that positive and other anchors have.
        probability: σ(logit) summed over classes and a sample of the background anchors.
        sampled: the number of such probabilities.
        positives_by_level: [L] the number of positive anchors of each pyramid level.
        images: with `normalizer: image`, where each image's losses are divided by its positives before they are summed,
            the number of images; nothing otherwise.
    """

    classification: Tensor
    box: Tensor
    positives: Tensor
    foreground: Tensor
    background: Tensor
    probability: Tensor
    sampled: Tensor
    positives_by_level: Tensor
    images: Tensor | tuple[()] = ()  # a tree without leaves, unlike None for TensorFlow

    @classmethod
    def zeros(cls, levels: int, *, of_images: bool = False) -> Sums:
        """The sums of no image at all; `of_images`: those of `normalizer: image`."""
        names = cls._fields if of_images else cls._fields[:-1]
        shapes = {name: (levels,) if name == "positives_by_level" else () for name in names}
        return cls(**{name: ops.zeros(shape, dtype="float32") for name, shape in shapes.items()})

    def __add__(self, other: Sums) -> Sums:  # type: ignore[override]
        return Sums(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    @property
    def undivided(self) -> Tensor:
        """The loss before it is divided: what a share of a batch adds to the whole."""
        return self.classification + self.box

    @property
    def divisor(self) -> Tensor:
        """The number of positives, at least 1; with `normalizer: image` the number of images."""
        return ops.maximum(self.positives, 1.0) if isinstance(self.images, tuple) else self.images

    def losses(self, divisor: Tensor | None = None) -> dict[str, Tensor]:
        """`loss`, `loss_classification`, `loss_box`: the sums divided by their own divisor, or by `divisor`
        (`retina.training.update`)."""
        divisor = self.divisor if divisor is None else divisor
        classification, box = self.classification / divisor, self.box / divisor
        return {"loss": classification + box, "loss_classification": classification, "loss_box": box}


@dataclass(frozen=True, eq=False)
class Objective:
    """The training objective on one canvas.

    Attributes:
        level_anchors: [A_l, 4] float32 of each pyramid level, in the order of the network's outputs.
        assignment, loss: sections of the configuration.
        box_weights, max_size_ratio: of the box encoding, as in `config.Anchors`.
        class_weights: [K] factors of the classification loss of positive anchors, summed over classes, by the class of
            their box; None leaves them alike. Ignored anchors add nothing, background anchors count once, and the
            divisor is the number of positives, unweighted.
    """

    level_anchors: Sequence[np.ndarray]
    assignment: config.Assignment
    loss: config.Loss
    box_weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    max_size_ratio: float = box_ops.MAX_SIZE_RATIO
    class_weights: np.ndarray | None = None

    def sums(self, outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> Sums:
        """Match anchors to boxes and sum both losses over the batch.

        Hard example mining (`kind: ohem`) chooses anchors in each image by itself and is divided by all positives, as
        every other classification loss is: so its sums add up over replicas, too.

        Args:
            outputs: `logits` [B, A, K], float32, or `LevelLogits`, and `deltas` [B, A, 4], float32.
            batch: `boxes` [B, G, 4] canvas pixels, `labels` [B, G], `valid` [B, G], `crowd` [B, G]; and `weight` [B, 1]
                where an image's losses, not its positives, count more or less than once.
        """
        if not batch["boxes"].shape[1]:  # 0, or known only when the graph runs
            batch = {**batch, **{name: _with_one_slot(batch[name]) for name in ("boxes", "labels", "valid", "crowd")}}
        anchors = ops.convert_to_tensor(np.concatenate(self.level_anchors))
        matches = match(anchors, batch["boxes"], batch["valid"], batch["crowd"], self.assignment)
        pairs = _Pairs(outputs["deltas"], batch["boxes"], anchors, matches, self.box_weights, self.max_size_ratio)
        images, weights = (), batch.get("weight")
        if self.loss.normalizer.kind == "image":
            images = ops.cast(ops.shape(matches.positive)[0], "float32")
            of_image = ops.sum(ops.cast(matches.positive, "float32"), axis=-1, keepdims=True)
            weights = (1.0 if weights is None else weights) / ops.maximum(of_image, 1.0)
        logits = outputs["logits"]
        if not isinstance(logits, LevelLogits):
            logits = LevelLogits([logits], None, logits.shape[-1])
        level_sizes = [len(anchors) for anchors in self.level_anchors]
        of_anchors, probabilities = _classification_losses(
            logits, batch["labels"], matches, self.loss.classification, pairs, level_sizes, self.class_weights
        )
        classification, foreground, background = _classification_sums(
            of_anchors, matches, self.loss.classification, weights
        )
        of_anchor = _box_losses(pairs, self.loss.box)
        if weights is not None:
            of_anchor = of_anchor * ops.reshape(weights, (-1,) + (1,) * (len(of_anchor.shape) - 1))
        box = self.loss.box.weight * ops.sum(of_anchor)
        positives = ops.sum(ops.cast(matches.positive, "float32"))
        probability, sampled = _background_probability(probabilities, matches, logits.classes)
        by_level = _positives_by_level(matches, level_sizes)
        return Sums(classification, box, positives, foreground, background, probability, sampled, by_level, images)


def _with_one_slot(padded: Tensor) -> Tensor:
    """[B, G + 1, …] of [B, G, …], the last slot zero: no anchor has a best box among none."""
    shape = (*ops.shape(padded)[:1], 1, *padded.shape[2:])
    return ops.concatenate([padded, ops.zeros(shape, keras.backend.standardize_dtype(padded.dtype))], axis=1)


def _of_matches(values: Tensor, index: Tensor) -> Tensor:
    """Each anchor's values [B, A, N], of the boxes' [B, G, N] by their `index` [B, A]."""
    if keras.backend.backend() != "tensorflow":
        return ops.take_along_axis(values, index[..., None], axis=1)
    # There `take_along_axis` looks up each number by itself.
    images, count = ops.shape(values)[:2]
    rows = index + count * ops.arange(images, dtype="int32")[:, None]
    return ops.take(ops.reshape(values, (-1, values.shape[2])), rows, axis=0)


class _Pairs:
    """Each anchor's prediction beside its matched box; without one, the anchor's box and deltas of 0 stand for both.

    They are put in before a loss, not after it: 0 · inf of a padded box would poison the gradient.
    """

    def __init__(
        self,
        deltas: Tensor,
        boxes: Tensor,
        anchors: Tensor,
        matches: Match,
        weights: tuple[float, ...],
        max_size_ratio: float,
    ):
        self.positive = matches.positive[..., None]
        self.deltas = ops.where(self.positive, deltas, 0.0)
        self._matched = _of_matches(boxes, matches.index)
        self._anchors, self._weights, self._max_size_ratio = anchors, weights, max_size_ratio

    def target_deltas(self) -> Tensor:
        """The deltas to learn, [B, A, 4]."""
        return ops.where(self.positive, box_ops.encode(self._anchors, self._matched, self._weights), 0.0)

    def boxes(self) -> tuple[Tensor, Tensor]:
        """Predicted and matched boxes, [B, A, 4] each, canvas pixels."""
        predicted = box_ops.decode(self._anchors, self.deltas, self._weights, self._max_size_ratio)
        return predicted, ops.where(self.positive, self._matched, self._anchors)


def _classification_losses(
    logits: LevelLogits,
    labels: Tensor,
    matches: Match,
    kind: config.ClassificationLoss,
    pairs: _Pairs,
    level_sizes: Sequence[int],
    class_weights: np.ndarray | None,
) -> tuple[Tensor, Tensor]:
    """The loss of each anchor [B, A], weighted by its class, and σ(logit) of each `OBSERVED`th anchor, both summed over
    classes."""
    # Background anchors get class -1, which no class equals.
    anchor_labels = _of_matches(ops.cast(labels, "int32")[..., None], matches.index)[..., 0]
    anchor_labels = ops.where(matches.positive, anchor_labels, -1)
    if kind.kind in ("quality_focal", "varifocal"):
        targets = ops.stop_gradient(box_ops.iou(*pairs.boxes()))
    else:
        targets = ops.ones_like(pairs.deltas[..., 0])

    def of_level(start: int, level: Tensor, bias: Tensor | None, labels: Tensor, targets: Tensor) -> tuple:
        level = level if bias is None else _in_float(level, bias, logits.classes)
        observed = ops.sigmoid(_observed(ops.stop_gradient(level), -start % OBSERVED))
        return _of_anchor(level, labels, targets, kind), ops.sum(observed, axis=-1)

    # On JAX the backward pass computes the loss anew: what waits for it is the convolution's own output. On CPUs, where
    # arithmetic takes the time, the slope computed beside the loss waits instead.
    recomputed = keras.remat if keras.backend.backend() == "jax" else lambda function: function
    sizes = level_sizes if len(logits.levels) > 1 else [sum(level_sizes)]
    starts = [end - size for end, size in zip(itertools.accumulate(sizes), sizes, strict=True)]
    of_levels = [
        recomputed(partial(of_level, start))(
            level, logits.bias, anchor_labels[:, start : start + size], targets[:, start : start + size]
        )
        for level, start, size in zip(logits.levels, starts, sizes, strict=True)
    ]
    losses, observed = (ops.concatenate(parts, axis=1) for parts in zip(*of_levels, strict=True))
    if class_weights is not None:
        with_background = ops.convert_to_tensor(np.concatenate([[1.0], class_weights]), losses.dtype)
        # A label beyond the last makes the loss NaN elsewhere; to look it up would be an error on a CPU.
        losses = losses * ops.take(with_background, ops.clip(anchor_labels + 1, 0, len(class_weights)))
    return losses, observed


def _observed(logits: Tensor, first: int) -> Tensor:
    """The logits of each `OBSERVED`th anchor of [B, A, K], from the `first` on."""
    if keras.backend.backend() != "tensorflow":
        return logits[:, first::OBSERVED]
    # Rows looked up take a third of the time of TensorFlow's slices with a stride. A small level has none at all.
    end = ops.maximum(first, ops.shape(logits)[1])
    return ops.take(logits, ops.arange(first, end, OBSERVED, dtype="int32"), axis=1)


def _in_float(level: Tensor, bias: Tensor, classes: int) -> Tensor:
    """`retina.models.heads.predictions`; on JAX the bias' gradient is summed from the level's, in its compute dtype:
    the logits' own would have to wait for it in float32."""
    if keras.backend.backend() != "jax":
        return predictions(level, bias, classes)

    def tangent(result: Tensor, _: tuple[Tensor, Tensor], tangents: tuple[Tensor, Tensor]) -> Tensor:
        of_level, of_bias = tangents
        of_both = of_level + ops.cast(ops.broadcast_to(of_bias, of_level.shape), of_level.dtype)
        return ops.reshape(ops.cast(of_both, "float32"), result.shape)

    return with_tangent(lambda level, bias: predictions(level, bias, classes), tangent)(level, bias)


def _of_anchor(logits: Tensor, labels: Tensor, quality: Tensor, kind: config.ClassificationLoss) -> Tensor:
    """The loss of each anchor, [B, A], summed over the classes of its logits [B, A, K].

    Args:
        labels: [B, A] int32, -1 for background.
        quality: [B, A], the target of kinds that learn an overlap.
    """
    if kind.kind == "focal":
        return sigmoid_focal_of_labels(logits, labels, alpha=kind.alpha, gamma=kind.gamma)
    if kind.kind == "cross_entropy":
        return sigmoid_focal_of_labels(logits, labels, alpha=kind.alpha, gamma=0.0)
    if kind.kind == "ohem":
        return sigmoid_focal_of_labels(logits, labels, alpha=None, gamma=0.0)
    targets = ops.where(is_class(labels, logits.shape[-1]), quality[..., None], 0.0)
    if kind.kind == "quality_focal":
        return ops.sum(quality_focal(logits, targets=targets, beta=kind.beta), axis=-1)
    return ops.sum(varifocal(logits, targets=targets, alpha=kind.alpha, gamma=kind.gamma), axis=-1)


def _classification_sums(
    of_anchor: Tensor, matches: Match, kind: config.ClassificationLoss, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The losses [B, A], times the `weights` [B, 1] of images, summed over all anchors that count, over the positive
    ones among them, and over the others."""
    if weights is not None:
        of_anchor = of_anchor * weights
    if kind.kind == "ohem":
        return _hardest_sums(of_anchor, matches, kind)
    # Ignored anchors are dropped from [B, A], not from [B, A, K]: a pass less over the largest tensor.
    counted = ops.where(matches.ignored, 0.0, of_anchor)
    return ops.sum(counted), *_parts(counted, matches.positive)


def _parts(losses: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of the losses where `positive` and where not."""
    return ops.sum(ops.where(positive, losses, 0.0)), ops.sum(ops.where(positive, 0.0, losses))


def _hardest_sums(losses: Tensor, matches: Match, kind: config.Ohem) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of the losses [B, A] of the anchors that mining keeps, chosen for each image by itself: of all such anchors,
    of the positive ones among them, and of the others.

    Of equal losses the lower anchor counts. An image without a positive keeps as many negatives as an image with one
    positive would, so that its background is trained as with every other loss.
    """
    considered = ops.logical_not(matches.ignored)
    if kind.ratio is None:
        hardest, index = _largest(losses, considered, kind.hardest)
        return ops.sum(hardest), *_parts(hardest, ops.take_along_axis(matches.positive, index, axis=1))
    most = kind.hardest // (1 + kind.ratio)
    positives = ops.minimum(ops.sum(ops.cast(matches.positive, "int32"), axis=-1), most)
    background = ops.logical_and(considered, ops.logical_not(matches.positive))
    limit = kind.ratio * ops.maximum(positives, 1)
    hardest_positive = ops.sum(_largest(losses, matches.positive, most)[0])
    hardest_background = ops.sum(_largest(losses, background, kind.ratio * most, limit)[0])
    return hardest_positive + hardest_background, hardest_positive, hardest_background


def _largest(losses: Tensor, candidates: Tensor, most: int, limit: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Each row's `most` largest losses [B, A] among its candidates, at most `limit` [B], 0 after them; and their
    anchors. Both [B, most]."""
    most = min(most, losses.shape[1])
    # No loss is negative: whatever is no candidate comes last.
    largest, index = stable_top_k(ops.where(candidates, losses, -1.0), most)
    count = ops.sum(ops.cast(candidates, "int32"), axis=-1)
    if limit is not None:
        count = ops.minimum(count, limit)
    return ops.where(ops.arange(most, dtype="int32")[None, :] < count[:, None], largest, 0.0), index


def _background_probability(probabilities: Tensor, matches: Match, classes: int) -> tuple[Tensor, Tensor]:
    """σ(logit) summed over the observed background anchors, of [B, ⌈A / `OBSERVED`⌉], and the number of its terms."""
    negative = ops.logical_not(ops.logical_or(matches.positive, matches.ignored))[:, ::OBSERVED]
    count = ops.sum(ops.cast(negative, "float32")) * classes
    return ops.sum(ops.where(negative, probabilities, 0.0)), count


def _positives_by_level(matches: Match, level_sizes: Sequence[int]) -> Tensor:
    """Numbers [L] float32 of positive anchors."""
    of_anchor = ops.sum(ops.cast(matches.positive, "float32"), axis=0)
    ends = list(itertools.accumulate(level_sizes))
    return ops.stack([ops.sum(of_anchor[end - size : end]) for end, size in zip(ends, level_sizes, strict=True)])


def _box_losses(pairs: _Pairs, kind: config.BoxLoss) -> Tensor:
    """The box loss of each anchor and number, [B, A, 4], or of each anchor, [B, A]."""
    if kind.kind == "huber":
        return huber(pairs.deltas, pairs.target_deltas(), delta=kind.delta)
    if kind.kind == "smooth_l1":
        return smooth_l1(pairs.deltas, pairs.target_deltas(), beta=kind.beta)
    if kind.kind == "l1":
        return l1(pairs.deltas, pairs.target_deltas())
    overlap_losses = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}
    return overlap_losses[kind.kind](*pairs.boxes())
