"""Focal losses (Lin et al. 2017, arXiv:1708.02002, section 3)."""

from __future__ import annotations

from typing import Any

from keras import ops

Tensor = Any


def sigmoid_focal(logits: Tensor, targets: Tensor, *, alpha: float | None, gamma: float) -> Tensor:
    """α-balanced focal loss on sigmoid probabilities, elementwise.

    With p = σ(x): FL = -y·α·(1-p)^γ·log p - (1-y)·(1-α)·p^γ·log(1-p); without α both weights are 1. γ = 0 is
    α-balanced cross-entropy.

    Written with softplus, -log p = softplus(-x) and p^γ = exp(-γ·softplus(-x)), so that value and gradient are finite
    and exact at any logit and any γ ≥ 0.

    Args:
        logits: [...] float.
        targets: [...] in [0, 1], broadcast against `logits`.
        alpha: weight of y = 1, in [0, 1]; None for no balancing.
        gamma: focusing exponent, at least 0.

    Example: x = 0, y = 1, α = 0.25, γ = 2 gives 0.25 · 0.5² · ln 2 = 0.04332.
    """
    targets = ops.cast(targets, logits.dtype)
    positive, negative = (1.0, 1.0) if alpha is None else (alpha, 1.0 - alpha)
    return positive * targets * _focal_term(-logits, gamma) + negative * (1.0 - targets) * _focal_term(logits, gamma)


def sigmoid_focal_hard(logits: Tensor, is_positive: Tensor, *, alpha: float | None, gamma: float) -> Tensor:
    """`sigmoid_focal` where every target is 0 or 1, given as bool [...]: the detector's case, at half the work."""
    positive, negative = (1.0, 1.0) if alpha is None else (alpha, 1.0 - alpha)
    return ops.where(is_positive, positive, negative) * _focal_term(ops.where(is_positive, -logits, logits), gamma)


def _focal_term(wrongness: Tensor, gamma: float) -> Tensor:
    """σ(z)^γ · softplus(z): the loss of a target whose logit errs by z."""
    if gamma == 0:
        return ops.softplus(wrongness)

    # The derivative σ^γ·(σ + γ·(1 - σ)·softplus) is written out: it shares its parts with the value, which no
    # backend finds out by itself.
    @ops.custom_gradient
    def term(z: Tensor) -> tuple[Tensor, Any]:
        cross_entropy = ops.softplus(z)
        probability = ops.sigmoid(z)
        weight = ops.square(probability) if gamma == 2 else ops.exp(-gamma * ops.softplus(-z))

        def gradient(*args: Tensor, upstream: Tensor = None) -> Tensor:
            (upstream,) = args if upstream is None else (upstream,)
            return upstream * weight * (probability + gamma * ops.sigmoid(-z) * cross_entropy)

        return weight * cross_entropy, gradient

    return term(wrongness)
