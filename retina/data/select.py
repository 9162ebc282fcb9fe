"""The choice of a table's classes and images: pure functions of the table, the settings and their seed.

`retina.config.Relabel` and `retina.config.Select` say what each setting means.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from retina import config
from retina.data.dataset import DetectionDataset, Objects, suggest, with_classes
from retina.data.formats.text import lines_of, read_text
from retina.data.stored import TableImage, encoded
from retina.errors import RetinaError

_SHOWN = 8


def new_names(
    where: str,
    settings: config.Relabel | None,
    names: Sequence[str],
    *,
    partial: bool = False,
    elsewhere: Collection[str] = (),
) -> dict[str, str | None]:
    """Return the new name of each class, None where it is left out.

    Args:
        where: the file of the names, for messages.
        names: the class names of the file.
        partial: the file need not have every class that the settings name.
        elsewhere: the class names of the other splits, which the settings may name as well.

    Raises:
        RetinaError: a setting names a class that is not there, or none is left.
    """
    if settings is None:
        return {name: name for name in names}
    renamed = {name: settings.rename.get(name, name) for name in names}
    for key, unknown, known in () if partial else unknown_names(settings, (*names, *elsewhere)):
        hint = suggest(unknown, known)
        raise RetinaError(f"{where}: data.relabel.{key}: unknown class '{unknown}'; {hint}")
    wanted = set(renamed.values()) if settings.keep is None else set(settings.keep)
    wanted -= set(settings.drop or ())
    new_names = {name: new if new in wanted else None for name, new in renamed.items()}
    if not any(new_names.values()):
        raise RetinaError(f"{where}: data.relabel leaves no class of {list(names)}; keep at least one")
    return new_names


def unknown_names(settings: config.Relabel, names: Sequence[str]) -> Iterator[tuple[str, str, list[str]]]:
    """Yield each setting that names a class that is not among `names`, that class, and those that it may name."""
    renamed = list(dict.fromkeys(settings.rename.get(name, name) for name in names))
    for key, listed, known in (
        ("rename", settings.rename, list(names)),
        ("keep", settings.keep or (), renamed),
        ("drop", settings.drop or (), renamed),
    ):
        yield from ((key, name, known) for name in listed if name not in known)


def relabel(
    dataset: DetectionDataset, settings: config.Relabel, *, partial: bool = False, elsewhere: Collection[str] = ()
) -> DetectionDataset:
    """Return the table with its classes renamed, merged and left out; every image stays. Notes tell the counts.

    Raises:
        RetinaError: as `new_names`.
    """
    named = new_names(dataset.name, settings, dataset.class_names, partial=partial, elsewhere=elsewhere)
    classes: dict[str, int] = {}
    for old, category in zip(dataset.class_names, dataset.category_ids, strict=True):
        new = named[old]
        if new is not None:
            classes.setdefault(new, category)
    label_of = {name: label for label, name in enumerate(classes)}
    labels = np.array([-1 if new is None else label_of[new] for new in named.values()], np.int32)[dataset.labels]
    rows = np.flatnonzero(labels >= 0)
    columns = {**_objects_at(dataset, rows), "labels": labels[rows]}
    notes = dataset.notes + _relabel_notes(dataset, named)
    return replace(dataset, class_names=tuple(classes), category_ids=tuple(classes.values()), notes=notes, **columns)


def without_crowds(dataset: DetectionDataset) -> DetectionDataset:
    """Return the table without its crowd boxes; every image stays. A note tells their number."""
    count = int(dataset.crowd.sum())
    if not count:
        return dataset
    note = f"{dataset.name}: {count} of {len(dataset.crowd)} boxes are crowds: dropped (data.crowd: drop)"
    return replace(dataset, notes=(*dataset.notes, note), **_objects_at(dataset, np.flatnonzero(~dataset.crowd)))


def _objects_at(dataset: DetectionDataset, rows: np.ndarray) -> dict[str, Any]:
    """The columns of some of the table's objects, and the offsets that they have then."""
    image = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(image[rows], minlength=len(dataset)))])
    return {**{field: getattr(dataset, field)[rows] for field in Objects._fields}, "offsets": offsets}


def with_known_classes(dataset: DetectionDataset, classes: Sequence[str] | None) -> DetectionDataset:
    """Order the classes as `with_classes`, for sources that know only the classes that occur: `classes` may name more.

    Category ids are 1..K in the order of the sorted names, as those sources give them.

    Raises:
        RetinaError: a class of the table is not in `classes`.
    """
    if classes is None:
        return dataset
    for name in dataset.class_names:
        if name not in classes:
            raise RetinaError(f"{dataset.name}: class '{name}' is not in data.classes; {suggest(name, list(classes))}")
    absent = tuple(name for name in classes if name not in dataset.class_names)
    ids = {name: index for index, name in enumerate(sorted(classes), start=1)}
    names = dataset.class_names + absent
    return with_classes(
        replace(dataset, class_names=names, category_ids=tuple(ids[name] for name in names)), tuple(classes)
    )


def select_images(dataset: DetectionDataset, settings: config.Select, root: Path, where: str) -> DetectionDataset:
    """Return the table of the images that are chosen, in the table's order. Notes tell how many each setting leaves.

    Args:
        root: what the path of `settings.images` is relative to.
        where: the section of the configuration, such as "data.train.select".

    Raises:
        RetinaError: a setting leaves no image, asks for more than there are, or names an image that is not there.
    """
    seed = settings.seed or 0
    rows = np.arange(len(dataset))
    steps: list[str] = []
    notes: tuple[str, ...] = ()

    def keep(chosen: np.ndarray, what: str) -> None:
        nonlocal rows
        rows = chosen
        steps.append(f"{what}: {len(rows)}")
        if not len(rows):
            raise RetinaError(
                f"{dataset.name}: {where}: no image is left of {len(dataset)} ({', '.join(steps)}); ask for more"
            )

    if settings.share is not None:
        order = random_order(dataset.image_ids, seed)
        cuts = [round(edge * len(dataset)) for edge in settings.share]
        if settings.copies_together:
            order, cuts = _copies_together(order, cuts, dataset.images)
        keep(np.sort(order[cuts[0] : cuts[1]]), f"share {list(settings.share)} with seed {seed}")
    if settings.images is not None:
        listed = np.zeros(len(dataset), np.bool_)
        listed[_listed(dataset, root / settings.images)] = True
        keep(rows[listed[rows]], f"listed in {settings.images}")
    if settings.drop_empty:
        keep(rows[np.diff(dataset.offsets)[rows] > 0], "with a box")
    if settings.shots is not None:
        chosen, notes = _few(dataset.subset(rows), settings.shots, settings.shots_of or "instances", seed, where)
        keep(rows[chosen], f"{settings.shots} {settings.shots_of or 'instances'} a class with seed {seed}")
    if settings.every is not None:
        keep(rows[:: settings.every], f"one of each {settings.every}")
    if settings.first is not None:
        if settings.first > len(rows):
            raise RetinaError(
                f"{dataset.name}: {where}.first: {settings.first} images asked for, there are {len(rows)}; leave it out"
            )
        keep(rows[: settings.first], f"the first {settings.first}")
    chosen_table = dataset.subset(rows)
    note = f"{dataset.name}: {where}: {len(rows)} of {len(dataset)} images ({', '.join(steps)})"
    return replace(chosen_table, notes=(*dataset.notes, note, *notes))


def random_order(image_ids: Sequence[int | str], seed: int) -> np.ndarray:
    """[N] int64 rows in an order drawn from the seed and the ids alone, whatever the order of the table.

    Sorting by a hash of seed and id (BLAKE2b) gives every machine and library version the same order, and a few new
    images move few old ones from one share to another.
    """
    keys = b"".join(hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest() for name in image_ids)
    return np.argsort(np.frombuffer(keys, ">u8"), kind="stable")


def _copies_together(
    order: np.ndarray, cuts: Sequence[int], images: Sequence[TableImage]
) -> tuple[np.ndarray, list[int]]:
    """The order with each copy after the first image of its bytes, and cuts that no copies lie on both sides of."""
    lengths = [_length(image) for image in images]
    shared = {length for length, times in Counter(lengths).items() if times > 1 and length >= 0}
    first_of: dict[bytes, int] = {}
    group = np.empty(len(order), np.int64)  # of each place in the order, the place of the first copy
    for place, row in enumerate(order.tolist()):
        group[place] = place
        if lengths[row] in shared:
            digest = hashlib.blake2b(encoded(images[row]), digest_size=16).digest()
            group[place] = first_of.setdefault(digest, place)
    together = np.argsort(group, kind="stable")
    starts = group[together]
    return order[together], [_beside(starts, cut) for cut in cuts]


def _beside(groups: np.ndarray, cut: int) -> int:
    """The place nearest to a cut that divides no group, whichever share asks; `groups` [N] are in order."""
    if cut == len(groups):
        return cut
    first, after = (int(np.searchsorted(groups, groups[cut], side)) for side in ("left", "right"))
    return first if cut - first <= after - cut else after


def _length(image: TableImage) -> int:
    """Bytes of an encoded image; -1 of a file that is missing, which is no copy of any."""
    if isinstance(image, str):
        try:
            return os.path.getsize(image)
        except OSError:
            return -1  # who reads it says what is wrong
    return len(image) if isinstance(image, bytes) else image.length


def _relabel_notes(dataset: DetectionDataset, named: Mapping[str, str | None]) -> tuple[str, ...]:
    counts = np.bincount(dataset.labels, minlength=len(dataset.class_names)).tolist()
    old_names: dict[str | None, list[str]] = {}
    for (old, new), count in zip(named.items(), counts, strict=True):
        if old != new:
            old_names.setdefault(new, []).append(f"{old} ({count})")
    # Classes by the hundred are left out of COCO; a few of their names are enough.
    return tuple(
        f"{dataset.name}: data.relabel: {_few_of(olds)} {'left out' if new is None else f'called {new}'}"
        for new, olds in old_names.items()
    )


def _few_of(parts: Sequence[str]) -> str:
    more = f" and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
    return ", ".join(parts[:_SHOWN]) + more


def _listed(dataset: DetectionDataset, file: Path) -> list[int]:
    """The rows of the images that a text file names, by id or by the name of the image file."""
    by_name: dict[str, dict[int, None]] = {}
    for row, (identifier, image) in enumerate(zip(dataset.image_ids, dataset.images, strict=True)):
        by_name.setdefault(str(identifier), {})[row] = None
        if isinstance(image, str):
            by_name.setdefault(os.path.basename(image), {})[row] = None
    rows: dict[int, int] = {}
    for number, line in enumerate(lines_of(read_text(file)), start=1):
        called = line.strip()
        if not called:
            continue
        matches = list(by_name.get(called, ()))
        if len(matches) != 1:
            first_ids = list(map(str, dataset.image_ids[:1000]))
            what = (
                "several images have this id or file name; say it otherwise" if matches else suggest(called, first_ids)
            )
            raise RetinaError(f"{file}: line {number}: '{called}' is no image of {dataset.name}; {what}")
        if matches[0] in rows:
            raise RetinaError(f"{file}: line {number}: '{called}' stands in line {rows[matches[0]]} before; remove one")
        rows[matches[0]] = number
    return list(rows)


def _few(dataset: DetectionDataset, shots: int, of: str, seed: int, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """The rows of a few-shot subset, sorted, and what it could not fill."""
    classes = len(dataset.class_names)
    counted = ~(dataset.crowd | dataset.difficult)
    image = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))[counted]
    pairs, counts = np.unique(image * classes + dataset.labels[counted], return_counts=True)
    if of == "images":
        counts = np.ones_like(counts)
    place = np.empty(len(dataset), np.int64)
    place[random_order(dataset.image_ids, seed)] = np.arange(len(dataset))
    owners, labels = pairs // classes, pairs % classes
    totals = np.bincount(labels, weights=counts, minlength=classes).astype(np.int64)
    have = np.zeros(classes, np.int64)
    taken = np.zeros(len(dataset), np.bool_)
    # The rarest first: its images bring the common classes along, so that fewer of those have to be added.
    for label in np.argsort(totals, kind="stable"):
        showing = owners[labels == label]
        for row in showing[np.argsort(place[showing])]:
            if have[label] >= shots:
                break
            if not taken[row]:
                taken[row] = True
                pairs_of_image = slice(*np.searchsorted(owners, [row, row + 1]))
                have[labels[pairs_of_image]] += counts[pairs_of_image]
    short = [f"{name} ({total})" for name, total in zip(dataset.class_names, totals, strict=True) if total < shots]
    note = f"{dataset.name}: {where}.shots: {have.min()} to {have.max()} {of} a class"
    return np.flatnonzero(taken), (note + (f"; fewer than {shots} there are of {_few_of(short)}" if short else ""),)
