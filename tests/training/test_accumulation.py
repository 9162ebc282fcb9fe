"""A batch in parts gives the update of the whole batch: losses, gradient and weights, wherever the positives are."""

import numpy as np
import pytest

from retina import config
from tests.training.small_step import four_images, make, numbers, weights

STEPS = 3


@pytest.fixture(scope="module")
def whole() -> tuple[dict[str, np.ndarray], list[dict[str, float]], dict[str, np.ndarray]]:
    """Weights before, scalars of each step, weights after: with the batch at once."""
    return trained(1)


def trained(parts: int):
    detector, _, step = make(config.Run(batch_size=4, accumulate=parts))
    before = weights(detector)
    lines = [numbers(step(four_images(seed))) for seed in range(STEPS)]
    step.sync()
    return before, lines, weights(detector)


@pytest.mark.parametrize("parts", [2, 4])
def test_equals_the_whole_batch(whole, parts):
    """Of four parts two have no positive anchor; of both halves the second has fewer than the first."""
    before, lines, after = trained(parts)
    np.testing.assert_equal(before, whole[0])
    for ours, theirs in zip(lines, whole[1], strict=True):
        assert ours.keys() == theirs.keys()
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    assert max(np.abs(after[name] - whole[2][name]).max() for name in after) <= 1e-5
    moved = max(np.abs(whole[2][name] - before[name]).max() for name in before)
    assert moved > 1e-3  # a hundred times what is allowed


@pytest.fixture(scope="module")
def still():
    """By number of parts, a step that changes nothing to speak of."""
    settings = config.Sgd(learning_rate=1e-12, momentum=0.0, weight_decay=0.0)
    return {parts: make(config.Run(accumulate=parts), settings=settings)[2] for parts in (1, 2)}


def test_a_batch_without_positives_is_divided_by_one(still):
    """Not by one a part: the sums of both parts are the batch's."""
    empty = four_images()
    empty["valid"] = np.zeros_like(empty["valid"])
    whole, parts = (numbers(still[count](empty)) for count in (1, 2))
    assert whole["positives"] == parts["positives"] == parts["loss_box"] == 0
    assert parts == pytest.approx(whole, rel=1e-5) and whole["loss"] > 0


def test_another_batch_may_have_another_canvas(still):
    wide = four_images()
    wide["images"] = np.pad(wide["images"], ((0, 0), (0, 0), (0, 32), (0, 0)))
    whole, parts = (numbers(still[count](wide)) for count in (1, 2))
    assert parts == pytest.approx(whole, rel=1e-4, abs=1e-6)


def test_a_mean_of_the_parts_means_would_not_pass(still, whole):
    """What the tests above must be able to catch: each part divided by its own positives, then averaged."""
    images = four_images(0)
    halves = [{name: x[half] for name, x in images.items()} for half in (slice(0, 2), slice(2, 4))]
    losses = [numbers(still[1](half))["loss"] for half in halves]
    assert abs(np.mean(losses) / whole[1][0]["loss"] - 1) > 5e-3  # fifty times what is allowed
