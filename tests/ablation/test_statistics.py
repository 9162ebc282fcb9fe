"""Means, paired differences and significance on tables whose truth is known."""

import numpy as np
import pytest
from scipy import stats

from retina.ablation.statistics import Difference, SeedError, difference, holm, seed_error, spread

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
    """2,000 studies of three seeds without any difference: at most one in twenty is called significant."""
    rng = np.random.default_rng(5)
    alarms, bootstrap_alone = 0, 0
    for _ in range(2000):
        seeds, images = rng.normal(0, 0.02, 3), rng.normal(0, 0.002, (3, 200))
        found = difference(seeds, np.zeros(3), seeds[:, None] + images, np.zeros((3, 200)))
        alarms += found.p < 0.05
        bootstrap_alone += found.p_bootstrap < 0.05
    assert alarms / 2000 < 0.06
    assert 0.2 < bootstrap_alone / 2000 < 0.3  # what the t-test is there for: 2 · ½³


def test_the_error_of_seeds_is_that_of_a_two_way_analysis_of_variance():
    # Settings differ by 0.1, seeds by 0.02; what is left is ±0.01 in a pattern that both means leave alone.
    left = 0.01 * np.array([[1, -1, 0], [-1, 1, 0], [0, 0, 0]])
    observed = 0.3 + 0.1 * np.arange(3)[:, None] + 0.02 * np.arange(3) + left
    assert seed_error(observed) == SeedError(pytest.approx(4e-4 / 4), 4)
    unused = [[0.5, NAN, 0.6], [0.0, 0.0, 0.0]]  # an incomplete setting, and one that never found anything
    assert seed_error(np.concatenate([observed, unused])) == SeedError(pytest.approx(1e-4), 4)
    assert seed_error(observed[:1]) is None and seed_error(observed[:, :1]) is None


def test_of_two_settings_it_is_the_paired_t_test():
    observed = np.array([[0.5, 0.52, 0.47], [0.56, 0.55, 0.55]])
    expected = stats.ttest_rel(observed[1], observed[0]).pvalue
    found = compared(observed[1], observed[0], error=seed_error(observed))
    assert found.p_seeds == pytest.approx(expected) == pytest.approx(compared(observed[1], observed[0]).p_seeds)


def test_false_alarms_are_rare_among_seven_settings():
    """500 studies of seven settings that are all the same, seeds drawn for each: one alarm in all of them counts."""
    rng = np.random.default_rng(7)
    alarms = 0
    for _ in range(500):
        observed = 0.5 + rng.normal(0, 0.02, 3) + rng.normal(0, 0.01, (7, 3))
        drawn = observed[..., None] + rng.normal(0, 0.001, (7, 3, 100))
        error = seed_error(observed)
        found = [difference(observed[s], observed[0], drawn[s], drawn[0], error=error) for s in range(1, 7)]
        alarms += min(holm([one.p for one in found])) < 0.05
    assert alarms / 500 < 0.07


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
