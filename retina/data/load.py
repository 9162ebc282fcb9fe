"""From files to tables: a split of a configuration, and the ground truth and detections that are to be scored."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple, cast, get_args

import numpy as np

from retina import config
from retina.data.dataset import DetectionDataset, Records, build, class_list_advice, with_classes
from retina.data.detections import Pixels
from retina.data.formats import text
from retina.data.formats.coco import coco_records, coco_results, coco_truth
from retina.data.formats.csv import csv_records
from retina.data.formats.digits import digits_records
from retina.data.formats.labelme import labelme_records
from retina.data.formats.layouts import PICK, look
from retina.data.formats.tfds import tfds_records
from retina.data.formats.voc import devkit_results, voc_records, voc_truth
from retina.data.formats.yolo import yolo_records
from retina.data.ground_truth import FileTruth, GroundTruth, Results, truth_of_records
from retina.data.image_files import NO_SIZE_FRACTIONS, NO_SIZE_PIXELS
from retina.data.images import without_unusable
from retina.data.limits import refuse_too_large
from retina.data.orientation import oriented
from retina.data.select import new_names, relabel, select_images, unknown_names, with_known_classes, without_crowds
from retina.data.tiles import in_tiles
from retina.errors import RetinaError
from retina.files import exists
from retina.output import console, count

# Endings of files that are told apart by their content; of ground truth any other is COCO's.
_OF_DATA = (".yaml", ".yml", ".csv", ".data", ".names")

Split = Literal["train", "validation", "test"]
TruthFormat = Literal["auto", "coco", "voc", "config", "xywh", "xyxy", "yolo"]
ResultFormat = Literal["auto", "coco", "voc", "xywh", "xyxy", "yolo", "ultralytics"]


class SplitTables(NamedTuple):
    """A split, read once.

    Attributes:
        table: for training: `data.invalid_boxes` is followed.
        truth: to score detections against: the same images and classes in the same order, but every box of the files
            with the numbers that stand there.
    """

    table: DetectionDataset
    truth: FileTruth


def load_split(data: config.Data, split: Split, *, keep_unusable: bool = False) -> DetectionDataset:
    """Read the table of one split, with the classes of `data.relabel` and the images of its `select`.

    Relative paths are taken from `data.root`.

    Args:
        data: the section `data` of a configuration.
        split: `train`, `validation` or `test`.
        keep_unusable: for who wants to list them: images that can't be used stay in the table whatever
            `data.invalid_images` says, and none is decoded. An image whose size is not known otherwise and that has no
            readable header gets one of the sizes that `retina.data.image_files` names.

    Returns:
        The table.

    Raises:
        RetinaError: the split is not configured, its files are missing or malformed, it has invalid boxes and
            `data.invalid_boxes` is "error", or no image of it has a box that counts. An image is declared to have more
            than `data.max_pixels`, or with `data.invalid_images: skip` none can be used; otherwise no image is opened.

    Example:

    >>> config = retina.load_config(overrides=["data.test.images=4"])
    >>> len(retina.load_split(config.data, "test"))
    4
    """
    table, _, _ = _read_split(data, split, keep_unusable)
    return table


def load_training(data: config.Data) -> DetectionDataset:
    """Read the images to train on: those of the split `train`, in tiles where `data.tiles` says so.

    Raises:
        RetinaError: as `load_split`; or no image is larger than a tile.
    """
    return in_tiles(load_split(data, "train"), data.tiles)


def read_split(data: config.Data, split: Split, *, keep_unusable: bool = False) -> SplitTables:
    """Read one split as `load_split` does, with its ground truth, in one pass over the files.

    Raises:
        RetinaError: as `load_split`; or a box can't be scored against: it is not finite or too large to compute with,
            or the image is kept although its size is not known.
    """
    table, records, names = _read_split(data, split, keep_unusable)
    if keep_unusable and data.invalid_images == "error":
        _refuse_unknown_sizes(table)
    return SplitTables(table, truth_of_records(records, table, names))


def read_source(data: config.Data, source: config.Source, setting: str) -> DetectionDataset:
    """Read the table of any source, whatever its boxes are good for; `setting` is its name in messages.

    Raises:
        RetinaError: the files are missing or malformed, or have invalid boxes and `data.invalid_boxes` is "error".
    """
    records = _records(data, source)
    return _table(records, data, source, setting, _known_elsewhere(records, data, source), refuse=True)


def _read_split(
    data: config.Data, split: Split, keep_unusable: bool
) -> tuple[DetectionDataset, Records, dict[str, str | None]]:
    """A split's table, what it was made of, and what it calls each class of that."""
    sources = {"train": data.train, "validation": data.validation, "test": data.test}
    source = sources.get(split)
    if source is None:
        configured = ", ".join(name for name, given in sources.items() if given is not None)
        raise RetinaError(f"data.{split}: this split is not configured (configured: {configured}); add data.{split}")
    if keep_unusable:
        data = data.model_copy(update={"invalid_images": "skip"})
    records = _records(data, source)
    elsewhere = _known_elsewhere(records, data, source)
    table = _table(records, data, source, f"data.{split}", elsewhere, refuse=not keep_unusable)
    if not keep_unusable and data.invalid_images == "skip":
        with _checking(table.name, len(table)) as advance:
            table = without_unusable(table, data.max_pixels, advance)
    elif not keep_unusable:
        refuse_too_large(table, data.max_pixels)
    if (table.crowd | table.difficult).all():
        what = "nothing but crowds and difficult boxes" if len(table.boxes) else "no box at all"
        # They may be gone by a policy, which the notes tell with counts.
        why = f" ({'; '.join(table.notes)})" if table.notes else ""
        raise RetinaError(
            f"{table.name}: has {what} in {count(len(table), 'image')}{why}, so there is nothing to train on or to "
            f"measure; check data.{split}"
        )
    partial = _may_lack_classes(data, records)
    return (
        table,
        records,
        new_names(records.name, data.relabel, tuple(records.classes), partial=partial, elsewhere=elsewhere),
    )


def _known_elsewhere(records: Records, data: config.Data, source: config.Source) -> frozenset[str]:
    """The class names of the other splits, which are read only where `data.relabel` names a class that is not here."""
    if data.relabel is None or not any(unknown_names(data.relabel, tuple(records.classes))):
        return frozenset()
    others = (other for other in (data.train, data.validation, data.test) if other is not None and other != source)
    names: set[str] = set()
    for other in others:
        with contextlib.suppress(RetinaError):  # a fault of the other split, which is told where that is read
            names.update(_records(data, other).classes)
    return frozenset(names)


def _table(
    records: Records,
    data: config.Data,
    source: config.Source,
    setting: str,
    elsewhere: frozenset[str],
    *,
    refuse: bool,
) -> DetectionDataset:
    """The table of a source; with `refuse` an error where it can't be told which pixels its boxes belong to."""
    if data.relabel is None:
        table = build(records, invalid_boxes=data.invalid_boxes, classes=data.classes)
    else:
        table = build(records, invalid_boxes=data.invalid_boxes)
        table = relabel(table, data.relabel, partial=_may_lack_classes(data, records), elsewhere=elsewhere)
        table = (with_known_classes if records.open_classes else with_classes)(table, data.classes)
    if data.crowd == "drop":
        table = without_crowds(table)
    if source.select is not None:
        table = select_images(table, source.select, data.root, f"{setting}.select")
    if data.depth is not None:
        table = replace(table, depth=(data.depth.low, data.depth.high))
    return oriented(table, data.orientation, _measured(records, table), refuse=refuse)


def _measured(records: Records, table: DetectionDataset) -> np.ndarray:
    """Whether the size of each image of the table was measured on the image itself: [N] bool."""
    if isinstance(records.measured, bool):
        return np.full(len(table), records.measured)
    by_id = dict(zip(records.image_ids, records.measured.tolist(), strict=True))
    return np.array([by_id[identifier] for identifier in table.image_ids], bool)


def _records(data: config.Data, source: config.Source) -> Records:
    """Everything that a source's files hold; with `data.relabel` the classes are the files' own."""
    root = data.root
    classes = data.classes if data.relabel is None else None
    skip, upright = data.invalid_images == "skip", data.orientation == "upright"
    if source.format == "coco":
        return coco_records(
            root / source.annotations,
            root / source.images,
            keep_missing=skip,
            relabelled=data.relabel is not None,
            supercategory=source.supercategory,
        )
    if source.format == "voc":
        return voc_records(
            root / source.folder, source.splits, classes=classes, difficult=data.difficult, keep_missing=skip
        )
    if source.format == "tfds":
        return tfds_records(
            source.name,
            source.split,
            root / source.data_dir,
            difficult=data.difficult,
            keep_unreadable=skip,
            upright=upright,
        )
    if source.format == "csv":
        return csv_records(
            root / source.annotations,
            _from_root(data, source.images),
            class_file=_from_root(data, source.classes),
            classes=classes,
            difficult=data.difficult,
            keep_unreadable=skip,
            upright=upright,
        )
    if source.format == "labelme":
        return labelme_records(
            root / source.folder,
            source.splits,
            _from_root(data, source.images),
            classes=classes,
            difficult=data.difficult,
            keep_unreadable=skip,
            upright=upright,
        )
    if source.format == "yolo":
        return yolo_records(
            _from_root(data, source.data),
            source.split,
            images=_from_root(data, source.images),
            labels=_from_root(data, source.labels),
            names=_from_root(data, source.names),
            classes=classes,
            keep_unreadable=skip,
            upright=upright,
            relabelled=data.relabel is not None,
        )
    return digits_records(
        source.split,
        source.images,
        source.size,
        source.seed,
        most=source.most,
        height=source.height,
        single_class=source.single_class,
    )


def _from_root(data: config.Data, path: Path | None) -> Path | None:
    return None if path is None else data.root / path


def _may_lack_classes(data: config.Data, records: Records) -> bool:
    """True if `data.relabel` may name classes that a split does not show: `data.classes` says that there are more."""
    return data.classes is not None and records.open_classes


def _refuse_unknown_sizes(table: DetectionDataset) -> None:
    """Boxes in fractions are nowhere in an image without a size."""
    for identifier, size in zip(table.image_ids, table.sizes.tolist(), strict=True):
        if tuple(size) in (NO_SIZE_FRACTIONS, NO_SIZE_PIXELS):
            raise RetinaError(
                f"{table.name}: image {identifier}: its size can't be read, and nothing can be scored without; "
                "restore the image"
            )


@contextmanager
def _checking(name: str, images: int) -> Iterator[Callable[[int], None]]:
    """A live line on standard error while images are checked, with how many a second; nothing unless a terminal."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    terminal = console(stderr=True)
    columns = (TextColumn("{task.completed}/{task.total}"), BarColumn(bar_width=24))
    rate = TextColumn("{task.fields[rate]}")
    with Progress(
        TextColumn("checking the images of {task.description}", markup=False),
        *columns,
        rate,
        TimeRemainingColumn(),
        console=terminal,
        disable=not terminal.is_terminal,
        transient=True,
    ) as progress:
        task = progress.add_task(name, total=images, rate="")

        def advance(done: int) -> None:
            speed = progress.tasks[0].speed
            progress.update(task, advance=done, rate=f"{speed:.0f} images/s" if speed else "")

        yield advance


def check_same_classes(first: DetectionDataset, second: DetectionDataset) -> None:
    """Check that labels mean the same in both tables: the same names in the same order.

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
        f"To use both, {class_list_advice(first, second)}"
    )


# ------------------------------------------------------------------------------------------------ files to be scored


def read_ground_truth(
    path: str | Path,
    *,
    format: TruthFormat = "auto",
    pixels: Pixels | None = None,
    splits: Sequence[str] = (),
    names: Path | None = None,
    images: Path | None = None,
) -> FileTruth:
    """Read boxes to score against; no image is opened, unless fractions have to be turned into pixels.

    What the reference evaluators score, retina scores: boxes are taken as they are.

    Args:
        path: a COCO JSON file; a Pascal VOC folder; a retina configuration (`.yaml`) or run folder; data in any other
            layout, of which its reader's table is the truth; or a folder of text files, one for each image. "auto"
            tells all but the text files apart.
        format: text files hold lines `class x y w h` ("xywh"), `class x1 y1 x2 y2` ("xyxy") or, as fractions of the
            image's sides, `class cx cy w h` ("yolo").
        pixels: what the numbers mean, see `retina.data.detections.to_continuous`. None is "inclusive" for a VOC folder
            and "continuous" for the others.
        splits: of a VOC folder (its only one by default), the one of other data, or of a configuration ("validation" by
            default).
        names: a file of class names, one a line, for text files whose class is an index.
        images: the folder of images for text files; an image without text file then has no boxes.

    Raises:
        RetinaError: names the file and the place in it that is missing or malformed, or a setting without effect.
    """
    path = Path(path)
    kind = truth_format(path, format)
    of_text = kind in text.TRUTH_LAYOUTS
    for option, given, used in (
        ("--splits", bool(splits), kind in ("voc", "config", "data")),
        ("--names", names is not None, of_text),
        ("--images", images is not None, of_text),
        ("--gt-pixels", pixels is not None, kind not in ("config", "data")),
    ):
        if given and not used:
            raise RetinaError(f"{path}: {option} has no effect on ground truth of format '{kind}'; leave it out")
    if kind == "config":
        return _truth_of_config(path, tuple(splits))
    if kind == "data":
        return _truth_of_data(path, tuple(splits))
    if kind == "voc":
        return voc_truth(path, tuple(splits), pixels or "inclusive")
    if of_text:
        return text.text_truth(path, kind, pixels or "continuous", names, images)
    return coco_truth(path, pixels or "continuous")


def truth_format(path: Path, format: TruthFormat) -> str:
    """Return the format of ground truth, "auto" resolved by looking at `path`.

    Raises:
        RetinaError: there is nothing, or a folder of text files, whose numbers could mean several things.
    """
    if format not in get_args(TruthFormat):
        raise RetinaError(
            f"ground truth: expected one of the formats {', '.join(get_args(TruthFormat))}, got {format!r}"
        )
    if format != "auto":
        return format
    if not exists(path):
        raise RetinaError(f"{path}: no such ground truth; expected a COCO JSON file, a folder or a configuration")
    if (path.is_file() and path.suffix.lower() not in _OF_DATA) or path.is_fifo():
        return "coco"
    if not (path.is_file() or path.is_dir()):
        raise RetinaError(f"{path}: expected a COCO JSON file or a folder, got a device or a socket")
    if any((path / inside).is_dir() for inside in ("Annotations", "VOCdevkit")) or any(path.glob("VOC*/Annotations")):
        return "voc"
    try:
        return "config" if look(str(path)).config is not None else "data"
    except RetinaError as error:
        if path.is_dir() and text.text_files(path):
            raise RetinaError(
                f"{path}: a folder of text files does not tell what its numbers mean; say it with --gt-format: "
                f"{', '.join(text.TRUTH_LAYOUTS)}"
            ) from None
        instead = "give the file of one, or a configuration that names one, as ground truth"
        raise RetinaError(str(error).replace(PICK, instead).replace("--format ", "")) from None


def _truth_of_data(path: Path, splits: tuple[str, ...]) -> FileTruth:
    sources = look(str(path)).splits
    chosen = splits or tuple(sources)
    if len(chosen) != 1 or chosen[0] not in sources:
        raise RetinaError(f"{path}: --splits: expected one of {', '.join(sources)}, got {', '.join(splits) or 'none'}")
    source = sources[chosen[0]]
    return read_split(config.Data(train=source, validation=source, invalid_boxes="drop"), "train").truth


def _truth_of_config(path: Path, splits: tuple[str, ...]) -> FileTruth:
    if len(splits) > 1 or set(splits) - set(get_args(Split)):
        raise RetinaError(f"{path}: --splits: expected one of train, validation and test, got {', '.join(splits)}")
    file = path / "config.yaml" if path.is_dir() else path
    return read_split(config.load(file).data, cast(Split, splits[0] if splits else "validation")).truth


def read_results(
    path: str | Path,
    truth: GroundTruth,
    *,
    format: ResultFormat = "auto",
    pixels: Pixels = "continuous",
    names: Path | None = None,
    images: Path | None = None,
    strict: bool = True,
) -> Results:
    """Read the detections of a file or folder, scores in float64; none at all is fine.

    Args:
        path: a COCO results file (see `retina.data.formats.coco.coco_results`), or a folder of text files named like
            the images. "auto" takes a file for COCO's.
        format: lines of text files: `class score x y w h` ("xywh"), `class score x1 y1 x2 y2` ("xyxy"), and in
            fractions of the image's sides `class score cx cy w h` ("yolo") or `class cx cy w h score` ("ultralytics").
            "voc" are the devkit's files, one a class (`comp4_det_test_car.txt`, `car.txt`): `image score x1 y1 x2 y2`.
        pixels: what the numbers mean, see `retina.data.detections.to_continuous`.
        names: a file of class names, one a line, for text files whose class is an index; without it, indices count the
            ground truth's classes.
        images: the folder of images, where fractions need sizes that the ground truth does not know.
        strict: whether a detection of a class that the ground truth does not have, or of an image outside it, is
            refused; else it is left out, as pycocotools leaves out such classes. Where none is left, it is refused.

    Raises:
        RetinaError: names the file and the entry or line that is malformed or does not fit the ground truth.
    """
    path = Path(path)
    kind = result_format(path, format)
    for option, given, used in (
        ("--names", names is not None, kind not in ("coco", "voc")),
        ("--images", images is not None, kind in text.FRACTIONS),
    ):
        if given and not used:
            raise RetinaError(f"{path}: {option} has no effect on detections of format '{kind}'; leave it out")
    if kind == "coco":
        return coco_results(path, truth, pixels, strict=strict)
    if kind == "voc":
        return devkit_results(path, truth, pixels, strict=strict)
    return text.text_results(path, truth, kind, pixels, names, images, strict=strict)


def result_format(path: Path, format: ResultFormat) -> str:
    """Return the format of detections, "auto" resolved by looking at `path`.

    Raises:
        RetinaError: there is nothing, or a folder of text files, whose numbers could mean several things.
    """
    if format not in get_args(ResultFormat):
        raise RetinaError(
            f"detections: expected one of the formats {', '.join(get_args(ResultFormat))}, got {format!r}"
        )
    if format != "auto":
        return format
    if not exists(path):
        raise RetinaError(f"{path}: no such detections; expected a COCO results file or a folder of text files")
    if path.is_file() or path.is_fifo():
        return "coco"
    if not path.is_dir():
        raise RetinaError(f"{path}: expected a COCO results file or a folder of text files, got a device or a socket")
    raise RetinaError(
        f"{path}: a folder of text files does not tell what its numbers mean; say it with --dt-format: "
        f"{', '.join(text.RESULT_LAYOUTS)}"
    )
