"""The learning curves of a study's trials: their losses, and the AP of their evaluations."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from retina.ablation.directory import Study
from retina.ablation.results import StudyResult
from retina.drawing.charts import Series

_COLOURS = 7
Points = list[tuple[int, float]]


class Curves(NamedTuple):
    """Curves of a trial: (step, value), steps ascending."""

    loss: Points
    ap: Points


def read_curves(study: Study) -> dict[str, Curves]:
    """Return the curves of every trial that has started, by its name."""
    files = {trial.name: study.run_dir(trial) / "metrics.jsonl" for trial in study.plan.trials}
    return {name: read_metrics(file) for name, file in files.items() if file.is_file()}


def read_metrics(file: Path) -> Curves:
    """Return the curves of a run's `metrics.jsonl`; reading ends at a torn line."""
    out = Curves([], [])
    for text in file.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break
        if "loss" in line:
            out.loss.append((line["step"], line["loss"]))
        elif "metrics" in line and line["metrics"]["AP"] >= 0:
            out.ap.append((line["step"], line["metrics"]["AP"]))
    return out


def over_seeds(result: StudyResult, curves: Mapping[str, Curves], points: Callable[[Curves], Points]) -> list[Series]:
    """Return a series for each setting: the mean over its seeds, and the range of its seeds as the band.

    Trials that diverged would bend the mean where they end: they count only in a setting without others.
    """
    out = []
    for number, row in enumerate(result.settings):
        trials = [trial for trial in result.trials if trial.setting == row.setting.name and trial.name in curves]
        lasting = [trial for trial in trials if trial.outcome.status != "diverged"] or trials
        by_step: dict[int, list[float]] = {}
        for trial in lasting:
            for step, value in points(curves[trial.name]):
                by_step.setdefault(step, []).append(value)
        steps = sorted(by_step)
        several = any(len(values) > 1 for values in by_step.values())
        out.append(
            Series(
                row.setting.label,
                steps,
                [float(np.mean(by_step[step])) for step in steps],
                [min(by_step[step]) for step in steps] if several else None,
                [max(by_step[step]) for step in steps] if several else None,
                f"var(--series-{number % _COLOURS})",
            )
        )
    return out
