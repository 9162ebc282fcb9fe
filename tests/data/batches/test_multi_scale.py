"""Multi-scale training: for each batch a short side is drawn, from the seed and the batch's number alone."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from retina import config
from retina.data.batches import plan
from retina.data.batches.evaluation import evaluation_batches
from retina.data.batches.training import training_batches
from retina.data.dataset import DetectionDataset

SHORTS = (16, 24, 32)
SHAPES = [(40, 40), (30, 60), (60, 31)]


def settings(short=32, train_short=SHORTS, max_canvases=4, **data) -> config.Data:
    resize = config.Resize(short=short, train_short=train_short, long=64, multiple=8, max_canvases=max_canvases)
    augment = config.Augment(horizontal_flip=0.5, scale=(0.7, 1.4))
    return config.Data(
        train=config.DigitsSource(), validation=config.DigitsSource(), resize=resize, augment=augment, **data
    )


def table(images: int = 9, encode=tf.io.encode_png) -> DetectionDataset:
    """Images of three shapes in turn, with one box each."""
    random = np.random.default_rng(0)
    pixels = [random.integers(0, 256, (*SHAPES[i % 3], 3), np.uint8) for i in range(images)]
    return DetectionDataset(
        name="made up",
        class_names=("a",),
        category_ids=(1,),
        image_ids=tuple(range(images)),
        images=tuple(encode(image).numpy() for image in pixels),
        sizes=np.array([image.shape[:2] for image in pixels], np.int32).reshape(-1, 2),
        offsets=np.arange(images + 1),
        boxes=np.tile([[4.0, 5.0, 24.0, 28.0]], (images, 1)),
        labels=np.zeros(images, int),
        crowd=np.zeros(images, bool),
        difficult=np.zeros(images, bool),
        areas=np.ones(images),
    )


def batches(data: config.Data, steps: int = 30, dataset=None, **arguments) -> list[dict]:
    given = {"batch_size": 2, "seed": 3, **arguments}
    made = training_batches(table() if dataset is None else dataset, data, steps=steps, **given)
    return list(made.as_numpy_iterator())


@pytest.fixture(scope="module")
def drawn() -> list[dict]:
    return batches(settings())


def assert_same(first: list[dict], second: list[dict]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=key, strict=True)


def scale_of(batch: dict, singles: list[list[dict]], step: int) -> list[int]:
    """At which of the short sides a run of one scale has this very batch."""
    return [
        place
        for place, single in enumerate(singles)
        if all(np.array_equal(batch[key], single[step][key]) for key in batch)
    ]


# --------------------------------------------------------------------------------------------------------- the plan


def test_no_images_at_several_scales():
    found = plan.fit_training(np.zeros((0, 2), int), settings().resize)
    assert [one.resized.shape for one in found] == [(0, 2)] * 3 and [len(one.canvases) for one in found] == [0] * 3


def test_one_scale_is_the_plan_of_evaluation():
    sizes = np.array(SHAPES)
    (found,), expected = plan.fit_training(sizes, settings(train_short=()).resize), plan.fit(sizes, settings().resize)
    for name in ("resized", "canvas_of", "canvases"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_sizes_by_hand():
    low, high = plan.fit_training(np.array(SHAPES), settings(train_short=(16, 32)).resize)
    # 30x60: 16 / 30 gives 16x32; 60x31: 16 / 31 gives 30.97x16. At 32 the long side's limit of 64 is met exactly.
    assert low.resized.tolist() == [[16, 16], [16, 32], [31, 16]]
    assert high.resized.tolist() == [[32, 32], [32, 64], [62, 32]]
    assert low.canvas_of.tolist() == high.canvas_of.tolist() == [0, 1, 2]
    assert low.canvases.tolist() == [[16, 16], [16, 32], [32, 16]]
    assert high.canvases.tolist() == [[32, 32], [32, 64], [64, 32]]


def test_groups_are_those_of_the_largest_and_hold_their_images_at_each_scale():
    for most in (1, 2):
        resize = settings(max_canvases=most).resize
        found = plan.fit_training(np.array(SHAPES), resize)
        assert found[-1].canvases.tolist() == plan.fit(np.array(SHAPES), resize).canvases.tolist()
        for one in found:
            assert len(one.canvases) == most and one.canvas_of.tolist() == found[-1].canvas_of.tolist()
            assert (one.resized <= one.canvases[one.canvas_of]).all()
    assert [one.canvases.tolist() for one in plan.fit_training(np.array(SHAPES), settings(max_canvases=1).resize)] == [
        [[32, 32]], [[48, 48]], [[64, 64]],
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------------ the batches


def test_each_batch_is_that_of_a_run_at_the_scale_drawn(drawn):
    """Without merging, groups are the same at every scale, and so is everything else that is drawn."""
    singles = [batches(settings(short, train_short=())) for short in SHORTS]
    places = [scale_of(batch, singles, step) for step, batch in enumerate(drawn)]
    assert all(len(found) == 1 for found in places)
    counts = np.bincount([found[0] for found in places], minlength=3)
    # 30 draws of three: 10 each on average, with a standard deviation of 2.6.
    assert counts.sum() == 30 and counts.min() >= 3
    # Neighbours are not always of one scale.
    assert 10 <= sum(one != other for one, other in itertools.pairwise(places)) <= 28


def test_a_run_may_start_anywhere_and_threads_change_nothing(drawn):
    assert_same(batches(settings(), first_step=11), drawn[11:])
    assert_same(batches(settings(), steps=9, threads=1), drawn[:9])


def test_another_seed_draws_other_scales(drawn):
    other = batches(settings(), seed=4)
    shapes = [[batch["images"].shape for batch in made] for made in (drawn, other)]
    assert shapes[0] != shapes[1]


def test_one_short_side_of_training_beside_another_of_evaluation():
    data = settings(short=32, train_short=(16,))
    assert_same(batches(data, 9), batches(settings(short=16, train_short=()), 9))
    shown = list(evaluation_batches(table(), data, batch_size=3).as_numpy_iterator())
    expected = evaluation_batches(table(), settings(train_short=()), batch_size=3)
    assert_same(shown, list(expected.as_numpy_iterator()))


@pytest.mark.parametrize("decode", ["auto", "full"])
def test_the_cache_holds_what_every_scale_asks_for(decode):
    dataset = table(6, tf.io.encode_jpeg)
    plain, cached = (batches(settings(decode=decode, cache=kind), 12, dataset) for kind in ("none", "memory"))
    assert_same(plain, cached)
    assert len({batch["images"].shape for batch in plain}) > 3
