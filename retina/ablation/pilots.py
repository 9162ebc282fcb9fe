"""Pilots of a study: short trainings that choose a value for each setting, such as its learning rate.

A comparison of two losses at one learning rate compares how well that rate suits them. With pilots each setting is
compared at its own best values. They are a study of their own in `STUDY/pilots`: every setting with every value, the
study's first seed, a share of its length; the last evaluation's AP decides.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from retina.ablation.directory import Study
from retina.ablation.plan import Plan, check, compact, setting_name
from retina.ablation.presets import Setting, focal
from retina.config import Config
from retina.config.reading import parse_value
from retina.errors import RetinaError

SHARE = 0.25
_ALPHA = "loss.classification.alpha"

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Search:
    """Values to choose from: `keys` maps dotted keys to two or more values, `share` is a pilot's part of the length."""

    keys: Mapping[str, tuple[Any, ...]]
    share: float = SHARE

    @property
    def combinations(self) -> list[dict[str, Any]]:
        """The product of the keys' values."""
        return [dict(zip(self.keys, values, strict=True)) for values in itertools.product(*self.keys.values())]


def read_search(texts: Sequence[str], share: float = SHARE) -> Search:
    """Return the search of `KEY=VALUE,VALUE…` texts.

    Raises:
        RetinaError: a text has another form, a key stands twice, or the share is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise RetinaError(f"--pilot: expected a share of the training's length above 0 and up to 1, got {share:g}")
    keys: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        key, _, values = text.partition("=")
        tried = parse_value(f"[{values}]", f"--tune {text}")
        if not key or not isinstance(tried, list) or len(tried) < 2:
            raise RetinaError(
                f"--tune {text}: expected a key and two or more values, as in "
                "optimizer.learning_rate=0.0005,0.001,0.002"
            )
        if key in keys:
            raise RetinaError(f"--tune: '{key}' is given twice; give all its values at once")
        keys[key] = tuple(tried)
    return Search(keys, share)


def pilot_plan(plan: Plan, search: Search) -> Plan:
    """Return the plan of the pilots.

    Raises:
        RetinaError: a value is not valid, changes nothing, or makes two settings the same; the message names it.
    """
    pilots = []
    for setting in plan.settings:
        shorter = _shortened(plan.setting_config(setting), search.share)
        for values in search.combinations:
            name = setting_name(setting.name, values)
            pilots.append(Setting(name, _label(setting, values), {**setting.overrides, **values, **shorter}, {}))
    pilot = Plan(plan.config, tuple(pilots), 1, pilots[0].name)
    check(pilot)
    return pilot


def tuned_plan(plan: Plan, search: Search, pilots: Study) -> Plan:
    """Return the plan with the values that the pilots chose for each setting, and sentences on the choice.

    Raises:
        RetinaError: a pilot failed, which may succeed at the next call, or all pilots of a setting diverged.
    """
    failed = [
        trial.name for trial in pilots.plan.trials if pilots.outcome(trial).status not in ("finished", "diverged")
    ]
    if failed:
        raise RetinaError(
            f"{pilots.path}: the pilot {failed[0]} failed, and without it nothing is chosen; see "
            f"trials/{failed[0]}.log there, and repeat the command, or choose other values and another --out"
        )
    settings, sentences = {}, []
    for setting in plan.settings:
        figures = [(_figure(pilots, setting, values), values) for values in search.combinations]
        known = [(figure, values) for figure, values in figures if figure is not None]
        if not known:
            raise RetinaError(
                f"{pilots.path}: no pilot of '{setting.name}' has a figure, all diverged; try other values"
            )
        best, values = max(known, key=lambda pair: pair[0])
        settings[setting.name] = _with_values(setting, values)
        sentences.append(_sentence(setting, values, best, figures, search))
    keys = " and ".join(search.keys)
    intro = f"Pilots of {search.share:.3g} of the length and a single seed chose {keys} on the same validation images."
    tuned = replace(
        plan, settings=tuple(settings.values()), baseline=settings[plan.baseline].name, tuning=(intro, *sentences)
    )
    check(tuned)
    return tuned


def _shortened(config: Config, share: float) -> dict[str, Any]:
    """Overrides that train for a share of the steps or epochs, and evaluate at the end."""
    schedule = config.schedule
    overrides: dict[str, Any] = {}
    for key in ("steps", "warmup_steps"):
        if value := getattr(schedule, key):
            overrides[f"schedule.{key}"] = max(1, round(value * share))
    if schedule.epochs is not None:
        overrides["schedule.epochs"] = schedule.epochs * share
    if milestones := getattr(schedule, "milestones", ()):
        # A milestone at the last step has no effect, and is refused.
        places = {max(1, round(step * share)) for step in milestones}
        overrides["schedule.milestones"] = sorted(places - {overrides.get("schedule.steps")})
    if "schedule.steps" in overrides:
        overrides["run.evaluate_every"] = overrides["schedule.steps"]
    return overrides


def _figure(pilots: Study, setting: Setting, values: Values) -> float | None:
    name = setting_name(setting.name, values)
    return next((pilots.figure(trial) for trial in pilots.plan.trials if trial.setting == name), None)


def _with_values(setting: Setting, values: Values) -> Setting:
    """The setting with chosen values; one that is named after γ and α is named after the chosen α."""
    loss = setting.overrides.get("loss.classification", {})
    if _ALPHA not in values or loss.get("kind") != "focal":
        return replace(setting, label=_label(setting, values), overrides={**setting.overrides, **values})
    renamed = focal(loss["gamma"], values[_ALPHA], setting.paper if values[_ALPHA] == loss["alpha"] else {})
    rest = {key: value for key, value in values.items() if key != _ALPHA}
    overrides = {**setting.overrides, **renamed.overrides, **rest}
    return replace(renamed, label=_label(renamed, rest), overrides=overrides, seeds=setting.seeds)


def _label(setting: Setting, values: Values) -> str:
    return ", ".join([setting.label, *(f"{key.rpartition('.')[2]} {compact(value)}" for key, value in values.items())])


def _sentence(
    setting: Setting,
    values: Values,
    best: float,
    figures: Sequence[tuple[float | None, Values]],
    search: Search,
) -> str:
    """Sentence on the values chosen for a setting, and on those that were tried."""
    others = [
        f"{_words(tried)} {'no figure' if figure is None else format(figure, '.3f')}"
        for figure, tried in figures
        if tried != values
    ]
    edges = [
        key
        for key, tried in search.keys.items()
        if all(isinstance(value, (int, float)) for value in tried) and values[key] in (min(tried), max(tried))
    ]
    edge = f" At the end of the range tried of {' and '.join(edges)}: a wider one may hold better." if edges else ""
    return f"{setting.label}: {_words(values)}, AP {best:.3f} ({'; '.join(others)}).{edge}"


def _words(values: Values) -> str:
    return ", ".join(compact(value) for value in values.values())
