"""YOLO text labels as Ultralytics lays them out: `data.yaml`, `images/SPLIT/` and `labels/SPLIT/`.

Every image gets a label file, an empty one where it has no object. `data.yaml` gives no `path`: the data set's root is
then its own folder, wherever that is moved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import yaml

from retina import config
from retina.data.convert.images import place_image, placed
from retina.data.convert.part import Part
from retina.data.dataset import DetectionDataset
from retina.errors import RetinaError
from retina.files import IMAGE_SUFFIXES, write_text

SPLITS = ("train", "val", "test")


def check(parts: Sequence[Part]) -> tuple[str, ...]:
    """Notes on what is lost.

    Raises:
        RetinaError: a split is called otherwise than YOLO's three, or a name has no extension that it knows.
    """
    for part in parts:
        if part.split not in SPLITS:
            raise RetinaError(
                f"{part.table.name}: YOLO knows the splits train, val and test, got '{part.split}'; say which it is "
                f"with --split {part.split}=train"
            )
        for name in part.names:
            if Path(name).suffix.lower() not in IMAGE_SUFFIXES:
                raise RetinaError(f"{part.table.name}: {name}: expected an image ending in {', '.join(IMAGE_SUFFIXES)}")
    notes = []
    lacking = {"train", "val"} - {part.split for part in parts}
    if lacking:
        notes.append(f"YOLO: Ultralytics also asks for the split {' and '.join(sorted(lacking))} in data.yaml")
    first = parts[0].table
    if first.category_ids != tuple(range(len(first.class_names))) or any(
        isinstance(identifier, int) for part in parts for identifier in part.table.image_ids
    ):
        notes.append("YOLO: the names of the files take the place of image ids, 0 to K-1 that of category ids")
    return tuple(notes)


def unheld(table: DetectionDataset) -> tuple[np.ndarray, str]:
    """[M] the boxes that can't be written, and why: of equal lines readers take one."""
    gone = np.zeros(len(table.boxes), np.bool_)
    for row in range(len(table)):
        start = int(table.offsets[row])
        seen: set[str] = set()
        for index, line in enumerate(_lines(table, row)):
            gone[start + index] = line in seen
            seen.add(line)
    return gone, "equal to another one of the same image, of which YOLO's readers take one"


def write(part: Part, folder: Path, *, link: bool, tick: Callable[[], None]) -> None:
    """Writes a split; files that are there already are taken for written."""
    images, labels = (folder / kind / part.split for kind in ("images", "labels"))
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    for row, (name, stem) in enumerate(zip(part.names, part.stems, strict=True)):
        rotated = part.rotations[row] != 1
        place_image(part.table.images[row], str(part.table.image_ids[row]), images / name, rotated=rotated, link=link)
        text = labels / f"{stem}.txt"
        if not text.exists():
            with placed(text) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in _lines(part.table, row)), encoding="utf-8")
        tick()


def finish(parts: Sequence[Part], folder: Path) -> None:
    """Writes `data.yaml`."""
    tree = {part.split: f"images/{part.split}" for part in parts}
    names = dict(enumerate(parts[0].table.class_names))
    text = yaml.safe_dump({**tree, "names": names}, sort_keys=False, allow_unicode=True)
    write_text(folder / "data.yaml", text)


def source(folder: Path, split: str, names: Sequence[str]) -> config.YoloSource:
    """How a configuration reads the split."""
    return config.YoloSource(data=folder / "data.yaml", split=split)


def tolerance(table: DetectionDataset) -> np.ndarray:
    """[M] by how many pixels a corner may differ when it is read again: 10 digits of a fraction are written."""
    sides = np.repeat(table.sizes.max(axis=1, initial=0), np.diff(table.offsets))
    return 1e-6 + 1e-9 * sides


def _lines(table: DetectionDataset, row: int) -> list[str]:
    height, width = table.sizes[row]
    objects = table.objects(row)
    x1, y1, x2, y2 = objects.boxes.T
    fractions = np.stack([(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height], axis=1)
    return [
        f"{label} " + " ".join(f"{value:.10g}" for value in values)
        for label, values in zip(objects.labels.tolist(), fractions.tolist(), strict=True)
    ]
