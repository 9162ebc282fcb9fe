"""Loading of a run's detector, and its evaluation on a split."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from retina import config as configuration
from retina.config.differences import changed_keys
from retina.data.batches.evaluation import evaluation_batches, how_read
from retina.data.dataset import DetectionDataset
from retina.data.detections import DetectionTable
from retina.data.ground_truth import GroundTruth, Results, results
from retina.data.load import Split, read_split
from retina.data.tiles import noted
from retina.errors import RetinaError
from retina.evaluation.coco import Metrics, evaluate_as
from retina.inference import Predictor, build_detector, detect, detect_images, detect_rows
from retina.output import Watch, unwatched
from retina.runs.checkpoint import Checkpoint, read, restore
from retina.runs.directory import RunDirectory
from retina.runs.ema import averaged_weights

OF_EVALUATION = ("data", "evaluation", "inference")
# Settings in which a run's configuration may differ from that of one of its checkpoints.
_OF_TRAINING = ("run.", "schedule.", "data.root")


class Trained(Protocol):
    """A trained detector with its configuration: a `Predictor`, or an export of one."""

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def config(self) -> configuration.Config: ...

    @property
    def notes(self) -> tuple[str, ...]: ...


def load(run: str | Path, checkpoint: str = "best", overrides: Sequence[str] = ()) -> Predictor:
    """Load the detector of a run directory, with the averaged weights if the run has them (`run.ema`).

    Args:
        run: the run directory.
        checkpoint: `best` (on the validation data), `latest` or `step_N`.
        overrides: `key.path=value` of the section `inference`, in place of the training's.

    Raises:
        RetinaError: not a run directory, a checkpoint that is missing or damaged, or an override of another section.
    """
    check_sections(overrides, ("inference",), "loading a detector")
    return load_checkpoint(run, checkpoint, overrides)[0]


def load_checkpoint(
    run: str | Path, checkpoint: str = "best", overrides: Sequence[str] = ()
) -> tuple[Predictor, Checkpoint]:
    """Load the detector as `load` does, with any overrides of its configuration, and return it with the checkpoint."""
    directory = RunDirectory.open(Path(run))
    path = directory.checkpoint_path(checkpoint)
    saved = read(path)
    trained = configuration.parse(saved.config, str(path))
    config = configuration.override(trained, overrides)
    detector = build_detector(config, saved.class_names, load_weights=False)
    restore(averaged_weights(saved.arrays), detector)
    return Predictor(detector, config, edited(directory, trained)), saved


def edited(directory: RunDirectory, trained: configuration.Config) -> tuple[str, ...]:
    """Return a note on the settings in a run's `config.yaml` that are not the checkpoint's: they have no effect.

    Those that `--resume` may change are left out: a checkpoint may have been written before.
    """
    path = directory.path / "config.yaml"
    try:
        now = configuration.load(path).model_dump(mode="json")
    except RetinaError as error:
        return (f"warning: {path} can't be read, and has no effect: the checkpoint holds its own ({error})",)
    changed = changed_keys(trained.model_dump(mode="json"), now)
    texts = [text for key, text in changed.items() if not key.startswith(_OF_TRAINING)]
    if not texts:
        return ()
    return (
        f"warning: {path} was edited, which has no effect: the checkpoint's own settings count ({', '.join(texts)}); "
        "give inference.*, data.* and evaluation.* to the command as KEY=VALUE, and train anew for others",
    )


def check_sections(overrides: Sequence[str], sections: Sequence[str], what: str) -> None:
    """Check that overrides are of these sections of the configuration.

    Raises:
        RetinaError: one is not.
    """
    for text in overrides:
        if not text.startswith(tuple(f"{section}." for section in sections)):
            names = [f"{section}.*" for section in sections]
            listed = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
            raise RetinaError(f"override '{text}': {what} takes only {listed}; the rest is the checkpoint's")


def of_section(overrides: Sequence[str], *sections: str) -> list[str]:
    """Return the overrides of these sections."""
    return [text for text in overrides if text.startswith(tuple(f"{section}." for section in sections))]


def inference_in_words(settings: configuration.Inference, tiles: configuration.Tiles | None = None) -> str:
    """Return the settings of `inference`, and of `evaluation.tiles`, that decide on the detections, in one line."""
    across = "all classes together" if settings.class_agnostic else "each class"
    per = "a level" if settings.candidates_per == "level" else "an image"
    kind, where = {
        "hard": ("NMS", f"at IoU {settings.nms_iou:g}"),
        "linear": ("linear Soft-NMS", f"above IoU {settings.nms_iou:g}"),
        "gaussian": ("Gaussian Soft-NMS", f"with sigma {settings.soft_sigma:g}"),
    }[settings.suppression]
    cut = {"before": "", "after": ", boxes cut to the image after that", "none": ", boxes not cut to the image"}
    unit = "an image" if tiles is None else "a tile"
    parts = (
        "" if tiles is None else f", in tiles of {tiles.size} pixels with an overlap of {tiles.overlap:g}, and whole"
    )
    return (
        f"scores above {settings.score_threshold:g}, up to {settings.candidates} candidates {per}, {kind} of {across} "
        f"{where}{cut[settings.clip]}, up to {settings.max_detections} detections {unit}{parts}"
    )


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
        overrides: `key.path=value` of the sections `data`, `evaluation` and `inference`, for instance another
            `data.root`.

    Raises:
        RetinaError: no such split, its classes are not the checkpoint's, or an override of another section.
    """
    detected = detect_split(run, split, checkpoint=checkpoint, overrides=overrides)
    metrics = evaluate_as(detected.config.evaluation, detected.truth, detected.results)
    return metrics, detected.table, detected.dataset


def detect_split(
    run: str | Path,
    split: Split,
    *,
    checkpoint: str = "best",
    overrides: Sequence[str] = (),
    watched: Watch = unwatched,
) -> Detected:
    """Detect in one of a run's splits; return the detections with the data and the checkpoint's configuration.

    Args:
        watched: passes the batches on, of which it is told the number.

    Raises:
        RetinaError: as `evaluate`.
    """
    check_sections(overrides, OF_EVALUATION, "an evaluation")
    predictor = load(run, checkpoint, of_section(overrides, "inference"))
    dataset, truth, config = split_for(predictor, split, of_section(overrides, "data", "evaluation"))
    if config.evaluation.tiles is None:
        batches = evaluation_batches(dataset, config.data, batch_size=config.inference.batch_size)
        table = detect(predictor.run, dataset, watched(batches, len(batches)))
    else:
        images = partial(detect_images, predictor.run, config, dataset.class_names)
        table = detect_rows(images, dataset, watched(range(len(dataset)), len(dataset)), config)
    return Detected(table, dataset, results(table, dataset), truth, config)


def split_for(
    predictor: Trained, split: Split, overrides: Sequence[str] = ()
) -> tuple[DetectionDataset, GroundTruth, configuration.Config]:
    """Load a split of the data of a detector, or of an export; return table, ground truth and the configuration used.

    Raises:
        RetinaError: as `evaluate`.
    """
    config = configuration.override(predictor.config, overrides)
    dataset, truth = read_split(config.data, split)
    if dataset.class_names != predictor.class_names:
        raise RetinaError(
            f"{dataset.name}: its classes {list(dataset.class_names)} are not the checkpoint's "
            f"{list(predictor.class_names)}"
        )
    dataset = noted(dataset, config.evaluation.tiles)
    return dataclasses.replace(dataset, notes=(*predictor.notes, *dataset.notes, *how_read())), truth, config
