"""The moving average of the weights, against its recurrence in NumPy."""

import keras
import numpy as np
import pytest

from retina import config
from retina.runs.ema import WeightAverage, averaged_variables, averaged_weights
from tests.training.small_step import MODEL, four_images, make, weights


def variables() -> list[keras.Variable]:
    return [keras.Variable(np.array([1.0, -2.0], np.float32), name="kernel"), keras.Variable(3.0, name="bias")]


def recurrence(path: list[np.ndarray], decay: float, warmup: bool) -> np.ndarray:
    """The average after the weights have gone along `path`, whose first entry they started at."""
    average = path[0].astype(np.float64)
    for updates, weight in enumerate(path[1:]):
        d = min(decay, (1 + updates) / (10 + updates)) if warmup else decay
        average = d * average + (1 - d) * weight
    return average


def test_no_variables_and_no_averages():
    average = WeightAverage([], config.Ema())
    average.update()
    assert list(average.variables) == ["ema_updates"] and int(average.updates.numpy()) == 1
    assert averaged_weights({}) == {}


@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize("decay", [0.05, 0.5, 0.9998])
def test_is_the_recurrence(decay, warmup):
    sources = variables()
    average = WeightAverage(sources, config.Ema(decay=decay, warmup=warmup))
    path = [np.array([1.0, -2.0], np.float32)]
    for _ in range(12):
        path.append(path[-1] * 1.5 - 0.1)
        sources[0].assign(path[-1])
        average.update()
    found = keras.ops.convert_to_numpy(average.averages[0])
    np.testing.assert_allclose(found, recurrence(path, decay, warmup), rtol=2e-5)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(average.averages[1]), 3.0)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(sources[0]), path[-1])


def test_the_first_weights_are_soon_forgotten_in_warm_up():
    average = WeightAverage(variables(), config.Ema(decay=0.9998))
    decays = [float(average.decay(updates)) for updates in (0, 90, 10**6)]
    assert decays == pytest.approx([0.1, 0.91, 0.9998], rel=1e-6)


def test_an_update_that_was_left_out_leaves_the_average_and_its_count():
    sources = variables()
    average = WeightAverage(sources, config.Ema())
    sources[0].assign([5.0, 5.0])
    average.update(keras.ops.convert_to_tensor(False))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(average.averages[0]), [1.0, -2.0])
    assert int(average.updates.numpy()) == 0
    average.update(keras.ops.convert_to_tensor(True))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(average.averages[0]), [4.6, 4.3], rtol=1e-6)


def test_averages_take_the_place_of_weights_in_a_checkpoint():
    arrays = {
        "weights/a": np.zeros(1),
        "weights/b": np.zeros(1),
        "optimizer/a": np.ones(1),
        "extra/ema/a": np.full(1, 7.0),
    }
    found = averaged_weights(arrays)
    assert {name: float(found[name][0]) for name in found} == {
        "weights/a": 7.0,
        "weights/b": 0.0,
        "optimizer/a": 1.0,
        "extra/ema/a": 7.0,
    }


def test_a_step_averages_weights_and_statistics_and_goes_on_with_its_own():
    detector, _, step = make(config.Run(ema=config.Ema(decay=0.5, warmup=False)), model=MODEL)
    path = [weights(detector)]
    for seed in range(3):
        step(four_images(seed))
        step.sync()
        path.append(weights(detector))
    with step.averaged():
        averaged = weights(detector)
    np.testing.assert_equal(weights(detector), path[-1])
    assert {v.path.rsplit("/", 1)[-1] for v in averaged_variables(detector)} >= {"kernel", "gamma", "moving_variance"}
    for name, found in averaged.items():
        expected = recurrence([arrays[name] for arrays in path], 0.5, False)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7, err_msg=name)
    assert any(not np.array_equal(averaged[name], path[-1][name]) for name in averaged)
    # What a checkpoint holds is the same, and a new step goes on with it.
    state = step.state()
    for name in averaged:
        np.testing.assert_array_equal(state.get(f"ema/{name}", averaged[name]), averaged[name], err_msg=name)
    assert state["ema_updates"] == 3


def test_frozen_batch_norms_have_no_average():
    detector, _, step = make(config.Run(ema=config.Ema()))
    assert {v.path for v in averaged_variables(detector)} == {v.path for v in detector.trainable_variables}
    assert not [name for name in step.state() if name.endswith(("gamma", "moving_mean"))]
