"""Two settings, each trained with several seeds, compared as a study compares its settings: over seeds and images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from retina.ablation.statistics import LEVEL, Difference, Spread, difference, spread
from retina.data.ground_truth import GroundTruth
from retina.errors import RetinaError
from retina.evaluation.bootstrap import NAMES, bootstrap, observed
from retina.evaluation.matching import Matches
from retina.evaluation.tables import NONE, Column, table

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class SettingsComparison:
    """Differences of setting B from setting A.

    Attributes:
        seeds: of the trainings, which both settings have.
        a, b: of `AP`, `AP50`, `AP75` over the seeds.
        differences: of the same, B - A; None where no box counts.
        images: N.
        replicates, seed: of the bootstrap.
    """

    seeds: tuple[int, ...]
    a: dict[str, Spread]
    b: dict[str, Spread]
    differences: dict[str, Difference | None]
    images: int
    replicates: int
    seed: int

    @property
    def significant(self) -> bool:
        """True if AP differs at 95 %, by the bootstrap and by the test over seeds."""
        overall = self.differences["AP"]
        return overall is not None and overall.p is not None and overall.p < 1 - LEVEL


def compare_settings(
    truth: GroundTruth,
    matches_a: Mapping[int, Matches],
    matches_b: Mapping[int, Matches],
    *,
    replicates: int = 1000,
    seed: int = 0,
) -> SettingsComparison:
    """Return the differences B - A, from the same resamples of images and seeds for both.

    Args:
        matches_a, matches_b: of each training with `truth`, by the seed of the training.
        replicates, seed: see `retina.evaluation.bootstrap.bootstrap`.

    Raises:
        RetinaError: the settings were not trained with the same seeds.
    """
    if sorted(matches_a) != sorted(matches_b):
        raise RetinaError(
            f"compare: expected trainings of both settings with the same run.seed, got {sorted(matches_a)} for A and "
            f"{sorted(matches_b)} for B; leave the others out, or train those that lack"
        )
    seeds = tuple(sorted(matches_a))
    pair = [[matches[number] for number in seeds] for matches in (matches_a, matches_b)]
    plain = [[observed(matches) for matches in setting] for setting in pair]
    drawn = [[bootstrap(matches, replicates=replicates, seed=seed) for matches in setting] for setting in pair]
    a, b = dict[str, Spread](), dict[str, Spread]()
    differences: dict[str, Difference | None] = {}
    for name in NAMES:
        of_a, of_b = (np.concatenate([figures[name] for figures in setting]) for setting in plain)
        drawn_a, drawn_b = (np.stack([figures[name] for figures in setting]) for setting in drawn)
        a[name], b[name] = spread(of_a), spread(of_b)
        differences[name] = difference(of_b, of_a, drawn_b, drawn_a, seed=seed)
    return SettingsComparison(seeds, a, b, differences, len(truth), replicates, seed)


def settings_verdict(comparison: SettingsComparison) -> str:
    """Return in one sentence which setting has the higher AP."""
    overall, count = comparison.differences["AP"], len(comparison.seeds)
    if overall is None:
        return "Nothing can be compared: no box of the ground truth counts"
    interval = f"{100 * LEVEL:g} % interval {overall.low:+.3f} to {overall.high:+.3f}"
    against = f"B has {overall.value:+.3f} AP against A"
    if overall.p is None:
        return f"No conclusion on the settings is possible from one seed: {against} ({interval})"
    text = f"{against} over {count} seeds ({interval}, p = {overall.p:.3f})"
    if not comparison.significant:
        return f"No clear difference between the settings: {text}"
    return f"Setting {'B' if overall.value > 0 else 'A'} is better: {text}, for trainings and images like these"


def to_json(comparison: SettingsComparison) -> dict[str, Any]:
    """Return plain values: `metrics` (by figure: `a`, `b`, `difference`), `seeds`, `images`, `replicates`, `seed`,
    `level`, `significant`, `verdict`."""
    return {
        "metrics": {
            name: {
                "a": asdict(comparison.a[name]),
                "b": asdict(comparison.b[name]),
                "difference": None if (value := comparison.differences[name]) is None else asdict(value),
            }
            for name in NAMES
        },
        "seeds": list(comparison.seeds),
        **{key: getattr(comparison, key) for key in ("images", "replicates", "seed")},
        "level": LEVEL,
        "significant": comparison.significant,
        "verdict": settings_verdict(comparison),
    }


def settings_table(comparison: SettingsComparison, width: int | None = None) -> Table:
    """Return a table with a row for each figure; `width` as of `retina.evaluation.tables.table`."""
    columns = [
        Column("figure", "left"),
        Column("A"),
        Column("B"),
        Column("B - A"),
        Column(f"{100 * LEVEL:g} % interval", group="interval"),
        Column("p"),
    ]
    rows = [
        [name, _shown(comparison.a[name]), _shown(comparison.b[name]), *_cells(comparison.differences[name])]
        for name in NAMES
    ]
    seeds = ", ".join(map(str, comparison.seeds))
    return table(f"{comparison.images:,} images, seeds {seeds}", columns, rows, width=width)


def _shown(figure: Spread) -> str:
    if figure.mean is None:
        return NONE
    return f"{figure.mean:.3f}" if figure.sd is None else f"{figure.mean:.3f} ± {figure.sd:.3f}"


def _cells(value: Difference | None) -> list[str]:
    if value is None:
        return [NONE] * 3
    p = NONE if value.p is None else f"{value.p:.3f}"
    return [f"{value.value:+.3f}", f"{value.low:+.3f} to {value.high:+.3f}", p]
