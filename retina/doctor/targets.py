"""What `retina doctor` was pointed at: a configuration, a run, or bare data of any format, as splits to read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from retina import config as configuration
from retina.data.dataset import DetectionDataset
from retina.data.formats.layouts import Layout, look
from retina.data.image_files import NO_SIZE_FRACTIONS, NO_SIZE_PIXELS, read_header
from retina.data.limits import image_name
from retina.data.load import load_split
from retina.doctor.findings import Finding, count, listed, some
from retina.errors import RetinaError


class Target(NamedTuple):
    """What is examined: its name for the reports, the configuration if there is one, and `read`, from a split's name
    and a policy for invalid boxes to its table."""

    name: str
    config: configuration.Config | None
    splits: tuple[str, ...]
    read: Callable[[str, str], DetectionDataset]
    invalid_boxes: str


def open_target(
    source: str | Path, overrides: list[str], images: Path | None = None, data_dir: Path | None = None
) -> Target:
    """Finds out what a path or a name is, as `retina.data.formats.layouts.look` does.

    Args:
        source: a path, or the name of a TFDS dataset.
        overrides: of a configuration.
        images: the folder of images of a COCO or CSV file, where it is not found by itself.
        data_dir: where TFDS datasets lie.

    Raises:
        RetinaError: there is nothing, nothing that is known, or an option has no effect on it.
    """
    found = look(str(source), images, data_dir)
    if found.config is not None:
        return _of_config(source, configuration.load(found.config, overrides))
    if overrides:
        raise RetinaError(f"{overrides[0]}: overrides need a configuration, and {source} is data; leave them out")
    sources = _splits(Path(source), found)
    return Target(str(source), None, tuple(sources), lambda split, policy: _read(sources[split], policy), "error")


def read_splits(target: Target) -> tuple[dict[str, DetectionDataset], list[Finding]]:
    """Every split that can be read, and a finding for each that can't and for each that has invalid boxes.

    Invalid boxes never stop it: they are listed, and left out unless the configuration cuts them.
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
    """A split, without its invalid boxes; then a finding on them is added."""
    try:
        return target.read(split, "error")
    except RetinaError as error:
        if not error.details:
            raise
        findings.append(_finding(error, split, target))
    return target.read(split, "drop" if target.invalid_boxes == "error" else target.invalid_boxes)


def _readable(table: DetectionDataset, split: str, target: Target) -> tuple[DetectionDataset | None, list[Finding]]:
    """The table without the images whose size nobody knows, and a finding on them; None if nothing is left to examine.

    Their boxes can't be judged, nor seen through anchors. All other faults of images are found when they are opened.
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
        f"{len(faults)} of {count(len(table), 'image')} can't be read, so that their size is not known: "
        f"{some(list(faults.values()), 2)}" + ("; without them no box is left" if empty else ""),
        "they are left out by data.invalid_images: skip; better mend them"
        if skipped
        else "restore or remove them, or set data.invalid_images: skip: training does not begin otherwise",
        split,
        listed(faults.values()),
    )
    return None if empty else left, [finding]


def _finding(error: RetinaError, split: str, target: Target) -> Finding:
    if not error.details:
        return Finding("error", "unreadable-split", str(error), "correct what it names", split)
    handled = target.invalid_boxes != "error"
    return Finding(
        "warning" if handled else "error",
        "invalid-boxes",
        f"{count(len(error.details), 'invalid box')}{'' if len(error.details) < 1000 else ' or more'}: "
        f"{error.details[0]}",
        f"they are handled by data.invalid_boxes: {target.invalid_boxes}; better correct the file"
        if handled
        else "correct the file, or set data.invalid_boxes: drop (or clip)",
        split,
        listed(error.details),
    )


def _of_config(source: str | Path, config: configuration.Config) -> Target:
    splits = tuple(name for name in ("train", "validation", "test") if getattr(config.data, name) is not None)

    def read(split: Any, policy: str) -> DetectionDataset:
        return load_split(config.data.model_copy(update={"invalid_boxes": policy}), split, keep_unusable=True)

    return Target(str(source), config, splits, read, config.data.invalid_boxes)


def _read(source: configuration.Source, policy: Any) -> DetectionDataset:
    data = configuration.Data(train=source, validation=source, invalid_boxes=policy)
    return load_split(data, "train", keep_unusable=True)


def _splits(path: Path, found: Layout) -> dict[str, configuration.Source]:
    """The only split of a file is its data. Of VOC's lists `trainval` is left out where its parts are there: every
    image would be in two splits."""
    if path.is_file() and len(found.splits) == 1 and found.format in ("coco", "csv"):
        return {"data": next(iter(found.splits.values()))}
    if found.format != "voc":
        return found.splits
    names = set(found.splits)
    homes = {name: name.rpartition("trainval")[0] for name in names if name.rpartition("/")[2] == "trainval"}
    both = {name for name, home in homes.items() if {f"{home}train", f"{home}val"} <= names}
    return {name: section for name, section in found.splits.items() if name not in both}
