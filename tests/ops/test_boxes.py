import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from retina.ops import boxes as box_ops
from tests import reference
from tests.gradient import value_and_gradient

few = settings(max_examples=30, deadline=None, derandomize=True)

POINT = [5.0, 5.0, 5.0, 5.0]
REVERSED = [8.0, 8.0, 2.0, 2.0]
UNIT = [0.0, 0.0, 1.0, 1.0]


def tensor(values):
    return ops.convert_to_tensor(np.asarray(values, np.float32))


def array(values):
    return ops.convert_to_numpy(values)


def random_boxes(count, seed=0, limit=512):
    """Boxes of 1 to 1/4 `limit` pixels a side, and some whole-pixel ones that touch."""
    random = np.random.default_rng(seed)
    low = random.uniform(0, limit * 0.75, (count, 2))
    boxes = np.concatenate([low, low + random.uniform(1, limit / 4, (count, 2))], axis=1)
    boxes[::3] = np.round(boxes[::3])
    return boxes.astype(np.float32)


@st.composite
def box(draw, limit=1024):
    side = st.floats(1, limit / 2, width=32)
    corner = st.floats(0, limit / 2, width=32)
    x, y = draw(corner), draw(corner)
    return np.array([x, y, x + draw(side), y + draw(side)], np.float32)


@pytest.mark.parametrize(
    ("values", "expected"),
    [(POINT, 0), ([0, 0, 0, 9], 0), (REVERSED, 0), ([3, 8, 9, 2], 0), (UNIT, 1), ([-2, -3, 4, 5], 48)],
)
def test_area(values, expected):
    assert array(box_ops.area(tensor([values])))[0] == expected


def test_area_of_no_boxes():
    assert array(box_ops.area(tensor(np.zeros((0, 4))))).shape == (0,)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (POINT, POINT, 0.0),  # both empty
        (POINT, [0, 0, 10, 10], 0.0),  # an empty box inside another
        (REVERSED, REVERSED, 0.0),
        (REVERSED, [0, 0, 10, 10], 0.0),
        (UNIT, [1, 0, 2, 1], 0.0),  # touching edges
        (UNIT, [7, 7, 8, 8], 0.0),
        (UNIT, UNIT, 1.0),
        ([0, 0, 2, 2], [1, 1, 3, 3], 1 / 7),
        ([0, 0, 4, 4], [1, 1, 3, 3], 0.25),
        ([0, 0, 10, 10], [0, 0, 10, 5], 0.5),  # the matching threshold, exact
    ],
)
def test_iou_of_one_pair(first, second, expected):
    value = array(box_ops.iou(tensor(first), tensor(second)))
    assert value == np.float32(expected)
    assert array(box_ops.iou(tensor(second), tensor(first))) == value


def test_iou_matrix_equals_reference():
    first, second = random_boxes(23, 1), random_boxes(17, 2)
    value = array(box_ops.iou(tensor(first)[:, None], tensor(second)[None]))
    # atol: corners near 500 px are spaced 3e-5 px, so an overlap is known to 6e-5 px a side; boxes have 1 px² and more.
    np.testing.assert_allclose(value, reference.iou_matrix(first, second), rtol=1e-6, atol=1e-5)


def test_iou_with_no_boxes():
    assert array(box_ops.iou(tensor(random_boxes(3))[:, None], tensor(np.zeros((0, 4)))[None])).shape == (3, 0)


def test_encode_by_hand():
    # Centre from (5, 10) to (8, 5): 3/10 and -5/20; sides 10 → 20 and 20 → 10.
    value = array(box_ops.encode(tensor([0, 0, 10, 20]), tensor([-2, 0, 18, 10])))
    np.testing.assert_allclose(value, [0.3, -0.25, math.log(2), -math.log(2)], rtol=1e-6)
    weighted = array(box_ops.encode(tensor([0, 0, 10, 20]), tensor([-2, 0, 18, 10]), (10, 10, 5, 2)))
    np.testing.assert_allclose(weighted, [3, -2.5, 5 * math.log(2), -2 * math.log(2)], rtol=1e-6)


@pytest.mark.parametrize("empty", [POINT, REVERSED, [0, 0, 0, 0]])
def test_encode_of_an_empty_box_is_finite(empty):
    value, gradient = value_and_gradient(
        lambda boxes: box_ops.encode(tensor([0, 0, 10, 10]), boxes), np.asarray(empty, np.float32)
    )
    np.testing.assert_allclose(value[2:], math.log(1e-7), rtol=1e-6)
    assert np.isfinite(value).all() and np.isfinite(gradient).all()


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_encode_equals_reference(weights):
    anchors, boxes = random_boxes(64, 3), random_boxes(64, 4)
    expected = [reference.encode(a, b, weights) for a, b in zip(anchors, boxes, strict=True)]
    # atol: a centre is a difference of corners of up to 500 px (spaced 3e-5) over a side of at least 1 px.
    value = array(box_ops.encode(tensor(anchors), tensor(boxes), weights))
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-4 * max(weights))


def test_decode_of_zero_deltas_is_the_anchor():
    anchors = np.round(random_boxes(9))
    np.testing.assert_array_equal(array(box_ops.decode(tensor(anchors), tensor(np.zeros((9, 4))))), anchors)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_decode_equals_reference(weights):
    anchors = random_boxes(64, 5)
    deltas = (np.random.default_rng(6).normal(size=(64, 4)) * weights).astype(np.float32)
    expected = [reference.decode(a, d, weights) for a, d in zip(anchors, deltas, strict=True)]
    # atol: a corner is a centre of up to 1000 px minus half a side, each rounded to 6e-5 px.
    value = array(box_ops.decode(tensor(anchors), tensor(deltas), weights))
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=3e-4)


def test_decode_cuts_size_deltas():
    anchor = tensor([0, 0, 16, 16])
    value = array(box_ops.decode(anchor, tensor([[0, 0, 200, 1e30], [0, 0, 5, 5], [0, 0, -200, -200]])))
    np.testing.assert_allclose(value[0], [-492, -492, 508, 508], rtol=1e-5)  # 16 · 62.5 = 1000 a side
    np.testing.assert_array_equal(value[1], value[0])  # e^5 > 62.5
    np.testing.assert_array_equal(value[2], [8, 8, 8, 8])
    value = array(box_ops.decode(anchor, tensor([0, 0, 9, 9]), max_size_ratio=2.0))
    np.testing.assert_allclose(value, [-8, -8, 24, 24], rtol=1e-6)


def test_decode_gradient_equals_reference():
    anchors = random_boxes(8, 7)
    deltas = np.random.default_rng(8).normal(size=(8, 4)).astype(np.float32)
    factors = np.random.default_rng(9).normal(size=(8, 4)).astype(np.float32)
    _, gradient = value_and_gradient(lambda d: box_ops.decode(tensor(anchors), d) * tensor(factors), deltas)

    def total(d):
        return sum((reference.decode(a, row) * f).sum() for a, row, f in zip(anchors, d, factors, strict=True))

    # atol: sums and differences of terms of up to 128 px · e^3.
    np.testing.assert_allclose(gradient, reference.central_difference(total, deltas), rtol=1e-6, atol=1e-4)


def test_decode_gradient_is_zero_above_the_cut():
    _, gradient = value_and_gradient(
        lambda d: box_ops.decode(tensor(UNIT), d)[..., 2:], np.array([0, 0, 100.0, 100.0], np.float32)
    )
    np.testing.assert_array_equal(gradient, [1, 1, 0, 0])


@few
@given(box(), box())
def test_decode_inverts_encode(anchor, target):
    if ((target[2:] - target[:2]) / (anchor[2:] - anchor[:2])).max() > 62:
        return  # cut on purpose
    back = array(box_ops.decode(tensor(anchor), box_ops.encode(tensor(anchor), tensor(target))))
    # Coordinates of up to 1024 px in float32 are spaced 6e-5; sides up to 62 times the anchor's carry a log's error.
    np.testing.assert_allclose(back, target, atol=2e-3)


@few
@given(box(), box())
def test_iou_is_symmetric_and_at_most_1(first, second):
    forth, back = box_ops.iou(tensor(first), tensor(second)), box_ops.iou(tensor(second), tensor(first))
    assert array(forth) == array(back)
    assert 0 <= array(forth) <= 1


def test_clip():
    boxes = tensor([[[-5, -5, 300, 300], [250, 10, 260, 20]], [[1, 2, 3, 4], [10, 20, 30, 40]]])
    size = tensor([[100, 200], [15, 25]])  # height, width
    expected = [[[0, 0, 200, 100], [200, 10, 200, 20]], [[1, 2, 3, 4], [10, 15, 25, 15]]]
    np.testing.assert_array_equal(array(box_ops.clip(boxes, size[:, None])), expected)
    np.testing.assert_array_equal(array(box_ops.clip(boxes, ops.cast(size, "int32")[:, None])), expected)
