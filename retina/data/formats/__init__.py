"""The formats of datasets: a file each, which holds all that knows the format."""

from typing import Literal

Format = Literal["coco", "voc", "yolo", "csv", "labelme", "tfds"]
"""The formats of data in files."""
