"""The files of one evaluation: figures, detections, plots and pictures."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retina.data.dataset import DetectionDataset
from retina.data.detections import DetectionTable
from retina.data.formats.coco import as_coco, to_coco
from retina.data.ground_truth import GroundTruth, Results
from retina.data.images import load_image, table_image
from retina.data.stored import Photograph, TableImage
from retina.drawing.pictures import contact_sheet, draw
from retina.drawing.plots import write_plots
from retina.errors import RetinaError
from retina.evaluation.assessment import Assessment
from retina.evaluation.coco import Metrics
from retina.evaluation.document import to_json
from retina.evaluation.judging import Score
from retina.evaluation.mistakes import most_confident_mistakes, worst_images
from retina.files import write_text, written
from retina.palette import class_colours

# A picture shows what a user would act on; the metrics take all detections above inference.score_threshold.
SHOWN_SCORE = 0.4
# Cells of the sheets of worst images and of mistakes.
SHOWN = 9


def write_evaluation(
    folder: Path, dataset: DetectionDataset, detections: DetectionTable, metrics: Metrics, *, pictures: int
) -> None:
    """Write an evaluation in training: `metrics.json`, `detections.json` (COCO results) and `predictions.png`.

    Args:
        pictures: images on the contact sheet, 0 for no sheet.

    Raises:
        RetinaError: the folder can't be made or written.
    """
    write_figures(folder, to_json(metrics), to_coco(detections, dataset))
    if pictures:
        write_sheet(folder, dataset, detections, pictures)


def write_sheet(folder: Path, dataset: DetectionDataset, detections: DetectionTable, pictures: int) -> None:
    """Write `predictions.png`: evenly spread images with their detections.

    Raises:
        RetinaError: the folder can't be made or written, or an image can't be read.
    """
    with _into(folder):
        _save(folder / "predictions.png", prediction_sheet(dataset, detections, pictures))


def write_figures(folder: Path, metrics: dict[str, Any], detections: list[dict[str, Any]]) -> None:
    """Write `metrics.json` and `detections.json`.

    Raises:
        RetinaError: the folder can't be made or written.
    """
    with _into(folder):
        write_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        write_text(folder / "detections.json", json.dumps(detections))


def write_score(folder: Path, result: Score, images: Sequence[Photograph | TableImage] | None = None) -> None:
    """Write `metrics.json`, what `--json` prints, and `detections.json`, COCO results with the ground truth's ids;
    under "coco" also plots, and with `images` [N] (by default those of the score) pictures of mistakes.

    Raises:
        RetinaError: the folder can't be made or written, or an image can't be read.
    """
    write_figures(folder, result.to_json(), as_coco(result.detections, result.truth))
    if result.assessment is not None:
        pictures = result.pictures if images is None else images
        write_assessment(folder, result.truth, result.detections, result.assessment, pictures)


def write_assessment(
    folder: Path,
    truth: GroundTruth,
    detections: Results,
    assessment: Assessment,
    images: Sequence[Photograph | TableImage] | None = None,
) -> None:
    """Write the plots of `retina.drawing.plots`, and with `images` [N] also `worst_images.png` and `mistakes.png`.

    Raises:
        RetinaError: the folder can't be made or written, or an image can't be read.
    """
    with _into(folder):
        write_plots(folder, assessment)
        if images is not None:
            for name, cells in (
                ("worst_images", _worst(truth, detections, assessment, images)),
                ("mistakes", _mistakes(truth, detections, assessment, images)),
            ):
                if cells:
                    _save(folder / f"{name}.png", contact_sheet(cells, columns=3))


def prediction_sheet(dataset: DetectionDataset, detections: DetectionTable, pictures: int) -> np.ndarray:
    """Return evenly spread images with their detections of score at least 0.4 and their ground truth, dashed."""
    shown = [picture for _, picture in pictures_with_truth(dataset, detections, pictures)]
    return contact_sheet(shown, columns=min(3, len(shown)))


def pictures_with_truth(
    dataset: DetectionDataset, detections: DetectionTable, pictures: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the images of `prediction_sheet`, each with its row."""
    for row in _spread(len(dataset), pictures):
        yield row, _picture(dataset, detections, row)


def _spread(count: int, pictures: int) -> list[int]:
    rows: list[int] = np.unique(np.linspace(0, count - 1, pictures).round().astype(int)).tolist()
    return rows


@contextlib.contextmanager
def _into(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        reason = error.strerror or error
        raise RetinaError(f"{folder}: cannot write the evaluation: {reason}; choose another folder") from None


def _save(path: Path, picture: np.ndarray) -> None:
    from PIL import Image

    with written(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")


def _picture(dataset: DetectionDataset, detections: DetectionTable, row: int) -> np.ndarray:
    shown = (detections.image == row) & (detections.scores >= SHOWN_SCORE)
    there = slice(dataset.offsets[row], dataset.offsets[row + 1])
    return draw(
        table_image(dataset, row),
        detections.boxes[shown],
        detections.labels[shown],
        dataset.class_names,
        scores=detections.scores[shown],
        truth_boxes=dataset.boxes[there],
        truth_labels=dataset.labels[there],
    )


def _worst(
    truth: GroundTruth, detections: Results, assessment: Assessment, images: Sequence[Photograph | TableImage]
) -> list[np.ndarray]:
    """The images of the lowest F1 at the overall threshold, with their ground truth."""
    threshold = assessment.confusion.score_threshold
    cells = []
    for score in worst_images(assessment.matches, threshold, limit=SHOWN):
        if not score.wrong + score.missed:
            continue
        shown = (detections.image == score.image) & (detections.scores >= threshold)
        there = (truth.image == score.image) & truth.counted
        cells.append(
            draw(
                load_image(images[score.image]),
                _corners(detections.boxes[shown]),
                detections.labels[shown],
                truth.class_names,
                scores=detections.scores[shown],
                truth_boxes=_corners(truth.boxes[there]),
                truth_labels=truth.labels[there],
            )
        )
    return cells


def _mistakes(
    truth: GroundTruth, detections: Results, assessment: Assessment, images: Sequence[Photograph | TableImage]
) -> list[np.ndarray]:
    """The wrong detections of the highest scores, cut out with their surroundings, and the box that each is about."""
    cells = []
    for mistake in most_confident_mistakes(assessment.errors, detections, SHOWN):
        image = load_image(images[mistake.image])
        box = _corners(detections.boxes[mistake.row : mistake.row + 1])
        about = np.zeros(0, np.int64) if mistake.box is None else np.array([mistake.box])
        left, top, right, bottom = surroundings(box[0], image.shape[1], image.shape[0])
        shift = np.array([left, top, left, top])
        # The detection's chip names its kind; the box has another name, so that it is always written too.
        names = [*(f"{mistake.kind}: {name}" for name in truth.class_names), *truth.class_names]
        cells.append(
            draw(
                image[top:bottom, left:right],
                box - shift,
                detections.labels[[mistake.row]],
                names,
                scores=detections.scores[[mistake.row]],
                truth_boxes=_corners(truth.boxes[about]) - shift,
                truth_labels=truth.labels[about] + len(truth.class_names),
                colours=2 * class_colours(truth.class_names),
            )
        )
    return cells


def surroundings(box: np.ndarray, width: int, height: int) -> tuple[int, int, int, int]:
    """A square of about three times the box, at least 160 px, inside the image."""
    half = max(1.5 * float(np.max(box[2:] - box[:2])), 80.0)
    x, y = (box[:2] + box[2:]) / 2
    left, top = int(np.clip(x - half, 0, max(width - 1, 0))), int(np.clip(y - half, 0, max(height - 1, 0)))
    return left, top, int(np.clip(x + half, left + 1, width)), int(np.clip(y + half, top + 1, height))


def _corners(boxes: np.ndarray) -> np.ndarray:
    """[n, 4] x, y, width, height to xyxy."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
