"""Both engines and our own matching against pycocotools, called as its own demo calls it, on random and real cases."""

import contextlib
import io
import json
from pathlib import Path
from random import Random

import numpy as np
import pytest

from retina.data.ground_truth import GroundTruth, Results
from retina.errors import RetinaError
from retina.evaluation.coco import evaluate
from retina.evaluation.matching import average_precision, match, precision

NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
AREAS = {"all": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}


def reference(tree: dict, found: list[dict], limits=(1, 10, 100)):
    """pycocotools' precision and recall on a COCO tree whose annotations are numbered from 1."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = tree
        truth.createIndex()
        detections = COCO()  # loadRes([]) raises
        if found:
            detections = truth.loadRes(found)
        else:
            detections.dataset = {"images": tree["images"], "categories": tree["categories"], "annotations": []}
            detections.createIndex()
        evaluation = COCOeval(truth, detections, "bbox")
        evaluation.params.maxDets = list(limits)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def mean(values: np.ndarray) -> float:
    defined = values[values > -1]
    return np.mean(defined) if defined.size else -1


def twelve(tables, limits=(1, 10, 100)) -> dict[str, float]:
    p, r = tables
    figures = [mean(p[..., 0, -1]), mean(p[0, ..., 0, -1]), mean(p[5, ..., 0, -1])]
    figures += [mean(p[..., area, -1]) for area in (1, 2, 3)]
    figures += [mean(r[..., 0, place]) for place in range(len(limits))]
    figures += [mean(r[..., area, -1]) for area in (1, 2, 3)]
    names = [*NAMES[:6], *(f"AR{limit}" for limit in limits), *NAMES[9:]]
    return dict(zip(names, figures, strict=True))


def as_tables(tree: dict, found: list[dict]) -> tuple[GroundTruth, Results]:
    """The same case as our tables; categories in the order of their ids, as pycocotools takes them."""
    categories = sorted(tree["categories"], key=lambda category: category["id"])
    label = {category["id"]: k for k, category in enumerate(categories)}
    row = {image["id"]: i for i, image in enumerate(tree["images"])}
    annotations = tree["annotations"]
    truth = GroundTruth(
        "truth",
        tuple(category["name"] for category in categories),
        tuple(label),
        tuple(row),
        np.array([row[a["image_id"]] for a in annotations], int),
        np.array([a["bbox"] for a in annotations], float),
        np.array([label[a["category_id"]] for a in annotations], int),
        np.array([a["iscrowd"] for a in annotations], bool),
        np.zeros(len(annotations), bool),
        np.array([a["area"] for a in annotations], float),
    )
    results = Results(
        "found",
        np.array([row[d["image_id"]] for d in found], int),
        np.array([d["bbox"] for d in found], float),
        np.array([d["score"] for d in found], float),
        np.array([label[d["category_id"]] for d in found], int),
    )
    return truth, results


def check(tree: dict, found: list[dict], limits=(1, 10, 100)) -> None:
    """Every figure of both engines, and the whole tables of precision of our matching."""
    expected = reference(tree, found, limits)
    figures = twelve(expected, limits)
    truth, results = as_tables(tree, found)
    for engine in ("hotcoco", "pycocotools"):
        ours = evaluate(truth, results, engine=engine, max_detections=limits)
        for name, value in figures.items():
            assert abs(ours.metrics[name] - value) <= 1e-12, (engine, name)
        for k, per_class in enumerate(ours.per_class.values()):
            of_class = (expected[0][:, :, k : k + 1], expected[1][:, k : k + 1])
            for name, value in twelve(of_class, limits).items():
                assert abs(per_class[name] - value) <= 1e-12, (engine, name, k)
    for place, bounds in enumerate(AREAS.values()):
        table = precision(match(truth, results, area_range=bounds, max_detections=limits[-1]))
        np.testing.assert_allclose(table, expected[0][..., place, -1], rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------------------------ random cases

# Few values, so that boxes coincide, overlaps hit thresholds exactly and scores tie; thirds, so that floats round.
SIDES = (0, 1, 2, 5, 10, 10 / 3, 20, 32, 96, 100.25)
CORNERS = (-3.5, 0, 1, 5, 10 / 3, 7)
SCORES = (0.0, 0.1, 0.5, 0.5000000001, 0.9, 1.0, -1.0)


def random_case(random: Random) -> tuple[dict, list[dict]]:
    """A COCO tree of up to 4 images, 3 classes and 10 boxes, and up to 14 detections."""
    images = random.sample((0, 1, 2, 7, 2**40), random.randint(1, 4))
    categories = random.sample((0, 1, 3, 90), random.randint(1, 3))

    def place() -> dict:
        box = [random.choice(values) for values in (CORNERS, CORNERS, SIDES, SIDES)]
        return {"image_id": random.choice(images), "category_id": random.choice(categories), "bbox": box}

    annotations = []
    for number in range(1, 1 + random.randint(0, 10)):
        where = place()
        is_crowd, is_ignored, is_small = (random.random() < 0.5 for _ in range(3))
        # An area of its own, as a mask has; and COCO's unused key, which pycocotools overwrites.
        area = where["bbox"][2] * where["bbox"][3] * (0.5 if is_small else 1)
        annotations.append({**where, "id": number, "area": area, "iscrowd": int(is_crowd), "ignore": int(is_ignored)})
    # Two detections of three are a copy of a box, or else few would match.
    pool = [{key: a[key] for key in ("image_id", "category_id", "bbox")} for a in annotations]
    places = [
        random.choice(pool) if pool and random.random() < 2 / 3 else place() for _ in range(random.randint(0, 14))
    ]
    found = [{**where, "score": random.choice(SCORES)} for where in places]
    tree = {
        "images": [{"id": i} for i in images],
        "categories": [{"id": k, "name": str(k)} for k in categories],
        "annotations": annotations,
    }
    return tree, found


@pytest.mark.parametrize("limits", [(1, 10, 100), (1, 2, 3)])
@pytest.mark.parametrize("hundred", range(10))
def test_equal_to_pycocotools_on_random_cases(hundred, limits):
    """Hypothesis took longer to draw such cases than the engines to score them."""
    for number in range(100):
        check(*random_case(Random(f"{hundred} {number} {limits}")), limits)


@pytest.mark.parametrize("seed", range(40))
def test_equal_to_pycocotools_on_crowded_images(seed):
    """The random cases have few boxes; here each image holds dozens, and the limits on detections cut."""
    random = np.random.default_rng(seed)
    n, m = 150, 60
    boxes = np.concatenate([random.uniform(0, 60, (m, 2)), random.uniform(1, 110, (m, 2))], 1).round(seed % 4)
    image, label = random.integers(0, 4, m), random.integers(1, 4, m)
    annotations = [
        {
            "id": number + 1,
            "image_id": int(image[number]),
            "category_id": int(label[number]),
            "bbox": boxes[number].tolist(),
            "area": float(boxes[number, 2] * boxes[number, 3]),
            "iscrowd": int(random.random() < 0.1),
        }
        for number in range(m)
    ]
    pick = random.integers(0, m, n)
    near = boxes[pick] + random.normal(0, 3, (n, 4)).round(seed % 3)
    near[:, 2:] = near[:, 2:].clip(0)
    found = [
        {
            "image_id": int(image[p]),
            "category_id": int(label[p]),
            "bbox": near[row].tolist(),
            "score": float(random.random().__round__(1 + seed % 5)),
        }
        for row, p in enumerate(pick)
    ]
    tree = {
        "images": [{"id": i} for i in range(4)],
        "categories": [{"id": k, "name": str(k)} for k in (1, 2, 3)],
        "annotations": annotations,
    }
    for limits in ((1, 5, 20), (7,), (1, 3, 5, 20)):
        check(tree, found, limits)


def test_equal_to_pycocotools_on_photographs(shared_data: Path):
    folder = shared_data / "eval_cases" / "coco_val2014_fakebbox100"
    tree, found = (json.loads((folder / f"{part}.json").read_text()) for part in ("gt", "dt"))
    check({**tree, "annotations": [{**a, "id": n} for n, a in enumerate(tree["annotations"], start=1)]}, found)


# --------------------------------------------------------------------------------------------------------- settings


def one_box(**changes):
    columns = {
        "image": [0],
        "boxes": [[0, 0, 10, 10]],
        "labels": [0],
        "crowd": [False],
        "difficult": [False],
        "areas": [100],
        **changes,
    }
    return GroundTruth("t", ("cat",), (1,), (1,), **columns)


HIT = Results("f", [0], [[0, 0, 10, 10]], [0.5], [0])


@pytest.mark.parametrize("engine", ["hotcoco", "pycocotools"])
def test_area_ranges_can_be_chosen(engine):
    """The box of 100 px² is tiny, at the end of its range included, and not huge."""
    ours = evaluate(one_box(), HIT, area_ranges={"tiny": (0, 100), "huge": (101, 1e5)}, engine=engine)
    assert ours.metrics["APtiny"] == pytest.approx(1.0, abs=1e-12)
    assert ours.metrics["APhuge"] == -1.0
    assert ours.metrics["ARtiny"] == 1.0
    assert "APs" not in ours.metrics


@pytest.mark.parametrize("bounds", [(5, 5), (7, 2), (-1, 3)])
def test_empty_area_range_is_refused(bounds):
    with pytest.raises(RetinaError, match="area_ranges: odd: expected 0 <= smallest < largest"):
        evaluate(one_box(), HIT, area_ranges={"odd": bounds})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": [1]}, "row 0: image: expected 0 to 0, got 1"),
        ({"labels": [-1]}, "row 0: labels: expected 0 to 0, got -1"),
        ({"labels": [0.5]}, "labels: expected whole numbers, got float64"),
        ({"areas": [1, 2]}, r"areas: expected shape \(1,\), got \(2,\)"),
    ],
)
def test_columns_that_do_not_fit_are_refused(changes, said):
    with pytest.raises(RetinaError, match=said):
        one_box(**changes)


def test_detections_that_do_not_fit_are_refused():
    for columns, said in (
        (([1], [[0, 0, 1, 1]], [0.5], [0]), "f: row 0: image: expected 0 to 0, got 1"),
        (([0], [[0, 0, 1, 1]], [0.5], [3]), "f: row 0: labels: expected 0 to 0, got 3"),
        (([0], [[0, 0, np.nan, 1]], [0.5], [0]), "f: detection 0: boxes: expected finite numbers"),
        (([0], [[0, 0, 1, 1]], [np.inf], [0]), "f: detection 0: scores: expected finite numbers"),
    ):
        with pytest.raises(RetinaError, match=said):
            evaluate(one_box(), Results("f", *columns))


def test_matches_say_who_found_what():
    """Two cats side by side in image 8, listed after image 9: three detections, the middle one a duplicate."""
    truth = GroundTruth(
        "t", ("dog", "cat"), (1, 2), (9, 8), [1, 1], [[0, 0, 10, 10], [20, 0, 10, 10]], [1, 1], [0, 0], [0, 0], [9, 9]
    )
    found = Results(
        "f",
        [1, 1, 1, 0],
        [[20, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10], [0, 0, 5, 5]],
        [0.2, 0.7, 0.6, 0.7],
        [1, 1, 1, 1],
    )
    matches = match(truth, found, iou_thresholds=[0.5, 0.95])
    assert matches.rows.tolist() == [1, 3, 2, 0]  # image 8 comes before image 9 at the equal score 0.7
    assert matches.offsets.tolist() == [0, 0, 4]
    # At 0.95 the first detection (overlap 0.9) leaves the box to the third.
    assert matches.truth.tolist() == [[0, -1, -1, 1], [-1, -1, 0, 1]]
    assert matches.right.tolist() == [[True, False, False, True], [False, False, True, True]]
    assert matches.positives.tolist() == [0, 2]
    assert average_precision(precision(matches)[:, :, 0]) == -1.0
