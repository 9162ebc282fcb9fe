"""A configured split as ground truth: what its files hold, not what a detector was able to train on.

Training cuts or drops boxes that reach outside their image or have no area (`data.invalid_boxes`). An evaluator must
not: a box in the annotation file that nothing can find is missed by everybody, and pycocotools counts it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from retina import config
from retina.data.dataset import DetectionDataset
from retina.data.load import Split
from retina.data.scoring import GroundTruth, ground_truth
from retina.data.truth import read_ground_truth
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
    else:
        return ground_truth(dataset)
    return _like(truth, dataset)


def _by_difficulty(truth: GroundTruth, policy: str) -> GroundTruth:
    if policy == "use":
        return replace(truth, difficult=np.zeros_like(truth.difficult))
    return _rows(truth, ~truth.difficult) if policy == "drop" else truth


def _rows(truth: GroundTruth, kept: np.ndarray) -> GroundTruth:
    names = ("image", "boxes", "labels", "crowd", "difficult", "areas")
    return replace(truth, **{name: getattr(truth, name)[kept] for name in names})


def _like(truth: GroundTruth, dataset: DetectionDataset) -> GroundTruth:
    """The same boxes under the dataset's name and in its order of classes."""
    label_of = {name: label for label, name in enumerate(dataset.class_names)}
    if truth.image_ids != dataset.image_ids or not set(truth.class_names) <= set(label_of):
        raise RetinaError(f"{truth.name}: it changed while it was being read; run the command again")
    labels = np.array([label_of[name] for name in truth.class_names], np.int64)
    return GroundTruth(
        dataset.name,
        dataset.class_names,
        dataset.category_ids,
        dataset.image_ids,
        truth.image,
        truth.boxes,
        labels[truth.labels] if len(truth.labels) else truth.labels,
        truth.crowd,
        truth.difficult,
        truth.areas,
    )
