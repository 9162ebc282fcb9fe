"""From the `data` section of a configuration to a table."""

from __future__ import annotations

from typing import Literal

from retina import config
from retina.data.coco import read_coco
from retina.data.dataset import DetectionDataset, with_classes
from retina.data.digits import read_digits
from retina.data.voc import read_voc
from retina.errors import RetinaError

Split = Literal["train", "validation", "test"]


def load_split(data: config.Data, split: Split) -> DetectionDataset:
    """Reads one split; relative paths are taken from `data.root`.

    Raises:
        RetinaError: the split is not configured, its files are missing or malformed, it has invalid boxes and
            `data.invalid_boxes` is "error", or no image of it has a box that counts.
    """
    sources = {"train": data.train, "validation": data.validation, "test": data.test}
    source = sources.get(split)
    if source is None:
        configured = ", ".join(name for name, given in sources.items() if given is not None)
        raise RetinaError(f"data.{split}: this split is not configured (configured: {configured}); add data.{split}")
    if source.format == "coco":
        table = read_coco(
            data.root / source.annotations,
            data.root / source.images,
            classes=data.classes,
            invalid_boxes=data.invalid_boxes,
        )
    elif source.format == "voc":
        table = read_voc(
            data.root / source.folder,
            source.splits,
            classes=data.classes,
            invalid_boxes=data.invalid_boxes,
            difficult=data.difficult,
        )
    else:
        drawn = read_digits(
            source.split,
            source.images,
            source.size,
            source.seed,
            most=source.most,
            height=source.height,
            single_class=source.single_class,
        )
        table = with_classes(drawn, data.classes)
    if (table.crowd | table.difficult).all():
        what = f"all its {len(table.boxes)} boxes are crowds or difficult" if len(table.boxes) else "has no box at all"
        raise RetinaError(
            f"{table.name}: {what} in {len(table)} images, so there is nothing to train on or to measure; "
            f"check data.{split}"
        )
    return table


def check_same_classes(first: DetectionDataset, second: DetectionDataset) -> None:
    """Labels mean the same in both tables: the same names in the same order.

    Raises:
        RetinaError: they don't; both lists are printed.
    """
    if first.class_names == second.class_names:
        return
    ours, theirs = list(first.class_names), list(second.class_names)
    if sorted(ours) == sorted(theirs):
        what = "the same classes in another order"
    else:
        parts = ((first.name, sorted(set(ours) - set(theirs))), (second.name, sorted(set(theirs) - set(ours))))
        what = "different classes (" + "; ".join(f"only in {name}: {names}" for name, names in parts if names) + ")"
    raise RetinaError(
        f"{first.name} and {second.name} have {what}: {first.name}: {ours}; {second.name}: {theirs}. "
        "Use files with the same classes, or list them in data.classes"
    )
