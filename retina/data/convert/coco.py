"""COCO JSON (https://cocodataset.org/#format-data): `annotations/instances_SPLIT.json` and `images/SPLIT/`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from retina import config
from retina.data.convert.images import place_image
from retina.data.convert.part import Part
from retina.data.dataset import DetectionDataset
from retina.files import written


def check(parts: Sequence[Part]) -> tuple[str, ...]:
    """Notes on what is lost; there is nothing to refuse."""
    if any(_numbered(part.table) for part in parts):
        return ("COCO JSON: image ids are texts, which COCO's tools don't expect: numbered from 1 in each split",)
    return ()


def unheld(table: DetectionDataset) -> tuple[np.ndarray, str]:
    """[M] the boxes that can't be written, and why: none."""
    return np.zeros(len(table.boxes), np.bool_), ""


def write(part: Part, folder: Path, *, link: bool, tick: Callable[[], None]) -> None:
    """Writes a split; images that are there already are taken for written."""
    images, annotations = folder / "images" / part.split, folder / "annotations"
    images.mkdir(parents=True, exist_ok=True)
    annotations.mkdir(parents=True, exist_ok=True)
    for row, name in enumerate(part.names):
        rotated = part.rotations[row] != 1
        place_image(part.table.images[row], str(part.table.image_ids[row]), images / name, rotated=rotated, link=link)
        tick()
    with written(annotations / f"instances_{part.split}.json") as temporary, open(temporary, "w") as file:
        _write_json(file, part)


def source(folder: Path, split: str, names: Sequence[str]) -> config.CocoSource:
    """How a configuration reads the split."""
    return config.CocoSource(
        annotations=folder / "annotations" / f"instances_{split}.json", images=folder / "images" / split
    )


def tolerance(table: DetectionDataset) -> np.ndarray:
    """[M] by how many pixels a corner may differ when it is read again: x + width rounds."""
    return np.full(len(table.boxes), 1e-6)


def _numbered(table: DetectionDataset) -> bool:
    return not all(isinstance(identifier, int) for identifier in table.image_ids)


def _write_json(file: TextIO, part: Part) -> None:
    table = part.table
    ids = range(1, len(table) + 1) if _numbered(table) else table.image_ids
    file.write('{"info": {"description": "written by retina convert"}, "licenses": [],\n"categories": [\n')
    categories = zip(table.category_ids, table.class_names, strict=True)
    _write_list(file, ({"id": identifier, "name": name} for identifier, name in categories))
    file.write('],\n"images": [\n')
    _write_list(
        file,
        (
            {"id": identifier, "file_name": name, "height": int(height), "width": int(width)}
            for identifier, name, (height, width) in zip(ids, part.names, table.sizes, strict=True)
        ),
    )
    file.write('],\n"annotations": [\n')
    _write_list(file, _annotations(table, ids))
    file.write("]}\n")


def _annotations(table: DetectionDataset, ids: Iterable[int | str]) -> Iterator[dict[str, Any]]:
    number = 0
    for row, identifier in enumerate(ids):
        objects = table.objects(row)
        for box, label, crowd, area in zip(objects.boxes, objects.labels, objects.crowd, objects.areas, strict=True):
            number += 1  # from 1: pycocotools scores an annotation 0 as unmatched
            x1, y1, x2, y2 = box.tolist()
            yield {
                "id": number,
                "image_id": identifier,
                "category_id": table.category_ids[label],
                "bbox": [_short(value) for value in (x1, y1, x2 - x1, y2 - y1)],
                "area": _short(float(area)),
                "iscrowd": int(crowd),
            }


def _short(number: float) -> float:
    return int(number) if number.is_integer() else number


def _write_list(file: TextIO, entries: Iterable[dict[str, Any]]) -> None:
    for index, entry in enumerate(entries):
        file.write(("" if index == 0 else ",\n") + json.dumps(entry))
