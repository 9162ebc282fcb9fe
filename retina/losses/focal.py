"""Focal losses (Lin et al. 2017, arXiv:1708.02002, section 3) and their relatives with an overlap as the target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from retina.errors import RetinaError
from retina.losses.arguments import floats, smoothed
from retina.losses.cross_entropy import logistic
from retina.losses.labels import class_targets, is_class, nan_unless
from retina.ops.derivative import with_slope

Tensor = Any


def sigmoid_focal(logits: Tensor, *, targets: Tensor, alpha: float | None, gamma: float) -> Tensor:
    """α-balanced focal loss on sigmoid probabilities, elementwise.

    With p = σ(x): FL = -y·α·(1-p)^γ·log p - (1-y)·(1-α)·p^γ·log(1-p); without α both weights are 1. γ = 0 is
    α-balanced cross-entropy.

    Written with softplus, -log p = softplus(-x) and p^γ = exp(-γ·softplus(-x)), so that value and gradient are finite
    and exact at any logit and any γ ≥ 0.

    Args:
        logits: [...] float.
        targets: [...] in [0, 1], broadcast against `logits`. By name, as of `logistic`.
        alpha: weight of y = 1, in [0, 1]; None for no balancing.
        gamma: focusing exponent, at least 0.

    Returns:
        [...], of the broadcast shape.

    Raises:
        Nothing of its own: the backend's error where shapes can't be broadcast.

    Example: x = 0, y = 1, α = 0.25, γ = 2 gives 0.25 · 0.5² · ln 2 = 0.04332.

    >>> losses = retina.losses.sigmoid_focal(
    ...     [0.0, 0.0], targets=[1, 0], alpha=0.25, gamma=2.0
    ... )
    >>> losses.numpy().round(5)
    array([0.04332, 0.12997], dtype=float32)
    """
    logits = floats(logits)
    targets = floats(targets, logits.dtype)
    positive, negative = (1.0, 1.0) if alpha is None else (alpha, 1.0 - alpha)
    return positive * targets * _focal_term(-logits, gamma) + negative * (1.0 - targets) * _focal_term(logits, gamma)


def sigmoid_focal_of_labels(logits: Tensor, labels: Tensor, *, alpha: float | None, gamma: float) -> Tensor:
    """`sigmoid_focal` of logits [..., K] summed over the classes [...], where the label [...] of a row is its only
    target: the detector's case, at half the work. A label outside of 0..K-1 is none."""
    positive, negative = (1.0, 1.0) if alpha is None else (alpha, 1.0 - alpha)
    classes = logits.shape[-1]
    if keras.backend.backend() != "tensorflow" or keras.distribution.list_devices("gpu"):
        is_label = is_class(labels, classes)
        weights = ops.where(is_label, positive, negative)
        return ops.sum(weights * _focal_term(ops.where(is_label, -logits, logits), gamma), axis=-1)

    # Each operation of TensorFlow's is a pass over memory. No choice is made over all classes, therefore: the terms of
    # the background are computed everywhere, and each row's term of its label is put in the place of one of them.
    shape, labels = ops.shape(logits), ops.reshape(labels, (-1,))
    has_label = ops.logical_and(labels >= 0, labels < classes)
    label = ops.cast(ops.clip(labels, 0, classes - 1), "int64")
    place = label + ops.arange(ops.shape(labels)[0], dtype="int64") * classes

    @ops.custom_gradient
    def sums(logits: Tensor) -> tuple[Tensor, Any]:
        logits = ops.reshape(logits, (-1,))
        label_logit = ops.take(logits, place)
        terms = zip(
            _focal_value_and_slope(logits, gamma, negative),
            _focal_value_and_slope(ops.where(has_label, -label_logit, label_logit), gamma),
            (ops.where(has_label, positive, negative), ops.where(has_label, -positive, negative)),
            strict=True,
        )
        value, slope = (
            ops.reshape(ops.scatter_update(background, place[:, None], weight * of_label), shape)
            for background, of_label, weight in terms
        )
        return ops.sum(value, axis=-1), lambda upstream: upstream[..., None] * slope

    return sums(logits)


def softmax_focal(
    logits: Tensor,
    *,
    targets: Tensor,
    gamma: float,
    alpha: float | Sequence[float] | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Focal loss on softmax probabilities, per sample: -Σ_k y_k·α_k·(1-p_k)^γ·log p_k.

    The multi-class form of arXiv:1708.02002, eq. 4 and 5 (its footnote 1 leaves the extension to the reader). Computed
    from log-softmax; 1-p of the likeliest class is taken from the others, so that value and gradient are finite and
    exact at any logit and any γ ≥ 0. γ = 0 is softmax cross-entropy.

    Args:
        logits: [..., K] float, K at least 2.
        targets: labels [...] in 0..K-1, or a distribution [..., K]. By name, as of `logistic`.
        gamma: focusing exponent, at least 0.
        alpha: the weight of every class, or one for each [K], at least 0; None for 1.
        label_smoothing: the share of each target that is spread evenly over the classes.

    Returns:
        [...].

    Raises:
        RetinaError: there is one class only, the shapes don't belong together, `alpha` has another length than K, or
            a label is outside 0..K-1. While traced (`fit`, `tf.function`, `jax.jit`) such a label cannot raise: its
            sample's loss is NaN.

    Example: logits (ln 3, 0) make p = (3/4, 1/4): with γ = 2, label 0 gives (1/4)² · ln(4/3) = 0.01798 and label 1
    gives (3/4)² · ln 4 = 0.77979.

    >>> logits = [[1.0986123, 0.0], [1.0986123, 0.0]]
    >>> losses = retina.losses.softmax_focal(logits, targets=[0, 1], gamma=2.0)
    >>> losses.numpy().round(5)
    array([0.01798, 0.77979], dtype=float32)
    """
    logits = floats(logits)
    if logits.shape[-1] < 2:
        raise RetinaError(
            f"softmax_focal: expected logits of at least 2 classes, got {logits.shape[-1]}; "
            "use sigmoid_focal for a single class"
        )
    weights, legal = class_targets(logits, targets, "softmax_focal")
    weights = smoothed(weights, label_smoothing, logits.shape[-1])
    if alpha is not None:
        of_class = ops.convert_to_tensor(alpha, dtype=logits.dtype)
        if tuple(of_class.shape) not in ((), (logits.shape[-1],)):
            raise RetinaError(
                f"softmax_focal: alpha: expected one number or {logits.shape[-1]}, one for each class, "
                f"got shape {tuple(of_class.shape)}; give each class its weight"
            )
        weights = weights * of_class
    return nan_unless(legal, ops.sum(weights * _focal_term(_log_odds_against(logits), gamma), axis=-1))


def quality_focal(logits: Tensor, *, targets: Tensor, beta: float) -> Tensor:
    """Quality focal loss (Li et al. 2020, arXiv:2006.04388, eq. 3), elementwise.

    With p = σ(x): QFL = -|y - p|^β·((1-y)·log(1-p) + y·log p). The target is a quality, in a detector the IoU of the
    predicted box at its class and 0 elsewhere; the loss is 0 where p = y. For 0 < β < 1 its slope has no bound there,
    and is given as 0 at p = y itself.

    Args:
        logits: [...] float.
        targets: [...] in [0, 1], broadcast against `logits`, by name; no gradient passes to them.
        beta: focusing exponent, at least 0; the paper takes 2. 0 is binary cross-entropy.

    Returns:
        [...], of the broadcast shape.

    Raises:
        Nothing of its own: the backend's error where shapes can't be broadcast.

    Example: x = 0 and y = 3/4 with β = 2 give (1/4)² · ln 2 = 0.04332.

    >>> float(retina.losses.quality_focal(0.0, targets=0.75, beta=2.0))
    0.04332...
    """
    logits = floats(logits)
    targets = ops.stop_gradient(floats(targets, logits.dtype))
    cross_entropy = logistic(logits, targets=targets)
    if beta == 0:
        return cross_entropy
    # y - p in a form that loses nothing at y = 0 and 1, where p may round to them.
    error = targets * ops.sigmoid(-logits) - (1.0 - targets) * ops.sigmoid(logits)
    if beta == 2:
        return ops.square(error) * cross_entropy
    exact = error == 0
    weight = ops.power(ops.abs(ops.where(exact, 1.0, error)), beta)
    return ops.where(exact, 0.0, weight) * cross_entropy


def varifocal(logits: Tensor, *, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """Varifocal loss (Zhang et al. 2021, arXiv:2008.13367, eq. 2), elementwise.

    With p = σ(x): -q·(q·log p + (1-q)·log(1-p)) where q > 0, and -α·p^γ·log(1-p) where q = 0. Only negatives are
    focused; positives weigh as much as their quality.

    Args:
        logits: [...] float.
        targets: [...] qualities q in [0, 1], broadcast against `logits`, by name; no gradient passes to them.
        alpha: weight of the negatives; the paper takes 0.75.
        gamma: focusing exponent of the negatives, at least 0; the paper takes 2.

    Returns:
        [...], of the broadcast shape.

    Raises:
        Nothing of its own: the backend's error where shapes can't be broadcast.

    Example: x = 0: q = 0.8 gives 0.8 · ln 2 = 0.55452; q = 0, α = 0.75, γ = 2 give 0.75 · (1/2)² · ln 2 = 0.12997.

    >>> losses = retina.losses.varifocal(
    ...     [0.0, 0.0], targets=[0.8, 0.0], alpha=0.75, gamma=2.0
    ... )
    >>> losses.numpy().round(5)
    array([0.55452, 0.12997], dtype=float32)
    """
    logits = floats(logits)
    targets = ops.stop_gradient(floats(targets, logits.dtype))
    return ops.where(targets > 0, targets * logistic(logits, targets=targets), alpha * _focal_term(logits, gamma))


def _log_odds_against(logits: Tensor) -> Tensor:
    """log((1 - p_k) / p_k) [..., K] of softmax probabilities: with it, softmax is a sigmoid for each class.

    1 - p is a sum over the others for the likeliest class, where 1 - p itself would cancel, and is at least 1/2 for
    the rest.
    """
    likeliest = ops.argmax(logits, axis=-1)[..., None] == ops.arange(logits.shape[-1], dtype="int32")
    others = ops.logsumexp(ops.where(likeliest, -math.inf, logits), axis=-1, keepdims=True)
    log_p = ops.log_softmax(logits, axis=-1)
    p = ops.where(likeliest, 0.0, ops.exp(log_p))
    return ops.where(likeliest, others - logits, ops.log1p(-p) - log_p)


def _focal_term(wrongness: Tensor, gamma: float) -> Tensor:
    """σ(z)^γ · softplus(z): the loss of a target whose logit errs by z."""
    if gamma == 0:
        return ops.softplus(wrongness)
    # The derivative is written out: it shares its parts with the value, which no backend finds out by itself. It is
    # computed beside the value, so that it is all that waits for the backward pass: a tensor as large as the logits
    # instead of four (on PyTorch its argument as well, for a second derivative).
    return with_slope(lambda z: _focal_value_and_slope(z, gamma))(wrongness)


def _focal_value_and_slope(z: Tensor, gamma: float, weight: float = 1.0) -> tuple[Tensor, Tensor]:
    """σ^γ·softplus(z) and its derivative σ^γ·(σ + γ·(1 - σ)·softplus), both times a weight."""
    cross_entropy = _softplus(z)
    probability = ops.sigmoid(z)
    if gamma == 0:
        return weight * cross_entropy, weight * probability
    modulation = ops.square(probability) if gamma == 2 else ops.exp(-gamma * ops.softplus(-z))
    modulation = modulation if weight == 1 else weight * modulation
    return modulation * cross_entropy, modulation * (probability + gamma * ops.sigmoid(-z) * cross_entropy)


def _softplus(z: Tensor) -> Tensor:
    """`ops.softplus`, in two thirds of the time of TensorFlow's kernel, which computes two branches of a choice."""
    if keras.backend.backend() != "tensorflow" or keras.backend.standardize_dtype(z.dtype) != "float32":
        return ops.softplus(z)
    return ops.maximum(z, ops.log1p(ops.exp(ops.minimum(z, 80.0))))
