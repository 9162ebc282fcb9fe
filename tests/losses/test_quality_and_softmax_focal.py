"""Softmax focal, quality focal and varifocal loss."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from retina.errors import RetinaError
from retina.losses import quality_focal, softmax_cross_entropy, softmax_focal, varifocal
from tests import reference
from tests.gradient import value_and_gradient

GAMMAS = (0.0, 0.3, 0.5, 1.0, 2.0, 5.0)
LOGITS = np.concatenate([[-200, -100, -50, -20], np.linspace(-12, 12, 25), [20, 50, 100, 200]]).astype(np.float32)
ROWS = np.concatenate(
    [
        [[0, 0, 0], [200, -200, 0], [-200, -200, 200], [20, 0, 0], [200, 200, 199], [-200, -201, -200], [90, 0, 89]],
        np.random.default_rng(0).normal(0, 4, (10, 3)),
    ]
).astype(np.float32)

# As for sigmoid focal loss: exp(-m) is known to m·ε of itself, so products of it and m err by up to 0.4 ε.
ATOL = 1e-7


def tensor(values):
    return ops.convert_to_tensor(np.asarray(values, np.float32))


# ------------------------------------------------------------------------------------------------------- softmax focal


def reference_softmax_focal(row, target, gamma, alpha=(1, 1, 1)):
    """-Σ_k y_k α_k (1 - p_k)^γ log p_k of one sample; 1 - p_k is the sum over the others."""
    row = row.astype(np.float64)
    total, loss = np.logaddexp.reduce(row), 0.0
    for k, y in enumerate(target):
        log_rest = np.logaddexp.reduce(np.delete(row, k)) - total
        loss -= y * alpha[k] * np.exp(gamma * log_rest) * min(row[k] - total, 0.0)
    return loss


def test_softmax_focal_of_no_samples():
    value, gradient = value_and_gradient(
        lambda x: softmax_focal(x, targets=np.zeros(0, np.int32), gamma=2.0), np.zeros((0, 3), np.float32)
    )
    assert value.shape == (0,) and gradient.shape == (0, 3)


def test_softmax_focal_needs_two_classes():
    with pytest.raises(RetinaError, match="at least 2 classes, got 1; use sigmoid_focal"):
        softmax_focal(tensor([[1.0]]), targets=np.zeros(1, np.int32), gamma=2.0)


def test_softmax_focal_by_hand():
    logits = tensor([[math.log(3), 0]] * 2)
    expected = [math.log(4 / 3) / 16, math.log(4) * 9 / 16]
    np.testing.assert_allclose(softmax_focal(logits, targets=[0, 1], gamma=2.0), expected, rtol=1e-6)
    weighted = softmax_focal(logits, targets=[0, 1], gamma=2.0, alpha=[0.25, 2.0])
    np.testing.assert_allclose(weighted, [expected[0] / 4, expected[1] * 2], rtol=1e-6)
    np.testing.assert_allclose(
        softmax_focal(logits, targets=[0, 1], gamma=2.0, alpha=0.5), np.divide(expected, 2), rtol=1e-6
    )


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("target", [(1, 0, 0), (0, 0, 1), (0.2, 0.5, 0.3)])
def test_softmax_focal_equals_reference(target, gamma):
    alpha = (0.25, 1.0, 2.0)
    targets = np.tile(np.array(target, np.float32), (len(ROWS), 1))
    value, gradient = value_and_gradient(
        lambda x: softmax_focal(x, targets=tensor(targets), gamma=gamma, alpha=alpha), ROWS
    )
    expected = [reference_softmax_focal(row, target, gamma, alpha) for row in ROWS]
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=4 * ATOL)
    for row, found in zip(ROWS, gradient, strict=True):
        slope = reference.central_difference(lambda x: reference_softmax_focal(x, target, gamma, alpha), row)
        # atol: the difference itself is known to 1e-7 where the loss is 400, a sum over classes to a few ε.
        np.testing.assert_allclose(found, slope, rtol=2e-6, atol=(1 + gamma) * 1e-6)


@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.9])
def test_softmax_focal_is_finite_where_p_is_1(gamma):
    rows = np.array([[200, -200, 0], [100, 0, 0], [40, 0, 0]], np.float32)
    value, gradient = value_and_gradient(lambda x: softmax_focal(x, targets=[0, 0, 0], gamma=gamma), rows)
    assert np.isfinite(value).all() and np.isfinite(gradient).all()
    np.testing.assert_allclose(value, 0, atol=1e-17)
    np.testing.assert_allclose(gradient, 0, atol=1e-17)


def test_softmax_focal_keeps_a_small_loss_exact():
    """Two e^-20 beside 1: 1 - p = 2e^-20, far below the ε of p, and so is the loss (2e^-20)^1.5."""
    value = softmax_focal(tensor([[20, 0, 0]]), targets=[0], gamma=0.5)
    np.testing.assert_allclose(value, [(2 * math.exp(-20)) ** 1.5], rtol=1e-5)


def test_gamma_0_is_softmax_cross_entropy():
    labels = np.arange(len(ROWS)) % 3
    np.testing.assert_allclose(
        softmax_focal(tensor(ROWS), targets=labels, gamma=0.0),
        softmax_cross_entropy(tensor(ROWS), targets=labels),
        rtol=1e-6,
        atol=ATOL,
    )


# ------------------------------------------------------------------------------------------------------- quality focal


def reference_quality_focal(x, y, beta):
    """arXiv:2006.04388, eq. 3."""
    x, y = np.float64(x), np.float64(y)
    log_p, log_q = -np.logaddexp(0, -x), -np.logaddexp(0, x)
    return -(np.abs(y * np.exp(log_q) - (1 - y) * np.exp(log_p)) ** beta) * ((1 - y) * log_q + y * log_p)


def reference_quality_focal_gradient(x, y, beta):
    x, y = np.float64(x), np.float64(y)
    p, q = reference.sigmoid(x), reference.sigmoid(-x)
    error, entropy = y * q - (1 - y) * p, y * np.logaddexp(0, -x) + (1 - y) * np.logaddexp(0, x)
    size = np.abs(error)
    steep = np.where(size > 0, beta * np.where(size > 0, size, 1) ** (beta - 1), 0) if beta else 0.0
    return -error * size**beta - steep * np.sign(error) * p * q * entropy


@pytest.mark.parametrize(
    "loss",
    [lambda x, y: quality_focal(x, targets=y, beta=2.0), lambda x, y: varifocal(x, targets=y, alpha=0.75, gamma=2.0)],
)
def test_no_elements(loss):
    empty = np.zeros((0, 4), np.float32)
    assert loss(tensor(empty), tensor(empty)).shape == (0, 4)


def test_quality_focal_by_hand():
    value = quality_focal(tensor([0, 0, 0, 0]), targets=tensor([1, 0, 0.75, 0.5]), beta=2.0)
    np.testing.assert_allclose(value, np.array([1 / 4, 1 / 4, 1 / 16, 0]) * math.log(2), rtol=1e-6)
    np.testing.assert_allclose(
        quality_focal(tensor([0]), targets=tensor([0.75]), beta=1.0), [math.log(2) / 4], rtol=1e-6
    )


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("target", [0.0, 1.0, 0.3])
def test_quality_focal_equals_reference(target, beta):
    targets = np.full_like(LOGITS, target)
    value, gradient = value_and_gradient(lambda x: quality_focal(x, targets=tensor(targets), beta=beta), LOGITS)
    # atol: where p is near y the error y - p is known to ε, and what is made of it to a few ε.
    np.testing.assert_allclose(value, reference_quality_focal(LOGITS, targets, beta), rtol=2e-6, atol=2 * ATOL)
    expected = reference_quality_focal_gradient(LOGITS, targets, beta)
    np.testing.assert_allclose(gradient, expected, rtol=2e-6, atol=4 * ATOL)


@pytest.mark.parametrize("beta", [0.3, 0.5, 1.0, 2.0])
def test_quality_focal_is_finite_where_nothing_is_wrong(beta):
    value, gradient = value_and_gradient(
        lambda x: quality_focal(x, targets=tensor([1, 0, 0.5]), beta=beta), np.array([200, -200, 0], np.float32)
    )
    assert value[2] == 0 and gradient[2] == 0
    np.testing.assert_allclose(value, 0, atol=1e-25)
    np.testing.assert_allclose(gradient, 0, atol=1e-25)


# ----------------------------------------------------------------------------------------------------------- varifocal


def test_varifocal_by_hand():
    value = varifocal(tensor([0, 0, 0]), targets=tensor([0.8, 0, 1]), alpha=0.75, gamma=2.0)
    np.testing.assert_allclose(value, np.array([0.8, 0.75 / 4, 1]) * math.log(2), rtol=1e-6)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("quality", [0.0, 1.0, 0.3])
def test_varifocal_equals_reference(quality, gamma):
    """A negative weighs as in focal loss with 1 - α there; a positive is q times cross-entropy."""
    x, q = LOGITS.astype(np.float64), float(np.float32(quality))
    value, gradient = value_and_gradient(
        lambda x: varifocal(x, targets=tensor(np.full_like(LOGITS, quality)), alpha=0.75, gamma=gamma), LOGITS
    )
    if quality == 0:
        expected = reference.focal(x, 0, 0.25, gamma), reference.focal_gradient(x, 0, 0.25, gamma)
    else:
        expected = q * reference.focal(x, q, None, 0.0), q * (reference.sigmoid(x) - q)
    np.testing.assert_allclose(value, expected[0], rtol=1e-6, atol=ATOL)
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-6, atol=(1 + gamma) * ATOL)


@pytest.mark.parametrize(
    "loss",
    [lambda x, y: quality_focal(x, targets=y, beta=2.0), lambda x, y: varifocal(x, targets=y, alpha=0.75, gamma=2.0)],
)
def test_no_gradient_passes_to_the_quality(loss):
    """The target is the overlap of a predicted box, which classification must not move."""
    logits = tensor([-1, 0, 2])
    _, gradient = value_and_gradient(lambda y: loss(logits, y) + 0.0 * y, np.array([0.2, 0.5, 0.9], np.float32))
    assert (gradient == 0).all()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.floats(-200, 200, width=32), st.floats(0, 1, width=32), st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.3]))
def test_finite_and_not_negative(logit, target, power):
    for loss in (
        lambda x: quality_focal(x, targets=tensor([target]), beta=power),
        lambda x: varifocal(x, targets=tensor([target]), alpha=0.75, gamma=power),
        lambda x: softmax_focal(
            ops.stack([x, 0.0 * x, -x], axis=-1), targets=tensor([[target, 1 - target, 0]]), gamma=power
        ),
    ):
        value, gradient = value_and_gradient(loss, np.array([logit], np.float32))
        assert np.isfinite(value).all() and np.isfinite(gradient).all() and value[0] >= 0
