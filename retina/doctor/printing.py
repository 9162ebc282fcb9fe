"""An examination in the terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from retina.doctor.ceiling import Share
from retina.doctor.cost import duration, operations, size
from retina.doctor.examine import Examination
from retina.doctor.findings import GRADES, some
from retina.output import count

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}
_CLASSES = 12
# Findings whose groups are listed, and how many of them.
_LISTED, _MOST_LISTED = ("duplicate-images", "copies-with-different-boxes"), 20


def print_examination(terminal: Console, examined: Examination) -> None:
    """Print tables of the splits and the anchors, then the findings, worst last, next to the prompt."""
    if examined.splits:
        terminal.print(_splits(examined))
        for split in examined.splits.values():
            for note in split.notes:
                terminal.print(note, style="dim", markup=False, soft_wrap=True)
    if examined.anchors:
        terminal.print(_coverage(examined))
        _levels(terminal, examined)
    _suggestion(terminal, examined)
    _cost(terminal, examined)
    for grade in reversed(GRADES):
        for finding in examined.findings:
            if finding.grade == grade:
                where = f"{finding.split}: " if finding.split else ""
                terminal.print(f"{grade} {finding.code}: ", style=_STYLES[grade], end="", markup=False)
                terminal.print(f"{where}{finding.message}", markup=False, soft_wrap=True)
                if finding.code.startswith(_LISTED) and len(finding.examples) > 1:
                    for example in finding.examples[:_MOST_LISTED]:
                        terminal.print(f"    {example}", style="dim", markup=False, soft_wrap=True)
                    if len(finding.examples) > _MOST_LISTED:
                        more = len(finding.examples) - _MOST_LISTED
                        terminal.print(f"    and {more} more (--json)", style="dim", markup=False)
                if finding.remedy:
                    terminal.print(f"    → {finding.remedy}", style="dim", markup=False, soft_wrap=True)
    terminal.print(examined.verdict, style="bold", markup=False, soft_wrap=True)


def _splits(examined: Examination) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Boxes")
    table.add_column("")
    for name in examined.splits:
        table.add_column(Text(name), justify="right")
    splits = list(examined.splits.values())
    rows = [
        ("images", [split.images for split in splits]),
        ("without boxes", [split.empty_images for split in splits]),
        ("boxes", [split.boxes for split in splits]),
        ("crowd", [split.crowd for split in splits]),
        ("difficult", [split.difficult for split in splits]),
        *((f"COCO {name}", [split.sizes[name] for split in splits]) for name in ("small", "medium", "large")),
    ]
    names = list(dict.fromkeys(name for split in splits for name in split.classes))
    rows += [(name, [split.classes.get(name, 0) for split in splits]) for name in names[:_CLASSES]]
    for name, numbers in rows:
        table.add_row(Text(name), *(str(number) for number in numbers))
    if len(names) > _CLASSES:
        table.caption = f"and {count(len(names) - _CLASSES, 'more class')} (--html, --json)"
    return table


def _coverage(examined: Examination) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Boxes with a positive anchor, after the resize")
    table.add_column("")
    for name in examined.anchors:
        table.add_column(Text(name), justify="right")
    reports = list(examined.anchors.values())
    table.add_row("all", *(f"{report.total.share:.1%}" for report in reports))
    for name in ("small", "medium", "large"):
        table.add_row(f"COCO {name}", *(_share(report.sizes[name]) for report in reports))
    for name in ("small", "medium", "large"):
        table.add_row(f"{name} on the canvas", *(_share(report.canvas_sizes[name]) for report in reports))
    worst = sorted(reports[0].classes, key=lambda name: reports[0].classes[name].share)
    for name in worst[:_CLASSES]:
        table.add_row(
            Text(name), *(_share(report.classes[name]) if name in report.classes else "–" for report in reports)
        )
    for kind, label in (
        ("assigned", "AP ceiling"),
        ("findable", "… with boxes near the threshold"),
        ("forced", "… with force_match"),
    ):
        table.add_row(label, *(f"{max(report.ceilings[kind]['AP'], 0):.3f}" for report in reports))
    sampled = [f"{name}: {report.images} of {report.all_images}" for name, report in examined.anchors.items()]
    if any(report.images < report.all_images for report in reports):
        table.caption = f"a random sample of images ({some(sampled)})"
    return table


def _share(share: Share) -> str:
    return f"{share.share:.1%} of {share.boxes}" if share.boxes else "–"


def _levels(terminal: Console, examined: Examination) -> None:
    name, report = next(iter(examined.anchors.items()))
    parts = [
        f"P{level.level} ({level.sides[0]:.0f}–{level.sides[1]:.0f} px): {level.positives} for {level.boxes} boxes"
        for level in report.levels
    ]
    terminal.print(f"positive anchors in {name}: {'; '.join(parts)}", markup=False, soft_wrap=True)
    if math.isfinite(report.background_per_positive):
        terminal.print(
            f"imbalance in {name}: {report.background_per_positive:,.0f} background anchors for each positive, each "
            f"scored for {count(len(report.classes), 'class')}; `retina guide gamma` says what that means for γ",
            markup=False,
            soft_wrap=True,
        )
    for name, report in examined.anchors.items():
        if report.training:
            shares = ", ".join(f"{at_size.short}: {at_size.total.share:.1%}" for at_size in report.training)
            terminal.print(
                f"boxes of {name} with a positive anchor at data.resize.train_short {shares}; the table is for short "
                f"{report.short}",
                markup=False,
                soft_wrap=True,
            )


def _suggestion(terminal: Console, examined: Examination) -> None:
    if examined.suggestion is None:
        return
    before, after = examined.suggestion.before, examined.suggestion.after
    gains = ", ".join(
        f"{name} {before[name].total.share:.1%} → {after[name].total.share:.1%} (AP ceiling "
        f"{before[name].ceilings['assigned']['AP']:.3f} → {after[name].ceilings['assigned']['AP']:.3f})"
        for name in after
    )
    terminal.print(f"Anchors that cover more: {gains}", markup=False, soft_wrap=True)
    terminal.print(examined.suggestion.proposal.to_yaml(), markup=False, end="")
    terminal.print(
        "or on the command line: " + " ".join(f"'{text}'" for text in examined.suggestion.proposal.overrides),
        markup=False,
        soft_wrap=True,
    )
    terminal.print("Coverage is not accuracy: train with both to compare.", style="dim", markup=False)


def _cost(terminal: Console, examined: Examination) -> None:
    cost, timing = examined.cost, examined.timing
    if cost is not None:
        parts = ", ".join(f"{name} {size(number)}" for name, number in cost.memory.items())
        terminal.print(
            f"{cost.parameters / 1e6:.1f} million parameters, {cost.trainable / 1e6:.1f} trainable; "
            f"{cost.anchors} anchors on {cost.canvas[0]}x{cost.canvas[1]} (height x width). Memory of a step of "
            f"{count(cost.batch, 'image')} a device, "
            f"estimated: {size(cost.total)} ({parts})",
            markup=False,
            soft_wrap=True,
        )
        terminal.print(
            f"{cost.steps} steps, {cost.images} images, {cost.epochs:.1f} epochs. Arithmetic: {operations(cost.flops)} "
            f"a step, {operations(cost.run_flops)} for the run (3 x the forward pass's convolutions), which is "
            f"{duration(cost.hours)} on a device that achieves 1 TFLOP/s"
            + (". To measure yours: --time N" if timing is None else ""),
            markup=False,
            soft_wrap=True,
        )
    if timing is not None:
        terminal.print(
            f"{timing['images_per_second']:.1f} images/s on {', '.join(timing['devices'])}, {timing['data_wait']:.0%} "
            f"of the time spent waiting for data: {timing['hours']:.2f} h for the run, without evaluations "
            f"(median of {timing['steps'] - 1} steps: {timing['step']:.2f} s)",
            markup=False,
            soft_wrap=True,
        )
