"""Whatever detects: a run directory or an export."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retina import config as configuration
from retina.data.dataset import DetectionDataset
from retina.data.detections import DetectionTable
from retina.data.ground_truth import results
from retina.data.load import Split
from retina.data.stored import path_or_bytes
from retina.errors import RetinaError
from retina.evaluation.coco import Metrics, evaluate_as
from retina.export.certificate import table_of
from retina.export.description import portable
from retina.export.runner import Runner, format_of, open_artefact
from retina.inference import Detections, Predictor
from retina.runs import loading
from retina.runs.loading import Detected, split_for


class ExportedPredictor:
    """An export that predicts as a `Predictor` does; `config` is that of its training."""

    def __init__(self, runner: Runner):
        self.runner = runner
        self.path, self.class_names = runner.path, runner.class_names
        self.config = _with_places(configuration.parse(runner.document["config"], str(runner.path)), runner.path)

    def predict(self, images: Any) -> list[Detections]:
        """Detects objects; see `retina.inference.Predictor.predict`."""
        return list(self.stream(images))

    def stream(self, images: Any) -> Iterable[Detections]:
        """`predict`, an image at a time."""
        single = isinstance(images, (str, Path, bytes)) or (isinstance(images, np.ndarray) and images.ndim == 3)
        for image in [images] if single else images:
            yield from self.runner.detect([Path(image) if isinstance(image, str) else image])


def _with_places(config: configuration.Config, export: Path) -> configuration.Config:
    """An export's configuration, which says no absolute paths, with those of the run in whose `export/` it lies."""
    file = export.absolute().parents[1] / "config.yaml"
    if export.absolute().parent.name != "export" or not file.is_file():
        return config
    try:
        run = configuration.load(file)
    except RetinaError:  # an export may outlive the version that reads its run
        return config
    return config.model_copy(update={"data": run.data}) if portable(run).data == config.data else config


def load(run_or_export: str | Path, checkpoint: str = "best") -> Predictor | ExportedPredictor:
    """The detector of a run directory, or an export.

    Args:
        run_or_export: a run directory, a SavedModel's folder, or a file ending in .onnx or .tflite.
        checkpoint: of a run: `best` (on the validation data), `latest` or `step_N`.

    Raises:
        RetinaError: it is neither, or damaged; or a checkpoint of an export.
    """
    path = Path(run_or_export)
    if format_of(path) is None and path.suffix.lower() not in (".onnx", ".tflite"):
        return loading.load(path, checkpoint)
    if checkpoint != "best":
        raise RetinaError(f"--checkpoint {checkpoint}: it has no effect on an export, which holds one; leave it out")
    return ExportedPredictor(open_artefact(path))


def detect_split(
    run_or_export: str | Path, split: Split, *, checkpoint: str = "best", overrides: Sequence[str] = ()
) -> Detected:
    """The detections of a run or an export in a split of its data; see `retina.runs.loading.detect_split`."""
    if format_of(run_or_export) is None:
        return loading.detect_split(run_or_export, split, checkpoint=checkpoint, overrides=overrides)
    predictor = load(run_or_export, checkpoint)
    dataset, truth, config = split_for(predictor, split, overrides)
    table = table_of(list(predictor.stream(_files(dataset))))
    return Detected(table, dataset, results(table, dataset), truth, config)


def evaluate(
    run_or_export: str | Path, split: Split = "validation", *, checkpoint: str = "best", overrides: Sequence[str] = ()
) -> tuple[Metrics, DetectionTable, DetectionDataset]:
    """COCO metrics of a run or an export on a split of its data; see `retina.runs.loading.evaluate`."""
    detected = detect_split(run_or_export, split, checkpoint=checkpoint, overrides=overrides)
    metrics = evaluate_as(detected.config.evaluation, detected.truth, detected.results)
    return metrics, detected.table, detected.dataset


def _files(dataset: DetectionDataset) -> Iterator[bytes | Path]:
    return (path_or_bytes(image) for image in dataset.images)
