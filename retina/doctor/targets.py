"""Targets of `retina doctor`: a configuration, a run, or data of any format, as splits to read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from retina import config as configuration
from retina.data.dataset import DetectionDataset
from retina.data.formats import Format
from retina.data.formats.layouts import Layout, look
from retina.data.image_files import NO_SIZE_FRACTIONS, NO_SIZE_PIXELS, read_header
from retina.data.limits import image_name
from retina.data.load import load_split
from retina.data.orientation import settled
from retina.doctor.findings import Finding, listed, some
from retina.errors import RetinaError
from retina.output import count


class Target(NamedTuple):
    """Data to examine: its name for the reports, the configuration if there is one, the source of each split, and
    `read`, which takes a split's name and a policy for invalid boxes and returns the table."""

    name: str
    config: configuration.Config | None
    splits: dict[str, configuration.Source]
    read: Callable[[str, str], DetectionDataset]
    invalid_boxes: str


def open_target(
    source: str | Path,
    overrides: list[str],
    images: Path | None = None,
    data_dir: Path | None = None,
    format: Format | None = None,
) -> Target:
    """Open a path or a name as what `retina.data.formats.layouts.look` recognises.

    Args:
        source: a path, or the name of a TFDS dataset.
        overrides: of a configuration.
        images, data_dir, format: see `retina.data.formats.layouts.look`.

    Raises:
        RetinaError: nothing is there, its format is unknown or not clear, or an option has no effect on it.
    """
    layout = look(str(source), images, data_dir, format)
    if layout.config is not None:
        return _of_config(source, configuration.load(layout.config, overrides))
    if overrides:
        raise RetinaError(f"{overrides[0]}: overrides need a configuration, and {source} is data; leave them out")
    sources = _splits(Path(source), layout)
    return Target(str(source), None, sources, lambda split, policy: _read(sources[split], policy), "error")


def read_splits(target: Target) -> tuple[dict[str, DetectionDataset], list[Finding]]:
    """Return every split that can be read, and a finding for each that can't or that has invalid boxes.

    Invalid boxes are listed, and left out unless the configuration cuts them.
    """
    splits: dict[str, DetectionDataset] = {}
    findings: list[Finding] = []
    for split in target.splits:
        try:
            whole = _table(target, split, findings)
        except RetinaError as error:
            findings.append(_finding(error, split, target))
            continue
        table, unreadable = _readable(whole, split, target)
        findings += unreadable
        if table is not None:
            splits[split] = table
    return splits, findings


def _table(target: Target, split: str, findings: list[Finding]) -> DetectionDataset:
    """Read a split without its invalid boxes, on which a finding is added."""
    try:
        return target.read(split, "error")
    except RetinaError as error:
        if not error.details:
            raise
        findings.append(_finding(error, split, target))
    return target.read(split, "drop" if target.invalid_boxes == "error" else target.invalid_boxes)


def _readable(table: DetectionDataset, split: str, target: Target) -> tuple[DetectionDataset | None, list[Finding]]:
    """Return the table without images of unknown size, and a finding on them; None if nothing is left to examine.

    Neither their boxes nor their coverage can be judged. Other faults of images come to light when these are opened.
    """
    unknown = (table.sizes == NO_SIZE_FRACTIONS).all(axis=1) | (table.sizes == NO_SIZE_PIXELS).all(axis=1)
    faults: dict[int, str] = {}
    for row in np.flatnonzero(unknown).tolist():
        try:
            read_header(table.images[row], image_name(table, row))
        except RetinaError as error:
            faults[row] = str(error)
    if not faults:
        return table, []
    left = table.subset([row for row in range(len(table)) if row not in faults])
    empty = bool((left.crowd | left.difficult).all())
    skipped = target.config is not None and target.config.data.invalid_images == "skip"
    finding = Finding(
        "error" if empty or not skipped else "warning",
        "unreadable-images",
        f"{len(faults)} of {count(len(table), 'image')} can't be read, so their size is unknown: "
        f"{some(list(faults.values()), 2)}" + ("; without them no box is left" if empty else ""),
        "data.invalid_images: skip leaves them out; better to fix them"
        if skipped
        else "restore or remove them, or set data.invalid_images: skip; otherwise training does not start",
        split,
        listed(faults.values()),
    )
    return None if empty else left, [finding]


def _finding(error: RetinaError, split: str, target: Target) -> Finding:
    if not error.details:
        return Finding("error", "unreadable-split", str(error), "correct the data that it names", split)
    handled = target.invalid_boxes != "error"
    return Finding(
        "warning" if handled else "error",
        "invalid-boxes",
        f"{count(len(error.details), 'invalid box')}{'' if len(error.details) < 1000 else ' or more'}: "
        f"{error.details[0]}",
        f"data.invalid_boxes: {target.invalid_boxes} handles them; better to correct the file"
        if handled
        else "correct the file, or set data.invalid_boxes: drop (or clip)",
        split,
        listed(error.details),
    )


def _of_config(source: str | Path, config: configuration.Config) -> Target:
    data = config.data
    splits = {
        split: source
        for split, source in (("train", data.train), ("validation", data.validation), ("test", data.test))
        if source is not None
    }

    def read(split: Any, policy: str) -> DetectionDataset:
        nonlocal data
        table = load_split(data.model_copy(update={"invalid_boxes": policy}), split, keep_unusable=True)
        if split == "train" and table.orientation in ("stored", "upright"):
            data = settled(data, [table])  # holds for the other splits, as in training
        return table

    return Target(str(source), config, splits, read, config.data.invalid_boxes)


def _read(source: configuration.Source, policy: Any) -> DetectionDataset:
    data = configuration.Data(train=source, validation=source, invalid_boxes=policy)
    return load_split(data, "train", keep_unusable=True)


def _splits(path: Path, layout: Layout) -> dict[str, configuration.Source]:
    """Splits of a source. The only split of a file is called "data". VOC's `trainval` is left out next to its parts, as
    every image would be in two splits."""
    if path.is_file() and len(layout.splits) == 1 and layout.format in ("coco", "csv"):
        return {"data": next(iter(layout.splits.values()))}
    if not layout.lists:
        return layout.splits
    names = set(layout.splits)
    homes = {name: name.rpartition("trainval")[0] for name in names if name.rpartition("/")[2] == "trainval"}
    both = {name for name, home in homes.items() if {f"{home}train", f"{home}val"} <= names}
    return {name: section for name, section in layout.splits.items() if name not in both}
