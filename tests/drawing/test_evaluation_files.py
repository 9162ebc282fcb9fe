"""The files of an evaluation and of a prediction."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from retina import config
from retina.data.dataset import DetectionDataset
from retina.data.detections import DetectionTable
from retina.data.ground_truth import ground_truth, results
from retina.data.images import table_image
from retina.drawing.evaluation_files import (
    prediction_sheet,
    surroundings,
    write_assessment,
    write_evaluation,
    write_score,
)
from retina.drawing.pictures import contact_sheet, draw
from retina.errors import RetinaError
from retina.evaluation import coco
from retina.evaluation.assessment import assess
from retina.evaluation.judging import Score
from retina.inference import Detections

NOTHING = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32), ())


def evaluate(data: DetectionDataset, table: DetectionTable) -> coco.Metrics:
    return coco.evaluate(ground_truth(data), results(table, data))


def png(value: int, height: int = 40, width: int = 60) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(out, "PNG")
    return out.getvalue()


def dataset(images: int = 3) -> DetectionDataset:
    """One box [10, 10, 30, 30] in each image; ids and categories with gaps."""
    return DetectionDataset(
        name="made up",
        class_names=("a", "b"),
        category_ids=(4, 9),
        image_ids=tuple(100 + 7 * i for i in range(images)),
        images=tuple(png(20 * i) for i in range(images)),
        sizes=np.tile([40, 60], (images, 1)),
        offsets=np.arange(images + 1),
        boxes=np.tile([10.0, 10, 30, 30], (images, 1)),
        labels=np.zeros(images),
        crowd=np.zeros(images),
        difficult=np.zeros(images),
        areas=np.full(images, 400.0),
    )


def hits(*images: int, score: float = 0.9) -> DetectionTable:
    n = len(images)
    return DetectionTable(np.array(images), np.tile([10.0, 10, 30, 30], (n, 1)), np.full(n, score), np.zeros(n))


def test_without_detections_the_files_are_there_and_empty(tmp_path):
    data, table = dataset(), DetectionTable.empty()
    write_evaluation(tmp_path, data, table, evaluate(data, table), pictures=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["detections.json", "metrics.json"]
    assert json.loads((tmp_path / "detections.json").read_text()) == []
    assert json.loads((tmp_path / "metrics.json").read_text())["metrics"]["AP"] == 0.0


def test_figures_and_detections_are_those_handed_in(tmp_path):
    data, table = dataset(), hits(0, 1, 2)
    write_evaluation(tmp_path / "new" / "folder", data, table, evaluate(data, table), pictures=2)
    tree = json.loads((tmp_path / "new" / "folder" / "metrics.json").read_text())
    assert tree["metrics"]["AP"] == pytest.approx(1.0) and tree["per_class"]["b"]["AP"] == -1
    assert (tree["images"], tree["boxes"], tree["detections"]) == (3, 3, 3)
    written = json.loads((tmp_path / "new" / "folder" / "detections.json").read_text())
    assert [(d["image_id"], d["category_id"], d["bbox"]) for d in written] == [
        (image, 4, [10.0, 10.0, 20.0, 20.0]) for image in (100, 107, 114)
    ]
    with Image.open(tmp_path / "new" / "folder" / "predictions.png") as sheet:
        assert sheet.mode == "RGB" and sheet.width > sheet.height


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    data, table = dataset(1), DetectionTable.empty()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RetinaError, match="cannot write the evaluation: .*; choose another folder"):
            write_evaluation(folder, data, table, evaluate(data, table), pictures=0)


def test_more_pictures_than_images_shows_each_once():
    one, many = (prediction_sheet(dataset(2), DetectionTable.empty(), pictures) for pictures in (2, 50))
    np.testing.assert_array_equal(one, many)


def test_pictures_show_what_scores_at_least_forty_percent():
    shown, hidden, none = (
        prediction_sheet(dataset(1), table, 1)
        for table in (hits(0, score=0.4), hits(0, score=0.39), DetectionTable.empty())
    )
    np.testing.assert_array_equal(hidden, none)
    assert (shown != none).any()
    # The ground truth is drawn as well.
    data, nothing = dataset(1), np.zeros((0, 4), np.float32)
    plain = draw(table_image(data, 0), nothing, np.zeros(0, np.int64), data.class_names)
    assert none.shape == contact_sheet([plain], 1).shape and (none != contact_sheet([plain], 1)).any()


# --------------------------------------------------------------------------------------------------- assessments


def assessed(data: DetectionDataset, table: DetectionTable):
    there, seen = ground_truth(data), results(table, data)
    return there, seen, assess(there, seen, config.Evaluation(), replicates=5)


def test_an_assessment_leaves_figures_plots_and_pictures(tmp_path):
    """Image 0 is right, image 1 has nothing found, image 2 a detection far from its box."""
    data = dataset()
    table = DetectionTable([0, 2], [[10, 10, 30, 30], [35, 0, 55, 15]], [0.9, 0.8], [0, 0])
    there, seen, assessment = assessed(data, table)
    write_score(tmp_path, Score("coco", {}, assessment, (), there, seen), data.images)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "metrics.json", "detections.json", "precision_recall.png", "confidence.png", "calibration.png", "errors.png",
        "confusion.png", "worst_images.png", "mistakes.png",
    }  # fmt: skip
    tree = json.loads((tmp_path / "metrics.json").read_text())
    assert tree["errors"]["counts"]["Bkg"] == 1 and tree["intervals"]["replicates"] == 5
    written = json.loads((tmp_path / "detections.json").read_text())
    assert written == [
        {"image_id": 100, "category_id": 4, "bbox": [10, 10, 20, 20], "score": pytest.approx(0.9)},
        {"image_id": 114, "category_id": 4, "bbox": [35, 0, 20, 15], "score": pytest.approx(0.8)},
    ]
    with Image.open(tmp_path / "mistakes.png") as one:
        assert one.width < 800  # a single cell


def test_where_nothing_went_wrong_there_are_no_pictures_of_mistakes(tmp_path):
    data = dataset()
    write_assessment(tmp_path, *assessed(data, hits(0, 1, 2)), data.images)
    assert not {"worst_images.png", "mistakes.png"} & {path.name for path in tmp_path.iterdir()}


def test_an_assessment_in_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RetinaError, match="cannot write the evaluation: .*; choose another folder"):
        write_assessment(tmp_path / "file", *assessed(dataset(1), DetectionTable.empty()))


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((40, 40, 60, 60), (0, 0, 100, 90)),  # 160 px around its middle are more than the image
        ((500, 300, 600, 400), (400, 200, 700, 500)),  # three times its side
        ((-30, -30, -10, -10), (0, 0, 60, 60)),  # outside: what is nearest
    ],
)
def test_surroundings_stay_inside(box, expected):
    width, height = (100, 90) if box[0] == 40 else (1000, 800)
    left, top, right, bottom = surroundings(np.array(box, float), width, height)
    assert (left, top, right, bottom) == expected
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
