"""The files of a study but for its page: `study.csv`, `study.json`, `study.txt` and plots."""

from __future__ import annotations

import csv
import io
import json

from retina.ablation import plots
from retina.ablation.directory import Study
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


def plain_text(result: StudyResult) -> str:
    """Return the table and the sentences, without colours."""
    from rich.console import Console

    out = io.StringIO()
    console = Console(file=out, width=_WIDTH, highlight=False, color_system=None)
    console.print(table(result, _WIDTH))
    for line in (*result.conclusions, "", *result.notes):
        console.print(line, markup=False)
    return out.getvalue()
