"""The figures of an evaluation as tables for the terminal and as the tree that `--json` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.table import Table

    from retina.evaluation.coco import Metrics

_SIZES = {
    "s": "small objects (up to 32² px)",
    "m": "medium objects (32² to 96² px)",
    "l": "large objects (above 96² px)",
}


def to_json(metrics: Metrics) -> dict[str, Any]:
    """Plain values: `metrics` and `per_class` as in `Metrics` (undefined figures stay -1), and the three counts."""
    return {
        "metrics": dict(metrics.metrics),
        "per_class": {name: dict(figures) for name, figures in metrics.per_class.items()},
        "images": metrics.images,
        "boxes": metrics.boxes,
        "detections": metrics.detections,
    }


def metrics_table(metrics: Metrics) -> Table:
    """One row a figure: its name, its value (or in words why there is none) and what it means."""
    table = _table(
        f"{metrics.images:,} images, {metrics.boxes:,} boxes, {metrics.detections:,} detections",
        ("figure", "left"),
        ("value", "right"),
        ("meaning", "left"),
    )
    for name, value in metrics.metrics.items():
        table.add_row(name, _value(value), meaning(name) if value >= 0 else f"[dim]{undefined(name)}[/dim]")
    return table


def class_table(metrics: Metrics) -> Table:
    """One row a class, in the dataset's order."""
    from rich.markup import escape

    table = _table(
        "per class", ("class", "left"), ("boxes", "right"), *((key, "right") for key in ("AP", "AP50", "AP75"))
    )
    for name, figures in metrics.per_class.items():
        values = [_value(figures[key]) for key in ("AP", "AP50", "AP75")]
        if figures["AP"] < 0:
            values = ["[dim]no ground truth[/dim]", "–", "–"]
        table.add_row(escape(name), f"{int(figures['boxes']):,}", *values)
    return table


def meaning(name: str) -> str:
    """What a figure is, in words: `AP50`, `ARs`, `AR100`, …"""
    kind, rest = name[:2], name[2:]
    what = "average precision" if kind == "AP" else "average recall"
    if rest in _SIZES:
        return f"{what}, {_SIZES[rest]}"
    if kind == "AP":
        return f"{what} at IoU {f'0.{rest}' if rest else '0.50 to 0.95'}"
    return f"{what} with at most {rest} detection{'' if rest == '1' else 's'} per class and image"


def undefined(name: str) -> str:
    """Why a figure is -1."""
    return "no ground truth of that size" if name[2:] in _SIZES else "no ground truth"


def _value(value: float) -> str:
    return f"{value:.3f}" if value >= 0 else "–"


def _table(title: str, *columns: tuple[str, Literal["left", "right"]]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for header, justify in columns:
        table.add_column(header, justify=justify)
    return table
