"""The files of a study but for its page: tables of trials and settings, for programs and for a paper, and plots."""

from __future__ import annotations

import csv
import io
import json

from retina.ablation import plots
from retina.ablation.directory import Study
from retina.ablation.paper import table_markdown, table_tex
from retina.ablation.presets import NAMES
from retina.ablation.results import StudyResult, to_json
from retina.ablation.tables import table
from retina.errors import RetinaError
from retina.files import write_text

_WIDTH = 118


def write_outputs(study: Study, result: StudyResult) -> None:
    """Write these files into the study's folder, each whole or not at all; earlier ones are replaced.

    Raises:
        RetinaError: the folder can't be written.
    """
    try:
        write_text(study.path / "study.csv", csv_text(result))
        write_text(study.path / "study.json", json.dumps(to_json(result), indent=2, ensure_ascii=False) + "\n")
        write_text(study.path / "study.txt", plain_text(result))
        write_text(study.path / "settings.csv", settings_csv_text(result))
        write_text(study.path / "table.tex", table_tex(result))
        write_text(study.path / "table.md", table_markdown(result))
        plots.write_plots(study, result)
    except OSError as error:
        raise RetinaError(
            f"{study.path}: cannot write the results: {error.strerror or error}; make room there"
        ) from None


def csv_text(result: StudyResult) -> str:
    """Return a row for each trial, in the order of the plan, with what the configuration alone determines: no times."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["trial", "setting", "seed", "gamma", "alpha", "status", *NAMES])
    settings = {row.setting.name: row for row in result.settings}
    for trial in result.trials:
        row = settings[trial.setting]
        figures = [repr(trial.figures[name]) if name in trial.figures else "" for name in NAMES]
        numbers = ["" if value is None else repr(value) for value in (row.gamma, row.alpha)]
        writer.writerow([trial.name, trial.setting, trial.seed, *numbers, trial.outcome.status, *figures])
    return out.getvalue()


def settings_csv_text(result: StudyResult) -> str:
    """Return a row for each setting: means and deviations over its seeds, and its difference from the baseline."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    figures = [f"{name}{part}" for name in NAMES for part in ("", "_sd")]
    writer.writerow(
        ["setting", "label", "gamma", "alpha", "seeds", *figures, "difference", "low", "high", "p_holm", "significant"]
    )
    for row in result.settings:
        values = [value for name in NAMES for value in (row.figures[name].mean, row.figures[name].sd)]
        change = row.differences["AP"]
        ends = [None] * 3 if change is None else [change.value, change.low, change.high]
        numbers = [row.gamma, row.alpha, row.figures["AP"].count, *values, *ends, row.p_holm]
        texts = ["" if value is None else repr(value) for value in numbers]
        writer.writerow([row.setting.name, row.setting.label, *texts, str(row.significant).lower()])
    return out.getvalue()


def plain_text(result: StudyResult) -> str:
    """Return the table and the sentences, without colours."""
    from rich.console import Console

    out = io.StringIO()
    console = Console(file=out, width=_WIDTH, highlight=False, color_system=None)
    console.print(table(result, _WIDTH))
    for line in (*result.conclusions, "", *result.notes):
        console.print(line, markup=False)
    return out.getvalue()
