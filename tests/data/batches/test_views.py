"""Draws, and what is shown of an image: values, bounds, and independence of the random streams."""

import numpy as np
import pytest

from retina import config
from retina.data.batches import augment
from retina.data.batches.augment import Objects, Place, Stream, Views

ON = {"probability": 1.0}
ANY = range(60)


def drawn(samples, seed: int = 7, place: int = Place.FIRST) -> np.ndarray:
    return augment.draw(seed, np.array(list(samples), np.int64), place)


def sizes(size, count: int = 1) -> np.ndarray:
    return np.tile(np.array(size, np.int64), (count, 1))


def objects(*boxes_of_each, ignored=None) -> Objects:
    """The objects of images, a list of boxes for each."""
    flat = np.array([box for boxes in boxes_of_each for box in boxes], np.float32).reshape(-1, 4)
    image = np.repeat(np.arange(len(boxes_of_each)), [len(boxes) for boxes in boxes_of_each])
    ignored = np.zeros(len(flat), bool) if ignored is None else np.array(ignored, bool)
    return Objects(image, flat, np.zeros(len(flat), np.int32), ignored)


# --------------------------------------------------------------------------------------------------------------- draws


def test_no_sample_no_draw():
    assert drawn([]).shape == (0, 32, 4)


def test_every_use_of_chance_has_a_stream_of_its_own():
    numbers = [int(stream) for stream in Stream]
    assert len(numbers) == len(set(numbers)) and max(numbers) + augment.WINDOWS == drawn([0]).shape[1]
    table = np.stack([drawn([5], place=place) for place in Place])
    assert len(np.unique(table)) == table.size


def test_draws_are_the_same_on_every_machine_and_version():
    # Written down from a run: a change would alter every training run that is resumed or repeated.
    numbers = [drawn([sample])[0, Stream.COLOUR, 0] for sample in (0, 1, 10**12)]
    np.testing.assert_allclose(numbers, [0.855505511464877, 0.24357220918156153, 0.809837230677219], rtol=1e-12)
    assert (drawn([5])[0, Stream.MOSAIC_PARTNERS, :3] * 1000).astype(int).tolist() == [150, 770, 566]
    np.testing.assert_allclose(
        augment.zoom(drawn([0, 1]), (0.5, 2.0)), [0.8951228511113443, 1.5351440119353374], rtol=1e-12
    )
    assert augment.noise(7, 3, (4,)).tolist() == [145, 177, 115, 93]


def test_draws_depend_on_the_seed_and_the_sample_only():
    whole = drawn(range(100))
    np.testing.assert_array_equal(drawn([7, 3, 99]), whole[[7, 3, 99]])
    assert len(np.unique([drawn(range(4), seed) for seed in range(4)])) == 4 * 4 * 32 * 4


def test_numbers_come_evenly():
    table = drawn(range(3000))
    # Of 3000 even numbers: mean 0.5 +- 0.0053, quarters as often as not.
    assert table.min() >= 0 and table.max() < 1
    np.testing.assert_allclose(table.mean(0), 0.5, atol=0.027)
    np.testing.assert_allclose((table < 0.25).mean(0), 0.25, atol=0.04)
    counts = np.bincount([augment.batch_choice(0, step, 3) for step in range(300)], minlength=3)
    # Binomial: 100 +- 8.
    assert len(counts) == 3 and (abs(counts - 100) < 35).all()
    noise = augment.noise(0, 0, (50, 60, 3))
    assert noise.dtype == np.uint8 and abs(noise.mean() - 127.5) < 4 and len(np.unique(noise)) == 256


def test_streams_and_samples_are_independent():
    table = drawn(range(2000)).reshape(2000, -1)
    # Correlations of 2000 pairs: 0 +- 0.022; 8128 pairs of columns, and neighbours in each.
    correlations = np.corrcoef(table.T) - np.eye(table.shape[1])
    assert np.abs(correlations).max() < 0.11
    assert max(abs(np.corrcoef(table[1:, k], table[:-1, k])[0, 1]) for k in range(table.shape[1])) < 0.1


# ---------------------------------------------------------------------------------------------------------------- zoom


def test_zoom_of_an_empty_range_is_its_value():
    assert (augment.zoom(drawn(ANY), (1.5, 1.5)) == 1.5).all()


def test_zoom_is_log_uniform():
    factors = np.log2(augment.zoom(drawn(range(1000), 3), (0.5, 2.0)))
    assert factors.min() >= -1 and factors.max() <= 1
    # Uniform on [-1, 1]: mean 0 +- 0.018, quarters at -0.5 and 0.5.
    np.testing.assert_allclose(factors.mean(), 0, atol=0.07)
    np.testing.assert_allclose(np.quantile(factors, [0.25, 0.75]), [-0.5, 0.5], atol=0.1)


def zoomed(stored, resized, canvas, scale, samples=ANY) -> Views:
    count = len(samples)
    return augment.zoomed(sizes(stored, count), sizes(resized, count), np.array(canvas), drawn(samples), scale)


def test_the_view_of_a_single_pixel():
    shown = zoomed((1, 1), (4, 4), (4, 4), (0.1, 8.0))
    assert not shown.offset.any() and (shown.window == 1).all()
    assert (shown.content >= 1).all() and (shown.content <= 4).all()


def test_zoom_one_shows_the_whole_image():
    shown = zoomed((123, 457), (64, 238), (128, 256), (1.0, 1.0), [0])
    assert [side.tolist() for side in shown] == [[[0, 0]], [[123, 457]], [[64, 238]]]


def test_zooming_out_shows_the_whole_image_smaller():
    shown = zoomed((100, 200), (64, 128), (64, 128), (0.5, 0.5), [0])
    assert [side.tolist() for side in shown] == [[[0, 0]], [[100, 200]], [[32, 64]]]


def test_zooming_in_crops_what_exceeds_the_canvas_only():
    # Twice 64x64 on a canvas of 64x128: half the height is cropped away, the width fits.
    shown = zoomed((10, 10), (64, 64), (64, 128), (2.0, 2.0))
    assert (shown.window == [5, 10]).all() and (shown.content == [64, 128]).all() and not shown.offset[:, 1].any()
    assert set(shown.offset[:, 0].tolist()) == {0, 1, 2, 3, 4, 5}


def test_a_view_stays_inside_the_image_and_the_canvas():
    shown = zoomed((97, 211), (60, 131), (64, 160), (0.5, 2.0))
    assert (shown.offset >= 0).all() and (shown.window >= 1).all() and (shown.offset + shown.window <= [97, 211]).all()
    assert (shown.content >= 1).all() and (shown.content <= [64, 160]).all()
    # One zoom for both sides, up to the rounding of the window to whole stored pixels.
    scale = shown.content / shown.window / ([60 / 97, 131 / 211])
    assert (np.abs(scale[:, 0] / scale[:, 1] - 1) < 0.03).all()


# ------------------------------------------------------------------------------------------------------ boxes and flips


BOXES = objects([[0.0, 0.5, 1.0, 2.0], [0.25, 0.0, 3.0, 1.0]])
WHOLE = Views(sizes((0, 0)), sizes((2, 3)), sizes((2, 3)))  # 2 high, 3 wide


def flipped(mirrored: bool, turned: bool, boxes=BOXES) -> np.ndarray:
    return augment.moved(boxes, WHOLE, np.array([mirrored]), np.array([turned]))


def test_boxes_of_no_image_and_of_an_image_without_boxes():
    none = Views(*(np.zeros((0, 2), np.int64) for _ in Views._fields))
    assert augment.moved(objects(), none, np.zeros(0, bool), np.zeros(0, bool)).shape == (0, 4)
    assert flipped(True, True, objects([])).shape == (0, 4)


def test_flips_mirror_boxes():
    np.testing.assert_array_equal(flipped(False, False), BOXES.boxes)
    np.testing.assert_array_equal(flipped(True, False), [[2.0, 0.5, 3.0, 2.0], [0.0, 0.0, 2.75, 1.0]])
    np.testing.assert_array_equal(flipped(False, True), [[0.0, 0.0, 1.0, 1.5], [0.25, 1.0, 3.0, 2.0]])
    once = BOXES._replace(boxes=flipped(True, True))
    np.testing.assert_array_equal(flipped(True, True, once), BOXES.boxes)


def test_boxes_move_with_the_view_by_hand():
    # 20 x 10 stored pixels from row 5 and column 40 on, shown at 10 x 20: half as high, twice as wide.
    view = Views(sizes((5, 40)), sizes((20, 10)), sizes((10, 20)))
    shown = augment.moved(objects([[42, 5, 45, 25]]), view, np.array([False]), np.array([False]))
    assert shown.dtype == np.float32 and shown.tolist() == [[4, 0, 10, 10]]
    shown = augment.moved(objects([[42, 5, 45, 15]]), view, np.array([True]), np.array([True]))
    assert shown.tolist() == [[10, 5, 16, 10]]


def test_flips_come_as_often_as_asked_and_independently():
    rows, count = np.zeros(1000, np.int64), 1000
    table = augment.Table(sizes((2, 3)), np.zeros(2, np.int64), np.zeros((0, 4)), np.zeros(0), np.zeros(0, bool))
    options = config.Augment(horizontal_flip=0.3, vertical_flip=0.3)
    layout = augment.lay_out(table, rows, np.arange(count), sizes((2, 3), count), np.array([4, 4]), 3, options)
    flips = np.stack([layout.parts.mirrored, layout.parts.turned])
    # Binomial: the standard deviation of a frequency is 0.0145, of the frequency of both (0.09) 0.009.
    np.testing.assert_allclose(flips.mean(1), 0.3, atol=0.06)
    np.testing.assert_allclose(flips.all(0).mean(), 0.09, atol=0.036)


def test_which_boxes_stay():
    boxes = np.array(
        [
            [-4.0, 0, 6, 10],  # 0.6 visible, centre inside
            [-6.0, 0, 4, 10],  # 0.4 visible, centre outside
            [-5.0, 2, 5, 8],  # half visible, centre on the border
            [19.5, 0, 40, 10],  # half a pixel left
            [3.0, 3, 3, 9],  # no width
            [0.0, 0, 20, 10],  # all of it
        ],
        np.float32,
    )
    counts, crowd = np.zeros(6, bool), np.ones(6, bool)

    def stays(ignored, **rule):
        left, valid = augment.cut(boxes, ignored, sizes((10, 20), 6), config.Augment(scale=(1.0, 2.0), **rule))
        assert left[0].tolist() == [0, 0, 6, 10] and left[3].tolist() == [19.5, 0, 20, 10]
        return valid.astype(int).tolist()

    assert stays(counts) == [1, 0, 1, 0, 0, 1]
    assert stays(crowd) == [1, 1, 1, 0, 0, 1]
    assert stays(counts, keep="area", min_visible=0.0) == [1, 1, 1, 0, 0, 1]
    assert stays(counts, keep="area", min_visible=0.4) == [1, 1, 1, 0, 0, 1]
    assert stays(counts, keep="area", min_visible=0.5) == [1, 0, 1, 0, 0, 1]
    assert stays(counts, keep="area", min_visible=1.0) == [0, 0, 0, 0, 0, 1]


def test_hidden_share_by_hand():
    boxes = np.array([[0.0, 0, 10, 10], [5, 5, 6, 7], [20, 20, 30, 30], [6, 6, 6, 9]])
    # Rows 5 to 15, columns 4 to 8.
    hidden = augment.hidden_share(boxes, sizes((5, 4), 4), sizes((10, 4), 4))
    np.testing.assert_allclose(hidden, [0.2, 1.0, 0.0, 0.0], rtol=1e-6)


# ----------------------------------------------------------------------------------------------------------------- crop


def windows(size, samples, count: int, area, aspect) -> tuple[np.ndarray, np.ndarray]:
    of = drawn(samples)[:, Stream.WINDOWS : Stream.WINDOWS + count]
    return augment.random_windows(sizes(size, len(samples)), of, area, aspect)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 3), (4000, 7)])
def test_windows_of_tiny_and_narrow_images_fit(size):
    offsets, taken = windows(size, range(3), 16, (0.02, 1.0), (0.3, 3.3))
    assert (taken >= 1).all() and (offsets >= 0).all() and (offsets + taken <= size).all()


def test_windows_have_the_area_and_the_aspect_asked_for():
    offsets, taken = (part.reshape(-1, 2) for part in windows((600, 800), range(250), 16, (0.1, 0.5), (0.5, 2.0)))
    share = taken.prod(1) / (600 * 800)
    assert share.min() >= 0.099 and share.max() <= 0.501
    # Even on [0.1, 0.5]: mean 0.3 +- 0.0018.
    assert abs(share.mean() - 0.3) < 0.008
    aspect = np.log2(taken[:, 1] / taken[:, 0])
    assert aspect.min() >= -1.01 and aspect.max() <= 1.01 and abs(aspect.mean()) < 0.05
    room = np.array([600, 800]) - taken
    place = (offsets / np.maximum(room, 1))[(room > 50).all(1)]
    assert np.abs(place.mean(0) - 0.5).max() < 0.03 and (offsets + taken <= [600, 800]).all()


@pytest.mark.parametrize("overlap", ["iou", "visible"])
def test_the_first_window_that_overlaps_enough_is_taken(overlap):
    options = config.Crop(probability=1.0, overlap=overlap, least=(0.6,), area=(0.1, 0.9))
    boxes, ignored = [[5, 8, 70, 61], [60, 50, 95, 78], [0, 0, 100, 80]], [False, False, True]
    first, samples = set(), range(12)
    offsets, taken = windows((80, 100), samples, 16, options.area, options.aspect)
    cropped = augment.cropped(
        sizes((80, 100), 12), objects(*[boxes] * 12, ignored=ignored * 12), drawn(samples), options
    )
    for number in samples:
        expected = ([0, 0], [80, 100])
        for place, ((top, left), (height, width)) in enumerate(zip(offsets[number], taken[number], strict=True)):
            shares = []
            for x0, y0, x1, y1 in boxes[:2]:
                both = max(0, min(x1, left + width) - max(x0, left)) * max(0, min(y1, top + height) - max(y0, top))
                area = (x1 - x0) * (y1 - y0)
                shares.append(both / (area if overlap == "visible" else area + height * width - both))
            if max(shares) >= 0.6:
                expected = ([top, left], [height, width])
                first.add(place)
                break
        assert [part[number].tolist() for part in cropped] == [list(map(int, part)) for part in expected]
    assert len(first) > 1


def test_where_no_window_will_do_the_image_stays_whole_and_without_boxes_any_will():
    options = config.Crop(probability=1.0, overlap="visible", least=(1.0,), area=(0.1, 0.5))
    everywhere = [[0.0, 0.0, 40.0, 50.0]]
    cropped = augment.cropped(sizes((50, 40)), objects(everywhere), drawn([0]), options)
    assert [part.tolist() for part in cropped] == [[[0, 0]], [[50, 40]]]
    first = [part[:, 0].tolist() for part in windows((50, 40), [0], 16, (0.1, 0.5), (0.5, 2.0))]
    for without in (objects([]), objects(everywhere, ignored=[True])):
        cropped = augment.cropped(sizes((50, 40)), without, drawn([0]), options)
        assert [part.tolist() for part in cropped] == first


def test_crops_come_as_often_as_asked_and_leave_the_others_whole():
    options = config.Crop(probability=0.3, area=(0.1, 0.5))
    offset, window = augment.cropped(sizes((50, 40), 1000), objects(*[[]] * 1000), drawn(range(1000)), options)
    whole = (window == [50, 40]).all(1)
    # Binomial: 0.7 +- 0.0145.
    assert abs(whole.mean() - 0.7) < 0.06 and not offset[whole].any()
    assert (window[~whole].prod(1) <= 0.51 * 2000).all()


def test_a_cropped_view_is_enlarged_to_the_size_of_the_image():
    shown = augment.alone(
        sizes((60, 90), 10),
        sizes((120, 180), 10),
        np.array([128, 192]),
        objects(*[[]] * 10),
        drawn(range(10)),
        config.Augment(crop=ON),
    )
    assert (shown.offset >= 0).all() and (shown.offset + shown.window <= [60, 90]).all()
    assert (shown.content <= [120, 180]).all() and (shown.content == [120, 180]).any(1).all()
    scale = shown.content / shown.window
    assert (np.abs(scale[:, 0] - scale[:, 1]) <= 0.5 / shown.window.min(1) + 1e-6).all()


@pytest.mark.parametrize(
    "options", [{"scale": (0.5, 2.0)}, {"crop": ON}, {"crop": ON, "scale": (0.8, 1.2)}], ids=["zoom", "crop", "both"]
)
def test_a_tile_is_covered_with_one_scale(options):
    for stored, tile in (((1, 1), (7, 3)), ((60, 90), (64, 31)), ((90, 60), (64, 31))):
        shown = augment.covering(
            sizes(stored, 20), sizes(tile, 20), objects(*[[]] * 20), drawn(range(20)), config.Augment(**options)
        )
        assert (shown.content == tile).all() and (shown.window >= 1).all()
        assert (shown.offset >= 0).all() and (shown.offset + shown.window <= stored).all()
        scale = shown.content / shown.window
        # To the nearest whole stored pixel in each side.
        large = shown.window.min(1) > 4
        assert (np.abs(scale[large, 0] / scale[large, 1] - 1) <= 1.2 / shown.window[large].min(1)).all()


def test_a_tile_is_covered_with_as_little_zoom_as_will_do():
    shown = augment.covering(sizes((60, 90)), sizes((30, 30)), objects([]), drawn([0]), config.Augment())
    # Half the size is the least that covers 30 x 30: all of the height, 60 of 90 columns.
    assert shown.window.tolist() == [[60, 60]] and shown.offset[0, 0] == 0


# ------------------------------------------------------------------------------------------------------------ halvings


@pytest.mark.parametrize(
    ("window", "content", "expected"),
    [
        ((1, 1), (1, 1), 0),
        ((1, 1), (7, 9), 0),
        ((15, 16), (8, 8), 0),  # 15 is less than twice 8
        ((16, 16), (8, 8), 1),
        ((31, 400), (8, 8), 1),
        ((32, 32), (8, 8), 2),
        ((64, 64), (8, 8), 3),
        ((4000, 4000), (8, 8), 3),
        ((480, 640), (192, 256), 1),
        ((480, 640), (384, 512), 0),
    ],
)
def test_how_often_a_window_is_halved(window, content, expected):
    view = Views(sizes((3, 5)), sizes(window), sizes(content))
    taken = augment.halvings(view)
    assert taken.tolist() == [expected]
    # Never below what is shown.
    assert (augment.snapped(view, taken).window >> expected >= np.minimum(content, window)).all()


def test_a_snapped_view_by_hand():
    # Quarter pixels: 13 lies in the pixel that starts at 12; 42 = 10 whole ones and two pixels that are lost.
    view = augment.snapped(Views(sizes((13, 8)), sizes((42, 40)), sizes((10, 10))), np.array([2]))
    assert [side.tolist() for side in view] == [[[12, 8]], [[40, 40]], [[10, 10]]]
