import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from retina.losses.box import ciou_loss, diou_loss, giou_loss, huber, smooth_l1
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


@pytest.mark.parametrize("loss", [giou_loss, diou_loss, ciou_loss])
def test_no_boxes(loss):
    assert tuple(loss(tensor(np.zeros((0, 4))), tensor(np.zeros((0, 4)))).shape) == (0,)


def atan_gap(first, second):
    return 4 / math.pi**2 * (math.atan(first) - math.atan(second)) ** 2


@pytest.mark.parametrize(
    ("first", "second", "diou", "extra"),
    [
        (POINT, POINT, 0.0, 0.0),
        ([3, 3, 3, 5], [3, 3, 3, 5], 0.0, 0.0),  # a line
        # Centre (3, 3) against (5, 5), diagonal² 200. The aspect of a point is 0 by convention: v = ¼, α = ¼ / 1¼.
        (POINT, BOX, 1 + 8 / 200, 0.25 * 0.25 / 1.25),
        (UNIT, UNIT, 0.0, 0.0),
        (UNIT, [1, 0, 2, 1], 1 + 1 / 5, 0.0),
        (UNIT, [9, 9, 10, 10], 1 + 162 / 200, 0.0),
        ([0, 0, 2, 2], [1, 1, 3, 3], 1 - 1 / 7 + 1 / 9, 0.0),
        # IoU ½, centre 1 apart, diagonal² 20.
        ([0, 0, 2, 2], [0, 0, 4, 2], 0.5 + 1 / 20, atan_gap(2, 1) ** 2 / (0.5 + atan_gap(2, 1))),
        # One inside the other and upright: IoU ⅛, centre (1, 4) against (2, 2), diagonal² 4² + 8².
        ([0, 0, 2, 8], [0, 0, 4, 4], 1 - 8 / 24 + 5 / 80, atan_gap(1, 1 / 4) ** 2 / (2 / 3 + atan_gap(1, 1 / 4))),
    ],
)
def test_diou_and_ciou_by_hand(first, second, diou, extra):
    for pair in ((first, second), (second, first)):
        for loss, expected in ((diou_loss, diou), (ciou_loss, diou + extra)):
            value, gradient = value_and_gradient(
                lambda x, loss=loss, other=pair[1]: loss(x, tensor([other])), tensor([pair[0]])
            )
            np.testing.assert_allclose(value, [expected], rtol=1e-6, atol=1e-7)
            assert np.isfinite(gradient).all()


@pytest.mark.parametrize("loss", [giou_loss, diou_loss, ciou_loss])
def test_boxes_that_are_far_or_thin_or_reversed_have_finite_gradients(loss):
    boxes = tensor([[0, 0, 0, 10], [0, 0, 10, 0], [5, 5, 2, 1], [-1e4, -1e4, 1e4, 1e4], [1e4, 0, 1e4 + 1, 1e-3], POINT])
    for target in (UNIT, BOX, POINT, [0, 0, 0, 7]):
        value, gradient = value_and_gradient(lambda x, target=target: loss(x, tensor([target])), boxes)
        assert np.isfinite(value).all() and np.isfinite(gradient).all()


@pytest.mark.parametrize("side", [1e-5, 1e-12, 1e-19, 1e-20, 1e-30, 1e-38])
@pytest.mark.parametrize("loss", [giou_loss, diou_loss, ciou_loss])
def test_tiny_boxes_have_finite_gradients(loss, side):
    """The squares of such sides are 0 in float32."""
    for target in ([0, 0, side, side], [0, 0, 2 * side, side], [3 * side, 0, 4 * side, side], UNIT, [0, 0, 0, 0]):
        value, gradient = value_and_gradient(
            lambda x, target=target: loss(x, tensor([target])), tensor([[0, 0, side, side]])
        )
        assert np.isfinite(value).all() and np.isfinite(gradient).all()


def test_ciou_takes_a_tiny_box_for_a_point():
    tiny = tensor([[0, 0, 1e-8, 4e-8]])
    # No overlap to speak of, centres √½ apart, diagonal² 2, and the aspect of a point: v = ¼, α = ¼ / 1¼.
    np.testing.assert_allclose(ciou_loss(tiny, tensor([UNIT])), [1 + 0.5 / 2 + 0.05], rtol=1e-6)
    np.testing.assert_allclose(  # 10⁻⁵ px have an aspect, here that of the target
        ciou_loss(tensor([[0, 0, 1e-5, 1e-5]]), tensor([UNIT])), [1 + 0.5 / 2], rtol=1e-4
    )


def test_diou_attracts_where_nothing_overlaps():
    _, gradient = value_and_gradient(lambda x: diou_loss(x, tensor([UNIT])), tensor([[9, 0, 10, 1]]))
    # ρ² = 81, c² = 101: moved to the right, ρ²/c² grows by 18/101 - 81·20/101².
    np.testing.assert_allclose(gradient[0, 0] + gradient[0, 2], 18 / 101 - 81 * 20 / 101**2, rtol=1e-5)


def random_pairs(count, seed):
    random = np.random.default_rng(seed)
    low = random.uniform(0, 60, (2, count, 2))
    return np.concatenate([low, low + random.uniform(2, 60, (2, count, 2))], axis=-1).astype(np.float32)


def reference_diou(a, b):
    """arXiv:1911.08287, eq. 7."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    centre = (a[:2] + a[2:]) / 2 - (b[:2] + b[2:]) / 2
    hull = np.maximum(a[2:], b[2:]) - np.minimum(a[:2], b[:2])
    return 1 - reference.iou(a, b) + (centre**2).sum() / (hull**2).sum()


def aspect_penalty(a, b):
    """arXiv:1911.08287, eq. 9."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return atan_gap(*((box[2] - box[0]) / (box[3] - box[1]) for box in (b, a)))


def test_diou_equals_reference():
    first, second = random_pairs(50, 2)
    value, gradient = value_and_gradient(lambda x: diou_loss(x, tensor(second)), first)
    for a, b, found, slope in zip(first, second, value, gradient, strict=True):
        np.testing.assert_allclose(found, reference_diou(a, b), rtol=1e-6, atol=1e-5)  # as GIoU's below
        expected = reference.central_difference(lambda x, b=b: reference_diou(x, b), a)
        np.testing.assert_allclose(slope, expected, rtol=1e-6, atol=1e-5)


def test_ciou_equals_reference_with_a_constant_alpha():
    first, second = random_pairs(50, 3)
    value, gradient = value_and_gradient(lambda x: ciou_loss(x, tensor(second)), first)
    differs = 0
    for a, b, found, slope in zip(first, second, value, gradient, strict=True):
        v = aspect_penalty(a, b)
        alpha = v / (1 - reference.iou(a, b) + v)
        np.testing.assert_allclose(found, reference_diou(a, b) + alpha * v, rtol=1e-6, atol=1e-5)
        expected = reference.central_difference(
            lambda x, b=b, alpha=alpha: reference_diou(x, b) + alpha * aspect_penalty(x, b), a
        )
        np.testing.assert_allclose(slope, expected, rtol=1e-6, atol=1e-5)
        differs += np.abs(slope - reference.central_difference(lambda x, b=b: reference_diou(x, b), a)).max() > 1e-3
    assert differs > 10  # the aspect's part is not lost in the tolerance


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
