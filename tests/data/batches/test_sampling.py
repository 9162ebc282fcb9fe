"""Repeat factor sampling (arXiv:1908.03195): factors, epochs, and that a run's images stay a function of its seed."""

import math

import numpy as np
import pytest

from retina import config
from retina.data.batches import plan
from retina.data.batches.training import described, training_batches
from retina.errors import RetinaError
from retina.training.resuming import _used
from tests.data.batches.test_batches import PLAIN, assert_same, noise, table


def sampled(threshold, data=PLAIN):
    return data.model_copy(update={"sampling": config.RepeatSampling(threshold=threshold)})


def photographs(count=20):
    """Classes by `table`'s turns a, b, c: all in the first image, a and b in the next three, then a alone, and two
    images without boxes at the end. Three shapes in turn."""
    shapes = [(40, 40), (30, 60), (60, 31)]
    boxes = [[[1, 1, 9, 9]] * (3 if row == 0 else 2 if row < 4 else 1) for row in range(count - 2)] + [[], []]
    made = table([noise(*shapes[row % 3], row) for row in range(count)], boxes)
    labels = np.concatenate([np.arange(len(some)) for some in boxes]).astype(np.int32)
    return type(made)(**{**vars(made), "labels": labels})


def reference(dataset, threshold):
    """arXiv:1908.03195, appendix B, step by step."""
    frequency = [0.0] * 3
    images = [set(dataset.objects(row).labels.tolist()) for row in range(len(dataset))]
    for classes in images:
        for label in classes:
            frequency[label] += 1 / len(dataset)
    of_class = [max(1.0, math.sqrt(threshold / share)) for share in frequency]
    return [max((of_class[label] for label in classes), default=1.0) for classes in images]


@pytest.mark.parametrize("threshold", [0.06, 0.2, 0.5, 1.0])
def test_factors_equal_the_papers(threshold):
    factors = plan.repeat_factors(photographs(), config.RepeatSampling(threshold=threshold))
    np.testing.assert_allclose(factors / plan.ONCE, reference(photographs(), threshold), atol=1 / plan.ONCE)
    assert factors.max() > plan.ONCE == factors[-1]


def test_crowds_and_difficult_boxes_make_no_class_present():
    dataset = photographs()
    flags = np.arange(len(dataset.labels))
    of_flags = type(dataset)(**{**vars(dataset), "crowd": flags == 2, "difficult": flags == 1})
    factors = plan.repeat_factors(of_flags, config.RepeatSampling(threshold=0.2))
    assert factors[0] == plan.ONCE, "of its three boxes a alone counts"
    assert factors[1] / plan.ONCE == pytest.approx(math.sqrt(0.2 / (3 / 20)), abs=1e-6)


def test_a_threshold_that_repeats_nothing_is_refused():
    with pytest.raises(RetinaError, match=r"the rarest class is in, 0.05, got 0.05, which repeats none"):
        training_batches(photographs(), sampled(0.05), batch_size=2, seed=0, steps=1)


def test_without_a_box_that_counts_nothing_is_repeated():
    dataset = photographs()
    without = type(dataset)(**{**vars(dataset), "crowd": np.ones_like(dataset.crowd)})
    assert (plan.repeat_factors(without, config.RepeatSampling(threshold=0.5)) == plan.ONCE).all()


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_epochs_repeat_images_as_often_as_their_factors(batch_size):
    dataset = photographs()
    (geometry,) = plan.training_geometries(dataset, sampled(1.0), batch_size=batch_size)
    steps, factors = plan.training_steps(geometry, batch_size=batch_size), geometry.factors / plan.ONCE
    epochs, shown = 300, []
    for epoch in range(epochs):
        whole = plan.training_plan(geometry, batch_size=batch_size, seed=1, epoch=epoch)
        assert whole.index.shape == (steps, batch_size)
        assert whole.sample.ravel().tolist() == list(range(epoch * whole.index.size, (epoch + 1) * whole.index.size))
        assert (geometry.canvas_of[whole.index] == whole.canvas[:, None]).all()
        shown.append(np.bincount(whole.index.ravel(), minlength=len(dataset)))
    assert (np.array(shown) >= np.floor(factors)).all() and len({tuple(row) for row in shown}) > 10
    if batch_size == 1:  # no batch is completed but where a canvas' sum was rounded down
        assert (np.array(shown) <= np.ceil(factors) + 1).all()
        # The mean of 300 draws of one of two neighbours; completed batches add less than one image a canvas.
        mean = np.mean(shown, axis=0)
        assert (mean > factors - 0.1).all() and (mean < factors + 0.25).all()


def test_whole_factors_need_no_draw():
    geometry = plan.Geometry(
        np.full((4, 2), 32), np.zeros(4, np.int32), np.array([[32, 32]]), np.array([1, 3, 1, 2]) * plan.ONCE
    )
    assert plan.training_steps(geometry, batch_size=7) == 1 and plan.repeats(geometry, batch_size=7) == 0
    for epoch in range(5):
        index = plan.training_plan(geometry, batch_size=7, seed=0, epoch=epoch).index
        assert sorted(index.ravel().tolist()) == [0, 1, 1, 1, 2, 3, 3]


@pytest.mark.parametrize("first_step", [4, 19])
def test_batches_are_those_of_the_seed_from_any_step_in_any_threads_and_slots(first_step):
    dataset, data = photographs(), sampled(1.0)
    whole = list(training_batches(dataset, data, batch_size=4, seed=3, steps=24))
    given = {"batch_size": 4, "seed": 3, "first_step": first_step, "steps": 24}
    assert_same(whole[first_step:], list(training_batches(dataset, data, threads=5, **given)))
    half = list(training_batches(dataset, data, threads=1, slots=np.array([2, 3]), **given))
    for part, batch in zip(half, whole[first_step:], strict=True):
        assert part["index"].tolist() == batch["index"][2:].tolist()
        assert part["images"].tobytes() == batch["images"][2:].tobytes()


def test_a_resume_knows_the_rows_that_were_used():
    """Of rare canvases, too, which a batch's images come from (batches of 8, three shapes, 6 or 7 images of each)."""
    dataset = photographs()
    for data in (PLAIN, sampled(1.0)):
        used = np.unique([batch["index"] for batch in training_batches(dataset, data, batch_size=8, seed=3, steps=2)])
        settings = config.load(None, ["run.batch_size=8", "run.seed=3"]).model_copy(update={"data": data})
        assert _used(dataset, settings, 2).tolist() == used.tolist()


def test_epochs_and_the_log_count_repeated_images():
    dataset, data = photographs(), sampled(1.0)
    given = config.load(None, ["schedule={kind: constant, epochs: 2}", "run.batch_size=1"])
    steps = [plan.with_steps(given.model_copy(update={"data": d}), dataset).schedule.length for d in (PLAIN, data)]
    assert steps[0] == 40 and steps[1] > 40
    assert described(dataset, PLAIN) == described(dataset, data)[:1]
    assert described(dataset, data)[1] == (
        "training images: 18 of them more than once an epoch, at most 4.47 times; 28 images an epoch (data.sampling)"
    )
