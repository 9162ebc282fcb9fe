import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from retina.losses.box import giou_loss, huber, smooth_l1
from tests import reference
from tests.gradient import value_and_gradient

few = settings(max_examples=30, deadline=None, derandomize=True)
ERRORS = np.concatenate([[-1e4, -200, 200, 1e4], np.linspace(-3, 3, 61)]).astype(np.float32)


def tensor(values):
    return ops.convert_to_tensor(np.asarray(values, np.float32))


def zeros_like(values):
    return tensor(np.zeros_like(values))


@pytest.mark.parametrize(
    ("error", "delta", "value", "slope"),
    [
        (0.0, 1.0, 0.0, 0.0),
        (0.5, 1.0, 0.125, 0.5),
        (1.0, 1.0, 0.5, 1.0),
        (3.0, 1.0, 2.5, 1.0),
        (-3.0, 1.0, 2.5, -1.0),
        (4.0, 0.5, 1.875, 0.5),
    ],
)
def test_huber_by_hand(error, delta, value, slope):
    found = value_and_gradient(lambda x: huber(x + 7.0, tensor([7.0]), delta=delta), np.array([error], np.float32))
    assert (found[0][0], found[1][0]) == (value, slope)


def test_smooth_l1_by_hand():
    value, slope = value_and_gradient(
        lambda x: smooth_l1(x, zeros_like([0, 0, 0]), beta=1 / 9), np.array([0.0, 0.1, -1.0], np.float32)
    )
    np.testing.assert_allclose(value, [0, 0.045, 17 / 18], rtol=1e-6)
    np.testing.assert_allclose(slope, [0, 0.9, -1], rtol=1e-6)


@pytest.mark.parametrize("delta", [1 / 9, 0.5, 1.0, 10.0])
def test_huber_and_smooth_l1_equal_reference(delta):
    value, slope = value_and_gradient(lambda x: huber(x, zeros_like(ERRORS), delta=delta), ERRORS)
    np.testing.assert_allclose(value, reference.huber(ERRORS, 0, delta), rtol=1e-6)
    np.testing.assert_allclose(slope, np.clip(ERRORS, -delta, delta), rtol=1e-6)
    value, slope = value_and_gradient(lambda x: smooth_l1(x, zeros_like(ERRORS), beta=delta), ERRORS)
    np.testing.assert_allclose(value, reference.smooth_l1(ERRORS, 0, delta), rtol=1e-6)
    np.testing.assert_allclose(slope, np.clip(ERRORS / delta, -1, 1), rtol=1e-6)


@few
@given(st.floats(-100, 100, width=32), st.floats(0.0625, 10, width=32))
def test_huber_is_delta_times_smooth_l1(error, delta):
    left = huber(tensor([error]), tensor([0]), delta=delta)
    right = delta * smooth_l1(tensor([error]), tensor([0]), beta=delta)
    np.testing.assert_allclose(left, right, rtol=1e-6)


POINT, UNIT, BOX = [3, 3, 3, 3], [0, 0, 1, 1], [0, 0, 10, 10]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (POINT, POINT, 0.0),  # documented: no hull, no error
        (POINT, BOX, 1.0),  # inside: no overlap, nothing of the hull is wasted
        (POINT, [3, 3, 5, 5], 1.0),
        (UNIT, UNIT, 0.0),
        (UNIT, [1, 0, 2, 1], 1.0),  # side by side: hull filled
        (UNIT, [9, 0, 10, 1], 1.8),  # hull 10, union 2
        (UNIT, [9, 9, 10, 10], 1.98),
        ([0, 0, 2, 2], [1, 1, 3, 3], 1 - 1 / 7 + 2 / 9),
    ],
)
def test_giou_by_hand(first, second, expected):
    for pair in ((first, second), (second, first)):
        value, gradient = value_and_gradient(lambda x, other=pair[1]: giou_loss(x, tensor([other])), tensor([pair[0]]))
        np.testing.assert_allclose(value, [expected], rtol=1e-6, atol=1e-7)
        assert np.isfinite(gradient).all()


def test_no_boxes():
    assert tuple(giou_loss(tensor(np.zeros((0, 4))), tensor(np.zeros((0, 4)))).shape) == (0,)


def random_pairs(count, seed):
    random = np.random.default_rng(seed)
    low = random.uniform(0, 60, (2, count, 2))
    return np.concatenate([low, low + random.uniform(2, 60, (2, count, 2))], axis=-1).astype(np.float32)


def test_giou_equals_reference():
    first, second = random_pairs(100, 1)
    value, gradient = value_and_gradient(lambda x: giou_loss(x, tensor(second)), first)
    expected = [1 - reference.giou(a, b) for a, b in zip(first, second, strict=True)]
    # atol: sides are differences of corners of up to 120 px, known to 8e-6, over sides of at least 2 px.
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-5)
    for a, b, found in zip(first, second, gradient, strict=True):
        slope = reference.central_difference(lambda x, b=b: 1 - reference.giou(x, b), a)
        np.testing.assert_allclose(found, slope, rtol=1e-6, atol=1e-5)


@few
@given(st.integers(0, 10_000))
def test_giou_is_at_most_iou_and_the_loss_at_most_2(seed):
    (first,), (second,) = random_pairs(1, seed)
    loss = float(giou_loss(tensor(first), tensor(second)))
    assert 0 <= loss <= 2
    assert 1 - loss <= reference.iou(first, second) + 1e-6
