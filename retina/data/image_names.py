"""The image files that text files and other tools name by their stems."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath

from retina.errors import RetinaError
from retina.files import IMAGE_SUFFIXES


def stem(file: str) -> str:
    """A file's name without folder and extension, whichever system wrote it."""
    return PureWindowsPath(file).stem


def image_files(folder: Path) -> dict[str, Path]:
    """The images of a folder by their stems, sorted.

    Raises:
        RetinaError: the folder can't be read or holds no image, or two images share a stem.
    """
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    except OSError as error:
        raise RetinaError(f"{folder}: cannot read this folder of images: {error.strerror}; check --images") from None
    if not files:
        raise RetinaError(f"{folder}: no image in this folder; expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    by_stem: dict[str, Path] = {}
    for file in files:
        if file.stem in by_stem:
            raise RetinaError(
                f"{folder}: {by_stem[file.stem].name} and {file.name} share a name; text files can't tell them apart"
            )
        by_stem[file.stem] = file
    return by_stem


def image_size(file: Path) -> tuple[int, int]:
    """(height, width) as stored, from the file's header.

    Raises:
        RetinaError: the file can't be read.
    """
    from PIL import Image

    try:
        with Image.open(file) as image:
            return image.height, image.width
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise RetinaError(f"{file}: cannot read the size of this image: {error}; mend or replace it") from None
