"""Results of a study in numbers and words: the content of `study.json`, which every other output shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from retina.ablation import statistics
from retina.ablation.directory import Outcome, Status, Study
from retina.ablation.plan import Plan, plain_loss
from retina.ablation.presets import NAMES, PRESETS, Setting
from retina.ablation.scores import Scores, score
from retina.ablation.statistics import Difference, Spread
from retina.config import Config

# With fewer seeds a note warns that the intervals are coarse.
_MANY_SEEDS = 8


@dataclass(frozen=True)
class TrialResult:
    """Result of a training; `figures` are `AP`, `AP50`, `AP75` at its last step, empty unless it is finished."""

    name: str
    setting: str
    seed: int
    figures: dict[str, float]
    outcome: Outcome


@dataclass(frozen=True)
class SettingResult:
    """Result of a setting over its seeds.

    Attributes:
        gamma, alpha: of its classification loss, γ of cross-entropy 0; None where the loss has none.
        in_plane: whether its loss is focal or cross-entropy and differs from the study's configuration in γ and α
            alone, so that it has a place in the heatmap.
        statuses: number of its trials that are finished, diverged, failed, pending.
        figures: `AP`, `AP50`, `AP75`.
        differences: of the same from the baseline; None for the baseline itself and where no seed is shared.
        p_holm: p-value of AP's difference, adjusted for all settings of the study; None where there is none.
    """

    setting: Setting
    gamma: float | None
    alpha: float | None
    in_plane: bool
    statuses: dict[Status, int]
    figures: dict[str, Spread]
    differences: dict[str, Difference | None]
    p_holm: float | None

    @property
    def significant(self) -> bool:
        """True if AP differs from the baseline's at 95 %, after the adjustment."""
        return self.p_holm is not None and self.p_holm < 1 - statistics.LEVEL


@dataclass(frozen=True)
class StudyResult:
    """Results of a whole study; `conclusions` are sentences on the settings, `notes` explain the figures."""

    plan: Plan
    settings: tuple[SettingResult, ...]
    trials: tuple[TrialResult, ...]
    images: int
    replicates: int
    seed: int
    conclusions: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def failed(self) -> tuple[TrialResult, ...]:
        return tuple(trial for trial in self.trials if trial.outcome.status == "failed")

    @property
    def empty(self) -> bool:
        """True if no trial has a figure."""
        return not any(trial.figures for trial in self.trials)


def collect(
    study: Study, *, replicates: int | None = None, seed: int = 0, say: Callable[[str], None] | None = None
) -> StudyResult:
    """Score the finished trials and compare the settings.

    Args:
        replicates, seed: see `retina.ablation.scores.score`.

    Raises:
        RetinaError: see `retina.ablation.scores.score`.
    """
    scores = score(study, replicates=replicates, seed=seed, say=say)
    outcomes = {trial.name: study.outcome(trial) for trial in study.plan.trials}
    return summarise(study.plan, outcomes, scores, seed)


def summarise(plan: Plan, outcomes: dict[str, Outcome], scores: Scores, seed: int = 0) -> StudyResult:
    """Return the result of a plan from the outcomes of its trials (by name) and their figures."""
    rows = {setting.name: row for row, setting in enumerate(plan.settings)}
    base = rows[plan.baseline]
    trials = tuple(
        TrialResult(
            trial.name,
            trial.setting,
            trial.seed,
            {
                name: float(value)
                for name in NAMES
                if not np.isnan(value := scores.observed[name][rows[trial.setting], trial.index])
            },
            outcomes[trial.name],
        )
        for trial in plan.trials
    )
    differences = [
        {name: None if row == base else _difference(scores, name, row, base, seed) for name in NAMES}
        for row in range(len(plan.settings))
    ]
    adjusted = statistics.holm([d["AP"].p if d["AP"] is not None else None for d in differences])
    settings = []
    for row, setting in enumerate(plan.settings):
        statuses = Counter(trial.outcome.status for trial in trials if trial.setting == setting.name)
        settings.append(
            SettingResult(
                setting,
                *_loss_of(plan, setting),
                dict(statuses),
                {name: statistics.spread(scores.observed[name][row]) for name in NAMES},
                differences[row],
                adjusted[row],
            )
        )
    replicates = scores.replicates["AP"].shape[-1]
    return StudyResult(
        plan,
        tuple(settings),
        trials,
        scores.images,
        replicates,
        seed,
        tuple(_conclusion(plan, result) for result in settings if result.setting.name != plan.baseline),
        tuple(_notes(plan, settings, scores, replicates)),
    )


def to_json(result: StudyResult) -> dict[str, Any]:
    """Return the content of `study.json`: plain values, figures as fractions in [0, 1], null where there is none.

    Keys: `format` 1, `baseline`, `preset`, `seeds`, `images` (of the validation data), `replicates` and `seed` (of the
    bootstrap), `level`; `settings`, each with `name`, `label`, `overrides`, `gamma`, `alpha`, `trials` (how many by
    status), `figures` and `differences` by `AP`, `AP50`, `AP75` (fields of `Spread` and `Difference`), `p_holm`,
    `significant` and `paper`; `trials`, each with `name`, `setting`, `seed`, `status`, `attempts`, `seconds`, `error`
    and the figures; `conclusions` and `notes`, sentences.
    """
    plan = result.plan
    tree = {
        "format": 1,
        "baseline": plan.baseline,
        "preset": plan.preset,
        "seeds": plan.seeds,
        "images": result.images,
        "replicates": result.replicates,
        "seed": result.seed,
        "level": statistics.LEVEL,
        "settings": [
            {
                "name": row.setting.name,
                "label": row.setting.label,
                "overrides": row.setting.overrides,
                "gamma": row.gamma,
                "alpha": row.alpha,
                "trials": row.statuses,
                "figures": {name: asdict(figure) for name, figure in row.figures.items()},
                "differences": {name: asdict(d) if d is not None else None for name, d in row.differences.items()},
                "p_holm": row.p_holm,
                "significant": row.significant,
                "paper": row.setting.paper,
            }
            for row in result.settings
        ],
        "trials": [
            {
                "name": trial.name,
                "setting": trial.setting,
                "seed": trial.seed,
                **asdict(trial.outcome),
                **{name: trial.figures.get(name) for name in NAMES},
            }
            for trial in result.trials
        ],
        "conclusions": list(result.conclusions),
        "notes": list(result.notes),
    }
    plain: dict[str, Any] = _without_nan(tree)
    return plain


def from_json(plan: Plan, tree: dict[str, Any]) -> StudyResult:
    """Return the result that `to_json` wrote for this plan.

    Raises:
        KeyError, TypeError: the tree is not such a result.
    """
    rows = {row["name"]: row for row in tree["settings"]}
    return StudyResult(
        plan,
        tuple(
            SettingResult(
                setting,
                *_loss_of(plan, setting),
                rows[setting.name]["trials"],
                {name: Spread(**rows[setting.name]["figures"][name]) for name in NAMES},
                {
                    name: None
                    if (difference := rows[setting.name]["differences"][name]) is None
                    else Difference(**difference)
                    for name in NAMES
                },
                rows[setting.name]["p_holm"],
            )
            for setting in plan.settings
        ),
        tuple(
            TrialResult(
                trial["name"],
                trial["setting"],
                trial["seed"],
                {name: trial[name] for name in NAMES if trial[name] is not None},
                Outcome(**{field.name: trial[field.name] for field in fields(Outcome)}),
            )
            for trial in tree["trials"]
        ),
        tree["images"],
        tree["replicates"],
        tree["seed"],
        tuple(tree["conclusions"]),
        tuple(tree["notes"]),
    )


def _loss_of(plan: Plan, setting: Setting) -> tuple[float | None, float | None, bool]:
    """`gamma`, `alpha` and `in_plane` of `SettingResult`."""
    config = plan.setting_config(setting)
    plain = plain_loss(config)
    gamma, alpha = plain or (getattr(config.loss.classification, name, None) for name in ("gamma", "alpha"))
    return gamma, alpha, plain is not None and _without_loss(config) == _without_loss(plan.config)


def _difference(scores: Scores, name: str, row: int, base: int, seed: int) -> Difference | None:
    observed, replicates = scores.observed[name], scores.replicates[name]
    error = statistics.seed_error(observed) if statistics.pooled(observed)[[row, base]].all() else None
    return statistics.difference(
        observed[row], observed[base], replicates[row], replicates[base], error=error, seed=seed
    )


def _conclusion(plan: Plan, row: SettingResult) -> str:
    label, baseline = row.setting.label, plan.setting(plan.baseline).label
    unfinished = [f"{count} {status}" for status, count in row.statuses.items() if status != "finished"]
    lost = f" ({', '.join(unfinished)} of {plan.seeds_of(row.setting)} trials)" if unfinished else ""
    difference = row.differences["AP"]
    if difference is None:
        return f"{label}: nothing to compare with {baseline}{lost}."
    span = f"{difference.value:+.3f} AP, 95 % interval {difference.low:+.3f} to {difference.high:+.3f}"
    planned = max(map(plan.seeds_of, (row.setting, plan.setting(plan.baseline))))
    on = "" if difference.seeds == planned else f" on the {difference.seeds} of {planned} seeds that both finished"
    if difference.p is None:
        return (
            f"{label}: {span} against {baseline}{on or ' on these images'}{lost}; a single seed can't show whether "
            "another would repeat it."
        )
    direction = "better" if difference.value > 0 else "worse"
    words = f"significantly {direction} than" if row.significant else "no significant difference from"
    return f"{label}: {words} {baseline}{on} ({span}, Holm-adjusted p {_p(row.p_holm)}){lost}."


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _notes(plan: Plan, settings: list[SettingResult], scores: Scores, replicates: int) -> list[str]:
    if not scores.images:
        return ["No trial has finished, so there is no figure."]
    notes = [
        f"Figures are those of each trial's last step on {scores.images} validation images: mean ± standard deviation "
        "over seeds.",
    ]
    compared = sum(row.p_holm is not None for row in settings)
    if len(settings) > 1:
        notes.append(
            f"Intervals come from a paired bootstrap that resamples seeds and images both ({replicates} replicates); "
            "each is a 95 % interval for a single setting, not adjusted for their number."
        )
    if compared:
        notes.append(
            "A difference of AP is called significant if the larger p-value of that bootstrap and of a t-test over "
            "seeds is below 0.05 after Holm's adjustment for "
            f"{compared} comparison{'s' if compared > 1 else ''}. {_error_note(scores.observed['AP'])}"
        )
        if statistics.too_few_replicates(replicates, compared):
            notes.append(
                f"{replicates} replicates are too few for {compared} comparison{'s' if compared > 1 else ''}: no "
                "difference can come out as significant, however large. Repeat with --replicates "
                f"{max(1000, statistics.enough_replicates(compared))}."
            )
    fewest = min(map(plan.seeds_of, plan.settings))
    if len(settings) > 1 and fewest < _MANY_SEEDS:
        few = "one seed: its intervals leave out the variance between seeds"
        if fewest > 1:
            few = (
                f"{fewest} seeds give a coarse interval: where seeds matter more than images it is little more "
                f"than the range of {fewest} differences, and too short"
            )
        notes.append(few[0].upper() + few[1:] + ".")
    notes += plan.tuning
    if plan.preset:
        notes.append(
            f"Paper: {PRESETS[plan.preset].note}. Other data and another network: compare the differences between "
            "settings, not the levels."
        )
    return notes


def _error_note(observed: np.ndarray) -> str:
    """Sentence on the error of the t-test."""
    error = statistics.seed_error(observed)
    if error is None or error.settings < 3:
        return "The error of that test comes from the pair alone."
    left_out = len(observed) - int(statistics.pooled(observed).sum())
    return (
        f"The error of that test is pooled over {error.settings} settings ({error.freedom} degrees of freedom), which "
        "assumes that seeds scatter them equally; a pair that scatters more counts with its own error"
        + (f", and so do pairs with {left_out} that stayed below half of the best" if left_out else "")
        + "."
    )


def _without_loss(config: Config) -> dict[str, Any]:
    tree = config.model_dump(mode="json")
    del tree["loss"]["classification"]
    return tree


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
