"""The table of a study, for the terminal, the text file and the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from retina.ablation.presets import NAMES
from retina.ablation.results import SettingResult, StudyResult
from retina.ablation.statistics import Difference, Spread

if TYPE_CHECKING:
    from rich.table import Table


def table(result: StudyResult) -> Table:
    """One row a setting, with the paper's AP and its difference where a preset has them."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    columns = header(result)
    title = f"{len(result.settings)} settings, {result.plan.seeds} seeds"
    out = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in columns:
        out.add_column(name, justify="left" if name == columns[0] else "right")
    for row in result.settings:
        bold = "bold" if row.significant else None
        out.add_row(*(escape(cell) for cell in cells(result, row)), style=bold)
    return out


def header(result: StudyResult) -> list[str]:
    """The columns of `cells`."""
    own = ["setting", "seeds", *NAMES, "Δ AP", "95 % interval", "P(better)", "p (Holm)"]
    return [*own, "paper AP", "paper Δ"] if any(row.setting.paper for row in result.settings) else own


def cells(result: StudyResult, row: SettingResult) -> list[str]:
    """A setting's row of the table."""
    found = row.differences["AP"]
    is_baseline = row.setting.name == result.plan.baseline
    own = [
        row.setting.label,
        _counts(row, result.plan.seeds),
        _spread(row.figures["AP"]),
        *(_mean(row.figures[name]) for name in NAMES[1:]),
        *(["baseline", "", "", ""] if is_baseline else _cells(found, row.p_holm)),
    ]
    if len(header(result)) == len(own):
        return own
    base = next(other.setting.paper for other in result.settings if other.setting.name == result.plan.baseline)
    paper = row.setting.paper
    gain = f"{paper['AP'] - base['AP']:+.3f}" if paper and base and not is_baseline else ""
    return [*own, f"{paper['AP']:.3f}" if paper else "", gain]


def _counts(row: SettingResult, seeds: int) -> str:
    finished = row.statuses.get("finished", 0)
    return str(seeds) if finished == seeds else f"{finished} of {seeds}"


def _spread(figure: Spread) -> str:
    return _mean(figure) + (f" ± {figure.sd:.3f}" if figure.sd is not None else "")


def _mean(figure: Spread) -> str:
    return "–" if figure.mean is None else f"{figure.mean:.3f}"


def _cells(found: Difference | None, p_holm: float | None) -> list[str]:
    if found is None:
        return ["–", "", "", ""]
    p = "" if p_holm is None else "<0.001" if p_holm < 0.001 else f"{p_holm:.3f}"
    return [f"{found.value:+.3f}", f"{found.low:+.3f}…{found.high:+.3f}", f"{found.superiority:.2f}", p]
