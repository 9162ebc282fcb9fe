"""Training images from encoded bytes to the pixels of a canvas, as evaluation has them, without TensorFlow.

simplejpeg decodes a JPEG as TensorFlow does, bit for bit, also at 1/2, 1/4 and 1/8 of its size. What it does not take
without complaint (CMYK, damage that libjpeg can live with) goes to Pillow, and so does a GIF, which OpenCV refuses for
less damage; other formats go to OpenCV. All of them work outside Python's lock.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from retina.data.batches.augment import MOST_HALVINGS
from retina.data.dataset import DetectionDataset
from retina.data.headers import ORIENTATION, UPRIGHT, is_tiff, tags, tiff_size
from retina.data.stored import StoredImage, TableImage
from retina.errors import RetinaError
from retina.files import refuse_special

JPEG = b"\xff\xd8\xff"
_GIF = (b"GIF87a", b"GIF89a")
_COLOURS = ("YCbCr", "RGB", "Gray")
# simplejpeg takes a least size, not a ratio; from this side on each ratio has a size that only it gives.
_LEAST_SIDE = 16
# Tags of TIFF 6.0, section 8: bits a channel, photometric interpretation, channels, meaning of channels beyond colour.
_BITS_A_CHANNEL, _PHOTOMETRIC, _SAMPLES, _EXTRA = 258, 262, 277, 338
_READ_COLOURS = (0, 1, 2, 3, 6)  # grey from white or from black, RGB, palette, YCbCr
# Bits a pixel of bitmaps that are read: those of fewer, or packed ones, are not.
_BITS = (8, 24, 32)

Decoder = Callable[[bytes, tuple[int, int], int], tuple[np.ndarray, int]]
"""(encoded, declared size (h, w), halvings) -> the image [h,w,3] uint8 at that or its full size, halvings taken.

No side may be shorter than 2 ** halvings; sides are rounded up. Only JPEGs are halved."""


def decoder(depth: tuple[float, float] | None = None) -> Decoder:
    """The function that decodes training images.

    Args:
        depth: levels that become black and white in images of more than 8 bits (`data.depth`).

    It raises `ValueError`, before an image is decoded, if its size is not the declared one, and `ValueError`, `OSError`
    or an error of OpenCV if the image can't be decoded.

    Raises:
        RetinaError: a package that reads images can't be imported.
    """
    simplejpeg, cv2, _ = (imported(module) for module in ("simplejpeg", "cv2", "PIL"))
    decode_jpeg, decode_header = simplejpeg.decode_jpeg, simplejpeg.decode_jpeg_header
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION

    def decode(content: bytes, declared: tuple[int, int], halvings: int) -> tuple[np.ndarray, int]:
        if content.startswith(JPEG):
            try:
                height, width, colours, _ = decode_header(content)
            except ValueError:
                return _by_pillow(content, declared, halvings), halvings
            _check_size((height, width), declared)
            if colours in _COLOURS and (max(declared) >= _LEAST_SIDE or not halvings):
                least = (-(-height >> halvings), -(-width >> halvings)) if halvings else (0, 0)
                with contextlib.suppress(ValueError):
                    return decode_jpeg(content, "RGB", min_height=least[0], min_width=least[1]), halvings
            return _by_pillow(content, declared, halvings), halvings
        if content.startswith(_GIF):
            return _by_pillow(content, declared, 0), 0
        _check_size(header_size(content), declared)
        if is_tiff(content):
            return decode_tiff(content, depth), 0
        if depth is not None and is_deep_png(content):
            return scaled(_rgb(_by_opencv(content)), depth), 0
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
        if image is None:
            raise ValueError("OpenCV can't decode it")
        _check_size(image.shape[:2], declared)
        return image, 0

    return decode


def most_halvings(dataset: DetectionDataset) -> np.ndarray:
    """[N]: how often an image may be halved, `MOST_HALVINGS` but for those that are turned.

    A side that is no multiple of two ends in a pixel that shows less than the others. In an image that is flipped that
    pixel would come first, and move all the others by a part of one.
    """
    common = np.gcd(*dataset.sizes.astype(np.int64).T)
    twos = np.log2(common & -common).astype(np.int64)
    return np.where(dataset.turns == UPRIGHT, MOST_HALVINGS, np.minimum(twos, MOST_HALVINGS))


def header_size(content: bytes) -> tuple[int, int]:
    """(height, width) by the header of a JPEG, PNG, GIF, BMP, WebP or TIFF; see `retina.data.batches.pixels`.

    Raises:
        ValueError: it is something else, damaged, or a bitmap that is not read.
    """

    def number(start: int, count: int) -> int:
        return int.from_bytes(content[start : start + count], "little")

    if content.startswith(JPEG):
        return imported("simplejpeg").decode_jpeg_header(content)[:2]
    if content.startswith(_GIF):
        return number(8, 2), number(6, 2)
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return int.from_bytes(content[20:24], "big"), int.from_bytes(content[16:20], "big")
    if content.startswith(b"BM") and number(14, 4) >= 40 and number(28, 2) in _BITS and number(30, 4) in (0, 3):
        return abs(int.from_bytes(content[22:26], "little", signed=True)), number(18, 4)
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        if content[12:16] == b"VP8X":
            return number(27, 3) + 1, number(24, 3) + 1
        if content[12:16] == b"VP8L":
            return (number(21, 4) >> 14) % 2**14 + 1, number(21, 4) % 2**14 + 1
        return number(28, 2) % 2**14, number(26, 2) % 2**14
    tiff = tiff_size(content)
    if tiff is not None:
        return tiff
    raise ValueError("it is no JPEG, PNG, GIF, BMP, WebP or TIFF that can be read")


def is_deep_png(content: bytes) -> bool:
    """Return whether encoded bytes are a PNG of 16 bits a channel."""
    return content.startswith(b"\x89PNG") and content[24:25] == b"\x10"


def decode_tiff(content: bytes, depth: tuple[float, float] | None) -> np.ndarray:
    """RGB uint8 [h,w,3] of a TIFF's first page, as stored; training and evaluation read TIFFs by this function alike.

    Args:
        depth: levels that become black and white; without them 16 bits give their upper 8.

    Raises:
        ValueError: it is damaged, of other channels than grey or colour with or without alpha, or it needs `depth`; the
            message says what to do.
    """
    values = deep_values(content)
    if values.dtype == np.uint8:
        return values
    if depth is not None:
        return scaled(values, depth)
    if values.dtype == np.uint16:
        return (values >> 8).astype(np.uint8)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    raise ValueError(
        f"expected 8 or 16 bits, its pixels are {values.dtype} from {low:g} to {high:g}: say which levels are "
        f"black and white, such as data.depth: {{low: {low:g}, high: {high:g}}}"
    )


def deep_values(content: bytes) -> np.ndarray:
    """The values [h,w,3] of a TIFF or of a PNG of 16 bits, in the file's own type and levels.

    Raises:
        ValueError: as `decode_tiff`.
    """
    if not is_tiff(content):
        return _rgb(_by_opencv(content))
    entries = tags(content)
    channels = entries[_SAMPLES].value if _SAMPLES in entries else 1
    alpha = _EXTRA in entries and entries[_EXTRA].value in (1, 2)
    photometric = entries[_PHOTOMETRIC].value if _PHOTOMETRIC in entries else 1
    if channels - alpha not in (1, 3) or photometric not in _READ_COLOURS:
        kind = " of print colours or Lab" if photometric not in _READ_COLOURS else ""
        raise ValueError(
            f"expected grey or RGB pixels, with or without alpha, it has {channels} channels{kind}: write RGB images "
            "of the three channels that show the objects best"
        )
    if ORIENTATION in entries:  # OpenCV and Pillow would carry it out
        _, place, width = entries[ORIENTATION]
        order = "little" if content.startswith(b"II") else "big"
        content = content[:place] + UPRIGHT.to_bytes(width, order) + content[place + width :]  # type: ignore[arg-type]
    if _BITS_A_CHANNEL not in entries or entries[_BITS_A_CHANNEL].value <= 8:
        return _shallow_tiff(content)
    return _rgb(_by_opencv(content))


def scaled(values: np.ndarray, depth: tuple[float, float]) -> np.ndarray:
    """Values as uint8, `depth` (low, high) as 0 and 255; in float32, step by step as `pixels.scaled` in a graph."""
    low, factor = np.float32(depth[0]), np.float32(255.0 / (depth[1] - depth[0]))
    levels = np.nan_to_num(values.astype(np.float32), nan=depth[0], posinf=depth[1], neginf=depth[0])
    return np.round(np.clip((levels - low) * factor, np.float32(0), np.float32(255))).astype(np.uint8)


def _shallow_tiff(content: bytes) -> np.ndarray:
    """A TIFF of 8 bits or fewer by Pillow, since OpenCV multiplies colours by alpha."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=["TIFF"]) as image:
            plain = image.convert("RGBA") if image.mode == "RGBa" else image
            return np.asarray(plain.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"expected a TIFF image, it is damaged or cut short ({error}); restore or remove it") from None


def _by_opencv(content: bytes) -> np.ndarray:
    cv2 = imported("cv2")
    flags = cv2.IMREAD_UNCHANGED  # which leaves EXIF alone as well
    values = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    if values is None:
        raise ValueError("expected a TIFF or PNG image, it is damaged or cut short; restore or remove it")
    return values


def _rgb(values: np.ndarray) -> np.ndarray:
    """[h,w,3] RGB of what OpenCV decodes, grey or BGR, with or without alpha."""
    if values.ndim == 2:
        return np.repeat(values[..., None], 3, axis=2)
    return np.ascontiguousarray(values[..., 2::-1]) if values.shape[2] >= 3 else np.repeat(values[..., :1], 3, axis=2)


def content_of(image: TableImage) -> bytes:
    """The encoded bytes of an image of a table.

    Raises:
        OSError: its file can't be read.
        RetinaError: see `StoredImage.read` and `refuse_special`.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, StoredImage):
        return image.read()
    refuse_special(image)
    with open(image, "rb", buffering=0) as file:
        return file.readall()


def imported(module: str) -> Any:
    """A package that reads training images.

    Raises:
        RetinaError: it can't be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = {"cv2": "opencv-python-headless", "PIL": "pillow"}.get(module, module)
        raise RetinaError(
            f"training images: expected the package {package}, importing {module} failed ({error}); install it"
        ) from None


def _by_pillow(content: bytes, declared: tuple[int, int], halvings: int) -> np.ndarray:
    """The image of a GIF, or of a JPEG at a reduced size as libjpeg gives it."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=["JPEG", "GIF"]) as image:
            _check_size(image.size[::-1], declared)
            if halvings:
                image.draft(None, (image.width >> halvings, image.height >> halvings))
            return np.asarray(image.convert("RGB"))
    except Image.DecompressionBombError as error:
        raise ValueError(f"its header tells of a huge image: {error}") from None


def _check_size(stored: tuple[int, ...], declared: tuple[int, int]) -> None:
    if tuple(stored) != declared:
        raise ValueError(f"expected an image of {declared} pixels (height, width) as declared, got {tuple(stored)}")


def fast_painter() -> Callable[[np.ndarray, bool, bool, np.ndarray], None]:
    """The function that shows a window of an image in a target by OpenCV, which works outside Python's lock.

    Bilinear, half-pixel centres, no antialiasing, as `paint_exactly`, within one level of it and a tenth of one
    darker in the mean (OpenCV's weights have 11 bits, and it cuts off; `INTER_LINEAR_EXACT` is slower). Where an image
    is zoomed by 1/2 to 1, neither filters what is finer than the shown pixels. Averaging instead (`INTER_AREA`) takes
    five times as long, and evaluation, which training should resemble, doesn't either.
    """
    import cv2

    # Images are what is shared out among threads; OpenCV would start some of its own in each of ours.
    cv2.setNumThreads(1)
    resize, flip = cv2.resize, cv2.flip

    def paint(window: np.ndarray, mirrored: bool, turned: bool, target: np.ndarray) -> None:
        size = target.shape[1::-1]
        if mirrored or turned:
            flip(resize(window, size), {(1, 0): 1, (0, 1): 0, (1, 1): -1}[mirrored, turned], dst=target)
        else:
            resize(window, size, dst=target)

    return paint


def paint_exactly(window: np.ndarray, mirrored: bool, turned: bool, target: np.ndarray) -> None:
    """Shows a window of an image in a target with the pixels that evaluation has, bit for bit."""
    pixels = np.round(resized(window, (target.shape[0], target.shape[1]))).astype(np.uint8)
    target[:] = pixels[:: -1 if turned else 1, :: -1 if mirrored else 1]


def paint_smoothly(window: np.ndarray, mirrored: bool, turned: bool, target: np.ndarray) -> None:
    """Shows a window of an image in a target by Pillow's bilinear filter, as detectron2 resizes."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(window))
    shown = np.asarray(image.resize(target.shape[1::-1], Image.Resampling.BILINEAR))
    target[:] = shown[:: -1 if turned else 1, :: -1 if mirrored else 1]


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear with half-pixel centres and no antialias, float32 [H, W, 3], as `tf.image.resize` computes it."""
    rows, columns = (_interpolation(length, target) for length, target in zip(image.shape[:2], size, strict=True))
    pixels = image.astype(np.float32)
    pixels = _blend(pixels[:, columns.low], pixels[:, columns.high], columns.share[:, None])
    return _blend(pixels[rows.low], pixels[rows.high], rows.share[:, None, None])


class _Interpolation(NamedTuple):
    low: np.ndarray
    high: np.ndarray
    share: np.ndarray  # of `high`


def _interpolation(length: int, target: int) -> _Interpolation:
    """Between which source pixels each of `target` pixels lies; every step in float32, like the kernel's."""
    step = np.float32(length) / np.float32(target)
    place = (np.arange(target, dtype=np.float32) + np.float32(0.5)) * step - np.float32(0.5)
    floor = np.floor(place)
    low, high = floor.astype(np.int64), floor.astype(np.int64) + 1
    return _Interpolation(np.maximum(low, 0), np.minimum(high, length - 1), place - floor)


def _blend(low: np.ndarray, high: np.ndarray, share: np.ndarray) -> np.ndarray:
    return low + (high - low) * share
