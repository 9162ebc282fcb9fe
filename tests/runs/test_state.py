"""What the loop remembers, what it measures, and the thread that writes."""

import gc
import json
import threading
import time

import keras
import numpy as np
import pytest

from retina import config
from retina.runs.checkpoint import BackgroundWriter
from retina.runs.state import Progress, after_evaluation, is_due, stops_early
from retina.training.progress import Meter, state_fault
from retina.training.resuming import environment_notes

# ---------------------------------------------------------------------------------------------------------- state


def test_nothing_every_none():
    assert [is_due(step, 3) for step in (1, 2, 3, 6, 7)] == [False, False, True, True, False]
    assert not is_due(3, None)


def test_undefined_figures_make_a_best_too():
    progress = after_evaluation(Progress(), 4, {"AP": -1.0}, "AP", None)
    assert (progress.best, progress.best_step) == (-1.0, 4)
    assert after_evaluation(progress, 8, {"AP": -1.0}, "AP", None).best_step == 4
    assert after_evaluation(progress, 8, {"AP": 0.0}, "AP", None).best_step == 8


def test_the_best_and_what_early_stopping_compares_with_are_two_things():
    early = config.EarlyStopping(patience=2, min_delta=0.1)
    progress, seen = Progress(), []
    for step, value in enumerate((0.50, 0.55, 0.61, 0.65, 0.70)):
        progress = after_evaluation(progress, step, {"AP": value}, "AP", early)
        seen.append((progress.best_step, progress.reference, progress.stale, stops_early(progress, early)))
    assert seen == [
        (0, 0.50, 0, False),
        (1, 0.50, 1, False),
        (2, 0.61, 0, False),
        (3, 0.61, 1, False),
        (4, 0.61, 2, True),
    ]


def test_progress_survives_json_and_later_versions():
    progress = Progress(0.25, 10, 0.2, 3, False, True, {"loss": [float(np.float32(0.1)), float("nan")]})
    values = json.loads(json.dumps(progress.to_dict()))
    assert repr(Progress.from_dict(values | {"of a later version": 1})) == repr(progress)
    assert Progress.from_dict({}) == Progress()


def test_only_what_rounding_depends_on_is_told_of_another_environment():
    before = {"seed": 1, "processors": 4, "packages": {"keras": "3.12"}, "devices": ["cpu:0"]}
    assert environment_notes(before, before | {"seed": 2, "processors": 2}) == ()
    assert environment_notes({}, before) == ()
    (note,) = environment_notes(before, before | {"packages": {"keras": "3.15"}})
    assert "packages.keras (3.12 → 3.15)" in note and "devices" not in note


# ---------------------------------------------------------------------------------------------------------- meter


def scalars(loss: float, norm: float = 1.0) -> dict:
    return {"loss": np.float32(loss), "gradient_norm": np.float32(norm)}


def test_pending_scalars_go_on_in_another_meter_exactly():
    whole, first = Meter(2), Meter(2)
    values = np.random.default_rng(0).normal(size=5).astype(np.float32)
    for value in values:
        whole.add(scalars(value))
    for value in values[:3]:
        first.add(scalars(value))
    second = Meter(2, json.loads(json.dumps(first.pending())))
    for value in values[3:]:
        second.add(scalars(value))
    assert second.pending() == whole.pending() == {"loss": [float(v) for v in values], "gradient_norm": [1.0] * 5}
    mean = second.read()["loss"]
    assert mean == whole.read()["loss"] == pytest.approx(np.mean(values, dtype=np.float64), rel=1e-15)
    assert second.pending() == {}


def test_throughput_counts_the_steps_and_the_time_of_training_alone():
    meter = Meter(4, {"loss": [1.0], "gradient_norm": [1.0]})
    with meter.away():
        time.sleep(0.3)
    with meter.waiting():
        time.sleep(0.05)
    meter.add(scalars(3.0))
    found = meter.read()
    assert found["loss"] == 2.0
    # One step of 4 images in a little more than 0.05 s; the restored one was no work of this process.
    assert 20 < found["images_per_second"] <= 80 and 0.3 < found["data_wait"] <= 1


class OnDevice:
    """A number that a device will have at some moment, of `time.perf_counter`."""

    def __init__(self, value: float, ready: float):
        self.value, self.ready = value, ready

    def __array__(self, dtype=None, copy=None):
        time.sleep(max(0.0, self.ready - time.perf_counter()))
        return np.array(self.value, dtype)


@pytest.fixture
def asynchronous(monkeypatch):
    """A backend that gives steps back before they are done, as JAX does."""
    monkeypatch.setattr(keras.ops, "convert_to_numpy", np.asarray)


@pytest.mark.parametrize(
    ("device", "loader", "share"),
    [
        (0.04, 0.12, (0.12 + 6 * 0.08) / (7 * 0.12 + 0.04)),  # the device is done, and waits 80 ms for each batch
        (0.04, 0.03, 0.03 / (0.03 + 7 * 0.04)),  # the host waits all the time, the device for the first batch alone
        (0.0, 0.03, 1.0),
    ],
)
def test_only_the_waiting_of_the_device_counts(asynchronous, device, loader, share):
    meter, done = Meter(1), 0.0
    for _ in range(7):
        with meter.waiting():
            time.sleep(loader)
        done = max(done, time.perf_counter()) + device
        meter.add({"loss": OnDevice(1.0, done), "gradient_norm": 1.0})
    found = meter.read()
    assert found["data_wait"] == pytest.approx(share, abs=0.12)
    assert found["loss"] == 1.0


def test_a_step_that_fails_on_the_device_is_told_when_it_is_read(asynchronous):
    class Failing:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("out of memory")

    meter = Meter(1)
    meter.add({"loss": Failing(), "gradient_norm": 1.0})
    with meter.waiting():
        time.sleep(0.02)
    with pytest.raises(RuntimeError, match="out of memory"):
        meter.read()


def test_the_thread_that_watches_the_device_ends_with_the_meter():
    def watching() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "device clock"}

    before = watching()  # those of other tests' meters may end meanwhile
    meter = Meter(1)
    assert watching() <= before
    meter.add(scalars(1.0))
    (own,) = watching() - before
    del meter
    gc.collect()
    own.join(timeout=10)
    assert not own.is_alive()


@pytest.mark.parametrize(
    ("bad", "step", "what"),
    [
        ({1: scalars(np.nan)}, 7, "loss"),
        ({0: scalars(1, np.inf), 1: scalars(np.nan)}, 6, "norm of the gradient"),
        ({2: scalars(np.inf, np.nan)}, 8, "loss"),
    ],
)
def test_the_first_bad_step_is_found(bad, step, what):
    meter = Meter(1)
    for place in range(3):
        meter.add(bad.get(place, scalars(1)))
    fault = meter.fault(8)
    assert (fault.step, fault.what) == (step, what) and not np.isfinite(fault.value)


def test_a_state_that_is_not_finite_is_named_and_other_arrays_may_hold_what_they_like():
    good = {"weights/a": np.zeros((2, 0), np.float32), "extra/n": np.array(3), "optimizer/m": np.float32([1e38, -1e38])}
    assert state_fault(4, {}) is None and state_fault(4, good) is None
    fault = state_fault(4, {**good, "weights/b": np.array([[1.0, -np.inf]]), "weights/c": np.array(np.nan)})
    assert (fault.step, fault.value, fault.scalars) == (4, -np.inf, {"weights/b": -np.inf})
    assert fault.what == "array weights/b (and 1 more) after the update"


def test_no_bad_step_among_none_or_good_ones():
    meter = Meter(1)
    assert meter.fault(0) is None
    meter.add(scalars(1))
    assert meter.fault(1) is None


# --------------------------------------------------------------------------------------------------------- writer


def test_work_is_done_one_piece_after_another():
    done, gate = [], threading.Event()
    with BackgroundWriter() as writer:
        writer.submit(lambda: (gate.wait(10), done.append(1)))
        assert done == []
        gate.set()
        writer.submit(lambda: done.append(2))
    assert done == [1, 2]


@pytest.mark.parametrize("asked", ["submit", "wait", "check", "leaving"])
def test_what_goes_wrong_comes_out_once(asked):
    def fail():
        raise OSError(28, "No space left on device")

    def ask():
        with BackgroundWriter() as writer:
            writer.submit(fail)
            writer._thread.join()
            if asked != "leaving":
                getattr(writer, asked)(*[lambda: None][: asked == "submit"])

    with pytest.raises(OSError, match="No space"):
        ask()


def test_an_exception_on_its_way_out_is_not_replaced_and_the_work_is_done():
    done = []

    def late():
        time.sleep(0.1)
        done.append(1)
        raise OSError("late")

    def fail_beside_it():
        with BackgroundWriter() as writer:
            writer.submit(late)
            raise KeyError("first")

    with pytest.raises(KeyError, match="first"):
        fail_beside_it()
    assert done == [1]
