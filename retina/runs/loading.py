"""Loading of a run's detector, and its evaluation on a split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from retina import config as configuration
from retina.data.batches.evaluation import evaluation_batches
from retina.data.dataset import DetectionDataset
from retina.data.detections import DetectionTable
from retina.data.ground_truth import GroundTruth, Results, results
from retina.data.load import Split, read_split
from retina.errors import RetinaError
from retina.evaluation.coco import Metrics, evaluate_as
from retina.inference import Predictor, build_detector, detect
from retina.runs.checkpoint import Checkpoint, read, restore
from retina.runs.directory import RunDirectory
from retina.runs.ema import averaged_weights


class Trained(Protocol):
    """A trained detector with its configuration: a `Predictor`, or an export of one."""

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def config(self) -> configuration.Config: ...


def load(run: str | Path, checkpoint: str = "best") -> Predictor:
    """Load the detector of a run directory, with the averaged weights if the run has them (`run.ema`).

    Args:
        run: the run directory.
        checkpoint: `best` (on the validation data), `latest` or `step_N`.

    Raises:
        RetinaError: not a run directory, or a checkpoint that is missing or damaged.
    """
    return load_checkpoint(run, checkpoint)[0]


def load_checkpoint(run: str | Path, checkpoint: str = "best") -> tuple[Predictor, Checkpoint]:
    """Load the detector as `load` does, and return it with the checkpoint."""
    path = RunDirectory.open(Path(run)).checkpoint_path(checkpoint)
    saved = read(path)
    config = configuration.parse(saved.config, str(path))
    detector = build_detector(config, saved.class_names, load_weights=False)
    restore(averaged_weights(saved.arrays), detector)
    return Predictor(detector, config), saved


class Detected(NamedTuple):
    """Detections of a run in a split: `table` by rows of `dataset`, `results` of them against `truth`."""

    table: DetectionTable
    dataset: DetectionDataset
    results: Results
    truth: GroundTruth
    config: configuration.Config


def evaluate(
    run: str | Path, split: Split = "validation", *, checkpoint: str = "best", overrides: Sequence[str] = ()
) -> tuple[Metrics, DetectionTable, DetectionDataset]:
    """Evaluate a run on one of its splits: return COCO metrics, the detections, and the dataset that they belong to.

    The ground truth is that of the split's files: boxes that training cut or dropped count as annotated.

    Args:
        overrides: `key.path=value` of the sections `data` and `evaluation`, for instance another `data.root`.

    Raises:
        RetinaError: no such split, its classes are not the checkpoint's, or an override of another section.
    """
    detected = detect_split(run, split, checkpoint=checkpoint, overrides=overrides)
    metrics = evaluate_as(detected.config.evaluation, detected.truth, detected.results)
    return metrics, detected.table, detected.dataset


def detect_split(run: str | Path, split: Split, *, checkpoint: str = "best", overrides: Sequence[str] = ()) -> Detected:
    """Detect in one of a run's splits; return the detections with the data and the checkpoint's configuration.

    Raises:
        RetinaError: as `evaluate`.
    """
    predictor = load(run, checkpoint)
    dataset, truth, config = split_for(predictor, split, overrides)
    batches = evaluation_batches(dataset, config.data, batch_size=config.inference.batch_size)
    table = detect(predictor.run, dataset, batches)
    return Detected(table, dataset, results(table, dataset), truth, config)


def split_for(
    predictor: Trained, split: Split, overrides: Sequence[str] = ()
) -> tuple[DetectionDataset, GroundTruth, configuration.Config]:
    """Load a split of the data of a detector, or of an export; return table, ground truth and the configuration used.

    Raises:
        RetinaError: as `evaluate`.
    """
    for override in overrides:
        if not override.startswith(("data.", "evaluation.")):
            raise RetinaError(
                f"override '{override}': an evaluation takes only data.* and evaluation.*; the rest is the checkpoint's"
            )
    config = configuration.override(predictor.config, overrides)
    dataset, truth = read_split(config.data, split)
    if dataset.class_names != predictor.class_names:
        raise RetinaError(
            f"{dataset.name}: its classes {list(dataset.class_names)} are not the checkpoint's "
            f"{list(predictor.class_names)}"
        )
    return dataset, truth, config
