"""Tables of single files and folders: what a format's records become without the rest of a configuration."""

from __future__ import annotations

from pathlib import Path

from retina.data.dataset import DetectionDataset, Difficult, InvalidBoxes, build
from retina.data.formats.coco import coco_records
from retina.data.formats.csv import csv_records
from retina.data.formats.tfds import tfds_records
from retina.data.formats.voc import voc_records
from retina.data.formats.yolo import yolo_records


def read_coco(
    annotations: Path,
    images: Path,
    *,
    classes: tuple[str, ...] | None = None,
    invalid_boxes: InvalidBoxes = "error",
) -> DetectionDataset:
    """Return the table of `coco_records`."""
    return build(coco_records(annotations, images), invalid_boxes=invalid_boxes, classes=classes)


def read_csv(
    annotations: Path,
    images: Path | None = None,
    *,
    class_file: Path | None = None,
    classes: tuple[str, ...] | None = None,
    invalid_boxes: InvalidBoxes = "error",
    difficult: Difficult = "ignore",
) -> DetectionDataset:
    """Return the table of `csv_records`."""
    records = csv_records(annotations, images, class_file=class_file, classes=classes, difficult=difficult)
    return build(records, invalid_boxes=invalid_boxes, classes=classes)


def read_voc(
    folder: Path,
    splits: tuple[str, ...],
    *,
    classes: tuple[str, ...] | None = None,
    invalid_boxes: InvalidBoxes = "error",
    difficult: Difficult = "ignore",
) -> DetectionDataset:
    """Return the table of `voc_records`."""
    return build(voc_records(folder, splits, classes=classes, difficult=difficult), invalid_boxes=invalid_boxes)


def read_yolo(
    data: Path | None = None,
    split: str | None = None,
    *,
    images: Path | None = None,
    labels: Path | None = None,
    names: Path | None = None,
    classes: tuple[str, ...] | None = None,
    invalid_boxes: InvalidBoxes = "error",
) -> DetectionDataset:
    """Return the table of `yolo_records`."""
    records = yolo_records(data, split, images=images, labels=labels, names=names, classes=classes)
    return build(records, invalid_boxes=invalid_boxes, classes=classes)


def read_tfds(
    name: str | None,
    split: str,
    data_dir: Path,
    *,
    classes: tuple[str, ...] | None = None,
    invalid_boxes: InvalidBoxes = "error",
    difficult: Difficult = "ignore",
) -> DetectionDataset:
    """Return the table of `tfds_records`."""
    return build(tfds_records(name, split, data_dir, difficult=difficult), invalid_boxes=invalid_boxes, classes=classes)
