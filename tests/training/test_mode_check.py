"""The check that inference is the network that was trained, with statistics that are right, and with spoilt ones."""

import json
import math

import keras
import numpy as np
import pytest

from retina import config
from retina.data.formats.digits import read_digits
from retina.runs.directory import RunDirectory
from retina.runs.record import ModeLosses, read_record
from retina.training import loop
from retina.training.train import train
from retina.training.validation import ModeCheck
from tests.training import stand_ins
from tests.training.small_step import FROZEN, MODEL, four_images, make, weights

CONFIG = config.load(None, [*stand_ins.SETTINGS, "data.resize={short: 64, long: 64, multiple: 64}"])


@pytest.fixture(scope="module")
def trained():
    """The tiny detector after steps on the same images, with momenta that keep up with them, and its check."""
    # Weights of the heads that are large enough for their features to matter.
    head = config.Head(channels=16, layers=1, init_std=0.1)
    detector, _, step = make(model=MODEL.model_copy(update={"batch_norm_momentum": 0.5, "head": head}))
    check = ModeCheck(CONFIG, read_digits("train", 12, 64), detector)
    for _ in range(12):
        step(four_images())
    check.__dict__["_batch"] = four_images()
    return detector, check


def test_losses_are_those_of_both_modes_and_leave_no_trace(trained):
    detector, check = trained
    before, calls = weights(detector), [layer.call for layer in check._layers]
    losses = check()
    expected = []
    for training in (True, False):
        with keras.StatelessScope():
            outputs = detector(four_images(), training=training)
        expected.append(float(detector.loss_sums(outputs, four_images()).losses()["loss"]))
    assert losses == pytest.approx(expected, rel=1e-5)
    assert losses.batch == pytest.approx(losses.moving, rel=0.05) and not losses.part
    after = weights(detector)
    assert all(np.array_equal(before[name], after[name]) for name in before) and len(before) == len(after)
    assert [layer.call for layer in check._layers] == calls and len(calls) == 3


@pytest.mark.parametrize(
    ("name", "spoilt"),
    [
        # After so few steps a momentum of 0.999 has left the averages where they began.
        ("moving_variance", lambda value: np.ones_like(value)),
        ("moving_variance", lambda value: 0.1 * value),
        ("moving_mean", lambda value: value + 1),
    ],
)
def test_modes_part_where_the_statistics_are_spoilt(trained, name, spoilt):
    _, check = trained
    values = {layer: keras.ops.convert_to_numpy(getattr(layer, name).value).copy() for layer in check._layers}
    right = check()
    try:
        for layer, value in values.items():
            getattr(layer, name).assign(spoilt(value))
        wrong = check()
    finally:
        for layer, value in values.items():
            getattr(layer, name).assign(value)
    assert wrong.batch == right.batch and wrong.part


def test_frozen_batch_norms_have_one_mode():
    detector, _, _ = make(model=FROZEN)
    assert ModeCheck(CONFIG, None, detector)() is None  # type: ignore[arg-type]


def test_the_images_are_few_and_always_the_same(trained):
    detector, _ = trained
    data = read_digits("train", 12, 64)
    first, again = (ModeCheck(CONFIG, data, detector)._batch for _ in range(2))
    assert first["images"].shape == (8, 64, 64, 3) and first["valid"].any()
    assert all(np.array_equal(first[name], again[name]) for name in first)
    few = ModeCheck(CONFIG, data.subset(np.arange(3)), detector)._batch
    assert few["images"].shape == (3, 64, 64, 3)


@pytest.mark.parametrize("moving", [1.02, 3.0, math.inf, math.nan])
def test_a_run_logs_the_losses_and_warns(tmp_path, monkeypatch, moving):
    losses = ModeLosses(1.0, moving)
    monkeypatch.setattr(loop, "ModeCheck", lambda *_: lambda: losses)
    settings = config.load(None, [*stand_ins.SETTINGS, "schedule.steps=5"])
    data = {"train_data": read_digits("train", 8, 64), "validation_data": read_digits("validation", 4, 64)}
    run = RunDirectory(train(settings, tmp_path / "run", collaborators=stand_ins.collaborators(), **data))
    (line,) = [line for line in run.metrics() if "split" in line]
    assert json.dumps(line["mode_losses"], allow_nan=False)
    log = (run.path / "log.txt").read_text()
    assert f"step 5: {losses}" in log
    assert ("warning: Training and inference are not the same network" in log) == losses.part == (moving != 1.02)
    ((step, written),) = read_record(run.path).modes
    assert step == 5 and written.part == losses.part and written.batch == 1.0
