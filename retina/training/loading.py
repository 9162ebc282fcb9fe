"""From a run directory to a working detector and its figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from retina import config as configuration
from retina.data.dataset import DetectionDataset
from retina.data.detections import DetectionTable
from retina.data.load import Split, load_split
from retina.data.scoring import ground_truth, results
from retina.errors import RetinaError
from retina.evaluation.coco import Metrics, evaluate_as
from retina.inference import Predictor, build_detector, detect
from retina.training.checkpoint import read, restore
from retina.training.run_directory import RunDirectory


def load(run: str | Path, checkpoint: str = "best") -> Predictor:
    """The detector of a run directory.

    Args:
        run: the run directory.
        checkpoint: `best` (on the validation data), `latest` or `step_N`.

    Raises:
        RetinaError: not a run directory, or a checkpoint that is missing or damaged.
    """
    path = RunDirectory.open(Path(run)).checkpoint_path(checkpoint)
    saved = read(path)
    config = configuration.parse(saved.config, str(path))
    detector = build_detector(config, saved.class_names, load_weights=False)
    restore(saved.arrays, detector)
    return Predictor(detector, config)


def evaluate(
    run: str | Path, split: Split = "validation", *, checkpoint: str = "best", overrides: Sequence[str] = ()
) -> tuple[Metrics, DetectionTable, DetectionDataset]:
    """COCO metrics of a run on one of its splits, with the detections and the data that they belong to.

    Args:
        overrides: `key.path=value` of the `data` section, for instance another `data.root`.

    Raises:
        RetinaError: no such split, its classes are not the checkpoint's, or an override of another section.
    """
    table, dataset, config = detect_split(run, split, checkpoint=checkpoint, overrides=overrides)
    return evaluate_as(config.evaluation, ground_truth(dataset), results(table, dataset)), table, dataset


def detect_split(
    run: str | Path, split: Split, *, checkpoint: str = "best", overrides: Sequence[str] = ()
) -> tuple[DetectionTable, DetectionDataset, configuration.Config]:
    """What a run's detector finds in one of its splits, with the data and the checkpoint's configuration.

    Raises:
        RetinaError: as `evaluate`.
    """
    for override in overrides:
        if not override.startswith("data."):
            raise RetinaError(f"override '{override}': an evaluation takes only data.*; the rest is the checkpoint's")
    predictor = load(run, checkpoint)
    data = configuration.override(predictor.config, overrides).data
    dataset = load_split(data, split)
    if dataset.class_names != predictor.class_names:
        raise RetinaError(
            f"{dataset.name}: its classes {list(dataset.class_names)} are not the checkpoint's "
            f"{list(predictor.class_names)}"
        )
    table = detect(predictor.run, dataset, data, predictor.config.inference.batch_size)
    return table, dataset, predictor.config
