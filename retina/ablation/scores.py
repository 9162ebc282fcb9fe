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

_REPLICATES = 1000


@dataclass(frozen=True, eq=False)
class Scores:
    """Figures of S settings × R seeds, NaN where a trial has none.

    Attributes:
        observed: of each of `AP`, `AP50`, `AP75` [S, R].
        replicates: of each [S, R, B], under the same B resamples of the images.
        images: of the validation data; 0 if it was not read, because no trial has a figure.
    """

    observed: dict[str, np.ndarray]
    replicates: dict[str, np.ndarray]
    images: int


def score(
    study: Study, *, replicates: int | None = None, seed: int = 0, say: Callable[[str], None] | None = None
) -> Scores:
    """Scores every finished trial; a study whose trials have all ended without figures has none, and no images.

    The evaluation at the last step counts, not the best one on the way: the largest of several noisy figures favours
    the setting with the most noise.

    Args:
        replicates: resamples of the images, see `retina.evaluation.bootstrap`; None takes 1000, or as many more as
            the number of settings needs.
        seed: of the resamples.

    Raises:
        RetinaError: no trial is finished and some are still to come, or the validation data or a trial's detections
            can't be read.
    """
    plan = study.plan
    finished = [trial for trial in plan.trials if study.is_finished(trial)]
    if not finished and any(study.outcome(trial).status == "pending" for trial in plan.trials):
        raise RetinaError(f"{study.path}: no trial is finished yet; go on with the command that began the study")
    if replicates is None:
        replicates = max(_REPLICATES, enough_replicates(len(plan.settings) - 1))
    if say is not None and finished:
        say(f"scoring {len(finished)} trials on {replicates} resamples of the images")
    shape = (len(plan.settings), plan.seeds)
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
    """The numbers of the file as they are: a detour through corners would round them."""
    file = study.evaluation(trial) / "detections.json"
    rows = {identifier: row for row, identifier in enumerate(truth.image_ids)}
    labels = {identifier: label for label, identifier in enumerate(truth.category_ids)}
    columns = coco_columns(read_json(file, "list of detections"), rows, labels, str(file))
    return Results(str(file), columns.image, columns.boxes, columns.scores, columns.labels)
