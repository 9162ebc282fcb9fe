"""VOC's figures as flat names, for `--json`, and as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from retina.evaluation.terminal import NONE, Column, class_cell, table, value
from retina.evaluation.voc import VocMetrics

if TYPE_CHECKING:
    from rich.table import Table

# A figure is named after the way its curve is averaged, for the same detections differ in it.
SHORT = {"voc07": "11pt", "voc10": "allpt"}
_WORDS = {"voc07": "mean of 11 precisions (VOC 2007)", "voc10": "area under every point (VOC 2010 and later)"}


def flat_metrics(voc: Sequence[VocMetrics]) -> dict[str, float]:
    """`{"mAP_11pt@0.5": …, "mAP_allpt@0.5": …}`, by overlap and protocol."""
    return {f"mAP_{name}": figures["mAP"] for name, figures, _ in _columns(voc)}


def flat_classes(voc: Sequence[VocMetrics]) -> dict[str, dict[str, float]]:
    """For each class `{"AP_11pt@0.5": …, "boxes": …}`."""
    columns = _columns(voc)
    out: dict[str, dict[str, float]] = {}
    for class_name in columns[0][1]["per_class"] if columns else ():
        rows = {name: figures["per_class"][class_name] for name, figures, _ in columns}
        out[class_name] = {f"AP_{name}": row["AP"] for name, row in rows.items()}
        out[class_name]["boxes"] = next(iter(rows.values()))["boxes"]
    return out


def voc_metrics_table(voc: Sequence[VocMetrics], title: str) -> Table:
    """One row a figure: its name, its value (or in words why there is none) and what it means."""
    rows = []
    for name, figures, protocol in _columns(voc):
        meaning = f"mean over classes at IoU {name.partition('@')[2]}, {_WORDS[protocol]}"
        said = meaning if figures["mAP"] >= 0 else "[dim]no ground truth[/dim]"
        rows.append([f"mAP_{name}", value(figures["mAP"]), said])
    return table(title, [Column("figure", "left"), Column("value"), Column("meaning", "left")], rows)


def voc_class_table(voc: Sequence[VocMetrics], width: int | None = None, *, coloured: bool = False) -> Table:
    """One row a class, in the order of the labels.

    Args:
        width: of the terminal; None leaves no column out.
        coloured: the terminal shows colours, so classes are given theirs.
    """
    classes = flat_classes(voc)
    names = [name for name, _, _ in _columns(voc)]
    rows = [
        [
            class_cell(class_name, label, coloured),
            f"{int(figures['boxes']):,}",
            *(value(figures[f"AP_{name}"]) for name in names),
        ]
        for label, (class_name, figures) in enumerate(classes.items())
    ]
    # The first figure stays, each of the others may go.
    groups = ["", *names[1:]]
    columns = [Column("class", "left"), Column("boxes")]
    columns += [Column(name, group=group) for name, group in zip(names, groups, strict=False)]
    nothing = any(not figures["boxes"] for figures in classes.values())
    notes = [f"{NONE}: no ground truth, left out of the mean"] if nothing else []
    return table("AP per class", columns, rows, width=width, notes=notes)


def _columns(voc: Sequence[VocMetrics]) -> list[tuple[str, dict, str]]:
    """(name such as "11pt@0.5", its figures, protocol), by overlap and then protocol."""
    overlaps = list(voc[0].figures) if voc else []
    return [(f"{SHORT[one.protocol]}@{iou}", one.figures[iou], one.protocol) for iou in overlaps for one in voc]
