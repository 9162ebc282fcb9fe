"""COCO evaluation: hand-derived cases, published cases, and pycocotools called directly."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest

from retina.data.dataset import DetectionDataset
from retina.data.detections import DetectionTable
from retina.data.formats.coco import coco_columns, to_coco
from retina.data.ground_truth import ground_truth, results
from retina.errors import RetinaError
from retina.evaluation import coco
from retina.evaluation.document import to_json
from retina.evaluation.tables import class_table, metrics_table

NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
SIZED = ["APs", "APm", "APl", "ARs", "ARm", "ARl"]
BOX = (0.0, 0.0, 10.0, 10.0)
FAR = (50.0, 50.0, 60.0, 60.0)


def evaluate(data, table, **options):
    return coco.evaluate(ground_truth(data), results(table, data), **options)


def dataset(images, classes=("cat",), image_ids=None, category_ids=None, areas=None, sizes=None):
    """`images` is a list of lists of (box, label[, "crowd" or "difficult"])."""
    rows = [row for image in images for row in image]
    boxes = np.array([row[0] for row in rows], np.float64).reshape(-1, 4)
    flags = [row[2] if len(row) > 2 else "" for row in rows]
    return DetectionDataset(
        name="made by hand",
        class_names=tuple(classes),
        category_ids=tuple(category_ids or range(1, len(classes) + 1)),
        image_ids=tuple(image_ids or range(1, len(images) + 1)),
        images=tuple(f"{row}.jpg" for row in range(len(images))),
        sizes=np.full((len(images), 2), 200, np.int32) if sizes is None else sizes,
        offsets=np.cumsum([0] + [len(image) for image in images]).astype(np.int64),
        boxes=boxes,
        labels=np.array([row[1] for row in rows], np.int32),
        crowd=np.array([flag == "crowd" for flag in flags], bool),
        difficult=np.array([flag == "difficult" for flag in flags], bool),
        areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) if areas is None else areas,
        notes=(),
    )


def found(*rows):
    """Rows are (image, box, score[, label])."""
    return DetectionTable(
        np.array([row[0] for row in rows], np.int64),
        np.array([row[1] for row in rows], np.float64).reshape(-1, 4),
        np.array([row[2] for row in rows], np.float32),
        np.array([row[3] if len(row) > 3 else 0 for row in rows], np.int32),
    )


def read_coco(tree):
    """A COCO tree as a table, its categories and images in the file's order."""
    labels = {category["id"]: k for k, category in enumerate(tree["categories"])}
    by_image = {image["id"]: [] for image in tree["images"]}
    for annotation in tree["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    flat = [annotation for annotations in by_image.values() for annotation in annotations]
    images = [
        [
            ((x, y, x + w, y + h), labels[a["category_id"]], "crowd" if a["iscrowd"] else "")
            for a in annotations
            for x, y, w, h in [a["bbox"]]
        ]
        for annotations in by_image.values()
    ]
    names = [category["name"] for category in tree["categories"]]
    areas = [annotation["area"] for annotation in flat]
    sizes = [(image["height"], image["width"]) for image in tree["images"]]
    return dataset(images, names, list(by_image), list(labels), areas, sizes)


def read_back(entries, data):
    """COCO results as a table of detections: boxes as corners."""
    rows = {identifier: row for row, identifier in enumerate(data.image_ids)}
    labels = {identifier: label for label, identifier in enumerate(data.category_ids)}
    columns = coco_columns(entries, rows, labels, "results")
    corners = np.concatenate([columns.boxes[:, :2], columns.boxes[:, :2] + columns.boxes[:, 2:]], axis=1)
    return DetectionTable(columns.image, corners, columns.scores, columns.labels)


def pycocotools_on(tree, results):
    """pycocotools on the files' own trees, as its own demo calls it."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = tree
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(NAMES, evaluation.stats, strict=True))


# ---------------------------------------------------------------------------------------- empty and degenerate


def test_no_image_defines_nothing():
    result = evaluate(dataset([]), found())
    assert result.metrics == dict.fromkeys(NAMES, -1.0)
    assert result.per_class == {"cat": {**dict.fromkeys(NAMES, -1.0), "boxes": 0}}
    assert result.per_iou == {f"{0.5 + 0.05 * t:.2f}": -1.0 for t in range(10)}
    assert (result.images, result.boxes, result.detections) == (0, 0, 0)


def test_images_without_boxes_define_nothing():
    result = evaluate(dataset([[], []]), found((0, BOX, 0.9)))
    assert result.metrics == dict.fromkeys(NAMES, -1.0)
    assert (result.images, result.boxes, result.detections) == (2, 0, 1)


def test_no_detections_score_zero_where_there_is_ground_truth():
    result = evaluate(dataset([[(BOX, 0)], []], ("cat", "dog")), found())
    for name in NAMES:
        assert result.metrics[name] == (-1.0 if name[2:] in ("m", "l") else 0.0), name
    assert result.per_class["cat"] == {**result.metrics, "boxes": 1}
    assert result.per_class["dog"]["AP"] == -1.0


@pytest.mark.parametrize("kind", ["crowd", "difficult"])
def test_ground_truth_that_does_not_count_defines_nothing(kind):
    result = evaluate(dataset([[(BOX, 0, kind)]]), found((0, BOX, 0.9)))
    assert result.metrics == dict.fromkeys(NAMES, -1.0)
    assert result.boxes == 0
    assert result.per_class["cat"]["boxes"] == 0


def test_zero_area_detection_is_a_false_positive():
    result = evaluate(dataset([[(BOX, 0)]]), found((0, (5, 5, 5, 5), 0.9), (0, BOX, 0.8)))
    assert result.metrics["AP"] == pytest.approx(0.5, abs=1e-12)


# ------------------------------------------------------------------------------------------------ hand-derived


def test_perfect_detections_score_one():
    """Sides 10, 50 and 100: one object of each size."""
    boxes = [(0, 0, 10, 10), (0, 0, 50, 50), (0, 0, 100, 100)]
    result = evaluate(dataset([[(box, 0)] for box in boxes]), found(*((n, box, 0.5) for n, box in enumerate(boxes))))
    for name in NAMES:
        assert result.metrics[name] == pytest.approx(1.0, abs=1e-12), name


def test_one_of_two_found():
    """Precision is 1 at the recalls 0, 0.01, …, 0.5 and 0 above: 51 of 101 points. Half is recalled."""
    result = evaluate(dataset([[(BOX, 0), (FAR, 0)]]), found((0, BOX, 0.9)))
    for name in ("AP", "AP50", "AP75", "APs"):
        assert result.metrics[name] == pytest.approx(51 / 101, abs=1e-12), name
    for name in ("AR1", "AR10", "AR100", "ARs"):
        assert result.metrics[name] == pytest.approx(0.5, abs=1e-12), name
    assert result.metrics["APl"] == -1.0
    assert result.boxes == 2


def test_false_positive_ahead_halves_the_precision_and_behind_costs_nothing():
    data = dataset([[(BOX, 0)]])
    assert evaluate(data, found((0, FAR, 0.9), (0, BOX, 0.8))).metrics["AP"] == pytest.approx(0.5, abs=1e-12)
    assert evaluate(data, found((0, BOX, 0.9), (0, FAR, 0.8))).metrics["AP"] == pytest.approx(1.0, abs=1e-12)


def test_duplicate_is_a_false_positive():
    """Ranked right, duplicate, right: precision 1 up to recall 1/2 (51 points), then 2/3 (50 points)."""
    rows = found((0, BOX, 0.9), (0, BOX, 0.8), (0, FAR, 0.7))
    result = evaluate(dataset([[(BOX, 0), (FAR, 0)]]), rows)
    assert result.metrics["AP"] == pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-12)
    assert result.metrics["AR1"] == pytest.approx(0.5, abs=1e-12)


def test_overlap_counts_at_the_thresholds_it_reaches():
    """IoU 0.82 passes 0.50, 0.55, …, 0.80: seven of ten thresholds."""
    result = evaluate(dataset([[(BOX, 0)]]), found((0, (0, 0, 10, 8.2), 0.9)))
    assert result.metrics["AP"] == pytest.approx(0.7, abs=1e-12)
    assert result.metrics["AP50"] == pytest.approx(1.0, abs=1e-12)
    assert result.metrics["AR100"] == pytest.approx(0.7, abs=1e-12)
    result = evaluate(dataset([[(BOX, 0)]]), found((0, (0, 0, 10, 7), 0.9)))
    assert result.metrics["AP75"] == 0.0


def test_classes_are_averaged_and_told_apart():
    """The cat is found; the dog's box is called a cat, so the dog scores 0; no bird exists, so it does not count."""
    data = dataset([[(BOX, 0), (FAR, 1)]], ("cat", "dog", "bird"))
    result = evaluate(data, found((0, BOX, 0.9, 0), (0, FAR, 0.8, 0)))
    assert result.metrics["AP"] == pytest.approx(0.5, abs=1e-12)
    assert [figures["AP"] for figures in result.per_class.values()] == [pytest.approx(1.0, abs=1e-12), 0.0, -1.0]
    assert [figures["boxes"] for figures in result.per_class.values()] == [1, 1, 0]


@pytest.mark.parametrize("kind", ["crowd", "difficult"])
def test_ignored_box_is_neither_right_nor_missed(kind):
    data = dataset([[(BOX, 0, kind), (FAR, 0)]])
    assert evaluate(data, found((0, BOX, 0.9), (0, FAR, 0.8))).metrics["AP"] == pytest.approx(1.0, abs=1e-12)
    assert evaluate(data, found((0, FAR, 0.8))).metrics["AR100"] == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(("kind", "expected"), [("crowd", 1.0), ("difficult", 0.5)])
def test_a_part_of_an_ignored_box(kind, expected):
    """A quarter of the region: it lies inside a crowd altogether, but its IoU with a difficult box is 0.25."""
    data = dataset([[(BOX, 0, kind), (FAR, 0)]])
    result = evaluate(data, found((0, (0, 0, 5, 5), 0.9), (0, FAR, 0.8)))
    assert result.metrics["AP"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("kind", "expected"), [("crowd", 1.0), ("difficult", 0.5)])
def test_second_detection_on_an_ignored_box(kind, expected):
    """A crowd absorbs any number; a difficult box excuses one, so the second is the one wrong of two."""
    data = dataset([[(BOX, 0, kind), (FAR, 0)]])
    result = evaluate(data, found((0, BOX, 0.9), (0, BOX, 0.85), (0, FAR, 0.8)))
    assert result.metrics["AP"] == pytest.approx(expected, abs=1e-12)


def test_difficult_is_ignored_in_each_size():
    data = dataset([[((0, 0, 100, 100), 0, "difficult"), (BOX, 0)]])
    result = evaluate(data, found((0, (0, 0, 100, 100), 0.9), (0, BOX, 0.8)))
    assert result.metrics["APs"] == pytest.approx(1.0, abs=1e-12)
    assert result.metrics["APl"] == -1.0


@pytest.mark.parametrize(
    ("image_ids", "category_ids"),
    [((0, 1), (0, 7)), (("b", "a"), ("x", "y")), ((2**62, -5), (90, 3)), ((3, "a"), (0, "0"))],
)
def test_ids_of_any_kind_give_the_same_figures(image_ids, category_ids):
    """Each class: one of two boxes found, and annotation 0 among the found."""
    images = [[(BOX, 0), (FAR, 1)], [(FAR, 0), (BOX, 1)]]
    data = dataset(images, ("cat", "dog"), image_ids, category_ids)
    table = found((0, BOX, 0.9, 0), (0, FAR, 0.8, 1))
    result = evaluate(data, read_back(to_coco(table, data), data))
    assert result.metrics["AP"] == pytest.approx(51 / 101, abs=1e-12)
    assert result.metrics["AR100"] == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize(
    ("image_ids", "expected"), [(("b", "a"), 0.5), ((10, 9), 0.5), (("a", "b"), 1.0), ((3, "a"), 1.0)]
)
def test_equal_scores_are_ranked_by_image_id_as_in_pycocotools(image_ids, expected):
    """The right one is in row 0, the wrong one in row 1; ids that cannot be ordered keep the dataset's order."""
    data = dataset([[(BOX, 0)], []], image_ids=image_ids)
    result = evaluate(data, found((0, BOX, 0.5), (1, BOX, 0.5)))
    assert result.metrics["AP"] == pytest.approx(expected, abs=1e-12)


def test_limits_on_detections():
    """The right one is third: seen by the limit 3 only, with precision 1/3."""
    data = dataset([[(BOX, 0)]])
    table = found((0, FAR, 0.9), (0, FAR, 0.8), (0, BOX, 0.7))
    result = evaluate(data, table, max_detections=(1, 2, 3))
    assert (result.metrics["AR1"], result.metrics["AR2"], result.metrics["AR3"]) == (0.0, 0.0, 1.0)
    assert result.metrics["AP"] == pytest.approx(1 / 3, abs=1e-12)
    for limits in ([], [10, 1, 100], [0, 1, 2], [1, 10, 1_000_001], [1, 10, 10**23], [1, 10, 10**5000]):
        with pytest.raises(RetinaError, match="expected increasing positive numbers up to 1000000, got ") as caught:
            evaluate(data, table, max_detections=limits)
        assert len(str(caught.value)) < 250
    alone = evaluate(data, table, max_detections=[2]).metrics
    assert (alone["AP"], alone["AR2"]) == (0.0, 0.0) and list(alone) == [
        "AP", "AP50", "AP75", "APs", "APm", "APl", "AR2", "ARs", "ARm", "ARl",
    ]  # fmt: skip
    assert evaluate(data, table, max_detections=(1, 2, 1_000_000)).metrics["AP"] == pytest.approx(1 / 3, abs=1e-12)


def test_an_unknown_engine():
    with pytest.raises(RetinaError, match="engine: expected one of hotcoco, pycocotools, got 'foo'"):
        evaluate(dataset([[(BOX, 0)]]), found((0, BOX, 0.9)), engine="foo")


def test_rows_that_do_not_fit_are_refused_and_nothing_is_printed(capsys):
    data = dataset([[(BOX, 0)]])
    for table, said in [
        (found((1, BOX, 0.9)), r"row 0: image: expected a row of the dataset, 0 to 0, got 1"),
        (found((0, BOX, 0.9), (0, BOX, 0.9, 1)), r"row 1: labels: .* got 1"),
        (found((0, (0, 0, np.nan, 1), 0.9)), r"row 0: boxes: expected four finite numbers"),
        (found((0, BOX, np.inf)), r"row 0: scores: expected a finite number"),
    ]:
        with pytest.raises(RetinaError, match=said):
            evaluate(data, table)
    evaluate(data, found((0, BOX, 0.9)))
    assert capsys.readouterr() == ("", "")


# ---------------------------------------------------------------------------------------------- published cases


@pytest.mark.parametrize(
    "case",
    [
        "coco_val2014_fakebbox100",
        "keras_cv_golden84",
        "torchmetrics_inputs",
        "torchmetrics_inputs2_empty_gt_image",
        "torchmetrics_inputs3_empty_pred_image",
    ],
)
def test_published_case(shared_data: Path, case: str):
    folder = shared_data / "eval_cases" / case
    tree, results, expected = (json.loads((folder / f"{part}.json").read_text()) for part in ("gt", "dt", "expected"))
    data = read_coco(tree)
    result = evaluate(data, read_back(results, data))
    # keras-cv publishes float32 figures; the same boxes were given to pycocotools too.
    published = expected["meta"].get("pycocotools", expected["expected"])
    for name in NAMES:
        assert result.metrics[name] == pytest.approx(published[name], abs=1e-9), name
        assert result.metrics[name] == pytest.approx(expected["expected"][name], abs=1e-5), name
    assert result.images == len(tree["images"])
    assert result.detections == len(results)
    assert result.boxes == sum(not annotation["iscrowd"] for annotation in tree["annotations"])


def test_equals_pycocotools_on_photographs_with_crowds(shared_data: Path):
    """Noisy copies of the ground truth, rounded scores so that many are equal, and 80 classes with gaps in the ids."""
    tree = json.loads((shared_data / "coco_mini" / "annotations" / "instances_val2017.json").read_text())
    random = np.random.default_rng(3)
    results = []
    for annotation in tree["annotations"]:
        for _ in range(random.integers(0, 3)):
            shift = random.normal(0, 0.1, 4) * np.array(annotation["bbox"])[[2, 3, 2, 3]]
            bbox = np.maximum(np.array(annotation["bbox"]) + shift, [0, 0, 1, 1])
            # A grid of 1/8 px and 1/16: exact in float64 corners and in float32 scores.
            results.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": annotation["category_id"],
                    "bbox": (np.round(bbox * 8) / 8).tolist(),
                    "score": int(random.integers(1, 16)) / 16,
                }
            )
    data = read_coco(tree)
    result = evaluate(data, read_back(results, data))
    expected = pycocotools_on(tree, results)
    assert 0.05 < expected["AP"] < 0.95
    for name in NAMES:
        assert result.metrics[name] == pytest.approx(expected[name], abs=1e-12), name


# ------------------------------------------------------------------------------------------------------- tables


def _text(table) -> str:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    return console.file.getvalue()


def test_tables_say_why_a_figure_is_missing():
    result = evaluate(dataset([[(BOX, 0), (FAR, 0)]], ("cat", "[dog]")), found((0, BOX, 0.9)))
    text = _text(metrics_table(result))
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "0.505" in lines["AP"] and "IoU 0.50 to 0.95" in lines["AP"]
    assert "no ground truth of that size" in lines["APl"] and "-1" not in text
    assert "1 images, 2 boxes, 1 detections" in text
    text = _text(class_table(result))
    classes = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert "0.505" in classes["cat"]
    assert classes["[dog]"] == ["[dog]", "0", "–", "–", "–"]
    assert "–: no ground truth" in text


def test_json_holds_plain_numbers():
    result = evaluate(dataset([[(BOX, 0)]]), found((0, BOX, 0.9)))
    tree = json.loads(json.dumps(to_json(result), allow_nan=False))
    assert list(tree) == [
        "protocol", "conventions", "engine", "metrics", "per_class", "per_iou", "images", "boxes", "detections",
        "max_detections", "area_ranges",
    ]  # fmt: skip
    assert list(tree["metrics"]) == NAMES
    assert tree["metrics"]["APl"] == -1.0
    assert tree["per_class"]["cat"]["boxes"] == 1
