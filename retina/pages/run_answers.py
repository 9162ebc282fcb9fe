"""The questions that a run's page is opened with, each with a short answer and the place that tells more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from retina.drawing import furniture as pages
from retina.evaluation.tide import MEANINGS
from retina.pages.run_judgement import Judgement
from retina.pages.run_sections import Coverage, ExportRow, Figures, error_rows, interval, level
from retina.runs.record import Record

# As many classes of the lowest AP are named.
_WORST = 2


class Answer(NamedTuple):
    """A question, its answer, and the id of the section that tells more, if there is one."""

    question: str
    answer: str
    section: str


def answers(
    record: Record, judged: Judgement, anchors: Coverage | None, exports: Sequence[ExportRow], has_curves: bool
) -> Iterator[Answer]:
    """Those that the run has an answer to, in the order in which one asks.

    Args:
        has_curves: the page has curves of precision and recall.
    """
    if anchors is not None:
        share = anchors.rows[0]
        allowed = "" if anchors.allowed is None else f", which allows an AP of about {pages.figure(anchors.allowed)}"
        told = f"{share.text} boxes in {judged.split} have a positive anchor{allowed}."
        yield Answer("Is the data fine?", f"{told} retina doctor looks at the images too.", "anchors")
    learned = _learned(record)
    if learned:
        yield Answer("Is it learning?", learned, "training")
    if judged.figures is not None:
        yield Answer("How good is it?", _quality(judged.figures, judged.split), "quality" if has_curves else "")
        wrong = _wrong(judged.figures)
        if wrong:
            yield Answer("What does it get wrong?", wrong, "errors" if judged.evidence else "classes")
    yield Answer("Can it be shipped?", _shipped(exports), "exports")


def _learned(record: Record) -> str:
    losses = record.series("loss")[1]
    if len(losses) < 2:
        return ""
    told = f"The loss went from {losses[0]:.3g} to {losses[-1]:.3g}"
    metric = record.config.evaluation.metric
    values = [(step, figures[metric]) for step, figures in record.evaluations if figures.get(metric, -1) >= 0]
    if len(values) < 2:
        return told + "."
    best, last = max(values, key=lambda one: one[1]), values[-1]
    course = (
        f"was highest at the last evaluation, {last[1]:.3f} after {values[0][1]:.3f} at the first"
        if best[1] == last[1]
        else f"was highest at step {best[0]:,} with {best[1]:.3f}, and {last[1]:.3f} at the end"
    )
    return f"{told}; {metric} {course}."


def _quality(figures: Figures, split: str) -> str:
    found = figures["metrics"].get("AP")
    if found is None or found < 0:
        return f"Nothing in {split} defines an AP."
    ends = (figures.get("intervals") or {}).get("metrics", {}).get("AP")
    told = f"AP {found:.3f} on {split}"
    if ends:
        told += f", {level(figures)} interval {interval(ends)}"
    point = (figures.get("operating_points") or {}).get("overall", {})
    if point.get("threshold") is None:
        return told + "."
    right, seen = pages.percent(point["precision"]), pages.percent(point["recall"])
    return (
        f"{told}. At its best F1, from a score of {point['threshold']:.3f} on, {right} of the detections are right and "
        f"{seen} of the boxes found (IoU 0.5)."
    )


def _wrong(figures: Figures) -> str:
    told = []
    if "errors" in figures:
        worst = error_rows(figures)[0]
        if worst.cost:
            told.append(f"AP50 loses most by {worst.kind} ({MEANINGS[worst.kind]}): {worst.cost:.3f}.")
    known = {name: own["AP"] for name, own in figures["per_class"].items() if own.get("AP", -1) >= 0}
    if len(known) > 1:
        lowest = sorted(known, key=lambda name: known[name])[:_WORST]
        told.append("The lowest AP: " + ", ".join(f"{name} ({known[name]:.3f})" for name in lowest) + ".")
    return " ".join(told)


def _shipped(exports: Sequence[ExportRow]) -> str:
    if not exports:
        return "Not yet: retina export writes a model with a certificate that it scores what the checkpoint scores."
    told = []
    for row in exports:
        state = f"certificate passed, AP difference {row.difference}" if row.passed else "certificate refused"
        told.append(f"{row.name}: {state}")
    return "; ".join(told) + "."
