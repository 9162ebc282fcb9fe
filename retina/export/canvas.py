"""An image on its canvas with NumPy alone, for runtimes whose models take canvases.

`retina.data.batches.evaluation.canvas_image` in other words: sizes by the same function, pixels equal bit for bit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from retina import config
from retina.data.batches import plan
from retina.data.batches.decoding import resized


class Canvas(NamedTuple):
    """`pixels` [H, W, 3] float32 levels 0…255, `size` [2] int32 (h, w before padding), `scale` [2] float32 (y, x):
    canvas pixels per pixel of the image."""

    pixels: np.ndarray
    size: np.ndarray
    scale: np.ndarray

    def black_padded(self) -> np.ndarray:
        """The canvas as batches have it: [H, W, 3] uint8, black beyond the content."""
        height, width = self.size
        canvas = np.zeros(self.pixels.shape, np.uint8)
        canvas[:height, :width] = self.pixels[:height, :width]
        return canvas


def lay_out(image: np.ndarray, resize: config.Resize, padding: tuple[float, float, float]) -> Canvas:
    """Resize an image (uint8 [h, w, 3]) and pad it at the bottom and right with the colour `padding`."""
    geometry = plan.fit(np.array([image.shape[:2]]), resize)
    height, width = size = geometry.resized[0]
    pixels = np.empty((*geometry.canvases[0], 3), np.float32)
    pixels[:] = padding
    pixels[:height, :width] = np.round(resized(image, (int(height), int(width))))
    return Canvas(pixels, size, size.astype(np.float32) / np.asarray(image.shape[:2], np.float32))
