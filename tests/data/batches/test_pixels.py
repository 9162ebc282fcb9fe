"""What batches and exports share: decoding that never fails, and where an image lies on its canvas."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from retina import config
from retina.data.batches import decoding, pixels, plan


def encoded(kind: str, size=(5, 3)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (200, 100, 50)).save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize("broken", [b"", b"no image", encoded("PNG")[:40], encoded("JPEG")[:100]])
def test_what_is_no_image_reads_as_an_empty_one(broken):
    assert pixels.read(tf.constant(broken), from_file=False).numpy().shape == (0, 0, 3)


def test_a_missing_file_reads_as_an_empty_one(tmp_path):
    assert pixels.read(tf.constant(str(tmp_path / "none.png")), from_file=True).numpy().shape == (0, 0, 3)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "GIF", "JPEG"])
def test_formats(kind):
    image = pixels.read(tf.constant(encoded(kind)), from_file=False).numpy()
    assert image.shape == (3, 5, 3) and image.dtype == np.uint8
    np.testing.assert_allclose(image[1, 2], [200, 100, 50], atol=0 if kind in ("PNG", "BMP") else 3)


@pytest.mark.parametrize("size", [(50, 37), (133, 40), (7, 200), (140, 100), (90, 150)])
def test_antialias_is_pillows_within_a_level(size):
    """What detectron2's ResizeTransform calls for uint8: `Image.resize` with BILINEAR. Up, down, and one of each."""
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3)).astype(np.uint8)
    pillows = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    found = pixels.show(tf.constant(image), tf.constant(size), antialias=True).numpy().astype(int)
    assert np.abs(found - pillows).max() <= 1
    target = np.empty((*size, 3), np.uint8)
    decoding.paint_smoothly(image, True, True, target)
    np.testing.assert_array_equal(target[::-1, ::-1], pillows)
    if size[0] < 90 or size[1] < 120:
        assert np.abs(pixels.show(tf.constant(image), tf.constant(size)).numpy().astype(int) - pillows).max() > 20


@pytest.mark.parametrize(
    "resize",
    [
        config.Resize(),
        config.Resize(short=384, long=512, multiple=128),
        config.Resize(short=75, long=100, multiple=32),
        config.Resize(short=1, long=7, multiple=32),
        config.Resize(rounding="floor"),
    ],
)
def test_the_graph_lays_images_out_as_the_plan_does(resize):
    random = np.random.default_rng(3)
    # Odd multiples of half the target land exactly between two pixels, where rounding must agree.
    edges = [(1, 1), (1, 9000), (9000, 1), (2, 3), (480, 640), (333, 500), (resize.short, resize.long), (150, 75)]
    sizes = np.concatenate([edges, random.integers(1, 2500, (200, 2))]).astype(np.int32)
    graph = tf.function(lambda size: pixels.fit(size, resize), input_signature=[tf.TensorSpec([2], tf.int32)])
    for size in sizes:
        expected = plan.fit(size[None], resize)
        content, canvas = graph(size)
        np.testing.assert_array_equal(content, expected.resized[0], err_msg=str(size))
        np.testing.assert_array_equal(canvas, expected.canvases[0], err_msg=str(size))
