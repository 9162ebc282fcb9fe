"""Label Studio's JSON of tasks with predictions (https://labelstud.io/guide/predictions), written.

A dataset is written as `tasks.json`, `label_config.xml` and `images/SPLIT/`. The tasks name their images by addresses
of local files, below the folder that Label Studio is started with as `LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT`. What
Label Studio exports, COCO or YOLO, the readers of these formats take.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import numpy as np

from retina.data.convert.part import Part, place_images
from retina.data.dataset import DetectionDataset
from retina.files import write_text, written
from retina.palette import class_hexes

_MODEL = "retina"


def check(parts: Sequence[Part]) -> tuple[str, ...]:
    """Return notes on what is lost; there is nothing to refuse."""
    return ()


def unheld(table: DetectionDataset) -> tuple[np.ndarray, str]:
    """[M] the boxes that can't be written, and why: none."""
    return np.zeros(len(table.boxes), np.bool_), ""


def write(part: Part, folder: Path, *, link: bool, tick: Callable[[], None]) -> None:
    """Write a split; images that are there already are taken for written."""
    place_images(part, folder / "images" / part.split, link=link, tick=tick)
    write_text(folder / "label_config.xml", _interface(part.table.class_names))
    with written(folder / "tasks.json") as temporary, open(temporary, "w", encoding="utf-8") as file:
        for row in range(len(part.table)):
            file.write(("[" if row == 0 else ",") + "\n" + json.dumps(_task(part, row)))
        file.write("\n]\n")


def _interface(names: Sequence[str]) -> str:
    """The labelling interface, to paste where Label Studio asks for its code."""
    view = Element("View")
    SubElement(view, "Image", name="image", value="$image")
    labels = SubElement(view, "RectangleLabels", name="label", toName="image")
    for name, colour in zip(names, class_hexes(names), strict=True):
        SubElement(labels, "Label", value=name, background=colour)
    indent(view)
    return tostring(view, encoding="unicode") + "\n"


def _task(part: Part, row: int) -> dict[str, Any]:
    address = f"/data/local-files/?d={quote(f'images/{part.split}/{part.names[row]}')}"
    prediction = {"model_version": _MODEL, "result": list(_results(part, row))}
    return {"data": {"image": address}, "predictions": [prediction]}


def _results(part: Part, row: int) -> Iterator[dict[str, Any]]:
    table = part.table
    height, width = table.sizes[row].tolist()
    objects, start = table.objects(row), int(table.offsets[row])
    for index, (box, label) in enumerate(zip(objects.boxes, objects.labels, strict=True)):
        x, y, far_x, far_y = (100 * box / np.array([width, height, width, height])).tolist()
        sides = {"x": x, "y": y, "width": far_x - x, "height": far_y - y}
        yield {
            "id": f"{row}-{index}",
            "type": "rectanglelabels",
            "from_name": "label",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {**sides, "rotation": 0, "rectanglelabels": [table.class_names[label]]},
            **({} if part.scores is None else {"score": float(part.scores[start + index])}),
        }
