"""Findings from an anchor report, and the judgement whether a set-up is hopeless."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from retina import config
from retina.config.reading import override_line
from retina.doctor.ceiling import AnchorReport, AtSize, Share
from retina.doctor.findings import Finding, Grade, listed, some
from retina.doctor.statistics import FEW_BOXES
from retina.output import count

# With a smaller share of boxes with a positive anchor, most objects are background to the detector: hopeless.
HOPELESS = 0.5
_LOW, _LOW_OF_CLASS, _MANY_OUTBID = 0.9, 0.5, 0.01


def coverage_findings(report: AnchorReport, settings: config.Config, split: str) -> Iterator[Finding]:
    """Yield the findings on how the anchors cover a split's boxes.

    Under multi-scale training, shares are means over the sizes of the batches, which are drawn evenly; a class has no
    positive anchor if it has none at any of the sizes.

    A finding is an error where training is hopeless: fewer than half of the boxes have a positive anchor, or none of a
    class's boxes has, which are at least `FEW_BOXES`. Of splits that are not trained on only the total is reported.
    """
    training = split == "train"
    threshold = settings.assignment.positive_iou
    sizes = report.training or (AtSize(report.short, report.total, report.classes, report.vanished),)
    total = _mean([size.total for size in sizes])
    vanished = min(size.vanished for size in sizes)
    where = f", in the mean of the sizes {', '.join(str(size.short) for size in sizes)}" if report.training else ""
    remedy = (
        "take anchors that fit the boxes (`retina doctor CONFIG` suggests some), a larger data.resize for small boxes, "
        "or assignment.force_match=true"
    )
    if total.boxes and total.share < _LOW:
        yield Finding(
            "error" if training and total.share < HOPELESS else "warning",
            "few-boxes-covered",
            f"{total.covered} of {count(total.boxes, 'box')} ({total.share:.1%}) have a positive anchor "
            f"(IoU of at least {threshold:g}){where}",
            remedy if training else "",
            split,
        )
    if training:
        classes = {name: _mean([size.classes[name] for size in sizes]) for name in report.classes}
        ever = {name for size in sizes for name, share in size.classes.items() if share.covered}
        yield from _classes(classes, ever, remedy, split)
    if vanished:
        yield Finding(
            "warning",
            "vanished-boxes",
            f"{count(vanished, 'box')} with a side below one pixel after the resize, which training drops",
            f"raise data.resize.{'train_short' if report.training else 'short'} "
            f"({max(size.short for size in sizes)}) or leave them out",
            split,
        )
    if report.outbid:
        yield Finding(
            "warning" if report.outbid > _MANY_OUTBID * total.boxes else "note",
            "outbid-boxes",
            f"{count(report.outbid, 'box')} without an anchor although some reach IoU {threshold:g}: they go to "
            "neighbours that fit better",
            "more scales or ratios, or a larger data.resize, give crowded boxes anchors of their own",
            split,
        )
    if report.forced_only and training:
        yield Finding(
            "note",
            "saved-by-force-match",
            f"{count(report.forced_only, 'box')} that only assignment.force_match=true would give an anchor; with it "
            "the AP ceiling goes "
            f"from {report.ceilings['assigned']['AP']:.3f} to {report.ceilings['forced']['AP']:.3f}",
            "better anchors first: a forced anchor may hardly overlap its box",
            split,
        )
    if training and total.covered:
        idle = [f"P{level.level}" for level in report.levels if not level.positives]
        if idle:
            yield Finding(
                "note",
                "idle-levels",
                f"no positive anchor on {some(idle)}: only background is learned there",
                "model.fpn.max_level (or min_level) leaves them out, and saves the anchors",
                split,
            )


def _mean(shares: Sequence[Share]) -> Share:
    """Mean share of the same boxes at several sizes, to the nearest box, but never zero where any box is covered."""
    covered = sum(share.covered for share in shares)
    return Share(max(round(covered / len(shares)), min(covered, 1)), shares[0].boxes)


def _classes(classes: dict[str, Share], ever: set[str], remedy: str, split: str) -> Iterator[Finding]:
    """Yield findings on single classes; `ever` are those with a positive anchor at some size."""
    none = [name for name in classes if name not in ever]
    hopeless = [name for name in none if classes[name].boxes >= FEW_BOXES]
    few = [name for name in none if name not in hopeless]
    low = [name for name, share in classes.items() if name in ever and share.share < _LOW_OF_CLASS]
    cases: tuple[tuple[Grade, str, list[str], str], ...] = (
        ("error", "class-without-anchors", hopeless, "no positive anchor at all"),
        ("warning", "rare-class-without-anchors", few, f"fewer than {FEW_BOXES} boxes and no positive anchor"),
        ("warning", "class-barely-covered", low, "a positive anchor for fewer than half of the boxes"),
    )
    for grade, code, names, what in cases:
        if names:
            listing = [f"{name} ({classes[name].covered} of {classes[name].boxes})" for name in names]
            message = f"{count(len(names), 'class')} with {what}: {some(listing)}"
            yield Finding(grade, code, message, remedy, split, listed(listing))


def limit_findings(most_boxes: int, settings: config.Config, split: str) -> Iterator[Finding]:
    """Yield a finding if an image holds more boxes than a detector may return."""
    limit, counted = settings.inference.max_detections, settings.evaluation.max_detections
    if most_boxes > limit:
        overrides = [override_line("inference.max_detections", most_boxes)]
        if most_boxes > counted[-1]:
            overrides.append(override_line("evaluation.max_detections", [*counted, most_boxes]))
        yield Finding(
            "warning",
            "more-boxes-than-detections",
            f"an image has {most_boxes} boxes, and inference.max_detections is {limit}",
            f"set {' '.join(overrides)}; otherwise at most {limit} are returned",
            split,
        )


def tile_findings(settings: config.Config) -> Iterator[Finding]:
    """Yield a finding if training and evaluations see objects at different scales, as their tiles differ."""
    training, evaluated = settings.data.tiles, settings.evaluation.tiles
    if training is not None and evaluated is None:
        yield Finding(
            "warning",
            "evaluated-without-tiles",
            f"training sees tiles of {training.size} pixels (data.tiles), evaluations see whole images at data.resize",
            f"to detect by the same tiles, set evaluation.tiles.size={training.size} "
            f"evaluation.tiles.overlap={training.overlap:g}",
            "validation",
        )
    if training is not None and evaluated is not None and training.size != evaluated.size:
        yield Finding(
            "warning",
            "evaluated-in-other-tiles",
            f"training sees tiles of {training.size} pixels (data.tiles), evaluations see tiles of {evaluated.size} "
            "(evaluation.tiles), both at data.resize",
            f"to detect by the tiles of the training, set evaluation.tiles.size={training.size}",
            "validation",
        )
