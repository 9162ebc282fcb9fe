"""`retina convert`: reads a source, writes it in another format, and reads that again.

A conversion may be killed at any moment. What stands under its final name is whole, all else is done again, and what is
written depends on the source and the settings alone, so the outcome is the same byte for byte. With `--to tfds` it also
depends on the folder's name, which TFDS puts into the names of the shards and into `dataset_info.json`. While it is
unfinished its folder holds `.retina_convert.json`, with a fingerprint by which it is refused to go on from another
source.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from retina import config
from retina.data.convert.origin import Origin, find_source
from retina.data.convert.part import (
    HOLDS,
    Choice,
    Part,
    Spec,
    Target,
    Written,
    file_names,
    fitted,
    whole_corners,
    without,
)
from retina.data.convert.verify import differences, differing_texts, undecodable
from retina.data.dataset import DetectionDataset, InvalidBoxes
from retina.data.folders import split_of
from retina.data.formats import Format, coco, csv, label_studio, tfds, voc, yolo
from retina.data.headers import UPRIGHT
from retina.data.image_files import Header, read_header, upright_boxes
from retina.data.load import read_source
from retina.data.orientation import ROTATED, Policy
from retina.errors import RetinaError
from retina.files import write_text
from retina.output import count

REPORT = "conversion.json"
_STATE = ".retina_convert.json"
_SHARD = 256 * 2**20
_PLACES = ("train", "validation", "test")
_STEPS = 1000  # of the configuration that is printed, which needs a number

Progress = Callable[[str, int, int], None]
"""Called with the step ("headers", "writing", …), how many images of it are done, and how many there are."""


@dataclass(frozen=True)
class Conversion:
    """The outcome. `splits`: images and boxes written; `problems`: the faults that the check names; `damaged`: True if
    the source has images that can't be decoded, which `notes` name."""

    target: str
    folder: Path
    splits: dict[str, dict[str, int]]
    notes: tuple[str, ...]
    renamed: tuple[tuple[str, str], ...]  # (old, new) names of image files
    problems: tuple[str, ...]
    data: dict[str, Any]  # how a configuration reads it
    damaged: bool = False

    def configuration(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Return the start of a configuration that reads it, and the splits that have no place in it.

        Each split takes the place that its name says; the first of the others is trained on where none is called so.
        Without a split to train on it is only a part of a configuration.
        """
        places: dict[str, str] = {}
        for split in sorted(self.splits, key=lambda split: split_of(split) is None):
            places.setdefault(split_of(split) or "train", split)
        sections = {_key(place): self.data[_key(split)] for place, split in places.items()}
        others = {key: value for key, value in self.data.items() if key not in map(_key, self.splits)}
        ordered = {key: sections.get(key) for key in _PLACES if key in sections or key == "validation"}
        data = {"root": str(self.folder), **ordered, **others}
        left = tuple(split for split in self.splits if split not in places.values())
        return {"data": data, "schedule": {"kind": "cosine", "steps": _STEPS}}, left

    def to_json(self) -> dict[str, Any]:
        """Return the document of `--json`."""
        return {"folder": str(self.folder), **self.report()}

    def report(self) -> dict[str, Any]:
        """Return what `conversion.json` holds, the same wherever the folder lies."""
        return {
            "format": self.target,
            "splits": self.splits,
            "notes": list(self.notes),
            "renamed": [list(pair) for pair in self.renamed],
            "problems": list(self.problems),
            "data": self.data,
        }


def convert(
    source: str | Path,
    folder: str | Path,
    to: Written,
    *,
    splits: Sequence[str] = (),
    images: Path | None = None,
    data_dir: Path | None = None,
    format: Format | None = None,
    invalid_boxes: InvalidBoxes | None = None,
    orientation: Policy | None = None,
    crowd: Choice | None = None,
    difficult: Choice | None = None,
    upright: bool = False,
    link: bool = False,
    spec: Spec | None = None,
    file_format: tfds.FileFormat | None = None,
    shard_bytes: int | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Write a dataset in another format into a new folder, an image at a time, and check what was written.

    Args:
        source, splits, images, data_dir, format, invalid_boxes, orientation: see
            `retina.data.convert.origin.find_source`.
        folder: a new folder.
        to: the format to write: `coco`, `voc`, `yolo`, `csv` or `tfds`.
        crowd, difficult: what becomes of boxes that the format can't mark: "keep" as ordinary ones or "drop".
        upright: images with an EXIF rotation are turned, their boxes with them; JPEGs are encoded again, at quality 95.
        link: hard links in the place of copies.
        spec: TFDS: the features of its `coco` (default) or `voc` (default for sources that mark difficult boxes).
        file_format: TFDS: "tfrecord" (default) or "array_record".
        shard_bytes: TFDS: how many bytes of images a shard holds at most; 256 MiB by default.
        resume: goes on with a conversion that was cut off; without one, it starts.
        progress: called with the step, how many of its images are done, and how many there are.

    Returns:
        `splits`: images and boxes written; `problems`, which the check names; `notes`.

    Raises:
        RetinaError: the source is not there, malformed or has invalid boxes; the format can't hold something and there
            is no choice that says what to do; a setting has no effect; or the folder is not empty.

    Example:

    >>> retina.convert("pets", "pets_coco", "coco").splits["train"]
    {'images': 3, 'boxes': 3}
    """
    home = Path(folder)
    if to not in get_args(Written):
        raise RetinaError(f"to: expected one of {', '.join(get_args(Written))}, which are read again, got '{to}'")
    _refuse_idle(to, link, spec, file_format, shard_bytes)
    _refuse_full(home, resume)  # before anything takes time
    origin = find_source(
        str(source),
        splits=splits,
        images=images,
        data_dir=data_dir,
        invalid_boxes=invalid_boxes,
        orientation=orientation,
        format=format,
    )
    called = yolo.called(origin.splits) if to == "yolo" else {}
    tables = {called.get(name, name): _read(origin, section) for name, section in origin.splits.items()}
    _refuse_different_classes(tables)
    spec = spec or ("voc" if origin.format == "voc" or any(t.difficult.any() for t in tables.values()) else "coco")
    return write_tables(
        tables,
        home,
        to,
        crowd=crowd,
        difficult=difficult,
        upright=upright,
        link=link,
        options=tfds.Options(spec, file_format or "tfrecord", shard_bytes or _SHARD),
        resume=resume,
        progress=progress,
        depth=origin.data.depth,
    )


def write_tables(
    tables: dict[str, DetectionDataset],
    home: Path,
    to: Target,
    *,
    crowd: Choice | None = None,
    difficult: Choice | None = None,
    upright: bool = False,
    link: bool = False,
    options: tfds.Options | None = None,
    resume: bool = False,
    untouched: bool = False,
    progress: Progress | None = None,
    depth: config.Depth | None = None,
    scores: dict[str, np.ndarray] | None = None,
) -> Conversion:
    """Write tables by their splits into a new folder, and check what was written; the arguments are those of `convert`.

    Args:
        options: of TFDS.
        untouched: whether a finished folder into which the same was written stays as it is.
        depth: how the images are read.
        scores: [M] of the boxes of each split, which Label Studio shows.

    Raises:
        RetinaError: as `convert`, of the target.
    """
    report = progress or (lambda step, done, total: None)
    holds = f"tfds-{options.spec}" if to == "tfds" and options else to
    parts, notes, renamed = _plan(tables, holds, crowd, difficult, upright, report)
    if scores is not None and to == "label-studio":  # which holds every box, so that scores stay beside theirs
        parts = [replace(part, scores=scores[part.split]) for part in parts]
    notes += tfds.check(parts, options) if to == "tfds" and options else _MODULES[to].check(parts)
    settings = [to, sorted(tables), upright, link, *(options if to == "tfds" and options else ())]
    fingerprint = _fingerprint(parts, settings)
    counts = {part.split: {"images": len(part.table), "boxes": len(part.table.boxes)} for part in parts}
    if untouched and is_finished(home) and _known(home) == fingerprint:
        return Conversion(to, home, counts, (f"{home}: it was written before, and stays as it is",), renamed, (), {})
    _open(home, fingerprint, resume)
    _write(to, parts, home, options, link, report)
    problems, data = _verify(to, parts, home, report)
    if not upright and any(table.orientation for table in tables.values()):
        data["orientation"] = "stored"
    if depth is not None:  # the images are copied as they are
        data["depth"] = depth.model_dump(mode="json")
    damaged = _damaged(parts, report)
    notes += damaged
    done = Conversion(
        target=to,
        folder=home,
        splits=counts,
        notes=notes,
        renamed=renamed,
        problems=problems,
        data=data,
        damaged=bool(damaged),
    )
    if not problems:
        _close(home, done)
    return done


def is_finished(folder: Path) -> bool:
    """Return whether a folder holds a conversion that came to its end."""
    return (folder / REPORT).is_file() and not is_unfinished(folder)


def is_unfinished(folder: Path) -> bool:
    """Return whether a folder holds a conversion that was cut off."""
    return (folder / _STATE).is_file()


def _refuse_idle(to: Target, link: bool, *of_tfds: object) -> None:
    if to == "tfds" and link:
        raise RetinaError("--link has no effect on a TFDS dataset, whose shards hold the images; leave it out")
    options = ("--spec", "--file-format", "--shard-mib")
    given = [option for option, value in zip(options, of_tfds, strict=True) if value is not None]
    if given and to != "tfds":
        raise RetinaError(f"{given[0]} has no effect with --to {to}, only with --to tfds; leave it out")


def _read(origin: Origin, section: config.Source) -> DetectionDataset:
    try:
        return read_source(origin.data, section, "source")
    except RetinaError as error:  # there may be no configuration to set it in
        options = {"data.invalid_boxes: ": "--invalid-boxes ", "set data.orientation: ": "give --orientation "}
        text = functools.reduce(lambda text, old: text.replace(old, options[old]), options, str(error))
        raise RetinaError(text) from None


def _refuse_different_classes(tables: dict[str, DetectionDataset]) -> None:
    first = next(iter(tables.values()))
    for table in tables.values():
        if (table.class_names, table.category_ids) != (first.class_names, first.category_ids):
            raise RetinaError(
                f"{table.name} and {first.name}: expected the same classes in all splits, got "
                f"{list(table.class_names)} and {list(first.class_names)}; convert them one by one with --split, or "
                "name them in data.classes"
            )


# ---------------------------------------------------------------------------------------------------------- the plan


def _plan(
    tables: dict[str, DetectionDataset],
    holds: str,
    crowd: Choice | None,
    difficult: Choice | None,
    upright: bool,
    report: Progress,
) -> tuple[list[Part], tuple[str, ...], tuple[tuple[str, str], ...]]:
    """The parts to write, notes on them, and (old, new) of the images that get another name."""
    total = sum(map(len, tables.values()))
    notes: tuple[str, ...] = ()
    turned: dict[str, tuple[DetectionDataset, list[Header], np.ndarray]] = {}
    done = 0
    for split, table in tables.items():
        # What becomes of rotated images is told below.
        notes += tuple(note for note in table.notes if ROTATED not in note)
        headers = []
        for image, identifier in zip(table.images, table.image_ids, strict=True):
            name = image if isinstance(image, str) else f"{table.name}: image {identifier}"
            headers.append(read_header(image, name))
            if holds.startswith("tfds") and headers[-1].suffix == ".tif":
                raise RetinaError(
                    f"{name}: expected images that TensorFlow decodes, it is a TIFF; write it as PNG first"
                )
            done += 1
            report("headers", done, total)
        table, rotations, said = _upright(table, headers, upright)
        table, lost = fitted(whole_corners(table), HOLDS[holds], crowd, difficult)
        gone, why = _MODULES.get(holds, tfds).unheld(table)
        if gone.any():
            lost += (f"{table.name}: {int(gone.sum())} of {len(gone)} boxes left out: {why}",)
        turned[split] = without(table, gone), headers, rotations
        notes += said + lost
    renamed: tuple[tuple[str, str], ...] = ()
    parts = []
    # VOC keeps the images of all splits in one folder, the others each split's in its own.
    for group in [list(turned)] if holds == "voc" else [[split] for split in turned]:
        names, changed = file_names(
            [image for split in group for image in turned[split][0].images],
            [identifier for split in group for identifier in turned[split][0].image_ids],
            [header.suffix for split in group for header in turned[split][1]],
        )
        renamed += changed
        for split in group:
            table, headers, rotations = turned[split]
            mine, names = names[: len(table)], names[len(table) :]
            parts.append(Part(split, table, mine, tuple(header.suffix for header in headers), rotations))
    if renamed:
        old, new = renamed[0]
        notes += (f"{count(len(renamed), 'image')} renamed, such as {new} for {old}; {REPORT} lists them",)
    return parts, notes, renamed


def _upright(
    table: DetectionDataset, headers: Sequence[Header], upright: bool
) -> tuple[DetectionDataset, np.ndarray, tuple[str, ...]]:
    """The table in the pixels that will be written, the rotations to undo [N], and notes."""
    rotations = np.ones(len(table), np.int64)
    boxes, sizes = np.array(table.boxes), np.array(table.sizes)
    encoded_again = 0
    for row, (header, declared) in enumerate(zip(headers, table.sizes.tolist(), strict=True)):
        rotated = header.orientation != 1
        of_stored = table.turns[row] == UPRIGHT
        if tuple(declared) != (header.size if of_stored else header.upright):
            raise RetinaError(
                f"{table.name}: image {table.image_ids[row]}: expected {declared[1]}x{declared[0]} pixels (width x "
                f"height) as declared, the image has {header.size[1]}x{header.size[0]}; correct the declared size"
            )
        if not of_stored and not upright:
            raise RetinaError(
                f"{table.name}: image {table.image_ids[row]}: its boxes are those of the upright picture, "
                f"{declared[1]}x{declared[0]}, which EXIF makes of {header.size[1]}x{header.size[0]} pixels; write "
                "upright copies with --upright"
            )
        if not rotated or not upright:
            continue
        rotations[row] = header.orientation
        encoded_again += header.suffix == ".jpg"
        sizes[row] = header.upright
        if of_stored:
            rows = slice(table.offsets[row], table.offsets[row + 1])
            boxes[rows] = upright_boxes(boxes[rows], header.orientation, header.size)
    carried = sum(header.orientation != 1 for header in headers)
    if not carried:
        return table, rotations, ()
    if not upright:
        what = "copied as they are, boxes in their stored pixels; --upright turns both"
    else:
        what = f"turned upright, boxes with them; {encoded_again} of them JPEGs, encoded again at quality 95"
    note = f"{table.name}: {carried} of {len(table)} images {ROTATED}: {what}"
    return replace(table, boxes=boxes, sizes=sizes, orientations=None, orientation=""), rotations, (note,)


# ---------------------------------------------------------------------------------------------------- by the format


_MODULES: dict[str, Any] = {"coco": coco, "voc": voc, "yolo": yolo, "csv": csv, "label-studio": label_studio}


def _write(
    to: Target, parts: Sequence[Part], home: Path, options: tfds.Options | None, link: bool, report: Progress
) -> None:
    tick = _counter("writing", parts, report)
    try:
        for part in parts:
            if to == "tfds" and options:
                tfds.write(part, home, options, tick=tick)
            else:
                _MODULES[to].write(part, home, link=link, tick=tick)
        if to == "yolo":
            yolo.finish(parts, home)
        elif to == "tfds" and options:
            tfds.finish(parts, home, options)
    except OSError as error:
        raise RetinaError(
            f"{home}: it can't be written: {error.strerror or error}; make room, then go on with --resume"
        ) from None


def _counter(step: str, parts: Sequence[Part], report: Progress) -> Callable[..., None]:
    """Report the step's beginning, then at each call that so many images more, by default one, are done."""
    total, done = sum(len(part.table) for part in parts), 0

    def tick(images: int = 1) -> None:
        nonlocal done
        done += images
        report(step, done, total)

    tick(0)
    return tick


def _verify(to: Target, parts: Sequence[Part], home: Path, report: Progress) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The faults of the written files, and the section `data` by which they are read."""
    module = tfds if to == "tfds" else _MODULES[to]
    problems: list[str] = []
    tree: dict[str, Any] = {}
    if to == "label-studio":  # which reads it; it exports COCO and YOLO
        return (), {}
    tick = _counter("checking", parts, report)
    for part in parts:
        section = module.source(home, part.split, part.table.class_names)
        # Upright copies have no rotation left, others their boxes in stored pixels.
        # VOC's files tell only the classes that occur, which may be none.
        names = part.table.class_names if to == "voc" else None
        data = config.Data(train=section, validation=section, orientation="stored", classes=names)
        try:
            table = read_source(data, section, "written")
            faults = differences(part, table, module.tolerance(part.table), tick)
            if to == "voc":
                faults += differing_texts(voc.written_texts(part, home))
            elif to == "yolo":
                faults += differing_texts(yolo.written_texts(part, home))
        except RetinaError as error:
            faults = (str(error),)
        problems += [f"{part.split}: {fault}" for fault in faults]
        inside = module.source(Path("."), part.split, part.table.class_names)
        tree[_key(part.split)] = inside.model_dump(mode="json", exclude_none=True)
    return tuple(problems), tree


def _key(split: str) -> str:
    """The key of a split in a configuration."""
    return "validation" if split == "val" else split


def _damaged(parts: Sequence[Part], report: Progress) -> tuple[str, ...]:
    """Notes on images that can't be decoded: their copies are equal, and as bad as their sources."""
    notes: list[str] = []
    tick = _counter("decoding", parts, report)
    for part in parts:
        faults = undecodable(part, tick)
        if faults:
            shown = "; ".join(faults[:3])
            more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
            notes.append(
                f"{part.split}: {count(len(faults), 'image')} can't be decoded, copied unchanged: {shown}{more}"
            )
    return tuple(notes)


# --------------------------------------------------------------------------------------------------------- the folder


def _fingerprint(parts: Sequence[Part], settings: Sequence[object]) -> str:
    """A digest of everything that decides what is written, but for the pixels."""
    digest = hashlib.sha256(repr(settings).encode())
    for part in parts:
        table = part.table
        columns = (part.split, part.names, table.class_names, table.category_ids, table.image_ids)
        digest.update(repr(columns).encode("utf-8", "surrogatepass"))
        for column in (
            table.sizes,
            table.offsets,
            table.boxes,
            table.labels,
            table.crowd,
            table.difficult,
            table.areas,
        ):
            digest.update(column.tobytes())
        digest.update(part.rotations.tobytes())
        digest.update(b"" if part.scores is None else part.scores.tobytes())
    return digest.hexdigest()


def _open(home: Path, fingerprint: str, resume: bool) -> None:
    state = home / _STATE
    try:
        home.mkdir(parents=True, exist_ok=True)
        inside = _refuse_full(home, resume)
        if inside:
            known = _known(home)
            if known is None:
                raise RetinaError(
                    f"{home}: there is no conversion to go on with, it holds {inside[0]}; choose a new folder"
                )
            if known != fingerprint:
                raise RetinaError(
                    f"{home}: the conversion in it has another source or other settings; repeat its command, or choose "
                    "a new folder"
                )
        write_text(state, json.dumps({"fingerprint": fingerprint}) + "\n")
    except OSError as error:
        raise RetinaError(f"{home}: it can't be written: {error.strerror}; choose another folder") from None


def _refuse_full(home: Path, resume: bool) -> list[str]:
    """The names of what the folder holds, which without `resume` may only be nothing."""
    try:
        inside = sorted(entry.name for entry in home.iterdir() if not entry.name.startswith(".partial."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RetinaError(f"{home}: it can't be written: {error.strerror}; choose another folder") from None
    if inside and not resume:
        hint = "it was cut off: go on with --resume" if _STATE in inside else "choose a new folder"
        raise RetinaError(f"{home}: expected a new or empty folder, it holds {inside[0]}; {hint}")
    return inside


def _known(home: Path) -> str | None:
    """The fingerprint of an unfinished conversion, or of a finished one."""
    for name in (_STATE, REPORT):
        try:
            return str(json.loads((home / name).read_text(encoding="utf-8"))["fingerprint"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _close(home: Path, done: Conversion) -> None:
    known = _known(home)
    if hasattr(os, "sync"):
        os.sync()  # the images were not waited for one by one
    document = {"fingerprint": known, **done.report()}
    write_text(home / REPORT, json.dumps(document, indent=2) + "\n")
    (home / _STATE).unlink()
