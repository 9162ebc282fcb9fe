"""Margin losses of linear classifiers, on raw scores."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from retina.errors import RetinaError
from retina.losses.labels import check_labels, is_class, known

Tensor = Any


def hinge(scores: Tensor, labels: Tensor, *, margin: float = 1.0) -> Tensor:
    """Hinge loss (Cortes and Vapnik 1995, "Support-vector networks"), elementwise: max(0, margin - y·s).

    Args:
        scores: [...] float.
        labels: [...], -1 or 1, broadcast against `scores`. Inside a compiled function (`tf.function`, `jax.jit`, and so
            `fit`) values cannot be looked at: there a label of 0 goes unnoticed, as the constant loss `margin`.
        margin: the score from which on a sample adds nothing.

    Raises:
        RetinaError: a label is known (not traced) and neither -1 nor 1.

    Example: s = 0.5 gives 0.5 for y = 1 and 1.5 for y = -1.
    """
    values = known(labels)
    if values is not None and not np.isin(values, (-1, 1)).all():
        wrong = values[~np.isin(values, (-1, 1))].flat[0]
        raise RetinaError(f"hinge: expected labels -1 and 1, got {wrong}; turn labels 0 and 1 into 2 * labels - 1")
    return ops.maximum(margin - ops.cast(labels, scores.dtype) * scores, 0.0)


def multiclass_hinge(scores: Tensor, labels: Tensor, *, margin: float = 1.0) -> Tensor:
    """Multi-class hinge loss (Weston and Watkins 1999), per sample: Σ_{j ≠ y} max(0, s_j - s_y + margin).

    Args:
        scores: [..., K] float.
        labels: [...], 0..K-1.

    Returns:
        [...].

    Raises:
        RetinaError: a label is known (not traced) and outside 0..K-1.

    Example: scores (3.2, 5.1, -1.7) and label 0 give max(0, 2.9) + max(0, -3.9) = 2.9.
    """
    classes = scores.shape[-1]
    check_labels(labels, classes, "multiclass_hinge")
    own = is_class(labels, classes)
    own_score = ops.sum(ops.where(own, scores, 0.0), axis=-1, keepdims=True)
    return ops.sum(ops.where(own, 0.0, ops.maximum(scores - own_score + margin, 0.0)), axis=-1)
