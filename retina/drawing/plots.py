"""Plots as PNG files, drawn with matplotlib, for papers, slides and folders that are looked at without a page."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retina.evaluation.assessment import Assessment
from retina.evaluation.curves import confidence_curve, precision_recall
from retina.evaluation.matching import RECALLS, Matches, interpolated_precision
from retina.files import written
from retina.palette import Colour, class_colour, class_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GREY = "#1f2933", "#8a8f98"
# More curves than this can't be distinguished; then they are thin and grey, and only their mean is named.
_NAMED_CURVES = 7
_NAMED_CELLS = 25
# Cells of a class name; of a longer one the middle is left out, because endings differ where beginnings don't.
_LABEL = 24


_UNDATED: dict[str, dict[str, None]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}


def save(path: Path, size: tuple[float, float], paint: Callable[[Figure], None], *others: str) -> None:
    """Paint a figure of this size in inches and write it as a whole: as PNG, and with `others` as "pdf" or "svg"."""
    # The object interface: pyplot would keep the figures and choose a window system.
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # Names are the user's: characters that the font lacks are drawn as boxes, which needs no warning.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        warnings.filterwarnings("ignore", message="constrained_layout not applied", category=UserWarning)
        paint(figure)
        for axes in figure.axes:
            axes.spines[["top", "right"]].set_visible(False)
        for kind in ("png", *others):
            # Without dates and random ids the same results give the same files.
            with written(path.with_suffix(f".{kind}")) as temporary, rc_context({"svg.hashsalt": path.stem}):
                figure.savefig(temporary, format=kind, metadata=_UNDATED.get(kind))


def write_plots(folder: Path, assessment: Assessment) -> None:
    """Write `precision_recall.png`, `confidence.png`, `calibration.png`, `errors.png` and `confusion.png`, each of
    which says in words if there is nothing to draw."""
    names = tuple(assessment.metrics.per_class)
    side = min(1.2 + 0.32 * len(assessment.confusion.names), 14.0)
    plots: dict[str, tuple[tuple[float, float], Callable[[Figure], None]]] = {
        "precision_recall": (
            (6.4, 5.0),
            lambda figure: _precision_recall(figure.add_subplot(), assessment.matches, names),
        ),
        "confidence": ((6.4, 4.6), lambda figure: _confidence(figure.add_subplot(), assessment)),
        "calibration": ((5.2, 5.0), lambda figure: _calibration(figure.add_subplot(), assessment)),
        "errors": ((6.4, 3.6), lambda figure: _errors(figure.add_subplot(), assessment)),
        "confusion": (
            (max(side, 4.8) + 0.8, max(side, 4.4)),
            lambda figure: _confusion(figure.add_subplot(), assessment),
        ),
    }
    for name, (size, paint) in plots.items():
        save(folder / f"{name}.png", size, paint)


def _precision_recall(axes: Axes, matches: Matches, names: tuple[str, ...]) -> None:
    axes.set(title="Precision and recall, IoU 0.5", xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    classes = np.flatnonzero(matches.positives)
    if not len(classes):
        return _nothing(axes, "no ground truth, so no recall")
    few = len(classes) <= _NAMED_CURVES
    labels, colours = [], class_colours(names)
    for k in classes:
        curve = precision_recall(matches, int(k), iou=0.5)
        assert curve is not None
        if not len(curve.recall):
            continue
        if few:
            labels.append(_label(names[k]))
        # The legend would leave out a name that begins with an underscore: it gets the names below.
        style = {"color": _shares(colours[k]), "label": f"class {k}"} if few else {"color": GREY, "alpha": 0.25}
        axes.plot(curve.recall, curve.precision, linewidth=1.6 if few else 0.8, **style)
    if len(classes) > 1:
        labels.append("mean, interpolated")
        axes.plot(RECALLS, _mean_envelope(matches), color=INK, linewidth=2.2, label=labels[-1])
    if labels:
        legend = axes.legend(frameon=False, loc="lower left", fontsize="small")
        for text, label in zip(legend.get_texts(), labels, strict=True):
            text.set(text=label, parse_math=False)
    return None


def _mean_envelope(matches: Matches) -> np.ndarray:
    curves = []
    for k in np.flatnonzero(matches.positives):
        places = slice(matches.offsets[k], matches.offsets[k + 1])
        curves.append(
            interpolated_precision(matches.right[0, places], matches.wrong[0, places], int(matches.positives[k]))
        )
    return np.mean(curves, axis=0)


def _confidence(axes: Axes, assessment: Assessment) -> None:
    axes.set(title="All classes by score threshold, IoU 0.5", xlabel="keep detections with at least this score")
    curve = confidence_curve(assessment.matches, iou=0.5)
    if curve is None or not len(curve.thresholds):
        return _nothing(axes, "no ground truth" if curve is None else "no detections")
    axes.set(xlim=(min(0.0, curve.thresholds[-1]), max(1.0, curve.thresholds[0])), ylim=(0, 1.02))
    for k, (name, values) in enumerate(
        (("precision", curve.precision), ("recall", curve.recall), ("F1", curve.f1)), start=1
    ):
        # The value holds for every threshold down to the next lower score.
        axes.step(curve.thresholds, values, where="post", color=_colour(k), label=name, linewidth=1.8)
    best = assessment.operating.overall
    if best.threshold is not None and best.f1 is not None:
        axes.axvline(best.threshold, color=GREY, linewidth=1, linestyle=":")
        axes.annotate(
            f"best F1 {best.f1:.3f} at {best.threshold:.3f}", (best.threshold, 0.02), xytext=(6, 0),
            textcoords="offset points", fontsize="small", color=INK,
        )  # fmt: skip
    axes.legend(frameon=False, fontsize="small")
    return None


def _calibration(axes: Axes, assessment: Assessment) -> None:
    axes.set(title="Calibration, IoU 0.5", xlabel="score", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1.02))
    diagram = assessment.calibration
    if diagram is None or diagram.expected_error is None:
        return _nothing(axes, "scores are no probabilities" if diagram is None else "no detections")
    filled = diagram.count > 0
    width = diagram.edges[1] - diagram.edges[0]
    left = diagram.edges[:-1][filled]
    axes.bar(left, diagram.precision[filled], width, align="edge", color=_colour(1), edgecolor="white", alpha=0.85)
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle="--", label="right as often as the score says")
    axes.plot(diagram.score[filled], diagram.precision[filled], "o", color=_colour(3), label="mean score of the bin")
    for place, height, count in zip(left, diagram.precision[filled], diagram.count[filled], strict=True):
        axes.annotate(
            f"{count:,}", (place + width / 2, height), xytext=(0, 3), textcoords="offset points", ha="center",
            fontsize="x-small", color=INK,
        )  # fmt: skip
    axes.set_title(f"Calibration, IoU 0.5: off by {diagram.expected_error:.3f} on average")
    axes.legend(frameon=False, loc="upper left", fontsize="small")
    return None


def _errors(axes: Axes, assessment: Assessment) -> None:
    axes.set(title="What keeps AP50 down (TIDE)", xlabel="AP50 that fixing this kind alone would add")
    costs = {kind: cost for kind, cost in assessment.errors.delta_ap.items() if cost is not None}
    if not costs:
        return _nothing(axes, "no ground truth")
    kinds = list(costs)[::-1]
    bars = axes.barh(kinds, [costs[kind] for kind in kinds], color=_colour(6))
    axes.bar_label(
        bars, [f"{costs[kind]:.3f}  ({assessment.errors.counts[kind]:,})" for kind in kinds], padding=4,
        fontsize="small", color=INK,
    )  # fmt: skip
    axes.set_xlim(0, max(max(costs.values()) * 1.3, 0.01))
    return None


def _confusion(axes: Axes, assessment: Assessment) -> None:
    confusion = assessment.confusion
    shares, count = confusion.shares, len(confusion.names)
    # On a white ground an empty row stays white: there is nothing to share out.
    axes.imshow(np.nan_to_num(shares), cmap="Blues", vmin=0, vmax=1)
    axes.set(
        title=f"Confusion at score {confusion.score_threshold:.3f}, IoU {confusion.iou:g}",
        xlabel="called", ylabel="is", xticks=range(count), yticks=range(count),
    )  # fmt: skip
    labels = [_label(name) for name in confusion.names]
    size = "small" if count <= _NAMED_CELLS else 4
    axes.set_xticklabels(labels, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticklabels(labels, fontsize=size, parse_math=False)
    axes.spines[:].set_visible(False)
    if count > _NAMED_CELLS:
        return
    for row, column in np.argwhere(confusion.matrix > 0):
        axes.text(
            column, row, f"{confusion.matrix[row, column]:,}", ha="center", va="center", fontsize="x-small",
            color="white" if shares[row, column] > 0.6 else INK,
        )  # fmt: skip


def _nothing(axes: Axes, why: str) -> None:
    axes.text(0.5, 0.5, f"nothing to draw: {why}", ha="center", va="center", transform=axes.transAxes, color=INK)


def _colour(index: int) -> tuple[float, float, float]:
    return _shares(class_colour(index))


def _shares(colour: Colour) -> tuple[float, float, float]:
    red, green, blue = colour
    return red / 255, green / 255, blue / 255


def _label(name: str) -> str:
    """A class name on one line, short enough for a legend."""
    name = " ".join(name.split())
    if len(name) <= _LABEL:
        return name
    return f"{name[: _LABEL - 9].rstrip()}…{name[-8:].lstrip()}"
