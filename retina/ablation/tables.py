"""The table of a study, for the terminal, the text file and the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from retina.ablation.plan import Plan, varied
from retina.ablation.presets import NAMES
from retina.ablation.results import SettingResult, StudyResult
from retina.ablation.statistics import Difference, Spread
from retina.output import count

if TYPE_CHECKING:
    from rich.table import Table

_KEYS = {
    "loss.classification.gamma": "γ",
    "loss.classification.alpha": "α",
    "loss.classification": "the classification loss",
}


# Columns that a narrow table leaves out, in this order.
_DISPENSABLE = (NAMES[1:], ("paper AP", "paper Δ"), ("P(better)",), ("seeds",), ("p (Holm)",))
_LABEL_WIDTH = 16  # longer labels are folded where room is short


def table(result: StudyResult, width: int) -> Table:
    """Return a table with a row for each setting, with the paper's AP and its difference where a preset has them.

    Args:
        width: characters of a line. If they don't suffice, columns are left out, and the caption names them.
    """
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    columns = header(result)
    rows = [cells(result, row) for row in result.settings]
    shown = _fitting(columns, rows, width)
    left_out = ", ".join(name for place, name in enumerate(columns) if place not in shown)
    out = Table(
        title=title(result),
        title_justify="left",
        caption=f"Too narrow for {left_out}: see study.html" if left_out else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for place in shown:
        if place == 0:
            out.add_column(
                columns[place], overflow="fold", min_width=min(_LABEL_WIDTH, max(len(row[0]) for row in rows))
            )
        else:
            out.add_column(columns[place], justify="right", no_wrap=True)
    for result_row, row in zip(result.settings, rows, strict=True):
        bold = "bold" if result_row.significant else None
        out.add_row(*(escape(row[place]) for place in shown), style=bold)
    return out


def title(result: StudyResult) -> str:
    """Return the title: the keys that vary, and the numbers of settings and seeds."""
    keys = [_KEYS.get(key, key.removeprefix("loss.")) for key in varied(result.plan)] or ["nothing"]
    more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
    return f"Study of {', '.join(keys[:4])}{more}: {count(len(result.settings), 'setting')}, {seed_range(result.plan)}"


def seed_range(plan: Plan) -> str:
    """Return the number of seeds in words: `3 seeds`, or `3 to 5 seeds` where settings differ."""
    counts = sorted(map(plan.seeds_of, plan.settings))
    return f"{counts[0]}{f' to {counts[-1]}' if counts[-1] > counts[0] else ''} seed{'s' if counts[-1] > 1 else ''}"


def total_length(plan: Plan) -> str:
    """Return the length of all trainings together in words; empty where a schedule counts in epochs."""
    schedules = [plan.trial_config(trial).schedule for trial in plan.trials]
    if any(schedule.steps is None for schedule in schedules):
        return ""
    return f", {sum(schedule.length for schedule in schedules):,} training steps in all,"


def _fitting(columns: list[str], rows: list[list[str]], width: int) -> list[int]:
    """Indices of the columns that fit into this many characters."""
    widths = [max(len(text) for text in column) for column in zip(columns, *rows, strict=True)]
    widths[0] = min(widths[0], _LABEL_WIDTH)
    shown = list(range(len(columns)))
    for names in _DISPENSABLE:
        if sum(widths[place] + 2 for place in shown) + 1 <= width:
            break
        shown = [place for place in shown if columns[place] not in names]
    return shown


def header(result: StudyResult) -> list[str]:
    """Return the names of the columns of `cells`."""
    columns = ["setting", "seeds", *NAMES, "Δ AP", "95 % interval", "P(better)", "p (Holm)"]
    return [*columns, "paper AP", "paper Δ"] if any(row.setting.paper for row in result.settings) else columns


def cells(result: StudyResult, row: SettingResult) -> list[str]:
    """Return a setting's row of the table."""
    difference = row.differences["AP"]
    is_baseline = row.setting.name == result.plan.baseline
    texts = [
        row.setting.label,
        _counts(row, result.plan.seeds_of(row.setting)),
        _spread(row.figures["AP"]),
        *(_mean(row.figures[name]) for name in NAMES[1:]),
        *(["baseline", "", "", ""] if is_baseline else _cells(difference, row.p_holm)),
    ]
    if len(header(result)) == len(texts):
        return texts
    base = next(other.setting.paper for other in result.settings if other.setting.name == result.plan.baseline)
    paper = row.setting.paper
    gain = f"{paper['AP'] - base['AP']:+.3f}" if paper and base and not is_baseline else ""
    return [*texts, f"{paper['AP']:.3f}" if paper else "", gain]


def _counts(row: SettingResult, seeds: int) -> str:
    finished = row.statuses.get("finished", 0)
    return str(seeds) if finished == seeds else f"{finished} of {seeds}"


def _spread(figure: Spread) -> str:
    return _mean(figure) + (f" ± {figure.sd:.3f}" if figure.sd is not None else "")


def _mean(figure: Spread) -> str:
    return "–" if figure.mean is None else f"{figure.mean:.3f}"


def _cells(difference: Difference | None, p_holm: float | None) -> list[str]:
    if difference is None:
        return ["–", "", "", ""]
    p = "" if p_holm is None else "<0.001" if p_holm < 0.001 else f"{p_holm:.3f}"
    return [
        f"{difference.value:+.3f}",
        f"{difference.low:+.3f}…{difference.high:+.3f}",
        f"{difference.superiority:.2f}",
        p,
    ]
