"""The page of a study."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from retina import config as configuration
from retina.ablation.curves import over_seeds, read_curves
from retina.ablation.directory import Study
from retina.ablation.execute import duration
from retina.ablation.plan import Plan
from retina.ablation.presets import NAMES, PRESETS
from retina.ablation.results import SettingResult, StudyResult, collect, from_json
from retina.ablation.tables import cells, header, seed_range, title
from retina.config.reading import write_yaml
from retina.drawing import furniture
from retina.drawing.charts import Estimate, Forest, forest, lines
from retina.errors import RetinaError
from retina.files import write_text

_TEMPLATE = Path(__file__).with_name("study.html.jinja")
# The darkest shade of a heatmap: its figures stay legible on it, light and dark.
_DARKEST = 0.55


class Cell(NamedTuple):
    """A figure in a table: its text, and the value to sort by; None sorts it last, "" by its text."""

    text: str
    value: float | str | None = ""


class Shade(NamedTuple):
    """A cell of the heatmap; `share` is its opacity, `mark` the words below the figure."""

    text: str
    share: float
    setting: str
    mark: str


class Heatmap(NamedTuple):
    """Mean AP: `gammas` along the columns, and a row for each α (its name, its cells; None where not tried)."""

    gammas: list[str]
    rows: list[tuple[str, list[Shade | None]]]


def write(study_folder: Path, out: Path) -> Path:
    """Write the page of the study in a folder; return its path.

    The figures are those of its `study.json`; if it is missing, or trials have ended since, they are computed again.

    Raises:
        RetinaError: there is no study, none of its trials is finished, its `study.json` is damaged, or `out` can't be
            written.
    """
    study = Study.open(study_folder)
    return write_page(study, _result(study), out)


def write_page(study: Study, result: StudyResult, out: Path | None = None) -> Path:
    """Write the page of a study, by default as `study.html` into its folder; return its path.

    Raises:
        RetinaError: the page can't be written.
    """
    remedy = "make room there" if out is None else "choose another --out"
    out = study.path / "study.html" if out is None else out
    text = render(study, result)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, text)
    except OSError as error:
        raise RetinaError(f"{out}: cannot write the page: {error.strerror or error}; {remedy}") from None
    return out


def render(study: Study, result: StudyResult) -> str:
    """Return the page's text; every name and message in it is escaped."""
    curves = read_curves(study)
    name = title(result)
    return furniture.render(
        _TEMPLATE,
        title=name,
        folder=study.path.name,
        header=header(result),
        rows=[(_cells(result, row), row.significant) for row in result.settings],
        baseline=result.plan.setting(result.plan.baseline).label,
        tiles=list(_tiles(result)),
        conclusions=result.conclusions,
        notes=result.notes,
        differences=differences(result),
        heatmap=heatmap(result),
        plots=[
            plot
            for plot in (
                lines(
                    "Training loss (its scale depends on the setting)",
                    over_seeds(result, curves, lambda curve: curve.loss),
                    log_y=True,
                ),
                lines("Validation AP", over_seeds(result, curves, lambda curve: curve.ap)),
            )
            if plot.curves
        ],
        names=NAMES,
        trials=[
            {
                "name": trial.name,
                "status": trial.outcome.status,
                "figures": [
                    Cell(f"{trial.figures[name]:.4f}", trial.figures[name])
                    if name in trial.figures
                    else Cell("–", None)
                    for name in NAMES
                ],
                "time": Cell(duration(trial.outcome.seconds), trial.outcome.seconds)
                if trial.outcome.seconds
                else Cell("–", None),
                "error": trial.outcome.error,
            }
            for trial in result.trials
        ],
        config=configuration.to_yaml(result.plan.config),
        grid=_grid(result.plan),
        commands=_commands(study, result.plan),
    )


def differences(result: StudyResult) -> Forest | None:
    """Return AP of each setting minus the baseline's; None if nothing was compared."""
    rows = [(row, row.differences["AP"]) for row in result.settings if row.differences["AP"] is not None]
    return (
        forest(
            [
                Estimate(
                    row.setting.label,
                    difference.value,
                    difference.low,
                    difference.high,
                    row.significant,
                    (_p(row.p_holm),),
                )
                for row, difference in rows
                if difference is not None
            ]
        )
        if rows
        else None
    )


def heatmap(result: StudyResult) -> Heatmap | None:
    """Return mean AP of the settings that differ in γ and α alone; None for fewer than two of them.

    If two share a place (cross-entropy and focal loss with γ 0) the first is shown.
    """
    places: dict[tuple[float, float | None], SettingResult] = {}
    for row in result.settings:
        if row.in_plane and row.gamma is not None and row.figures["AP"].mean is not None:
            places.setdefault((row.gamma, row.alpha), row)
    if len(places) < 2:
        return None
    means = {place: row.figures["AP"].mean or 0.0 for place, row in places.items()}
    low, high = min(means.values()), max(means.values())

    def shade(place: tuple[float, float | None]) -> Shade | None:
        if place not in places:
            return None
        row, mean = places[place], means[place]
        marks = [
            *(["best"] if mean == high else []),
            *(["baseline"] if row.setting.name == result.plan.baseline else []),
        ]
        share = (mean - low) / (high - low) if high > low else 0.5
        return Shade(f"{mean:.3f}", round(_DARKEST * share, 3), row.setting.label, ", ".join(marks))

    gammas = sorted({gamma for gamma, _ in places})
    # No balancing (None) comes last.
    alphas = sorted({alpha for _, alpha in places}, key=lambda alpha: (alpha is None, alpha or 0.0))
    return Heatmap(
        [f"{gamma:g}" for gamma in gammas],
        [("none" if alpha is None else f"{alpha:g}", [shade((gamma, alpha)) for gamma in gammas]) for alpha in alphas],
    )


def _result(study: Study) -> StudyResult:
    file = study.path / "study.json"
    if not file.is_file():
        return collect(study)
    try:
        stored = from_json(study.plan, json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        again = f"retina ablate --report {shlex.quote(str(study.path))}"
        raise RetinaError(f"{file}: expected the results of this study; write them again with `{again}`") from None
    now = {trial.name: study.outcome(trial).status for trial in study.plan.trials}
    return stored if {trial.name: trial.outcome.status for trial in stored.trials} == now else collect(study)


def _tiles(result: StudyResult) -> Iterator[tuple[str, str]]:
    """Figures at the head of the page, and their meanings."""
    scored = [(mean, row) for row in result.settings if (mean := row.figures["AP"].mean) is not None]
    if scored:
        best, row = max(scored, key=lambda pair: pair[0])
        yield f"{best:.3f}", f"AP of the best setting, {row.setting.label}"
        difference = row.differences["AP"]
        if difference is not None:
            sure = "significant" if row.significant else "not significant"
            ends = f"{furniture.signed(difference.low)} to {furniture.signed(difference.high)}"
            yield furniture.signed(difference.value), f"against the baseline, {ends}; {sure}"
    yield f"{len(result.settings)}", f"settings, {seed_range(result.plan)} of each"
    finished = sum(trial.outcome.status == "finished" for trial in result.trials)
    yield f"{finished} of {len(result.trials)}", "trainings finished"
    if result.images:
        yield f"{result.images:,}", "validation images"
    seconds = sum(trial.outcome.seconds for trial in result.trials)
    if seconds:
        yield duration(seconds), "of training, in hours, minutes and seconds"


def _cells(result: StudyResult, row: SettingResult) -> list[Cell]:
    """Cells of a setting's row, with the numbers to sort by."""
    difference = row.differences["AP"]
    paper, base = row.setting.paper, result.plan.setting(result.plan.baseline).paper
    values: list[float | str | None] = ["", row.statuses.get("finished", 0)]
    values += [row.figures[name].mean for name in NAMES]
    values += [None] * 3 if difference is None else [difference.value, difference.low, difference.superiority]
    values.append(row.p_holm)
    is_compared = bool(paper and base) and row.setting.name != result.plan.baseline
    values += [paper.get("AP"), paper["AP"] - base["AP"] if is_compared else None]
    return [Cell(text, value) for text, value in zip(cells(result, row), values, strict=False)]


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _grid(plan: Plan) -> str:
    """Settings as a grid file, unless they are a preset."""
    if _is_preset(plan):
        return ""
    return write_yaml([{"name": setting.name, "overrides": setting.overrides} for setting in plan.settings])


def _commands(study: Study, plan: Plan) -> list[str]:
    given = ["--preset", plan.preset or ""] if _is_preset(plan) else ["--grid", "grid.yaml"]
    others = [f"{setting.name}={setting.seeds}" for setting in plan.settings if setting.seeds is not None]
    given += ["--seeds", ",".join([str(plan.seeds), *others]), "--baseline", plan.baseline]
    place = shlex.quote(str(study.path))
    trial = plan.trials[0].name
    return [
        f"retina ablate config.yaml {shlex.join(given)} --out NEW",
        f"retina ablate --report {place}",
        f"retina train {shlex.quote(str(study.path / 'trials' / f'{trial}.yaml'))} --run-dir NEW",
    ]


def _is_preset(plan: Plan) -> bool:
    settings = tuple(replace(setting, seeds=None) for setting in plan.settings)
    return plan.preset is not None and settings == PRESETS[plan.preset].settings
