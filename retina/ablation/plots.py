"""The plots of a study as PNG, PDF and SVG files, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from retina.ablation.curves import read_curves
from retina.ablation.directory import Study
from retina.ablation.results import SettingResult, StudyResult
from retina.drawing.plots import GREY, INK, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_PRINTED = ("pdf", "svg")  # beside PNG: lines stay sharp in a paper


def write_plots(study: Study, result: StudyResult) -> None:
    """Write those plots that have something to draw, for papers and slides; the page has separate plots.

    `differences.png` (from the baseline, with intervals), `heatmap.png` (mean AP over γ and α), `curves.png` (training
    loss and validation AP over the steps).
    """
    plots: list[tuple[str, Callable[[Figure], None] | None, tuple[float, float]]] = [
        (
            "differences.png",
            (lambda figure: _differences(figure, result)) if _compared(result) else None,
            (6.8, 1.4 + 0.36 * len(_compared(result))),
        ),
        (
            "heatmap.png",
            (lambda figure: _heatmap(figure, result)) if len(_pairs(result)) > 1 else None,
            (6.4, 4.2),
        ),
        ("curves.png", lambda figure: _curves(figure, study, result), (9.6, 4.2)),
    ]
    for name, paint, size in plots:
        if paint is None:
            for kind in (".png", *(f".{kind}" for kind in _PRINTED)):
                (study.path / name).with_suffix(kind).unlink(missing_ok=True)
            continue
        save(study.path / name, size, paint, *_PRINTED)


def colours(count: int) -> list[Any]:
    """Return `count` colours, dark to light in the order of the settings, readable on white."""
    from matplotlib import colormaps

    return [colormaps["viridis"](share) for share in np.linspace(0.0, 0.86, max(count, 1))]


def _compared(result: StudyResult) -> list[SettingResult]:
    return [row for row in result.settings if row.differences["AP"] is not None]


def _pairs(result: StudyResult) -> list[SettingResult]:
    """Settings that differ in γ and α alone, and have a figure."""
    return [
        row
        for row in result.settings
        if row.in_plane and row.gamma is not None and row.alpha is not None and row.figures["AP"].mean is not None
    ]


def _differences(figure: Figure, result: StudyResult) -> None:
    axes = figure.add_subplot()
    rows = _compared(result)
    for place, row in enumerate(rows):
        difference = row.differences["AP"]
        assert difference is not None, "only such rows are drawn"
        colour = INK if row.significant else GREY
        axes.plot([difference.low, difference.high], [place, place], color=colour, linewidth=2)
        axes.plot(difference.value, place, "o", color=colour, markersize=6)
    axes.axvline(0.0, color=INK, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(rows)), [row.setting.label for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    base = result.plan.setting(result.plan.baseline).label
    axes.set_xlabel(f"AP minus that of {base}\n95 % interval, dark: significant")


def _heatmap(figure: Figure, result: StudyResult) -> None:
    rows = _pairs(result)
    gammas = sorted({row.gamma for row in rows if row.gamma is not None})
    alphas = sorted({row.alpha for row in rows if row.alpha is not None})
    table = np.full((len(alphas), len(gammas)), np.nan)
    for row in rows:
        assert row.gamma is not None, "_pairs leaves such rows out"
        assert row.alpha is not None, "_pairs leaves such rows out"
        place = alphas.index(row.alpha), gammas.index(row.gamma)
        if np.isnan(table[place]):  # cross-entropy and focal loss with γ 0 share a place: the first is shown
            table[place] = row.figures["AP"].mean
    axes = figure.add_subplot()
    image = axes.imshow(table, cmap="viridis", aspect="auto", origin="lower")
    low, high = np.nanmin(table), np.nanmax(table)
    for (y, x), value in np.ndenumerate(table):
        if not np.isnan(value):
            light = value - low > 0.6 * (high - low)
            axes.text(x, y, f"{value:.3f}", ha="center", va="center", color="black" if light else "white", fontsize=9)
    axes.set_xticks(range(len(gammas)), [f"{gamma:g}" for gamma in gammas])
    axes.set_yticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
    axes.set(xlabel="γ", ylabel="α")
    figure.colorbar(image, ax=axes, label="AP, mean over seeds")


def _curves(figure: Figure, study: Study, result: StudyResult) -> None:
    losses, scores = figure.subplots(1, 2)
    curves = read_curves(study)
    for row, colour in zip(result.settings, colours(len(result.settings)), strict=True):
        trials = [trial for trial in result.trials if trial.setting == row.setting.name]
        lines = [curves[trial.name] for trial in trials if trial.name in curves]
        for place, axes in enumerate((losses, scores)):
            label: str | None = row.setting.label
            for line in lines:
                points = line[place]
                if points:
                    steps, values = zip(*points, strict=True)
                    marker = "o" if len(points) < 8 else None
                    axes.plot(steps, values, color=colour, linewidth=1.2, markersize=3, marker=marker, label=label)
                    label = None  # an entry for each setting, not for each seed
    losses.set(title="Training loss (its scale depends on the setting)", xlabel="step", yscale="log")
    scores.set(title="Validation AP", xlabel="step", ylim=(0, None))
    handles, labels = losses.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
