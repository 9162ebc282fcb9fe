"""Coverage equals what the training assignment gives, anchor for anchor."""

from itertools import pairwise

import numpy as np
import pytest

from retina import config
from retina.data.batches import plan
from retina.doctor.coverage import coverage, overlaps, place, sampled
from retina.ops.anchors import level_anchors, pyramid_anchors
from retina.ops.assignment import match
from tests.doctor.made import table

ANCHORS = config.Anchors(scales=(1.0,), ratios=(1.0,))
# One level: squares of side 32 centred at 4, 12, 20, …
FPN = config.Fpn(min_level=3, max_level=3)
RESIZE = config.Resize(short=64, long=64, multiple=32)
PAPER = config.Assignment()


def brute_force(dataset, resize, anchors, fpn, assignment) -> np.ndarray:
    """[M,L]: positives by level, from `match` over all anchors of each image, boxes placed as the pipeline does."""
    geometry = plan.fit(dataset.sizes, resize)
    levels = tuple(range(fpn.min_level, fpn.max_level + 1))
    counts = np.zeros((len(dataset.boxes), len(levels)), int)
    for image in range(len(dataset)):
        rows = slice(dataset.offsets[image], dataset.offsets[image + 1])
        if rows.start == rows.stop:
            continue
        canvas = tuple(geometry.canvases[geometry.canvas_of[image]].tolist())
        scale = geometry.resized[image].astype(np.float32) / dataset.sizes[image].astype(np.float32)
        boxes = dataset.boxes[rows].astype(np.float32) * np.tile(scale[::-1], 2)
        kept = (boxes[:, 2:] - boxes[:, :2] >= 1).all(axis=1)
        ignored = dataset.crowd[rows] | dataset.difficult[rows]
        grid = pyramid_anchors(anchors, canvas, levels)
        found = match(grid, np.where(kept[:, None], boxes, 0)[None], kept[None], ignored[None], assignment)
        ends = np.cumsum([0] + [len(some) for some in level_anchors(anchors, canvas, levels)])
        index, positive = np.asarray(found.index)[0], np.asarray(found.positive)[0]
        for place_, (start, stop) in enumerate(pairwise(ends.tolist())):
            chosen = index[start:stop][positive[start:stop]]
            np.add.at(counts, (rows.start + chosen, place_), 1)
    return counts


def random_table(random: np.random.Generator):
    sizes = random.integers(40, 200, (int(random.integers(1, 4)), 2))
    boxes = []
    for height, width in sizes:
        x, y = np.sort(random.random((8, 2)) * width), np.sort(random.random((8, 2)) * height)
        some = np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)
        if random.random() < 0.5:  # whole pixels: many equal overlaps
            some = np.round(some)
        some = some[(some[:, 2:] > some[:, :2]).all(axis=1)]
        some = some[: int(random.integers(0, 9))]
        boxes.append([*some, *some[: int(random.integers(0, 2))]])  # sometimes a box twice
    count = sum(map(len, boxes))
    return table(sizes, boxes, crowd=random.random(count) < 0.1, difficult=random.random(count) < 0.1)


@pytest.mark.parametrize("seed", range(18))
def test_positives_are_those_of_the_assignment(seed):
    random = np.random.default_rng(seed)
    dataset = random_table(random)
    resize = config.Resize(short=int(random.integers(60, 200)), long=200, multiple=32, max_canvases=2)
    anchors = config.Anchors(
        size=float(random.choice([1.0, 3.0, 4.0, 32.0])),
        offset=float(random.choice([0.0, 0.5])),
        rounding=bool(seed % 2),
        spacing="canvas" if seed % 3 == 0 else "stride",
    )
    fpn = config.Fpn(max_level=int(random.integers(3, 8)))
    threshold = float(random.choice([0.3, 0.5, 0.7]))
    force = "ties" if seed >= 12 else seed % 2 == 0
    assignment = config.Assignment(positive_iou=threshold, negative_iou=0.2, force_match=force)
    seen = coverage(dataset, resize, anchors, fpn, assignment)
    expected = brute_force(dataset, resize, anchors, fpn, assignment)
    np.testing.assert_array_equal(seen.positives, expected[seen.placed.rows])
    counted = ~(dataset.crowd | dataset.difficult)
    np.testing.assert_array_equal(seen.placed.rows, np.flatnonzero(counted))
    assert expected[~counted].sum() == 0


def test_positives_are_those_of_real_batches():
    """The boxes come from the training pipeline itself, without augmentation."""
    from retina.data.batches.training import training_batches
    from retina.data.load import load_split

    source = config.DigitsSource(images=6, size=96)
    data = config.Data(
        train=source,
        validation=source,
        resize=config.Resize(short=80, long=80, multiple=32),
        augment=config.Augment(horizontal_flip=0.0),
    )
    dataset = load_split(data, "train")
    anchors, fpn = config.Anchors(size=2.0), config.Fpn(max_level=5)
    seen = coverage(dataset, data.resize, anchors, fpn, PAPER)
    grid = pyramid_anchors(anchors, (96, 96), (3, 4, 5))
    found = np.zeros(len(dataset.boxes), int)
    for batch in training_batches(dataset, data, batch_size=2, seed=0, steps=3):
        matched = match(grid, *(batch[name] for name in ("boxes", "valid", "crowd")), PAPER)
        for slot, image in enumerate(batch["index"]):
            positive = np.asarray(matched.positive)[slot]
            np.add.at(found, dataset.offsets[image] + np.asarray(matched.index)[slot][positive], 1)
    assert found.sum() > 0
    np.testing.assert_array_equal(seen.positives.sum(axis=1), found)


def test_nothing_to_cover():
    seen = coverage(table([(64, 64)], [[]]), RESIZE, ANCHORS, FPN, PAPER)
    assert seen.covered.shape == (0,) and seen.best.shape == (0,) and seen.positives.shape == (0, 1)


def test_the_better_box_wins_an_anchor():
    # Both reach 0.5 with the anchor at (20, 20) alone: 30² / 32² and 24² / 32².
    boxes = [[5, 5, 35, 35], [8, 8, 32, 32]]
    seen = coverage(table([(64, 64)], [boxes]), RESIZE, ANCHORS, FPN, config.Assignment(positive_iou=0.55))
    np.testing.assert_allclose(seen.best, [900 / 1024, 576 / 1024])
    assert seen.reached.tolist() == [True, True] and seen.covered.tolist() == [True, False]


def test_a_forced_match_saves_a_small_box_but_no_box_that_vanished():
    # 128 px are halved: 8 px become 4, and 1.5 px less than one.
    dataset = table([(128, 128)], [[[20, 20, 28, 28], [60, 60, 61.5, 90]]])
    plain = coverage(dataset, RESIZE, ANCHORS, FPN, PAPER)
    forced = coverage(dataset, RESIZE, ANCHORS, FPN, config.Assignment(force_match=True))
    assert plain.covered.tolist() == [False, False]
    assert forced.positives.ravel().tolist() == [1, 0] and forced.placed.trained.tolist() == [True, False]


def test_ties_give_a_small_box_all_its_best_anchors_but_those_of_a_better_box():
    # Squares of 32 px at 4, 12, 20, …: nine of them hold a box of 16 px at [12, 28], IoU 1/4 each. The larger box at
    # [8, 32] (0.56 with the middle one) takes them all.
    ties = config.Assignment(force_match="ties")
    small, larger = [12, 12, 28, 28], [8, 8, 32, 32]
    alone = coverage(table([(64, 64)], [[small]]), RESIZE, ANCHORS, FPN, ties)
    both = coverage(table([(64, 64)], [[small, larger]]), RESIZE, ANCHORS, FPN, ties)
    assert alone.positives.ravel().tolist() == [9] and both.positives.ravel().tolist() == [0, 9]
    nothing = coverage(table([(64, 64)], [[]]), RESIZE, ANCHORS, FPN, ties)
    assert nothing.positives.shape == (0, 1)


def test_placing_leaves_out_what_training_ignores():
    dataset = table([(64, 64)], [[[0, 0, 9, 9], [0, 0, 8, 8], [0, 0, 7, 7]]], crowd=[1, 0, 0], difficult=[0, 1, 0])
    assert place(dataset, RESIZE).rows.tolist() == [2]
    assert place(dataset, RESIZE, everything=True).rows.tolist() == [0, 1, 2]


def test_overlaps_take_the_canvas_of_each_box():
    # The centre is at 60, where only the wider canvas has an anchor: the last one of the other stands at 44.
    boxes = np.array([[44.0, 4, 76, 36], [44, 4, 76, 36]])
    found = overlaps(boxes, np.array([[64, 48], [64, 128]]), ANCHORS, FPN)
    shared = 16 * 32
    np.testing.assert_allclose(found, [shared / (2048 - shared), 1.0])


def test_a_sample_is_drawn_once_and_for_all():
    dataset = table([(64, 64)] * 50, [[[0, 0, 9, 9]]] * 50)
    assert sampled(dataset, 50) is dataset
    assert sampled(dataset, 7).image_ids == sampled(dataset, 7).image_ids
    assert len(sampled(dataset, 7)) == 7 and list(sampled(dataset, 7).image_ids) == sorted(
        sampled(dataset, 7).image_ids
    )


def test_many_boxes_are_quick():
    """Seconds for a hundred thousand: no box is compared with all anchors."""
    import time

    random = np.random.default_rng(0)
    corner = random.random((20_000, 2)) * 400
    boxes = np.concatenate([corner, corner + 10 + random.random((20_000, 2)) * 200], axis=1)
    dataset = table([(640, 640)] * 2000, boxes.reshape(2000, 10, 4).tolist())
    start = time.perf_counter()
    seen = coverage(dataset, config.Resize(), config.Anchors(), config.Fpn(), PAPER)
    assert time.perf_counter() - start < 20
    assert 0.5 < seen.covered.mean() < 1
