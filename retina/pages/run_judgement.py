"""The figures of a run's page, from the detections of its own evaluation where they suffice."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isnan
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

from retina import config as configuration
from retina.data.dataset import DetectionDataset
from retina.data.ground_truth import GroundTruth, Results
from retina.data.load import Split, SplitTables, read_results, read_split
from retina.errors import RetinaError
from retina.evaluation.assessment import Assessment, assess
from retina.evaluation.bootstrap import NAMES
from retina.evaluation.comparison import compare
from retina.evaluation.document import to_json
from retina.evaluation.matching import match
from retina.runs.checkpoint import classes_of
from retina.runs.directory import BEST, LATEST, RunDirectory
from retina.runs.loading import detect_split
from retina.runs.record import Record, detections_file, evaluation_step, stored_figures

REPLICATES = 1000
# Enough to tell a change from none: of 5,000 images a thousand would take as long as the rest of the page.
_REPLICATES_OF_CHANGE = 200
# Figures of the same detections differ by rounding only.
_SAME = 1e-6


@dataclass(frozen=True, eq=False)
class Evidence:
    """The basis of the figures: the data, its ground truth, the detections, and their assessment."""

    dataset: DetectionDataset
    truth: GroundTruth
    detections: Results
    assessment: Assessment


class Change(NamedTuple):
    """The interval of what the metric gained between two evaluations, from the same resamples of the images [N]."""

    before: int
    last: int
    low: float
    high: float
    images: int


@dataclass(frozen=True, eq=False)
class Judgement:
    """The figures of a checkpoint, and their basis.

    Attributes:
        split, checkpoint, step: of the figures; the step is None where the run has no such checkpoint.
        figures: under the keys of `retina.evaluation.document`, those of the file alone if there is no evidence; None
            without an evaluation.
        evidence: None where `missing` says why.
        missing: a sentence, or "".
        overrides: of the settings by which the data was read.
        changed: a sentence if the figures differ from those that the run recorded, or "".
    """

    split: Split
    checkpoint: str
    step: int | None
    figures: dict[str, Any] | None
    evidence: Evidence | None
    missing: str = ""
    changed: str = ""
    overrides: tuple[str, ...] = ()
    change: Change | None = None


def judge_run(
    record: Record, split: str = "validation", checkpoint: str = "best", overrides: tuple[str, ...] = ()
) -> Judgement:
    """Judge a checkpoint on a split.

    On validation data the detections of the run's own evaluation are used, so that no network is built; if the data is
    gone, the recorded figures remain. Another split, or a step without an evaluation, is predicted again.

    Args:
        overrides: `key.path=value` of the sections `data` and `evaluation`, for instance another `data.root`.

    Raises:
        RetinaError: no such split or checkpoint, or a split other than validation can't be read.
    """
    if split not in get_args(Split):
        raise RetinaError(f"--split: expected one of {', '.join(get_args(Split))}, got '{split}'; choose one of them")
    of = cast(Split, split)
    step = evaluation_step(record, checkpoint)
    settings = _overridden(record.config, overrides)
    # With other tiles the run's own evaluation has other detections.
    as_evaluated = of == "validation" and settings.evaluation.tiles == record.config.evaluation.tiles
    file = detections_file(record, step) if as_evaluated else None
    predictable = record.config.data.validation is not None and _can_predict(record, step)
    if file is None and as_evaluated and not predictable:
        return _without_detections(record, of, checkpoint, step)
    if file is None:
        figures, evidence = _documented(_predicted(record, of, checkpoint, overrides), None)
        return Judgement(of, checkpoint, step, figures, evidence, overrides=overrides)
    stored = stored_figures(record, step)
    try:
        dataset, truth = _split(settings.data, of)
        _check_classes(dataset, stored)
        detections = read_results(file, _with_categories(truth, record), format="coco")
    except RetinaError as error:
        if overrides:
            raise  # the overrides are the cause
        return Judgement(of, checkpoint, step, stored, None, missing=f"The data can't be read: {error}")
    evaluated = (dataset, truth, detections, settings)
    figures, evidence = _documented(evaluated, stored)
    changed, change = _changed(stored, figures), _change(record, step, evidence, settings)
    return Judgement(of, checkpoint, step, figures, evidence, changed=changed, overrides=overrides, change=change)


def curve(record: Record) -> list[tuple[int, float]]:
    """Return the metric of each evaluation that defines it, by step."""
    metric = record.config.evaluation.metric
    return [(step, figures[metric]) for step, figures in record.evaluations if figures.get(metric, -1) >= 0]


def compared_steps(record: Record) -> tuple[int, int] | None:
    """Return the best evaluation, or where that is the last the one before it, and the last; None of a single one."""
    values = curve(record)
    if len(values) < 2:
        return None
    best, last = max(values, key=lambda pair: pair[1]), values[-1]
    return (values[-2] if best[0] == last[0] else best)[0], last[0]


def _change(record: Record, judged: int | None, evidence: Evidence, settings: configuration.Config) -> Change | None:
    """The interval of the change that the run's curve ends with.

    None where detections of a step are gone, or where other data or settings than the run's give another change.
    """
    steps, metric = compared_steps(record), record.config.evaluation.metric
    if steps is None or metric not in NAMES:
        return None
    truth, limit = evidence.truth, settings.evaluation.max_detections[-1]
    matches = {judged: evidence.assessment.matches}
    for step in steps:
        file = detections_file(record, step)
        if file is None:
            return None
        if step != judged:
            try:
                detections = read_results(file, _with_categories(truth, record), format="coco")
                matches[step] = match(truth, detections, max_detections=limit)
            except RetinaError:  # torn; the page has the figures without it
                return None
    before, last = (matches[step] for step in steps)
    difference = compare(truth, before, last, replicates=_REPLICATES_OF_CHANGE).figures[metric]
    logged = dict(curve(record))
    gained = logged[steps[1]] - logged[steps[0]]
    if isnan(difference.low) or abs(difference.difference - gained) > _SAME:
        return None
    return Change(*steps, difference.low, difference.high, len(truth))


def _split(data: configuration.Data, split: Split) -> SplitTables:
    """Read the split; with images that are gone, so that their boxes can still be judged."""
    try:
        return read_split(data, split)
    except RetinaError as error:
        try:
            return read_split(data, split, keep_unusable=True)
        except RetinaError:
            raise error from None


def _can_predict(record: Record, step: int | None) -> bool:
    return (record.path / "checkpoints" / f"step_{step}.npz").is_file()


def _without_detections(record: Record, split: Split, checkpoint: str, step: int | None) -> Judgement:
    """Judge a run without detections by the figures that it recorded."""
    if checkpoint not in (BEST, LATEST):
        known = ", ".join(f"step_{at}" for at, _ in record.evaluations) or "none"
        raise RetinaError(
            f"{record.path}: expected {checkpoint} to be an evaluation or a checkpoint of the run, it is neither; "
            f"its evaluations: {known}"
        )
    figures = stored_figures(record, step)
    logged = dict(record.evaluations).get(step or -1)
    if figures is None and logged is not None:
        figures = {"metrics": logged, "per_class": {}}
    missing = (
        "The run has no validation data. Judge it on another split with --split train or test."
        if record.config.data.validation is None
        else "The run has no evaluation yet; the first is due at step "
        f"{record.config.run.evaluate_every or record.config.schedule.length:,}."
        if not record.evaluations
        else f"The detections of step {step} (eval/step_{step}/detections.json) are missing."
    )
    return Judgement(split, checkpoint, step, figures, None, missing=missing)


_Evaluated = tuple[DetectionDataset, GroundTruth, Results, configuration.Config]


def _predicted(record: Record, split: Split, checkpoint: str, overrides: tuple[str, ...]) -> _Evaluated:
    detected = detect_split(record.path, split, checkpoint=checkpoint, overrides=overrides)
    return detected.dataset, detected.truth, detected.results, detected.config


def _documented(evaluated: _Evaluated, stored: dict[str, Any] | None) -> tuple[dict[str, Any], Evidence]:
    """Return figures and evidence; intervals that the run recorded are used."""
    dataset, truth, detections, settings = evaluated
    known = (stored or {}).get("intervals")
    assessment = assess(truth, detections, settings.evaluation, replicates=0 if known else REPLICATES)
    figures = to_json(assessment.metrics, assessment)
    if known:
        figures["intervals"] = known
    return figures, Evidence(dataset, truth, detections, assessment)


def _overridden(config: configuration.Config, overrides: tuple[str, ...]) -> configuration.Config:
    for text in overrides:
        if not text.startswith(("data.", "evaluation.")):
            raise RetinaError(f"override '{text}': a report takes only data.* and evaluation.*; the rest is the run's")
    return configuration.override(config, list(overrides))


def _with_categories(truth: GroundTruth, record: Record) -> GroundTruth:
    """Ground truth with the category ids of the run, since those of the source may have changed."""
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
    """Sentence if the data, or the way it is scored, has changed since the run."""
    was, now = (stored or figures)["metrics"].get("AP"), figures["metrics"]["AP"]
    if was is None or abs(was - now) < 1e-9:
        return ""
    return f"The run recorded AP {was:.4f}, its detections now score {now:.4f}: the data, or how it is read, changed."


def picture_names(dataset: DetectionDataset) -> list[str]:
    """Return the names [N] of images in the gallery: the file's name without its folders, or the id."""
    return [
        Path(image).name if isinstance(image, str) else str(identifier)
        for image, identifier in zip(dataset.images, dataset.image_ids, strict=True)
    ]
