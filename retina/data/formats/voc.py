"""Pascal VOC (Everingham et al., The PASCAL VOC Challenge, IJCV 2010): XML read and written, the devkit's results read.

A dataset is `Annotations/*.xml`, `ImageSets/Main/SPLIT.txt` and `JPEGImages/`. Without lists all images that have an
annotation are read, from the same folders (`annotations` and `images` are taken, too), from one folder of images and
annotations, as LabelImg writes them, or from such a folder for each split, as Roboflow writes them.

Box convention: VOC counts pixels from 1 and includes the last one, so a box `xmin, ymin, xmax, ymax` covers
`[xmin - 1, ymin - 1, xmax, ymax]` in the continuous coordinates used inside (as in detectron2). Whether a box has a
positive size is judged on the numbers of the file. Tools that count from 0 write xmin = 0, which becomes 0, not -1.
Corners are written with their fractions: xmin = x1 + 1, xmax = x2.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError, SubElement, indent, tostring

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from retina import config
from retina.data.convert.part import Part
from retina.data.dataset import (
    DetectionDataset,
    Difficult,
    RawObjects,
    Records,
    UnusedLabels,
    first_repeated,
    handle_difficult,
    note_unused,
    suggest,
    unused_labels,
)
from retina.data.detections import Pixels, short, to_continuous, to_xywh
from retina.data.folders import files, first_folder, labels_elsewhere, split_folders, subfolders
from retina.data.formats import text
from retina.data.ground_truth import (
    FileTruth,
    GroundTruth,
    Results,
    labels_of_names,
    refuse_all_left_out,
    rows_of_stems,
)
from retina.data.image_files import missing_images, place_image, placed, without_ending
from retina.errors import RetinaError
from retina.files import IMAGE_SUFFIXES, write_text

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_WRITTEN = (".jpg", ".jpeg", ".png")
_SPLIT = re.compile(r"(?:(?P<year>\w+)/)?(?P<name>[^/\\\0]+)")
# The devkit's lists of single classes: whether the class is there, or difficult.
_FLAGGED = re.compile(r"(?P<name>.*\S)\s+(?:-1|0|1)")
_DEVKIT_RESULT = re.compile(r"comp\d+_det_[^_]+_(?P<name>.+)")
_LISTED = 20
_ALL = "."
# Where annotations and images lie, if not all in one folder.
_ANNOTATIONS, _IMAGES = ("Annotations", "annotations", "labels"), ("JPEGImages", "images")
_OUTERMOST = re.compile(rb"<annotation[\s>]")

LAYOUTS = {
    "LabelImg: x.jpg with x.xml beside it": ("*.xml",),
    "Pascal VOC: Annotations/x.xml, JPEGImages/x.jpg (or annotations, images)": ("[Aa]nnotations/*.xml", "JPEGImages"),
    "Pascal VOC and CVAT: the same with the splits in ImageSets/Main/*.txt": ("ImageSets/Main/*.txt", "VOC*"),
    "Roboflow's Pascal VOC: x.jpg and x.xml in train, valid and test": ("train/*.xml", "valid/*.xml"),
}
"""The layouts of folders in words, each with patterns of what hints at it."""


class _Annotation(NamedTuple):
    file: Path
    image: str  # what <filename> says
    size: tuple[int, int]  # height, width
    names: list[str]
    corners: list[list[float]]
    difficult: list[bool]


def voc_records(
    folder: Path,
    splits: tuple[str, ...],
    *,
    classes: tuple[str, ...] | None = None,
    difficult: Difficult = "ignore",
    keep_missing: bool = False,
) -> Records:
    """Read splits, concatenated in order; the images themselves are not opened.

    Args:
        folder: holds `Annotations`, `ImageSets` and `JPEGImages` (splits such as "train"), or year folders like
            `VOC2007` with these, directly or in `VOCdevkit` (splits such as "2007/trainval"), or a folder for each
            split; the split "." are all its images that have an annotation.
        classes: the class names in label order. None takes the sorted names of all annotations of the year folders in
            use, so that every split gives the same list. Category ids are 1..K in the order of the sorted names.
        difficult: see `retina.data.dataset.handle_difficult`.
        keep_missing: an image whose file is missing stays, to be left out by who decodes it.

    Raises:
        RetinaError: a split, annotation or image is missing, an annotation is malformed or declares a DTD or entities,
            or a class is not in `classes`.
    """
    name = _name(folder, splits)
    listed = _list_images(name, folder, splits)
    homes = dict.fromkeys(entry.home for entry in listed)
    folders = {home: _image_folder(home) for home in homes}
    pictures = {home: _pictures(images) for home, images in folders.items()}
    if not keep_missing:
        _refuse_missing(name, listed, pictures)
    annotations = _parse_all(listed)
    paths = [
        str(folders[entry.home] / _picture(entry, annotation, pictures[entry.home].get(entry.stem, ())))
        for entry, annotation in zip(listed, annotations, strict=True)
    ]
    if classes is None:
        names = _class_names(name, folder, listed, annotations)
    else:
        names = list(classes)
        _check_names(annotations, names)
    raw, rows, notes = handle_difficult(name, _objects(annotations, names), difficult)
    unused, unannotated = _unclaimed(name, folder, listed, pictures)
    # Where each object stands in its file.
    number = np.array([i for annotation in annotations for i in range(len(annotation.names))], np.int64)[rows]
    return Records(
        name,
        # By name, whatever the order of the labels: then two readers of one folder give a class the same id.
        {class_name: sorted(names).index(class_name) + 1 for class_name in names},
        [entry.stem for entry in listed],
        paths,
        np.array([annotation.size for annotation in annotations], np.int32),
        raw,
        lambda row: f"{annotations[raw.image[row]].file.name} object {number[row]}",
        notes + unannotated,
        unused,
        open_classes=True,
    )


def voc_truth(folder: Path, splits: tuple[str, ...], pixels: Pixels) -> FileTruth:
    """Read ground truth: every object with the numbers of its file, whatever they are; images need not be there.

    Args:
        splits: as in `voc_records`; none takes the folder's only split or, in a folder without any, all annotations.

    Raises:
        RetinaError: a split or annotation is missing or malformed, or there are several splits to choose from.
    """
    name = _name(folder, splits)
    known = () if splits else tuple(_splits(folder))
    if len(known) > 1:
        raise RetinaError(f"{folder}: it has several splits; choose with --splits, {_existing(folder)}")
    listed = _list_images(name, folder, splits or known or (_ALL,))
    annotations = _parse_all(listed)
    names = _class_names(name, folder, listed, annotations)
    raw = _objects(annotations, names)
    infinite = ~np.isfinite(raw.given).all(axis=1)
    if infinite.any():
        row = int(np.argmax(infinite))
        file, number = annotations[raw.image[row]].file, row - int(np.searchsorted(raw.image, raw.image[row]))
        raise RetinaError(f"{file}: object {number}: <bndbox> must hold finite numbers, got {raw.given[row].tolist()}")
    boxes = to_continuous(to_xywh(raw.given), pixels)
    stems = tuple(entry.stem for entry in listed)
    return FileTruth(
        name,
        tuple(names),
        tuple(range(1, len(names) + 1)),
        stems,
        raw.image,
        boxes,
        raw.labels,
        raw.crowd,
        raw.difficult,
        boxes[:, 2] * boxes[:, 3],
        stems=stems,
        sizes=np.array([annotation.size for annotation in annotations], np.float64).reshape(-1, 2),
    )


def sections(folder: Path, images: Path | None = None) -> dict[str, config.Source]:
    """Return the splits of a folder of this format, none if it is no such folder.

    A folder without lists is one split, called as the folder is, or one for each folder in it that is called like one.
    """
    lists = split_lists(folder)
    if lists:
        return {name: config.VocSource(folder=folder, splits=(name,)) for name in lists}
    homes = _split_homes(folder)
    if homes:
        return {split: config.VocSource(folder=folder, splits=(home.name,)) for split, home in homes.items()}
    annotated = _annotated(folder) or any(map(_annotated, subfolders(folder)))
    return {folder.absolute().name: config.VocSource(folder=folder, splits=(_ALL,))} if annotated else {}


def _splits(folder: Path) -> list[str]:
    return [*split_lists(folder), *(home.name for home in _split_homes(folder).values())]


def _split_homes(folder: Path) -> dict[str, Path]:
    """The folders of a folder's splits, where there are no lists."""
    if split_lists(folder) or _annotated(folder):
        return {}
    return {split: home for split, home in split_folders(folder).items() if _annotated(home)}


def _annotated(home: Path) -> bool:
    """Whether a folder holds annotations, in itself or in a folder of annotations."""
    folder = _annotation_folder(home)
    here = files(folder, (".xml",))
    deeper = folder.rglob("[!.]*.xml") if folder != home else ()
    first = next(iter((*here[:1], *islice(deeper, 1))), None)
    return first is not None and _OUTERMOST.search(first.read_bytes()) is not None


def _annotation_folder(home: Path) -> Path:
    folders = (home / name for name in _ANNOTATIONS if (home / name).is_dir())
    return next((folder for folder in folders if folder.name == "Annotations" or any(folder.rglob("*.xml"))), home)


def _image_folder(home: Path) -> Path:
    """The folder of images; where none is there, the one that is expected."""
    inside = first_folder(home, _IMAGES)
    if inside is not None:
        return inside
    return home if _annotation_folder(home) == home or files(home) else home / _IMAGES[0]


def split_lists(folder: Path) -> list[str]:
    """Return the lists of images of a folder, but for those of single classes."""
    names = [file.stem for file in sorted(folder.glob("ImageSets/Main/*.txt"))]
    for pattern in ("VOC*/ImageSets/Main/*.txt", "VOCdevkit/VOC*/ImageSets/Main/*.txt"):
        names += [f"{file.parents[2].name.removeprefix('VOC')}/{file.stem}" for file in sorted(folder.glob(pattern))]
    # Of the devkit's 80 files, those of single classes (aeroplane_train) would bury the few that are meant.
    return [name for name in names if not _of_class(name, names)]


def _of_class(name: str, names: Sequence[str]) -> bool:
    """Whether a list is another one's part for a single class."""
    year, slash, short_name = name.rpartition("/")
    return "_" in short_name and f"{year}{slash}{short_name.rpartition('_')[2]}" in names


# ---------------------------------------------------------------------------------------------------------- reading


class _Listed(NamedTuple):
    """An image of a split: its name, the folder that holds `Annotations`, and its annotation there."""

    stem: str
    home: Path
    file: Path


def _name(folder: Path, splits: tuple[str, ...]) -> str:
    return str(folder) if splits in ((), (_ALL,)) else f"{folder} ({', '.join(splits)})"


def _list_images(name: str, folder: Path, splits: tuple[str, ...]) -> list[_Listed]:
    listed: list[_Listed] = []
    annotations: dict[Path, dict[str, Path]] = {}
    for split in splits:
        home, file = _locate(folder, split)
        if file is None:
            listed += _all_annotations(home)
            continue
        known = annotations.setdefault(home, _annotations(home))
        listed += [
            _Listed(stem, home, known.get(stem, home / "Annotations" / f"{stem}.xml")) for stem in _stems(file, known)
        ]
    again = first_repeated([entry.stem for entry in listed])
    if again is not None:
        raise RetinaError(f"{name}: image {again[1]} is listed twice; each image may stand in one of the splits once")
    return listed


def _all_annotations(folder: Path) -> list[_Listed]:
    listed = [_Listed(stem, folder, file) for stem, file in _annotations(folder).items()]
    if not listed:
        raise RetinaError(
            f"{folder}: expected a Pascal VOC folder, got neither ImageSets/Main/*.txt nor Annotations/*.xml nor *.xml"
        )
    return listed


def _annotations(home: Path) -> dict[str, Path]:
    """The annotations of a folder by their names, sorted; those in subfolders with these, as CVAT writes them."""
    folder = _annotation_folder(home)
    return {stem: folder / file for stem, file in sorted(_named_files(folder)) if file.lower().endswith(".xml")}


def _named_files(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield each file of a folder and its subfolders, by its path in it without ending and with it; but for the
    companions that macOS writes."""
    for parent, _, names in os.walk(folder):
        inside = os.path.relpath(parent, folder)
        for file in names:
            if not file.startswith("._"):
                path = file if inside == os.curdir else f"{inside}/{file}"
                yield os.path.splitext(path)[0], path


def _refuse_missing(name: str, listed: Sequence[_Listed], pictures: Mapping[Path, Mapping[str, list[str]]]) -> None:
    lacking = [entry for entry in listed if entry.stem not in pictures[entry.home]]
    if lacking:
        first = _image_folder(lacking[0].home) / lacking[0].stem
        endings = f"{', '.join(IMAGE_SUFFIXES[:-1])} or {IMAGE_SUFFIXES[-1]}"
        raise missing_images(first, f"{endings}; listed in {name}", len(lacking), len(listed))


def _picture(entry: _Listed, annotation: _Annotation, candidates: Sequence[str]) -> str:
    """The file of an image; of one that is missing, where it is expected.

    By the split's name: the <filename> of an annotation is often that of a file before it was renamed or converted. It
    decides where several files have this name.

    Raises:
        RetinaError: several files have the name, and the annotation says none of them.
    """
    chosen = [file for file in candidates if os.path.basename(file) == annotation.image]
    if len(candidates) > 1 and not chosen:
        raise RetinaError(
            f"{entry.file}: image {entry.stem} may be any of {', '.join(candidates)} in {_image_folder(entry.home)}; "
            "say which in its <filename>, or remove the others"
        )
    if len(candidates) > 1:
        return chosen[0]
    return candidates[0] if candidates else f"{entry.stem}.jpg"


def _unclaimed(
    name: str, folder: Path, listed: Sequence[_Listed], pictures: Mapping[Path, Mapping[str, list[str]]]
) -> tuple[UnusedLabels | None, tuple[str, ...]]:
    """The annotations called like images that have none, and notes on both, where all annotations are read: lists say
    what they leave out."""
    without: dict[Path, list[str]] = {}
    for home, images in pictures.items():
        annotated = {entry.stem for entry in listed if entry.home == home}
        left_out = sorted(set(images) - annotated)
        if left_out and not (home / "ImageSets").is_dir():
            without[home] = left_out
    notes = tuple(
        f"{home}: {len(left_out)} of {len(pictures[home])} images have no annotation and are left out, such as "
        f"{pictures[home][left_out[0]][0]}; one without objects needs an annotation without <object>"
        for home, left_out in without.items()
    )
    if not without:
        return None, ()
    unlabelled = [
        _image_folder(home) / file
        for home, left_out in without.items()
        for stem in left_out
        for file in pictures[home][stem]
    ]
    claimed = [entry.file for entry in listed]
    claimed += [file for home in _split_homes(folder).values() for file in _annotations(home).values()]
    elsewhere = labels_elsewhere(folder, unlabelled, claimed, ".xml", _OUTERMOST)
    sought = [str(_annotation_folder(home)) for home in without]
    unused = unused_labels(elsewhere, len(listed), sought, ".xml", "is left out")
    return unused, notes + ((note_unused(name, elsewhere, sought),) if elsewhere else ())


def _pictures(folder: Path) -> dict[str, list[str]]:
    """The image files of a folder and its subfolders by their names without ending."""
    if not folder.is_dir():
        raise RetinaError(f"{folder}: no such folder; a Pascal VOC folder holds its images in JPEGImages or images")
    by_stem: dict[str, list[str]] = {}
    for stem, file in sorted(_named_files(folder)):
        if file.lower().endswith(IMAGE_SUFFIXES) and os.path.isfile(folder / file):
            by_stem.setdefault(stem, []).append(file)
    return by_stem


def _class_names(name: str, folder: Path, listed: Sequence[_Listed], annotations: Sequence[_Annotation]) -> list[str]:
    names = _all_names([*(entry.home for entry in listed), *_split_homes(folder).values()], annotations)
    if not names:
        raise RetinaError(f"{name}: no annotation has an object, so there are no class names; set data.classes")
    return names


def _objects(annotations: Sequence[_Annotation], names: Sequence[str]) -> RawObjects:
    """The objects of all annotations, with difficult flags as they stand there."""
    label_of = {class_name: label for label, class_name in enumerate(names)}
    labels = [label_of[class_name] for annotation in annotations for class_name in annotation.names]
    corners = [corners for annotation in annotations for corners in annotation.corners]
    given = np.array(corners, np.float64).reshape(-1, 4)
    with np.errstate(invalid="ignore"):  # of infinite corners
        xywh = to_xywh(given)
    return RawObjects(
        image=np.repeat(np.arange(len(annotations)), [len(annotation.names) for annotation in annotations]),
        boxes=given - np.array([1.0, 1.0, 0.0, 0.0]),
        xywh=to_continuous(xywh, "inclusive"),
        given=given,
        extent=xywh[:, 2:],
        labels=np.array(labels, np.int32),
        crowd=np.zeros(len(given), np.bool_),
        difficult=np.array([flag for annotation in annotations for flag in annotation.difficult], np.bool_),
        areas=np.full(len(given), np.nan),
    )


def _locate(folder: Path, split: str) -> tuple[Path, Path | None]:
    """The folder that holds `Annotations`, and the split's file; None for a folder called like the split."""
    if not folder.is_dir():
        raise RetinaError(f"{folder}: no such folder; expected a Pascal VOC folder, check data.root and folder")
    match = _SPLIT.fullmatch(split)
    if match is None:
        raise RetinaError(f"{folder}: split '{split}': expected a name such as 'train' or '2007/trainval'")
    year, name = match["year"], match["name"]
    homes = [folder] if year is None else [folder / f"VOC{year}", folder / "VOCdevkit" / f"VOC{year}"]
    for home in homes:
        file = home / "ImageSets" / "Main" / f"{name}.txt"
        if file.is_file():
            return home, file
    if split == _ALL or folder / split in _split_homes(folder).values():
        return folder / split, None
    missing = homes[0] / "ImageSets" / "Main" / f"{name}.txt"
    raise RetinaError(f"{missing}: no such split file (split '{split}'); {_existing(folder)}")


def _existing(folder: Path) -> str:
    plain = _splits(folder)
    if not plain:
        return f"there is no ImageSets/Main/*.txt in {folder} or in year folders (VOC2007) in it"
    return "splits that exist: " + ", ".join(plain[:_LISTED]) + (", ..." if len(plain) > _LISTED else "")


def _stems(file: Path, annotations: Mapping[str, Path]) -> list[str]:
    """The images that a split file lists, by the names of their annotations."""
    try:
        lines = text.lines_of(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise RetinaError(f"{file}: cannot read this split file: {reason}") from None
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise RetinaError(f"{file}: this split file lists no image")
    flagged = all(_FLAGGED.fullmatch(line.strip()) for _, line in numbered)
    stems = []
    for number, line in numbered:
        path = line.replace("\\", "/").removeprefix("./").removeprefix("JPEGImages/")
        stem = _stem(f"{file}: line {number}", path, annotations, flagged)
        if stem not in annotations and ("/" in stem or "\0" in stem):
            raise RetinaError(
                f"{file}: line {number}: expected the name of an image without folder, or with that which it has in "
                f"Annotations, got {short(line.strip())}"
            )
        stems.append(stem)
    return stems


def _stem(where: str, line: str, annotations: Mapping[str, Path], flagged: bool) -> str:
    """The image that a line names: what has an annotation decides whether a last -1, 0 or 1 is a flag, as in the
    devkit's files of single classes, or belongs to the name, and whether an ending does.

    Args:
        flagged: whether every line of the file ends so.

    Raises:
        RetinaError: both an image with the number in its name and one without have an annotation.
    """
    whole, flag = line.strip(), _FLAGGED.fullmatch(line.strip())
    literal = next((name for name in (line, whole, without_ending(whole)) if name in annotations), None)
    if flag is None:
        return literal or whole
    short_name = flag["name"]
    plain = next((name for name in (short_name, without_ending(short_name)) if name in annotations), None)
    if plain is None or (literal is not None and not flagged):
        return literal or short_name
    if literal is not None:
        raise RetinaError(
            f"{where}: '{whole}' may be the image '{literal}' or the image '{plain}' with a flag, and both have an "
            "annotation; rename one of them, or list the names without flags"
        )
    return plain


def _parse_all(listed: Sequence[_Listed]) -> list[_Annotation]:
    return [_parse(entry.file) for entry in listed]


def _parse(file: Path) -> _Annotation:
    root = _root(file)
    size = [_number(file, "size", root, f"size/{side}") for side in ("height", "width")]
    for side, length in zip(("height", "width"), size, strict=True):
        if not (1 <= length < 2**31 and length == int(length)):
            raise RetinaError(f"{file}: size: {side} must be a positive whole number, got {length:g}; correct the size")
    objects = root.findall("object")
    names, corners, difficult = [], [], []
    for index, element in enumerate(objects):
        where = f"object {index}"
        names.append(_text(file, where, element, "name"))
        if element.find("bndbox") is None:
            raise RetinaError(f"{file}: {where} has no <bndbox>; add it, or remove the object")
        corners.append([_number(file, where, element, f"bndbox/{corner}") for corner in _CORNERS])
        difficult.append(_flag(file, where, element))
    image = (root.findtext("filename") or "").strip()
    return _Annotation(file, image, (int(size[0]), int(size[1])), names, corners, difficult)


def _root(file: Path) -> Element:
    try:
        root = fromstring(file.read_bytes(), forbid_dtd=True)
    except OSError as error:
        raise RetinaError(
            f"{file}: cannot read this annotation: {error.strerror}; each listed image needs one"
        ) from None
    except DefusedXmlException:
        raise RetinaError(f"{file}: it declares a DTD or entities, which is refused as unsafe; remove them") from None
    except (ParseError, ValueError, LookupError) as error:  # the latter two: unknown or broken encodings
        raise RetinaError(f"{file}: not valid XML: {error}") from None
    if root.tag != "annotation":
        raise RetinaError(f"{file}: expected <annotation> as the outermost element, got <{root.tag}>")
    return root


def _text(file: Path, where: str, element: Element, path: str) -> str:
    content = (element.findtext(path) or "").strip()
    if not content:
        raise RetinaError(f"{file}: {where} has no <{path}>, or it is empty; add it")
    return content


def _number(file: Path, where: str, element: Element, path: str) -> float:
    content = _text(file, where, element, path)
    try:
        return float(content)
    except ValueError:
        raise RetinaError(f"{file}: {where}: <{path}> must be a number, got {short(content)}") from None


def _flag(file: Path, where: str, element: Element) -> bool:
    content = (element.findtext("difficult") or "0").strip()
    if content not in ("0", "1"):
        raise RetinaError(f"{file}: {where}: <difficult> must be 0 or 1, got {short(content)}")
    return content == "1"


def _all_names(homes: Sequence[Path], annotations: Sequence[_Annotation]) -> list[str]:
    """The sorted class names of every annotation in `homes`, of which `annotations` are already parsed."""
    names = {name for annotation in annotations for name in annotation.names}
    known = {annotation.file for annotation in annotations}
    for home in dict.fromkeys(homes):
        for file in _annotations(home).values():
            if file not in known:
                objects = enumerate(_root(file).findall("object"))
                names.update(_text(file, f"object {index}", element, "name") for index, element in objects)
    return sorted(names)


def _check_names(annotations: Sequence[_Annotation], classes: list[str]) -> None:
    valid = set(classes)
    for annotation in annotations:
        for index, name in enumerate(annotation.names):
            if name not in valid:
                hint = suggest(name, classes)
                raise RetinaError(
                    f"{annotation.file}: object {index}: class {short(name)} is not in data.classes; {hint}"
                )


# ------------------------------------------------------------------------------------------------------------- results


def devkit_results(folder: Path, truth: GroundTruth, pixels: Pixels, *, strict: bool = True) -> Results:
    """Read the devkit's files of detections, one a class (`comp4_det_test_car.txt`): `image score x1 y1 x2 y2`.

    Args:
        strict: see `retina.data.load.read_results`.

    Raises:
        RetinaError: names the file and line that is malformed or does not fit the ground truth.
    """
    files = text.text_files(folder)
    classes, rows = labels_of_names(truth), rows_of_stems(truth)
    labels = [_class_of(file, classes, strict) for file in files]
    again = first_repeated([label if label >= 0 else f"{file}" for label, file in zip(labels, files, strict=True)])
    if again is not None:
        label = labels[again[0]]
        other = files[labels.index(label)]
        raise RetinaError(
            f"{files[again[0]]}: expected one file a class, got {other.name} of '{truth.class_names[label]}', too; "
            "remove one of them, or score each in a folder of its own"
        )
    of_file = np.array(labels, np.int64)
    expected = text.columns("voc", scored=True)
    lines = text.read_lines(files, expected, spaces=True)
    image = np.array([rows.get(word, -1) for word in lines.words], np.int64)
    if strict and (image < 0).any():
        row = int(np.argmax(image < 0))
        what = f"expected one of the ground truth's {len(truth)} images, got {short(lines.words[row])}"
        text.refuse(lines, files, row, f"{what}; give the ground truth that the detections were made on")
    called = [files[place].stem for place in lines.file]
    lines, (image, of_line), left_out = text.judged(lines, image, of_file[lines.file], lines.words, called)
    refuse_all_left_out(str(folder), left_out, len(image))
    boxes = text.to_xywh(lines, lines.numbers[:, 1:], "voc", files)
    return Results(str(folder), image, to_continuous(boxes, pixels), lines.numbers[:, 0], of_line, left_out)


def _class_of(file: Path, classes: Mapping[str, int], strict: bool) -> int:
    """`comp4_det_test_car.txt` or `car.txt`; of a "car" and a "race_car", the longer one that fits; -1 for none."""
    devkit = _DEVKIT_RESULT.fullmatch(file.stem)
    if devkit is not None and file.stem not in classes:
        fitting = [devkit["name"]] if devkit["name"] in classes else []
    else:
        fitting = [name for name in classes if file.stem == name or file.stem.endswith(f"_{name}")]
    if not fitting and not strict:
        return -1
    if not fitting:
        raise RetinaError(
            f"{file}: expected a name that ends in one of the ground truth's {len(classes)} classes, such as "
            f"comp4_det_test_{next(iter(classes))}.txt; rename or remove it"
        )
    return classes[max(fitting, key=len)]


# ------------------------------------------------------------------------------------------------------------- writing


def check(parts: Sequence[Part]) -> tuple[str, ...]:
    """Return notes on what is lost.

    Raises:
        RetinaError: an image is neither JPEG nor PNG, or XML can't hold the name of a class.
    """
    for part in parts:
        for name in part.names:
            if Path(name).suffix.lower() not in _WRITTEN:
                raise RetinaError(f"{part.table.name}: {name}: Pascal VOC holds JPEG and PNG images; use coco or yolo")
        for called in part.table.class_names:
            if called != called.strip() or any(ord(letter) < 32 or letter in "\ufffe\uffff" for letter in called):
                raise RetinaError(
                    f"{part.table.name}: class {called!r}: XML can't hold its blanks or control characters; rename it"
                )
    notes = ["Pascal VOC: truncated and pose are not known: written as 0 and Unspecified"]
    absent = set(parts[0].table.class_names) - {
        part.table.class_names[label] for part in parts for label in np.unique(part.table.labels)
    }
    if absent:
        notes.append(f"Pascal VOC has no list of classes: {len(absent)} without a box are lost: {sorted(absent)}")
    if any(isinstance(identifier, int) for part in parts for identifier in part.table.image_ids):
        notes.append("Pascal VOC: the names of the files take the place of image ids, 1 to K that of category ids")
    return tuple(notes)


def unheld(table: DetectionDataset) -> tuple[np.ndarray, str]:
    """[M] the boxes that can't be written, and why."""
    sides = table.boxes[:, 2:] - table.boxes[:, :2]
    return (sides - 1 < 1e-6).any(axis=1), "at most 1 pixel wide or high, which reads as xmin = xmax"


def write(part: Part, folder: Path, *, link: bool, tick: Callable[[], None]) -> None:
    """Write a split; files that are there already are taken for written."""
    homes = [folder / "JPEGImages", folder / "Annotations", folder / "ImageSets" / "Main"]
    for home in homes:
        home.mkdir(parents=True, exist_ok=True)
    images, annotations, lists = homes
    for row, (name, stem) in enumerate(zip(part.names, part.stems, strict=True)):
        rotated = part.rotations[row] != 1
        place_image(part.table.images[row], str(part.table.image_ids[row]), images / name, rotated=rotated, link=link)
        xml = annotations / f"{stem}.xml"
        if not xml.exists():
            with placed(xml) as temporary:
                temporary.write_text(annotation(part, row), encoding="utf-8")
        tick()
    write_text(lists / f"{part.split}.txt", "".join(f"{stem}\n" for stem in part.stems))


def source(folder: Path, split: str, names: Sequence[str]) -> config.VocSource:
    """Return the section of a configuration that reads the split."""
    return config.VocSource(folder=folder, splits=(split,))


def tolerance(table: DetectionDataset) -> np.ndarray:
    """[M] by how many pixels a corner may differ when it is read again: the digits of a float32 are written."""
    return 1e-6 + 2.0**-23 * np.abs(table.boxes).max(axis=1, initial=0)


def written_texts(part: Part, folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield each annotation that was written, and its text."""
    for row, stem in enumerate(part.stems):
        yield folder / "Annotations" / f"{stem}.xml", annotation(part, row)


def annotation(part: Part, row: int) -> str:
    """The XML text of one image."""
    table, (height, width) = part.table, part.table.sizes[row]
    root = Element("annotation")
    _add(root, "folder", "JPEGImages")
    _add(root, "filename", part.names[row])
    size = SubElement(root, "size")
    for key, value in (("width", width), ("height", height), ("depth", 3)):
        _add(size, key, str(value))
    _add(root, "segmented", "0")
    objects = table.objects(row)
    for box, label, difficult in zip(objects.boxes, objects.labels, objects.difficult, strict=True):
        element = SubElement(root, "object")
        _add(element, "name", table.class_names[label])
        _add(element, "pose", "Unspecified")
        _add(element, "truncated", "0")
        _add(element, "difficult", str(int(difficult)))
        corners = SubElement(element, "bndbox")
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box + np.array([1, 1, 0, 0]), strict=True):
            # The digits that tell a float32 from its neighbours, and none beyond.
            _add(corners, key, np.format_float_positional(np.float32(value), trim="-"))
    indent(root)
    return tostring(root, encoding="unicode") + "\n"


def _add(parent: Element, tag: str, content: str) -> None:
    SubElement(parent, tag).text = content
