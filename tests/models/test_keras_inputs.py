"""Keras' usual inputs as batches; no network."""

import numpy as np
import pytest

from retina.errors import RetinaError
from retina.models import keras_inputs
from retina.models.keras_inputs import Convention, checked_batch, each_batch, from_xyxy, source, to_batch, to_xyxy

BOX = [10.0, 20.0, 40.0, 52.0]  # xyxy on 64 x 128 (height, width)
SAME = {
    "xyxy": BOX,
    "xywh": [10, 20, 30, 32],
    "yxyx": [20, 10, 52, 40],
    "center_xywh": [25, 36, 30, 32],
    "rel_xyxy": [10 / 128, 20 / 64, 40 / 128, 52 / 64],
    "rel_yxyx": [20 / 64, 10 / 128, 52 / 64, 40 / 128],
}
IMAGES = np.full((2, 64, 128, 3), 200, np.uint8)
Y = {"boxes": np.array([[BOX, [-1] * 4], [BOX, BOX]], np.float32), "classes": np.array([[2, -1], [0, 1]])}
THREE = Convention(3)


def test_every_format_is_tested():
    assert set(SAME) == set(keras_inputs.FORMATS)


@pytest.mark.parametrize("box_format", SAME)
def test_formats_and_back(box_format):
    boxes = np.array([[SAME[box_format]]], np.float32)
    np.testing.assert_allclose(to_xyxy(boxes, box_format, (64, 128)), [[BOX]], rtol=1e-6)
    size = np.array([[64, 128]], np.int32)
    np.testing.assert_allclose(from_xyxy(np.array([[BOX]], np.float32), box_format, size), boxes, rtol=1e-6)


def test_values_of_a_batch():
    batch = checked_batch(IMAGES, Y, THREE)
    assert batch["images"] is IMAGES
    np.testing.assert_array_equal(batch["boxes"], [[BOX, [0] * 4], [BOX, BOX]])
    np.testing.assert_array_equal(batch["labels"], [[2, 0], [0, 1]])
    np.testing.assert_array_equal(batch["valid"], [[True, False], [True, True]])
    assert not batch["crowd"].any() and batch["usable"].all() and (batch["scale"] == 1).all()
    np.testing.assert_array_equal(batch["size"], [[64, 128]] * 2)
    assert checked_batch(batch, None, THREE) is batch


def ragged():
    tf = pytest.importorskip("tensorflow")
    boxes = tf.RaggedTensor.from_row_lengths(np.array([BOX] * 3, np.float32), [1, 2])
    return {"boxes": boxes, "labels": tf.ragged.constant([[2], [0, 1]])}


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (IMAGES, {"boxes": [[BOX], [BOX, BOX]], "labels": [[2], [0, 1]]}),
        (
            list(IMAGES),
            {"boxes": [np.array([BOX]), np.array([BOX, BOX])], "classes": [np.array([2]), np.array([0, 1])]},
        ),
        (IMAGES.astype(np.float64), {"boxes": np.array([[BOX] * 2] * 2), "classes": np.array([[2.0, -1.0], [0, 1]])}),
        ({"images": IMAGES, "bounding_boxes": Y}, None),
        ({"images": IMAGES}, Y),
        (IMAGES, ragged),
    ],
)
def test_the_same_batch_in_other_forms(x, y):
    batch, expected = checked_batch(x, y() if callable(y) else y, THREE), checked_batch(IMAGES, Y, THREE)
    assert set(batch) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(batch[name], value)


@pytest.mark.parametrize(
    "y",
    [
        {"boxes": [[], []], "classes": [[], []]},
        {"boxes": np.zeros((2, 0, 4)), "classes": np.zeros((2, 0))},
        {"boxes": np.full((2, 3, 4), np.nan), "classes": np.full((2, 3), -1)},
    ],
)
def test_without_boxes(y):
    batch = checked_batch(IMAGES, y, THREE)
    assert batch["boxes"].shape[2:] == (4,) and not batch["boxes"].any() and not batch["valid"].any()


def test_pixels_from_0_to_1():
    unit = np.full((1, 32, 32, 3), 0.2, np.float32)
    batch = checked_batch(unit, None, Convention(3, pixel_range=(0, 1)))
    np.testing.assert_allclose(batch["images"], 51, rtol=1e-6)
    assert not checked_batch(0 * unit, None, THREE)["images"].any()  # black is black


@pytest.mark.parametrize("weights", [[2, 0.5], np.array([2, 0.5]), np.array([[2], [0.5]], np.float32)])
def test_weights_of_images(weights):
    for batch in (checked_batch(IMAGES, Y, THREE, weights), source(IMAGES, Y, THREE, weights)):
        np.testing.assert_array_equal(batch["weight"], [[2], [0.5]])
    ours = checked_batch(IMAGES, Y, THREE)
    np.testing.assert_array_equal(to_batch(ours, None, THREE, weights)["weight"], [[2], [0.5]])
    assert "weight" not in ours


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [1.0, np.nan], [1.0, np.inf], np.ones((2, 3)), np.float32(1)])
def test_refused_weights(weights):
    with pytest.raises(RetinaError, match="sample_weight: expected"):
        checked_batch(IMAGES, Y, THREE, weights)
    with pytest.raises(RetinaError, match="sample_weight: it has no effect beside"):
        source(iter_of((IMAGES, Y)), None, THREE, weights)


def test_a_weight_that_a_graph_cannot_refuse_is_not_usable():
    batch = to_batch(IMAGES, Y, THREE, np.array([1.0, np.nan]))
    np.testing.assert_array_equal(batch["usable"], [True, False])


def test_batches_to_read_again():
    """Of arrays as many images as asked for; a generator is refused, since its batches are gone."""
    arrays = checked_batch(IMAGES, Y, THREE)
    assert [len(batch["labels"]) for batch in each_batch(arrays, THREE, 1)] == [1, 1]
    assert [len(batch["labels"]) for batch in each_batch(arrays, THREE, None)] == [2]
    (batch,) = each_batch([(IMAGES, Y)], THREE, 1)  # as a DataLoader's
    np.testing.assert_array_equal(batch["boxes"], arrays["boxes"])
    with pytest.raises(RetinaError, match="metrics: expected data that can be read again"):
        next(each_batch(iter_of((IMAGES, Y)), THREE, None))


def with_box(box, label=0, images=IMAGES):
    return images, {"boxes": np.array([[BOX], [box]], np.float32), "classes": np.array([[1], [label]])}


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (
            *with_box([np.nan, 0, 9, 9]),
            r"image 1: expected finite numbers, got the box \[nan, 0.0, 9.0, 9.0\], xyxy, of",
        ),
        (
            *with_box([50, 50, 20, 10]),
            "a positive width and height, .* of class 0; correct it, or set its class to -1$",
        ),
        (*with_box([50, 50, 50, 60]), "a positive width"),
        (*with_box([100, 10, 140, 20]), "boxes inside the image, 128 x 64 pixels, .*; clip it"),
        (*with_box([100, -5, 120, 20]), "inside the image"),
        (
            *with_box(BOX, 3),
            "image 1: expected classes from 0 to 2, -1 in empty slots, got the box .* of class 3; correct",
        ),
        (*with_box(BOX, -2), "classes from 0 to 2"),
        (*with_box(BOX, 0.5), "classes from 0 to 2"),
        (*with_box(BOX, np.nan), "classes from 0 to 2"),
        (*with_box(BOX, images=IMAGES / 255), r"pixel_range=\(0, 1\)"),
        (*with_box(BOX, images=IMAGES - 210.0), "got -10 to -10; give images that are not normalised"),
        (*with_box(BOX, images=IMAGES.astype(np.int32) * 257), "got 51400 to 51400; scale them"),
        (*with_box(BOX, images=-IMAGES.astype(np.int16)), "got -200 to -200; give images that are not normalised"),
        (*with_box(BOX, images=IMAGES > 100), "numbers from 0 to 255, got bool; convert"),
        (*with_box(BOX, images=IMAGES[:, :0]), r"with pixels, got \[2, 0, 128, 3\]"),
        (IMAGES[:0], {name: field[:0] for name, field in Y.items()}, r"at least one, .* got \[0, 64, 128, 3\]"),
        ([], None, r"at least one, with pixels, got \[0\]; leave"),
        (*with_box(BOX, images=IMAGES[0]), r"got \[64, 128, 3\]; give a single image as images\[None\], .*batch\(8\)"),
        (*with_box(BOX, images=IMAGES[..., 0]), r"got \[2, 64, 128\]; .* np.repeat\(images\[..., None\], 3"),
        (*with_box(BOX, images=IMAGES[..., :1]), r"got \[2, 64, 128, 1\]; .* np.repeat\(images, 3"),
        (*with_box(BOX, images=np.concatenate([IMAGES, IMAGES[..., :1]], -1)), r"leave the fourth channel out"),
        (*with_box(BOX, images=IMAGES.transpose(0, 3, 1, 2)), r"images.transpose\(0, 2, 3, 1\)"),
        (["dog.jpg", "cat.jpg"], None, r"got \[2\]; give their pixels"),
        (*with_box(BOX, images=[IMAGES[0], IMAGES[0, :32]]), "of several sizes; resize or pad"),
        (
            *with_box(BOX, images=IMAGES[:1]),
            "expected boxes of 1 images, got 2; an image without boxes has classes of -1",
        ),
        (IMAGES, {"boxes": np.zeros((2, 1, 5)), "classes": np.zeros((2, 1))}, r"got \[2, 1, 5\].*give each box four"),
        (IMAGES, {"boxes": np.zeros((2, 1, 4)), "classes": np.zeros((2, 3))}, r"and \[2, 3\]"),
        (IMAGES, {"boxes": np.zeros((2, 4)), "classes": np.zeros(2)}, r"got \[2, 4\] and \[2\]; .*boxes\[:, None\]"),
        (IMAGES, {**Y, "classes": np.zeros((2, 2, 3))}, r"and \[2, 2, 3\]; .*argmax\(-1\)"),
        (IMAGES, {"boxes": [[BOX[:3]], [BOX]], "classes": [[0], [0]]}, r"an array \[G, 4\]"),
        (
            IMAGES,
            {"boxes": [[BOX, BOX[:3]], [BOX]], "classes": [[0, 0], [0]]},
            r"of each image boxes \[G, 4\], got \[\[",
        ),
        (
            IMAGES,
            {"boxes": [[BOX, BOX], [BOX, BOX]], "classes": [[0], [0, 1]]},
            "image 0: .* classes as boxes, got 1 and 2",
        ),
        (
            IMAGES,
            {**Y, "classes": np.array([["cat", "dog"]] * 2)},
            r"places in class_names from 0, got \['cat', 'dog'\]",
        ),
        (IMAGES, {"boxes": Y["boxes"]}, r"the keys \['boxes'\]; rename them"),
        (IMAGES, {**Y, "labels": Y["classes"]}, r"the keys .*; rename them, or leave others out"),
        (IMAGES, Y["boxes"], r"got ndarray; give {'boxes': \[B, G, 4\]"),
        ({"images": IMAGES, "boxes": Y["boxes"]}, None, "got the keys"),
        ({"images": IMAGES, "size": 1}, Y, "leave y out"),
    ],
)
def test_refused(x, y, message):
    with pytest.raises(RetinaError, match=message):
        checked_batch(x, y, THREE)


def test_in_lists_an_image_without_boxes_may_have_a_class_of_none():
    batch = checked_batch(IMAGES, {"boxes": [[BOX], []], "classes": [[2], [-1]]}, THREE)
    assert batch["usable"].all() and not batch["valid"][1].any()


def test_boxes_of_a_pixel_are_boxes():
    checked_batch(IMAGES[:1], {"boxes": [[[0, 0, 1, 1]]], "classes": [[0]]}, THREE)


def test_ragged_classes_are_as_many_as_boxes():
    tf = pytest.importorskip("tensorflow")
    targets = {**ragged(), "labels": tf.ragged.constant([[2, 1], [0]])}
    with pytest.raises(RetinaError, match="image 0: expected as many classes as boxes, got 2 and 1; give each box"):
        checked_batch(IMAGES, targets, THREE)


@pytest.mark.parametrize(
    ("given", "meant", "boxes"),
    [
        ("xyxy", "xywh", [[10, 20, 30, 32], [90, 20, 30, 32]]),
        ("xyxy", "yxyx", [[20, 10, 52, 100]] * 2),
        ("xywh", "xyxy", [BOX, [90, 20, 120, 52]]),
        ("rel_xyxy", "xyxy", [BOX, BOX]),
    ],
)
def test_formats_in_which_all_boxes_would_do_are_named(given, meant, boxes):
    targets = {"boxes": np.array(boxes, np.float32)[:, None], "classes": np.zeros((2, 1))}
    named = rf"as (\w+ or )*{meant} (or \w+ )*all would do: make the Detector with that bounding_box_format"
    with pytest.raises(RetinaError, match=named):
        checked_batch(IMAGES, targets, THREE._replace(box_format=given))


def test_shares_of_the_sides_are_no_pixels():
    shares = {"boxes": np.array([[SAME["rel_xyxy"]]] * 2), "classes": np.zeros((2, 1))}
    with pytest.raises(RetinaError, match="in pixels, none lies beyond the first; .*bounding_box_format='rel_xyxy'"):
        checked_batch(IMAGES, shares, THREE)
    assert checked_batch(IMAGES, shares, THREE._replace(box_format="rel_xyxy"))["usable"].all()
    small = {"boxes": np.array([[[0, 0, 1, 1], BOX]] * 2), "classes": np.zeros((2, 2))}
    assert checked_batch(IMAGES, small, THREE)["usable"].all()


def test_data_that_are_no_images():
    image = pytest.importorskip("PIL.Image").fromarray(IMAGES[0])
    for x in ("dog.jpg", b"...", image, None, 3):
        with pytest.raises(RetinaError, match=rf"x: expected images .*, got {type(x).__name__}; give the pixels"):
            source(x, None, THREE)
    np.testing.assert_array_equal(source([image, image], None, THREE)["images"], IMAGES[[0, 0]])


def test_tensors_of_unknown_rank():
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices(IMAGES).map(lambda x: tf.numpy_function(lambda y: y, [x], tf.uint8))

    def convert(images):
        with pytest.raises(RetinaError, match="images: expected a known number of axes, .*tf.ensure_shape"):
            to_batch(images, None, THREE)
        return images

    assert len(list(data.map(convert))) == 2


@pytest.mark.parametrize(("box_format", "pixels"), [("XYXY", (0, 255)), ("coco", (0, 255)), ("xyxy", (-1, 1))])
def test_refused_conventions(box_format, pixels):
    with pytest.raises(RetinaError, match="bounding_box_format" if pixels[0] == 0 else "pixel_range"):
        keras_inputs.convention(3, box_format, pixels)


def test_slots_of_elements_vary_between_the_first_two():
    """Else Keras' pipelines of TensorFlow would take the first batch's number of slots for all."""
    lists = [{"boxes": [[BOX] * n], "labels": [[0] * n]} for n in (1, 2, 0, 3)]
    batches = list(source(((IMAGES[:1], y) for y in lists), None, THREE))
    assert [batch["boxes"].shape for batch in batches] == [(1, n, 4) for n in (1, 2, 0, 4)]
    assert [int(batch["valid"].sum()) for batch in batches] == [1, 2, 0, 3]
    np.testing.assert_array_equal(next(source(iter_of((IMAGES, Y, [3, 0])), None, THREE))["weight"], [[3], [0]])


def iter_of(*elements):
    yield from elements
