"""Tables of a study for a paper, in LaTeX and Markdown, with a paragraph on the methods."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from retina.ablation.plan import varied
from retina.ablation.presets import NAMES
from retina.ablation.results import SettingResult, StudyResult
from retina.ablation.statistics import LEVEL, Spread
from retina.ablation.tables import seed_range
from retina.config import Config

# What LaTeX reads otherwise; Greek letters stand in the labels of settings.
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "δ": r"$\delta$",
    "Δ": r"$\Delta$", "π": r"$\pi$", "±": r"$\pm$", "·": r"$\cdot$", "×": r"$\times$", "–": "--", "…": r"\ldots{}",
}  # fmt: skip


class Cell(NamedTuple):
    """A cell in plain text; `best`: of its column; `marked`: a significant difference."""

    text: str
    best: bool = False
    marked: bool = False


def table_tex(result: StudyResult) -> str:
    """Return a table of the package booktabs, with the methods as its caption."""
    columns, rows = _columns(), _rows(result)
    return "\n".join(
        (
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escaped(methods(result))}}}",
            rf"\begin{{tabular}}{{l{'c' * (len(columns) - 1)}}}",
            r"\toprule",
            " & ".join(map(escaped, columns)) + r" \\",
            r"\midrule",
            *(" & ".join(map(_tex, row)) + r" \\" for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        )
    )


def table_markdown(result: StudyResult) -> str:
    """Return the same table in Markdown, with the methods below it."""
    columns = _columns()
    head = [_piped(columns), "|".join(["", "---", *["---:"] * (len(columns) - 1), ""])]
    rows = [_piped(map(_markdown, row)) for row in _rows(result)]
    return "\n".join((*head, *rows, "", methods(result), ""))


def escaped(text: str) -> str:
    """Return text as LaTeX reads it."""
    return "".join(_LATEX.get(character, character) for character in text)


def methods(result: StudyResult) -> str:
    """Return a paragraph on how the figures were made, with the study's numbers."""
    plan = result.plan
    config, seeds = plan.config, plan.most_seeds
    sentences = [
        f"{config.model.backbone} with a feature pyramid P{config.model.fpn.min_level} to "
        f"P{config.model.fpn.max_level}, trained for {_length(config)} of {config.run.batch_size} images "
        f"with {config.optimizer.kind}, but for what the settings change.",
        f"Mean{' ± sample standard deviation' if seeds > 1 else ''} over {seed_range(plan)} of COCO's figures on "
        f"{result.images} validation images, after the last step; the best of a column is bold.",
    ]
    if len(result.settings) > 1:
        test = "" if seeds == 1 else " and Student's paired t-test over the seeds, whichever is larger"
        marks = (
            "A single seed cannot show a significant difference."
            if seeds == 1
            else f"*: p < {1 - LEVEL:.2g} after Holm's adjustment for {len(result.settings) - 1} comparisons, p by the "
            f"bootstrap{test}."
        )
        sentences += [
            f"Δ AP is the difference from {plan.setting(plan.baseline).label}, paired over seeds, which share "
            f"{_shared(result)}; its {100 * LEVEL:g} % interval is from {result.replicates} bootstrap "
            "replicates of seeds and images, not adjusted.",
            marks,
        ]
    missing = len(result.trials) - sum(bool(trial.figures) for trial in result.trials)
    if missing:
        sentences.append(f"{missing} of {len(result.trials)} trainings have no figures: diverged, failed or pending.")
    return " ".join(sentences)


def _length(config: Config) -> str:
    """Return the length of a training in words."""
    schedule = config.schedule
    return f"{schedule.epochs:g} epochs in steps" if schedule.steps is None else f"{schedule.steps} steps"


def _columns() -> list[str]:
    return ["setting", *NAMES, "Δ AP", f"{100 * LEVEL:g} % interval"]


def _rows(result: StudyResult) -> list[list[Cell]]:
    means = {name: [row.figures[name].mean for row in result.settings] for name in NAMES}
    best = {name: max((value for value in values if value is not None), default=0.0) for name, values in means.items()}
    return [
        [
            Cell(row.setting.label),
            *(Cell(_spread(row.figures[name]), row.figures[name].mean == best[name]) for name in NAMES),
            *_difference(result, row),
        ]
        for row in result.settings
    ]


def _difference(result: StudyResult, row: SettingResult) -> list[Cell]:
    if row.setting.name == result.plan.baseline:
        return [Cell("baseline"), Cell("")]
    difference = row.differences["AP"]
    if difference is None:
        return [Cell("–"), Cell("")]
    interval = f"{_signed(difference.low)} to {_signed(difference.high)}"
    return [Cell(_signed(difference.value), marked=row.significant), Cell(interval)]


def _spread(figure: Spread) -> str:
    if figure.mean is None:
        return "–"
    return f"{figure.mean:.3f}" if figure.sd is None else f"{figure.mean:.3f} ± {figure.sd:.3f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def _tex(cell: Cell) -> str:
    text = escaped(cell.text)
    if cell.text[:1] in ("+", "-"):  # a hyphen is no minus
        text = " to ".join(f"${part}$" for part in text.split(" to "))
    return (rf"\textbf{{{text}}}" if cell.best else text) + ("$^{*}$" if cell.marked else "")


def _markdown(cell: Cell) -> str:
    text = cell.text.replace("|", r"\|")
    return (f"**{text}**" if cell.best else text) + (r"\*" if cell.marked else "")


def _piped(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _shared(result: StudyResult) -> str:
    """Return what trials of a seed have in common, by the keys in which the settings differ."""
    keys = varied(result.plan)
    same = {
        "first weights": not any(key.startswith("model") for key in keys),
        "order of the images": not any(key.startswith(("data", "run.batch_size")) for key in keys),
    }
    return " and ".join(name for name, holds in same.items() if holds) or "their random numbers"
