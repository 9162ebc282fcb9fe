"""The figures of a run's page: from the detections that its evaluation left behind where that is enough."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

from retina import config as configuration
from retina.data.dataset import DetectionDataset
from retina.data.ground_truth import GroundTruth, Results
from retina.data.load import Split, SplitTables, read_results, read_split
from retina.errors import RetinaError
from retina.evaluation.assessment import Assessment, assess
from retina.evaluation.document import to_json
from retina.runs.directory import BEST, LATEST, RunDirectory
from retina.runs.record import Record, detections_file, evaluation_step, stored_figures

REPLICATES = 1000


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the figures are made from: the data, what it holds, what was found in it, and what became of that."""

    dataset: DetectionDataset
    truth: GroundTruth
    found: Results
    assessment: Assessment


@dataclass(frozen=True, eq=False)
class Judgement:
    """What is known of a checkpoint's quality.

    Attributes:
        split, checkpoint, step: what was judged; the step is None where the run has no such checkpoint.
        figures: under the keys of `retina.evaluation.document`, those of the file alone where there is no evidence;
            None without an evaluation.
        evidence: None where `missing` says why.
        missing: a sentence, or nothing.
        overrides: by which the data was read.
        changed: a sentence if the figures are no longer those that the run wrote down, or nothing.
    """

    split: Split
    checkpoint: str
    step: int | None
    figures: dict[str, Any] | None
    evidence: Evidence | None
    missing: str = ""
    changed: str = ""
    overrides: tuple[str, ...] = ()


def judge_run(
    record: Record, split: str = "validation", checkpoint: str = "best", overrides: tuple[str, ...] = ()
) -> Judgement:
    """Judges a checkpoint on a split.

    On validation data the detections of the run's own evaluation are taken, so that no network is built, and data that
    is no longer there leaves the figures that were written down. Another split, or a step without an evaluation, is
    predicted anew.

    Args:
        overrides: `key.path=value` of the sections `data` and `evaluation`, for instance another `data.root`.

    Raises:
        RetinaError: no such split or checkpoint, or a split other than validation can't be read.
    """
    if split not in get_args(Split):
        raise RetinaError(f"--split: expected one of {', '.join(get_args(Split))}, got '{split}'; choose one of them")
    of = cast(Split, split)
    step = evaluation_step(record, checkpoint)
    file = detections_file(record, step) if of == "validation" else None
    if file is None and of == "validation" and not _can_predict(record, step):
        return _unseen(record, of, checkpoint, step)
    if file is None:
        figures, evidence = _documented(_predicted(record, of, checkpoint, overrides), None)
        return Judgement(of, checkpoint, step, figures, evidence, overrides=overrides)
    stored = stored_figures(record, step)
    settings = _overridden(record.config, overrides)
    try:
        dataset, truth = _split(settings.data, of)
        _check_classes(dataset, stored)
        found = read_results(file, _with_categories(truth, record), format="coco")
    except RetinaError as error:
        if overrides:
            raise  # they are at fault
        return Judgement(of, checkpoint, step, stored, None, missing=f"The data can't be read: {error}")
    seen = (dataset, truth, found, settings)
    figures, evidence = _documented(seen, stored)
    return Judgement(of, checkpoint, step, figures, evidence, changed=_changed(stored, figures), overrides=overrides)


def _split(data: configuration.Data, split: Split) -> SplitTables:
    """The split; where images of it are gone, with these, so that their boxes can still be judged."""
    try:
        return read_split(data, split)
    except RetinaError as error:
        try:
            return read_split(data, split, keep_unusable=True)
        except RetinaError:
            raise error from None


def _can_predict(record: Record, step: int | None) -> bool:
    return (record.path / "checkpoints" / f"step_{step}.npz").is_file()


def _unseen(record: Record, split: Split, checkpoint: str, step: int | None) -> Judgement:
    """A run without detections: what it wrote down is all there is."""
    if checkpoint not in (BEST, LATEST):
        known = ", ".join(f"step_{at}" for at, _ in record.evaluations) or "none"
        raise RetinaError(
            f"{record.path}: expected {checkpoint} to be an evaluation or a checkpoint of the run, there is neither; "
            f"its evaluations: {known}"
        )
    figures = stored_figures(record, step)
    told = dict(record.evaluations).get(step or -1)
    if figures is None and told is not None:
        figures = {"metrics": told, "per_class": {}}
    missing = (
        "The run has no evaluation yet; it makes its first at step "
        f"{record.config.run.evaluate_every or record.config.schedule.steps:,}."
        if not record.evaluations
        else f"The detections of step {step} (eval/step_{step}/detections.json) are missing."
    )
    return Judgement(split, checkpoint, step, figures, None, missing=missing)


_Seen = tuple[DetectionDataset, GroundTruth, Results, configuration.Config]


def _predicted(record: Record, split: Split, checkpoint: str, overrides: tuple[str, ...]) -> _Seen:
    # Brings in Keras, which a run's own detections do without.
    from retina.runs.loading import detect_split

    detected = detect_split(record.path, split, checkpoint=checkpoint, overrides=overrides)
    return detected.dataset, detected.truth, detected.found, detected.config


def _documented(seen: _Seen, stored: dict[str, Any] | None) -> tuple[dict[str, Any], Evidence]:
    """Figures and evidence; intervals that the run has written down already are taken."""
    dataset, truth, found, settings = seen
    known = (stored or {}).get("intervals")
    assessment = assess(truth, found, settings.evaluation, replicates=0 if known else REPLICATES)
    figures = to_json(assessment.metrics, assessment)
    if known:
        figures["intervals"] = known
    return figures, Evidence(dataset, truth, found, assessment)


def _overridden(config: configuration.Config, overrides: tuple[str, ...]) -> configuration.Config:
    for text in overrides:
        if not text.startswith(("data.", "evaluation.")):
            raise RetinaError(f"override '{text}': a report takes only data.* and evaluation.*; the rest is the run's")
    return configuration.override(config, list(overrides))


def _with_categories(truth: GroundTruth, record: Record) -> GroundTruth:
    """With the category ids that the run knew its classes by: a source's own may have changed since."""
    from retina.runs.checkpoint import classes_of

    for step in reversed(RunDirectory(record.path).steps()):
        try:
            names, ids = classes_of(RunDirectory(record.path).checkpoint_path(f"step_{step}"))
        except RetinaError:
            continue
        return replace(truth, category_ids=ids) if names == truth.class_names else truth
    return truth


def _check_classes(dataset: DetectionDataset, stored: dict[str, Any] | None) -> None:
    before = list((stored or {}).get("per_class") or dataset.class_names)
    if before != list(dataset.class_names):
        raise RetinaError(
            f"{dataset.name}: expected the run's classes {before}, got {list(dataset.class_names)}; restore the data"
        )


def _changed(stored: dict[str, Any] | None, figures: dict[str, Any]) -> str:
    """Whether the data, or how it is scored, is no longer what the run saw."""
    was, now = (stored or figures)["metrics"].get("AP"), figures["metrics"]["AP"]
    if was is None or abs(was - now) < 1e-9:
        return ""
    return f"The run wrote down AP {was:.4f}, its detections now score {now:.4f}: the data, or how it is read, changed."


def picture_names(dataset: DetectionDataset) -> list[str]:
    """[N] what the gallery calls the images: the file's name without its folders, or the id."""
    return [
        Path(image).name if isinstance(image, str) else str(identifier)
        for image, identifier in zip(dataset.images, dataset.image_ids, strict=True)
    ]
