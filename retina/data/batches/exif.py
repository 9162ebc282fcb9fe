"""EXIF's orientation in TensorFlow operations, for exports: read from encoded bytes, and carried out.

The twin of `retina.data.headers.orientation` and `retina.data.orientation.turned`, which tests compare with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from retina.data.headers import ORIENTATION

if TYPE_CHECKING:
    import tensorflow as tf

# Zeros after the last byte, so that a header that is cut short reads as one that says nothing.
_ROOM = 16
_SEARCHING, _NOWHERE = -1, -2


def turned(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """The image [h,w,3] after an EXIF orientation, a scalar int64; a quarter turn swaps h and w."""
    import tensorflow as tf

    def upright() -> tf.Tensor:
        swapped = tf.cond(orientation >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
        rows = tf.reduce_any(orientation == tf.constant([3, 4, 7, 8], tf.int64))
        columns = tf.reduce_any(orientation == tf.constant([2, 3, 6, 7], tf.int64))
        flipped = tf.cond(rows, lambda: tf.reverse(swapped, [0]), lambda: swapped)
        return tf.cond(columns, lambda: tf.reverse(flipped, [1]), lambda: flipped)

    return tf.ensure_shape(tf.cond(orientation == 1, lambda: image, upright), [None, None, 3])


def orientation(encoded: tf.Tensor) -> tf.Tensor:
    """EXIF's orientation, 1 to 8, of an encoded JPEG, PNG or WebP, a scalar string; 1 where the header says none."""
    import tensorflow as tf

    content = _Content(encoded)
    head = content.at(tf.constant(0, tf.int64), 12)
    jpeg, png = _is(head[:2], b"\xff\xd8"), _is(head[:4], b"\x89PNG")
    webp = _is(head[:4], b"RIFF") & _is(head[8:], b"WEBP")
    begin = tf.case([(jpeg, lambda: 2), (png, lambda: 8), (webp, lambda: 12)], default=lambda: _NOWHERE)

    def step(place: tf.Tensor, base: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """On to the next segment or chunk, and where the TIFF structure begins, if it lies in this one."""
        at = content.at(place, 14)
        reached = tf.cond(
            jpeg, lambda: _segment(at, place), lambda: tf.cond(png, lambda: _chunk(at, place), lambda: _riff(at, place))
        )
        return reached[0], reached[1]

    start = tf.cast(begin, tf.int64)
    base = tf.where(start < 0, tf.constant(_NOWHERE, tf.int64), tf.constant(_SEARCHING, tf.int64))
    _, base = tf.while_loop(lambda place, base: base == _SEARCHING, step, (start, base))
    return tf.cond(base < 0, lambda: tf.constant(1, tf.int64), lambda: _tag(content, base))


class _Content:
    """The bytes of a file, zeros after its end."""

    def __init__(self, encoded: tf.Tensor):
        import tensorflow as tf

        self.size = tf.cast(tf.strings.length(encoded), tf.int64)
        self._bytes = tf.concat([tf.io.decode_raw(encoded, tf.uint8), tf.zeros([_ROOM], tf.uint8)], axis=0)

    def at(self, place: tf.Tensor, count: int) -> tf.Tensor:
        """[count] int64: bytes from a place on, of which there may be up to `_ROOM`."""
        import tensorflow as tf

        start = tf.minimum(place, self.size)
        return tf.cast(tf.slice(self._bytes, [start], [count]), tf.int64)


def _segment(at: tf.Tensor, place: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """A JPEG's segment."""
    import tensorflow as tf

    fill, length = (at[0] == 0xFF) & (at[1] == 0xFF), _big(at[2:4])
    end = (at[0] != 0xFF) | (at[1] == 0xDA) | (at[1] == 0xD9) | (length < 2)
    hit = (at[1] == 0xE1) & _is(at[4:10], b"Exif\0\0")
    base = tf.where(end, _constant(_NOWHERE), tf.where(hit, place + 10, _constant(_SEARCHING)))
    return place + tf.where(fill, _constant(1), 2 + length), tf.where(fill, _constant(_SEARCHING), base)


def _chunk(at: tf.Tensor, place: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """A PNG's chunk."""
    import tensorflow as tf

    end = _is(at[4:8], b"IEND") | _is(at[4:8], bytes(4))
    base = tf.where(_is(at[4:8], b"eXIf"), place + 8, _constant(_SEARCHING))
    return place + 12 + _big(at[:4]), tf.where(end, _constant(_NOWHERE), base)


def _riff(at: tf.Tensor, place: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """A WebP's chunk; some writers put a JPEG's mark before the structure."""
    import tensorflow as tf

    length = _big(at[7:3:-1])
    payload = place + tf.where(_is(at[8:14], b"Exif\0\0"), _constant(14), _constant(8))
    base = tf.where(_is(at[:4], b"EXIF"), payload, _constant(_SEARCHING))
    return place + 8 + length + length % 2, tf.where(_is(at[:4], bytes(4)), _constant(_NOWHERE), base)


def _tag(content: _Content, base: tf.Tensor) -> tf.Tensor:
    """The orientation in the first directory of the TIFF structure that begins at `base` (TIFF 6.0, section 2)."""
    import tensorflow as tf

    little = _is(content.at(base, 2), b"II")

    def number(place: tf.Tensor, width: int) -> tf.Tensor:
        read = content.at(place, width)
        return tf.where(little, _big(read[::-1]), _big(read))

    first = base + number(base + 4, 4)
    count = tf.minimum(number(first, 2), 1000)

    def step(index: tf.Tensor, value: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        entry = first + 2 + 12 * index
        kind = number(entry + 2, 2)
        whole = tf.where(kind == 3, number(entry + 8, 2), tf.where(kind == 4, number(entry + 8, 4), _constant(0)))
        here = (number(entry, 2) == ORIENTATION) & ((kind == 3) | (kind == 4))
        return index + 1, tf.where(here, whole, value)

    _, value = tf.while_loop(
        lambda index, value: (index < count) & (value < 0), step, (_constant(0), _constant(_SEARCHING))
    )
    return tf.where((value >= 1) & (value <= 8), value, _constant(1))


def _is(bytes_: tf.Tensor, tag: bytes) -> tf.Tensor:
    import tensorflow as tf

    return tf.reduce_all(bytes_ == tf.constant(list(tag), tf.int64))


def _big(bytes_: tf.Tensor) -> tf.Tensor:
    """A number, the highest byte first."""
    import tensorflow as tf

    width = bytes_.shape[0]
    return tf.reduce_sum(bytes_ * tf.constant([256**i for i in reversed(range(width))], tf.int64))


def _constant(value: int) -> tf.Tensor:
    import tensorflow as tf

    return tf.constant(value, tf.int64)
