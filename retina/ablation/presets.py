"""The paper's ablations and their figures (arXiv:1708.02002, table 1, COCO minival, per cent)."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

NAMES = ("AP", "AP50", "AP75")


@dataclass(frozen=True)
class Setting:
    """A row of a study.

    Attributes:
        name: of its run directories: letters, digits and `. _ = + -`.
        label: its name in tables and plots.
        overrides: dotted keys of the configuration and their values.
        paper: `AP`, `AP50`, `AP75` that the paper reports for it, fractions in [0, 1]; empty where it reports none.
        seeds: its trainings where they differ from the study's number; None for as many.
    """

    name: str
    label: str
    overrides: dict[str, Any]
    paper: dict[str, float]
    seeds: int | None = None


@dataclass(frozen=True)
class Preset:
    """Settings of a table of the paper: `baseline` names the one to compare with; `note` describes the trainings."""

    settings: tuple[Setting, ...]
    baseline: str
    note: str


def focal(gamma: float, alpha: float | None, paper: dict[str, float] | None = None) -> Setting:
    """Return the setting of focal loss; gamma 0 is α-balanced cross-entropy, alpha None means no balancing."""
    first, second = _short(gamma), "none" if alpha is None else _short(alpha)
    return Setting(
        f"gamma{first}_alpha{second}",
        f"γ {first}, α {second}",
        {"loss.classification": {"kind": "focal", "alpha": alpha, "gamma": gamma}},
        paper or {},
    )


def _short(value: float) -> str:
    """The fewest digits that identify the number."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(float(value))


def _ohem(hardest: int, ratio: int | None, paper: dict[str, float]) -> Setting:
    return Setting(
        f"ohem{hardest}" + (f"_1to{ratio}" if ratio else ""),
        f"OHEM {hardest}" + (f", 1:{ratio}" if ratio else ""),
        {"loss.classification": {"kind": "ohem", "ratio": ratio, "hardest": hardest}},
        paper,
    )


def _paper(ap: float, ap50: float, ap75: float) -> dict[str, float]:
    """Fractions from the paper's per cent."""
    return {name: round(value / 100, 3) for name, value in zip(NAMES, (ap, ap50, ap75), strict=True)}


_TABLE_1A = Preset(
    (
        focal(0.0, 0.1, _paper(0.0, 0.0, 0.0)),
        focal(0.0, 0.25, _paper(10.8, 16.0, 11.7)),
        focal(0.0, 0.5, _paper(30.2, 46.7, 32.8)),
        focal(0.0, 0.75, _paper(31.1, 49.4, 33.0)),
        focal(0.0, 0.9, _paper(30.8, 49.7, 32.3)),
        focal(0.0, 0.99, _paper(28.7, 47.4, 29.9)),
        focal(0.0, 0.999, _paper(25.1, 41.7, 26.1)),
    ),
    baseline="gamma0_alpha0.5",
    note="arXiv:1708.02002, table 1a: α of cross-entropy; ResNet-50-FPN at 600 pixels, COCO",
)

_TABLE_1B = Preset(
    (
        focal(0.0, 0.75, _paper(31.1, 49.4, 33.0)),
        focal(0.1, 0.75, _paper(31.4, 49.9, 33.1)),
        focal(0.2, 0.75, _paper(31.9, 50.7, 33.4)),
        focal(0.5, 0.5, _paper(32.9, 51.7, 35.2)),
        focal(1.0, 0.25, _paper(33.7, 52.0, 36.2)),
        focal(2.0, 0.25, _paper(34.0, 52.5, 36.5)),
        focal(5.0, 0.25, _paper(32.2, 49.6, 34.8)),
    ),
    baseline="gamma0_alpha0.75",
    note="arXiv:1708.02002, table 1b: γ with the best α of each; ResNet-50-FPN at 600 pixels, COCO",
)

_TABLE_1D = Preset(
    (
        _ohem(128, None, _paper(32.8, 50.3, 35.1)),
        _ohem(256, None, _paper(31.0, 47.4, 33.0)),
        _ohem(512, None, _paper(27.6, 42.0, 29.2)),
        _ohem(128, 3, _paper(31.1, 47.2, 33.2)),
        _ohem(256, 3, _paper(28.3, 42.4, 30.3)),
        _ohem(512, 3, _paper(24.0, 35.5, 25.8)),
        focal(2.0, 0.25, _paper(36.0, 54.9, 38.7)),
    ),
    baseline="gamma2_alpha0.25",
    note=(
        "arXiv:1708.02002, table 1d: OHEM against focal loss; ResNet-101-FPN at 600 pixels, COCO. Of OHEM the rows "
        "with non-maximum suppression at 0.5, which ours leaves out"
    ),
)

PRESETS = MappingProxyType({"table1a": _TABLE_1A, "table1b": _TABLE_1B, "table1d": _TABLE_1D})
