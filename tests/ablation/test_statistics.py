"""Means, paired differences and significance on tables whose truth is known."""

import numpy as np
import pytest
from scipy import stats

from retina.ablation.statistics import (
    Difference,
    SeedError,
    difference,
    enough_replicates,
    holm,
    pooled,
    seed_error,
    spread,
    too_few_replicates,
)

NAN = np.nan


def table(observed, images: int = 400, seed: int = 0) -> np.ndarray:
    """[R, 1000] replicates around the observed figures [R], with the same noise of images for all."""
    noise = np.random.default_rng(seed).normal(0, 1 / images**0.5, 1000)
    return np.asarray(observed)[:, None] + noise


def compared(mine, base, **more) -> Difference | None:
    mine, base = np.asarray(mine, float), np.asarray(base, float)
    return difference(mine, base, table(mine), table(base), **more)


# -------------------------------------------------------------------------------------------------- nothing to see


def test_no_common_seed():
    assert compared([NAN, NAN], [0.5, 0.4]) is None
    assert compared([NAN, 0.5], [0.4, NAN]) is None


def test_a_setting_is_no_different_from_itself():
    found = compared([0.5, 0.4, 0.45], [0.5, 0.4, 0.45])
    assert (found.value, found.low, found.high, found.superiority) == (0, 0, 0, 0.5)
    assert (found.p_bootstrap, found.p_seeds, found.p) == (1, 1, 1)


def test_one_seed_claims_nothing():
    found = compared([0.6], [0.4])
    assert found.seeds == 1 and found.value == pytest.approx(0.2)
    assert found.p_seeds is None and found.p is None


def test_spreads():
    none, one, two = spread(np.array([NAN])), spread(np.array([NAN, 0.4])), spread(np.array([0.2, NAN, 0.4]))
    assert (none.count, none.mean, none.sd) == (0, None, None)
    assert (one.count, one.mean, one.sd) == (1, 0.4, None)
    assert (two.count, two.mean, two.sd) == (2, pytest.approx(0.3), pytest.approx(0.02**0.5))


# ------------------------------------------------------------------------------------------------------ differences


def test_images_drawn_alike_cancel():
    """Both settings see the same resample, so that noise of the images drops out of a constant difference."""
    found = compared([0.6, 0.5, 0.4], [0.5, 0.4, 0.3])
    assert [found.value, found.low, found.high] == pytest.approx([0.1, 0.1, 0.1])
    assert found.superiority == 1 and found.p_bootstrap == 2 / 1001 and found.p == 2 / 1001


def test_seeds_are_resampled_in_pairs():
    """Differences 0, 0.3 and 0.6: a draw of three with replacement has mean 0 with probability 1/27, 0.6 likewise."""
    found = compared([0.5, 0.8, 1.1], [0.5, 0.5, 0.5])
    assert [found.value, found.low, found.high] == pytest.approx([0.3, 0.0, 0.6])
    assert found.superiority == pytest.approx(1 - 0.5 / 27, abs=0.01)
    assert found.p_bootstrap == pytest.approx(2 / 27, abs=0.03)
    assert found.p_seeds == pytest.approx(stats.ttest_1samp([0.0, 0.3, 0.6], 0).pvalue)


def test_three_seeds_on_one_side_are_not_enough():
    """The bootstrap alone would call this significant; in one of four studies of nothing at all it would."""
    found = compared([0.51, 0.56, 0.52], [0.5, 0.5, 0.5])
    assert found.low > 0 and found.p_bootstrap < 0.01
    assert found.p == found.p_seeds == pytest.approx(stats.ttest_1samp([0.01, 0.06, 0.02], 0).pvalue)
    assert found.p > 0.05


def test_image_noise_that_differs_widens_the_interval():
    mine, base = np.full(3, 0.52), np.full(3, 0.5)
    found = difference(mine, base, table(mine, seed=1), table(base, seed=2))
    # Two independent noises of 0.05: their difference has 0.0707.
    assert [found.low, found.high] == pytest.approx([0.02 - 1.96 * 0.0707, 0.02 + 1.96 * 0.0707], abs=0.015)
    assert found.p > 0.5


def test_only_seeds_of_both_count():
    found = compared([0.6, NAN, 0.7], [0.5, 0.9, 0.5])
    assert found.seeds == 2 and found.value == pytest.approx(0.15)


def test_the_order_of_the_settings_turns_the_sign():
    one, other = compared([0.6, 0.4, 0.5], [0.5, 0.45, 0.3]), compared([0.5, 0.45, 0.3], [0.6, 0.4, 0.5])
    assert one.value == pytest.approx(-other.value) and one.low == pytest.approx(-other.high)
    assert one.superiority == pytest.approx(1 - other.superiority) and one.p == pytest.approx(other.p)


def test_false_alarms_are_rare():
    """2,000 studies of three seeds without any difference: one in twenty is called significant, as it should be."""
    rng = np.random.default_rng(5)
    alarms, bootstrap_alone = 0, 0
    for _ in range(2000):
        seeds, images = rng.normal(0, 0.02, 3), rng.normal(0, 0.002, (3, 200))
        found = difference(seeds, np.zeros(3), seeds[:, None] + images, np.zeros((3, 200)))
        alarms += found.p < 0.05
        bootstrap_alone += found.p_bootstrap < 0.05
    assert 0.03 < alarms / 2000 < 0.065
    assert 0.2 < bootstrap_alone / 2000 < 0.3  # what the t-test is there for: 2 · ½³


def test_one_seed_in_common_gives_no_p_though_the_study_knows_its_error():
    observed = np.array([[0.5, 0.52, 0.47], [0.56, 0.55, 0.55], [0.9, NAN, NAN]])
    found = compared(observed[2], observed[0], error=seed_error(observed))
    assert found.seeds == 1 and found.value == pytest.approx(0.4)
    assert found.p_seeds is None and found.p is None


def test_the_error_of_seeds_is_that_of_a_two_way_analysis_of_variance():
    # Settings differ by 0.1, seeds by 0.02; what is left is ±0.01 in a pattern that both means leave alone.
    left = 0.01 * np.array([[1, -1, 0], [-1, 1, 0], [0, 0, 0]])
    observed = 0.3 + 0.1 * np.arange(3)[:, None] + 0.02 * np.arange(3) + left
    assert seed_error(observed) == SeedError(pytest.approx(4e-4 / 4), 4, 3)
    unused = [[0.0, 0.0, 0.0], [0.1, 0.2, 0.2], [NAN, NAN, NAN]]  # never found anything; broken down; no trial ended
    assert seed_error(np.concatenate([observed, unused])) == SeedError(pytest.approx(1e-4), 4, 3)
    assert seed_error(observed[:1]) is None and seed_error(observed[:, :1]) is None
    assert seed_error(np.full((3, 3), NAN)) is None and seed_error(np.zeros((3, 3))) is None


def test_a_missing_figure_costs_itself_and_no_more():
    """A study in its third round: of that seed there is one figure, which its own effect explains."""
    observed = np.array([[0.50, 0.54, 0.6], [0.60, 0.62, NAN], [0.56, 0.60, NAN]])
    # Of the first two seeds: differences 0.04, 0.02, 0.04, so residuals ±1/3 and ∓2/3 of 0.01, in pairs.
    expected = 2 * (2 * (0.01 / 3) ** 2 + (0.02 / 3) ** 2) / 2
    assert seed_error(observed) == SeedError(pytest.approx(expected), 2, 3)
    assert seed_error(observed) == SeedError(pytest.approx(seed_error(observed[:, :2]).variance), 2, 3)
    observed[1, 2] = 0.64  # with a second figure the third seed counts, though a setting lacks it
    assert seed_error(observed).freedom == 3


def test_what_has_broken_down_is_not_pooled():
    observed = np.array([[0.5, 0.5], [0.25, 0.25], [0.2, 0.2], [0.9, NAN], [NAN, NAN], [0, 0]])
    assert pooled(observed).tolist() == [True, False, False, True, False, False]
    assert pooled(observed[:3]).tolist() == [True, True, False]
    assert pooled(np.zeros((2, 2))).tolist() == [False, False] and pooled(np.zeros((0, 2))).tolist() == []


def test_a_pair_that_scatters_more_than_the_study_counts_with_its_own_variance():
    quiet, loud = compared([0.51, 0.51, 0.52], [0.5] * 3, error=SeedError(1e-4, 12, 7)), None
    assert quiet.p_seeds == pytest.approx(2 * stats.t.sf((0.04 / 3) / (2e-4 / 3) ** 0.5, 12))
    loud = compared([0.5, 0.8, 1.1], [0.5] * 3, error=SeedError(1e-4, 12, 7))
    assert loud.p_seeds == pytest.approx(2 * stats.t.sf(0.3 / (0.3**2 / 3) ** 0.5, 12))


def test_replicates_for_many_settings():
    # The smallest p of 1000 replicates is 2/1001: 25 times that is below 0.05, 26 times is not.
    assert not too_few_replicates(1000, 25) and too_few_replicates(1000, 26)
    assert enough_replicates(1) == 80 and enough_replicates(26) == 2080
    assert not any(too_few_replicates(enough_replicates(count), count) for count in range(1, 200))


def test_of_two_settings_it_is_the_paired_t_test():
    observed = np.array([[0.5, 0.52, 0.47], [0.56, 0.55, 0.55]])
    expected = stats.ttest_rel(observed[1], observed[0]).pvalue
    found = compared(observed[1], observed[0], error=seed_error(observed))
    assert found.p_seeds == pytest.approx(expected) == pytest.approx(compared(observed[1], observed[0]).p_seeds)


def alarms_of_the_seeds(sds: list[float], *, studies: int = 1000, seed: int = 7) -> float:
    """Share of studies of equal settings, seeds scattered by `sds`, of which t-test and Holm alone call any different.

    The loop over studies is the code under test; a single replicate keeps the bootstrap out of it.
    """
    rng = np.random.default_rng(seed)
    alarms = 0
    for _ in range(studies):
        observed = 0.5 + rng.normal(0, 0.02, 3) + rng.normal(0, 1, (len(sds), 3)) * np.array(sds)[:, None]
        error, drawn = seed_error(observed), observed[..., None]
        found = [difference(row, observed[0], table_, drawn[0], error=error) for row, table_ in
                 zip(observed[1:], drawn[1:], strict=True)]  # fmt: skip
        alarms += min(holm([one.p_seeds for one in found])) < 0.05
    return alarms / studies


def test_false_alarms_are_rare_among_seven_settings():
    """One alarm in all six comparisons counts; Holm is a little strict, for they share the baseline."""
    assert 0.01 < alarms_of_the_seeds([0.01] * 7) < 0.06


@pytest.mark.parametrize("sds", [[0.01] * 6 + [0.05], [0.01] * 6 + [0.1], [0.01] * 4 + [0.03] * 3])
def test_a_noisy_setting_raises_few_false_alarms(sds):
    """With the pooled error alone 15, 20 and 5 % of such studies would call a difference."""
    assert 0.01 < alarms_of_the_seeds(sds) < 0.12


def test_a_noisy_baseline_raises_the_most():
    """It is in every comparison. With the pooled error alone this would be 22 %."""
    assert 0.05 < alarms_of_the_seeds([0.05] + [0.01] * 6) < 0.16


def test_a_true_difference_is_found():
    rng = np.random.default_rng(6)
    found = [compared(0.6 + rng.normal(0, 0.01, 3), [0.5] * 3).p < 0.05 for _ in range(300)]
    assert np.mean(found) > 0.95


# ------------------------------------------------------------------------------------------------------------- Holm


def test_holm():
    assert holm([]) == []
    assert holm([None, 0.03]) == [None, 0.03]
    # Ordered 0.01, 0.02, 0.04, times 3, 2, 1: 0.03, 0.04, 0.04.
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    # 0.02 · 3 = 0.06, and no later one may be smaller; none exceeds 1.
    assert holm([0.02, 0.025, 0.9]) == pytest.approx([0.06, 0.06, 0.9])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
