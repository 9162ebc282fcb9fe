"""Whatever detects: a run directory or an export."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from retina import config as configuration
from retina.data.dataset import DetectionDataset
from retina.data.detections import DetectionTable
from retina.data.ground_truth import results
from retina.data.load import Split
from retina.data.stored import path_or_bytes
from retina.data.tiles import check_tiles
from retina.errors import RetinaError
from retina.evaluation.coco import Metrics, evaluate_as
from retina.export.certificate import table_of
from retina.export.description import portable
from retina.export.runner import Runner, format_of, open_artefact
from retina.inference import Detections, Predictor, detect_in_tiles, detect_rows, each_image, pixels_of
from retina.output import Watch, unwatched
from retina.runs import loading
from retina.runs.loading import OF_EVALUATION, Detected, check_sections, of_section, split_for


class ExportedPredictor:
    """An export that predicts as a `Predictor` does; `config` is that of its training, with its inference settings."""

    notes: tuple[str, ...] = ()

    def __init__(self, runner: Runner):
        self.runner = runner
        self.path, self.class_names = runner.path, runner.class_names
        self.config = _with_places(configuration.parse(runner.document["config"], str(runner.path)), runner.path)

    def predict(self, images: Any, *, tile: int | None = None, overlap: float | None = None) -> list[Detections]:
        """Detects objects; see `retina.inference.Predictor.predict`."""
        return list(self.stream(images, tile=tile, overlap=overlap))

    def stream(self, images: Any, *, tile: int | None = None, overlap: float | None = None) -> Iterable[Detections]:
        """`predict`, an image at a time."""
        check_tiles(tile, overlap)
        for image in each_image(images):
            if tile is not None:
                pixels = pixels_of(image, self.config.data)
                inference = self.config.inference
                yield detect_in_tiles(self.runner.detect, pixels, self.class_names, inference, tile, overlap)
                continue
            readable = isinstance(image, (str, Path, bytes))
            given = Path(image) if isinstance(image, str) else image if readable else pixels_of(image)
            yield from self.runner.detect([given])

    def digest(self) -> str:
        """A digest of the export's files."""
        files = sorted(file for file in self.path.rglob("*") if file.is_file()) if self.path.is_dir() else [self.path]
        content = hashlib.sha256()
        for file in files:
            content.update(hashlib.sha256(file.read_bytes()).digest())
        return content.hexdigest()


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


def load(
    run_or_export: str | Path, checkpoint: str = "best", overrides: Sequence[str] = ()
) -> Predictor | ExportedPredictor:
    """Return the detector of a run directory, or of an export.

    Args:
        run_or_export: a run directory, a SavedModel's folder, or a file ending in .onnx or .tflite.
        checkpoint: of a run: `best` (on the validation data), `latest` or `step_N`.
        overrides: of a run: `key.path=value` of the section `inference`, in place of the training's.

    Returns:
        What predicts (see `Predictor`), with `class_names`, `config` and `notes`.

    Raises:
        RetinaError: it is neither, or damaged; or a checkpoint or overrides of an export.

    Example:

    >>> predictor = retina.load("runs/digits")
    >>> len(predictor.class_names), len(predictor.predict(["dog.png", "cat.png"]))
    (10, 2)
    """
    path = Path(run_or_export)
    if format_of(path) is None and path.suffix.lower() not in (".onnx", ".tflite"):
        return loading.load(path, checkpoint, overrides)
    if checkpoint != "best":
        raise RetinaError(f"--checkpoint {checkpoint}: it has no effect on an export, which holds one; leave it out")
    if overrides:
        raise RetinaError(
            f"override '{overrides[0]}': it has no effect on an export, whose graph holds its inference settings; "
            f"export the run again with it: retina export RUN {overrides[0]}"
        )
    return ExportedPredictor(open_artefact(path))


def detect_split(
    run_or_export: str | Path,
    split: Split,
    *,
    checkpoint: str = "best",
    overrides: Sequence[str] = (),
    watched: Watch = unwatched,
) -> Detected:
    """The detections of a run or an export in a split of its data; see `retina.runs.loading.detect_split`."""
    if format_of(run_or_export) is None:
        return loading.detect_split(run_or_export, split, checkpoint=checkpoint, overrides=overrides, watched=watched)
    check_sections(overrides, OF_EVALUATION, "an evaluation")
    predictor = load(run_or_export, checkpoint, of_section(overrides, "inference"))
    dataset, truth, config = split_for(predictor, split, of_section(overrides, "data", "evaluation"))
    if config.evaluation.tiles is None:
        table = table_of(list(predictor.stream(watched(_files(dataset), len(dataset)))))
    else:
        assert isinstance(predictor, ExportedPredictor), "a run is evaluated above"
        table = detect_rows(predictor.runner.detect, dataset, watched(range(len(dataset)), len(dataset)), config)
    return Detected(table, dataset, results(table, dataset), truth, config)


def evaluate(
    run_or_export: str | Path, split: Split = "validation", *, checkpoint: str = "best", overrides: Sequence[str] = ()
) -> tuple[Metrics, DetectionTable, DetectionDataset]:
    """Return COCO's figures of a run or an export on a split of its data, with the detections behind them.

    Args:
        run_or_export: a run directory or an export.
        split: `train`, `validation` or `test` of its data.
        checkpoint: of a run: `best`, `latest` or `step_N`.
        overrides: `key.path=value` of the sections `data`, `evaluation` and `inference`.

    Returns:
        The figures (`metrics`, `per_class`), all detections as a table, and the `DetectionDataset`.

    Raises:
        RetinaError: no such run, checkpoint or split; its classes are others; or an override has no effect.

    Example:

    >>> figures, detections, dataset = retina.evaluate("runs/digits", "test")
    >>> figures.metrics["AP"], len(dataset)
    (0.0, 8)
    """
    detected = detect_split(run_or_export, split, checkpoint=checkpoint, overrides=overrides)
    metrics = evaluate_as(detected.config.evaluation, detected.truth, detected.results)
    return metrics, detected.table, detected.dataset


def _files(dataset: DetectionDataset) -> Iterator[bytes | Path]:
    return (path_or_bytes(image) for image in dataset.images)
