"""Pascal VOC XML (Everingham et al., The PASCAL VOC Challenge, IJCV 2010) to `DetectionDataset`.

Box convention: VOC counts pixels from 1 and includes the last one, so a box `xmin, ymin, xmax, ymax` covers
`[xmin - 1, ymin - 1, xmax, ymax]` in the continuous coordinates used inside (as in detectron2). Whether a box has a
positive size is judged on the numbers of the file. Tools that count from 0 write xmin = 0, which becomes 0, not -1.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from retina.data.dataset import DetectionDataset, InvalidBoxes, RawObjects, build, first_repeated, suggest
from retina.data.image_files import missing_images
from retina.errors import RetinaError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_EXTENSIONS = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
_SPLIT = re.compile(r"(?:(?P<year>\w+)/)?(?P<name>[\w\-.]+)")
_LISTED = 20


class _Annotation(NamedTuple):
    file: Path
    size: tuple[int, int]  # height, width
    names: list[str]
    corners: list[list[float]]
    difficult: list[bool]


class VocObjects(NamedTuple):
    """M objects in N images as their files give them.

    `names` [K] in label order; `stems` [N]; `sizes` [N,2] (height, width); `image` [M] rows of `stems`; `corners` [M,4]
    float64 xmin, ymin, xmax, ymax; `labels` [M]; `difficult` [M].
    """

    name: str
    names: tuple[str, ...]
    stems: tuple[str, ...]
    sizes: np.ndarray
    image: np.ndarray
    corners: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray


def read_voc(
    folder: Path,
    splits: tuple[str, ...],
    *,
    classes: tuple[str, ...] | None = None,
    invalid_boxes: InvalidBoxes = "error",
    difficult: Literal["ignore", "use", "drop"] = "ignore",
    keep_missing: bool = False,
) -> DetectionDataset:
    """Reads splits of `ImageSets/Main`, concatenated in order; the images themselves are not opened.

    Args:
        folder: holds `Annotations`, `ImageSets` and `JPEGImages` (splits such as "train"), or year folders like
            `VOC2007` with these, directly or in `VOCdevkit` (splits such as "2007/trainval").
        classes: the class names in label order. None takes the sorted names of all annotations of the year folders in
            use, so that every split gives the same list. Category ids are 1..K in the order of the sorted names.
        difficult: "ignore" flags difficult objects, "use" takes them like any other, "drop" leaves them out.
        keep_missing: an image whose file is missing stays, to be left out by who decodes it.

    Raises:
        RetinaError: a split, annotation or image is missing, an annotation is malformed or declares a DTD or entities,
            a class is not in `classes`, or a box is invalid and `invalid_boxes` is "error".
    """
    name = f"{folder} ({', '.join(splits)})"
    listed = _list_images(name, folder, splits)
    stems = [stem for _, stem in listed]
    homes = list(dict.fromkeys(home for home, _ in listed))
    images = {home: _files(home / "JPEGImages") for home in homes}
    found = [_image(home, stem, images[home]) for home, stem in listed]
    expected = [str(home / "JPEGImages" / f"{stem}{_EXTENSIONS[0]}") for home, stem in listed]
    lacking = [index for index, path in enumerate(found) if path is None]
    if lacking and not keep_missing:
        first = expected[lacking[0]].removesuffix(_EXTENSIONS[0])
        raise missing_images(first, f".jpg, .jpeg or .png; listed in {name}", len(lacking), len(found))
    paths = [path or guessed for path, guessed in zip(found, expected, strict=True)]
    annotations = [_parse(home / "Annotations" / f"{stem}.xml") for home, stem in listed]
    if classes is None:
        names = _class_names(name, homes, annotations)
    else:
        names = list(classes)
        _check_names(annotations, names)
    return _table(name, names, stems, paths, annotations, invalid_boxes, difficult)


def read_voc_objects(folder: Path, splits: tuple[str, ...]) -> VocObjects:
    """Every object of the splits with the numbers of its file, whatever they are: nothing is cut, dropped or opened.

    Args:
        splits: as in `read_voc`; none takes the folder's only split or, in a folder without any, all of `Annotations`.

    Raises:
        RetinaError: a split or annotation is missing or malformed, or there are several splits to choose from.
    """
    name = f"{folder} ({', '.join(splits)})" if splits else str(folder)
    if splits or not (known := split_names(folder)):
        listed = _list_images(name, folder, splits) if splits else _all_annotations(folder)
    elif len(known) == 1:
        listed = _list_images(name, folder, (known[0],))
    else:
        raise RetinaError(f"{folder}: it has several splits; choose with --splits, {_existing(folder)}")
    annotations = [_parse(home / "Annotations" / f"{stem}.xml") for home, stem in listed]
    names = _class_names(name, list(dict.fromkeys(home for home, _ in listed)), annotations)
    label_of = {class_name: label for label, class_name in enumerate(names)}
    corners = np.array([row for a in annotations for row in a.corners], np.float64).reshape(-1, 4)
    image = np.repeat(np.arange(len(annotations)), [len(a.names) for a in annotations])
    infinite = ~np.isfinite(corners).all(axis=1)
    if infinite.any():
        row = int(np.argmax(infinite))
        file, number = annotations[image[row]].file, row - int(np.searchsorted(image, image[row]))
        raise RetinaError(f"{file}: object {number}: <bndbox> must hold finite numbers, got {corners[row].tolist()}")
    return VocObjects(
        name,
        tuple(names),
        tuple(stem for _, stem in listed),
        np.array([a.size for a in annotations], np.float64).reshape(-1, 2),
        image,
        corners,
        np.array([label_of[class_name] for a in annotations for class_name in a.names], np.int64),
        np.array([flag for a in annotations for flag in a.difficult], np.bool_),
    )


def _list_images(name: str, folder: Path, splits: tuple[str, ...]) -> list[tuple[Path, str]]:
    """(home, stem) of each image in the splits, home being the folder that holds `Annotations`."""
    listed: list[tuple[Path, str]] = []
    for split in splits:
        home, file = _locate(folder, split)
        listed += [(home, stem) for stem in _stems(file)]
    again = first_repeated([stem for _, stem in listed])
    if again is not None:
        raise RetinaError(f"{name}: image {again[1]} is listed twice; each image may stand in one of the splits once")
    return listed


def _all_annotations(folder: Path) -> list[tuple[Path, str]]:
    listed = [(folder, file.stem) for file in sorted((folder / "Annotations").glob("*.xml"))]
    if not listed:
        raise RetinaError(
            f"{folder}: expected a Pascal VOC folder, got neither ImageSets/Main/*.txt nor Annotations/*.xml"
        )
    return listed


def _class_names(name: str, homes: Sequence[Path], annotations: Sequence[_Annotation]) -> list[str]:
    names = _all_names(homes, annotations)
    if not names:
        raise RetinaError(f"{name}: no annotation has an object, so there are no class names; set data.classes")
    return names


def _table(
    name: str,
    names: list[str],
    stems: list[str],
    paths: list[str],
    annotations: list[_Annotation],
    invalid_boxes: InvalidBoxes,
    difficult: str,
) -> DetectionDataset:
    flags = np.array([flag for a in annotations for flag in a.difficult], np.bool_)
    number = np.array([i for a in annotations for i in range(len(a.names))], np.int64)
    image = np.repeat(np.arange(len(annotations)), [len(a.names) for a in annotations])
    label_of = {class_name: label for label, class_name in enumerate(names)}
    labels = np.array([label_of[class_name] for a in annotations for class_name in a.names], np.int32)
    given = np.array([corners for a in annotations for corners in a.corners], np.float64).reshape(-1, 4)
    notes: tuple[str, ...] = ()
    if difficult == "drop" and flags.any():
        notes = (f"{name}: {flags.sum()} of {len(flags)} objects are difficult: dropped (data.difficult: drop)",)
        image, number, labels, given = image[~flags], number[~flags], labels[~flags], given[~flags]
        flags = flags[~flags]
    raw = RawObjects(
        image=image,
        boxes=given - np.array([1.0, 1.0, 0.0, 0.0]),
        given=given,
        extent=given[:, 2:] - given[:, :2],
        labels=labels,
        crowd=np.zeros(len(image), np.bool_),
        difficult=flags & (difficult == "ignore"),
        areas=np.full(len(image), np.nan),
    )
    return build(
        name,
        # By name, whatever the order of the labels: then two readers of one folder give a class the same id.
        {class_name: sorted(names).index(class_name) + 1 for class_name in names},
        stems,
        paths,
        np.array([a.size for a in annotations], np.int32),
        raw,
        invalid_boxes=invalid_boxes,
        describe=lambda row: f"{annotations[image[row]].file.name} object {number[row]}",
        notes=notes,
    )


def _locate(folder: Path, split: str) -> tuple[Path, Path]:
    """The folder that holds `Annotations`, and the split's file."""
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
    missing = homes[0] / "ImageSets" / "Main" / f"{name}.txt"
    raise RetinaError(f"{missing}: no such split file (split '{split}'); {_existing(folder)}")


def split_names(folder: Path) -> list[str]:
    found = [file.stem for file in sorted(folder.glob("ImageSets/Main/*.txt"))]
    for pattern in ("VOC*/ImageSets/Main/*.txt", "VOCdevkit/VOC*/ImageSets/Main/*.txt"):
        found += [f"{file.parents[2].name.removeprefix('VOC')}/{file.stem}" for file in sorted(folder.glob(pattern))]
    # Of the devkit's 80 files, those of single classes (aeroplane_train) would bury the few that are meant.
    return [name for name in found if "_" not in name] or found


def _existing(folder: Path) -> str:
    plain = split_names(folder)
    if not plain:
        return f"there is no ImageSets/Main/*.txt in {folder} or in year folders (VOC2007) in it"
    return "splits that exist: " + ", ".join(plain[:_LISTED]) + (", ..." if len(plain) > _LISTED else "")


def _stems(file: Path) -> list[str]:
    """The first column: a second one, in the devkit's files of single classes, says whether the class is present."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise RetinaError(f"{file}: cannot read this split file: {reason}") from None
    stems = []
    for number, line in enumerate(lines, start=1):
        columns = line.split()
        if not columns:
            continue
        if "/" in columns[0] or "\\" in columns[0] or "\0" in columns[0]:
            raise RetinaError(
                f"{file}: line {number}: expected the name of an image without folder, got {columns[0]!r}"
            )
        stems.append(columns[0])
    if not stems:
        raise RetinaError(f"{file}: this split file lists no image")
    return stems


def _files(folder: Path) -> frozenset[str]:
    if not folder.is_dir():
        raise RetinaError(f"{folder}: no such folder; a Pascal VOC folder holds Annotations, ImageSets and JPEGImages")
    return frozenset(entry.name for entry in os.scandir(folder) if entry.is_file())


def _image(home: Path, stem: str, files: frozenset[str]) -> str | None:
    # By the split's name: the <filename> of an annotation is often that of a file before it was renamed or converted.
    for extension in _EXTENSIONS:
        if stem + extension in files:
            return str(home / "JPEGImages" / (stem + extension))
    return None


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
    return _Annotation(file, (int(size[0]), int(size[1])), names, corners, difficult)


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
    text = (element.findtext(path) or "").strip()
    if not text:
        raise RetinaError(f"{file}: {where} has no <{path}>, or it is empty; add it")
    return text


def _number(file: Path, where: str, element: Element, path: str) -> float:
    text = _text(file, where, element, path)
    try:
        return float(text)
    except ValueError:
        raise RetinaError(f"{file}: {where}: <{path}> must be a number, got '{text}'") from None


def _flag(file: Path, where: str, element: Element) -> bool:
    text = (element.findtext("difficult") or "0").strip()
    if text not in ("0", "1"):
        raise RetinaError(f"{file}: {where}: <difficult> must be 0 or 1, got '{text}'")
    return text == "1"


def _all_names(homes: Sequence[Path], annotations: Sequence[_Annotation]) -> list[str]:
    """The sorted class names of every annotation in `homes`, of which `annotations` are already parsed."""
    names = {name for annotation in annotations for name in annotation.names}
    known = {annotation.file for annotation in annotations}
    for home in homes:
        for file in sorted((home / "Annotations").glob("*.xml")):
            if file not in known:
                found = _root(file).findall("object")
                names.update(_text(file, f"object {index}", element, "name") for index, element in enumerate(found))
    return sorted(names)


def _check_names(annotations: Sequence[_Annotation], classes: list[str]) -> None:
    valid = set(classes)
    for annotation in annotations:
        for index, name in enumerate(annotation.names):
            if name not in valid:
                hint = suggest(name, classes)
                raise RetinaError(f"{annotation.file}: object {index}: class '{name}' is not in data.classes; {hint}")
