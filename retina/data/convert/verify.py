"""The check of a conversion: what was written is read again with the package's readers and compared."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from retina.data.convert.part import Part
from retina.data.dataset import DetectionDataset
from retina.data.images import each_image
from retina.data.orientation import turned
from retina.data.stored import StoredImage, TableImage, encoded
from retina.errors import RetinaError
from retina.output import count

_SHOWN = 3
# Of JPEGs encoded again at quality 95: the largest and the mean difference of a channel, in levels of 255. Noise and
# noise of black and white, the worst pictures there are, came to 21 and 2.4.
_JPEG_MOST, _JPEG_MEAN = 64.0, 4.0


def differences(
    part: Part, written: DetectionDataset, tolerance: np.ndarray, tick: Callable[[], None] = lambda: None
) -> tuple[str, ...]:
    """Return the first few places, in words, where a table as read is not the one that was to be written; () if equal.

    Compared are the images by file name (or, in shards, by order), their sizes and, where they are copies, their
    bytes; where they were turned upright, their decoded pixels with those of the source, turned: equal, or for JPEGs
    within what encoding again at quality 95 does. Of their boxes the number, order, corners, classes by name, crowd and
    difficult flags and areas.

    Args:
        tolerance: [M] pixels, of each box of the part.
        tick: called after each image that was compared.

    Raises:
        RetinaError: an image can't be read.
    """
    expected = part.table
    rows = _rows(part, written)
    if isinstance(rows, str):
        return (rows,)
    if (written.sizes[rows] != expected.sizes).any():
        row = int(np.argmax((written.sizes[rows] != expected.sizes).any(1)))
        got, want = written.sizes[rows[row]].tolist(), expected.sizes[row].tolist()
        return (f"{part.names[row]}: (height, width) is {got}, expected {want}",)
    counts = np.diff(expected.offsets)
    if (np.diff(written.offsets)[rows] != counts).any():
        row = int(np.argmax(np.diff(written.offsets)[rows] != counts))
        got = int(np.diff(written.offsets)[rows[row]])
        return (f"{part.names[row]}: {count(got, 'box')}, expected {counts[row]}",)
    written = written.subset(rows)
    faults = [*_copies(part, written, tick)]
    named = np.array(written.class_names)[written.labels], np.array(expected.class_names)[expected.labels]
    # An area is a product of sides that each may be off.
    sides = expected.boxes[:, 2:] - expected.boxes[:, :2]
    slack = 4 * tolerance * (sides.max(axis=1, initial=1) + tolerance) + 1e-9 * expected.areas
    for what, wrong in (
        ("box", (np.abs(written.boxes - expected.boxes) > tolerance[:, None]).any(axis=1)),
        ("class", named[0] != named[1]),
        ("crowd flag", written.crowd != expected.crowd),
        ("difficult flag", written.difficult != expected.difficult),
        ("area", np.abs(written.areas - expected.areas) > slack),
    ):
        if wrong.any():
            images = np.repeat(np.arange(len(expected)), counts)
            shown = ", ".join(dict.fromkeys(part.names[row] for row in images[wrong][:_SHOWN]))
            faults.append(f"{int(wrong.sum())} of {len(wrong)} boxes differ in their {what}, in {shown}")
    return tuple(faults)


def differing_texts(texts: Iterable[tuple[Path, str]]) -> tuple[str, ...]:
    """Return the first few files, in words, whose text is not the one that was to be written: read as numbers, 81 and
    81.00000001 are the same."""
    wrong = []
    for file, text in texts:
        try:
            if file.read_text(encoding="utf-8") != text:
                wrong.append(f"{file.name}: its text is not what was to be written")
        except (OSError, UnicodeDecodeError) as error:
            wrong.append(f"{file.name}: cannot read it again: {error}")
    return tuple(wrong[:_SHOWN])


def _rows(part: Part, written: DetectionDataset) -> np.ndarray | str:
    """[N] the row of each image of the part in the table, or the fault."""
    if len(written) != len(part.table):
        return f"{count(len(written), 'image')}, expected {len(part.table)}"
    if any(isinstance(image, StoredImage) for image in written.images):
        return np.arange(len(written))
    place = {Path(str(image)).name: row for row, image in enumerate(written.images)}
    missing = [name for name in part.names if name not in place]
    if missing:
        return f"{count(len(missing), 'image')} not there, such as {missing[0]}"
    return np.array([place[name] for name in part.names], np.int64)


def _copies(part: Part, written: DetectionDataset, tick: Callable[[], None]) -> Iterator[str]:
    """The copies that have other bytes than their source, and the turned images that have other pixels."""
    shown = 0
    for row, (source, copy) in enumerate(zip(part.table.images, written.images, strict=True)):
        orientation = int(part.rotations[row])
        fault = _fault(source, copy) if orientation == 1 else _turned_fault(source, copy, orientation)
        tick()
        if fault is not None and shown < _SHOWN:
            shown += 1
            yield f"{part.names[row]}: {fault}"


def _fault(source: TableImage, copy: TableImage) -> str | None:
    if isinstance(source, str) and isinstance(copy, str) and os.path.samefile(source, copy):
        return None  # a hard link
    expected, got = encoded(source), encoded(copy)
    if len(expected) != len(got):
        return f"{len(got)} bytes, expected {len(expected)}"
    return None if expected == got else "its bytes are not those of the source"


def _turned_fault(source: TableImage, copy: TableImage, orientation: int) -> str | None:
    """The fault of a copy that should show the source after its EXIF rotation."""
    try:
        (expected, lossy), (got, _) = _pixels(encoded(source)), _pixels(encoded(copy))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"it can't be decoded to compare it with its source: {error}"
    except RetinaError as error:
        return str(error)
    expected = turned(expected, orientation)
    if expected.shape != got.shape:
        return f"its pixels have the shape {got.shape}, expected {expected.shape}"
    apart = np.abs(got.astype(np.float32) - expected)
    if lossy:
        mean, most = float(apart.mean()), float(apart.max(initial=0))
        same = mean <= _JPEG_MEAN and most <= _JPEG_MOST
        return (
            None if same else f"it differs from its turned source by {mean:.1f} levels in the mean, {most:.0f} at most"
        )
    return None if not apart.any() else f"{int((apart > 0).any(axis=2).sum())} pixels differ from its turned source"


def undecodable(part: Part, tick: Callable[[int], None]) -> list[str]:
    """Return the faults of the images that can't be decoded, by name; each is decoded once, in threads."""
    faults = each_image(part.table, lambda row: _decoding_fault(part.table.images[row]), tick)
    return [f"{name}: {fault}" for name, fault in zip(part.names, faults, strict=True) if fault is not None]


def _decoding_fault(image: TableImage) -> str | None:
    try:
        with Image.open(io.BytesIO(encoded(image))) as opened:
            opened.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return str(error)
    return None


def _pixels(content: bytes) -> tuple[np.ndarray, bool]:
    """[H,W,C] as Pillow decodes it, and whether its format loses pixels when it is written."""
    with Image.open(io.BytesIO(content)) as opened:
        # Of a palette the order may change; 16 bits would be cut.
        plain = opened.mode.startswith(("I", "F"))
        pixels = np.asarray(opened if plain else opened.convert("RGBA"))
        return pixels.reshape(*pixels.shape[:2], -1), opened.format in ("JPEG", "MPO")
