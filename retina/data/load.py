"""From the `data` section of a configuration to a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from retina import config
from retina.data.dataset import DetectionDataset, with_classes
from retina.data.formats.coco import read_coco
from retina.data.formats.csv import csv_records
from retina.data.formats.digits import read_digits
from retina.data.formats.tfds import read_tfds
from retina.data.formats.voc import read_voc
from retina.data.formats.yolo import yolo_records
from retina.data.limits import refuse_too_large
from retina.data.records import Records, to_dataset
from retina.data.select import relabel, select_images, with_found_classes
from retina.errors import RetinaError

Split = Literal["train", "validation", "test"]


def load_split(data: config.Data, split: Split, *, keep_unusable: bool = False) -> DetectionDataset:
    """Reads one split, with the classes of `data.relabel` and the images of its `select`.

    Relative paths are taken from `data.root`.

    Args:
        keep_unusable: for who wants to list them: images that can't be used stay in the table whatever
            `data.invalid_images` says, and none is decoded. One whose size is not known otherwise and has no readable
            header is of one of the sizes `retina.data.image_files.NO_SIZE_*`.

    Raises:
        RetinaError: the split is not configured, its files are missing or malformed, it has invalid boxes and
            `data.invalid_boxes` is "error", or no image of it has a box that counts. An image is declared to have more
            than `data.max_pixels`, or with `data.invalid_images: skip` none can be used; otherwise no image is opened.
    """
    if keep_unusable:
        data = data.model_copy(update={"invalid_images": "skip"})
    sources = {"train": data.train, "validation": data.validation, "test": data.test}
    source = sources.get(split)
    if source is None:
        configured = ", ".join(name for name, given in sources.items() if given is not None)
        raise RetinaError(f"data.{split}: this split is not configured (configured: {configured}); add data.{split}")
    table = read_split(data, source, f"data.{split}")
    if keep_unusable:
        pass
    elif data.invalid_images == "skip":
        # TensorFlow takes seconds to import, and a faulty annotation is told before.
        from retina.data.images import without_unusable

        with checking(table.name, len(table)) as advance:
            table = without_unusable(table, data.max_pixels, advance)
    else:
        refuse_too_large(table, data.max_pixels)
    if (table.crowd | table.difficult).all():
        what = f"all its {len(table.boxes)} boxes are crowds or difficult" if len(table.boxes) else "has no box at all"
        # They may be gone by a policy, which the notes tell with counts.
        why = f" ({'; '.join(table.notes)})" if table.notes else ""
        raise RetinaError(
            f"{table.name}: {what} in {len(table)} images{why}, so there is nothing to train on or to measure; "
            f"check data.{split}"
        )
    return table


def read_split(data: config.Data, source: config.Source, setting: str) -> DetectionDataset:
    """As `load_split`, of any source and whatever its boxes are good for; `setting` is what messages call it.

    Raises:
        RetinaError: the files are missing or malformed, or have invalid boxes and `data.invalid_boxes` is "error".
    """
    table = _read(data, source)
    if data.relabel is not None:
        table = relabel(table, data.relabel, partial=may_lack_classes(data, source))
        table = (with_found_classes if _finds_classes(source) else with_classes)(table, data.classes)
    if source.select is not None:
        table = select_images(table, source.select, data.root, f"{setting}.select")
    return table


def text_records(data: config.Data, source: config.YoloSource | config.CsvSource) -> Records:
    """What the files of a YOLO or CSV source hold, before `data.invalid_boxes`, `data.relabel` and `select`.

    Raises:
        RetinaError: the files are missing or malformed.
    """
    classes = data.classes if data.relabel is None else None
    if source.format == "csv":
        return csv_records(
            data.root / source.annotations,
            _from_root(data, source.images),
            class_file=_from_root(data, source.classes),
            classes=classes,
            difficult=data.difficult,
            keep_unreadable=data.invalid_images == "skip",
        )
    return yolo_records(
        _from_root(data, source.data),
        source.split,
        images=_from_root(data, source.images),
        labels=_from_root(data, source.labels),
        names=_from_root(data, source.names),
        classes=classes,
        keep_unreadable=data.invalid_images == "skip",
    )


def may_lack_classes(data: config.Data, source: config.Source) -> bool:
    """Whether `data.relabel` may name classes that a split does not show: `data.classes` says that there are more."""
    return data.classes is not None and _finds_classes(source)


@contextmanager
def checking(name: str, images: int) -> Iterator[Callable[[int], None]]:
    """A live line on standard error while images are checked, with how many a second; nothing unless a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.completed}/{task.total}"), BarColumn(bar_width=24))
    rate = TextColumn("{task.fields[rate]}")
    with Progress(
        TextColumn("checking the images of {task.description}", markup=False),
        *columns,
        rate,
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    ) as progress:
        task = progress.add_task(name, total=images, rate="")

        def advance(done: int) -> None:
            speed = progress.tasks[0].speed
            progress.update(task, advance=done, rate=f"{speed:.0f} images/s" if speed else "")

        yield advance


def _finds_classes(source: config.Source) -> bool:
    """Whether the source's files tell only the classes that occur in them."""
    return source.format == "voc" or (source.format == "csv" and source.classes is None)


def _from_root(data: config.Data, path: Path | None) -> Path | None:
    return None if path is None else data.root / path


def _read(data: config.Data, source: config.Source) -> DetectionDataset:
    """The whole table of a source; with `data.relabel` its classes are the files' own."""
    classes = data.classes if data.relabel is None else None
    if source.format == "coco":
        return read_coco(
            data.root / source.annotations,
            data.root / source.images,
            classes=classes,
            invalid_boxes=data.invalid_boxes,
            keep_missing=data.invalid_images == "skip",
        )
    if source.format == "voc":
        return read_voc(
            data.root / source.folder,
            source.splits,
            classes=classes,
            invalid_boxes=data.invalid_boxes,
            difficult=data.difficult,
            keep_missing=data.invalid_images == "skip",
        )
    if source.format == "tfds":
        return read_tfds(
            source.name,
            source.split,
            data.root / source.data_dir,
            classes=classes,
            invalid_boxes=data.invalid_boxes,
            difficult=data.difficult,
            keep_unreadable=data.invalid_images == "skip",
        )
    if source.format == "yolo" or source.format == "csv":
        return to_dataset(text_records(data, source), classes, data.invalid_boxes)
    drawn = read_digits(
        source.split,
        source.images,
        source.size,
        source.seed,
        most=source.most,
        height=source.height,
        single_class=source.single_class,
    )
    return with_classes(drawn, classes)


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
