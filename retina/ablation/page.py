"""The page of a study: one HTML file with everything in it, readable offline, on a telephone and in the dark."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING

from retina import config as configuration
from retina.ablation.execute import duration
from retina.ablation.presets import NAMES
from retina.ablation.tables import cells, header, title

if TYPE_CHECKING:
    from retina.ablation.results import StudyResult

_TEMPLATE = Path(__file__).with_name("page.html.jinja")


def render(result: StudyResult, plots: dict[str, Path]) -> str:
    """The page's text; every name and message in it is escaped.

    Args:
        plots: PNG files by title; they become part of the page.
    """
    from jinja2 import Environment, StrictUndefined

    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        title=title(result),
        header=header(result),
        rows=[(cells(result, row), row.significant) for row in result.settings],
        conclusions=result.conclusions,
        notes=result.notes,
        plots=[
            (name, "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode("ascii"))
            for name, file in plots.items()
        ],
        names=NAMES,
        trials=[
            {
                "name": trial.name,
                "status": trial.outcome.status,
                "figures": [f"{trial.figures[name]:.4f}" if name in trial.figures else "–" for name in NAMES],
                "time": duration(trial.outcome.seconds) if trial.outcome.seconds else "–",
                "error": trial.outcome.error,
            }
            for trial in result.trials
        ],
        config=configuration.to_yaml(result.plan.config),
    )
