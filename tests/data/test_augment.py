"""Each transform alone: values, bounds, and independence of the random streams."""

import numpy as np
import pytest
import tensorflow as tf

from retina.data import augment

IMAGE = tf.reshape(tf.range(2 * 3 * 3, dtype=tf.int32), [2, 3, 3])  # 2 high, 3 wide
BOXES = tf.constant([[0.0, 0.5, 1.0, 2.0], [0.25, 0.0, 3.0, 1.0]])
NONE = tf.zeros([0, 4])


def seed(sample: int, run: int = 7) -> tf.Tensor:
    return tf.constant([run, sample], tf.int64)


@pytest.mark.parametrize("flip", [augment.horizontal_flip, augment.vertical_flip])
def test_flipping_an_image_without_boxes(flip):
    for probability in (0.0, 1.0):
        image, boxes = flip(IMAGE, NONE, seed(0), probability)
        assert boxes.shape == (0, 4)
        assert image.shape == (2, 3, 3)


def test_horizontal_flip_mirrors_pixels_and_boxes():
    image, boxes = augment.horizontal_flip(IMAGE, BOXES, seed(0), 1.0)
    np.testing.assert_array_equal(image, IMAGE.numpy()[:, ::-1])
    np.testing.assert_array_equal(boxes, [[2.0, 0.5, 3.0, 2.0], [0.0, 0.0, 2.75, 1.0]])


def test_vertical_flip_mirrors_pixels_and_boxes():
    image, boxes = augment.vertical_flip(IMAGE, BOXES, seed(0), 1.0)
    np.testing.assert_array_equal(image, IMAGE.numpy()[::-1])
    np.testing.assert_array_equal(boxes, [[0.0, 0.0, 1.0, 1.5], [0.25, 1.0, 3.0, 2.0]])


@pytest.mark.parametrize("flip", [augment.horizontal_flip, augment.vertical_flip])
def test_probability_zero_changes_nothing_and_twice_is_the_identity(flip):
    image, boxes = flip(IMAGE, BOXES, seed(0), 0.0)
    np.testing.assert_array_equal(image, IMAGE)
    np.testing.assert_array_equal(boxes, BOXES)
    image, boxes = flip(*flip(IMAGE, BOXES, seed(0), 1.0), seed(0), 1.0)
    np.testing.assert_array_equal(image, IMAGE)
    np.testing.assert_array_equal(boxes, BOXES)


def test_flips_come_as_often_as_asked_and_independently():
    @tf.function
    def flipped(number):
        first = augment.horizontal_flip(IMAGE, BOXES, tf.stack([tf.constant(3, tf.int64), number]), 0.3)[0]
        second = augment.vertical_flip(IMAGE, BOXES, tf.stack([tf.constant(3, tf.int64), number]), 0.3)[0]
        return tf.stack([first[0, 0, 0] != 0, second[0, 0, 0] != 0])

    drawn = np.array([flipped(number) for number in tf.range(1000, dtype=tf.int64)])
    # Binomial: the standard deviation of a frequency is 0.0145, of the frequency of both (0.09) 0.009.
    np.testing.assert_allclose(drawn.mean(0), 0.3, atol=0.06)
    np.testing.assert_allclose(drawn.all(1).mean(), 0.09, atol=0.036)


def test_zoom_of_an_empty_range_is_its_value():
    assert augment.zoom(seed(0), 1.5, 1.5) == 1.5


def test_zoom_is_log_uniform():
    zoom = tf.function(lambda number: augment.zoom(tf.stack([tf.constant(3, tf.int64), number]), 0.5, 2.0))
    drawn = np.log2([zoom(number) for number in tf.range(1000, dtype=tf.int64)])
    assert drawn.min() >= -1 and drawn.max() <= 1
    # Uniform on [-1, 1]: mean 0 +- 0.018, quarters at -0.5 and 0.5.
    np.testing.assert_allclose(drawn.mean(), 0, atol=0.07)
    np.testing.assert_allclose(np.quantile(drawn, [0.25, 0.75]), [-0.5, 0.5], atol=0.1)


def test_draws_depend_on_the_seed_and_the_sample_only():
    assert augment.zoom(seed(5), 0.5, 2.0) == augment.zoom(seed(5), 0.5, 2.0)
    values = {float(augment.zoom(seed(sample, run), 0.5, 2.0)) for sample in range(4) for run in range(4)}
    assert len(values) == 16


def test_draws_are_the_same_on_every_machine_and_version():
    # Written down from a run: a change would alter every training run that is resumed or repeated.
    drawn = [float(augment.zoom(seed(sample), 0.5, 2.0)) for sample in (0, 1, 10**12)]
    np.testing.assert_allclose(drawn, [1.2944763, 0.7765574, 1.3868638], rtol=1e-6)


def view(stored, resized, canvas, sample, scale):
    sizes = [tf.constant(size, tf.int32) for size in (stored, resized, canvas)]
    return [part.numpy() for part in augment.zoomed_view(*sizes, seed(sample), scale)]


def test_the_view_of_a_single_pixel():
    for sample in range(5):
        offset, window, content = view((1, 1), (4, 4), (4, 4), sample, (0.1, 8.0))
        assert offset.tolist() == [0, 0] and window.tolist() == [1, 1]
        assert (content >= 1).all() and (content <= 4).all()


def test_zoom_one_shows_the_whole_image():
    offset, window, content = view((123, 457), (64, 238), (128, 256), 0, (1.0, 1.0))
    assert offset.tolist() == [0, 0] and window.tolist() == [123, 457] and content.tolist() == [64, 238]


def test_zooming_out_shows_the_whole_image_smaller():
    offset, window, content = view((100, 200), (64, 128), (64, 128), 0, (0.5, 0.5))
    assert offset.tolist() == [0, 0] and window.tolist() == [100, 200] and content.tolist() == [32, 64]


def test_zooming_in_crops_what_exceeds_the_canvas_only():
    # Twice 64x64 on a canvas of 64x128: half the height is cropped away, the width fits.
    tops = set()
    for sample in range(60):
        offset, window, content = view((10, 10), (64, 64), (64, 128), sample, (2.0, 2.0))
        assert window.tolist() == [5, 10] and content.tolist() == [64, 128] and offset[1] == 0
        tops.add(int(offset[0]))
    assert tops == {0, 1, 2, 3, 4, 5}


def test_a_view_stays_inside_the_image_and_the_canvas():
    for sample in range(60):
        offset, window, content = view((97, 211), (60, 131), (64, 160), sample, (0.5, 2.0))
        assert (offset >= 0).all() and (window >= 1).all() and (offset + window <= [97, 211]).all()
        assert (content >= 1).all() and (content <= [64, 160]).all()
        # One zoom for both sides, up to the rounding of the window to whole stored pixels.
        scale = content / window / ([60 / 97, 131 / 211])
        assert abs(scale[0] / scale[1] - 1) < 0.03
