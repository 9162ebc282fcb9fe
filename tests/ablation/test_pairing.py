"""Trials that differ in the loss alone begin alike: the same weights, the same batches in the same order."""

import keras
import numpy as np

from retina import config as configuration
from retina.ablation.plan import make_plan
from retina.data.batches.training import training_batches
from retina.data.load import load_split
from retina.inference import build_detector
from retina.runs.checkpoint import gather

SMALL = ["model.fpn={channels: 16, max_level: 4}", "model.head={channels: 16, layers: 1}", "run.batch_size=2"]


def beginning(config: configuration.Config, data) -> tuple[dict, list]:
    """What `train` does before its first step."""
    keras.utils.set_random_seed(config.run.seed)
    detector = build_detector(config, data.class_names)
    batches = training_batches(data, config.data, batch_size=2, seed=config.run.seed, first_step=0, steps=3)
    return gather(detector), [{name: np.asarray(value) for name, value in batch.items()} for batch in batches]


def same(one: tuple[dict, list], other: tuple[dict, list]) -> tuple[bool, bool]:
    """Whether the weights are the same, and whether the batches are."""
    assert one[0].keys() == other[0].keys()
    weights = all(np.array_equal(one[0][name], other[0][name]) for name in one[0])
    batches = [np.array_equal(a[name], b[name]) for a, b in zip(one[1], other[1], strict=True) for name in a]
    return weights, all(batches)


def test_a_seed_is_shared_by_all_settings_and_by_no_other_seed(base):
    plan = make_plan(configuration.override(base, SMALL), pairs=[(0.0, 0.75), (2.0, 0.25)], seeds=2)
    data = load_split(base.data, "train")
    trials = [beginning(plan.trial_config(trial), data) for trial in plan.trials[:3]]
    assert plan.trials[0].seed == plan.trials[1].seed != plan.trials[2].seed
    assert same(trials[0], trials[1]) == (True, True)
    assert same(trials[0], trials[2]) == (False, False)
