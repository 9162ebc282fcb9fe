"""A score as files, and as the tables that the terminal shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from retina.data.formats.coco import as_coco
from retina.data.stored import TableImage
from retina.drawing.evaluation_files import write_assessment, write_figures
from retina.scoring import Score

if TYPE_CHECKING:
    from rich.console import Console


def write_score(folder: Path, result: Score, images: Sequence[TableImage] | None = None) -> None:
    """Writes `metrics.json`, what `--json` prints, and `detections.json`, COCO results with the ground truth's ids;
    under "coco" also plots, and with `images` [N] (by default the score's own) pictures of what went wrong.

    Raises:
        RetinaError: the folder can't be made or written, or an image can't be read.
    """
    write_figures(folder, result.to_json(), as_coco(result.found, result.truth))
    if result.assessment is not None:
        pictures = result.pictures if images is None else images
        write_assessment(folder, result.truth, result.found, result.assessment, pictures)


def print_score(console: Console, result: Score) -> None:
    """Figures with intervals, per class, errors and advice; and the conventions in words."""
    from retina.evaluation.tables import advice, class_table, errors_table, metrics_table
    from retina.evaluation.voc_tables import voc_class_table, voc_metrics_table

    coloured = console.color_system is not None
    if result.assessment is not None:
        console.print(metrics_table(result.assessment.metrics, result.assessment.intervals))
        console.print(class_table(result.assessment.metrics, result.assessment, console.width, coloured=coloured))
        console.print(errors_table(result.assessment))
        for line in advice(result.assessment):
            console.print(line, markup=False, soft_wrap=True)
    else:
        title = f"{len(result.truth):,} images, {result.boxes:,} boxes, {len(result.found):,} detections"
        console.print(voc_metrics_table(result.voc, title))
        console.print(voc_class_table(result.voc, console.width, coloured=coloured))
    console.print(f"Conventions ({result.protocol}):", markup=False)
    for key, words in result.conventions.items():
        console.print(f"  {key.replace('_', ' ')}: {words}", markup=False, soft_wrap=True)
