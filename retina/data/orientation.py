"""Photographs that EXIF says to turn (`data.orientation`): which of a table's images are, and the turning itself."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Literal

import numpy as np

from retina import config
from retina.data.dataset import DetectionDataset
from retina.data.headers import QUARTER_TURNS, UPRIGHT, orientation
from retina.data.image_files import read_header
from retina.data.limits import image_name
from retina.errors import RetinaError

Policy = Literal["auto", "stored", "upright"]

ROTATED = "carry an EXIF rotation"
"""Words of notes and errors."""

CHOICE = (
    "set data.orientation: upright if the boxes were drawn on the upright pictures, as most tools show them, or stored "
    "if they belong to the pixels as stored; `retina browse` with either shows whether the boxes fit"
)
"""What to do where it can't be told which pixels boxes belong to."""


def oriented(table: DetectionDataset, policy: Policy, measured: np.ndarray, *, refuse: bool = True) -> DetectionDataset:
    """Return the table with the turns that reading its images carries out, and a note where some have an EXIF rotation.

    With "auto" the declared size of an image tells what its boxes belong to, where a quarter turn swaps sides of
    different lengths. The others follow where all that tell say the same.

    Args:
        measured: [N] bool, whether the size of an image was measured on the image itself and so says nothing.
        refuse: raise where nothing tells; otherwise the table's `orientation` says "unknown" and its images stay.

    Raises:
        RetinaError: with "auto", it can't be told for an image with an EXIF rotation.
    """
    if policy == "stored":
        return replace(table, orientation="stored")
    turns = _orientations(table)
    rows = np.flatnonzero(turns != UPRIGHT)
    if not len(rows):
        return table
    if policy == "upright":
        return replace(table, orientations=turns, orientation="upright", notes=_noted(table, len(rows), "upright"))
    sides = {row: _told_by_size(table, row, int(turns[row])) for row in rows.tolist() if not measured[row]}
    told = {side for side in sides.values() if side in ("stored", "upright")}
    open_rows = [row for row in rows.tolist() if sides.get(row) is None]
    if not open_rows and not told:
        return table
    if open_rows and len(told) != 1:
        if refuse:
            raise _unknown(table, len(rows), open_rows)
        return replace(table, orientation="unknown")
    decided: Literal["stored", "upright", "both"] = "both" if len(told) == 2 else next(iter(told))
    left = [row for row in rows.tolist() if (sides.get(row) or decided) == "stored"]
    turns[left] = UPRIGHT
    return replace(table, orientations=turns, orientation=decided, notes=_noted(table, len(rows), decided))


def settled(data: config.Data, tables: Iterable[DetectionDataset]) -> config.Data:
    """Return the section with the orientation that the tables were read with in the place of "auto", so that
    predictions and exports turn images alike; as it is where no image has a rotation.

    Raises:
        RetinaError: boxes of some images belong to the stored pixels and those of others to the upright picture.
    """
    decided = {table.orientation for table in tables} - {""}
    if data.orientation != "auto" or not decided:
        return data
    if len(decided) > 1 or decided & {"both", "unknown"}:
        raise RetinaError(
            "data: by their declared sizes, the boxes of some images with an EXIF rotation belong to the upright "
            "picture and those of others to the pixels as stored, so predictions could follow neither; write upright "
            "copies of all with `retina convert --upright`"
        )
    return data.model_copy(update={"orientation": decided.pop()})


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels [H,W,C] after an EXIF orientation, by EXIF 2.3's own words: where its row 0 and its column 0 lie."""
    if orientation in QUARTER_TURNS:
        pixels = pixels.transpose(1, 0, 2)
    # Of 5 to 8 the transpose comes first, so the flips are those of the upright picture.
    rows = orientation in (3, 4, 7, 8)
    columns = orientation in (2, 3, 6, 7)
    return pixels[:: -1 if rows else 1, :: -1 if columns else 1]


def _orientations(table: DetectionDataset) -> np.ndarray:
    """[N] uint8: EXIF's orientation of each image, from headers alone."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return np.fromiter(pool.map(orientation, table.images, chunksize=64), np.uint8, len(table))


def _told_by_size(table: DetectionDataset, row: int, turn: int) -> Literal["stored", "upright", "neither"] | None:
    """What the declared size of an image says of its boxes; None if it fits both pictures."""
    try:
        stored = read_header(table.images[row], image_name(table, row)).size
    except RetinaError:
        return "neither"  # who decodes it says what is wrong
    declared, upright = tuple(table.sizes[row].tolist()), stored[::-1] if turn in QUARTER_TURNS else stored
    if declared == stored == upright:
        return None
    return "stored" if declared == stored else "upright" if declared == upright else "neither"


def _noted(table: DetectionDataset, rotated: int, orientation: str) -> tuple[str, ...]:
    what = {
        "stored": "their boxes belong to the pixels as stored",
        "upright": "they are turned upright when they are read, and their boxes belong to the upright pictures",
        "both": "the boxes of some belong to the pixels as stored, of others to the upright pictures, by their sizes",
    }[orientation]
    note = f"{table.name}: {rotated} of {len(table)} images {ROTATED}: {what}"
    return (*table.notes, note)


def _unknown(table: DetectionDataset, rotated: int, rows: list[int]) -> RetinaError:
    return RetinaError(
        f"{table.name}: {rotated} of {len(table)} images {ROTATED}, such as {image_name(table, rows[0])}, "
        f"and nothing says whether their boxes belong to the upright pictures or to the pixels as stored; {CHOICE}"
    )
