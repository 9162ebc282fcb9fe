"""Folders of photographs made for the tests of `retina init`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from retina.doctor.cost import Cost
from retina.setup.decisions import Speed
from retina.setup.device import Device

CPU = Device("cpu", "2 CPU cores", 16 * 2**30, False)
GPU = Device("gpu", "H200", 140 * 2**30, True)
SPEED = Speed(first_step=10.0, step=1.0)


def cost(each: float, batch: int = 8) -> Cost:
    """Of a step: 400 MB, and `each` byte for an image."""
    memory = {"weights": 1e8, "gradients": 1e8, "optimizer": 2e8, "activations": int(each * batch)}
    return Cost(1, 1, (64, 64), 1, batch, 1, memory, 1.0, 1.0, 1, 1, 1.0)


def photograph(seed: int, size: tuple[int, int] = (96, 128)) -> Image.Image:
    """A smooth random picture, (height, width): no two seeds are alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)


def voc_folder(folder: Path, seeds: list[int], names: tuple[str, ...] = ("cup", "pen")) -> Path:
    """Photographs with `Annotations` and a list `all`: two boxes each, the second class in each third image."""
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    for number, seed in enumerate(seeds):
        photograph(seed).save(folder / "JPEGImages" / f"{number:03}.jpg", quality=90 - number % 20)
        classes = names[0], names[number % 3 == 0]
        boxes = [(10 + number % 7, 12, 50, 60), (60, 20 + number % 9, 110, 80)]
        objects = "".join(
            f"<object><name>{name}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
            "</bndbox></object>"
            for name, (x1, y1, x2, y2) in zip(classes, boxes, strict=True)
        )
        (folder / "Annotations" / f"{number:03}.xml").write_text(
            f"<annotation><filename>{number:03}.jpg</filename><size><width>128</width><height>96</height>"
            f"<depth>3</depth></size>{objects}</annotation>"
        )
    (folder / "ImageSets" / "Main" / "all.txt").write_text("".join(f"{n:03}\n" for n in range(len(seeds))))
    return folder
