"""Published and computed figures come out of the files that other people wrote."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import retina
from retina import config
from retina.api import score
from retina.data.ground_truth import ground_truth
from retina.data.load import read_ground_truth, read_split
from retina.drawing.evaluation_files import write_score
from retina.errors import RetinaError
from tests.data.formats.tables import read_voc

CASES = (
    "coco_val2014_fakebbox100",
    "keras_cv_golden84",
    "torchmetrics_inputs",
    "torchmetrics_inputs2_empty_gt_image",
    "torchmetrics_inputs3_empty_pred_image",
)
# Fractions of six digits move a box by 2.5e-4 px, which shifts COCO's strict overlaps but none at 0.5.
VOC100 = {"coco": ("coco_format/coco_dets.json", 1e-12)}
VOC100 |= {"xywh": ("abs_xywh", 1e-12), "xyxy": ("abs_xyx2y2", 1e-12), "yolo": ("rel_xywh", 1e-5)}


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_name_is_the_packages():
    assert retina.score is score


@pytest.mark.parametrize("engine", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize("case", CASES)
def test_coco_cases(shared_data, case, engine):
    folder = shared_data / "eval_cases" / case
    expected = read(folder / "expected.json")
    found = score(folder / "gt.json", folder / "dt.json", engine=engine).coco.metrics
    tolerance = 1e-5 if case == "keras_cv_golden84" else 1e-12  # keras_cv computes in float32
    assert found == pytest.approx(expected["expected"], rel=0, abs=tolerance)
    if case == "keras_cv_golden84":
        assert found == pytest.approx(expected["meta"]["pycocotools"], rel=0, abs=1e-12)


def test_rafael_sample(shared_data):
    folder = shared_data / "eval_cases/rafael_voc_sample2"
    expected = read(folder / "expected.json")["expected"]
    given = score(
        folder / "gts", folder / "dets", protocol="pascal-devkit", iou=[0.1, 0.3, 0.5, 0.75],
        gt_format="xywh", dt_format="xywh",
    ).to_json()  # fmt: skip
    for name, key in (("11pt", "11pt"), ("allpt", "every_point")):
        for iou, value in expected[key].items():
            assert given["metrics"][f"mAP_{name}@{iou}"] == pytest.approx(value, rel=0, abs=1e-9)
            assert given["per_class"]["object"][f"AP_{name}@{iou}"] == pytest.approx(value, rel=0, abs=1e-9)
    assert (given["images"], given["boxes"], given["detections"]) == (7, 15, 24)


@pytest.mark.parametrize("layout", VOC100)
@pytest.mark.parametrize("difficult", ["ignore", "use"])
def test_voc100_by_the_devkits_rules(shared_data, layout, difficult):
    folder = shared_data / "voc100"
    expected = read(folder / "expected_computed.json")["computed_devkit"]
    given = score(
        folder, folder / "dets_yolo" / VOC100[layout][0], protocol="pascal-devkit", dt_format=layout,
        difficult=difficult, names=None if layout == "coco" else folder / "voc.names",
    ).to_json()  # fmt: skip
    for name in ("11pt", "allpt"):
        figures = expected[f"difficult_{'ignored' if difficult == 'ignore' else 'as_gt'}_{name}@0.5"]
        assert given["metrics"][f"mAP_{name}@0.5"] == pytest.approx(figures["mAP"], rel=0, abs=1e-12)
        found = {k: row[f"AP_{name}@0.5"] for k, row in given["per_class"].items()}
        assert found == pytest.approx(figures["per_class"], rel=0, abs=1e-12)
    assert given["boxes"] == sum(row["boxes"] for row in given["per_class"].values())
    assert given["boxes"] == (235 if difficult == "ignore" else 273)


@pytest.mark.parametrize("layout", VOC100)
def test_voc100_by_coco(shared_data, layout):
    """The recorded figures take the XML's corners for continuous coordinates, and difficult boxes for any other."""
    folder = shared_data / "voc100"
    path, tolerance = VOC100[layout]
    settings = {"dt_format": layout, "difficult": "use"}
    found = score(folder, folder / "dets_yolo" / path, gt_pixels="continuous", **settings).coco.metrics
    expected = read(folder / "expected_computed.json")["computed_pycocotools_cocov1_gt"]
    assert found == pytest.approx(expected, rel=0, abs=tolerance)
    # By default the XML keeps its own meaning, which is another figure.
    other = score(folder, folder / "dets_yolo" / path, **settings).coco.metrics
    assert abs(other["AP"] - expected["AP"]) > 1e-3


def test_protocols_are_the_two_halves_of_the_devkit(shared_data):
    folder = shared_data / "voc100"
    paths = (folder, folder / "dets_yolo/coco_format/coco_dets.json")
    both, first, second = (score(*paths, protocol=one) for one in ("pascal-devkit", "voc07", "voc10"))
    halves = first.to_json()["metrics"] | second.to_json()["metrics"]
    assert both.to_json()["metrics"] == halves and len(halves) == 2
    assert {"average_precision_11pt", "average_precision_allpt", "overlap"} <= set(both.conventions)
    assert both.conventions["detection_pixels"].startswith("counted from 1")
    assert "average_precision" in first.conventions


def small(tmp_path, layout="xywh"):
    """One image, one box of 10 x 10 inclusive pixels, found exactly; and a second class without ground truth."""
    (tmp_path / "gts").mkdir()
    (tmp_path / "dets").mkdir()
    (tmp_path / "gts/a.txt").write_text("cat 1 1 9 9\n")
    (tmp_path / "dets/a.txt").write_text("cat 0.5 1 1 9 4\n")
    (tmp_path / "names").write_text("dog\ncat\n")
    return tmp_path / "gts", tmp_path / "dets", {"gt_format": layout, "dt_format": layout, "names": tmp_path / "names"}


def test_pixels_decide_an_overlap_at_its_threshold(tmp_path):
    truth, found, settings = small(tmp_path)
    # Inclusive: 10 x 5 of 10 x 10 is exactly a half. Continuous: 9 x 4 of 9 x 9 is less.
    assert score(truth, found, protocol="voc10", **settings).to_json()["metrics"] == {"mAP_allpt@0.5": 1.0}
    result = score(truth, found, protocol="voc10", pixels="continuous", **settings).to_json()
    assert result["metrics"] == {"mAP_allpt@0.5": 0.0}
    assert result["per_class"] == {"dog": {"AP_allpt@0.5": -1.0, "boxes": 0}, "cat": {"AP_allpt@0.5": 0.0, "boxes": 1}}
    mixed = score(truth, found, protocol="voc10", pixels="continuous", gt_pixels="inclusive", **settings)
    assert mixed.truth.boxes.tolist() == [[0, 0, 10, 10]] and mixed.detections.boxes.tolist() == [[1, 1, 9, 4]]
    assert score(truth, found, **settings).truth.boxes.tolist() == [[1, 1, 9, 9]]  # COCO's protocol: continuous


def test_tables_in_memory(shared_data):
    dataset = read_voc(shared_data / "voc100", ("all",))
    path = shared_data / "voc100/dets_yolo/coco_format/coco_dets.json"
    from_files = score(shared_data / "voc100", path, protocol="voc07")
    for table in (dataset, ground_truth(dataset), read_ground_truth(shared_data / "voc100")):
        if table is not dataset and not hasattr(table, "stems"):
            again = score(table, from_files.detections, protocol="voc07")  # without file names, images go by their ids
        else:
            again = score(table, path, protocol="voc07")
        assert again.to_json()["metrics"] == from_files.to_json()["metrics"]
        assert "ground_truth_pixels" not in again.conventions


def test_detections_on_a_configuration_are_continuous(tmp_path):
    settings = config.load(None, ["data.test={format: digits, split: test, images: 2, size: 64}"])
    (tmp_path / "c.yaml").write_text(config.to_yaml(settings))
    (tmp_path / "dt.json").write_text("[]")
    result = score(tmp_path / "c.yaml", tmp_path / "dt.json", protocol="voc07", splits=["test"])
    assert {result.conventions[f"{side}_pixels"] for side in ("ground_truth", "detection")} == {
        "continuous coordinates, taken as they are"
    }
    assert result.to_json()["metrics"] == {"mAP_11pt@0.5": 0.0}


def test_what_is_written_scores_the_same(tmp_path, shared_data):
    folder = shared_data / "eval_cases/coco_val2014_fakebbox100"
    first = score(folder / "gt.json", folder / "dt.json")
    write_score(tmp_path / "out", first)
    assert read(tmp_path / "out/metrics.json") == first.to_json()
    again = score(folder / "gt.json", tmp_path / "out/detections.json")
    assert again.to_json() == first.to_json()
    np.testing.assert_array_equal(again.detections.scores, first.detections.scores)


def test_settings_without_effect_or_meaning(tmp_path):
    truth, found, settings = small(tmp_path)
    for wrong, said in (
        ({"protocol": "voc"}, "protocol: expected one of coco, voc07, voc10, pascal-devkit, got 'voc'"),
        ({"engine": "fast"}, "engine: expected one of hotcoco, pycocotools, got 'fast'"),
        ({"pixels": "half"}, "pixels: expected one of inclusive, continuous, got 'half'"),
        ({"iou": [0.5]}, "--iou: it has no effect under protocol 'coco'"),
        ({"protocol": "voc07", "engine": "hotcoco"}, "--engine: it has no effect under protocol 'voc07'"),
        ({"protocol": "voc07", "max_detections": (1, 2, 3)}, "--max-detections: it has no effect"),
        ({"splits": ["val"]}, "--splits: it has no effect here, it is for ground truth in a VOC folder"),
        ({"max_detections": (3, 2, 1)}, "max_detections: expected increasing"),
        ({"protocol": "voc07", "iou": [1.5]}, "iou: expected one or more different thresholds"),
    ):
        with pytest.raises(RetinaError, match=said):
            score(truth, found, **(settings | wrong))
    (tmp_path / "gt.json").write_text(
        '{"images": [{"id": 1}], "categories": [{"id": 1, "name": "cat"}], "annotations": []}'
    )
    (tmp_path / "dt.json").write_text("[]")
    with pytest.raises(RetinaError, match="it has no effect here, it is for text files"):
        score(tmp_path / "gt.json", tmp_path / "dt.json", names=tmp_path / "names")
    with pytest.raises(RetinaError, match="replicates: expected 0 for no intervals, or at least 100, got 7"):
        score(tmp_path / "gt.json", tmp_path / "dt.json", replicates=7)
    undefined = score(tmp_path / "gt.json", tmp_path / "dt.json").to_json()
    assert set(undefined["metrics"].values()) == {-1.0} and undefined["boxes"] == 0


def a_config(tmp_path, text: str) -> Path:
    """A configuration of one COCO file, whose second box has no area and whose third reaches outside its image."""
    boxes = [[10, 10, 20, 20], [5, 5, 0, 10], [90, 90, 30, 30]]
    annotations = [
        {"id": n, "image_id": 7, "category_id": 3, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for n, box in enumerate(boxes)
    ]
    tree = {
        "images": [{"id": 7, "file_name": "x.png", "height": 100, "width": 100}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": annotations,
    }
    (tmp_path / "gt.json").write_text(json.dumps(tree))
    Image.new("RGB", (100, 100)).save(tmp_path / "x.png")
    source = f"{{format: coco, annotations: {tmp_path}/gt.json, images: {tmp_path}}}"
    file = tmp_path / "config.yaml"
    file.write_text(
        f"data:\n  train: {source}\n  validation: {source}\n  invalid_boxes: drop\n"
        f"schedule: {{kind: step, steps: 5}}\n{text}"
    )
    return file


def test_a_configuration_is_scored_as_its_files(tmp_path):
    """Training drops two of three boxes; pycocotools counts all of them, and so does every way to evaluate."""
    file = a_config(tmp_path, "")
    found = [
        {"image_id": 7, "category_id": 3, "bbox": [10, 10, 20, 20], "score": 0.9},
        {"image_id": 7, "category_id": 3, "bbox": [90, 90, 30, 30], "score": 0.8},
    ]
    (tmp_path / "dt.json").write_text(json.dumps(found))
    by_config, by_file = (score(path, tmp_path / "dt.json", replicates=0).coco for path in (file, tmp_path / "gt.json"))
    assert by_config.metrics == by_file.metrics
    assert by_config.boxes == 3
    # Two of three: precision 1 up to recall 2/3, which is 67 of 101 points.
    assert by_config.metrics["AP"] == pytest.approx(67 / 101, abs=1e-12)


def test_a_configuration_brings_its_limits_and_sizes(tmp_path):
    file = a_config(
        tmp_path, "evaluation: {max_detections: [1, 2, 3], area_ranges: {tiny: [0, 100], huge: [101, 1e9]}}\n"
    )
    (tmp_path / "dt.json").write_text("[]")
    own = score(file, tmp_path / "dt.json", replicates=0).coco
    assert {"AR1", "AR2", "AR3", "APtiny", "ARhuge"} <= set(own.metrics) and "APs" not in own.metrics
    other = score(file, tmp_path / "dt.json", replicates=0, area_ranges={"wide": (0, 50)}, max_detections=(2, 4, 6))
    assert {"AR2", "AR6", "APwide"} <= set(other.coco.metrics) and "APtiny" not in other.coco.metrics
    assert other.conventions["sizes"] == "wide: up to 50 square px"


def test_pictures_come_from_the_folder_of_images(tmp_path):
    a_config(tmp_path, "")
    (tmp_path / "dt.json").write_text('[{"image_id": 7, "category_id": 3, "bbox": [40, 40, 20, 20], "score": 0.9}]')
    result = score(tmp_path / "gt.json", tmp_path / "dt.json", images=tmp_path)
    assert result.pictures == (str(tmp_path / "x.png"),)
    write_score(tmp_path / "out", result)
    assert {"mistakes.png", "worst_images.png"} <= {path.name for path in (tmp_path / "out").iterdir()}
    (tmp_path / "x.png").rename(tmp_path / "y.png")
    with pytest.raises(RetinaError, match="no image called 'x', which .*gt.json has"):
        score(tmp_path / "gt.json", tmp_path / "dt.json", images=tmp_path)


def test_ids_of_a_voc_class_do_not_depend_on_the_order_of_the_labels(shared_data):
    """What a run writes under data.classes of any order is what a reader of the folder takes it for."""
    folder = shared_data / "bccd"
    dataset = read_voc(folder, ("val",), classes=("WBC", "RBC", "Platelets"), invalid_boxes="drop")
    truth = read_ground_truth(folder, splits=("val",))
    of_run = dict(zip(dataset.class_names, dataset.category_ids, strict=True))
    assert of_run == dict(zip(truth.class_names, truth.category_ids, strict=True)) == {
        "Platelets": 1, "RBC": 2, "WBC": 3
    }  # fmt: skip


@pytest.mark.parametrize(("policy", "boxes", "counted"), [("ignore", 273, 235), ("use", 273, 273), ("drop", 235, 235)])
def test_difficult_boxes_of_a_configured_split(shared_data, policy, boxes, counted):
    source = config.VocSource(folder=shared_data / "voc100", splits=("all",))
    data = config.Data(train=source, validation=source, difficult=policy)
    truth = read_split(data, "validation").truth
    assert (len(truth.boxes), int(truth.counted.sum())) == (boxes, counted)
