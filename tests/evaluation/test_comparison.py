"""Paired comparison: differences, shares and sentences by hand, and what must agree before anything is compared."""

import json
from dataclasses import replace

import numpy as np
import pytest

from retina.data.ground_truth import GroundTruth, Results
from retina.errors import RetinaError
from retina.evaluation.bootstrap import NAMES, bootstrap, observed
from retina.evaluation.comparison import (
    Comparison,
    Difference,
    check_same_truth,
    class_comparison_table,
    compare,
    comparison_table,
    to_json,
    verdict,
)
from retina.evaluation.matching import match

BOX, FAR = [0, 0, 10, 10], [50, 50, 10, 10]


def ground_truth(rows, images, classes=1, name="by hand"):
    """Rows are (image, xywh, label)."""
    boxes = np.array([row[1] for row in rows], np.float64).reshape(-1, 4)
    none = np.zeros(len(rows), bool)
    return GroundTruth(
        name,
        tuple("abcdefgh"[:classes]),
        tuple(range(1, classes + 1)),
        tuple(range(1, images + 1)),
        np.array([row[0] for row in rows], np.int64),
        boxes,
        np.array([row[2] for row in rows], np.int64),
        none,
        none,
        boxes[:, 2] * boxes[:, 3],
    )


def results(rows):
    """Rows are (image, xywh, score, label)."""
    return Results(
        "by hand",
        np.array([row[0] for row in rows], np.int64),
        np.array([row[1] for row in rows], np.float64).reshape(-1, 4),
        np.array([row[2] for row in rows], np.float64),
        np.array([row[3] for row in rows], np.int64),
    )


def detector(rng, truth, share):
    """Finds each box with probability `share`, and as many false alarms as images."""
    hits = [
        (int(image), box.tolist(), float(rng.random()), int(label))
        for image, box, label in zip(truth.image, truth.boxes, truth.labels, strict=True)
        if rng.random() < share
    ]
    return results([*hits, *((image, FAR, float(rng.random() * 0.8), 0) for image in range(len(truth)))])


def boxes_everywhere(images, classes=2):
    rows = [(image, [20.0 * n, 0, 10, 10], (image + n) % classes) for image in range(images) for n in range(2)]
    return ground_truth(rows, images, classes)


# ------------------------------------------------------------------------------------------------- degenerate first


@pytest.mark.parametrize("truth", [ground_truth([], 0), ground_truth([], 3), ground_truth([], 2, classes=0)])
def test_nothing_to_compare(truth):
    matches = match(truth, results([]))
    compared = compare(truth, matches, matches, replicates=3)
    assert all(np.isnan(value) for figure in compared.figures.values() for value in vars(figure).values())
    assert verdict(compared) == "Nothing can be compared: no box of the ground truth counts"
    tree = to_json(compared)
    assert tree["metrics"]["AP"] == dict.fromkeys(["a", "b", "difference", "low", "high", "superiority"])
    assert json.loads(json.dumps(tree, allow_nan=False)) == tree
    assert comparison_table(compared).row_count == 3
    assert class_comparison_table(compared).row_count == len(truth.class_names)


def test_a_detector_is_not_better_than_itself():
    truth = boxes_everywhere(12)
    found = detector(np.random.default_rng(0), truth, 0.6)
    compared = compare(truth, match(truth, found), match(truth, found), replicates=50)
    for figure in [*compared.figures.values(), *compared.per_class["a"].values()]:
        assert (figure.difference, figure.low, figure.high, figure.superiority) == (0, 0, 0, 0.5)
        assert figure.a == figure.b > 0
    assert verdict(compared) == "A and B have the same AP, in every resample of the images"


def test_all_and_nothing_by_hand():
    truth = ground_truth([(0, BOX, 0), (1, BOX, 1)], 2, classes=3)
    everything = match(truth, results([(0, BOX, 0.5, 0), (1, BOX, 0.5, 1)]))
    compared = compare(truth, match(truth, results([])), everything, replicates=20)
    for name in NAMES:
        assert vars(compared.figures[name]) == pytest.approx(
            {"a": 0, "b": 1, "difference": 1, "low": 1, "high": 1, "superiority": 1}
        )
    assert np.isnan(compared.per_class["c"]["AP"].difference)
    assert compared.boxes == {"a": 1, "b": 1, "c": 0}
    assert verdict(compared).startswith("B is better by 1.000 AP (95 % interval 1.000 to 1.000); ")
    turned = compare(truth, everything, match(truth, results([])), replicates=20)
    assert turned.figures["AP"].superiority == 0
    assert verdict(turned).startswith("A is better by 1.000 AP (95 % interval 1.000 to 1.000); ")


def test_half_the_images_each_by_hand():
    """A finds the first of two images, B the second: of four pairs of draws B is ahead in one, behind in one."""
    truth = ground_truth([(0, BOX, 0), (1, BOX, 0)], 2)
    a, b = (match(truth, results([(image, BOX, 0.5, 0)])) for image in (0, 1))
    compared = compare(truth, a, b, replicates=2000, seed=1)
    overall = compared.figures["AP"]
    assert (overall.difference, overall.low, overall.high) == pytest.approx((0, -1, 1))
    # Three standard errors of the mean of 2000 draws with variance 1/8.
    assert overall.superiority == pytest.approx(0.5, abs=3 * np.sqrt(1 / 8 / 2000))
    drawn = bootstrap(b, replicates=2000, seed=1).AP - bootstrap(a, replicates=2000, seed=1).AP
    assert overall.superiority == pytest.approx((drawn > 0).mean() + (abs(drawn) < 1e-9).mean() / 2)


# --------------------------------------------------------------------------------------------------------- pairing


def test_draws_are_paired():
    """B is A with one image less: the difference is known far better than either figure."""
    rng = np.random.default_rng(2)
    truth = boxes_everywhere(40)
    found = detector(rng, truth, 0.5)
    keep = found.image != 0
    fewer = results(
        list(zip(found.image[keep], found.boxes[keep], found.scores[keep], found.labels[keep], strict=True))
    )
    a, b = match(truth, found), match(truth, fewer)
    compared = compare(truth, a, b, replicates=300, seed=4)
    overall = compared.figures["AP"]
    alone = bootstrap(a, replicates=300, seed=4).AP
    low, high = np.quantile(alone, [0.025, 0.975])
    assert overall.high - overall.low < 0.5 * (high - low)
    assert overall.a == observed(a).AP[0] and overall.b == observed(b).AP[0]
    drawn = bootstrap(b, replicates=300, seed=4).AP - alone
    np.testing.assert_allclose([overall.low, overall.high], np.quantile(drawn, [0.025, 0.975]), rtol=0, atol=1e-15)
    of_class = (
        bootstrap(b, replicates=300, seed=4).per_class["AP50"] - bootstrap(a, replicates=300, seed=4).per_class["AP50"]
    )
    assert compared.per_class["b"]["AP50"].high == pytest.approx(np.quantile(of_class[:, 1], 0.975), abs=1e-15)


def test_the_arguments_are_kept_and_used():
    truth = boxes_everywhere(30)
    a, b = (match(truth, detector(np.random.default_rng(seed), truth, 0.6)) for seed in (5, 6))
    wide, narrow = (compare(truth, a, b, replicates=100, seed=9, level=level) for level in (0.99, 0.5))
    assert (wide.level, wide.replicates, wide.seed, wide.images, wide.method) == (0.99, 100, 9, 30, "percentile")
    assert wide.figures["AP"].low < narrow.figures["AP"].low < narrow.figures["AP"].high < wide.figures["AP"].high
    assert compare(truth, a, b, replicates=100, seed=9, level=0.5) == narrow
    shifted = compare(truth, a, b, replicates=100, seed=9, level=0.5, method="bias-corrected")
    assert shifted.figures["AP"].low != narrow.figures["AP"].low


@pytest.mark.parametrize(
    ("difference", "low", "high", "level", "sentence"),
    [
        (0.0124, 0.0031, 0.0214, 0.95, "B is better by 0.012 AP (95 % interval 0.003 to 0.021)"),
        (0.0124, 0.0002, 0.0214, 0.95, "B is better by 0.012 AP (95 % interval 0.0002 to 0.021)"),
        (-0.25, -0.5, -0.125, 0.9, "A is better by 0.250 AP (90 % interval 0.125 to 0.500)"),
        (
            0.004,
            -0.002,
            0.01,
            0.95,
            "No clear difference: B has +0.004 AP against A, and the 95 % interval, -0.002 to +0.010, includes 0",
        ),
        (
            0.5,
            0.0,
            1.0,
            0.999,
            "No clear difference: B has +0.500 AP against A, and the 99.9 % interval, +0.000 to +1.000, includes 0",
        ),
    ],
)
def test_verdict(difference, low, high, level, sentence):
    figure = Difference(0.5, 0.5 + difference, difference, low, high, 0.5)
    scope = "; it is about these two detectors on images like these: trained with another seed, either may differ"
    expected = sentence + (scope if "better" in sentence else "")
    assert verdict(Comparison({"AP": figure}, {}, {}, 1, 1, 0, level, "percentile")) == expected


# ------------------------------------------------------------------------------------------------ what must agree


def test_the_same_ground_truth_passes():
    check_same_truth(boxes_everywhere(3), replace(boxes_everywhere(3), name="a copy"))
    check_same_truth(ground_truth([], 0), ground_truth([], 0))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"class_names": ("a", "c")}, r"same classes .* 2 and 2 \(only in one: 'b'; only in two: 'c'\)"),
        ({"class_names": ("b", "a")}, r"same classes .*\(the same ones in another order: 'a', 'b' and 'b', 'a'\)"),
        ({"image_ids": (1, 2, "3")}, r"same images .* 3 and 3 \(only in one: 3; only in two: '3'\)"),
        ({"image_ids": (2, 1, 3)}, "in another order"),
        ({"labels": np.array([0, 1, 1, 0, 1, 1])}, r"box 4 \(image 3\) has labels 0 and 1"),
        (
            {"boxes": np.arange(24.0).reshape(6, 4)},
            r"box 0 \(image 1\) has boxes \[0.0, 0.0, 10.0, 10.0\] and \[0.0, 1",
        ),
        ({"crowd": np.arange(6) == 5}, r"box 5 \(image 3\) has crowd False and True"),
        ({"areas": np.ones(6)}, r"box 0 \(image 1\) has areas 100.0 and 1.0"),
    ],
)
def test_what_differs_is_named(other, message):
    one = replace(boxes_everywhere(3), name="one")
    with pytest.raises(RetinaError, match=f"^one and two: expected the .*{message}.*evaluate both on one"):
        check_same_truth(one, replace(one, name="two", **other))


def test_more_images_or_boxes_are_named():
    few, many = ground_truth([(1, BOX, 0)], 2), ground_truth([(0, BOX, 0), (1, BOX, 0)], 2)
    with pytest.raises(RetinaError, match=r"^by hand: .* got 1 and 2 \(image 1 has 0 and 1\)"):
        check_same_truth(few, many)
    with pytest.raises(RetinaError, match=r"images .* got 2 and 9 \(only in by hand: 3, 4, 5 and 4 more\)"):
        check_same_truth(few, ground_truth([], 9))


def test_matches_of_other_ground_truth_are_refused():
    truth, other = boxes_everywhere(3), boxes_everywhere(4)
    ours, theirs = (match(table, results([])) for table in (truth, other))
    with pytest.raises(
        RetinaError, match=r"compare: B: expected matches with by hand \(3 images, 6 boxes, 2 classes\)"
    ):
        compare(truth, ours, theirs)
    with pytest.raises(RetinaError, match="the same overlaps and area range"):
        compare(truth, ours, match(truth, results([]), iou_thresholds=[0.5]))
    with pytest.raises(RetinaError, match="6 boxes that count for A and .* 0 for B"):
        compare(truth, ours, match(truth, results([]), area_range=(0, 5)))


def test_one_image_tells_nothing():
    truth = ground_truth([(0, BOX, 0)], 1)
    a, b = match(truth, results([])), match(truth, results([(0, BOX, 0.9, 0)]))
    compared = compare(truth, a, b, replicates=100)
    assert compared.figures["AP"].difference == pytest.approx(1.0, abs=1e-12)
    assert np.isnan(compared.figures["AP"].low) and np.isnan(compared.figures["AP"].superiority)
    assert "No conclusion is possible" in verdict(compared) and "one image" in verdict(compared)
    assert to_json(compared)["metrics"]["AP"]["low"] is None
