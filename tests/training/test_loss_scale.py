"""Dynamic loss scaling by hand, and what an overflow leaves alone."""

import keras
import numpy as np
import pytest

from retina import config
from retina.training.optimizer import build_optimizer
from retina.training.update import LossScale, Update
from tests.training.small_step import MODEL, four_images, make, numbers, small_detector, weights


def after(scale: LossScale, *finite: bool) -> list[tuple[float, int]]:
    out = []
    for good in finite:
        scale.update(keras.ops.convert_to_tensor(good))
        out.append((float(scale.scale.numpy()), int(scale.good_steps.numpy())))
    return out


def test_halves_on_overflow_doubles_after_an_interval_and_never_falls_below_1():
    assert after(LossScale(4.0, 2), False, False, False, False) == [(2, 0), (1, 0), (1, 0), (1, 0)]
    assert after(LossScale(4.0, 2), True, True, True) == [(4, 1), (8, 0), (8, 1)]
    assert after(LossScale(4.0, 2), True, False, True, True) == [(4, 1), (2, 0), (2, 1), (4, 0)]


@pytest.fixture(scope="module")
def half():
    """Detector, optimizer, step and update under float16, live batch normalisation and the fused kernel included."""
    detector, optimizer, step = make(
        config.Run(ema=config.Ema(warmup=False, decay=0.5)), model=MODEL, precision="mixed_float16"
    )
    return detector, optimizer, step, step.update


def state_of(half) -> dict[str, np.ndarray]:
    detector, optimizer, step, _ = half
    trained = {v.path: np.array(keras.ops.convert_to_numpy(v.value)) for v in detector.trainable_variables}
    slots = {
        f"slot/{v.path}": np.array(keras.ops.convert_to_numpy(v.value))
        for v in optimizer.variables
        if v is not optimizer.iterations
    }
    averages = {name: np.array(array) for name, array in step.state().items() if name.startswith("ema/")}
    averages = {name: array for name, array in averages.items() if "moving" not in name}
    return {**trained, **slots, **averages}


def test_an_overflow_leaves_weights_slots_and_averages_and_halves_the_scale(half):
    _, optimizer, step, update = half
    update.scale.scale.assign(2.0**100)
    before, steps = state_of(half), int(optimizer.iterations.numpy())
    scalars = numbers(step(four_images()))
    np.testing.assert_equal(state_of(half), before)
    assert scalars["overflow"] == 1 and scalars["gradient_norm"] == 0 and scalars["loss_scale"] == 2.0**100
    assert np.isfinite(scalars["loss"]) and float(update.scale.scale.numpy()) == 2.0**99
    # The schedule goes by it, and a step that was left out is a step of the run.
    assert int(optimizer.iterations.numpy()) == steps + 1


def test_a_good_step_moves_them_as_without_a_scale(half):
    _, optimizer, step, update = half
    update.scale.scale.assign(1024.0)
    before, steps = state_of(half), int(optimizer.iterations.numpy())
    scalars = numbers(step(four_images()))
    assert scalars["overflow"] == 0 and scalars["loss_scale"] == 1024
    assert int(optimizer.iterations.numpy()) == steps + 1
    after = state_of(half)
    still = [name for name in before if np.array_equal(before[name], after[name])]
    assert still == []
    _, _, full = make(model=MODEL)
    expected = numbers(full(four_images()))
    # float16 keeps 11 bits, and the layers in between add up.
    for name in ("loss", "loss_classification", "loss_box", "gradient_norm"):
        assert scalars[name] == pytest.approx(expected[name], rel=0.02), name
    assert step.state()["loss_scale/good_steps"] == 1


def test_a_gradient_that_overflows_without_a_scale_is_told(half):
    """Nothing is left to lower: training must not go on in silence."""
    detector, _, _, update = half
    update.scale.scale.assign(1.0)
    sums = update.zeros()
    gradients = [keras.ops.full(v.shape, np.nan) for v in detector.trainable_variables]
    before = state_of(half)
    scalars = numbers(update.apply(sums, gradients))
    assert not np.isfinite(scalars["gradient_norm"]) and scalars["overflow"] == 1
    np.testing.assert_equal(state_of(half), before)
    assert float(update.scale.scale.numpy()) == 1.0


def test_the_rate_of_a_step_does_not_depend_on_those_left_out():
    """Two steps that overflow, then one at the rate of step 2 (0-based): a thousandth of that of steps 0 and 1."""
    schedule = config.StepSchedule(steps=3, milestones=(2,), factor=1e-3)
    settings = config.Sgd(learning_rate=1.0, momentum=0.0, weight_decay=0.0)
    detector = small_detector(("a", "b"), model=MODEL, precision="mixed_float16")
    optimizer = build_optimizer(settings, schedule)
    optimizer.build(detector.trainable_variables)
    update = Update(detector, optimizer, settings, config.Run())
    update.scale.scale.assign(4.0)
    variables = detector.trainable_variables
    before = [keras.ops.convert_to_numpy(v.value) for v in variables]
    for value, scale in ((np.inf, 4.0), (np.nan, 2.0), (1.0, 1.0)):
        scalars = numbers(update.apply(update.zeros(), [keras.ops.full(v.shape, value) for v in variables]))
        assert scalars["loss_scale"] == scale
    for old, variable in zip(before, variables, strict=True):
        np.testing.assert_allclose(keras.ops.convert_to_numpy(variable.value), old - 1e-3, rtol=0, atol=1e-6)


def test_other_precisions_have_no_scale():
    detector, _, step = make(precision="mixed_bfloat16")
    assert step.state() == {} and weights(detector)
