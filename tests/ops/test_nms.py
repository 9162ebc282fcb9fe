import numpy as np
import pytest
from keras import ops

from retina.ops.nms import nms, soft_nms, stable_top_k
from tests import reference

NONE = -np.inf
A, B, FAR = [0, 0, 10, 10], [0, 0, 10, 8], [50, 50, 60, 60]  # IoU of A and B is 0.8


@pytest.fixture(autouse=True, params=[False, True], ids=["until-none-left", "fixed-count"])
def loop(request, monkeypatch):
    """Both loops: the second is that of a GPU."""
    monkeypatch.setattr("retina.ops.nms._host_waits", lambda values: request.param)


def kept(boxes, scores, labels=None, iou_threshold=0.5, max_detections=4):
    boxes = np.asarray(boxes, np.float32).reshape(1, -1, 4)
    labels = np.zeros(boxes.shape[1]) if labels is None else labels
    rows = nms(
        ops.convert_to_tensor(boxes),
        ops.convert_to_tensor(np.asarray([scores], np.float32)),
        ops.convert_to_tensor(np.asarray([labels], np.int32)),
        iou_threshold=iou_threshold,
        max_detections=max_detections,
    )
    rows = ops.convert_to_numpy(rows)
    assert rows.dtype == np.int32
    return rows[0].tolist()


def random_batch(count, boxes=24, classes=3, seed=0):
    """Whole-pixel boxes, so that an IoU is the same in any order of rounding; a tenth has no area, scores have ties."""
    random = np.random.default_rng(seed)
    corner = random.integers(0, 24, (count, boxes, 2))
    sides = random.integers(4, 20, (count, boxes, 2)) * (random.random((count, boxes, 1)) > 0.1)
    boxes = np.concatenate([corner, corner + sides], axis=-1).astype(np.float32)
    scores = (random.integers(-4, 8, boxes.shape[:2]) / 4).astype(np.float32)
    scores[random.random(scores.shape) < 0.1] = NONE
    return boxes, scores, random.integers(0, classes, boxes.shape[:2]).astype(np.int32)


def test_nothing_to_keep():
    assert kept([A, B], [NONE, NONE]) == [-1, -1, -1, -1]
    assert kept([A, FAR], [NONE, -3.0]) == [1, -1, -1, -1]  # logits are scores too


def test_a_box_without_area_is_kept_once_and_suppresses_nothing():
    point = [5, 5, 5, 5]
    assert kept([point, A, point], [0.9, 0.8, 0.7]) == [0, 1, 2, -1]


@pytest.mark.parametrize(("threshold", "expected"), [(0.8, [1, 0, 2, -1]), (0.79, [1, 2, -1, -1])])
def test_suppression_is_strictly_above_the_threshold(threshold, expected):
    assert kept([A, B, FAR], [0.5, 0.9, 0.3], iou_threshold=threshold) == expected


def test_classes_do_not_suppress_each_other():
    assert kept([A, A, A], [0.9, 0.8, 0.7], labels=[0, 1, 0]) == [0, 1, -1, -1]


def test_of_equal_scores_the_first_is_kept():
    assert kept([FAR, A, B, A], [0.5, 0.5, 0.5, 0.5]) == [0, 1, -1, -1]


def test_a_suppressed_box_suppresses_nothing():
    # 0 and 1, and 1 and 2, overlap by 1/2 ≥ IoU 1/3 > 0.3; 0 and 2 only touch.
    assert kept([[0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10]], [0.9, 0.8, 0.7], iou_threshold=0.3) == [0, 2, -1, -1]


def test_at_most_max_detections():
    assert kept([A, FAR, [20, 20, 30, 30]], [0.1, 0.3, 0.2], max_detections=2) == [1, 2]


def test_fewer_candidates_than_slots():
    assert kept([A], [0.1], max_detections=3) == [0, -1, -1]


def test_images_do_not_affect_each_other():
    boxes, scores, labels = random_batch(4, seed=1)
    scores[2] = NONE
    arguments = {"iou_threshold": 0.5, "max_detections": 10}

    def rows(*fields):
        return ops.convert_to_numpy(nms(*(ops.convert_to_tensor(field) for field in fields), **arguments))

    together = rows(boxes, scores, labels)
    for i in range(4):
        np.testing.assert_array_equal(rows(boxes[i : i + 1], scores[i : i + 1], labels[i : i + 1])[0], together[i])
    order = [3, 1, 0, 2]
    np.testing.assert_array_equal(rows(boxes[order], scores[order], labels[order]), together[order])


def tf_image_rows(boxes, scores, labels, iou_threshold, max_detections):
    """`tf.image.non_max_suppression` of each class, merged by score and row.

    It orders corners itself, so that boxes turned inside out are named as the one difference and left out here.
    """
    import tensorflow as tf

    rows = []
    for label in np.unique(labels):
        own = np.flatnonzero((labels == label) & (scores > NONE))
        if len(own):
            rows.extend(own[tf.image.non_max_suppression(boxes[own], scores[own], len(own), iou_threshold).numpy()])
    return sorted(rows, key=lambda row: (-scores[row], row))[:max_detections]


@pytest.mark.parametrize("iou_threshold", [0.3, 0.5])
def test_equals_tf_image(iou_threshold):
    boxes, scores, labels = random_batch(200, seed=2)
    fields = (ops.convert_to_tensor(field) for field in (boxes, scores, labels))
    rows = ops.convert_to_numpy(nms(*fields, iou_threshold=iou_threshold, max_detections=12))
    for i in range(200):
        expected = tf_image_rows(boxes[i], scores[i], labels[i], iou_threshold, 12)
        assert rows[i][rows[i] >= 0].tolist() == expected, i


def test_equals_reference():
    boxes, scores, labels = random_batch(20, seed=3)
    fields = (ops.convert_to_tensor(field) for field in (boxes, scores, labels))
    rows = ops.convert_to_numpy(nms(*fields, iou_threshold=0.4, max_detections=24))
    for i in range(20):
        assert rows[i][rows[i] >= 0].tolist() == reference.nms(boxes[i], scores[i], labels[i], 0.4, 24), i


def softly(boxes, scores, labels, *, iou_threshold=None, sigma=0.5, threshold=0.05, max_detections=12):
    """Rows and lowered scores of each image."""
    fields = (boxes, np.log(scores), labels)
    rows, lowered = soft_nms(
        *(ops.convert_to_tensor(field) for field in fields),
        iou_threshold=iou_threshold,
        sigma=sigma,
        least=float(np.log(threshold)),
        max_detections=max_detections,
    )
    rows, lowered = ops.convert_to_numpy(rows), np.exp(ops.convert_to_numpy(lowered))
    assert rows.dtype == np.int32 and (lowered[rows < 0] == 0).all()
    return [(row[row >= 0].tolist(), some[row >= 0]) for row, some in zip(rows, lowered, strict=True)]


def random_scores(count, seed):
    """`random_batch` with scores in (0, 1) without ties, which rounding could decide; some are no candidates."""
    boxes, scores, labels = random_batch(count, seed=seed)
    draw = np.random.default_rng(seed)
    return boxes, np.where(scores > NONE, draw.uniform(0.05, 1, scores.shape), 0).astype(np.float32), labels


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("options", [{"iou_threshold": 0.3}, {"sigma": 0.5}, {"sigma": 0.1}])
def test_soft_suppression_equals_the_papers_algorithm(options):
    boxes, scores, labels = random_scores(20, seed=4)
    softer = 0
    for i, (rows, lowered) in enumerate(softly(boxes, scores, labels, **options)):
        wanted = reference.soft_nms(boxes[i], scores[i], labels[i], 0.05, 12, **options)
        assert rows == wanted[0], i
        np.testing.assert_allclose(lowered, wanted[1], rtol=1e-5)
        softer += (lowered < scores[i][rows] - 0.01).sum()
    assert softer > 5


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_gaussian_suppression_is_tensorflows_at_an_iou_of_1():
    """TensorFlow's sigma counts half, exp(-IoU² / 2 sigma), and it also removes boxes above its IoU threshold; an empty
    box has an IoU of 0 with every box there, too."""
    import tensorflow as tf

    boxes, scores, _ = random_scores(20, seed=5)
    for i, (rows, lowered) in enumerate(softly(boxes, scores, np.zeros(scores.shape, np.int32), sigma=0.6)):
        wanted = tf.image.non_max_suppression_with_scores(boxes[i], scores[i], 12, 1.0, 0.05, soft_nms_sigma=0.3)
        assert rows == wanted[0].numpy().tolist(), i
        np.testing.assert_allclose(lowered, wanted[1], rtol=1e-5)


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_soft_suppression_by_hand():
    boxes = np.array([[A, B, A, FAR]], np.float32)  # IoU 0.8, 1, 0
    scores, labels = np.array([[0.9, 0.5, 0.8, 0.0]], np.float32), np.zeros((1, 4), np.int32)
    ((rows, lowered),) = softly(boxes, scores, labels, iou_threshold=0.5)
    assert rows == [0, 1]  # the equal box has a score of 0, the last is no candidate
    np.testing.assert_allclose(lowered, [0.9, 0.1], rtol=1e-6)
    ((rows, lowered),) = softly(boxes, scores, labels, threshold=0.01)
    assert rows == [0, 1, 2]
    second = 0.5 * np.exp(-1.28)
    np.testing.assert_allclose(lowered, [0.9, second, 0.8 * np.exp(-2) * np.exp(-1.28)], rtol=1e-6)


def test_stable_top_k_takes_both_zeros_for_equal():
    values, index = stable_top_k(ops.convert_to_tensor(np.array([-0.0, 0.0, -1.0, -0.0, 0.0], np.float32)), 4)
    assert ops.convert_to_numpy(index).tolist() == [0, 1, 3, 4]
    assert not np.signbit(ops.convert_to_numpy(values)).any()


def test_stable_top_k():
    values, index = stable_top_k(ops.convert_to_tensor(np.array([[1, 3, 3, -2, 3, 1.0], [0, 0, 0, 0, 0, 0.0]])), 4)
    assert ops.convert_to_numpy(index).tolist() == [[1, 2, 4, 0], [0, 1, 2, 3]]
    assert ops.convert_to_numpy(values).tolist() == [[3, 3, 3, 1], [0, 0, 0, 0]]
    assert ops.convert_to_numpy(index).dtype == np.int32
