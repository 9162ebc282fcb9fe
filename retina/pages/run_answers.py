"""The first screen of a run's page: questions, each with a verdict, the reason, and what to do. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from math import isfinite
from statistics import median
from typing import Literal, NamedTuple

from retina.drawing import furniture
from retina.evaluation.tide import IN_WORDS, MEANINGS
from retina.output import count
from retina.pages.run_judgement import Change, Judgement, compared_steps, curve
from retina.pages.run_sections import Coverage, ExportRow, Figures, error_rows, interval, level
from retina.runs.record import Record

# Open is what nobody has done yet.
Verdict = Literal["fine", "look", "stop", "open"]

SIGNS: dict[Verdict, str] = {"fine": "✓", "look": "!", "stop": "✕", "open": "–"}

# Shares of boxes with a positive anchor below which a class is hardly learned, and a detector is of no use.
_FEW, _TOO_FEW = 0.9, 0.5
# AP below which a detector has learned nothing to speak of.
_NOTHING = 0.01
# Share of AP that the last evaluation added, and that each of the last few does by their slope, above which the curve
# still rises; AP that it may lose to chance.
_RISING, _FEW_LAST, _FELL = 0.05, 5, 0.01
# AP50 below which a detector finds too little for most uses, and the width of AP's interval that leaves much open.
_LOW, _WIDE = 0.5, 0.1
# AP50 that errors of one kind cost, above which they are worth a look.
_COSTLY = 0.05
# Number of classes of the lowest AP that are named, and of the warnings that are shown.
_WORST, _SHOWN = 2, 3

_REMEDIES = {
    "Cls": "Look at these boxes below: are the labels right, and can you tell the classes apart yourself?",
    "Loc": "Look how exactly the boxes were drawn; a larger data.resize places boxes better.",
    "Both": "Look at these detections below: the labels may be wrong.",
    "Dupe": "A lower inference.nms_iou removes second detections.",
    "Bkg": "Look whether objects lack a box in the data; a higher score threshold removes such detections.",
    "Miss": "Look whether these boxes have an anchor, and whether they can be seen at data.resize.",
}


class Answer(NamedTuple):
    """A question, its verdict, the reason with what to do, facts, and the id of the section with details or ""."""

    question: str
    verdict: Verdict
    reason: str
    facts: str
    section: str

    @property
    def sign(self) -> str:
        """Return the verdict's sign, which also tells it without colours."""
        return SIGNS[self.verdict]


class _Judged(NamedTuple):
    verdict: Verdict
    reason: str
    facts: str = ""


def answers(
    record: Record, judged: Judgement, anchors: Coverage | None, exports: Sequence[ExportRow], has_curves: bool
) -> Iterator[Answer]:
    """Yield the questions that the run can answer, in the order in which a reader asks them.

    Args:
        has_curves: whether the page has curves of precision and recall.
    """
    data = _data(record, judged, anchors)
    if data is not None:
        yield Answer("Is the data fine?", *data, "anchors" if anchors is not None else "")
    learned = _learned(record, judged.change)
    if learned is not None:
        yield Answer("Is it learning?", *learned, "training")
    modes = dict(record.modes).get(judged.step or -1)
    if modes is not None:
        reason, facts = "Training and inference are the same network.", f"{str(modes).capitalize()}."
        yield Answer(
            "Is it the network that was trained?",
            *(("stop", modes.verdict, "") if modes.part else ("fine", reason, facts)),
            section="",
        )
    if judged.figures is not None:
        quality = _quality(judged.figures, judged.split, None if anchors is None else anchors.allowed)
        yield Answer("How good is it?", *quality, "quality" if has_curves else "")
        wrong = _wrong(judged.figures)
        if wrong is not None:
            yield Answer("What does it get wrong?", *wrong, "errors" if judged.evidence else "classes")
    yield Answer("Can it be shipped?", *_shipped(exports), "exports")


def _data(record: Record, judged: Judgement, anchors: Coverage | None) -> _Judged | None:
    """The anchors of all boxes and of the least covered class, and what the check before the training warned of."""
    verdict: Verdict = "fine"
    reasons: list[str] = []
    facts = ""
    if anchors is not None:
        share, worst = anchors.rows[0], anchors.classes[0] if anchors.classes else None
        facts = f"{share.text} boxes in {judged.split} have a positive anchor"
        if anchors.allowed is not None:
            facts += f", which allows an AP of about {furniture.figure(anchors.allowed)}"
        facts += "."
        verdict = "stop" if share.percent < 100 * _TOO_FEW else "look" if share.percent < 100 * _FEW else "fine"
        if verdict != "fine":
            reasons.append("Too many boxes have no anchor.")
        if worst is not None and worst.percent < 100 * _FEW:
            verdict = "look" if verdict == "fine" else verdict
            reasons.append(f"Of {worst.label} only {worst.text} boxes have an anchor: the rest is hardly learned.")
        if verdict != "fine":
            reasons.append("retina doctor suggests anchors and sizes that cover more.")
    warnings = record.preflight
    if warnings:
        verdict = "look" if verdict == "fine" else verdict
        more = f" And {len(warnings) - _SHOWN} more in log.txt." if len(warnings) > _SHOWN else ""
        reasons.append(f"The check before the training said: {' '.join(warnings[:_SHOWN])}{more}")
    if not reasons and not facts:
        return None
    if verdict == "fine":
        reasons.append("The anchors suit the boxes.")
        facts += " retina doctor also checks the images."
    return _Judged(verdict, " ".join(reasons), facts)


def _learned(record: Record, change: Change | None) -> _Judged | None:
    losses = record.series("loss")[1]
    if len(losses) < 2:
        return None
    facts = f"The loss went from {losses[0]:.3g} to {losses[-1]:.3g}"
    if not losses[-1] < losses[0]:  # NaN is not below anything
        reason = "fall" if isfinite(losses[-1]) else "stay a number"
        remedy = "lower optimizer.learning_rate, or look at the data."
        return _Judged("stop", f"The loss did not {reason}: {remedy}", facts + ".")
    metric, values = record.config.evaluation.metric, curve(record)
    if values and values[-1][1] < _NOTHING:
        reason = "It has learned next to nothing: train longer, or look at the data and the anchors."
        return _Judged("stop", reason, f"{facts}, but {metric} is {values[-1][1]:.3f} at the end.")
    steps = compared_steps(record)
    if steps is None:
        return _Judged("fine", "The loss falls.", facts + ".")
    before, last = dict(values)[steps[0]], values[-1][1]
    within, certain = "", True
    if change is not None and (change.before, change.last) == steps:
        certain = change.low > 0 or change.high < 0
        within = f" (95\u00a0% interval {change.low:+.3f} to {change.high:+.3f}, on the same images)"
    if last > before:
        facts += f"; {metric} was highest at the last evaluation, {last:.3f} after {values[0][1]:.3f} at the first"
        facts += f", {last - before:+.3f} since step {steps[0]:,}{within}."
        return _Judged(*_risen(metric, values, change if not certain else None), facts)
    facts += f"; {metric} was highest at step {steps[0]:,} with {before:.3f}, and {last:.3f} at the end{within}."
    if before - last <= _FELL:
        return _Judged("fine", "It has learned, and does not rise any more.", facts)
    if not certain:
        return _Judged("fine", "It has learned; the last evaluation is lower, but by no more than chance.", facts)
    reason = f"It may overfit: step {steps[0]:,} is the best checkpoint; more images or augmentation help."
    return _Judged("look", reason, facts)


def _risen(metric: str, values: Sequence[tuple[int, float]], unsure: Change | None) -> tuple[Verdict, str]:
    """Tell whether a curve that is highest at its end still rises; `unsure`: a last change that may be chance."""
    (step, before), (end, last) = values[-2:]
    # A lucky last evaluation is no rise.
    by_slope = _slope(values[-_FEW_LAST:]) * (end - step)
    if len(values) < 3:
        return "fine", "It learns."
    if min(last - before, by_slope) <= _RISING * last:
        return "fine", "It has learned, and hardly rises any more."
    if unsure is None:
        return "look", f"{metric} still rises: train longer."
    images = count(unsure.images, "image")
    return "look", f"Whether {metric} still rises, {images} can't tell: train longer, or validate on more."


def _slope(values: Sequence[tuple[int, float]]) -> float:
    """Return the median slope between any two values (Theil-Sen), by step."""
    return median((y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(values, 2))


def _quality(figures: Figures, split: str, allowed: float | None) -> _Judged:
    ap, ap50 = figures["metrics"].get("AP"), figures["metrics"].get("AP50")
    if ap is None or ap < 0:
        return _Judged("look", f"Nothing in {split} defines an AP: it has no boxes that count.")
    ends = (figures.get("intervals") or {}).get("metrics", {}).get("AP")
    stated = f"AP {ap:.3f} on {split}" + (f", {level(figures)} interval {interval(ends)}" if ends else "")
    facts = []
    if allowed:
        facts.append(f"That is {furniture.percent(min(ap / allowed, 1.0))} of what the anchors allow.")
    point = (figures.get("operating_points") or {}).get("overall", {})
    if point.get("threshold") is not None:
        precision, recall = furniture.percent(point["precision"]), furniture.percent(point["recall"])
        facts.append(
            f"At scores of {point['threshold']:.3f} and above, the best F1, {precision} of the detections are right "
            f"and {recall} of the boxes are detected (IoU 0.5)."
        )
    verdict: Verdict = "fine"
    if ap < _NOTHING:
        verdict, stated = "stop", f"{stated}: it detects next to nothing"
    elif ap50 is not None and ap50 < _LOW:
        verdict, stated = "look", f"{stated}; AP50 {ap50:.3f} is little for most uses"
    elif ends and ends[1] - ends[0] > _WIDE:
        verdict, stated = "look", f"{stated}, which is wide: more images to judge on would make the figure surer"
    return _Judged(verdict, f"{stated}.", " ".join(facts))


def _wrong(figures: Figures) -> _Judged | None:
    verdict: Verdict = "fine"
    reasons: list[str] = []
    facts: list[str] = []
    if "errors" in figures:
        worst = error_rows(figures)[0]
        if worst.cost:
            reasons.append(f"What costs AP50 most: {IN_WORDS[worst.kind]} ({MEANINGS[worst.kind]}), {worst.cost:.3f}.")
            if worst.cost > _COSTLY:
                verdict = "look"
                reasons.append(_REMEDIES[worst.kind])
    known = {name: values["AP"] for name, values in figures["per_class"].items() if values.get("AP", -1) >= 0}
    if len(known) > 1:
        lowest = sorted(known, key=lambda name: known[name])[:_WORST]
        lines = reasons if not reasons or known[lowest[0]] < _NOTHING else facts
        lines.append("The lowest AP: " + ", ".join(f"{name} ({known[name]:.3f})" for name in lowest) + ".")
        if known[lowest[0]] < _NOTHING:
            verdict = "look"
    return _Judged(verdict, " ".join(reasons), " ".join(facts)) if reasons else None


def _shipped(exports: Sequence[ExportRow]) -> _Judged:
    if not exports:
        reason = "Not exported: retina export writes a model"
        return _Judged("open", f"{reason} with a certificate that it scores what the checkpoint scores.")
    parts = []
    for row in exports:
        state = f"certificate passed, AP difference {row.difference}" if row.passed else "certificate refused"
        parts.append(f"{row.name}: {state}")
    return _Judged("fine" if all(row.passed for row in exports) else "stop", "; ".join(parts) + ".")
