"""The moving average of positives as a divisor: by hand, and in a step."""

import keras
import numpy as np
import pytest

from retina import config
from retina.errors import RetinaError
from retina.training.update import PositivesAverage
from tests.training.small_step import FROZEN, MODEL, four_images, make, numbers, small_detector

EMA = config.Loss(normalizer=config.EmaNormalizer(momentum=0.75, initial=8.0))


def test_a_batch_without_positives_counts_as_one():
    average = PositivesAverage(config.EmaNormalizer())
    average.update(keras.ops.convert_to_tensor(0.0))
    assert float(average.average.numpy()) == pytest.approx(0.9 * 100 + 0.1 * 1)


def test_the_batch_at_hand_is_in_its_own_divisor():
    average = PositivesAverage(config.EmaNormalizer(momentum=0.75, initial=8.0))
    assert float(average.divisor(keras.ops.convert_to_tensor(20.0))) == 11.0
    assert float(average.average.numpy()) == 8.0
    average.update(keras.ops.convert_to_tensor(20.0))
    assert float(average.average.numpy()) == 11.0


# With such a learning rate the sums stay: only the divisor moves.
STILL = config.Sgd(learning_rate=1e-12, momentum=0.0, weight_decay=0.0)


@pytest.fixture(scope="module")
def own() -> dict[str, float]:
    """The scalars of a step that divides by the batch's own positives."""
    return numbers(make(settings=STILL)[2](four_images()))


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_divides_by_it_and_keeps_it(own, parts):
    _, _, step = make(config.Run(accumulate=parts), loss=EMA, settings=STILL)
    divisor = 8.0
    for _ in range(2):
        scalars = numbers(step(four_images()))
        divisor = 0.75 * divisor + 0.25 * own["positives"]
        for name in ("loss", "loss_classification", "loss_box", "gradient_norm"):
            assert scalars[name] == pytest.approx(own[name] * own["positives"] / divisor, rel=1e-5), name
    np.testing.assert_allclose(step.state()["normalizer/positives"], divisor, rtol=1e-6)
    assert own["positives"] > 8


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_takes_the_mean_of_its_images(parts):
    by_image = config.Loss(normalizer=config.ImageNormalizer())
    detector, _, step = make(config.Run(accumulate=parts), loss=by_image, settings=STILL)
    alone = []
    for row in range(4):
        batch = {name: keras.ops.convert_to_tensor(x[row : row + 1]) for name, x in four_images().items()}
        alone.append(float(detector.loss_sums(detector(batch), batch).losses()["loss"]))
    scalars = numbers(step(four_images()))
    assert scalars["loss"] == pytest.approx(np.mean(alone), rel=1e-4)
    assert scalars["positives"] > 8 and np.isfinite(scalars["gradient_norm"])


def test_fit_refuses_it():
    detector = small_detector(("a",), model=MODEL, loss=EMA)
    with pytest.raises(RetinaError, match="expected loss.normalizer: {kind: batch}, got ema"):
        detector.compute_loss(four_images(), y_pred={})


def test_state_is_strict():
    _, _, step = make(loss=EMA, model=FROZEN)
    with pytest.raises(RetinaError, match=r"extra/normalizer/positives: expected shape \(\), got nothing"):
        step.load({})
    with pytest.raises(RetinaError, match=r"extra/ema_updates: expected shape nothing, got \(\) \(1 such"):
        step.load({"normalizer/positives": np.float32(1), "ema_updates": np.int32(1)})
    step.load({"normalizer/positives": np.float32(5)})
    assert float(step.state()["normalizer/positives"]) == 5.0
