"""Tables and files made for the tests of the doctor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from retina.data.dataset import DetectionDataset


def table(sizes, boxes, labels=None, names=("a",), crowd=None, difficult=None, ids=None, images=None, areas=None):
    """`sizes`: (height, width) of each image; `boxes`: its list of xyxy; `labels` etc. are flat."""
    flat = np.array([box for some in boxes for box in some], np.float64).reshape(-1, 4)
    count = len(flat)
    return DetectionDataset(
        name="made up",
        class_names=names,
        category_ids=ids or tuple(range(1, len(names) + 1)),
        image_ids=tuple(range(len(sizes))),
        images=images or tuple(f"{i}.png" for i in range(len(sizes))),
        sizes=np.array(sizes, np.int32).reshape(-1, 2),
        offsets=np.cumsum([0] + [len(some) for some in boxes]),
        boxes=flat,
        labels=np.zeros(count) if labels is None else labels,
        crowd=np.zeros(count, bool) if crowd is None else crowd,
        difficult=np.zeros(count, bool) if difficult is None else difficult,
        areas=(flat[:, 2:] - flat[:, :2]).prod(axis=1) if areas is None else areas,
    )


def picture(seed: int, size: tuple[int, int] = (64, 96)) -> np.ndarray:
    """A smooth random picture, uint8 [height, width, 3]: neighbours differ clearly and no two seeds are alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))


def write_coco(folder: Path, name: str, images: list[dict], annotations: list[dict], categories: list[dict]) -> None:
    """`annotations/instances_NAME.json`; ids of annotations are filled in."""
    tree = {
        "images": images,
        "annotations": [{"id": n, "iscrowd": 0, **one} for n, one in enumerate(annotations, start=1)],
        "categories": categories,
    }
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / f"instances_{name}.json").write_text(json.dumps(tree))
