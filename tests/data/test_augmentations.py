"""Crop, colour, mosaic, mixup and erasing: each alone, inside tf.data, and together with its boxes in the batches."""

import dataclasses
import functools
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from retina import config
from retina.data import colour, crop, draws, erase, mixing, pipeline
from retina.data.dataset import DetectionDataset
from retina.errors import RetinaError

NONE = tf.zeros([0, 4])
NOBODY = tf.zeros([0], tf.bool)
ON = {"probability": 1.0}
ALL = {
    "horizontal_flip": 0.5,
    "vertical_flip": 0.5,
    "scale": (0.6, 1.8),
    "crop": {"probability": 0.5},
    "colour": {"probability": 0.5},
    "mosaic": {"probability": 0.5},
    "mixup": {"probability": 0.5},
    "erase": {"probability": 0.5},
}


def seed(sample: int, run: int = 7) -> tf.Tensor:
    return tf.constant([run, sample], tf.int64)


def settings(short: int = 64, long: int = 96, **augment) -> config.Data:
    return config.Data(
        train=config.DigitsSource(),
        validation=config.DigitsSource(),
        resize=config.Resize(short=short, long=long, multiple=32, max_canvases=1),
        augment=config.Augment(**{"horizontal_flip": 0.0, **augment}),
    )


def table(images, boxes, crowd=None) -> DetectionDataset:
    flat = np.array([box for some in boxes for box in some], np.float64).reshape(-1, 4)
    return DetectionDataset(
        name="made up",
        class_names=("a", "b", "c"),
        category_ids=(1, 2, 3),
        image_ids=tuple(range(len(images))),
        images=tuple(tf.io.encode_png(image).numpy() for image in images),
        sizes=np.array([image.shape[:2] for image in images], np.int32).reshape(-1, 2),
        offsets=np.cumsum([0] + [len(some) for some in boxes]),
        boxes=flat,
        labels=np.repeat(np.arange(len(boxes)) % 3, [len(some) for some in boxes]),
        crowd=np.zeros(len(flat), bool) if crowd is None else np.array(crowd),
        difficult=np.zeros(len(flat), bool),
        areas=np.ones(len(flat)),
    )


def noise(height: int, width: int, number: int = 0) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)


def painted(factor: int = 1) -> DetectionDataset:
    """Three images, each black with one box in full red, green or blue: the label is the channel.

    With a `factor` they are that much larger, and JPEGs, which training may decode at a reduced size.
    """
    images, boxes = [], [[[9, 14, 37, 41]], [[50, 6, 71, 33]], [[0, 20, 22, 60]]]
    for label, (shape, ((x0, y0, x1, y1),)) in enumerate(zip([(48, 60), (44, 76), (70, 50)], boxes, strict=True)):
        image = np.zeros((*shape, 3), np.uint8)
        image[y0:y1, x0:x1, label] = 255
        images.append(image.repeat(factor, 0).repeat(factor, 1))
    made = table(images, (np.array(boxes) * factor).tolist())
    if factor == 1:
        return made
    encode = functools.partial(tf.io.encode_jpeg, quality=98, chroma_downsampling=False)
    return dataclasses.replace(made, images=tuple(encode(image).numpy() for image in images))


def batches(data, options, **changes) -> list[dict]:
    given = {"batch_size": 2, "seed": 3, "steps": 3, **changes}
    return list(pipeline.training_batches(data, options, **given).as_numpy_iterator())


def assert_same(first: list[dict], second: list[dict]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=key, strict=True)


# ------------------------------------------------------------------------------------------------- empty and degenerate


def test_images_without_boxes_or_with_one_pixel():
    options = settings(crop=ON, mosaic=ON, mixup=ON, colour=ON, erase=ON)
    for batch in batches(table([noise(20, 30), noise(1, 1)], [[], []]), options):
        assert batch["boxes"].shape == (2, 8, 4) and not batch["boxes"].any() and not batch["valid"].any()
        assert batch["size"].tolist() == [[64, 96]] * 2


@pytest.mark.parametrize("shape", [(0, 0), (1, 1), (1, 5)])
def test_colours_of_tiny_images(shape):
    image = tf.fill([*shape, 3], tf.constant(100, tf.uint8))
    found = colour.adjust(image, tf.constant(1.5), tf.constant(0.5), tf.constant(1.2), tf.constant(0.1))
    assert found.shape == image.shape and (found.numpy() == 150).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 3), (4000, 7)])
def test_windows_of_tiny_and_narrow_images_fit(size):
    for number in range(3):
        offsets, windows = crop.random_windows(tf.constant(size), seed(number), 4, 16, (0.02, 1.0), (0.3, 3.3))
        assert (windows.numpy() >= 1).all() and (offsets.numpy() >= 0).all()
        assert (offsets.numpy() + windows.numpy() <= size).all()


@pytest.mark.parametrize("fill", ["random", "mean"])
def test_erasing_one_pixel(fill):
    image = tf.fill([1, 1, 3], tf.constant(9, tf.uint8))
    erased, ignored = erase.erase(image, NONE, NOBODY, seed(0), config.Erase(**ON, fill=fill))
    assert erased.shape == (1, 1, 3) and ignored.shape == (0,)
    if fill == "mean":
        assert (erased.numpy() == 9).all()


# ------------------------------------------------------------------------------------------------------- configuration


def test_everything_new_is_off_and_stays_readable_when_resolved():
    off = config.Augment()
    assert [getattr(off, name).probability for name in ("crop", "colour", "mosaic", "mixup", "erase")] == [0.0] * 5
    assert mixing.images_per_example(off) == 1
    for augment in (off, config.Augment(**ALL)):
        assert config.Augment(**augment.model_dump()) == augment


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"crop": {"area": (0.2, 0.9)}}, "area without effect while probability is 0"),
        ({"mosaic": {"centre": (0.4, 0.6)}}, "centre without effect while probability is 0"),
        ({"erase": {"fill": "mean", "most_hidden": 1.0}}, "fill, most_hidden without effect"),
        ({"crop": {"probability": 1.1}}, "less than or equal to 1"),
        ({"crop": {**ON, "area": (0.0, 1.0)}}, "greater than 0"),
        ({"crop": {**ON, "area": (0.9, 0.5)}}, "area must be .low, high."),
        ({"crop": {**ON, "area": (1.0, 1.0)}}, "crops nothing away"),
        ({"crop": {**ON, "aspect": (2.0, 1.0)}}, "aspect must be .low, high."),
        ({"crop": {**ON, "least": ()}}, "at least 1 item"),
        ({"crop": {**ON, "least": (0.0,), "overlap": "visible"}}, "overlap has no effect"),
        ({"colour": {**ON, "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}}, "are all 0"),
        ({"colour": {**ON, "hue": 0.6}}, "less than or equal to 0.5"),
        ({"mosaic": {**ON, "centre": (0.0, 0.5)}}, "greater than 0"),
        ({"mosaic": {**ON, "centre": (0.6, 0.5)}}, "centre must be .low, high."),
        ({"mosaic": ON, "scale": (0.5, 1.0)}, "scale has no effect up to 1"),
        ({"mixup": {**ON, "alpha": 0.0}}, "greater than or equal to 0.1"),
        ({"erase": {**ON, "area": (0.3, 0.2)}}, "area must be .low, high."),
        ({"keep": "area"}, "keep has no effect where nothing cuts"),
        ({"scale": (1.0, 2.0), "min_visible": 0.5}, "min_visible has no effect with keep: centre"),
    ],
)
def test_a_setting_without_effect_or_out_of_range(given, problem):
    with pytest.raises(ValueError, match=problem):
        config.Augment(**given)


# --------------------------------------------------------------------------------------------------------------- draws


def test_every_use_of_chance_has_a_stream_of_its_own():
    used = [0, 1, 2, 3, *(int(stream) for stream in draws.Stream), *(draws.Stream.TILES + k for k in (1, 2, 3))]
    assert len(used) == len(set(used))


def test_draws_are_the_same_on_every_machine_and_version():
    # Written down from a run: a change would alter every training run that is resumed or repeated.
    drawn = [float(draws.uniform(seed(sample), draws.Stream.COLOUR)) for sample in (0, 1, 10**12)]
    np.testing.assert_allclose(drawn, [0.53084004, 0.30200207, 0.15086925], rtol=1e-6)
    assert draws.integers(seed(5), draws.Stream.MOSAIC_PARTNERS, [3], 1000).numpy().tolist() == [925, 444, 597]


def test_integers_come_evenly():
    counts = np.bincount(draws.integers(seed(0), 0, [3000], 3).numpy(), minlength=3)
    # Binomial: 1000 +- 26.
    assert len(counts) == 3 and (abs(counts - 1000) < 110).all()


def test_sometimes():
    assert draws.sometimes(seed(0), 0, 0.0, lambda: pytest.fail("built"), lambda: 1) == 1
    assert draws.sometimes(seed(0), 0, 1.0, lambda: 2, lambda: pytest.fail("built")) == 2
    drawn = [int(draws.sometimes(seed(k), 0, 0.3, lambda: tf.constant(1), lambda: tf.constant(0))) for k in range(300)]
    # Binomial: 0.3 +- 0.026.
    assert abs(np.mean(drawn) - 0.3) < 0.11


# -------------------------------------------------------------------------------------------------------------- colours


def reference_colours(image, brightness, contrast, saturation, hue):
    """Step by step in float64: factor, blend with the mean grey, blend with the pixel's grey, turn of (I, Q)."""
    luma = np.array([0.299, 0.587, 0.114])
    shown = image.astype(np.float64) * brightness
    shown = contrast * shown + (1 - contrast) * (image[::4, ::4].reshape(-1, 3).mean(0) * brightness) @ luma
    shown = saturation * shown + (1 - saturation) * (shown @ luma)[..., None]
    yiq = np.array([luma, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
    y, i, q = np.moveaxis(shown @ yiq.T, -1, 0)
    turned = (i + 1j * q) * np.exp(2j * np.pi * hue)
    return np.stack([y, turned.real, turned.imag], axis=-1) @ np.linalg.inv(yiq).T


@pytest.mark.parametrize(
    "strengths",
    [(1.2, 1, 1, 0), (1, 0.6, 1, 0), (1, 1, 1.7, 0), (1, 1, 1, 0.13), (0.7, 1.4, 0.5, -0.2), (2, 2, 2, 0.5)],
)
def test_colours_equal_the_steps_one_by_one(strengths):
    image = noise(37, 41)
    exact = np.clip(reference_colours(image, *strengths), 0, 255)
    found = colour.adjust(tf.constant(image), *(tf.constant(value, tf.float32) for value in strengths))
    # Half a level of rounding, and 0.2 of the matrix' coefficients.
    np.testing.assert_allclose(found.numpy(), exact, atol=0.7)


def test_colours_by_hand():
    image = tf.constant([[[100, 50, 200]]], tf.uint8)
    one, none, still = tf.constant(1.0), tf.constant(0.0), tf.constant(0.0)
    np.testing.assert_array_equal(colour.adjust(tf.constant(noise(9, 9)), one, one, one, still), noise(9, 9))
    assert colour.adjust(image, one * 1.2, one, one, still).numpy().tolist() == [[[120, 60, 240]]]
    # 0.299 * 100 + 0.587 * 50 + 0.114 * 200 = 82.05
    assert colour.adjust(image, one, one, none, still).numpy().tolist() == [[[82, 82, 82]]]
    assert colour.adjust(image, one, none, one, still).numpy().tolist() == [[[82, 82, 82]]]
    assert colour.adjust(image, one * 2, one, one, still).numpy().tolist() == [[[200, 100, 255]]]


def test_a_pixel_has_the_same_colour_wherever_it_stands():
    # What makes batches equal whatever the threads do: no sum depends on how the work is split.
    image = noise(64, 64)
    strengths = [tf.constant(value) for value in (1.13, 1.0, 0.77, 0.081)]
    whole = colour.adjust(tf.constant(image), *strengths).numpy()
    np.testing.assert_array_equal(colour.adjust(tf.constant(image[::-1]), *strengths).numpy(), whole[::-1])
    for row in (0, 13, 63):
        np.testing.assert_array_equal(colour.adjust(tf.constant(image[row:, 5:8]), *strengths), whole[row:, 5:8])


def test_drawn_strengths_fill_their_range_and_others_stay():
    options = config.Colour(probability=1.0, brightness=0.5, contrast=0.0, saturation=0.0, hue=0.0)
    image = tf.fill([1, 1, 3], tf.constant(100, tf.uint8))
    levels = np.array([colour.distort(image, seed(k), options).numpy()[0, 0] for k in range(100)])
    assert (levels == levels[:, :1]).all()
    # Even on [50, 150]: mean 100 +- 2.9.
    assert levels.min() >= 50 and levels.max() <= 150 and abs(levels[:, 0].mean() - 100) < 12 and np.ptp(levels) > 85


# ----------------------------------------------------------------------------------------------------------------- crop


def test_windows_have_the_area_and_the_aspect_asked_for():
    offsets, windows = (
        part.numpy() for part in crop.random_windows(tf.constant([600, 800]), seed(0), 4, 4000, (0.1, 0.5), (0.5, 2.0))
    )
    share = windows.prod(1) / (600 * 800)
    assert share.min() >= 0.099 and share.max() <= 0.501
    # Even on [0.1, 0.5]: mean 0.3 +- 0.0018.
    assert abs(share.mean() - 0.3) < 0.008
    aspect = np.log2(windows[:, 1] / windows[:, 0])
    assert aspect.min() >= -1.01 and aspect.max() <= 1.01 and abs(aspect.mean()) < 0.05
    room = np.array([600, 800]) - windows
    place = (offsets / np.maximum(room, 1))[(room > 50).all(1)]
    assert np.abs(place.mean(0) - 0.5).max() < 0.03 and (offsets + windows <= [600, 800]).all()


@pytest.mark.parametrize("overlap", ["iou", "visible"])
def test_the_first_window_that_overlaps_enough_is_taken(overlap):
    options = config.Crop(probability=1.0, overlap=overlap, least=(0.6,), area=(0.1, 0.9))
    boxes = np.array([[5, 8, 70, 61], [60, 50, 95, 78], [0, 0, 100, 80]], np.float32)
    ignored = np.array([False, False, True])
    taken = set()
    for number in range(12):
        offsets, windows = (
            part.numpy()
            for part in crop.random_windows(
                tf.constant([80, 100]), seed(number), draws.Stream.WINDOW, 16, options.area, options.aspect
            )
        )
        expected = ([0, 0], [80, 100])
        for place, ((top, left), (height, width)) in enumerate(zip(offsets, windows, strict=True)):
            shares = []
            for x0, y0, x1, y1 in boxes[:2]:
                both = max(0, min(x1, left + width) - max(x0, left)) * max(0, min(y1, top + height) - max(y0, top))
                own = (x1 - x0) * (y1 - y0)
                shares.append(both / (own if overlap == "visible" else own + height * width - both))
            if max(shares) >= 0.6:
                expected = ([top, left], [height, width])
                taken.add(place)
                break
        found = crop.crop_window(
            tf.constant([80, 100]), tf.constant(boxes), tf.constant(ignored), seed(number), options
        )
        assert [part.numpy().tolist() for part in found] == [list(map(int, part)) for part in expected]
    assert len(taken) > 1


def test_where_no_window_will_do_the_image_stays_whole_and_without_boxes_any_will():
    options = config.Crop(probability=1.0, overlap="visible", least=(1.0,), area=(0.1, 0.5))
    size, everywhere = tf.constant([50, 40]), tf.constant([[0.0, 0.0, 40.0, 50.0]])
    found = crop.crop_window(size, everywhere, tf.constant([False]), seed(0), options)
    assert [part.numpy().tolist() for part in found] == [[0, 0], [50, 40]]
    first = [part.numpy()[0].tolist() for part in crop.random_windows(size, seed(0), 4, 16, (0.1, 0.5), (0.5, 2.0))]
    for boxes, ignored in ((NONE, NOBODY), (everywhere, tf.constant([True]))):
        found = crop.crop_window(size, boxes, ignored, seed(0), options)
        assert [part.numpy().tolist() for part in found] == first


def test_a_cropped_view_is_enlarged_to_the_size_of_the_image():
    options = config.Augment(crop=ON)
    stored, resized, canvas = tf.constant([60, 90]), tf.constant([120, 180]), tf.constant([128, 192])
    for number in range(10):
        view = crop.view(stored, resized, canvas, NONE, NOBODY, seed(number), options)
        offset, window, content = (part.numpy() for part in view)
        assert (offset >= 0).all() and (offset + window <= [60, 90]).all() and (content <= [120, 180]).all()
        assert (content == [120, 180]).any()
        scale = content / window
        assert abs(scale[0] - scale[1]) <= 0.5 / window.min() + 1e-6


def test_a_tile_is_covered_with_one_scale():
    for number, (stored, tile) in enumerate([((1, 1), (7, 3)), ((60, 90), (64, 31)), ((90, 60), (64, 31))] * 2):
        options = config.Augment(scale=(0.5, 2.0), crop=ON if number > 2 else {})
        view = crop.tile_view(tf.constant(stored), tf.constant(tile), NONE, NOBODY, seed(number), options)
        offset, window, content = (part.numpy() for part in view)
        assert content.tolist() == list(tile) and (offset >= 0).all() and (offset + window <= stored).all()
    view = crop.tile_view(tf.constant([60, 90]), tf.constant([30, 30]), NONE, NOBODY, seed(0), config.Augment())
    # Half the size is the least that covers 30 x 30: all of the height, 60 of 90 columns.
    assert view.window.numpy().tolist() == [60, 60] and view.offset[0] == 0


def test_which_boxes_stay():
    boxes = tf.constant(
        [
            [-4.0, 0, 6, 10],  # 0.6 visible, centre inside
            [-6.0, 0, 4, 10],  # 0.4 visible, centre outside
            [-5.0, 2, 5, 8],  # half visible, centre on the border
            [19.5, 0, 40, 10],  # half a pixel left
            [3.0, 3, 3, 9],  # no width
            [0.0, 0, 20, 10],  # all of it
        ]
    )
    counts, crowd = tf.zeros(6, tf.bool), tf.ones(6, tf.bool)
    size = tf.constant([10, 20])

    def stays(ignored, **rule):
        left, valid = crop.cut(boxes, ignored, size, config.Augment(scale=(1.0, 2.0), **rule))
        assert left[0].numpy().tolist() == [0, 0, 6, 10] and left[3].numpy().tolist() == [19.5, 0, 20, 10]
        return valid.numpy().astype(int).tolist()

    assert stays(counts) == [1, 0, 1, 0, 0, 1]
    assert stays(crowd) == [1, 1, 1, 0, 0, 1]
    assert stays(counts, keep="area", min_visible=0.0) == [1, 1, 1, 0, 0, 1]
    assert stays(counts, keep="area", min_visible=0.4) == [1, 1, 1, 0, 0, 1]
    assert stays(counts, keep="area", min_visible=0.5) == [1, 0, 1, 0, 0, 1]
    assert stays(counts, keep="area", min_visible=1.0) == [0, 0, 0, 0, 0, 1]


# ---------------------------------------------------------------------------------------------------------------- erase


def test_erasing_changes_one_rectangle_and_nothing_else():
    image = np.full((50, 70, 3), (10, 200, 90), np.uint8)
    image[:, 35:] = (30, 100, 90)
    boxes = tf.constant([[0.0, 0, 70, 50], [30, 20, 40, 30]])
    shares = []
    for number in range(20):
        options = config.Erase(probability=1.0, area=(0.1, 0.3), fill="random" if number % 2 else "mean")
        erased, ignored = erase.erase(tf.constant(image), boxes, tf.constant([False] * 2), seed(number), options)
        changed = (erased.numpy() != image).any(-1)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        inside = erased.numpy()[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        if options.fill == "mean":
            # Every fourth of 70 columns: 9 of the left half (0 to 32), 9 of the right (36 to 68).
            assert changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            assert (inside == [20, 150, 90]).all()
        else:
            # Noise over 0 to 255: mean 127.5, deviation 74; a rectangle has at least 300 pixels.
            assert abs(inside.mean() - 127.5) < 15 and abs(inside.std() - 74) < 10
        shares.append(len(rows) * len(columns) / (50 * 70))
        x0, y0, x1, y1 = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        hidden = max(0, min(x1, 40) - max(x0, 30)) * max(0, min(y1, 30) - max(y0, 20)) / 100
        assert ignored.numpy().tolist() == [False, hidden > 0.7]
    assert min(shares) > 0.09 and max(shares) < 0.31 and np.ptp(shares) > 0.1


def test_hidden_share_by_hand():
    boxes = tf.constant([[0.0, 0, 10, 10], [5, 5, 6, 7], [20, 20, 30, 30], [6, 6, 6, 9]])
    # Rows 5 to 15, columns 4 to 8.
    found = crop.hidden_share(boxes, tf.constant([5, 4]), tf.constant([10, 4]))
    np.testing.assert_allclose(found, [0.2, 1.0, 0.0, 0.0], rtol=1e-6)


def test_what_was_ignored_stays_so_and_one_point_zero_ignores_nothing():
    image, boxes = tf.constant(noise(20, 20)), tf.constant([[0.0, 0, 20, 20], [9, 9, 11, 11]])
    options = config.Erase(probability=1.0, area=(1.0, 1.0), most_hidden=1.0)
    _, ignored = erase.erase(image, boxes, tf.constant([True, False]), seed(0), options)
    assert ignored.numpy().tolist() == [True, False]
    _, ignored = erase.erase(
        image, boxes, tf.constant([False] * 2), seed(0), options.model_copy(update={"most_hidden": 0.9})
    )
    assert ignored.numpy().tolist() == [True, True]


# ----------------------------------------------------------------------------------------------------- mosaic and mixup


def plain_tile(row, seed, tile):
    """Row k is an image of the level 40 * k with a box at its edge and a crowd."""
    limits = tf.cast(tile[::-1], tf.float32)
    return mixing.Part(
        image=tf.fill([tile[0], tile[1], 3], tf.cast(40 * row, tf.uint8)),
        boxes=tf.stack([tf.concat([tf.zeros(2), limits], 0), tf.concat([limits - 1, limits], 0)]),
        labels=tf.cast(tf.stack([row, row]), tf.int32),
        ignored=tf.constant([False, True]),
        valid=tf.constant([True, True]),
        scale=tf.cast(tf.stack([row, row]), tf.float32) + 1,
    )


def test_mosaic_puts_four_tiles_together_with_their_boxes():
    canvas = tf.constant([32, 64])
    middles, partners = set(), []
    for number in range(20):
        found = mixing.mosaic(seed(number), tf.constant(2, tf.int64), 6, canvas, (0.25, 0.75), plain_tile)
        image, boxes = found.image.numpy()[..., 0], found.boxes.numpy()
        assert image.shape == (32, 64)
        x, y = boxes[0, 2:].astype(int)
        assert 8 <= y <= 24 and 16 <= x <= 48
        places = [[0, 0, x, y], [x, 0, 64, y], [0, y, x, 32], [x, y, 64, 32]]
        assert boxes[::2].tolist() == places
        assert boxes[1::2].tolist() == [[x1 - 1, y1 - 1, x1, y1] for _, _, x1, y1 in places]
        rows = [int(image[y0, x0]) // 40 for x0, y0, _, _ in places]
        assert rows[0] == 2 and found.labels.numpy().tolist() == np.repeat(rows, 2).tolist()
        for row, (x0, y0, x1, y1) in zip(rows, places, strict=True):
            assert (image[y0:y1, x0:x1] == 40 * row).all()
        assert found.ignored.numpy().tolist() == [False, True] * 4 and found.scale.numpy().tolist() == [3, 3]
        middles.add((x, y))
        partners += rows[1:]
    assert len(middles) > 12 and set(partners) == set(range(6))


def test_mosaic_on_a_canvas_of_two_pixels():
    found = mixing.mosaic(seed(0), tf.constant(1, tf.int64), 1, tf.constant([2, 2]), (0.001, 0.002), plain_tile)
    assert found.image[..., 0].numpy().tolist() == [[40, 0], [0, 0]]


def test_mixup_blends_and_keeps_the_boxes_of_both():
    first = plain_tile(tf.constant(5, tf.int64), seed(0), tf.constant([6, 8]))
    levels = []
    for number in range(30):
        found = mixing.mixup(first, seed(number), 2, 1.5, plain_tile)
        row = int(found.labels[2])
        weight = float(mixing.beta(draws.uniform(seed(number), draws.Stream.MIXUP_WEIGHT), 1.5))
        assert (found.image.numpy() == round(weight * 200 + (1 - weight) * 40 * row)).all()
        assert found.labels.numpy().tolist() == [5, 5, row, row] and found.valid.numpy().all()
        assert found.boxes.numpy().tolist() == [[0, 0, 8, 6], [7, 5, 8, 6]] * 2
        assert found.scale.numpy().tolist() == [6, 6] and found.ignored.numpy().tolist() == [False, True] * 2
        levels.append((row, weight))
    assert {row for row, _ in levels} == {0, 1} and np.ptp([weight for _, weight in levels]) > 0.5


def test_beta_quantiles():
    chance = np.linspace(0, 0.9999, 301).astype(np.float32)
    np.testing.assert_allclose(mixing.beta(tf.constant(chance), 1.0), chance, atol=1e-5)
    np.testing.assert_allclose(mixing.beta(tf.constant(chance), 0.5), np.sin(chance * np.pi / 2) ** 2, atol=1e-5)
    x = mixing.beta(tf.constant(chance), 2.0).numpy().astype(np.float64)
    np.testing.assert_allclose(3 * x**2 - 2 * x**3, chance, atol=1e-4)
    for alpha in (0.1, 1.5, 100.0):
        drawn = mixing.beta(draws.uniform(seed(0), 0, [20000]), alpha).numpy()
        deviation = np.sqrt(1 / (4 * (2 * alpha + 1)))
        assert abs(drawn.mean() - 0.5) < 4 * deviation / 141 and abs(drawn.std() / deviation - 1) < 0.03
        assert drawn.min() >= 0 and drawn.max() <= 1


# ------------------------------------------------------------------------------------------------------- inside tf.data


BOXES = tf.constant([[2.0, 3.0, 20.0, 17.0], [10.0, 0.0, 30.0, 24.0]])
COUNTED = tf.constant([False, False])
TRANSFORMS = {
    "colour": lambda pair: colour.distort(tf.constant(noise(24, 30)), pair, config.Colour(**ON)),
    "erase": lambda pair: erase.erase(tf.constant(noise(24, 30)), BOXES, COUNTED, pair, config.Erase(**ON)),
    "crop": lambda pair: crop.view(
        tf.constant([24, 30]), tf.constant([48, 60]), tf.constant([64, 64]), BOXES, COUNTED, pair,
        config.Augment(crop={"probability": 0.5}, scale=(0.5, 2.0)),
    ),
    "tile": lambda pair: crop.tile_view(
        tf.constant([24, 30]), tf.constant([30, 20]), BOXES, COUNTED, pair, config.Augment(crop=ON)
    ),
    "mosaic": lambda pair: mixing.mosaic(
        pair, tf.constant(1, tf.int64), 6, tf.constant([32, 48]), (0.25, 0.75), plain_tile
    ),
    "mixup": lambda pair: mixing.mixup(
        plain_tile(tf.constant(5, tf.int64), pair, tf.constant([6, 8])), pair, 6, 1.5, plain_tile
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSFORMS)
def test_alone_and_inside_tf_data_are_equal(name):
    transform = TRANSFORMS[name]
    pairs = tf.data.Dataset.range(100, 104).map(lambda number: tf.stack([tf.constant(7, tf.int64), number]))
    inside = pairs.map(lambda pair: tf.nest.flatten(transform(pair)) and tuple(tf.nest.flatten(transform(pair))))
    different = set()
    for number, graph in enumerate(inside.as_numpy_iterator()):
        alone = tf.nest.flatten(transform(seed(100 + number)))
        for one, other in zip(alone, graph, strict=True):
            np.testing.assert_array_equal(one, other)
        different.add(b"".join(np.asarray(part).tobytes() for part in graph))
    assert len(different) == 4


# ---------------------------------------------------------------------------------------------------------- in batches


@pytest.mark.parametrize(
    ("factor", "options"),
    [
        (1, {"crop": ON, "horizontal_flip": 0.5, "vertical_flip": 0.5}),
        (4, {"mosaic": ON, "horizontal_flip": 0.5, "scale": (0.7, 1.5)}),
        (1, {"mixup": ON, "crop": {"probability": 0.5}, "vertical_flip": 0.5}),
    ],
    ids=["crop", "mosaic", "mixup"],
)
def test_a_painted_box_stays_on_its_paint(factor, options):
    found, corners = 0, set()
    for batch in batches(painted(factor), settings(keep="area", min_visible=0.0, **options), steps=15):
        for slot in range(2):
            height, width = batch["size"][slot]
            image, valid = batch["images"][slot].astype(int), batch["valid"][slot]
            assert not image[height:].any() and not image[:, width:].any()
            boxes, labels = batch["boxes"][slot][valid], batch["labels"][slot][valid]
            lonely = np.zeros((3, *image.shape[:2]), bool)
            for box, label in zip(boxes, labels, strict=True):
                x0, y0 = np.maximum(np.floor(box[:2]).astype(int) - 3, 0)
                x1, y1 = np.ceil(box[2:]).astype(int) + 3
                lonely[label, y0:y1, x0:x1] = True
                near = (boxes[:, :2] < [x1, y1]).all(1) & (boxes[:, 2:] > [x0, y0]).all(1) & (labels == label)
                if near.sum() > 1:  # its colour is not its own here
                    continue
                part = image[y0:y1, x0:x1, label]
                if part.max() < 12:  # blended away
                    continue
                rows, columns = np.nonzero(part > part.max() / 2)
                paint = [x0 + columns.min(), y0 + rows.min(), x0 + columns.max() + 1, y0 + rows.max() + 1]
                np.testing.assert_allclose(box, paint, atol=1.0)
                corners.add((label, bool(box[0] > width / 2), bool(box[1] > height / 2)))
                found += 1
            # No paint anywhere that is not in a box: nothing was lost or left behind.
            assert not (np.moveaxis(image, -1, 0) * ~lonely > 8).any()
    assert found >= 25 and len(corners) >= 4


def test_crowds_follow_their_image_and_no_box_is_lost():
    # Every tile covers its quarter: with boxes all over the image, each of four images shows all of its nine.
    boxes = [[[0, 0, 40, 40]] * 9, [[0, 0, 40, 40]] * 9]
    data = table([noise(40, 40), noise(40, 40, 1)], boxes, crowd=[False] * 8 + [True] + [False] * 9)
    for batch in batches(data, settings(mosaic=ON, mixup=ON)):
        assert batch["boxes"].shape == (2, 48, 4) and batch["valid"].sum(1).tolist() == [45, 45]
        for slot in range(2):
            first = batch["labels"][slot][batch["valid"][slot]] == 0
            assert batch["crowd"][slot].sum() * 9 == first.sum()
    rooms = {"mosaic": 4, "mixup": 2, "erase": 1}
    assert {name: mixing.images_per_example(config.Augment(**{name: ON})) for name in rooms} == rooms


@pytest.fixture(scope="module")
def lively() -> list[dict]:
    return batches(painted(), settings(**ALL), steps=8)


def test_everything_at_once_keeps_the_contract_and_does_something(lively):
    contract = {
        "images": ("uint8", (2, 96, 96, 3)),
        "boxes": ("float32", (2, 8, 4)),
        "labels": ("int32", (2, 8)),
        "valid": ("bool", (2, 8)),
        "crowd": ("bool", (2, 8)),
        "index": ("int64", (2,)),
        "sample": ("int64", (2,)),
        "scale": ("float32", (2, 2)),
        "size": ("int32", (2, 2)),
    }
    for batch in lively:
        assert {key: (value.dtype.name, value.shape) for key, value in batch.items()} == contract
        assert not batch["boxes"][~batch["valid"]].any() and not batch["crowd"][~batch["valid"]].any()
        assert (batch["boxes"] <= batch["size"][:, None, [1, 0, 1, 0]]).all() and (batch["boxes"] >= 0).all()
    assert len({image.tobytes() for batch in lively for image in batch["images"]}) == 16


def test_a_run_continued_at_any_step_and_on_one_thread_sees_the_same(lively):
    assert_same(batches(painted(), settings(**ALL), steps=8, first_step=3, parallel_calls=1), lively[3:])


def test_evaluation_knows_no_augmentation():
    plain, with_all = (
        list(pipeline.evaluation_batches(painted(), options, batch_size=2).as_numpy_iterator())
        for options in (settings(), settings(**ALL))
    )
    assert_same(plain, with_all)


def test_a_damaged_partner_is_named():
    data = table([noise(20, 20)] * 2, [[], []])
    bad = dataclasses.replace(data, images=(data.images[0], b"z"))
    with pytest.raises(RetinaError, match="^made up: image 1: expected a JPEG"), pipeline.translated(bad):
        batches(bad, settings(mosaic=ON), batch_size=1, steps=8)


@pytest.mark.slow
def test_op_determinism_allows_it_all():
    script = (
        "import tensorflow as tf; tf.config.experimental.enable_op_determinism(); tf.keras.utils.set_random_seed(1)\n"
        "from tests.data import test_augmentations as t\n"
        "t.assert_same(*(t.batches(t.painted(), t.settings(**t.ALL), steps=2) for _ in range(2)))\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
