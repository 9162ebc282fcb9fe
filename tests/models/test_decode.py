import numpy as np
import pytest
from keras import ops

from retina import config
from retina.models.decode import decode
from retina.ops.anchors import level_anchors
from tests import reference

ANCHORS = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]], np.float32)


def logit(probability):
    return float(np.log(probability / (1 - probability)))


def detections(logits, deltas=None, levels=(ANCHORS,), size=None, scale=None, **inference):
    """The detections of each image, as (boxes, scores, labels); the padding behind them must be zero."""
    logits = np.asarray(logits, np.float32)
    count = len(logits)
    deltas = np.zeros((*logits.shape[:2], 4), np.float32) if deltas is None else deltas
    found = decode(
        {"logits": ops.convert_to_tensor(logits), "deltas": ops.convert_to_tensor(deltas)},
        list(levels),
        ops.convert_to_tensor(np.asarray([[100, 100]] * count if size is None else size, np.int32)),
        ops.convert_to_tensor(np.asarray([[1, 1]] * count if scale is None else scale, np.float32)),
        inference=config.Inference(**inference),
    )
    found = {name: ops.convert_to_numpy(field) for name, field in found.items()}
    kept = config.Inference(**inference).max_detections
    assert {name: (field.shape, str(field.dtype)) for name, field in found.items()} == {
        "boxes": ((count, kept, 4), "float32"), "scores": ((count, kept), "float32"),
        "labels": ((count, kept), "int32"), "valid": ((count, kept), "bool"),
    }  # fmt: skip
    out = []
    for boxes, scores, labels, valid in zip(*found.values(), strict=True):
        number = valid.sum()
        assert valid[:number].all() and not boxes[number:].any() and not scores[number:].any()
        assert not labels[number:].any()
        out.append((boxes[:number], scores[:number], labels[:number]))
    return out


def test_nothing_above_the_threshold():
    ((boxes, scores, labels),) = detections(np.full((1, 3, 2), logit(0.04)))
    assert len(boxes) == len(scores) == len(labels) == 0


def test_the_threshold_itself_is_not_above():
    ((_, scores, _),) = detections([[[0.0], [1e-3], [-1e-3]]], score_threshold=0.5)
    np.testing.assert_allclose(scores, [reference.sigmoid(1e-3)], rtol=1e-6)


@pytest.mark.parametrize(("threshold", "count"), [(0.0, 3), (1.0, 0)])
def test_extreme_thresholds(threshold, count):
    ((boxes, _, _),) = detections([[[-20.0], [0.0], [20.0]]], score_threshold=threshold)
    assert len(boxes) == count


@pytest.mark.parametrize("further", [{}, {"suppression": "gaussian"}, {"clip": "after"}, {"clip": "none"}])
@pytest.mark.parametrize("delta", [[np.nan, 0, 0, 0], [0, 0, 0, np.nan], [np.inf, 0, 0, 0], [0, -np.inf, 0, 0]])
def test_a_box_that_is_not_finite_is_no_detection(delta, further):
    """And keeps nothing from being one."""
    deltas = np.zeros((1, 3, 4), np.float32)
    deltas[0, 0] = delta
    ((boxes, scores, _),) = detections([[[3.0], [2.0], [1.0]]], deltas, **further)
    np.testing.assert_array_equal(boxes, ANCHORS[1:])
    np.testing.assert_allclose(scores, reference.sigmoid(np.array([2.0, 1.0])), rtol=1e-6)


def test_by_hand():
    logits = np.full((1, 3, 3), -9.0)
    logits[0, 2, 1], logits[0, 0, 2], logits[0, 0, 0] = 2, 1, 0
    ((boxes, scores, labels),) = detections(logits)
    np.testing.assert_array_equal(boxes, ANCHORS[[2, 0, 0]])  # one anchor may be two classes
    np.testing.assert_allclose(scores, [0.880797, 0.731059, 0.5], rtol=1e-6)
    assert labels.tolist() == [1, 2, 0]


def test_extreme_outputs_are_finite():
    ((boxes, scores, _),) = detections(np.full((1, 3, 1), 200.0), deltas=np.full((1, 3, 4), 1e30, np.float32))
    assert np.isfinite(boxes).all() and (scores == 1).all() and len(boxes) > 0
    assert (boxes >= 0).all() and (boxes <= 100).all()


def test_boxes_are_cut_to_the_content_before_they_are_scaled_back():
    logits = np.full((2, 3, 1), -9.0)
    logits[:, 1] = 3.0
    found = detections(logits, size=[[8, 25], [100, 100]], scale=[[2.0, 0.5], [1, 1]])
    # Anchor (20, 0, 30, 10) cut to 25 x 8, then x / 0.5 and y / 2.
    np.testing.assert_array_equal(found[0][0], [[40, 0, 50, 4]])
    np.testing.assert_array_equal(found[1][0], [[20, 0, 30, 10]])


def test_suppression_is_per_class_and_across_levels():
    other_level = np.array([[0, 0, 10, 9], [60, 60, 70, 70]], np.float32)  # IoU 0.9 with the first anchor
    logits = np.full((1, 5, 2), -9.0)
    logits[0, 0, 0], logits[0, 3, 0], logits[0, 3, 1] = 1, 2, 0.5
    ((boxes, _, labels),) = detections(logits, levels=(ANCHORS, other_level))
    np.testing.assert_array_equal(boxes, other_level[[0, 0]])
    assert labels.tolist() == [0, 1]
    ((boxes, _, _),) = detections(logits, levels=(ANCHORS, other_level), nms_iou=0.95)
    assert len(boxes) == 3


def test_candidates_are_counted_per_level_and_before_suppression():
    levels = (ANCHORS, ANCHORS + 50)
    logits = np.tile(np.array([3.0, 2.0, 1.0])[:, None], (2, 1))[None]
    ((boxes, _, _),) = detections(logits, levels=levels, candidates=2)
    np.testing.assert_array_equal(boxes, [ANCHORS[0], ANCHORS[0] + 50, ANCHORS[1], ANCHORS[1] + 50])
    # The two candidates of one anchor take the places of other anchors.
    logits = np.array([[[3.0, 2.5], [2.0, 0], [1.0, 0]]])
    ((boxes, _, labels),) = detections(logits, candidates=2)
    np.testing.assert_array_equal(boxes, ANCHORS[[0, 0]])
    assert labels.tolist() == [0, 1]


def test_ties_go_to_the_first_anchor_and_class():
    ((boxes, _, labels),) = detections(np.ones((1, 3, 2)), candidates=3, max_detections=2)
    np.testing.assert_array_equal(boxes, ANCHORS[[0, 0]])
    assert labels.tolist() == [0, 1]
    ((boxes, _, labels),) = detections(np.ones((1, 3, 2)), candidates=3)
    np.testing.assert_array_equal(boxes, ANCHORS[[0, 0, 1]])
    assert labels.tolist() == [0, 1, 0]


def test_scores_that_round_to_the_same_number_are_ordered_by_their_logits():
    ((boxes, scores, _),) = detections([[[30.0], [200.0], [50.0]]])
    assert (scores == 1).all()
    np.testing.assert_array_equal(boxes, ANCHORS[[1, 2, 0]])


def test_equal_logits_keep_their_order_wherever_they_stand():
    for count in (1, 5, 9, 17, 31):
        anchors = np.arange(count)[:, None] * 2 + np.array([0, 0, 1, 1])
        ((boxes, _, _),) = detections(np.full((1, count, 1), 1.2345), levels=[anchors.astype(np.float32)])
        np.testing.assert_array_equal(boxes, anchors)


@pytest.mark.parametrize("candidates", [7, 60, 1000])
@pytest.mark.parametrize("classes", [1, 5])
def test_equals_brute_force(classes, candidates):
    """Logits on a grid of 1/4, so that ties fall on the cut of the candidates too."""
    levels = level_anchors(config.Anchors(scales=(1.0,), ratios=(0.25, 1.0, 4.0)), (64, 64), (3, 4, 5))
    count = sum(map(len, levels))
    random = np.random.default_rng(classes)
    logits = np.round(random.normal(-2, 2, (2, count, classes)) * 4).astype(np.float32) / 4
    deltas = random.normal(0, 0.3, (2, count, 4)).astype(np.float32)
    size, scale = [[64, 50], [40, 64]], [[0.5, 0.5], [2.0, 1.25]]
    arguments = {"candidates": candidates, "nms_iou": 0.5, "max_detections": 40}
    found = detections(logits, deltas, levels, size, scale, **arguments)
    for i, (boxes, scores, labels) in enumerate(found):
        expected = reference.detect(logits[i], deltas[i], levels, size[i], scale[i], 0.05, **arguments)
        assert labels.tolist() == expected[2].tolist()
        np.testing.assert_allclose(scores, expected[1], rtol=1e-6)
        # atol: corners of up to 128 px after scaling are sums known to 2e-5.
        np.testing.assert_allclose(boxes, expected[0], rtol=1e-6, atol=1e-4)
        assert len(boxes) > 5


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({"candidates_per": "image"}, {}),
        ({"clip": "none"}, {"clip": False}),
        ({"suppression": "linear", "nms_iou": 0.3}, {"soft": {"iou_threshold": 0.3}}),
        ({"suppression": "gaussian", "candidates_per": "image"}, {"soft": {"sigma": 0.5}}),
    ],
)
def test_other_conventions_equal_brute_force(settings, changed):
    levels = level_anchors(config.Anchors(scales=(1.0,), ratios=(0.25, 1.0, 4.0)), (64, 64), (4, 5))
    random = np.random.default_rng(4)
    count = sum(map(len, levels))
    logits = random.normal(-2, 2, (1, count, 3)).astype(np.float32)
    deltas = random.normal(0, 0.5, (1, count, 4)).astype(np.float32)
    limits = {"candidates": 20, "nms_iou": 0.5, "max_detections": 100}
    size, scale = [[64, 50]], [[0.5, 2.0]]
    ((boxes, scores, labels),) = detections(logits, deltas, levels, size, scale, **{**limits, **settings})
    joined = [np.concatenate(levels)] if "candidates_per" in settings else levels
    expected = reference.detect(logits[0], deltas[0], joined, size[0], scale[0], 0.05, **limits, **changed)
    assert labels.tolist() == expected[2].tolist() and len(boxes) > 10
    np.testing.assert_allclose(scores, expected[1], rtol=1e-5)
    np.testing.assert_allclose(boxes, expected[0], rtol=1e-6, atol=1e-4)
    ((default, _, _),) = detections(logits, deltas, levels, size, scale, **limits)
    assert default.shape != boxes.shape or np.abs(default - boxes).max() > 1


def test_boxes_may_be_cut_after_suppression():
    """Two boxes that are the same inside the image: whole, their IoU is 30 / 70."""
    levels = [np.array([[0, 0, 30, 10], [0, 0, 70, 10]], np.float32)]
    logits, size = [[[2.0], [1.0]]], [[10, 20]]
    shown = {
        clip: detections(logits, levels=levels, size=size, clip=clip)[0][0] for clip in ("before", "after", "none")
    }
    np.testing.assert_array_equal(shown["before"], [[0, 0, 20, 10]])
    np.testing.assert_array_equal(shown["after"], [[0, 0, 20, 10]] * 2)
    np.testing.assert_array_equal(shown["none"], levels[0])


def test_soft_suppression_is_not_in_the_graph_where_it_is_off():
    import tensorflow as tf

    def decoded(logits, deltas, inference):
        outputs = {"logits": logits, "deltas": deltas}
        return decode(outputs, [ANCHORS], np.array([[9, 9]]), np.ones((1, 2), np.float32), inference=inference)

    shapes = (tf.TensorSpec([1, 3, 2]), tf.TensorSpec([1, 3, 4]))
    graph = tf.function(decoded).get_concrete_function(*shapes, config.Inference()).graph
    types = {node.type for node in graph.get_operations()}
    assert "While" in {name.removeprefix("Stateless") for name in types} and "Softplus" not in types


@pytest.mark.parametrize("order", [[1, 2, 0], [2, 1, 0]])
def test_batch_order_never_matters(order):
    logits = np.random.default_rng(5).normal(0, 2, (3, 3, 2))
    straight, turned = detections(logits), detections(logits[order])
    for i, j in enumerate(order):
        for a, b in zip(turned[i], straight[j], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)  # a vectorised sigmoid's last bit depends on the place


@pytest.mark.parametrize("seed", range(4))
def test_class_agnostic_suppression_is_torchvisions_on_all_boxes_together(seed):
    """Every anchor has several classes above the threshold, so that only one of a place's classes survives."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("tests.parity.torchvision_models")  # brings NMS where torchvision lacks its extension
    import torchvision

    random = np.random.default_rng(seed)
    corner = random.integers(0, 60, (40, 2))
    anchors = np.concatenate([corner, corner + random.integers(5, 40, (40, 2))], axis=1).astype(np.float32)
    logits = random.normal(0, 2, (1, 40, 3)).astype(np.float32)
    options = {"nms_iou": 0.4, "candidates": 200, "max_detections": 200}
    ((boxes, scores, labels),) = detections(logits, levels=(anchors,), class_agnostic=True, **options)

    rows, classes = np.nonzero(reference.sigmoid(logits[0]) > 0.05)
    values = logits[0, rows, classes]
    every = torchvision.ops.nms(torch.tensor(anchors[rows]), torch.tensor(values), 0.4).numpy()
    np.testing.assert_array_equal(boxes, anchors[rows[every]])
    np.testing.assert_array_equal(labels, classes[every])
    np.testing.assert_allclose(scores, reference.sigmoid(values[every]), rtol=1e-6)
    ((per_class, _, _),) = detections(logits, levels=(anchors,), **options)
    assert 0 < len(boxes) < len(per_class)
