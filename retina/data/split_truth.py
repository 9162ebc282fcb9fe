"""A configured split as ground truth: what its files hold, not what a detector was able to train on.

Training cuts or drops boxes that reach outside their image or have no area (`data.invalid_boxes`). An evaluator must
not: a box in the annotation file that nothing can find is missed by everybody, and pycocotools counts it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from retina import config
from retina.data.dataset import DetectionDataset
from retina.data.formats.tfds import tfds_truth
from retina.data.formats.truth import read_ground_truth
from retina.data.ground_truth import GroundTruth, ground_truth
from retina.data.load import Split, may_lack_classes, text_records
from retina.data.records import to_ground_truth
from retina.data.select import new_names
from retina.errors import RetinaError


def split_truth(data: config.Data, split: Split, dataset: DetectionDataset) -> GroundTruth:
    """The annotated boxes of a split, each with the numbers of its file.

    Args:
        dataset: what `load_split` gives for the same split; it decides the order of images and classes.

    Raises:
        RetinaError: a file is malformed, or it is no longer the one that `dataset` was read from.
    """
    source = {"train": data.train, "validation": data.validation, "test": data.test}[split]
    assert source is not None, "the dataset was read from it"
    if source.format == "coco":
        truth: GroundTruth = read_ground_truth(data.root / source.annotations, format="coco")
    elif source.format == "voc":
        truth = read_ground_truth(data.root / source.folder, format="voc", splits=source.splits)
        truth = _by_difficulty(truth, data.difficult)
    elif source.format == "yolo" or source.format == "csv":
        truth = to_ground_truth(text_records(data, source))
    elif source.format == "tfds":
        truth = tfds_truth(
            source.name,
            source.split,
            data.root / source.data_dir,
            difficult=data.difficult,
            keep_unreadable=data.invalid_images == "skip",
        )
    else:
        return ground_truth(dataset)
    named = new_names(truth.name, data.relabel, truth.class_names, partial=may_lack_classes(data, source))
    return _like(truth, dataset, named, whole=source.select is None and data.invalid_images == "error")


def _by_difficulty(truth: GroundTruth, policy: str) -> GroundTruth:
    if policy == "use":
        return replace(truth, difficult=np.zeros_like(truth.difficult))
    return _rows(truth, ~truth.difficult) if policy == "drop" else truth


def _rows(truth: GroundTruth, kept: np.ndarray) -> GroundTruth:
    names = ("image", "boxes", "labels", "crowd", "difficult", "areas")
    return replace(truth, **{name: getattr(truth, name)[kept] for name in names})


def _like(truth: GroundTruth, dataset: DetectionDataset, named: dict[str, str | None], *, whole: bool) -> GroundTruth:
    """The boxes of the dataset's images and classes, under its name and in its order of both.

    Args:
        named: what the dataset calls each class of the truth, None where it leaves it out.
        whole: the dataset has all images of its file.

    Raises:
        RetinaError: the truth lacks an image or has a class that the dataset does not know.
    """
    row_of = {name: row for row, name in enumerate(dataset.image_ids)}
    rows = np.array([row_of.get(name, -1) for name in truth.image_ids], np.int64)
    there = truth.image_ids == dataset.image_ids if whole else np.count_nonzero(rows >= 0) == len(dataset)
    used = np.array([named[name] is not None for name in truth.class_names], np.bool_)
    kept = (rows[truth.image] >= 0) & used[truth.labels]
    label_of: dict[str | None, int] = {name: label for label, name in enumerate(dataset.class_names)}
    labels = np.array([label_of.get(named[name], -1) for name in truth.class_names], np.int64)[truth.labels[kept]]
    if not there or (labels < 0).any():
        raise RetinaError(f"{truth.name}: it changed while it was being read; run the command again")
    return GroundTruth(
        dataset.name,
        dataset.class_names,
        dataset.category_ids,
        dataset.image_ids,
        rows[truth.image[kept]],
        truth.boxes[kept],
        labels,
        truth.crowd[kept],
        truth.difficult[kept],
        truth.areas[kept],
    )
