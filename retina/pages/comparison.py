"""The page of several runs side by side: the same figures, the same images, and the settings that differ."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from retina.config.differences import flat
from retina.data.ground_truth import GroundTruth
from retina.drawing import furniture
from retina.drawing.charts import Chart, Estimate, Forest, Series, forest, lines
from retina.errors import RetinaError
from retina.evaluation.comparison import Comparison, Difference, check_same_truth, compare, verdict
from retina.evaluation.matching import RECALLS, Matches, precision
from retina.evaluation.mistakes import worst_images
from retina.files import write_text
from retina.pages.config_changes import one_line
from retina.pages.gallery import MOST_IMAGES, SCRIPT, Run, evaluated, gallery_data, mixture
from retina.pages.run_judgement import Evidence, Judgement, judge_run, picture_names
from retina.runs.record import Record, read_record

_TEMPLATE = Path(__file__).with_name("comparison.html.jinja")
# Bytes of all thumbnails: with the boxes of all runs the page stays below 10 MB.
_PICTURES = 6_000_000
_COLOURS = 7
_UNIT = (0.0, 1.0)
_CURVES = {
    "loss": "training loss",
    "loss_classification": "classification loss",
    "loss_box": "box loss",
    "learning_rate": "learning rate",
}


class Judged(NamedTuple):
    """A run, its judgement, and its name on the page."""

    name: str
    record: Record
    judgement: Judgement
    evidence: Evidence

    @property
    def matches(self) -> Matches:
        return self.evidence.assessment.matches


class Against(NamedTuple):
    """A run compared with the first: a sentence, the means, and AP of each class with the boxes and both figures."""

    name: str
    verdict: str
    means: Forest
    classes: Forest


class Row(NamedTuple):
    """A figure of every run; `best` are the indices of the highest, empty where all are equal."""

    name: str
    values: list[float | None]
    best: set[int]


class Cost(NamedTuple):
    """A kind of error: for each run the gain of AP50 from fixing it, this as a share of the largest, and the number."""

    kind: str
    cells: list[tuple[float | None, float, int]]


def write(
    runs: Sequence[str | Path],
    out: str | Path,
    *,
    split: str = "validation",
    checkpoint: str = "best",
    overrides: Sequence[str] = (),
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Path:
    """Write the page of two or more runs, each compared with the first.

    Args:
        runs: run directories with evaluations on the same ground truth, or whose checkpoints can be evaluated on it.
        out: the page.
        split, checkpoint, overrides: of all runs, as in `retina.pages.run_judgement.judge_run`.
        replicates, seed, level: of the paired bootstrap, see `retina.evaluation.comparison.compare`.

    Returns:
        The file.

    Raises:
        RetinaError: fewer than two runs or the same one twice; a run can't be judged; they differ in ground truth,
            classes or `evaluation.max_detections`; or `out` can't be written.
    """
    target = Path(out)
    if target.is_dir():
        raise RetinaError(f"{target}: expected the name of a file to write, it is a folder; name a file in it")
    judged = judge([Path(run) for run in runs], split, checkpoint, overrides)
    text = render(judged, replicates=replicates, seed=seed, level=level)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, text)
    except OSError as error:
        raise RetinaError(f"{target}: cannot write the page: {error.strerror or error}; choose another --out") from None
    return target


def judge(runs: Sequence[Path], split: str, checkpoint: str, overrides: Sequence[str] = ()) -> list[Judged]:
    """Judge the runs on the same ground truth.

    Raises:
        RetinaError: see `write`.
    """
    if len(runs) < 2:
        raise RetinaError(f"report: expected two runs or more to compare, got {len(runs)}; name another run")
    places = [run.absolute() for run in runs]
    twice = next((run for number, run in enumerate(runs) if places[number] in places[:number]), None)
    if twice is not None:
        raise RetinaError(f"{twice}: expected different runs to compare, this run is named twice; leave one out")
    unique = len({place.name for place in places}) == len(places)
    names = [place.name if unique else str(run) for place, run in zip(places, runs, strict=True)]
    records = [read_record(run) for run in runs]
    _check_limits(records)
    judged = []
    for name, record in zip(names, records, strict=True):
        judgement = judge_run(record, split, checkpoint, tuple(overrides))
        if judgement.evidence is None:
            raise RetinaError(
                f"{record.path}: there is nothing to compare: {judgement.missing} "
                "Evaluate the run on data that can be read"
            )
        judged.append(Judged(name, record, judgement, judgement.evidence))
        check_same_truth(judged[0].evidence.truth, judgement.evidence.truth)
    return judged


def render(judged: Sequence[Judged], *, replicates: int = 1000, seed: int = 0, level: float = 0.95) -> str:
    """Return the page's text; every name and message in it is escaped.

    Args:
        judged: from `judge`; the others are compared with the first.
    """
    first, *others = judged
    truth = first.evidence.truth
    compared = {
        run.name: compare(truth, first.matches, run.matches, replicates=replicates, seed=seed, level=level)
        for run in others
    }
    names = [run.name for run in judged]
    return furniture.render(
        _TEMPLATE,
        title=f"{first.name} and {others[0].name}" if len(others) == 1 else f"{len(judged)} runs side by side",
        scripts=[SCRIPT],
        names=names,
        split=first.judgement.split,
        data=f"{first.evidence.dataset.name}: {len(truth):,} images, {int(truth.counted.sum()):,} boxes, "
        f"{len(truth.class_names)} {'class' if len(truth.class_names) == 1 else 'classes'}",
        judged=[(run.name, str(run.record.path), run.judgement.checkpoint, run.judgement.step) for run in judged],
        remarks=[f"{run.name}: {text}" for run in judged for text in (run.judgement.changed,) if text],
        rows=figure_rows([run.evidence.assessment.metrics.metrics for run in judged]),
        against=[_against(name, first.name, comparison) for name, comparison in compared.items()],
        level=f"{100 * level:g} %",
        replicates=replicates,
        curves=learning_curves(judged),
        quality=precision_curves(names, [run.matches for run in judged]),
        costs=cost_rows(judged),
        differing=config_rows(judged),
        gallery_of=_gallery(judged),
        commands=_commands(judged),
    )


def figure_rows(metrics: Sequence[dict[str, float]]) -> list[Row]:
    """Return every figure that a run defines."""
    rows = []
    for name in metrics[0]:
        values = [value if (value := figures.get(name, -1.0)) >= 0 else None for figures in metrics]
        known = [value for value in values if value is not None]
        if known:
            highest = max(known)
            best = {place for place, value in enumerate(values) if value == highest}
            rows.append(Row(name, values, best if len(best) < len(values) else set()))
    return rows


def learning_curves(judged: Sequence[Judged]) -> list[Chart]:
    """Return a chart of all runs for each figure of training that a run recorded."""
    colours = _colours(len(judged))
    span = (0.0, float(max(run.record.last_step for run in judged)))
    charts = [
        lines(
            "AP on validation data",
            [
                Series(run.name, [step for step, _ in points], [figures["AP"] for _, figures in points], colour=colour)
                for run, colour in zip(judged, colours, strict=True)
                if (points := [pair for pair in run.record.evaluations if pair[1].get("AP", -1) >= 0])
            ],
            x_range=span,
        )
    ]
    for key, title in _CURVES.items():
        series = [
            Series(run.name, *run.record.series(key), colour=colour)
            for run, colour in zip(judged, colours, strict=True)
            if run.record.series(key)[0]
        ]
        # A logarithmic axis only for losses that span a factor of ten.
        values = [value for curve in series for value in curve.y if value > 0]
        log = key != "learning_rate" and bool(values) and max(values) >= 10 * min(values)
        charts.append(lines(title, series, x_range=span, log_y=log))
    return [chart for chart in charts if chart.curves]


def precision_curves(names: Sequence[str], matches: Sequence[Matches]) -> list[Chart]:
    """Return precision over recall, mean of the classes that have boxes, of all runs at IoU 0.5 and 0.75."""
    tables = [precision(run_matches) for run_matches in matches]
    defined = np.flatnonzero(matches[0].positives)
    if not len(defined):
        return []
    charts = []
    for iou in (0.5, 0.75):
        t = int(np.argmin(np.abs(matches[0].iou_thresholds - iou)))
        series = [
            Series(name, RECALLS.tolist(), table[t][:, defined].mean(axis=1).tolist(), colour=colour)
            for name, table, colour in zip(names, tables, _colours(len(names)), strict=True)
        ]
        title = f"precision over recall at IoU {iou:g}, mean of the classes"
        charts.append(lines(title, series, x_label="recall", x_range=_UNIT, y_range=_UNIT))
    return charts


def cost_rows(judged: Sequence[Judged]) -> list[Cost]:
    """Return TIDE's kinds with the costs of every run, the most expensive first; empty where no box defines them."""
    errors = [run.evidence.assessment.errors for run in judged]
    known = [cost for run_errors in errors for cost in run_errors.delta_ap.values() if cost is not None]
    most = max(known, default=0.0) or 1.0
    rows = [
        Cost(
            kind,
            [
                ((cost := run_errors.delta_ap[kind]), round(100 * (cost or 0.0) / most, 1), run_errors.counts[kind])
                for run_errors in errors
            ],
        )
        for kind in errors[0].delta_ap
    ]
    return sorted(rows, key=lambda row: -max(cost or 0.0 for cost, _, _ in row.cells)) if known else []


def config_rows(judged: Sequence[Judged]) -> list[tuple[str, list[str]]]:
    """Return the settings in which the runs differ: the dotted key and each run's value, a dash for a missing key."""
    trees = [flat(run.record.config) for run in judged]
    keys = dict.fromkeys(key for tree in trees for key in tree)
    rows = [(key, [one_line(tree[key]) if key in tree else "–" for tree in trees]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _check_limits(records: Sequence[Record]) -> None:
    limits = [record.config.evaluation.max_detections[-1] for record in records]
    if len(set(limits)) > 1:
        raise RetinaError(
            f"{', '.join(str(record.path) for record in records)}: evaluation.max_detections: expected the same to "
            f"compare, got {', '.join(map(str, limits))} for AP; set one for all"
        )


def _against(name: str, first: str, comparison: Comparison) -> Against:
    means = [_estimate(figure, difference) for figure, difference in comparison.figures.items()]
    classes = [
        _estimate(label, figures["AP"], (f"{comparison.boxes[label]:,}", *_both(figures["AP"])))
        for label, figures in comparison.per_class.items()
    ]
    return Against(name, verdict(comparison, first, name), forest(means), forest(classes))


def _estimate(name: str, difference: Difference, more: tuple[str, ...] | None = None) -> Estimate:
    clear = bool(difference.low > 0 or difference.high < 0)
    return Estimate(
        name, difference.difference, difference.low, difference.high, clear, _both(difference) if more is None else more
    )


def _both(difference: Difference) -> tuple[str, str]:
    return furniture.figure(difference.a), furniture.figure(difference.b)


def _gallery(judged: Sequence[Judged]) -> dict[str, Any]:
    """Gallery of all runs' detections on the same images, the slider at the first run's threshold of the best F1."""
    first = judged[0].evidence
    thresholds = [run.evidence.assessment.confusion.score_threshold for run in judged]
    shown = evaluated(
        _rows(first.truth, [run.matches for run in judged], thresholds),
        first.truth,
        [Run(run.evidence.detections, run.matches, run.evidence.assessment.errors) for run in judged],
        sizes=first.dataset.sizes,
        pictures=first.dataset.photographs,
        names=picture_names(first.dataset),
    )
    return gallery_data(
        shown,
        first.truth.class_names,
        runs=[run.name for run in judged],
        threshold=thresholds[0],
        budget=_PICTURES,
        total=len(first.truth),
    )


def _rows(truth: GroundTruth, matches: Sequence[Matches], thresholds: Sequence[float]) -> list[int]:
    """Rows of the images shown: all if they are few, else those where runs differ most, each run's worst, others."""
    scores = [
        {score.image: 1.0 if score.f1 is None else score.f1 for score in worst_images(run_matches, threshold)}
        for run_matches, threshold in zip(matches, thresholds, strict=True)
    ]
    spread = {
        image: max(f1.get(image, 1.0) for f1 in scores) - min(f1.get(image, 1.0) for f1 in scores)
        for image in range(len(truth))
    }
    apart = sorted((image for image, value in spread.items() if value > 0), key=lambda image: -spread[image])
    limit = 2 * MOST_IMAGES // max(len(matches), 2)
    return mixture(len(truth), max(limit, 1), apart, *(list(f1) for f1 in scores))


def _colours(count: int) -> list[str]:
    """Colours of the runs, the same in every chart."""
    return [f"var(--series-{number % _COLOURS})" for number in range(count)]


def _commands(judged: Sequence[Judged]) -> list[str]:
    paths = shlex.join(str(run.record.path) for run in judged)
    judgement = judged[0].judgement
    return [
        f"retina report {paths} --split {judgement.split} --checkpoint {judgement.checkpoint} --out FILE.html",
        *(
            f"retina compare {shlex.join([str(judged[0].record.path), str(run.record.path)])} --split {judgement.split}"
            for run in judged[1:]
        ),
    ]
