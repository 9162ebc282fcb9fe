"""Means over seeds, and tests of differences from the baseline.

A figure of a trial varies for two reasons: other images would have given another figure, and so would another seed.
The bootstrap here resamples both, crossed: a replicate draws seeds with replacement and images with replacement, the
same for both settings, which share the initial weights and the data order of each seed, so that differences are paired
(Owen 2007, "The pigeonhole bootstrap", arXiv:0712.1111; Bouthillier et al. 2021, arXiv:2103.03098, for seeds as a
source of variance).

Few seeds make a coarse interval: a draw of three from three has ten different means, and where the seeds' variance is
the larger one, the 95 % interval is simply the range of the three differences, which misses the true difference in
a quarter of all studies (all three on one side: 2 · ½³). So nothing is called significant by the bootstrap alone: the
differences of the seeds must also pass Student's paired t-test, which accounts for their number.

Three differences are too few to estimate their spread, so the t-test's error is pooled over the settings of a study.
That assumes that seeds scatter all of them equally, and has two guards: a setting below half of the best figure is
left out and compared by its own pair alone, and a pair that scatters more than the pool counts with its own variance.
In 4,000 simulated studies of seven equal settings and three seeds, t-test and Holm's adjustment alone then call
something significant in 3 % with equal noise, in 7 % where one setting has five times the noise of the
others, and in 13 % where that is the baseline (15 % and 22 % without the second guard).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retina.evaluation.bootstrap import interval

LEVEL = 0.95
# A setting below this share of the best mean has broken down: its noise is of another kind.
_BROKEN = 0.5
# Sums of the same terms in another order differ by less; that is no difference between settings.
_EQUAL = 1e-12


@dataclass(frozen=True)
class Spread:
    """`mean` and `sd` (sample standard deviation, None for fewer than two) over `count` trials; mean None for none."""

    count: int
    mean: float | None
    sd: float | None


@dataclass(frozen=True)
class SeedError:
    """`variance` of one figure around the sum of a setting's and a seed's effect, with its `freedom` in degrees.

    `settings` is the number of settings that it was estimated from.
    """

    variance: float
    freedom: int
    settings: int


@dataclass(frozen=True)
class Difference:
    """A figure of a setting minus the baseline's, over the seeds that both have.

    Attributes:
        seeds: their number.
        value: mean difference.
        low, high: percentile interval at 95 %, seeds and images resampled; not adjusted for several settings.
        superiority: share of the replicates in which the setting has more, ties for half.
        p_bootstrap: two-sided, from the share of replicates on the other side of 0.
        p_seeds: two-sided, of the t-test over seeds; None for a single seed.
        p: the larger of both; None for a single seed, which can't separate chance from effect.
    """

    seeds: int
    value: float
    low: float
    high: float
    superiority: float
    p_bootstrap: float
    p_seeds: float | None
    p: float | None


def spread(values: np.ndarray) -> Spread:
    """Return the spread of the figures [R] of a setting's trials; NaN where there is none."""
    known = values[~np.isnan(values)]
    if not len(known):
        return Spread(0, None, None)
    return Spread(len(known), float(known.mean()), float(known.std(ddof=1)) if len(known) > 1 else None)


def pooled(observed: np.ndarray) -> np.ndarray:
    """Return which settings with the figures [S, R] (NaN: none) share the pooled error: those not broken down.

    A setting has broken down if its mean is below half of the best, or if it has no figure at all.
    """
    known = ~np.isnan(observed)
    means = np.where(known, observed, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    comparable: np.ndarray = known.any(axis=1) & (means >= _BROKEN * means.max(initial=0.0)) & (means > 0)
    return comparable


def seed_error(observed: np.ndarray) -> SeedError | None:
    """Return the residual variance of the figures [S, R] of `pooled` settings after the effects of setting and seed.

    The two-way analysis of variance without interaction, by least squares over the figures there are, so that a missing
    figure (NaN) costs no other. It assumes equal variances. None where fewer than two settings or two seeds are
    left.
    """
    rows, columns = np.nonzero(~np.isnan(observed) & pooled(observed)[:, None])
    values = observed[rows, columns]
    design = np.concatenate([rows[:, None] == np.unique(rows), columns[:, None] == np.unique(columns)], axis=1)
    effects, _, rank, _ = np.linalg.lstsq(design.astype(float), values, rcond=None) if len(rows) else (0, 0, 0, 0)
    freedom = len(rows) - int(rank)
    if not freedom:
        return None
    residual = values - design @ effects
    return SeedError(float((residual**2).sum()) / freedom, freedom, len(np.unique(rows)))


def enough_replicates(comparisons: int) -> int:
    """Return how many replicates the bootstrap needs so that its smallest p, 2/(B + 1), can pass `comparisons` by Holm.

    Twice as many as suffice if all of them lie on the same side.
    """
    return round(4 * comparisons / (1 - LEVEL))


def too_few_replicates(replicates: int, comparisons: int) -> bool:
    """Return whether no difference, however large, can be significant with these replicates."""
    return comparisons * 2 / (replicates + 1) >= 1 - LEVEL


def difference(
    observed: np.ndarray,
    baseline: np.ndarray,
    replicates: np.ndarray,
    baseline_replicates: np.ndarray,
    *,
    error: SeedError | None = None,
    seed: int = 0,
) -> Difference | None:
    """Return the difference of a setting from the baseline; None if they have no seed in common.

    Args:
        observed, baseline: [R] figures by seed, NaN where a trial has none.
        replicates, baseline_replicates: [R, B] the same figures under the same B resamples of the images.
        error: pooled over the study's settings; the error of the pair counts if it is larger, or if this is None.
        seed: of the draws of seeds.
    """
    common = ~np.isnan(observed - baseline)
    count = int(common.sum())
    if not count:
        return None
    differences = (observed - baseline)[common]
    table = (replicates - baseline_replicates)[common]
    draws = np.random.default_rng(seed).integers(count, size=(table.shape[1], count))
    resampled = table[draws, np.arange(table.shape[1])[:, None]].mean(axis=1)
    resampled = resampled[~np.isnan(resampled)]
    resampled[np.abs(resampled) < _EQUAL] = 0.0
    low, high = interval(resampled, LEVEL)
    above, below = int((resampled > 0).sum()), int((resampled < 0).sum())
    total = len(resampled)
    # One more than counted on each side: a share of 0 among B replicates is not a probability of 0.
    p_bootstrap = min(1.0, 2 * (min(total - above, total - below) + 1) / (total + 1))
    p_seeds = _t_test(differences, error)
    return Difference(
        count,
        float(differences.mean()),
        float(low),
        float(high),
        (above + (total - above - below) / 2) / total if total else 0.5,
        p_bootstrap,
        p_seeds,
        None if p_seeds is None else max(p_bootstrap, p_seeds),
    )


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Return p-values adjusted for their number after Holm (1979); None stays None and does not count."""
    known = sorted((value, place) for place, value in enumerate(values) if value is not None)
    out: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (value, place) in enumerate(known):
        highest = max(highest, min(1.0, value * (len(known) - rank)))
        out[place] = highest
    return out


def _t_test(differences: np.ndarray, error: SeedError | None) -> float | None:
    """Two-sided p of Student's test that the mean of [n] differences is 0; None for fewer than two."""
    from scipy.special import stdtr

    count, mean = len(differences), float(differences.mean())
    if count < 2:
        return None
    pair_variance = float(differences.var(ddof=1)) / 2  # of one figure, not of a difference of two
    variance, freedom = (
        (pair_variance, count - 1) if error is None else (max(pair_variance, error.variance), error.freedom)
    )
    deviation = (2 * variance / count) ** 0.5
    if deviation < _EQUAL:  # the same in every seed
        return 1.0 if abs(mean) < _EQUAL else 0.0
    return float(2 * stdtr(freedom, -abs(mean) / deviation))
