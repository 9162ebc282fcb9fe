"""Statistics of a table without opening an image: counts, sizes, and the defects that it shows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retina import config
from retina.config.reading import override_line
from retina.data.dataset import DetectionDataset, class_list_advice
from retina.data.folders import files
from retina.data.stored import FileSlice, TableImage
from retina.data.tiles import TileImage
from retina.doctor.findings import Finding, listed, some
from retina.output import count

# COCO's small, medium and large, in square pixels (cocodataset.org/#detection-eval).
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, np.inf)}
# From fewer boxes of a class than this a detector learns little, and their coverage is chance.
FEW_BOXES = 10
FEW_IMAGES = 50
SIDE_EDGES = tuple(2.0 ** (step / 2) for step in range(0, 25))
ASPECT_EDGES = tuple(2.0 ** (step / 2) for step in range(-8, 9))
_NOTED_IMBALANCE, _WARNED_IMBALANCE = 10, 100
# A class in at most this share of the images can be shown twice as often (`data.sampling`).
_REPEATABLE = 0.25
# A smaller share of a split's images in another split hardly changes its figures: by half a percent of AP at most.
_LEAKAGE = 0.005
# A larger share of label files that no image claims is not a few leftovers: images are trained as background.
_UNUSED = 0.03
_BACKGROUND = {"background", "__background__", "bg", "_background_"}


@dataclass(frozen=True)
class Histogram:
    """Number of boxes between each edge and the next; the first and the last bin also hold what lies beyond."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Statistics:
    """A split in numbers. Figures of boxes are of those that count, neither crowd nor difficult.

    Attributes:
        name: of the table: a file or folder.
        images, empty_images: all images, and those without any box.
        boxes: those that count; `crowd` and `difficult` are not among them.
        classes: boxes of each class, in label order.
        class_images: images with each class.
        sizes: boxes that are small, medium and large by COCO's areas.
        most_boxes: in one image.
        side: square root of width x height, in pixels of the stored image.
        aspect: height / width, as in `anchors.ratios`.
        notes: of the reader, on boxes that it dropped or cut.
    """

    name: str
    images: int
    empty_images: int
    boxes: int
    crowd: int
    difficult: int
    classes: dict[str, int]
    class_images: dict[str, int]
    sizes: dict[str, int]
    most_boxes: int
    side: Histogram
    aspect: Histogram
    notes: tuple[str, ...]


def histogram(values: np.ndarray, edges: tuple[float, ...]) -> Histogram:
    """Count [m] values between the edges, from the first bin that is not empty to the last."""
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    used = np.flatnonzero(counts)
    first, last = (int(used[0]), int(used[-1])) if len(used) else (0, 0)
    return Histogram(edges[first : last + 2], tuple(counts[first : last + 1].tolist()))


def statistics(dataset: DetectionDataset) -> Statistics:
    """Return counts and histograms of a table; a million boxes take about a second."""
    counted = ~(dataset.crowd | dataset.difficult)
    boxes, labels = dataset.boxes[counted], dataset.labels[counted]
    image = _image_of(dataset)[counted]
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    kinds = len(dataset.class_names)
    pairs = np.unique(image.astype(np.int64) * kinds + labels)
    in_images = np.bincount(pairs % kinds, minlength=kinds)
    areas = dataset.areas[counted]
    return Statistics(
        name=dataset.name,
        images=len(dataset),
        empty_images=int((np.diff(dataset.offsets) == 0).sum()),
        boxes=len(boxes),
        crowd=int(dataset.crowd.sum()),
        difficult=int((dataset.difficult & ~dataset.crowd).sum()),
        classes=dict(zip(dataset.class_names, np.bincount(labels, minlength=kinds).tolist(), strict=True)),
        class_images=dict(zip(dataset.class_names, in_images.tolist(), strict=True)),
        sizes={name: int(((areas >= low) & (areas < high)).sum()) for name, (low, high) in SIZES.items()},
        most_boxes=int(np.bincount(image, minlength=1).max(initial=0)),
        side=histogram(np.sqrt(width * height), SIDE_EDGES),
        aspect=histogram(height / width, ASPECT_EDGES),
        notes=dataset.notes,
    )


def _trained(*splits: str) -> bool:
    """Whether one of the splits is trained on, by its name: `train`, `train2017`, `2007/trainval`."""
    return any("train" in split for split in splits)


def figures_of(first: str, second: str) -> str:
    """What figures are worth where two splits share images, by the splits' names."""
    if _trained(first, second):
        return "figures on images that were trained on are too high"
    return f"figures of {second} are not independent of {first}, on which a checkpoint may have been chosen"


def table_findings(
    dataset: DetectionDataset, split: str, training: bool, settings: config.Config | None = None
) -> Iterator[Finding]:
    """Yield the findings of a split that need no image.

    Args:
        training: whether the split is trained on, so that classes without boxes matter.
        settings: of the training, whose remedies are not proposed again; None where there are none.
    """
    stats = statistics(dataset)
    yield from _unused_labels(dataset, split)
    if not stats.boxes:
        yield Finding(
            "error",
            "no-boxes",
            f"none of its {count(stats.images, 'image')} has a box that counts",
            "check the annotation file and the settings that select from it",
            split,
        )
        return
    yield from _emptiness(dataset, stats, split)
    yield from _special_boxes(stats, split)
    yield from _classes(dataset, stats, split, training)
    if training:
        yield from _imbalance(stats, split, settings)
    yield from _repeated_boxes(dataset, split)


def split_findings(splits: Mapping[str, DetectionDataset]) -> Iterator[Finding]:
    """Yield findings on pairs of splits: on their classes, and on files that are in two of them.

    If `train` and `validation` are the same images, that is only a warning: such a run shows whether a detector can
    memorise a few images. Validating on some of many training images is an error.
    """
    names = list(splits)
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            yield from _class_lists(splits[first], splits[second], (first, second))
            yield from _shared_files(splits[first], splits[second], (first, second))
    if "train" in splits:
        known = _present(splits["train"])
        for name in names:
            unknown = sorted(_present(splits[name]) - known)
            if unknown:
                yield Finding(
                    "warning",
                    "class-never-trained",
                    f"{count(len(unknown), 'class')} with boxes here, but none in train: {some(unknown)}",
                    "a detector can't learn them and they count as 0 in AP: add training images, or leave the "
                    f"classes out: {override_line('data.relabel.drop', unknown)}",
                    name,
                    listed(unknown),
                )


def fewness_findings(stats: Statistics, split: str, training: bool) -> Iterator[Finding]:
    """Yield a finding on a split of few images: what it can teach or tell."""
    if stats.images >= FEW_IMAGES:
        return
    what, remedy = (
        ("to train on: a detector learns so few by heart", "add images, and start from weights that know objects")
        if training
        else ("to measure on: AP on others like them may be far from AP on so few", "add images, and read its interval")
    )
    number = f"{count(stats.images, 'image')} with {count(stats.boxes, 'box')} that count"
    yield Finding("warning", "few-images", f"{number} {what}", remedy, split)


def unnamed_image_findings(splits: Mapping[str, DetectionDataset]) -> Iterator[Finding]:
    """Yield a note on image files that lie beside those of the splits and that no split names."""
    named = {place for table in splits.values() for place in _files(table) if isinstance(place, str)}
    beside = [image for folder in sorted(set(map(os.path.dirname, named))) for image in map(str, files(Path(folder)))]
    unnamed = [image for image in beside if image not in named]
    if unnamed:
        yield Finding(
            "note",
            "images-that-no-split-names",
            f"{len(unnamed)} of {count(len(beside), 'image file')} in the folders of the images are named by no split "
            f"and not used: {some(unnamed, 3)}",
            "one without objects is background to learn from, once the file of annotations names it",
            examples=listed(unnamed),
        )


def _unused_labels(dataset: DetectionDataset, split: str) -> Iterator[Finding]:
    unused = dataset.unused
    if unused is not None:
        belong = "belongs to no image and is" if len(unused.files) == 1 else "belong to no image and are"
        yield Finding(
            "error" if unused.share > _UNUSED else "warning",
            "unused-labels",
            f"{count(len(unused.files), 'label file')} ({unused.share:.1%}) {belong} not used: "
            f"{some(list(unused.files), 3)}; labels were sought in {some(list(unused.sought), 3)}",
            f"an image without labels {unused.fate}: put each label file where it is sought, called like its image, "
            f"with the ending {unused.ending}, or remove it; run.preflight: warn trains all the same",
            split,
            listed(unused.files),
        )


def _emptiness(dataset: DetectionDataset, stats: Statistics, split: str) -> Iterator[Finding]:
    if stats.empty_images:
        share = stats.empty_images / stats.images
        names = (str(dataset.image_ids[row]) for row in np.flatnonzero(np.diff(dataset.offsets) == 0))
        unfinished = share > 0.5 and not isinstance(dataset.images[0], TileImage)
        yield Finding(
            "warning" if unfinished else "note",
            "images-without-boxes",
            f"{stats.empty_images} of {count(stats.images, 'image')} ({share:.0%}) have no box: they are background",
            "make sure that they are empty and not just unfinished" if unfinished else "",
            split,
            listed(names),
        )


def _special_boxes(stats: Statistics, split: str) -> Iterator[Finding]:
    if stats.crowd:
        yield Finding(
            "note",
            "crowd-boxes",
            f"{count(stats.crowd, 'box')} of crowds: never positives, and the anchors inside them are not background",
            split=split,
        )
    if stats.difficult:
        yield Finding(
            "note",
            "difficult-boxes",
            f"{count(stats.difficult, 'difficult box')}: neither trained nor counted",
            "data.difficult: use treats them like any other",
            split,
        )


def _classes(dataset: DetectionDataset, stats: Statistics, split: str, training: bool) -> Iterator[Finding]:
    ids = dataset.category_ids
    if max(ids) - min(ids) >= len(ids):
        yield Finding(
            "note",
            "id-gaps",
            f"{count(len(ids), 'category id')} from {min(ids)} to {max(ids)}, with gaps; labels are 0 to "
            f"{len(ids) - 1}",
            "results and detections keep the file's ids; use them, not the labels, outside retina",
            split,
        )
    background = [name for name in dataset.class_names if name.lower() in _BACKGROUND]
    if background:
        yield Finding(
            "warning",
            "background-class",
            f"'{background[0]}' is a class of the data; RetinaNet needs no class for background",
            "leave it out, for its boxes would be learned as objects: "
            f"{override_line('data.relabel.drop', background)}",
            split,
        )
    missing = [name for name, boxes in stats.classes.items() if not boxes]
    if missing:
        yield Finding(
            "warning" if training else "note",
            "class-without-boxes",
            f"{len(missing)} of {count(len(stats.classes), 'class')} have no box: {some(missing)}",
            f"add images, or leave them out: {override_line('data.relabel.drop', missing)}"
            if training
            else "their AP is undefined and left out of the mean",
            split,
            listed(missing),
        )
    rare = [f"{name} ({boxes})" for name, boxes in stats.classes.items() if 0 < boxes < FEW_BOXES]
    if rare and training:
        yield Finding(
            "warning",
            "rare-classes",
            f"{count(len(rare), 'class')} with fewer than {FEW_BOXES} boxes: {some(rare)}",
            "add images of them, merge them with others, or expect an AP near 0, which counts as much as any other",
            split,
            listed(rare),
        )


def _imbalance(stats: Statistics, split: str, settings: config.Config | None) -> Iterator[Finding]:
    present = {name: boxes for name, boxes in stats.classes.items() if boxes}
    most, least = max(present, key=lambda name: present[name]), min(present, key=lambda name: present[name])
    ratio = present[most] / present[least]
    if ratio >= _NOTED_IMBALANCE:
        untried = _balancing(stats, least, settings)
        yield Finding(
            "warning" if ratio >= _WARNED_IMBALANCE else "note",
            "class-imbalance",
            f"{most} has {present[most]} boxes, {least} {present[least]}: {ratio:.0f} to 1",
            "every class has the same weight in AP: look at the AP of each class, add images of the rare classes"
            + (f", or try {' or '.join(untried)}" if untried else ""),
            split,
        )


def _balancing(stats: Statistics, rarest: str, settings: config.Config | None) -> list[str]:
    """Return the settings for classes of very different numbers that are not set, by the share of the images that the
    rarest is in."""
    share, balancing = stats.class_images[rarest] / stats.images, []
    if settings is None or settings.loss.class_weights is None:
        balancing.append("loss.class_weights.kind=effective")
    if share <= _REPEATABLE and (settings is None or settings.data.sampling is None):
        sampling = override_line("data.sampling", {"kind": "repeat", "threshold": float(f"{4 * share:.2g}")})
        balancing.append(f"{sampling}, which shows images of {rarest} twice as often")
    return balancing


def _repeated_boxes(dataset: DetectionDataset, split: str) -> Iterator[Finding]:
    keys = np.column_stack([_image_of(dataset), dataset.labels, dataset.boxes])
    order = np.lexsort(keys.T[::-1])
    again = order[1:][(keys[order[1:]] == keys[order[:-1]]).all(axis=1)]
    if len(again):
        images = dict.fromkeys(str(dataset.image_ids[row]) for row in np.sort(_image_of(dataset)[again]))
        yield Finding(
            "warning",
            "repeated-boxes",
            f"{count(len(again), 'box')} given twice, with the same class and corners, in "
            f"{count(len(images), 'image')}: {some(list(images))}",
            "remove the copies: a second copy can only be missed, which lowers AP",
            split,
            listed(images),
        )


def _class_lists(first: DetectionDataset, second: DetectionDataset, names: tuple[str, str]) -> Iterator[Finding]:
    if first.class_names == second.class_names:
        return
    only = [sorted(set(a.class_names) - set(b.class_names)) for a, b in ((first, second), (second, first))]
    parts = [f"only in {name}: {some(missing)}" for name, missing in zip(names, only, strict=True) if missing]
    yield Finding(
        "error",
        "class-lists-differ",
        f"{names[0]} and {names[1]} have " + ("; ".join(parts) if parts else "the same classes in another order"),
        f"a label must mean the same everywhere: correct the files, or {class_list_advice(first, second)}",
        examples=listed([*only[0], *only[1]]),
    )


def _shared_files(first: DetectionDataset, second: DetectionDataset, names: tuple[str, str]) -> Iterator[Finding]:
    ours, theirs = _files(first), _files(second)
    shared = [place for place in theirs if place in ours]
    if not shared:
        return
    listing = [place if isinstance(place, str) else f"{place.path} at {place.offset}" for place in shared]
    if len(shared) == len(ours) == len(theirs) and names == ("train", "validation"):
        yield Finding(
            "warning",
            "validation-is-train",
            f"train and validation are the same {count(len(shared), 'image')}",
            "its figures measure memorising and say nothing of other images: validate on others, "
            "unless memorising is the purpose of the run",
            examples=listed(listing),
        )
        return
    if len(shared) == len(ours) == len(theirs) and not _trained(*names):
        yield Finding(
            "warning",
            f"{names[1]}-is-{names[0]}",
            f"{names[0]} and {names[1]} are the same {count(len(shared), 'image')}",
            f"fine if there are no others; but {figures_of(*names)}",
            examples=listed(listing),
        )
        return
    share = len(shared) / min(len(ours), len(theirs))
    yield Finding(
        "error" if share >= _LEAKAGE and _trained(*names) else "warning",
        "image-in-two-splits",
        f"{count(len(shared), 'image file')} of {names[1]} ({len(shared) / len(theirs):.1%}) also in {names[0]}: "
        f"{some(listing, 3)}",
        f"remove them from one: {figures_of(*names)}",
        examples=listed(listing),
    )


def _files(dataset: DetectionDataset) -> dict[str | FileSlice, None]:
    """Places of the images, in order."""
    return dict.fromkeys(place for place in map(place_of, dataset.images) if place is not None)


def place_of(image: TableImage) -> str | FileSlice | None:
    """Return the place of an image, a normalised path; None for an image that memory or a library holds."""
    if isinstance(image, str):
        return os.path.normpath(image)
    if isinstance(image, TileImage):
        return place_of(image.whole)
    return image if isinstance(image, FileSlice) else None


def _present(dataset: DetectionDataset) -> set[str]:
    counted = ~(dataset.crowd | dataset.difficult)
    return {dataset.class_names[label] for label in np.unique(dataset.labels[counted])}


def _image_of(dataset: DetectionDataset) -> np.ndarray:
    """[M]: the image of each box."""
    return np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))
