"""Colour, mosaic, mixup and erasing: each alone, and all together with their boxes in the batches."""

import dataclasses
import functools
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from retina import config
from retina.data.batches import augment
from retina.data.batches.augment import Stream
from retina.data.batches.evaluation import evaluation_batches, translated
from retina.data.batches.training import training_batches
from retina.data.dataset import DetectionDataset
from retina.errors import RetinaError

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
    return list(training_batches(data, options, **given).as_numpy_iterator())


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


def distorted(image: np.ndarray, *strengths: float) -> np.ndarray:
    image = image.copy()
    augment.distort(image, *strengths)
    return image


@pytest.mark.parametrize("shape", [(0, 0), (1, 1), (1, 5)])
def test_colours_of_tiny_images(shape):
    image = np.full((*shape, 3), 100, np.uint8)
    shown = distorted(image, 1.5, 0.5, 1.2, 0.1)
    assert shown.shape == image.shape and (shown == 150).all()


@pytest.mark.parametrize("fill", ["random", "mean"])
def test_erasing_one_pixel(fill):
    data = table([np.full((1, 1, 3), 9, np.uint8)], [[]])
    for batch in batches(data, settings(short=1, erase={**ON, "fill": fill}), batch_size=1):
        assert batch["size"].tolist() == [[1, 1]] and not batch["crowd"].any() and not batch["images"][0, 1:].any()
        if fill == "mean":
            assert (batch["images"][0, 0, 0] == 9).all()


# ------------------------------------------------------------------------------------------------------- configuration


def test_everything_new_is_off_and_stays_readable_when_resolved():
    off = config.Augment()
    assert [getattr(off, name).probability for name in ("crop", "colour", "mosaic", "mixup", "erase")] == [0.0] * 5
    assert augment.images_per_example(off) == 1
    for augmentation in (off, config.Augment(**ALL)):
        assert config.Augment(**augmentation.model_dump()) == augmentation


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
def test_colours_equal_the_steps_taken_alone(strengths):
    image = noise(37, 41)
    exact = np.clip(reference_colours(image, *strengths), 0, 255)
    # Half a level of rounding, and 0.2 of the matrix' coefficients.
    np.testing.assert_allclose(distorted(image, *strengths), exact, atol=0.7)


def test_colours_by_hand():
    image = np.array([[[100, 50, 200]]], np.uint8)
    np.testing.assert_array_equal(distorted(noise(9, 9), 1, 1, 1, 0), noise(9, 9))
    assert distorted(image, 1.2, 1, 1, 0).tolist() == [[[120, 60, 240]]]
    # 0.299 * 100 + 0.587 * 50 + 0.114 * 200 = 82.05
    assert distorted(image, 1, 1, 0, 0).tolist() == [[[82, 82, 82]]]
    assert distorted(image, 1, 0, 1, 0).tolist() == [[[82, 82, 82]]]
    assert distorted(image, 2, 1, 1, 0).tolist() == [[[200, 100, 255]]]


def test_a_pixel_has_the_same_colour_wherever_it_stands():
    # What makes batches equal whatever the machine does: no pixel depends on how the work is split.
    image, strengths = noise(64, 64), (1.13, 1.0, 0.77, 0.081)
    whole = distorted(image, *strengths)
    np.testing.assert_array_equal(distorted(image[::-1], *strengths), whole[::-1])
    for row in (0, 13, 63):
        np.testing.assert_array_equal(distorted(image[row:, 5:8], *strengths), whole[row:, 5:8])


def lay_out(count: int, images: int = 1, canvas=(32, 64), boxes=(), **options) -> augment.Layout:
    """Of `count` examples, all of the last of so many images of 32 x 64 pixels, each with these boxes."""
    size = np.array([[32, 64]])
    flat = np.tile(np.array(boxes, np.float32).reshape(-1, 4), (images, 1))
    columns = augment.Table(
        size.repeat(images, 0),
        np.arange(images + 1) * len(boxes),
        flat,
        np.arange(images, dtype=np.int32).repeat(len(boxes)),
        np.zeros(len(flat), bool),
    )
    settings = config.Augment(**{"horizontal_flip": 0.0, **options})
    rows = np.full(count, images - 1)
    return augment.lay_out(columns, rows, np.arange(count), size.repeat(count, 0), np.array(canvas), 7, settings)


def test_drawn_strengths_fill_their_range_and_others_stay():
    layout = lay_out(100, colour={**ON, "brightness": 0.5, "contrast": 0.0, "saturation": 0.0, "hue": 0.1})
    assert layout.coloured.all() and (layout.colours[:, 1:3] == 1).all()
    # Even on [0.5, 1.5]: mean 1 +- 0.029; on [-0.1, 0.1]: 0 +- 0.006.
    for column, middle, half in ((0, 1, 0.5), (3, 0, 0.1)):
        drawn = (layout.colours[:, column] - middle) / half
        assert np.abs(drawn).max() <= 1 and abs(drawn.mean()) < 0.24 and np.ptp(drawn) > 1.7
    assert not lay_out(100).coloured.any()
    # Binomial: 0.3 +- 0.026.
    assert abs(lay_out(300, colour={"probability": 0.3}).coloured.mean() - 0.3) < 0.11


# ---------------------------------------------------------------------------------------------------------------- erase


def erased(image: np.ndarray, boxes, steps: int = 20, crowd=None, **options) -> list[dict]:
    made = settings(*image.shape[:2], erase={**ON, **options})
    return batches(table([image], [boxes], crowd), made, batch_size=1, steps=steps)


@pytest.mark.parametrize("fill", ["random", "mean"])
def test_erasing_changes_one_rectangle_and_nothing_else(fill):
    image = np.full((50, 70, 3), (10, 200, 90), np.uint8)
    image[:, 35:] = (30, 100, 90)
    shares = []
    for batch in erased(image, [[0, 0, 70, 50], [30, 20, 40, 30]], area=(0.1, 0.3), fill=fill):
        shown = batch["images"][0, :50, :70]
        changed = (shown != image).any(-1)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        inside = shown[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        if fill == "mean":
            # Every fourth of 70 columns: 9 of the left half (0 to 32), 9 of the right (36 to 68).
            assert changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            assert (inside == [20, 150, 90]).all()
        else:
            # Noise over 0 to 255: mean 127.5, deviation 74; a rectangle has at least 300 pixels.
            assert abs(inside.mean() - 127.5) < 15 and abs(inside.std() - 74) < 10
        shares.append(len(rows) * len(columns) / (50 * 70))
        x0, y0, x1, y1 = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        hidden = max(0, min(x1, 40) - max(x0, 30)) * max(0, min(y1, 30) - max(y0, 20)) / 100
        assert batch["crowd"][0, :2].tolist() == [False, hidden > 0.7] and batch["valid"][0, :2].all()
    assert min(shares) > 0.09 and max(shares) < 0.31 and np.ptp(shares) > 0.1


def test_what_was_ignored_stays_so_and_one_point_zero_ignores_nothing():
    for most, ignored in ((1.0, [True, False]), (0.9, [True, True])):
        (batch,) = erased(
            noise(20, 20),
            [[0, 0, 20, 20], [9, 9, 11, 11]],
            steps=1,
            crowd=[True, False],
            area=(1.0, 1.0),
            aspect=(1.0, 1.0),
            most_hidden=most,
        )
        assert batch["crowd"][0, :2].tolist() == ignored


# ----------------------------------------------------------------------------------------------------- mosaic and mixup


def plain(levels: int = 6) -> DetectionDataset:
    """Image k has the level 40 * k, a box over all of it and a crowd in its last pixel."""
    images = [np.full((32, 64, 3), 40 * k, np.uint8) for k in range(levels)]
    return table(images, [[[0, 0, 64, 32], [63, 31, 64, 32]]] * levels, crowd=[False, True] * levels)


def test_mosaic_puts_four_tiles_together_with_their_boxes():
    layout = lay_out(60, 6, mosaic=ON)
    parts = layout.parts
    assert parts.example.tolist() == np.arange(60).repeat(4).tolist() and (layout.content == [32, 64]).all()
    middles, partners = set(), []
    for four in np.arange(240).reshape(60, 4):
        y, x = parts.views.content[four[0]].tolist()
        assert 8 <= y <= 24 and 16 <= x <= 48
        assert parts.corner[four].tolist() == [[0, 0], [0, x], [y, 0], [y, x]]
        assert parts.views.content[four].tolist() == [[y, x], [y, 64 - x], [32 - y, x], [32 - y, 64 - x]]
        assert parts.row[four[0]] == 5
        middles.add((x, y))
        partners += parts.row[four[1:]].tolist()
    assert len(middles) > 36 and set(partners) == set(range(6))
    # Binomial: 30 +- 5.
    assert (abs(np.bincount(partners) - 30) < 21).all()


def test_a_mosaic_in_a_batch_shows_each_tile_with_its_boxes():
    data = plain()
    for batch in batches(data, settings(32, 64, mosaic=ON, keep="area", min_visible=0.0), batch_size=1, steps=20):
        image, valid = batch["images"][0, :32, :64, 0], batch["valid"][0]
        shown = batch["boxes"][0][valid & ~batch["crowd"][0]].astype(int)
        x, y = shown[0, 2:]
        assert shown.tolist() == [[0, 0, x, y], [x, 0, 64, y], [0, y, x, 32], [x, y, 64, 32]]
        levels = [int(image[y0, x0]) // 40 for x0, y0, _, _ in shown]
        assert levels[0] == batch["index"][0]
        for level, (x0, y0, x1, y1) in zip(levels, shown, strict=True):
            assert (image[y0:y1, x0:x1] == 40 * level).all()
        assert batch["labels"][0][valid & ~batch["crowd"][0]].tolist() == [level % 3 for level in levels]
        assert batch["size"].tolist() == [[32, 64]]
        (stored,) = batch["scale"]
        assert (stored >= 0.25).all() and (stored <= 0.77).all()


def test_mosaic_on_a_canvas_of_two_pixels():
    parts = lay_out(1, canvas=(2, 2), mosaic={**ON, "centre": (0.001, 0.002)}).parts
    assert (parts.views.content == 1).all() and parts.corner.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_mixup_blends_and_keeps_the_boxes_of_both():
    data, weights = plain(2), []
    layout = lay_out(30, 2, mixup=ON)
    assert layout.parts.blended.tolist() == [False, True] * 30
    made = batches(data, settings(32, 64, mixup=ON, keep="area", min_visible=0.0), batch_size=1, steps=30)
    for batch in made:
        image, index = batch["images"][0, :32, :64], batch["index"][0]
        partner = int(batch["labels"][0, 2])
        drawn = augment.draw(3, batch["sample"])
        weight = augment.beta(drawn[:, Stream.MIXUP_WEIGHT, 0], 1.5)[0]
        assert partner == int(drawn[0, Stream.MIXUP_PARTNER, 0] * 2)
        assert np.abs(image - (weight * 40 * index + (1 - weight) * 40 * partner)).max() <= 0.5 + 1e-3
        assert batch["boxes"][0, :4].tolist() == [[0, 0, 64, 32], [63, 31, 64, 32]] * 2
        assert batch["labels"][0, :4].tolist() == [index, index, partner, partner]
        assert batch["crowd"][0, :4].tolist() == [False, True] * 2 and batch["scale"].tolist() == [[1, 1]]
        weights.append((partner, weight))
    assert {row for row, _ in weights} == {0, 1} and np.ptp([weight for _, weight in weights]) > 0.5


def test_blending_is_to_the_nearest_level():
    first, second = noise(40, 50), noise(40, 50, 1)
    for weight in (0.0, 0.37, 1.0):
        image = first.copy()
        augment.blend(image[3:, 4:], second[3:, 4:], weight)
        exact = weight * first.astype(np.float64) + (1 - weight) * second
        np.testing.assert_allclose(image[3:, 4:], exact[3:, 4:], atol=0.5 + 1e-4)
        np.testing.assert_array_equal(image[:3], first[:3])


def test_beta_quantiles():
    chance = np.linspace(0, 0.9999, 301)
    np.testing.assert_allclose(augment.beta(chance, 1.0), chance, atol=1e-5)
    np.testing.assert_allclose(augment.beta(chance, 0.5), np.sin(chance * np.pi / 2) ** 2, atol=1e-5)
    x = augment.beta(chance, 2.0)
    np.testing.assert_allclose(3 * x**2 - 2 * x**3, chance, atol=1e-4)
    even = augment.draw(0, np.arange(200)).ravel()[:20000]
    for alpha in (0.1, 1.5, 100.0):
        drawn = augment.beta(even, alpha)
        deviation = np.sqrt(1 / (4 * (2 * alpha + 1)))
        assert abs(drawn.mean() - 0.5) < 4 * deviation / 141 and abs(drawn.std() / deviation - 1) < 0.03
        assert drawn.min() >= 0 and drawn.max() <= 1


def test_the_first_image_of_a_mosaic_and_of_a_mixup_is_drawn_as_if_it_were_alone():
    """Its window, zoom and flips have streams of their own, which what it is combined with leaves alone."""
    alone, mixed = (lay_out(20, 3, scale=(0.5, 2.0), horizontal_flip=0.5, **more) for more in ({}, {"mixup": ON}))
    first = ~mixed.parts.blended
    np.testing.assert_array_equal(mixed.parts.mirrored[first], alone.parts.mirrored)
    for name in augment.Views._fields:
        np.testing.assert_array_equal(getattr(mixed.parts.views, name)[first], getattr(alone.parts.views, name))


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
    # With this seed no box is cut to less than a pixel, which would leave paint without a box.
    for batch in batches(painted(factor), settings(keep="area", min_visible=0.0, **options), steps=20, seed=8):
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
    for batch in batches(data, settings(mosaic=ON, mixup=ON, keep="area", min_visible=0.0)):
        assert batch["boxes"].shape == (2, 48, 4) and batch["valid"].sum(1).tolist() == [45, 45]
        for slot in range(2):
            first = batch["labels"][slot][batch["valid"][slot]] == 0
            assert batch["crowd"][slot].sum() * 9 == first.sum()
    rooms = {"mosaic": 4, "mixup": 2, "erase": 1}
    assert {name: augment.images_per_example(config.Augment(**{name: ON})) for name in rooms} == rooms


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
    assert_same(batches(painted(), settings(**ALL), steps=8, first_step=3, threads=1), lively[3:])


def test_evaluation_knows_no_augmentation():
    plain, with_all = (
        list(evaluation_batches(painted(), options, batch_size=2).as_numpy_iterator())
        for options in (settings(), settings(**ALL))
    )
    assert_same(plain, with_all)


def test_a_damaged_partner_is_named():
    data = table([noise(20, 20)] * 2, [[], []])
    bad = dataclasses.replace(data, images=(data.images[0], b"z"))
    with pytest.raises(RetinaError, match="^made up: image 1: expected a JPEG"), translated(bad):
        batches(bad, settings(mosaic=ON), batch_size=1, steps=8)


@pytest.mark.slow
def test_op_determinism_allows_it_all():
    script = (
        "import tensorflow as tf; tf.config.experimental.enable_op_determinism(); tf.keras.utils.set_random_seed(1)\n"
        "from tests.data.batches import test_augment as t\n"
        "t.assert_same(*(t.batches(t.painted(), t.settings(**t.ALL), steps=2) for _ in range(2)))\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
