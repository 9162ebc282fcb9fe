"""Encoded images inside larger files, read one at a time when they are asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from retina.errors import RetinaError
from retina.files import refuse_special


class StoredImage(ABC):
    """An image that a table knows without holding its bytes. `length` is their number; `read` may run in any thread."""

    length: int

    @abstractmethod
    def read(self) -> bytes:
        """The encoded image.

        Raises:
            RetinaError: the file is gone or shorter than it was.
        """


@dataclass(frozen=True, slots=True)
class FileSlice(StoredImage):
    """`length` bytes of a file from `offset` on, as an image lies in a shard of TFRecord."""

    path: str
    offset: int
    length: int

    def read(self) -> bytes:
        try:
            with open(self.path, "rb", buffering=0) as file:
                file.seek(self.offset)
                content = file.read(self.length)
        except OSError as error:
            raise RetinaError(f"{self.path}: cannot read this shard: {error.strerror}; check data_dir") from None
        if len(content) != self.length:
            raise RetinaError(
                f"{self.path}: expected {self.length} bytes of an image at {self.offset}, got {len(content)}; the "
                "shard was cut short since it was first read: prepare the dataset again"
            )
        return content


@dataclass(frozen=True, slots=True)
class SourceImage(StoredImage):
    """The feature `image` of one row of a source with random access, such as `tfds.data_source` of ArrayRecord shards.

    The source's decoders must leave images encoded.
    """

    source: Sequence[Any]
    row: int
    length: int

    def read(self) -> bytes:
        try:
            return self.source[self.row]["image"]
        except (OSError, RuntimeError, ValueError, IndexError) as error:  # what array_record raises for a lost shard
            raise RetinaError(f"{self.source}: cannot read row {self.row}: {error}; check data_dir") from None


TableImage = str | bytes | StoredImage
"""An image in a table: a path, the encoded bytes, or where they lie."""


class Photograph(NamedTuple):
    """An image and how it is read.

    Attributes:
        upright: whether an EXIF rotation is carried out (`data.orientation`).
        depth: levels that become black and white where it has more than 8 bits (`data.depth`).
    """

    image: TableImage
    upright: bool = False
    depth: tuple[float, float] | None = None


def path_or_bytes(image: TableImage) -> Path | bytes:
    """Return the path of an image that is a file, the encoded bytes of any other.

    Raises:
        RetinaError: see `StoredImage.read`.
    """
    if isinstance(image, StoredImage):
        return image.read()
    return image if isinstance(image, bytes) else Path(image)


def encoded(image: TableImage) -> bytes:
    """Return the encoded bytes.

    Raises:
        RetinaError: see `StoredImage.read`; or the file can't be read.
    """
    source = path_or_bytes(image)
    if isinstance(source, bytes):
        return source
    try:
        refuse_special(source)
        return source.read_bytes()
    except OSError as error:
        raise RetinaError(f"{source}: cannot read this image: {error.strerror}; check the path") from None
