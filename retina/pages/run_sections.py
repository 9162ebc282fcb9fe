"""The parts of a run's page as plain values: answers, tiles, tables, commands. Pure; `run.html.jinja` shows them."""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from retina.doctor.ceiling import AnchorReport, Share
from retina.drawing import furniture
from retina.evaluation.tide import IN_WORDS, MEANINGS
from retina.pages.run_judgement import Judgement
from retina.palette import class_hexes
from retina.runs.directory import shown
from retina.runs.record import Record

Figures = dict[str, Any]

# Above this share of the time spent waiting, a faster pipeline would make training faster.
_WAITS = 0.1
_CONFUSIONS = 15
_WORST_CLASSES = 8
# Number of classes of the lowest AP that are named.
_WORST = 2
# Above this many classes the cells of the confusion matrix are small.
_DENSE = 25


class Tile(NamedTuple):
    """A figure at the head of the page and its meaning."""

    figure: str
    label: str


class Remark(NamedTuple):
    """A remark to read before the figures: `grade` is error, warning or note."""

    grade: str
    text: str


def tiles(record: Record, judged: Judgement) -> Iterator[Tile]:
    """Yield the most important figures."""
    figures = judged.figures or {}
    ends = (figures.get("intervals") or {}).get("metrics", {})
    for name, meaning in (("AP", "AP"), ("AP50", "AP at IoU 0.5"), ("AP75", "AP at IoU 0.75")):
        if name in figures.get("metrics", {}):
            between = f", {level(figures)} interval {interval(ends[name])}" if name in ends else ""
            yield Tile(furniture.figure(figures["metrics"][name]), f"{meaning} on {judged.split}{between}")
    point = (figures.get("operating_points") or {}).get("overall", {})
    if point.get("threshold") is not None:
        label = f"best score threshold: precision {point['precision']:.3f}, recall {point['recall']:.3f}"
        yield Tile(furniture.figure(point["threshold"]), label)
    if not record.imported:
        yield Tile(furniture.number(record.last_step), f"of {furniture.number(record.config.schedule.length)} steps")
    if record.seconds:
        yield Tile(duration(record.seconds), "of training steps; evaluations and checkpoints not counted")
    for name, label, write in (
        ("images_per_second", "images per second, the median", lambda value: f"{value:.3g}"),
        ("data_wait", "of the steps' time spent waiting for data, the median", furniture.percent),
    ):
        values = record.series(name)[1]
        if values:
            yield Tile(write(statistics.median(values)), label)


def remarks(record: Record, judged: Judgement) -> Iterator[Remark]:
    """Yield remarks on what is missing or unusual, worst first."""
    if record.imported:
        text = (
            "The weights come from elsewhere (import.json accounts for each tensor), so there is no training to show."
        )
        yield Remark("note", text)
    elif not record.lines:
        yield Remark("warning", "The run has not logged a training step yet (metrics.jsonl is missing or empty).")
    elif not record.is_complete:
        yield Remark(
            "warning",
            f"The run stands at step {record.last_step:,} of {record.config.schedule.length:,}: it was interrupted, or "
            "is still running. This page shows its state so far.",
        )
    if record.stopped_early:
        yield Remark("note", f"Stopped early after step {record.last_step:,} (run.early_stopping).")
    for text in (judged.missing, judged.changed):
        if text:
            yield Remark("warning", text)
    if judged.evidence is not None and not len(judged.evidence.detections):
        yield Remark("warning", f"Nothing was detected in {judged.split}: no score reached inference.score_threshold.")
    waits = record.series("data_wait")[1]
    if waits and statistics.median(waits) > _WAITS:
        share = furniture.percent(statistics.median(waits))
        text = f"Steps wait {share} of their time for data: reading the data limits the speed."
        yield Remark("note", text)


def about(record: Record, judged: Judgement) -> list[tuple[str, str]]:
    """Return a short description of the run: label and text of each line."""
    config, environment = record.config, record.environment
    optimizer, schedule = config.optimizer, config.schedule
    fpn = config.model.fpn
    lines = [("model", f"{config.model.backbone}, pyramid P{fpn.min_level} to P{fpn.max_level}")]
    if not record.imported:
        lines.append(
            (
                "training",
                f"{schedule.length:,} steps of {config.run.batch_size} images, {optimizer.kind}, learning rate "
                f"{optimizer.learning_rate:g} ({schedule.kind}), {config.run.precision}",
            )
        )
    if judged.evidence is not None:
        data, truth = judged.evidence.dataset, judged.evidence.truth
        lines.append(
            (f"{judged.split} data", f"{data.name}: {len(data):,} images, {int(truth.counted.sum()):,} boxes, "
                                     f"{len(data.class_names)} {'class' if len(data.class_names) == 1 else 'classes'}")
        )  # fmt: skip
        lines += [("data note", note) for note in data.notes]
    if judged.step is not None:
        lines.append(("judged checkpoint", f"{judged.checkpoint} (step {judged.step:,})"))
    if environment:
        where = ", ".join(map(str, environment.get("devices", ()))) or "unknown"
        versions = f"retina {environment.get('retina', '?')}, revision {environment.get('revision') or 'unknown'}"
        lines.append(("run on", f"{where} ({environment.get('backend', 'unknown')}), {versions}"))
    return lines


class ClassRow(NamedTuple):
    """A class in the table: its figures as numbers, None if undefined."""

    name: str
    colour: str
    boxes: int
    figures: tuple[float | None, ...]
    interval: str
    operating: tuple[float | None, ...]


def class_rows(figures: Figures) -> list[ClassRow]:
    """Return a row for each class, in the dataset's order: AP, AP50, AP75, then threshold, precision, recall, F1."""
    points = (figures.get("operating_points") or {}).get("per_class", {})
    ends = (figures.get("intervals") or {}).get("per_class", {})
    classes = figures.get("per_class", {})
    return [
        ClassRow(
            name,
            colour,
            int(values.get("boxes", 0)),
            tuple(_defined(values.get(key)) for key in ("AP", "AP50", "AP75")),
            interval(ends[name]["AP"]) if "AP" in ends.get(name, {}) else "",
            tuple(points.get(name, {}).get(key) for key in ("threshold", "precision", "recall", "f1")),
        )
        for colour, (name, values) in zip(class_hexes(list(classes)), classes.items(), strict=True)
    ]


class ErrorRow(NamedTuple):
    """A kind of error: the gain of AP50 from fixing it, as a number and as a share of the largest; their number."""

    kind: str
    name: str
    meaning: str
    cost: float | None
    share: float
    number: int


def error_rows(figures: Figures) -> list[ErrorRow]:
    """Return the kinds of TIDE, the most expensive first."""
    errors = figures["errors"]
    most = max([cost for cost in errors["delta_ap"].values() if cost] or [1.0])
    rows = [
        ErrorRow(
            kind,
            IN_WORDS.get(kind, kind),
            MEANINGS.get(kind, ""),
            cost,
            round(100 * (cost or 0.0) / most, 1),
            errors["counts"][kind],
        )
        for kind, cost in errors["delta_ap"].items()
    ]
    return sorted(rows, key=lambda row: -(row.cost or 0.0))


class ConfusionTable(NamedTuple):
    """`rows` of (name, cells of (count, percent of the row)), and the worst pairs (is, called, count, share)."""

    names: list[str]
    rows: list[tuple[str, list[tuple[int, float]]]]
    worst: list[tuple[str, str, int, float]]
    dense: bool


def confusion_table(figures: Figures) -> ConfusionTable:
    """Return the confusion matrix: rows are the class of a box, columns the class given to it."""
    confusion = figures["confusion"]
    names, matrix = confusion["names"], confusion["matrix"]
    rows = []
    pairs = []
    for i, counts in enumerate(matrix):
        total = sum(counts) or 1
        rows.append((names[i], [(count, round(100 * count / total, 1)) for count in counts]))
        if i < len(names) - 1:
            pairs += [
                (names[i], names[j], count, count / total) for j, count in enumerate(counts[:-1]) if j != i and count
            ]
    return ConfusionTable(
        names, rows, sorted(pairs, key=lambda pair: (-pair[2], -pair[3]))[:_CONFUSIONS], len(names) > _DENSE
    )


class CoverageRow(NamedTuple):
    """A share of boxes with a positive anchor."""

    label: str
    text: str
    percent: float
    grade: str


class Coverage(NamedTuple):
    """Coverage of a split's boxes by the anchors."""

    images: int
    all_images: int
    short: int
    allowed: float | None
    rows: list[CoverageRow]
    classes: list[CoverageRow]
    levels: list[tuple[str, str, int, int]]


def coverage(report: AnchorReport) -> Coverage:
    """Return the doctor's report, shortened: all boxes, by size, the least covered classes, and the levels."""
    rows = [("all boxes", report.total)]
    rows += [(f"{name} in the stored image", share) for name, share in report.sizes.items()]
    rows += [(f"{name} on the canvas", share) for name, share in report.canvas_sizes.items()]
    worst = sorted(report.classes.items(), key=lambda pair: pair[1].share)[:_WORST_CLASSES]
    return Coverage(
        report.images,
        report.all_images,
        report.short,
        _defined(report.ceilings["assigned"].get("AP")),
        [_coverage_row(name, share) for name, share in rows if share.boxes],
        [_coverage_row(name, share) for name, share in worst],
        [
            (f"P{level.level}", f"{level.sides[0]:.0f} to {level.sides[1]:.0f} px", level.positives, level.boxes)
            for level in report.levels
        ],
    )


def _coverage_row(name: str, share: Share) -> CoverageRow:
    grade = "error" if share.share < 0.5 else "warning" if share.share < 0.9 else ""
    return CoverageRow(name, f"{furniture.percent(share.share)} of {share.boxes:,}", round(100 * share.share, 1), grade)


class ExportRow(NamedTuple):
    """An export and the figures of its certificate."""

    name: str
    format: str
    passed: bool
    checkpoint: float | None
    export: float | None
    difference: str
    latency: str
    megabytes: str
    images: int
    problems: list[str]


def export_rows(certificates: list[tuple[str, dict[str, Any]]]) -> list[ExportRow]:
    """Return a row for each certificate, written by this version or another."""
    rows = []
    for name, tree in certificates:
        ap, delta = tree.get("ap") or {}, tree.get("delta_ap")
        median = ((tree.get("latency_ms") or {}).get("export") or {}).get("median")
        rows.append(
            ExportRow(
                name,
                str(tree.get("format", "")),
                bool(tree["passed"]),
                ap.get("checkpoint"),
                ap.get("export"),
                "–" if delta is None else f"{delta:+.2g}" if delta else "exactly 0",
                "–" if median is None else f"{median:.1f} ms",
                f"{tree.get('size_bytes', 0) / 1e6:.1f} MB",
                int(tree.get("images", 0)),
                [str(problem) for problem in tree.get("problems", ())],
            )
        )
    return rows


def commands(record: Record, judged: Judgement) -> str:
    """Return shell commands that repeat the run, its figures and this page, and that export it."""
    backend = record.environment.get("backend", "tensorflow")
    set_backend = "" if backend == "tensorflow" else f"KERAS_BACKEND={backend} "
    run, again = shown(record.path), shown(Path(f"{record.path}_again"))
    options = shlex.join(["--split", judged.split, "--checkpoint", judged.checkpoint, *judged.overrides])
    return "\n".join(
        (
            "# training from these weights, in a new folder"
            if record.imported
            else "# the same run again, in a new folder",
            f"{set_backend}retina train {shown(record.path / 'config.yaml')} --run-dir {again}",
            "# these figures from the checkpoint, and this page",
            f"{set_backend}retina evaluate {run} {options}",
            f"{set_backend}retina report {run} {options}",
            "# a SavedModel with a certificate that it scores the same",
            f"retina export {run}",
        )
    )


def environment_rows(environment: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the rows of `environment.json`, nested keys with dots."""
    rows: list[tuple[str, str]] = []
    for name, value in environment.items():
        if isinstance(value, dict):
            rows += [(f"{name}.{key}", str(inner)) for key, inner in value.items()]
        else:
            rows.append((name, ", ".join(map(str, value)) if isinstance(value, list) else _plain(value)))
    return rows


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def level(figures: Figures) -> str:
    """Return the level of the intervals: `95 %`, without a line break."""
    return f"{100 * figures['intervals']['level']:g}\u00a0%"


def interval(ends: Any) -> str:
    """Return an interval as text: `0.512–0.561`."""
    return f"{ends[0]:.3f}–{ends[1]:.3f}"


def duration(seconds: float) -> str:
    """Return a duration as text: `2 h 05 min`, `12 min` or `34 s`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def _defined(value: float | None) -> float | None:
    return None if value is None or value == -1 else value
