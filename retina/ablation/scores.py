"""The figures of a study's trials, from the detections that each wrote at its last step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from retina.ablation.directory import Study
from retina.ablation.plan import Trial
from retina.ablation.presets import NAMES
from retina.ablation.statistics import enough_replicates
from retina.data.formats.coco import coco_columns, read_json
from retina.data.ground_truth import GroundTruth, Results
from retina.data.load import read_split
from retina.errors import RetinaError
from retina.evaluation.bootstrap import bootstrap, observed
from retina.evaluation.matching import match
from retina.output import count

_REPLICATES = 1000


@dataclass(frozen=True, eq=False)
class Scores:
    """Figures of S settings × R seeds, NaN for a trial without figures.

    Attributes:
        observed: of each of `AP`, `AP50`, `AP75` [S, R].
        replicates: of each [S, R, B], under the same B resamples of the images.
        images: number of validation images; 0 if they were not read, because no trial has figures.
    """

    observed: dict[str, np.ndarray]
    replicates: dict[str, np.ndarray]
    images: int


def score(
    study: Study, *, replicates: int | None = None, seed: int = 0, say: Callable[[str], None] | None = None
) -> Scores:
    """Score every finished trial.

    The evaluation at the last step counts, not the best on the way: the largest of several noisy figures favours the
    setting with the most noise.

    Args:
        replicates: resamples of the images, see `retina.evaluation.bootstrap`; None takes 1000, or more
            if the number of settings needs it.
        seed: of the resamples.

    Raises:
        RetinaError: no trial is finished and some are still to come, or the validation data or a trial's detections
            can't be read.
    """
    plan = study.plan
    finished = [trial for trial in plan.trials if study.is_finished(trial)]
    if not finished and any(study.outcome(trial).status == "pending" for trial in plan.trials):
        raise RetinaError(f"{study.path}: no trial is finished yet; repeat the command that started the study")
    if replicates is None:
        replicates = max(_REPLICATES, enough_replicates(len(plan.settings) - 1))
    if say is not None and finished:
        say(f"scoring {count(len(finished), 'trial')} on {replicates} resamples of the images")
    shape = (len(plan.settings), plan.most_seeds)
    plain = {name: np.full(shape, np.nan) for name in NAMES}
    drawn = {name: np.full((*shape, replicates), np.nan) for name in NAMES}
    if not finished:
        return Scores(plain, drawn, 0)
    data = plan.config.data
    truth = read_split(data, "validation").truth
    rows = {setting.name: row for row, setting in enumerate(plan.settings)}
    for trial in finished:
        matches = match(truth, _results(study, trial, truth), max_detections=plan.config.evaluation.max_detections[-1])
        place = rows[trial.setting], trial.index
        once, many = observed(matches), bootstrap(matches, replicates=replicates, seed=seed)
        for name in NAMES:
            plain[name][place], drawn[name][place] = once[name][0], many[name]
    return Scores(plain, drawn, len(truth))


def _results(study: Study, trial: Trial, truth: GroundTruth) -> Results:
    """Results with the numbers of the file, which a conversion to corners and back would round."""
    file = study.evaluation(trial) / "detections.json"
    rows = {identifier: row for row, identifier in enumerate(truth.image_ids)}
    labels = {identifier: label for label, identifier in enumerate(truth.category_ids)}
    columns = coco_columns(read_json(file, "list of detections"), rows, labels, str(file))
    return Results(str(file), columns.image, columns.boxes, columns.scores, columns.labels)
