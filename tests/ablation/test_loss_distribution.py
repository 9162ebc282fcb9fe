"""The paper's figure 4 on samples whose distribution is known."""

import json
import math

import numpy as np
import pytest

from retina.ablation.loss_distribution import Samples, distribution, easy_background_share, table, to_json, write
from retina.ablation.sampling import loss_distribution
from retina.errors import RetinaError


def focal(z, gamma):
    """From the definition: -(1 - p)^γ log p of the right answer's probability p = σ(-z)."""
    p = 1 / (1 + np.exp(z))
    return (1 - p) ** gamma * -np.log(p)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gammas": [-1.0]}, "--gamma: expected numbers of at least 0, got -1"),
        ({"gammas": [float("nan")]}, "got nan"),
        ({"gammas": [0.0], "images": 0}, "--images: expected at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_loaded(tmp_path, arguments, message):
    with pytest.raises(RetinaError, match=message):
        loss_distribution(tmp_path, **arguments)


def test_one_sample_carries_everything():
    found = distribution(np.array([3.0], np.float32), 2.0)
    assert found.shares == {0.01: 1.0, 0.1: 1.0, 0.2: 1.0}


def test_equal_samples_share_alike():
    found = distribution(np.full(100, -1.0, np.float32), 2.0)
    assert found.shares == pytest.approx({0.01: 0.01, 0.1: 0.1, 0.2: 0.2})
    np.testing.assert_allclose(found.curve, np.linspace(0, 1, 1001), atol=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_shares_and_curve_follow_the_definition(gamma):
    z = np.random.default_rng(3).normal(-2, 2, 1000).astype(np.float32)
    losses = np.sort(focal(z.astype(np.float64), gamma))
    found = distribution(z, gamma)
    assert found.shares[0.1] == pytest.approx(losses[-100:].sum() / losses.sum())
    assert found.shares[0.01] == pytest.approx(losses[-10:].sum() / losses.sum())
    np.testing.assert_allclose(found.curve[1:], np.cumsum(losses) / losses.sum(), atol=1e-12)
    assert found.curve[0] == 0 and (np.diff(found.curve) >= 0).all()


def test_a_share_is_rounded_up_to_whole_samples():
    z = np.array([0.0, 1.0, 2.0, 3.0, 4.0], np.float32)
    losses = focal(z.astype(np.float64), 0)
    assert distribution(z, 0.0).shares[0.2] == pytest.approx(losses[-1] / losses.sum())
    assert distribution(z, 0.0).shares[0.01] == pytest.approx(losses[-1] / losses.sum())


def test_gamma_concentrates_the_loss():
    z = np.random.default_rng(4).normal(-4, 2, 5000).astype(np.float32)
    shares = [distribution(z, gamma).shares[0.1] for gamma in (0, 0.5, 1, 2)]
    assert shares == sorted(shares) and shares[-1] > 0.95 > 0.7 > shares[0]


def test_extreme_logits_are_finite():
    found = distribution(np.array([-1000.0, -1000.0, 1000.0, 2000.0], np.float32), 2.0)
    assert found.shares[0.2] == pytest.approx(2 / 3) and np.isfinite(found.curve).all()
    # Every loss underflows to zero: nothing stands out.
    assert distribution(np.full(10, -1e4, np.float32), 5.0).shares[0.1] == pytest.approx(0.1)


def test_easy_background_carries_the_loss_of_cross_entropy():
    """Two foreground anchors and 1,000 background ones, all at the prior π = 0.01, of which one in ten is here."""
    prior = math.log(0.01 / 0.99)
    errors = np.full(2, -prior, np.float32), np.full(100, prior, np.float32)
    for gamma, alpha in ((0.0, 0.75), (2.0, 0.25), (1.0, None)):
        positive, negative = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
        foreground = 2 * positive * 0.99**gamma * -math.log(0.01)
        background = 1000 * negative * 0.01**gamma * -math.log(0.99)
        share = easy_background_share(Samples(*errors, images=1, every=10.0, alpha=alpha), gamma)
        assert share == pytest.approx(background / (foreground + background), rel=1e-5)
    hard = Samples(errors[0], np.full(100, 0.0, np.float32), images=1)
    assert easy_background_share(hard, 0.0) == 0.0


def test_files(tmp_path):
    rng = np.random.default_rng(0)
    samples = Samples(rng.normal(0, 1, 50).astype(np.float32), rng.normal(-4, 1, 500).astype(np.float32), 7)
    kinds = {"foreground": samples.foreground, "background": samples.background}
    found = {gamma: {kind: distribution(z, gamma) for kind, z in kinds.items()} for gamma in (0.0, 2.0)}
    write(tmp_path / "out", samples, found)
    tree = json.loads((tmp_path / "out" / "loss_distribution.json").read_text())
    assert tree == to_json(samples, found)
    assert (tree["images"], tree["foreground"], tree["background"]) == (7, 50, 500)
    assert [row["gamma"] for row in tree["hardest"]] == [0.0, 2.0]
    assert tree["hardest"][1]["background"]["0.1"] == found[2.0]["background"].shares[0.1]
    assert (tmp_path / "out" / "loss_distribution.png").stat().st_size > 10_000
    assert tree["alpha"] is None
    assert tree["easy_background"] == {f"{gamma:g}": easy_background_share(samples, gamma) for gamma in found}
    assert table(samples, found).row_count == 2
