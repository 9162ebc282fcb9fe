"""The plan: which image stands where in which batch."""

import time
from types import SimpleNamespace

import numpy as np
import pytest

from retina import config
from retina.data.batches import plan
from retina.errors import RetinaError

# Five images on canvas 0 (64x64), two on canvas 1 (64x128) and one on canvas 2 (128x64).
MIXED = np.array([[64, 64], [64, 128], [32, 32], [128, 64], [16, 16], [32, 64], [64, 64], [8, 8]])
SMALL = config.Resize(short=64, long=128, multiple=64)


def test_no_image_fits_on_no_canvas():
    geometry = plan.fit(np.zeros((0, 2), np.int32), SMALL)
    assert geometry.resized.shape == geometry.canvases.shape == (0, 2)
    assert geometry.canvas_of.shape == (0,)
    assert plan.evaluation_plan(geometry, batch_size=4).index.shape == (0, 4)
    assert plan.training_steps(geometry, batch_size=4) == 0
    with pytest.raises(RetinaError, match="at least one image, got none"):
        plan.training_plan(geometry, batch_size=4, seed=0, epoch=0)


def test_a_side_of_zero_is_an_error_that_names_the_row():
    with pytest.raises(RetinaError, match=r"image 1 of the table: .*got \[0, 7\]"):
        plan.fit(np.array([[5, 5], [0, 7]]), SMALL)


@pytest.mark.parametrize(
    ("size", "resized", "canvas"),
    [
        ((1, 1), (800, 800), (896, 896)),
        ((1, 5000), (1, 1333), (128, 1408)),  # 1 * 1333 / 5000 rounds to 0
        ((480, 640), (800, 1067), (896, 1152)),  # 640 * 800 / 480 = 1066.67
        ((427, 640), (800, 1199), (896, 1280)),  # 640 * 800 / 427 = 1199.06
        ((200, 1000), (267, 1333), (384, 1408)),  # the long side limits: 200 * 1.333 = 266.6
        ((1000, 200), (1333, 267), (1408, 384)),
        ((800, 1024), (800, 1024), (896, 1024)),
        ((1600, 1601), (800, 801), (896, 896)),  # 1601 / 2 = 800.5: halves go up
    ],
)
def test_fit_keeps_the_aspect_and_rounds_to_whole_pixels(size, resized, canvas):
    geometry = plan.fit(np.array([size]), config.Resize(short=800, long=1333, multiple=128))
    assert geometry.resized.tolist() == [list(resized)]
    assert geometry.canvases.tolist() == [list(canvas)]
    assert (geometry.resized.dtype, geometry.canvas_of.dtype, geometry.canvases.dtype) == (np.int32,) * 3


def test_fit_gives_each_image_its_canvas():
    geometry = plan.fit(MIXED, SMALL)
    assert geometry.canvases.tolist() == [[64, 64], [64, 128], [128, 64]]
    assert geometry.canvas_of.tolist() == [0, 1, 0, 2, 0, 1, 0, 0]
    assert geometry.resized[[1, 4, 5]].tolist() == [[64, 128], [64, 64], [64, 128]]


def test_merging_adds_the_least_area_over_all_images():
    # Widths 64, 96 and 128 with 5, 1 and 1 images: 96 -> 128 adds 64*32, 64 -> 96 would add 5*64*32.
    sizes = np.array([[64, 64]] * 5 + [[64, 96], [64, 128]])
    resize = config.Resize(short=64, long=128, multiple=32, max_canvases=2)
    geometry = plan.fit(sizes, resize)
    assert geometry.canvases.tolist() == [[64, 64], [64, 128]]
    assert geometry.canvas_of.tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert geometry.resized[5].tolist() == [64, 96]


def test_merging_down_to_one_takes_the_elementwise_maximum():
    geometry = plan.fit(MIXED, SMALL.model_copy(update={"max_canvases": 1}))
    assert geometry.canvases.tolist() == [[128, 128]]
    assert set(geometry.canvas_of) == {0}


def test_every_image_fits_its_canvas_whatever_the_order():
    sizes = np.random.default_rng(0).integers(1, 700, (500, 2))
    for most in (1, 2, 3, 5):
        resize = config.Resize(short=100, long=300, multiple=32, max_canvases=most)
        geometry, reverse = plan.fit(sizes, resize), plan.fit(sizes[::-1], resize)
        assert len(geometry.canvases) == most
        assert (geometry.resized <= geometry.canvases[geometry.canvas_of]).all()
        assert (geometry.resized >= 1).all() and (geometry.canvases % 32 == 0).all()
        np.testing.assert_array_equal(geometry.canvases, reverse.canvases)
        np.testing.assert_array_equal(geometry.canvas_of, reverse.canvas_of[::-1])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8, 20])
def test_an_epoch_shows_every_image_and_never_mixes_canvases(batch_size):
    geometry = plan.fit(MIXED, SMALL)
    steps = plan.training_steps(geometry, batch_size=batch_size)
    assert steps == -(-5 // batch_size) + -(-2 // batch_size) + 1
    for epoch in range(3):
        epoch_plan = plan.training_plan(geometry, batch_size=batch_size, seed=1, epoch=epoch)
        assert epoch_plan.index.shape == (steps, batch_size)
        assert set(epoch_plan.index.ravel()) == set(range(8))
        assert (geometry.canvas_of[epoch_plan.index] == epoch_plan.canvas[:, None]).all()
        first = epoch * steps * batch_size
        assert epoch_plan.sample.ravel().tolist() == list(range(first, first + steps * batch_size))


def test_a_last_batch_is_completed_from_the_start_of_its_own_order():
    geometry = plan.fit(np.full((5, 2), 64), SMALL)
    index = plan.training_plan(geometry, batch_size=3, seed=0, epoch=0).index
    order = np.random.Generator(np.random.Philox(key=np.array([0, 0], np.uint64))).permutation(5)
    expected = {tuple(order[:3]), (order[3], order[4], order[0])}
    assert {tuple(row) for row in index} == expected


def test_the_plan_is_a_pure_function_of_seed_and_epoch():
    geometry = plan.fit(np.full((50, 2), 64), SMALL)

    def drawn(seed: int, epoch: int) -> list:
        return plan.training_plan(geometry, batch_size=4, seed=seed, epoch=epoch).index.tolist()

    assert drawn(3, 5) == drawn(3, 5)
    assert drawn(3, 5) != drawn(3, 6)
    assert drawn(3, 5) != drawn(5, 3)
    assert drawn(2**63 - 1, 0) != drawn(2**62, 0)


def test_batches_of_different_canvases_alternate():
    geometry = plan.fit(np.array([[64, 64]] * 40 + [[64, 128]] * 40), SMALL)
    for epoch in range(3):
        canvas = plan.training_plan(geometry, batch_size=2, seed=0, epoch=epoch).canvas
        # 40 shuffled batches, 20 of each canvas: 20 changes on average, standard deviation 3.1.
        assert 8 <= (np.diff(canvas) != 0).sum() <= 32


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_does_not_fit_is_an_error(seed):
    with pytest.raises(RetinaError, match="run.seed: expected"):
        plan.training_plan(plan.fit(MIXED, SMALL), batch_size=2, seed=seed, epoch=0)


def test_evaluation_shows_each_image_once_by_canvas():
    whole = plan.evaluation_plan(plan.fit(MIXED, SMALL), batch_size=3)
    assert whole.index.tolist() == [[0, 2, 4], [6, 7, -1], [1, 5, -1], [3, -1, -1]]
    assert whole.canvas.tolist() == [0, 0, 1, 2]
    assert whole.sample.ravel().tolist() == list(range(12))


def test_planning_an_epoch_of_coco_is_fast():
    sizes = np.random.default_rng(0).integers(140, 641, (118_000, 2))
    start = time.process_time()
    geometry = plan.fit(sizes, config.Resize())
    plan.training_plan(geometry, batch_size=16, seed=0, epoch=0)
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize(("epochs", "steps"), [(1, 4), (2.6, 10), (0.01, 1)])
def test_epochs_are_turned_into_steps(epochs, steps):
    """Eight images in batches of 2, no canvas with fewer: 4 steps."""
    resize = "data.resize={short: 64, long: 128, multiple: 64}"
    given = config.load(None, [resize, "run.batch_size=2", f"schedule={{kind: step, epochs: {epochs}}}"])
    resolved = plan.with_steps(given, SimpleNamespace(sizes=MIXED))
    assert (resolved.schedule.length, resolved.schedule.epochs) == (steps, None)
    assert plan.with_steps(resolved, SimpleNamespace(sizes=MIXED)) is resolved


def test_a_warm_up_that_does_not_fit_into_the_epochs_is_an_error():
    given = config.load(None, ["schedule={kind: cosine, epochs: 1, warmup_steps: 9}", "run.batch_size=2"])
    with pytest.raises(RetinaError, match=r"1 epochs of \d steps: .*warmup_steps \(9\) must not exceed steps"):
        plan.with_steps(given, SimpleNamespace(sizes=MIXED))
