"""What decoders leave out of the headers of image files: EXIF's orientation, and how a TIFF stores its pixels.

`retina.data.batches.exif` is the twin of `orientation` in TensorFlow operations.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

from retina.data.stored import FileSlice, TableImage, encoded
from retina.errors import RetinaError
from retina.files import refuse_special

UPRIGHT, QUARTER_TURNS = 1, range(5, 9)
"""EXIF's orientations: of the upright image, and those that swap the sides."""

WIDTH, HEIGHT, ORIENTATION = 256, 257, 0x0112
"""Numbers of tags (TIFF 6.0, section 8)."""

_EXIF = b"Exif\0\0"
_TIFF = (b"II*\0", b"MM\0*")
_SHORT, _LONG = 3, 4
_WIDTHS = {_SHORT: 2, _LONG: 4}  # bytes of a value, by the type of an entry
_MOST_TAGS = 1000


class Tag(NamedTuple):
    """An entry of a TIFF directory with whole numbers: the first of its values, and where that value stands."""

    value: int
    place: int
    width: int  # bytes


def orientation(image: TableImage) -> int:
    """EXIF's orientation (EXIF 2.3, tag 0x0112: 1 to 8), 1 where the header of the image says none.

    It is read from a JPEG's APP1 segment, a PNG's chunk `eXIf`, a WebP's chunk `EXIF` or a TIFF's directory; pixels are
    not read. Of an image that can't be read it is 1: who decodes it says what is wrong.
    """
    try:
        with _opened(image) as (file, start):
            return _orientation(file, start)
    except (OSError, RetinaError):
        return UPRIGHT


def tags(content: bytes) -> dict[int, Tag]:
    """The entries with whole numbers in the first directory of a TIFF file, by their number; {} of another file."""
    return _tags(io.BytesIO(content), 0) if is_tiff(content) else {}


def is_tiff(content: bytes) -> bool:
    """Return whether encoded bytes are a TIFF file."""
    return content[:4] in _TIFF


def tiff_size(image: TableImage) -> tuple[int, int] | None:
    """(height, width) of a TIFF's first page, by its directory alone; None for another file.

    Raises:
        OSError: its file can't be read.
        RetinaError: see `StoredImage.read`; or the directory gives no size.
    """
    with _opened(image) as (file, start):
        if _at(file, start, 4) not in _TIFF:
            return None
        entries = _tags(file, start)
    if not {HEIGHT, WIDTH} <= set(entries):
        raise RetinaError("expected a TIFF image, its header gives no size; restore or remove it")
    return entries[HEIGHT].value, entries[WIDTH].value


@contextmanager
def _opened(image: TableImage) -> Iterator[tuple[BinaryIO, int]]:
    """A file that holds the encoded image, and where it begins there."""
    if isinstance(image, FileSlice):
        with open(image.path, "rb") as file:
            yield file, image.offset
    elif isinstance(image, str):
        refuse_special(image)
        with open(image, "rb") as file:
            yield file, 0
    else:
        yield io.BytesIO(encoded(image)), 0


def _at(file: BinaryIO, place: int, count: int) -> bytes:
    """Bytes from a place on, zeros after the end."""
    file.seek(place)
    return file.read(count).ljust(count, b"\0")


def _orientation(file: BinaryIO, start: int) -> int:
    head = _at(file, start, 12)
    if head.startswith(b"\xff\xd8"):
        base = _in_jpeg(file, start + 2)
    elif head.startswith(b"\x89PNG"):
        base = _in_png(file, start + 8)
    elif head.startswith(b"RIFF") and head.endswith(b"WEBP"):
        base = _in_webp(file, start + 12)
    else:
        base = start if head[:4] in _TIFF else None
    tag = None if base is None else _tags(file, base).get(ORIENTATION)
    return tag.value if tag is not None and 1 <= tag.value <= 8 else UPRIGHT


def _in_jpeg(file: BinaryIO, place: int) -> int | None:
    """Where the TIFF structure of the EXIF segment begins; segments after the start of a scan don't count."""
    while True:
        head = _at(file, place, 10)
        if head[1] == 0xFF and head[0] == 0xFF:
            place += 1  # a fill byte
            continue
        length = int.from_bytes(head[2:4], "big")
        if head[0] != 0xFF or head[1] in (0xDA, 0xD9) or length < 2:
            return None
        if head[1] == 0xE1 and head[4:] == _EXIF:
            return place + 10
        place += 2 + length


def _in_png(file: BinaryIO, place: int) -> int | None:
    while True:
        head = _at(file, place, 8)
        if head[4:] in (b"IEND", bytes(4)):
            return None
        if head[4:] == b"eXIf":
            return place + 8
        place += 12 + int.from_bytes(head[:4], "big")


def _in_webp(file: BinaryIO, place: int) -> int | None:
    while True:
        head = _at(file, place, 14)
        if head[:4] == bytes(4):
            return None
        if head[:4] == b"EXIF":  # some writers put a JPEG's mark before the structure
            return place + (14 if head[8:] == _EXIF else 8)
        length = int.from_bytes(head[4:8], "little")
        place += 8 + length + length % 2


def _tags(file: BinaryIO, base: int) -> dict[int, Tag]:
    """The entries of the first directory of a TIFF structure that begins at `base` (TIFF 6.0, section 2)."""
    order = "little" if _at(file, base, 2) == b"II" else "big"

    def number(place: int, width: int) -> int:
        return int.from_bytes(_at(file, place, width), order)  # type: ignore[arg-type]

    first = base + number(base + 4, 4)
    entries: dict[int, Tag] = {}
    for index in range(min(number(first, 2), _MOST_TAGS)):
        entry = first + 2 + 12 * index
        width = _WIDTHS.get(number(entry + 2, 2))
        if width is None:
            continue
        # More than fits into four bytes stands elsewhere, and its place here.
        inside = number(entry + 4, 4) * width <= 4
        place = entry + 8 if inside else base + number(entry + 8, 4)
        entries.setdefault(number(entry, 2), Tag(number(place, width), place, width))
    return entries
