"""Losses on embeddings: centre loss and triplet loss, per sample. Distances are squared: no root, no infinite slope."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from retina.errors import RetinaError
from retina.losses.arguments import floats
from retina.losses.labels import differ, legal_labels, nan_unless

Tensor = Any


def center_loss(features: Tensor, labels: Tensor, centers: Tensor) -> Tensor:
    """Centre loss (Wen et al. 2016, "A discriminative feature learning approach for deep face recognition", eq. 2).

    ½‖x - c_y‖² per sample; the centres get no gradient, `updated_centers` or the layer `Centers` moves them.

    Args:
        features: [B, F] float.
        labels: [B], 0..K-1.
        centers: [K, F].

    Returns:
        [B].

    Raises:
        RetinaError: there is not one label for each sample, or a label is outside 0..K-1. While traced (`fit`,
            `tf.function`, `jax.jit`) such a label cannot raise: its sample's loss is NaN.

    Example: x = (1, 2) and c_y = (0, 0) give ½ · 5 = 2.5.

    >>> retina.losses.center_loss([[1, 2]], [0], [[0, 0], [5, 5]]).numpy()
    array([2.5], dtype=float32)
    """
    offsets, _, legal = _offsets(floats(features), labels, floats(centers))
    return nan_unless(legal, 0.5 * ops.sum(ops.square(offsets), axis=-1))


def updated_centers(features: Tensor, labels: Tensor, centers: Tensor, rate: float) -> Tensor:
    """The centres [K, F] after a batch (Wen et al. 2016, eq. 4): c_j - α·Σ_{y_i = j}(c_j - x_i) / (1 + n_j).

    n_j counts the batch's samples of class j; a class without any stays where it is. No gradient passes. While traced,
    a label outside 0..K-1 makes all centres NaN.

    Args:
        features, labels, centers: as in `center_loss`.
        rate: the paper's α, in [0, 1].

    Returns:
        [K, F].

    Raises:
        RetinaError: as `center_loss`.

    Example: c_j = 0, its samples 2 and 4, α = ½: 0 - ½ · (-2 - 4) / 3 = 1.

    >>> retina.losses.updated_centers([[2], [4]], [0, 0], [[0], [9]], 0.5).numpy()
    array([[1.],
           [9.]], dtype=float32)
    """
    features, centers = floats(features), floats(centers)
    classes = centers.shape[0]
    offsets, labels, legal = _offsets(ops.stop_gradient(features), labels, centers)
    summed = ops.segment_sum(offsets, labels, num_segments=classes)
    count = ops.segment_sum(ops.ones_like(offsets[:, :1]), labels, num_segments=classes)
    moved = centers + rate * summed / (1.0 + count)
    return nan_unless(None if legal is None else ops.all(legal), moved)


def _offsets(features: Tensor, labels: Tensor, centers: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """x - c_y [B, F], the labels as int32 [B] that can be looked up, and the mask of `legal_labels`."""
    legal = legal_labels(labels, features.shape[:-1], centers.shape[0], "center_loss")
    labels = ops.cast(labels, "int32")
    if legal is not None:
        labels = ops.where(legal, labels, 0)
    return features - ops.stop_gradient(ops.take(centers, labels, axis=0)), labels, legal


@keras.saving.register_keras_serializable("retina")
class Centers(keras.layers.Layer):
    """Holds a centre for each class, computes `center_loss` per sample [B] and moves the centres in training.

    Called with `features` [B, F] and `labels` [B]; the loss is of the centres before the update, as in the paper. With
    a `weight` the layer adds weight · mean(loss) to its model's loss (0 for no samples), so that any `compile` trains
    with it, and returns the features, so that it stands on the way to the model's outputs: Keras leaves out without a
    word what a functional model's outputs don't need.

        features = keras.layers.Dense(2)(images)
        # labels is a second input of the model
        features = Centers(10, weight=0.003)(features, labels)
        logits = keras.layers.Dense(10)(features)

    Args:
        classes: K.
        rate: the paper's α, how far a batch moves the centres, in [0, 1]; its experiments use 0.5.
        weight: the paper's λ, or None to return the losses [B] and leave them to the caller.

    Returns:
        Called: [B], or with a `weight` the features [B, F].

    Raises:
        RetinaError: an argument is out of range; or without a `weight` it stands in a functional model.

    Example:

    >>> layer = retina.losses.Centers(classes=2, rate=0.5)
    >>> layer(np.array([[2.0], [4.0]]), np.array([0, 0]), training=True).numpy()
    array([2., 8.], dtype=float32)
    >>> layer.centers.numpy()
    array([[1.],
           [0.]], dtype=float32)
    """

    def __init__(self, classes: int, rate: float = 0.5, weight: float | None = None, **kwargs: Any):
        # Under mixed precision Keras would round the features to bfloat16 on the way in.
        super().__init__(**{"autocast": False, **kwargs})
        whole = isinstance(classes, (int, np.integer)) and classes >= 1
        if not whole or not 0 <= rate <= 1 or (weight is not None and not 0 < weight < math.inf):
            raise RetinaError(
                "Centers: expected a whole number of classes >= 1, rate in [0, 1] and weight None or above 0, "
                f"got {classes}, {rate} and {weight}; change them"
            )
        self.classes, self.rate, self.weight = int(classes), rate, weight

    def __call__(self, features: Tensor, labels: Tensor, **settings: Any) -> Tensor:
        if self.weight is None and isinstance(features, keras.KerasTensor):
            raise RetinaError(
                "Centers: in a functional model expected weight=, got None: Keras leaves out a layer whose losses no "
                "output needs, and the centres would never move; give weight=, and go on with the features it returns"
            )
        return super().__call__(features, labels, **settings)

    def build(self, features_shape: tuple[int | None, ...], labels_shape: tuple[int | None, ...]) -> None:
        self.centers = self.add_weight(
            shape=(self.classes, features_shape[-1]), initializer="zeros", trainable=False, name="centers"
        )

    def call(self, features: Tensor, labels: Tensor, training: bool | None = None) -> Tensor:
        exact = ops.cast(features, self.centers.dtype)
        before = ops.convert_to_tensor(self.centers)
        losses = center_loss(exact, labels, before)
        if training:
            self.centers.assign(updated_centers(exact, labels, before, self.rate))
        if self.weight is None:
            return losses
        count = ops.cast(ops.shape(losses)[0], losses.dtype)
        self.add_loss(self.weight * ops.sum(losses) / ops.maximum(count, 1.0))
        return features

    def compute_output_shape(
        self, features_shape: tuple[int | None, ...], labels_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        return features_shape[:1] if self.weight is None else features_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "classes": self.classes, "rate": self.rate, "weight": self.weight}


def triplet(anchor: Tensor, positive: Tensor, negative: Tensor, *, margin: float) -> Tensor:
    """Triplet loss (Schroff et al. 2015, arXiv:1503.03832, eq. 3), per sample.

    max(0, ‖a - p‖² - ‖a - n‖² + margin), each distance over the last dimension of its own sample.

    Args:
        anchor, positive, negative: [..., F] embeddings.
        margin: how much farther the negative should be, in squared units of the embedding.

    Returns:
        [...].

    Raises:
        Nothing of its own: the backend's error where shapes can't be broadcast.

    Example: a = (0, 0), p = (1, 0), n = (0, 2): distances 1 and 4; margin 1 gives 0, margin 4 gives 1.

    >>> a, p, n = [0.0, 0.0], [1.0, 0.0], [0.0, 2.0]
    >>> float(retina.losses.triplet(a, p, n, margin=4.0))
    1.0
    """
    anchor, positive, negative = floats(anchor), floats(positive), floats(negative)
    return ops.maximum(_squared_distance(anchor, positive) - _squared_distance(anchor, negative) + margin, 0.0)


def batch_hard_triplet(embeddings: Tensor, labels: Tensor, *, margin: float) -> Tensor:
    """Triplet loss with each sample as the anchor of its hardest triplet in the batch (arXiv:1703.07737, eq. 5).

    The positive is the farthest other sample of the anchor's class, the negative the nearest of another class.
    Distances are squared, as in `triplet`; that paper takes their roots.

    Args:
        embeddings: [B, F].
        labels: [B], equal for one class.
        margin: how much farther the negative should be, in squared units of the embedding.

    Returns:
        [B]; 0 where the batch has no other sample of the class, or none of another class.

    Raises:
        RetinaError: there is not one label for each sample.

    Example: embeddings 0, 1, 3 with labels 0, 0, 1 and margin 4: 1 - 9 + 4 < 0 gives 0, 1 - 4 + 4 gives 1, and the
    last has no positive: 0.

    >>> points = [[0.0], [1.0], [3.0]]
    >>> retina.losses.batch_hard_triplet(points, [0, 0, 1], margin=4.0).numpy()
    array([0., 1., 0.], dtype=float32)
    """
    embeddings, labels = floats(embeddings), ops.convert_to_tensor(labels)
    if differ(tuple(labels.shape), tuple(embeddings.shape[:1])):
        raise RetinaError(
            f"batch_hard_triplet: expected one label for each of the embeddings {tuple(embeddings.shape)}, "
            f"got shape {tuple(labels.shape)}; reshape the labels"
        )
    if embeddings.shape[0] == 0:  # nothing to take from
        return ops.sum(embeddings, axis=-1)
    distance = _pairwise_squared_distances(ops.stop_gradient(embeddings))
    same = labels[:, None] == labels[None, :]
    rows = ops.arange(ops.shape(embeddings)[0], dtype="int32")
    positive = ops.logical_and(same, rows[:, None] != rows[None, :])
    # A last column that is never chosen: there is no argmax of nothing, and a traced batch may turn out empty.
    column = ((0, 0), (0, 1))
    farthest = ops.argmax(ops.pad(ops.where(positive, distance, -math.inf), column, constant_values=-math.inf), axis=-1)
    nearest = ops.argmin(ops.pad(ops.where(same, math.inf, distance), column, constant_values=math.inf), axis=-1)
    losses = triplet(
        embeddings, ops.take(embeddings, farthest, axis=0), ops.take(embeddings, nearest, axis=0), margin=margin
    )
    usable = ops.logical_and(ops.any(positive, axis=-1), ops.logical_not(ops.all(same, axis=-1)))
    return ops.where(usable, losses, 0.0)


def _squared_distance(first: Tensor, second: Tensor) -> Tensor:
    return ops.sum(ops.square(first - second), axis=-1)


def _pairwise_squared_distances(points: Tensor) -> Tensor:
    """Distances [B, B] to choose by, in memory for B², not B²·F numbers: rounded, more so far from the origin."""
    points = points - ops.mean(points, axis=0, keepdims=True)
    squares = ops.sum(ops.square(points), axis=-1)
    return squares[:, None] + squares[None, :] - 2.0 * ops.matmul(points, ops.transpose(points))
