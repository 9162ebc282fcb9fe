"""The files of one evaluation: `metrics.json`, `detections.json` (COCO results), `predictions.png`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from retina.data.dataset import DetectionDataset
from retina.data.detections import DetectionTable, to_coco
from retina.errors import RetinaError
from retina.evaluation.coco import Metrics
from retina.evaluation.tables import to_json
from retina.files import write_text, written
from retina.report.pictures import contact_sheet, draw

# A picture shows what a user would act on; the metrics take every detection above inference.score_threshold.
SHOWN_SCORE = 0.4


def write_evaluation(
    folder: Path, dataset: DetectionDataset, detections: DetectionTable, metrics: Metrics, *, pictures: int
) -> None:
    """Writes the evaluation's files; `pictures` images make the contact sheet, 0 makes none.

    Raises:
        RetinaError: the folder can't be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "metrics.json", json.dumps(to_json(metrics), indent=2) + "\n")
        write_text(folder / "detections.json", json.dumps(to_coco(detections, dataset)))
        if pictures:
            with written(folder / "predictions.png") as temporary:
                Image.fromarray(prediction_sheet(dataset, detections, pictures)).save(temporary)
    except OSError as error:
        reason = error.strerror or error
        raise RetinaError(f"{folder}: cannot write the evaluation: {reason}; choose another folder") from None


def prediction_sheet(dataset: DetectionDataset, detections: DetectionTable, pictures: int) -> np.ndarray:
    """Evenly spread images with their detections of score at least 0.4, side by side."""
    rows = np.unique(np.linspace(0, len(dataset) - 1, pictures).round().astype(int))
    return contact_sheet([_picture(dataset, detections, row) for row in rows], columns=min(3, len(rows)))


def _picture(dataset: DetectionDataset, detections: DetectionTable, row: int) -> np.ndarray:
    from retina.data.pipeline import load_image

    shown = (detections.image == row) & (detections.scores >= SHOWN_SCORE)
    return draw(
        load_image(dataset.images[row]),
        detections.boxes[shown],
        detections.labels[shown],
        dataset.class_names,
        scores=detections.scores[shown],
    )
