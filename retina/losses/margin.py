"""Margin losses of linear classifiers, on raw scores."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from retina.errors import RetinaError
from retina.losses.arguments import floats
from retina.losses.labels import class_mask, known, nan_unless

Tensor = Any


def hinge(scores: Tensor, labels: Tensor, *, margin: float = 1.0) -> Tensor:
    """Hinge loss (Cortes and Vapnik 1995, "Support-vector networks"), elementwise: max(0, margin - y·s).

    Args:
        scores: [...] float.
        labels: [...], -1 or 1, broadcast against `scores`.
        margin: the score from which on a sample adds nothing.

    Returns:
        [...], of the broadcast shape.

    Raises:
        RetinaError: a label is neither -1 nor 1. While traced (`fit`, `tf.function`, `jax.jit`) such a label cannot
            raise: its loss is NaN.

    Example: s = 0.5 gives 0.5 for y = 1 and 1.5 for y = -1.

    >>> retina.losses.hinge([0.5, 0.5], [1, -1]).numpy()
    array([0.5, 1.5], dtype=float32)
    """
    scores = floats(scores)
    values, legal = known(labels), None
    if values is None:
        legal = ops.abs(ops.cast(labels, "float32")) == 1.0
        labels = ops.where(legal, ops.cast(labels, scores.dtype), 0.0)  # of a NaN the gradient would be NaN
    elif not np.isin(values, (-1, 1)).all():
        wrong = values[~np.isin(values, (-1, 1))].flat[0]
        raise RetinaError(f"hinge: expected labels -1 and 1, got {wrong}; turn labels 0 and 1 into 2 * labels - 1")
    return nan_unless(legal, ops.maximum(margin - floats(labels, scores.dtype) * scores, 0.0))


def multiclass_hinge(scores: Tensor, labels: Tensor, *, margin: float = 1.0) -> Tensor:
    """Multi-class hinge loss (Weston and Watkins 1999), per sample: Σ_{j ≠ y} max(0, s_j - s_y + margin).

    Args:
        scores: [..., K] float.
        labels: [...], 0..K-1, or one-hot [..., K].
        margin: by how much the score of the class should exceed the others.

    Returns:
        [...].

    Raises:
        RetinaError: there is not one label for each sample, or a label is outside 0..K-1. While traced (`fit`,
            `tf.function`, `jax.jit`) such a label cannot raise: its sample's loss is NaN.

    Example: scores (3.2, 5.1, -1.7) and label 0 give max(0, 2.9) + max(0, -3.9) = 2.9.

    >>> float(retina.losses.multiclass_hinge([3.2, 5.1, -1.7], 0))
    2.89999...
    """
    scores = floats(scores)
    is_label, legal = class_mask(scores, labels, "multiclass_hinge")
    label_score = ops.sum(ops.where(is_label, scores, 0.0), axis=-1, keepdims=True)
    losses = ops.sum(ops.where(is_label, 0.0, ops.maximum(scores - label_score + margin, 0.0)), axis=-1)
    return nan_unless(legal, losses)
