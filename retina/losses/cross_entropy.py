"""Cross-entropies from logits: binary, and over classes."""

from __future__ import annotations

from typing import Any

from keras import ops

from retina.losses.arguments import floats, smoothed
from retina.losses.labels import class_targets, nan_unless

Tensor = Any


def logistic(logits: Tensor, *, targets: Tensor) -> Tensor:
    """Logistic loss, or binary cross-entropy (Cox 1958, "The regression analysis of binary sequences"), elementwise.

    With p = σ(x): L = -y·log p - (1-y)·log(1-p), written with softplus: finite and exact at any logit.

    Args:
        logits: [...] float.
        targets: [...] in [0, 1] (not ±1), broadcast against `logits`. By name: Keras calls its losses with the targets
            first, and would exchange the two; in `compile` stands `retina.losses.Logistic()`.

    Returns:
        [...], of the broadcast shape.

    Raises:
        Nothing of its own: the backend's error where shapes can't be broadcast.

    Example: x = 0 gives ln 2 = 0.69315 for any y; x = ln 3 and y = 1, so p = 3/4, give ln(4/3) = 0.28768.

    >>> retina.losses.logistic([0.0, 1.0986123], targets=[0, 1]).numpy().round(5)
    array([0.69315, 0.28768], dtype=float32)
    """
    logits = floats(logits)
    targets = floats(targets, logits.dtype)
    return targets * ops.softplus(-logits) + (1.0 - targets) * ops.softplus(logits)


def softmax_cross_entropy(logits: Tensor, *, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of softmax probabilities (Bridle 1990), per sample: -Σ_k y_k·log p_k, from log-softmax.

    Args:
        logits: [..., K] float.
        targets: labels [...] in 0..K-1, or a distribution [..., K]. By name, as of `logistic`.
        label_smoothing: the share of each target that is spread evenly over the classes.

    Returns:
        [...].

    Raises:
        RetinaError: the shapes don't belong together, or a label is outside 0..K-1. While traced (`fit`,
            `tf.function`, `jax.jit`) such a label cannot raise: its sample's loss is NaN.

    Example: logits (ln 3, 0) make p = (3/4, 1/4): label 0 gives ln(4/3) = 0.28768, label 1 gives ln 4 = 1.38629.

    >>> logits = [[1.0986123, 0.0], [1.0986123, 0.0]]
    >>> losses = retina.losses.softmax_cross_entropy(logits, targets=[0, 1])
    >>> losses.numpy().round(5)
    array([0.28768, 1.38629], dtype=float32)
    """
    logits = floats(logits)
    targets, legal = class_targets(logits, targets, "softmax_cross_entropy")
    targets = smoothed(targets, label_smoothing, logits.shape[-1])
    return nan_unless(legal, -ops.sum(targets * ops.log_softmax(logits, axis=-1), axis=-1))
