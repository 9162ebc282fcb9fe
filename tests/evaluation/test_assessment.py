"""Everything that is said about a result agrees with the modules it comes from, and is plain JSON."""

import io
import json
import re

import numpy as np
import pytest
from rich.console import Console

from retina import config
from retina.evaluation import document
from retina.evaluation.assessment import assess
from retina.evaluation.coco import evaluate
from retina.evaluation.tables import advice, class_table, errors_table, metrics_table
from tests.evaluation.made import drawn, found, truth

BOX, FAR = (0, 0, 10, 10), (50, 50, 10, 10)
SETTINGS = config.Evaluation()


def text(table) -> str:
    console = Console(file=io.StringIO(), width=140)
    console.print(table)
    return console.file.getvalue()


def strict(tree):
    """As a strict reader gets it."""
    return json.loads(json.dumps(tree, allow_nan=False))


@pytest.mark.parametrize("rows", [[], [(0, 0, BOX, 0.5)]], ids=["nothing found", "found where nothing is"])
def test_without_ground_truth_nothing_is_defined(rows):
    result = assess(truth([]), found(rows), SETTINGS, replicates=5)
    tree = strict(document.to_json(result.metrics, result))
    assert tree["metrics"]["AP"] == -1.0
    assert tree["intervals"]["metrics"] == {} and tree["intervals"]["per_class"] == {"a": {}}
    assert set(tree["errors"]["delta_ap"].values()) == {None}
    assert tree["operating_points"]["overall"] == dict.fromkeys(("threshold", "precision", "recall", "f1"))
    assert tree["confusion"]["matrix"] == [[0, 0], [len(rows), 0]]
    assert tree["calibration"]["expected_error"] == (0.5 if rows else None)
    for table in (metrics_table(result.metrics, result.intervals), class_table(result.metrics, result)):
        assert "–" in text(table) and "nan" not in text(table)
    assert "–" in text(errors_table(result))


def test_by_hand():
    """Two boxes, the first found with 0.9, one detection beside everything with 0.8: AP 51/101 at every overlap."""
    result = assess(
        truth([(0, 0, BOX), (0, 0, FAR)]), found([(0, 0, BOX, 0.9), (0, 0, (80, 0, 10, 10), 0.8)]), SETTINGS,
        replicates=10,
    )  # fmt: skip
    tree = strict(document.to_json(result.metrics, result))
    assert tree["metrics"]["AP"] == tree["per_iou"]["0.95"] == pytest.approx(51 / 101, abs=1e-12)
    # Of one image every resample is the image itself, which tells nothing.
    assert tree["intervals"]["metrics"] == {} and tree["intervals"]["per_class"] == {"a": {}}
    assert tree["errors"]["counts"] == {"Cls": 0, "Loc": 0, "Both": 0, "Dupe": 0, "Bkg": 1, "Miss": 1}
    assert tree["errors"]["delta_ap"]["Miss"] == pytest.approx(50 / 101, abs=1e-12)
    assert tree["operating_points"]["overall"] == {
        "threshold": 0.9, "precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3),
    }  # fmt: skip
    assert tree["confusion"] == {
        "score_threshold": 0.9, "iou": 0.5, "names": ["a", "background"], "matrix": [[1, 1], [0, 0]],
    }  # fmt: skip
    # Right with 0.9, wrong with 0.8: off by 0.1 and 0.8.
    assert tree["calibration"]["expected_error"] == pytest.approx(0.45)
    assert [b["count"] for b in tree["calibration"]["bins"]] == [0] * 8 + [1, 1]
    assert tree["calibration"]["bins"][0]["precision"] is None
    said = " ".join(advice(result))
    assert "Best F1 over all classes: 0.667 (precision 1.000, recall 0.500) with detections of score 0.900" in said
    assert "off by 0.450" in said and "10 resamples" in said


def test_scores_that_are_no_probabilities_have_no_calibration():
    result = assess(truth([(0, 0, BOX)]), found([(0, 0, BOX, 7.5)]), SETTINGS, replicates=0)
    tree = strict(document.to_json(result.metrics, result))
    assert (tree["calibration"], tree["intervals"]) == (None, None)
    assert any("scores are not within 0 and 1" in line for line in advice(result))


def test_agrees_with_the_plain_evaluation_and_the_limit():
    """At most one detection of a class in an image: in all parts, not only in COCO's figures."""
    there, seen = drawn(3)
    one = config.Evaluation(max_detections=(1, 2, 3))
    result = assess(there, seen, one, replicates=20)
    assert result.metrics == evaluate(there, seen, max_detections=(1, 2, 3))
    most = np.bincount(result.matches.image * 100 + result.matches.labels).max()
    assert most <= 3
    low, high = result.intervals.metrics["AP50"]
    assert 0 <= low <= high <= 1
    assert result.errors.base_ap == pytest.approx(result.metrics.metrics["AP50"], abs=1e-12)


def test_the_document_says_all_its_keys():
    """The table in the docstring is what a reader has: it names each key that is written, and no other."""
    result = assess(*drawn(1), SETTINGS, replicates=3)
    tree = strict(document.to_json(result.metrics, result))
    named = {
        key
        for line in document.__doc__.splitlines()
        if line.startswith("| `")
        for key in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert named == set(tree)


def test_tables_name_every_error_and_interval():
    result = assess(*drawn(2), SETTINGS, replicates=30)
    shown = text(errors_table(result))
    assert all(f" {kind} " in shown for kind in ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"))
    low, high = result.intervals.metrics["AP"]
    assert f"{low:.3f}–{high:.3f}" in text(metrics_table(result.metrics, result.intervals))
    ends = result.intervals.per_class["a"]["AP"]
    assert f"{ends[0]:.3f}–{ends[1]:.3f}" in text(class_table(result.metrics, result))


def test_intervals_need_boxes_in_two_images():
    """Class a has boxes in two images, b in one, c none: mean and a have an interval."""
    there = truth([(0, 0, BOX), (1, 0, BOX), (1, 1, FAR)], images=2, classes=3)
    seen = found([(0, 0, BOX, 0.9), (1, 1, FAR, 0.8)])
    result = assess(there, seen, SETTINGS, replicates=200)
    assert set(result.intervals.metrics) == {"AP", "AP50", "AP75"}
    assert {name: set(figures) for name, figures in result.intervals.per_class.items()} == {
        "a": {"AP", "AP50", "AP75"}, "b": set(), "c": set(),
    }  # fmt: skip
    low, high = result.intervals.per_class["a"]["AP50"]
    assert (low, high) == (0.0, 1.0)  # both images, the found one twice, or the missed one twice


def test_sizes_are_told_in_words():
    ranges = config.Evaluation(area_ranges={"s": (0.0, 100.0), "m": (144.0, 500.0)})
    result = assess(truth([(0, 0, BOX)]), found([]), ranges, replicates=0)
    assert "objects up to 10² px" in text(metrics_table(result.metrics))
    assert document.conventions(result.metrics)["sizes"] == "s: up to 10² px; m: 12² to 500 square px"
    assert document.area_in_words(9216, 1e10) == "above 96² px"
