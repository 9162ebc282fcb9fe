"""From an encoded image to a padded canvas, in TensorFlow operations: what batches, predictions and exports share."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from retina import config

if TYPE_CHECKING:
    import tensorflow as tf


def leave_gpu_to_backend() -> None:
    """Hides GPUs from TensorFlow where another backend computes; called before TensorFlow's first work."""
    import tensorflow as tf

    backend = os.environ.get("KERAS_BACKEND")
    if not backend:
        import keras

        backend = keras.backend.backend()
    if backend != "tensorflow":
        # A RuntimeError means that TensorFlow already runs in this process: the user has settled who gets which device.
        with contextlib.suppress(RuntimeError):
            tf.config.set_visible_devices([], "GPU")


def read(
    image: tf.Tensor,
    from_file: bool,
    max_pixels: int = config.MAX_PIXELS,
    depth: tuple[float, float] | None = None,
) -> tf.Tensor:
    """The decoded image, or [0,0,3] where that fails: the graph's `try`, which neither raises nor names a file.

    Args:
        image: a scalar string, the encoded bytes or with `from_file` the path of a file with them.
        max_pixels: an image whose header tells of more is not decoded.
        depth: see `decode`.
    """
    import tensorflow as tf

    def attempt(image: tf.Tensor) -> tf.Tensor:
        return decode(limited(tf.io.read_file(image) if from_file else image, max_pixels), depth)

    tried = tf.data.Dataset.from_tensors(image).map(tf.autograph.experimental.do_not_convert(attempt)).ignore_errors()
    failed = tf.data.Dataset.from_tensors(tf.zeros([0, 0, 3], tf.uint8))
    return tried.concatenate(failed).take(1).get_single_element()


def decode(encoded: tf.Tensor, depth: tuple[float, float] | None = None) -> tf.Tensor:
    """RGB uint8 [h,w,3] of a scalar string, JPEG, PNG, GIF, BMP or WebP, whatever the file is called.

    Of an animation the first frame. EXIF is not applied. Grey becomes three equal channels, alpha is dropped: what
    colour a transparent pixel has in the file, it has here. CMYK is converted without a colour profile, as Pillow does.

    Args:
        depth: levels of a PNG of 16 bits that become black and white (`data.depth`); without them the upper 8 bits are
            taken.
    """
    import tensorflow as tf

    # decode_image would take libjpeg's fast transform, which is off by up to 20 levels; this one equals Pillow's.
    image = tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: decode_other(encoded, depth),
    )
    return tf.ensure_shape(image, [None, None, 3])


def decode_other(encoded: tf.Tensor, depth: tuple[float, float] | None = None) -> tf.Tensor:
    """`decode` of what is no JPEG."""
    import tensorflow as tf

    head = _head(encoded)
    palette_bmp = _is(head, 0, b"BM") & (_little(head, 28, 2) == 8)
    cases = [(palette_bmp, lambda: _palette_bmp(encoded, head)), (_is_webp(head), lambda: _webp(encoded, head))]
    if depth is not None:
        deep_png = _is(head, 0, b"\x89PNG") & (head[24] == 16)
        cases.append((deep_png, lambda: scaled(tf.io.decode_png(encoded, channels=3, dtype=tf.uint16), depth)))
    return tf.case(cases, default=lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False))


def scaled(values: tf.Tensor, depth: tuple[float, float]) -> tf.Tensor:
    """`retina.data.batches.decoding.scaled` in a graph, equal to it."""
    import tensorflow as tf

    low, factor = tf.constant(depth[0], tf.float32), tf.constant(255.0 / (depth[1] - depth[0]), tf.float32)
    levels = tf.clip_by_value((tf.cast(values, tf.float32) - low) * factor, 0.0, 255.0)
    return tf.cast(tf.round(levels), tf.uint8)


def is_tiff(encoded: tf.Tensor) -> tf.Tensor:
    """Whether a scalar string is a TIFF, which TensorFlow does not decode."""
    head = _head(encoded)
    return _is(head, 0, b"II*\0") | _is(head, 0, b"MM\0*")


def limited(encoded: tf.Tensor, max_pixels: int) -> tf.Tensor:
    """The encoded image, a scalar string; an error if its header tells of more pixels.

    TensorFlow's decoders hold to `retina.config.MAX_PIXELS` by themselves, and reading the header of a JPEG takes a
    twentieth of the time of decoding it: so it is read for a lower limit only.
    """
    import tensorflow as tf

    if max_pixels >= config.MAX_PIXELS:
        return encoded
    small = tf.debugging.Assert(tf.reduce_prod(header_size(encoded)) <= max_pixels, ["more pixels than", max_pixels])
    with tf.control_dependencies([small]):
        return tf.identity(encoded)


def header_size(encoded: tf.Tensor) -> tf.Tensor:
    """[2] int64 (h, w) by the header of an encoded image, before anything is decoded; 0 where that can't be told."""
    import tensorflow as tf

    def jpeg() -> tf.Tensor:
        return tf.cast(tf.io.extract_jpeg_shape(encoded)[:2], tf.int64)

    return tf.ensure_shape(tf.cond(tf.io.is_jpeg(encoded), jpeg, lambda: _size_in(_head(encoded))), [2])


# The header's bytes that matter: a bitmap's go up to 50.
_HEAD = 64


def _head(encoded: tf.Tensor) -> tf.Tensor:
    """The first bytes [64] int64, zeros where there are fewer."""
    import tensorflow as tf

    return tf.cast(tf.io.decode_raw(encoded, tf.uint8, fixed_length=_HEAD), tf.int64)


def _is(head: tf.Tensor, start: int, tag: bytes) -> tf.Tensor:
    import tensorflow as tf

    return tf.reduce_all(head[start : start + len(tag)] == tf.constant(list(tag), tf.int64))


def _is_webp(head: tf.Tensor) -> tf.Tensor:
    return _is(head, 0, b"RIFF") & _is(head, 8, b"WEBP")


def _little(head: tf.Tensor, start: int, count: int) -> tf.Tensor:
    """A number of `count` bytes, the lowest first."""
    import tensorflow as tf

    return tf.reduce_sum(head[start : start + count] * tf.constant([256**i for i in range(count)], tf.int64))


def _size_in(head: tf.Tensor) -> tf.Tensor:
    """(h, w) in the header of a PNG (RFC 2083, 4.1.1), GIF (89a, 18), BMP (BITMAPINFOHEADER) or WebP (RFC 9649)."""
    import tensorflow as tf

    def sides(height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
        return tf.stack([height, width])

    def bmp() -> tf.Tensor:
        height = _little(head, 22, 4)  # negative where the first row is the top one
        return sides(tf.where(height < 2**31, height, 2**32 - height), _little(head, 18, 4))

    def lossless() -> tf.Tensor:
        bits = _little(head, 21, 4)
        return sides((bits // 2**14) % 2**14 + 1, bits % 2**14 + 1)

    cases = [
        (_is(head, 0, b"\x89PNG"), lambda: sides(_little(head[23:19:-1], 0, 4), _little(head[19:15:-1], 0, 4))),
        (_is(head, 0, b"GIF8"), lambda: sides(_little(head, 8, 2), _little(head, 6, 2))),
        (_is(head, 0, b"BM"), bmp),
        (_is_webp(head) & _is(head, 12, b"VP8X"), lambda: sides(_little(head, 27, 3) + 1, _little(head, 24, 3) + 1)),
        (_is_webp(head) & _is(head, 12, b"VP8L"), lossless),
        (_is_webp(head), lambda: sides(_little(head, 28, 2) % 2**14, _little(head, 26, 2) % 2**14)),
    ]
    return tf.case(cases, default=lambda: tf.zeros([2], tf.int64))


def _webp(encoded: tf.Tensor, head: tf.Tensor) -> tf.Tensor:
    """TensorFlow refuses to leave out an alpha channel, and reads an animation only if it is said to have one."""
    import tensorflow as tf

    def first_frame() -> tf.Tensor:
        said = tf.strings.join([tf.strings.substr(encoded, 0, 20), b"\x12", tf.strings.substr(encoded, 21, -1)])
        return tf.io.decode_image(said, channels=4, expand_animations=False)

    animated = _is(head, 12, b"VP8X") & (_little(head, 20, 1) // 2 % 2 == 1)
    image = tf.cond(animated, first_frame, lambda: tf.io.decode_image(encoded, expand_animations=False))
    return image[:, :, :3]


def _palette_bmp(encoded: tf.Tensor, head: tf.Tensor) -> tf.Tensor:
    """TensorFlow would show the indices as grey. Packed rows and OS/2's older header are refused."""
    import tensorflow as tf

    header, packed = _little(head, 14, 4), _little(head, 30, 4)
    plain = tf.debugging.Assert((header >= 40) & (packed == 0), ["a packed BMP"])
    with tf.control_dependencies([plain]):
        indices = tf.io.decode_image(encoded, channels=3, expand_animations=False)[:, :, 0]
    start = tf.cast(14 + header, tf.int32)
    palette = tf.io.decode_raw(tf.strings.substr(encoded, start, 1024), tf.uint8, fixed_length=1024)
    return tf.gather(tf.reshape(palette, [256, 4])[:, 2::-1], tf.cast(indices, tf.int32))


def fit(stored: tf.Tensor, resize: config.Resize) -> tuple[tf.Tensor, tf.Tensor]:
    """`retina.data.batches.plan.fit` of a single image inside a graph, equal to it for every size.

    Args:
        stored: [2] int32 (h, w) of at least 1 pixel.

    Returns:
        the content's size and the canvas' size, [2] int32 (h, w).
    """
    import tensorflow as tf

    # In float64 and in the order of the original: a size that lands on half a pixel must round the same way.
    exact = tf.cast(stored, tf.float64)
    # Not scalars: OpenVINO, to which exports are converted, inverts a scalar's quotient that leads to a padding.
    short, long = tf.constant([resize.short], tf.float64), tf.constant([resize.long], tf.float64)
    scale = tf.minimum(short / tf.reduce_min(exact), long / tf.reduce_max(exact))
    zoomed = exact * scale
    resized = tf.cast(tf.maximum(tf.floor(zoomed if resize.rounding == "floor" else zoomed + 0.5), 1.0), tf.int32)
    return resized, (resized + resize.multiple - 1) // resize.multiple * resize.multiple


def show(image: tf.Tensor, content: tf.Tensor, antialias: bool = False) -> tf.Tensor:
    """The image resized to its content size [2] int32: bilinear, half-pixel centres; uint8."""
    import tensorflow as tf

    return tf.cast(tf.round(tf.image.resize(image, content, antialias=antialias)), tf.uint8)


def pad(content: tf.Tensor, canvas: tf.Tensor) -> tf.Tensor:
    """`content` [h,w,3] in the top left corner of a black canvas of the size `canvas` [2] int32 (H, W)."""
    import tensorflow as tf

    missing = canvas - tf.shape(content)[:2]
    return tf.pad(content, [[0, missing[0]], [0, missing[1]], [0, 0]])


def scale(stored: tf.Tensor, content: tf.Tensor) -> tf.Tensor:
    """[2] float32 (vertical, horizontal): canvas pixels per pixel of the stored image."""
    import tensorflow as tf

    return tf.cast(content, tf.float32) / tf.cast(stored, tf.float32)
