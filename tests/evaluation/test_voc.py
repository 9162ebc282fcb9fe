"""VOC's average precision: by hand, against a plain loop over the development kit's rules, and on real detections."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retina.data.ground_truth import Results, ground_truth
from retina.errors import RetinaError
from retina.evaluation.voc import evaluate_voc
from tests.data.formats.tables import read_voc
from tests.evaluation.made import crowded, drawn, found, iou, truth

BOX = (0, 0, 10, 10)
FAR = (50, 50, 10, 10)
NOWHERE = (80, 80, 10, 10)


def ap(there, detected, protocol="voc10", **options):
    """AP of class a at the only threshold."""
    (figures,) = evaluate_voc(there, detected, protocol=protocol, **options).figures.values()
    return figures["per_class"]["a"]["AP"]


# ------------------------------------------------------------------------------------------------------- degenerate


@pytest.mark.parametrize("protocol", ["voc07", "voc10"])
def test_nothing_at_all(protocol):
    metrics = evaluate_voc(truth([], images=0), found([]), protocol=protocol)
    assert metrics.figures == {"0.5": {"mAP": -1.0, "per_class": {"a": {"AP": -1.0, "boxes": 0}}}}


@pytest.mark.parametrize("protocol", ["voc07", "voc10"])
def test_no_detections_is_zero_and_no_boxes_is_undefined(protocol):
    there = truth([(0, 0, BOX)], classes=2)
    assert evaluate_voc(there, found([]), protocol=protocol).figures["0.5"] == {
        "mAP": 0.0,
        "per_class": {"a": {"AP": 0.0, "boxes": 1}, "b": {"AP": -1.0, "boxes": 0}},
    }
    # A detection of a class without boxes changes neither its -1 nor the mean over the others.
    detected = found([(0, 0, BOX, 0.5), (0, 1, FAR, 0.9)])
    assert evaluate_voc(there, detected, protocol=protocol).figures["0.5"] == {
        "mAP": 1.0,
        "per_class": {"a": {"AP": 1.0, "boxes": 1}, "b": {"AP": -1.0, "boxes": 0}},
    }


def test_only_difficult_boxes_are_none():
    there, detected = truth([(0, 0, BOX, "difficult")]), found([(0, 0, BOX, 0.9)])
    assert ap(there, detected) == -1.0
    assert ap(there, detected, difficult="use") == 1.0


def test_boxes_without_area_overlap_nothing():
    there = truth([(0, 0, (5, 5, 0, 0)), (0, 0, (20, 20, -4, 8))])
    assert ap(there, found([(0, 0, (5, 5, 0, 0), 0.9), (0, 0, (20, 20, -4, 8), 0.8)])) == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "voc12"}, "protocol: expected voc07 or voc10, got 'voc12'"),
        ({"protocol": "voc10", "difficult": "drop"}, "difficult: expected ignore or use, got 'drop'"),
        ({"protocol": "voc10", "iou": ()}, "iou: expected one or more"),
        ({"protocol": "voc10", "iou": (0.0,)}, "above 0 and up to 1, got [0.0]"),
        ({"protocol": "voc10", "iou": (0.5, float("nan"))}, "above 0 and up to 1"),
        ({"protocol": "voc10", "iou": (0.5, 0.50)}, "different thresholds"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(RetinaError) as error:
        evaluate_voc(truth([]), found([]), **options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_detections_of_another_table():
    with pytest.raises(RetinaError, match="row 0: image: expected 0 to 0, got 1"):
        evaluate_voc(truth([(0, 0, BOX)]), found([(1, 0, BOX, 0.9)]), protocol="voc10")


# ---------------------------------------------------------------------------------------------------------- by hand


def test_both_areas_by_hand():
    # Right, wrong, right of 4 boxes: precision 1, 1/2, 2/3 at recall 1/4, 1/4, 2/4.
    there = truth([(0, 0, BOX), (0, 0, FAR), (1, 0, BOX), (1, 0, FAR)], images=2)
    detected = found([(0, 0, BOX, 0.9), (0, 0, NOWHERE, 0.8), (1, 0, FAR, 0.7)])
    assert ap(there, detected, "voc10") == pytest.approx(1 / 4 + 2 / 3 / 4, abs=1e-15)
    # Recalls 0, 0.1, 0.2 have precision 1; 0.3, 0.4, 0.5 have 2/3; the other five have none.
    assert ap(there, detected, "voc07") == pytest.approx((3 + 3 * 2 / 3) / 11, abs=1e-15)


def test_a_recall_of_three_tenths_misses_its_point_by_rounding():
    there = truth([(image, 0, BOX) for image in range(10)], images=10)
    detected = found([(image, 0, BOX, 0.9) for image in range(3)])
    assert ap(there, detected, "voc07") == pytest.approx(3 / 11, abs=1e-15)
    assert ap(there, detected, "voc10") == pytest.approx(3 / 10, abs=1e-15)


def test_each_detection_looks_at_one_box_only():
    # The second overlaps the found box most (9/11) and would hit the free one (8/12), where COCO's rule would take it.
    there = truth([(0, 0, BOX), (0, 0, (3, 0, 10, 10))])
    detected = found([(0, 0, BOX, 0.9), (0, 0, (1, 0, 10, 10), 0.8)])
    assert ap(there, detected) == 0.5
    assert ap(there, found([(0, 0, BOX, 0.9), (0, 0, (3, 0, 10, 10), 0.8)])) == 1.0


def test_a_duplicate_is_wrong():
    there = truth([(0, 0, BOX), (0, 0, FAR)])
    detected = found([(0, 0, BOX, 0.9), (0, 0, BOX, 0.8), (0, 0, FAR, 0.7)])
    assert ap(there, detected) == pytest.approx(1 / 2 + 2 / 3 / 2, abs=1e-15)


@pytest.mark.parametrize(("flag", "used"), [("difficult", 1.0), ("crowd", 0.5)])
def test_a_flagged_box_is_neither(flag, used):
    # Both detections of the flagged box leave no trace; the hit behind them keeps precision 1.
    there = truth([(0, 0, FAR, flag), (0, 0, BOX)])
    twice = found([(0, 0, FAR, 0.9), (0, 0, FAR, 0.8), (0, 0, BOX, 0.7)])
    assert ap(there, twice) == 1.0
    once = found([(0, 0, FAR, 0.9), (0, 0, BOX, 0.8), (0, 0, NOWHERE, 0.7)])
    assert ap(there, once) == 1.0
    # Used, a difficult box is one more box to find; a crowd never is.
    half = found([(0, 0, FAR, 0.9)])
    assert ap(there, half) == 0.0
    assert ap(there, half, difficult="use") == (0.5 if flag == "difficult" else 0.0)
    assert ap(there, twice, difficult="use") == (pytest.approx(0.5 + 0.5 * 2 / 3) if flag == "difficult" else 1.0)


def test_a_crowd_has_the_plain_overlap():
    # A tenth of the crowd, wholly inside: COCO would forgive it, VOC doesn't know crowds.
    there = truth([(0, 0, (0, 0, 100, 10), "crowd"), (0, 0, FAR)])
    assert ap(there, found([(0, 0, BOX, 0.9), (0, 0, FAR, 0.8)])) == 0.5


def test_the_threshold_itself_hits():
    there = truth([(0, 0, (0, 0, 10, 10))])
    detected = found([(0, 0, (0, 0, 10, 5), 0.9)])
    figures = evaluate_voc(there, detected, protocol="voc10", iou=(0.5, 0.51)).figures
    assert [(key, value["mAP"]) for key, value in figures.items()] == [("0.5", 1.0), ("0.51", 0.0)]


def test_equal_scores_keep_the_order_given():
    there = truth([(0, 0, BOX)], images=2)
    assert ap(there, found([(0, 0, BOX, 0.5), (1, 0, BOX, 0.5)])) == 1.0
    assert ap(there, found([(1, 0, BOX, 0.5), (0, 0, BOX, 0.5)])) == 0.5


def test_more_than_a_hundred_detections_count():
    there = truth([(0, 0, BOX)])
    detected = found([(0, 0, NOWHERE, 0.9)] * 150 + [(0, 0, BOX, 0.1)])
    assert ap(there, detected) == pytest.approx(1 / 151, abs=1e-15)


def test_conventions_are_named():
    for protocol, word in (("voc07", "11 recalls"), ("voc10", "area under")):
        metrics = evaluate_voc(truth([]), found([]), protocol=protocol, difficult="use")
        assert metrics.protocol == protocol
        assert word in metrics.conventions["average_precision"]
        assert metrics.conventions["difficult"] == "difficult boxes count like any other"
        assert "neither" in evaluate_voc(truth([]), found([]), protocol=protocol).conventions["difficult"]


# ---------------------------------------------------------------------------------- a plain loop over the kit's rules


def loop(there, detected, label, threshold, protocol, difficult):
    """VOCevaldet and VOCap for one class, as written down: one detection after the other."""
    neither = there.crowd | (there.difficult if difficult == "ignore" else np.zeros(len(there.crowd), bool))
    positives = int(((there.labels == label) & ~neither).sum())
    if not positives:
        return -1.0
    is_found, hits, misses, curve = set(), 0, 0, []
    rows = [row for row in range(len(detected)) if detected.labels[row] == label]
    for row in sorted(rows, key=lambda row: -detected.scores[row]):
        most, which = -1.0, None
        for box in range(len(there.boxes)):
            if there.labels[box] == label and there.image[box] == detected.image[row]:
                overlap = iou(detected.boxes[row].tolist(), there.boxes[box].tolist())
                if overlap > most:
                    most, which = overlap, box
        if most >= threshold:
            if neither[which]:
                continue
            if which in is_found:
                misses += 1
            else:
                hits += 1
                is_found.add(which)
        else:
            misses += 1
        curve.append((hits / positives, hits / (hits + misses)))
    if protocol == "voc07":
        return sum(max([p for r, p in curve if r >= t], default=0.0) for t in np.arange(0.0, 1.1, 0.1)) / 11
    area, last = 0.0, 0.0
    for place, (recall, _) in enumerate(curve):
        area += (recall - last) * max(p for _, p in curve[place:])
        last = recall
    return area


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    protocol=st.sampled_from(["voc07", "voc10"]),
    difficult=st.sampled_from(["ignore", "use"]),
    threshold=st.sampled_from([0.1, 0.5, 0.75, 1.0]),
)
def test_equal_to_the_loop(seed, protocol, difficult, threshold):
    there, detected = drawn(seed)
    metrics = evaluate_voc(there, detected, protocol=protocol, difficult=difficult, iou=(threshold,))
    (figures,) = metrics.figures.values()
    for label, name in enumerate(there.class_names):
        expected = loop(there, detected, label, threshold, protocol, difficult)
        assert figures["per_class"][name]["AP"] == pytest.approx(expected, abs=1e-12)
    defined = [entry["AP"] for entry in figures["per_class"].values() if entry["AP"] >= 0]
    assert figures["mAP"] == pytest.approx(np.mean(defined) if defined else -1.0, abs=1e-12)


def test_several_thresholds_are_those_of_each():
    there, detected = crowded(0, images=60, per_image=30, classes=5)
    together = evaluate_voc(there, detected, protocol="voc10", iou=(0.3, 0.5, 0.9)).figures
    assert together["0.3"]["mAP"] > together["0.5"]["mAP"] > together["0.9"]["mAP"] > 0
    for threshold in (0.3, 0.5, 0.9):
        alone = evaluate_voc(there, detected, protocol="voc10", iou=(threshold,)).figures
        assert alone[f"{threshold:g}"] == together[f"{threshold:g}"]


# -------------------------------------------------------------------------------------------------------- real data


def from_corner_files(folder, dataset):
    """`class score x1 y1 x2 y2` in inclusive pixels, one file an image."""
    names = (folder / "voc.names").read_text().split()
    rows = []
    for file in sorted((folder / "dets_yolo" / "abs_xyx2y2").glob("*.txt")):
        for line in file.read_text().splitlines():
            label, score, x1, y1, x2, y2 = (float(word) for word in line.split())
            label = dataset.class_names.index(names[int(label)])
            box = (x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1)
            rows.append((dataset.image_ids.index(file.stem), label, box, score))
    return found(rows)


def from_coco_file(folder, dataset):
    """The same detections, `bbox` being x1, y1, x2 - x1, y2 - y1 of inclusive pixels."""
    tree = json.loads((folder / "dets_yolo" / "coco_format" / "coco_dets.json").read_text())
    image = {entry["id"]: dataset.image_ids.index(entry["file_name"].split(".")[0]) for entry in tree["images"]}
    label = {entry["id"]: dataset.class_names.index(entry["name"]) for entry in tree["categories"]}
    rows = []
    for entry in tree["annotations"]:
        x, y, width, height = entry["bbox"]
        box = (x - 1, y - 1, width + 1, height + 1)
        rows.append((image[entry["image_id"]], label[entry["category_id"]], box, entry["score"]))
    return found(rows)


@pytest.mark.parametrize("read", [from_corner_files, from_coco_file])
def test_a_real_model_on_voc(shared_data, read):
    folder = shared_data / "voc100"
    dataset = read_voc(folder, ("all",))
    detected = read(folder, dataset)
    assert len(detected) == 452
    expected = json.loads((folder / "expected_computed.json").read_text())["computed_devkit"]
    assert len(expected) == 4
    for key, figures in expected.items():
        metrics = evaluate_voc(
            ground_truth(dataset),
            detected,
            protocol="voc07" if "11pt" in key else "voc10",
            difficult="ignore" if "ignored" in key else "use",
        ).figures["0.5"]
        assert metrics["mAP"] == pytest.approx(figures["mAP"], abs=1e-9), key
        per_class = {name: entry["AP"] for name, entry in metrics["per_class"].items()}
        assert per_class == pytest.approx(figures["per_class"], abs=1e-9), key
        boxes = sum(entry["boxes"] for entry in metrics["per_class"].values())
        assert boxes == (235 if "ignored" in key else 273)


def test_the_published_sample(shared_data):
    folder = shared_data / "eval_cases" / "rafael_voc_sample2"
    boxes, detections = [], []
    for image in range(7):
        name = f"0000{image + 1}.txt"
        for line in (folder / "gts" / name).read_text().splitlines():
            x, y, width, height = (float(word) for word in line.split()[1:])
            boxes.append((image, 0, (x, y, width + 1, height + 1)))
        for line in (folder / "dets" / name).read_text().splitlines():
            score, x, y, width, height = (float(word) for word in line.split()[1:])
            detections.append((image, 0, (x, y, width + 1, height + 1), score))
    assert (len(boxes), len(detections)) == (15, 24)
    expected = json.loads((folder / "expected.json").read_text())["expected"]
    for protocol, key in (("voc07", "11pt"), ("voc10", "every_point")):
        metrics = evaluate_voc(truth(boxes, images=7), found(detections), protocol=protocol, iou=(0.1, 0.3, 0.5, 0.75))
        # Published with ten digits.
        assert {iou: figures["mAP"] for iou, figures in metrics.figures.items()} == pytest.approx(
            expected[key], abs=1e-9
        )


def test_results_are_not_touched():
    there, detected = drawn(3)
    before = [column.copy() for column in (detected.boxes, detected.scores, detected.labels, there.boxes)]
    evaluate_voc(there, detected, protocol="voc07")
    after = (detected.boxes, detected.scores, detected.labels, there.boxes)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert isinstance(detected, Results)
