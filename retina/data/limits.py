"""Bounds on images by what their annotations declare: no image is opened, TensorFlow not loaded."""

from __future__ import annotations

import numpy as np

from retina import config
from retina.data.dataset import DetectionDataset
from retina.data.stored import StoredImage
from retina.errors import RetinaError


def image_name(dataset: DetectionDataset, row: int) -> str:
    """Name of an image in messages: its path, or the table and the id."""
    image = dataset.images[row]
    return image if isinstance(image, str) else f"{dataset.name}: image {dataset.image_ids[row]}"


def refuse_too_large(dataset: DetectionDataset, max_pixels: int) -> None:
    """Refuse a table by its declared sizes; an image of another size than declared is refused elsewhere.

    Raises:
        RetinaError: an image is declared to have more pixels; the message names the first one.
    """
    large = dataset.sizes.astype(np.int64).prod(axis=1) > max_pixels
    if large.any():
        row = int(np.argmax(large))
        height, width = dataset.sizes[row].tolist()
        raise too_large(image_name(dataset, row), height, width, max_pixels)


def image_kind(dataset: DetectionDataset, max_pixels: int) -> type | None:
    """Kind of the images of a data set, `str`, `bytes` or `StoredImage`; None if there is none.

    Raises:
        RetinaError: some images are paths and some are bytes, or one is declared to have more than `max_pixels`.
    """
    refuse_too_large(dataset, max_pixels)
    kinds = {StoredImage if isinstance(image, StoredImage) else type(image) for image in dataset.images}
    if len(kinds) > 1:
        raise RetinaError(f"{dataset.name}: expected either only paths or only encoded bytes as images, got both")
    return next(iter(kinds), None)


def too_large(name: str, height: int, width: int, max_pixels: int) -> RetinaError:
    """The error of an image of that size."""
    remedy = "raise data.max_pixels or shrink it" if height * width <= config.MAX_PIXELS else "shrink or remove it"
    return RetinaError(
        f"{name}: expected at most {max_pixels} pixels (data.max_pixels), got {width}x{height}, which is "
        f"{height * width}; {remedy}"
    )
