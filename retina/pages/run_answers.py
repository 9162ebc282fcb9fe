"""The first screen of a run's page: questions, each with a verdict, the reason, and what to do. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from statistics import median
from typing import Literal, NamedTuple

from retina.drawing import furniture
from retina.evaluation.tide import IN_WORDS, MEANINGS
from retina.pages.run_judgement import Judgement
from retina.pages.run_sections import Coverage, ExportRow, Figures, error_rows, interval, level
from retina.runs.record import Record

Verdict = Literal["fine", "look", "stop"]

SIGNS: dict[Verdict, str] = {"fine": "✓", "look": "!", "stop": "✕"}

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
    """A question, its answer, the id of the section with details or "", and the verdict."""

    question: str
    answer: str
    section: str
    verdict: Verdict

    @property
    def sign(self) -> str:
        """Return the verdict's sign, which also tells it without colours."""
        return SIGNS[self.verdict]


class _Judged(NamedTuple):
    verdict: Verdict
    text: str


def answers(
    record: Record, judged: Judgement, anchors: Coverage | None, exports: Sequence[ExportRow], has_curves: bool
) -> Iterator[Answer]:
    """Yield the questions that the run can answer, in the order in which a reader asks them.

    Args:
        has_curves: whether the page has curves of precision and recall.
    """
    data = _data(record, judged, anchors)
    if data is not None:
        yield _answer("Is the data fine?", data, "anchors" if anchors is not None else "")
    learned = _learned(record)
    if learned is not None:
        yield _answer("Is it learning?", learned, "training")
    modes = dict(record.modes).get(judged.step or -1)
    if modes is not None:
        yield _answer(
            "Is it the network that was trained?", _Judged("stop" if modes.part else "fine", modes.verdict), ""
        )
    if judged.figures is not None:
        quality = _quality(judged.figures, judged.split, None if anchors is None else anchors.allowed)
        yield _answer("How good is it?", quality, "quality" if has_curves else "")
        wrong = _wrong(judged.figures)
        if wrong is not None:
            yield _answer("What does it get wrong?", wrong, "errors" if judged.evidence else "classes")
    yield _answer("Can it be shipped?", _shipped(exports), "exports")


def _answer(question: str, judged: _Judged, section: str) -> Answer:
    return Answer(question, judged.text, section, judged.verdict)


def _data(record: Record, judged: Judgement, anchors: Coverage | None) -> _Judged | None:
    """The anchors of all boxes and of the least covered class, and what the check before the training warned of."""
    verdict: Verdict = "fine"
    sentences = []
    if anchors is not None:
        share, worst = anchors.rows[0], anchors.classes[0] if anchors.classes else None
        allowed = (
            "" if anchors.allowed is None else f", which allows an AP of about {furniture.figure(anchors.allowed)}"
        )
        sentences.append(f"{share.text} boxes in {judged.split} have a positive anchor{allowed}.")
        verdict = "stop" if share.percent < 100 * _TOO_FEW else "look" if share.percent < 100 * _FEW else "fine"
        if worst is not None and worst.percent < 100 * _FEW:
            verdict = "look" if verdict == "fine" else verdict
            sentences.append(f"Of {worst.label} only {worst.text} boxes have one: the rest is hardly learned.")
        if verdict != "fine":
            sentences.append("retina doctor suggests anchors and sizes that cover more.")
    warnings = record.preflight
    if warnings:
        verdict = "look" if verdict == "fine" else verdict
        more = f" And {len(warnings) - _SHOWN} more in log.txt." if len(warnings) > _SHOWN else ""
        sentences.append(f"The check before the training said: {' '.join(warnings[:_SHOWN])}{more}")
    if not sentences:
        return None
    if verdict == "fine":
        sentences.append("retina doctor also checks the images.")
    return _Judged(verdict, " ".join(sentences))


def _learned(record: Record) -> _Judged | None:
    losses = record.series("loss")[1]
    if len(losses) < 2:
        return None
    text = f"The loss went from {losses[0]:.3g} to {losses[-1]:.3g}"
    metric = record.config.evaluation.metric
    values = [(step, figures[metric]) for step, figures in record.evaluations if figures.get(metric, -1) >= 0]
    if losses[-1] >= losses[0]:
        return _Judged("stop", f"{text}: it did not fall. Lower optimizer.learning_rate, or look at the data.")
    if values and values[-1][1] < _NOTHING:
        advice = "Train longer, or look at the data and the anchors."
        return _Judged("stop", f"{text}, but {metric} is {values[-1][1]:.3f} at the end. {advice}")
    if len(values) < 2:
        return _Judged("fine", text + ".")
    best, before, last = max(values, key=lambda pair: pair[1]), values[-2], values[-1]
    if best[1] == last[1]:
        course = f"was highest at the last evaluation, {last[1]:.3f} after {values[0][1]:.3f} at the first"
        # A lucky last evaluation is no rise.
        by_slope = _slope(values[-_FEW_LAST:]) * (last[0] - before[0])
        if min(last[1] - before[1], by_slope) > _RISING * last[1] and len(values) > 2:
            advice = f"Still rising, by {last[1] - before[1]:.3f} since step {before[0]:,}: train longer."
            return _Judged("look", f"{text}; {metric} {course}. {advice}")
        return _Judged("fine", f"{text}; {metric} {course}.")
    course = f"was highest at step {best[0]:,} with {best[1]:.3f}, and {last[1]:.3f} at the end"
    if best[1] - last[1] > _FELL:
        advice = f"It may overfit: the checkpoint of step {best[0]:,} is the best; more images or augmentation help."
        return _Judged("look", f"{text}; {metric} {course}. {advice}")
    return _Judged("fine", f"{text}; {metric} {course}.")


def _slope(values: Sequence[tuple[int, float]]) -> float:
    """Return the median slope between any two values (Theil-Sen), by step."""
    return median((y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(values, 2))


def _quality(figures: Figures, split: str, allowed: float | None) -> _Judged:
    ap, ap50 = figures["metrics"].get("AP"), figures["metrics"].get("AP50")
    if ap is None or ap < 0:
        return _Judged("look", f"Nothing in {split} defines an AP: it has no boxes that count.")
    ends = (figures.get("intervals") or {}).get("metrics", {}).get("AP")
    text = f"AP {ap:.3f} on {split}"
    if ends:
        text += f", {level(figures)} interval {interval(ends)}"
    if allowed:
        text += f", {furniture.percent(min(ap / allowed, 1.0))} of what the anchors allow"
    point = (figures.get("operating_points") or {}).get("overall", {})
    if point.get("threshold") is not None:
        precision, recall = furniture.percent(point["precision"]), furniture.percent(point["recall"])
        text += (
            f". At its best F1, with detections of score {point['threshold']:.3f} and above, {precision} of the "
            f"detections are right and {recall} of the boxes are found (IoU 0.5)"
        )
    if ap < _NOTHING:
        return _Judged("stop", f"{text}. It finds next to nothing.")
    if ap50 is not None and ap50 < _LOW:
        return _Judged("look", f"{text}. AP50 {ap50:.3f} is little for most uses.")
    if ends and ends[1] - ends[0] > _WIDE:
        return _Judged("look", f"{text}. The interval is wide: more {split} images would make the figure surer.")
    return _Judged("fine", f"{text}.")


def _wrong(figures: Figures) -> _Judged | None:
    sentences = []
    verdict: Verdict = "fine"
    if "errors" in figures:
        worst = error_rows(figures)[0]
        if worst.cost:
            kind = f"{IN_WORDS[worst.kind]} ({MEANINGS[worst.kind]})"
            sentences.append(f"What costs AP50 most: {kind}, {worst.cost:.3f}.")
            if worst.cost > _COSTLY:
                verdict = "look"
                sentences.append(_REMEDIES[worst.kind])
    known = {name: values["AP"] for name, values in figures["per_class"].items() if values.get("AP", -1) >= 0}
    if len(known) > 1:
        lowest = sorted(known, key=lambda name: known[name])[:_WORST]
        sentences.append("The lowest AP: " + ", ".join(f"{name} ({known[name]:.3f})" for name in lowest) + ".")
        if known[lowest[0]] < _NOTHING:
            verdict = "look"
    return _Judged(verdict, " ".join(sentences)) if sentences else None


def _shipped(exports: Sequence[ExportRow]) -> _Judged:
    if not exports:
        text = "Not yet: retina export writes a model with a certificate that it scores what the checkpoint scores."
        return _Judged("look", text)
    parts = []
    for row in exports:
        state = f"certificate passed, AP difference {row.difference}" if row.passed else "certificate refused"
        parts.append(f"{row.name}: {state}")
    return _Judged("fine" if all(row.passed for row in exports) else "stop", "; ".join(parts) + ".")
