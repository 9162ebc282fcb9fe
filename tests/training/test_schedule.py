"""Learning-rate schedules against values worked out by hand."""

import keras
import numpy as np
import pytest

from retina import config
from retina.training.optimizer import LearningRate


def rates(peak: float, schedule: config.Schedule, steps) -> list[float]:
    rate = LearningRate(peak, schedule)
    return [float(keras.ops.convert_to_numpy(rate(step))) for step in steps]


def test_constant_without_warmup_or_milestones():
    assert rates(0.01, config.StepSchedule(steps=1), [0]) == pytest.approx([0.01])


def test_one_step_of_cosine_uses_the_peak():
    assert rates(0.5, config.CosineSchedule(steps=1), [0]) == pytest.approx([0.5])


def test_warmup_is_linear_and_ends_at_the_peak():
    schedule = config.StepSchedule(steps=100, warmup_steps=4, warmup_factor=0.2)
    # 0.2 + 0.8 · s / 4
    expected = [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
    assert rates(1.0, schedule, range(6)) == pytest.approx(expected, rel=1e-6)


def test_milestones_hold_from_their_own_step():
    schedule = config.StepSchedule(steps=10, milestones=(3, 6), factor=0.1)
    assert rates(2.0, schedule, [0, 2, 3, 5, 6, 9]) == pytest.approx([2.0, 2.0, 0.2, 0.2, 0.02, 0.02], rel=1e-6)


def test_cosine_first_middle_and_last_update():
    schedule = config.CosineSchedule(steps=9, final_factor=0.1)
    # share s / 8: 0.1 + 0.9 · (1 + cos(π · share)) / 2
    quarter = 0.1 + 0.45 * (1 + np.sqrt(0.5))
    assert rates(1.0, schedule, [0, 2, 4, 8]) == pytest.approx([1.0, quarter, 0.55, 0.1], rel=1e-6)


def test_cosine_stays_at_its_end_beyond_the_last_step():
    assert rates(1.0, config.CosineSchedule(steps=5, final_factor=0.25), [4, 5, 1000]) == pytest.approx([0.25] * 3)


def test_warmup_multiplies_the_decay():
    schedule = config.CosineSchedule(steps=5, warmup_steps=4, warmup_factor=0.5)
    # warm-up 0.5, 0.625, 0.75, 0.875, 1; cosine 1, (1 + √½) / 2, ½, (1 - √½) / 2, 0
    root = np.sqrt(0.5)
    expected = [0.5, 0.625 * (1 + root) / 2, 0.375, 0.875 * (1 - root) / 2, 0.0]
    assert rates(1.0, schedule, range(5)) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_a_milestone_inside_the_warmup_counts():
    schedule = config.StepSchedule(steps=10, warmup_steps=4, warmup_factor=0.0, milestones=(2,), factor=0.1)
    assert rates(1.0, schedule, [0, 1, 2, 4]) == pytest.approx([0.0, 0.25, 0.05, 0.1], rel=1e-6)


@pytest.mark.parametrize(
    "schedule",
    [
        config.StepSchedule(steps=10, milestones=(3,), warmup_steps=2),
        config.CosineSchedule(steps=10, final_factor=0.1),
    ],
)
def test_survives_keras_serialisation(schedule):
    first = LearningRate(0.3, schedule)
    second = LearningRate.from_config(first.get_config())
    assert second.schedule == schedule
    assert rates(second.peak, second.schedule, range(10)) == rates(0.3, schedule, range(10))
