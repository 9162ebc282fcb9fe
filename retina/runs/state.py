"""State of the training loop beside weights and optimizer, which a checkpoint holds; pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from retina import config


@dataclass(frozen=True)
class Progress:
    """Progress of a run.

    Attributes:
        best, best_step: the best figure on the validation data so far, and its step.
        reference, stale: the figure that early stopping compares with, and the number of evaluations in a row that did
            not exceed it.
        finished: the run has ended early.
        unevaluated: a signal kept the run from the evaluation that is due after this step.
        pending: by name, the scalars of each step since the last line of `metrics.jsonl`.
    """

    best: float | None = None
    best_step: int | None = None
    reference: float | None = None
    stale: int = 0
    finished: bool = False
    unevaluated: bool = False
    pending: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Progress:
        """Return the progress that `to_dict` wrote; names that a later version wrote are ignored."""
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def after_evaluation(
    progress: Progress, step: int, figures: Mapping[str, float], metric: str, early: config.EarlyStopping | None
) -> Progress:
    """Return the progress after the evaluation of `step` with `figures`, by name.

    The first evaluation is the best so far whatever its figure; an equal figure is not better than an earlier one.
    """
    progress, value = replace(progress, unevaluated=False), figures[metric]
    if progress.best is None or value > progress.best:
        progress = replace(progress, best=value, best_step=step)
    if early is None:
        return progress
    watched = figures[early.metric or metric]
    if progress.reference is None or watched > progress.reference + early.min_delta:
        return replace(progress, reference=watched, stale=0)
    return replace(progress, stale=progress.stale + 1)


def stops_early(progress: Progress, early: config.EarlyStopping | None) -> bool:
    """Tell whether `run.early_stopping` ends the run."""
    return early is not None and progress.stale >= early.patience


def is_due(step: int, every: int | None) -> bool:
    """Tell whether an action that is due every so many steps (None: never) is due after this step."""
    return every is not None and step % every == 0
