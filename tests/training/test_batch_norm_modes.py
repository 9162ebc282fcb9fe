"""Batch normalisation frozen, in training and synchronised, in a step."""

import keras
import numpy as np
import pytest

from retina.training.fused_layers import fused
from tests.training.small_step import FROZEN, MODEL, four_images, make, numbers, weights


def trained(mode: str):
    detector, _, step = make(model=FROZEN.model_copy(update={"batch_norm": mode}))
    before = weights(detector)
    lines = [numbers(step(four_images(seed))) for seed in range(2)]
    step.sync()
    return before, lines, weights(detector)


@pytest.fixture(scope="module")
def train():
    return trained("train")


def test_frozen_moves_neither_statistics_nor_scale_nor_shift():
    before, _, after = trained("frozen")
    still = {name for name in before if np.array_equal(before[name], after[name])}
    assert still == {f"bn{level}/{name}" for level in (3, 4, 5) for name in NAMES}


def test_train_moves_all_of_them(train):
    before, _, after = train
    assert [name for name in before if np.array_equal(before[name], after[name])] == []


def test_sync_on_one_device_is_train(train):
    """With TensorFlow's fused kernel, too: its own device's batch is all there is."""
    detector, _, _ = make(model=MODEL.model_copy(update={"batch_norm": "sync"}))
    norms = [layer for layer in detector.backbone.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert all(layer.call.func is fused and layer.synchronized for layer in norms) and len(norms) == 3
    _, lines, after = trained("sync")
    for ours, theirs in zip(lines, train[1], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    assert max(np.abs(after[name] - train[2][name]).max() for name in after) <= 1e-5


NAMES = ("gamma", "beta", "moving_mean", "moving_variance")
