"""Bootstrap: a weighting equals real copies of the images (pycocotools on them), and intervals are what they say."""

import contextlib
import io

import numpy as np
import pytest

from retina.data.ground_truth import GroundTruth, Results
from retina.errors import RetinaError
from retina.evaluation.bootstrap import (
    NAMES,
    bootstrap,
    concatenate,
    image_weights,
    interval,
    observed,
    weighted_ap,
)
from retina.evaluation.matching import RECALLS, average_precision, match, precision
from tests.scripts import load_script


def tables(images, boxes=(), detections=(), classes=2):
    """Boxes are (image, xywh, label[, "crowd" or "difficult"]), detections (image, xywh, score, label)."""
    flags = [row[3] if len(row) > 3 else "" for row in boxes]
    xywh = np.array([row[1] for row in boxes], np.float64).reshape(-1, 4)
    truth = GroundTruth(
        "by hand",
        tuple("abcdefgh"[:classes]),
        tuple(range(1, classes + 1)),
        tuple(range(1, images + 1)),
        np.array([row[0] for row in boxes], np.int64),
        xywh,
        np.array([row[2] for row in boxes], np.int64),
        np.array([flag == "crowd" for flag in flags], bool),
        np.array([flag == "difficult" for flag in flags], bool),
        xywh[:, 2] * xywh[:, 3],
    )
    found = Results(
        "by hand",
        np.array([row[0] for row in detections], np.int64),
        np.array([row[1] for row in detections], np.float64).reshape(-1, 4),
        np.array([row[2] for row in detections], np.float64),
        np.array([row[3] for row in detections], np.int64),
    )
    return truth, found


def random_tables(rng, images=4, classes=3):
    """Boxes on a coarse grid and scores of one digit: overlaps at the thresholds, ties within and between images."""

    def draw(n):
        return [
            [*(rng.integers(0, 3, 2) * 5.0).tolist(), *(rng.integers(1, 5, 2) * 5.0).tolist()] for _ in range(int(n))
        ]

    kinds = ["", "", "", "", "crowd", "difficult"]
    boxes = [
        (image, box, int(rng.integers(classes)), kinds[rng.integers(len(kinds))])
        for image in range(images)
        for box in draw(rng.integers(0, 5))
    ]
    detections = [
        (image, box, int(rng.integers(1, 4)) / 10, int(rng.integers(classes)))
        for image in range(images)
        for box in draw(rng.integers(0, 8))
    ]
    return tables(images, boxes, detections, classes)


def pycocotools_on_copies(truth, found, copies):
    """AP, AP50, AP75, and of each class, of a data set that holds image i copies[i] times, the copies side by side."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images, annotations, entries = [], [], []
    for image, count in enumerate(copies):
        for _ in range(int(count)):
            number = len(images) + 1
            images.append({"id": number})
            for row in np.flatnonzero(truth.image == image):
                # An area below every range makes pycocotools ignore the box, with the plain overlap.
                area = -1.0 if truth.difficult[row] else float(truth.areas[row])
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": int(truth.labels[row]) + 1,
                        "bbox": truth.boxes[row].tolist(),
                        "area": area,
                        "iscrowd": int(truth.crowd[row]),
                    }
                )
            for row in np.flatnonzero(found.image == image):
                box = found.boxes[row].tolist()
                entries.append(
                    {
                        "id": len(entries) + 1,
                        "image_id": number,
                        "category_id": int(found.labels[row]) + 1,
                        "bbox": box,
                        "area": box[2] * box[3],
                        "score": float(found.scores[row]),
                    }
                )
    categories = [{"id": k + 1} for k in range(len(truth.class_names))]
    trees = [{"images": images, "categories": categories, "annotations": rows} for rows in (annotations, entries)]
    files = []
    with contextlib.redirect_stdout(io.StringIO()):
        for tree in trees:
            file = COCO()
            file.dataset = tree
            file.createIndex()
            files.append(file)
        evaluation = COCOeval(*files, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0, -1]
    parts = {"AP": precision, "AP50": precision[[0]], "AP75": precision[[5]]}

    def mean(values):
        return values[values > -1].mean() if (values > -1).any() else np.nan

    classes = range(len(truth.class_names))
    return (
        {name: mean(part) for name, part in parts.items()},
        {name: np.array([mean(part[..., k]) for k in classes]) for name, part in parts.items()},
    )


def assert_equals_copies(truth, found, weights):
    figures = weighted_ap(match(truth, found), weights)
    for b, copies in enumerate(weights):
        means, per_class = pycocotools_on_copies(truth, found, copies)
        for name in NAMES:
            np.testing.assert_allclose(figures[name][b], means[name], rtol=0, atol=1e-12, err_msg=f"{name} {copies}")
            np.testing.assert_allclose(figures.per_class[name][b], per_class[name], rtol=0, atol=1e-12)


BOX, FAR = [0, 0, 10, 10], [50, 50, 10, 10]

# ------------------------------------------------------------------------------------------------- degenerate first


@pytest.mark.parametrize(
    ("truth_and_found", "weights"),
    [
        (tables(0), np.zeros((2, 0), int)),
        (tables(2), np.ones((2, 2), int)),
        (tables(1, detections=[(0, BOX, 0.5, 0)]), np.ones((1, 1), int)),
        (tables(1, [(0, BOX, 0, "crowd")], [(0, BOX, 0.5, 0)]), np.ones((1, 1), int)),
        (tables(2, [(0, BOX, 0)], [(0, BOX, 0.5, 0)]), np.array([[0, 2]])),
    ],
    ids=["no image", "nothing in the images", "no box", "only a crowd", "the image with the box not drawn"],
)
def test_without_counted_boxes_nothing_is_defined(truth_and_found, weights):
    figures = weighted_ap(match(*truth_and_found), weights)
    assert len(figures) == len(weights)
    for name in NAMES:
        assert np.isnan(figures[name]).all() and np.isnan(figures.per_class[name]).all()
        assert figures.per_class[name].shape == (len(weights), 2)


def test_no_class_at_all():
    figures = bootstrap(match(*tables(2, classes=0)), replicates=3)
    assert figures.per_class["AP"].shape == (3, 0) and np.isnan(figures.AP).all()


def test_no_detection_is_zero():
    figures = bootstrap(match(*tables(1, [(0, BOX, 1)])), replicates=3)
    assert figures.AP.tolist() == [0, 0, 0]
    np.testing.assert_array_equal(figures.per_class["AP"], [[np.nan, 0]] * 3)


def test_by_hand():
    """Two images with one box each; the first is found, after a false alarm in the second."""
    truth, found = tables(2, [(0, BOX, 0), (1, BOX, 0)], [(1, FAR, 0.9, 0), (0, BOX, 0.5, 0)], classes=1)
    figures = weighted_ap(match(truth, found), np.array([[1, 1], [2, 0], [0, 2], [3, 1]]))
    # Precision 1/2 up to recall 1/2 (51 of 101 recalls); 1 without the second image; 3/4 up to 3/4 (76 recalls).
    np.testing.assert_allclose(figures.AP, [51 / 101 / 2, 1, 0, 76 / 101 * 3 / 4], rtol=0, atol=1e-15)


def test_a_class_without_boxes_is_left_out_of_the_mean():
    """Class 0 lies in image 0 and is found; class 1 lies in image 1 and is not."""
    truth, found = tables(2, [(0, BOX, 0), (1, BOX, 1)], [(0, BOX, 0.5, 0)])
    figures = weighted_ap(match(truth, found), np.array([[1, 1], [2, 0], [0, 2]]))
    assert figures.AP.tolist() == pytest.approx([0.5, 1, 0], abs=1e-15)
    np.testing.assert_allclose(figures.per_class["AP"], [[1, 0], [1, np.nan], [np.nan, 0]], rtol=1e-15)


def test_equal_scores_within_an_image_repeat_as_a_block():
    """Right and wrong of one score: a copy adds right, wrong, not right, right, wrong, wrong."""
    truth, found = tables(1, [(0, BOX, 0)], [(0, BOX, 0.5, 0), (0, FAR, 0.5, 0)], classes=1)
    figures = weighted_ap(match(truth, found), np.array([[1], [2]]))
    np.testing.assert_allclose(figures.AP, [1, (51 + 50 * 2 / 3) / 101], rtol=0, atol=1e-15)


# ------------------------------------------------------------------------------------------------ equal to copying


@pytest.mark.parametrize("seed", range(40))
def test_weights_equal_copies_of_the_images(seed):
    rng = np.random.default_rng(seed)
    truth, found = random_tables(rng)
    assert_equals_copies(truth, found, np.vstack([np.ones((1, 4), int), rng.integers(0, 4, (2, 4))]))


def test_weights_equal_copies_with_many_boxes():
    """Recalls that fall on COCO's 101 points to the last bit: 100 boxes, found one after the other."""
    cells = [[20.0 * (n % 50), 20.0 * (n // 50), 10, 10] for n in range(100)]
    boxes = [(n % 5, cell, 0) for n, cell in enumerate(cells)]
    detections = [(n % 5, cell if n % 3 else FAR, 1 - n / 200, 0) for n, cell in enumerate(cells)]
    truth, found = tables(5, boxes, detections, classes=1)
    assert_equals_copies(truth, found, np.array([[1, 1, 1, 1, 1], [2, 1, 0, 1, 1], [3, 0, 1, 0, 1], [5, 0, 0, 0, 0]]))


def test_every_count_reaches_the_recalls_that_a_search_finds():
    from retina.evaluation.bootstrap import _recalls_reached

    boxes = np.arange(1, 401)
    recall = np.concatenate([np.arange(count + 1) / count for count in boxes])
    np.testing.assert_array_equal(_recalls_reached(recall), np.searchsorted(RECALLS, recall, side="right"))


def test_portions_do_not_matter(monkeypatch):
    from retina.evaluation import bootstrap as module

    matches = match(*random_tables(np.random.default_rng(0), images=20))
    whole = bootstrap(matches, replicates=17, seed=3)
    monkeypatch.setattr(module, "_CELLS", 60)
    monkeypatch.setattr(module, "_COLUMNS", 2)
    parts = bootstrap(matches, replicates=17, seed=3)
    for name in NAMES:
        np.testing.assert_array_equal(parts[name], whole[name])
        np.testing.assert_array_equal(parts.per_class[name], whole.per_class[name])
    assert np.unique(whole.AP).size > 10


def test_other_overlaps_than_cocos():
    truth, found = tables(1, [(0, BOX, 0)], [(0, [0, 0, 10, 6], 0.5, 0)], classes=1)
    figures = observed(match(truth, found, iou_thresholds=[0.5, 0.7]))
    assert figures.AP.tolist() == pytest.approx([0.5]) and figures.AP50.tolist() == pytest.approx([1])
    assert np.isnan(figures.AP75).all()


# --------------------------------------------------------------------------------------------------------- draws


def test_draws():
    weights = image_weights(50, range(200), seed=1)
    assert weights.shape == (200, 50) and (weights.sum(axis=1) == 50).all() and weights.min() == 0
    # A count is binomial (50, 1/50): mean 1, variance 0.98; five standard errors of 10,000 draws (fourth moment ~ 4).
    assert abs(weights.var() - 0.98) < 5 * np.sqrt(3 / 10_000)
    np.testing.assert_array_equal(image_weights(50, range(7, 9), seed=1), weights[7:9])
    assert (image_weights(50, range(1), seed=2) != weights[:1]).any()
    assert image_weights(0, range(3), seed=0).shape == (3, 0)


def test_more_replicates_add_to_the_first():
    matches = match(*random_tables(np.random.default_rng(0), images=9))
    few, many = bootstrap(matches, replicates=4, seed=5), bootstrap(matches, replicates=9, seed=5)
    np.testing.assert_array_equal(few.AP, many.AP[:4])
    joined = concatenate([few, many])
    assert len(joined) == 13 and joined.per_class["AP"].shape == (13, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: bootstrap(m, replicates=0), "replicates: expected at least 1, got 0"),
        (lambda m: bootstrap(m, seed=-1), "seed: expected a whole number from 0"),
        (lambda m: weighted_ap(m, np.ones((1, 3), int)), r"expected \[b, 1\].* got shape \(1, 3\)"),
        (lambda m: weighted_ap(m, np.ones(1, int)), r"got shape \(1,\)"),
        (lambda m: weighted_ap(m, np.ones((1, 1))), "whole numbers of at least 0, got float64"),
        (lambda m: weighted_ap(m, -np.ones((1, 1), int)), "with a minimum of -1"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(RetinaError, match=message):
        call(match(*tables(1, [(0, BOX, 0)])))


# ------------------------------------------------------------------------------------------------------ intervals


def test_percentile_interval_by_hand():
    values = np.arange(101.0)
    assert interval(values, 0.9).tolist() == pytest.approx([5, 95])
    np.testing.assert_allclose(interval(np.stack([values, values / 2], axis=1), 0.9), [[5, 2.5], [95, 47.5]])
    assert interval(np.append(values, [np.nan] * 50), 0.9).tolist() == pytest.approx([5, 95])
    assert np.isnan(interval(np.full(5, np.nan))).all() and np.isnan(interval(np.zeros(0))).all()
    assert interval(np.full(5, 0.25)).tolist() == [0.25, 0.25]
    assert interval(np.zeros((3, 0))).shape == (2, 0)


def test_bias_corrected_interval_by_hand():
    """Around its own median the interval is the percentiles'; an estimate lower by one standard deviation of normal
    replicates, z0 = -1, moves the ends by two."""
    from statistics import NormalDist

    normal = NormalDist()
    values = np.array([normal.inv_cdf((n + 0.5) / 20_001) for n in range(20_001)])
    ends = interval(values, method="bias-corrected", estimate=0.0)
    np.testing.assert_allclose(ends, [-1.96, 1.96], atol=2e-3)
    np.testing.assert_allclose(interval(values), [-1.96, 1.96], atol=2e-3)
    ends = interval(values, method="bias-corrected", estimate=-1.0)
    np.testing.assert_allclose(ends, [-3.96, -0.04], atol=0.15)
    both = interval(np.stack([values, values], axis=1), method="bias-corrected", estimate=np.array([0.0, -1.0]))
    np.testing.assert_array_equal(both[:, 1], ends)


def test_bias_correction_of_degenerate_replicates():
    assert interval(np.full(9, 0.5), method="bias-corrected", estimate=0.5).tolist() == [0.5, 0.5]
    low, high = interval(np.arange(9.0), method="bias-corrected", estimate=100.0)
    assert 0 <= low <= high == pytest.approx(8, abs=1e-4)
    assert np.isnan(interval(np.full(2, np.nan), method="bias-corrected", estimate=np.nan)).all()


def test_wrong_intervals():
    with pytest.raises(RetinaError, match="level: expected a number between 0 and 1, got 95"):
        interval(np.zeros(3), 95)
    with pytest.raises(RetinaError, match="needs the estimate"):
        interval(np.zeros(3), method="bias-corrected")


def script():
    return load_script("reproduce/interval_coverage")


def test_intervals_hold_the_truth():
    """A short run of the script: of 60 intervals that hold in 93 % of cases, fewer than 50 hold in 0.3 % of runs."""
    module = script()
    truth, error = module.true_figures(seed=0, blocks=4, images=10_000)
    # From the script with its defaults: 40 x 50,000 images.
    np.testing.assert_allclose(truth[:2], [0.3719, 0.5683], rtol=0, atol=4 * error[:2].max())
    coverage = module.cover(truth, repetitions=60, images=150, replicates=150, seed=0)
    for method in module.METHODS:
        assert (coverage.held[method][:, :2].sum(axis=0) >= 50).all()
        # As wide as the estimates spread, within a quarter.
        ratio = coverage.width[method][:, :2].mean(axis=0) / (2 * 1.96 * coverage.estimates[:, :2].std(axis=0))
        assert (abs(ratio - 1) < 0.25).all()
    assert (coverage.estimates.mean(axis=0)[0] > truth[0]) and module.honest(coverage, "bias-corrected")


def test_intervals_of_differences_hold_zero():
    coverage = script().cover(np.zeros(7), repetitions=60, images=100, replicates=100, seed=0, difference=True)
    assert (coverage.held["percentile"][:, :2].sum(axis=0) >= 50).all()
    mean, spread = (reduce(coverage.estimates[:, :2], axis=0) for reduce in (np.mean, np.std))
    assert (abs(mean) < 4 * spread / np.sqrt(60)).all() and (spread > 0.02).all()


def test_simulated_matches_are_those_of_the_package():
    """The script's own matches are in the order and of the kind that `match` makes."""
    matches = script().simulate(50, np.random.default_rng(0))
    assert (np.diff(matches.labels) >= 0).all() and matches.positives.sum() == len(matches.truth_image)
    for k in range(5):
        assert (np.diff(matches.scores[matches.offsets[k] : matches.offsets[k + 1]]) < 0).all()
    right, place = np.nonzero(matches.right)
    rows = matches.truth[right, place]
    assert (matches.truth_labels[rows] == matches.labels[place]).all()
    assert (matches.truth_image[rows] == matches.image[place]).all()
    for found in matches.truth:
        assert np.unique(found[found >= 0]).size == (found >= 0).sum()
    assert average_precision(precision(matches)) == pytest.approx(observed(matches).AP[0], abs=1e-12)
