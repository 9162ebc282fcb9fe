"""An examination in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from retina.doctor.ceiling import Share
from retina.doctor.cost import duration, operations, size
from retina.doctor.examine import Examination
from retina.doctor.findings import GRADES, count, some

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}
_CLASSES = 12


def print_examination(terminal: Console, examined: Examination) -> None:
    """Tables of the splits and the anchors, then the findings, worst last: there the reader's eye is."""
    if examined.splits:
        terminal.print(_splits(examined))
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
    found = list(examined.splits.values())
    rows = [
        ("images", [one.images for one in found]),
        ("without boxes", [one.empty_images for one in found]),
        ("boxes", [one.boxes for one in found]),
        ("crowd", [one.crowd for one in found]),
        ("difficult", [one.difficult for one in found]),
        *((f"COCO {name}", [one.sizes[name] for one in found]) for name in ("small", "medium", "large")),
    ]
    names = list(dict.fromkeys(name for one in found for name in one.classes))
    rows += [(name, [one.classes.get(name, 0) for one in found]) for name in names[:_CLASSES]]
    for name, numbers in rows:
        table.add_row(Text(name), *(str(number) for number in numbers))
    if len(names) > _CLASSES:
        table.caption = f"and {len(names) - _CLASSES} more classes (--html, --json)"
    return table


def _coverage(examined: Examination) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Boxes with a positive anchor, after the resize")
    table.add_column("")
    for name in examined.anchors:
        table.add_column(Text(name), justify="right")
    found = list(examined.anchors.values())
    table.add_row("all", *(f"{one.total.share:.1%}" for one in found))
    for name in ("small", "medium", "large"):
        table.add_row(f"COCO {name}", *(_share(one.sizes[name]) for one in found))
    for name in ("small", "medium", "large"):
        table.add_row(f"{name} on the canvas", *(_share(one.canvas_sizes[name]) for one in found))
    worst = sorted(found[0].classes, key=lambda name: found[0].classes[name].share)
    for name in worst[:_CLASSES]:
        table.add_row(Text(name), *(_share(one.classes[name]) if name in one.classes else "–" for one in found))
    for kind, told in (
        ("assigned", "AP ceiling"),
        ("findable", "… with boxes near the threshold"),
        ("forced", "… with force_match"),
    ):
        table.add_row(told, *(f"{max(one.ceilings[kind]['AP'], 0):.3f}" for one in found))
    sampled = [f"{name}: {one.images} of {one.all_images}" for name, one in examined.anchors.items()]
    if any(one.images < one.all_images for one in found):
        table.caption = f"a random sample of images ({some(sampled)})"
    return table


def _share(share: Share) -> str:
    return f"{share.share:.1%} of {share.boxes}" if share.boxes else "–"


def _levels(terminal: Console, examined: Examination) -> None:
    name, found = next(iter(examined.anchors.items()))
    parts = [
        f"P{level.level} ({level.sides[0]:.0f}–{level.sides[1]:.0f} px): {level.positives} for {level.boxes} boxes"
        for level in found.levels
    ]
    terminal.print(f"positive anchors in {name}: {'; '.join(parts)}", markup=False, soft_wrap=True)
    for name, found in examined.anchors.items():
        if found.training:
            told = ", ".join(f"{one.short}: {one.total.share:.1%}" for one in found.training)
            terminal.print(
                f"boxes of {name} with a positive anchor at data.resize.train_short {told}; the table is for short "
                f"{found.short}",
                markup=False,
                soft_wrap=True,
            )


def _suggestion(terminal: Console, examined: Examination) -> None:
    if examined.suggestion is None:
        return
    before, after = examined.suggestion.before, examined.suggestion.after
    told = ", ".join(
        f"{name} {before[name].total.share:.1%} → {after[name].total.share:.1%} (AP ceiling "
        f"{before[name].ceilings['assigned']['AP']:.3f} → {after[name].ceilings['assigned']['AP']:.3f})"
        for name in after
    )
    terminal.print(f"Anchors that cover more: {told}", markup=False, soft_wrap=True)
    terminal.print(examined.suggestion.proposal.to_yaml(), markup=False, end="")
    terminal.print(
        "or on the command line: " + " ".join(f"'{text}'" for text in examined.suggestion.proposal.overrides),
        markup=False,
        soft_wrap=True,
    )
    terminal.print("Coverage is not accuracy: train both for a while to compare.", style="dim", markup=False)


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
            + (". What yours achieves can only be measured: --time N" if timing is None else ""),
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
