"""Boxes in text files, one line a box: of YOLO's tools, of review_object_detection_metrics, and of VOC's devkit.

Ground truth and detections to score are read here; the devkit's files of a whole class by `retina.data.formats.voc`, a
data set of YOLO by `retina.data.formats.yolo`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from retina.data.dataset import suggest
from retina.data.detections import LARGEST, Pixels, beyond, short, to_continuous
from retina.data.ground_truth import (
    FileTruth,
    GroundTruth,
    Id,
    LeftOut,
    Results,
    labels_of_names,
    refuse_all_left_out,
    rows_of_stems,
)
from retina.data.image_files import image_files, image_size
from retina.errors import RetinaError

TruthLayout = Literal["xywh", "xyxy", "yolo"]
ResultLayout = Literal["xywh", "xyxy", "yolo", "ultralytics", "voc"]
FRACTIONS = ("yolo", "ultralytics")
TRUTH_LAYOUTS: tuple[str, ...] = get_args(TruthLayout)
RESULT_LAYOUTS: tuple[str, ...] = get_args(ResultLayout)

_BOX = {"xywh": "x y w h", "xyxy": "x1 y1 x2 y2", "yolo": "cx cy w h", "ultralytics": "cx cy w h", "voc": "x1 y1 x2 y2"}
# labelImg and others write the class names beside the labels, under this name.
CLASSES_FILE = "classes.txt"
# Fractions of an image may leave it a little; those that don't even come near are pixels.
_LARGEST_FRACTION = 2.0
_LEAST_WORDS = 4  # a box's numbers
# Python's float would also take 1_0 and digits of other scripts.
_PLAIN_NUMBERS = re.compile(r"[0-9eE+\-. ]*")
_INDEX = re.compile(r"[0-9]{1,9}")


class Lines(NamedTuple):
    """n lines of several files: the first `words` [n] and the `numbers` [n, c]; `file` [n] and `line` [n] (from 1)."""

    words: list[str]
    numbers: np.ndarray
    file: np.ndarray
    line: np.ndarray


def text_truth(folder: Path, layout: str, pixels: Pixels, names: Path | None, images: Path | None) -> FileTruth:
    """Read ground truth from a folder of text files, one for each image.

    Args:
        layout: one of `TRUTH_LAYOUTS`.
        names, images: see `retina.data.load.read_ground_truth`.

    Raises:
        RetinaError: names the file and line that is malformed, or the names or sizes that are missing.
    """
    files = text_files(folder)
    pictures = image_files(images) if images is not None else None
    if not files and pictures is None:
        raise RetinaError(f"{folder}: no .txt file in this folder; expected one for each image")
    stems = list(pictures) if pictures is not None else [file.stem for file in files]
    rows = {name: row for row, name in enumerate(stems)}
    for file in files:
        if file.stem not in rows:
            raise RetinaError(f"{file}: no image of this name in {images}; each text file belongs to an image")
    if names is None and names_classes(folder / CLASSES_FILE):
        names = folder / CLASSES_FILE
    listed = read_names(names) if names is not None else None
    expected = columns(layout, scored=False)
    lines = read_lines(files, expected, spaces=listed is not None)
    classes = listed if listed is not None else _sorted_classes(lines.words)
    if not classes:
        raise RetinaError(f"{folder}: no text file has a box, so there are no classes; give their names with --names")
    image = np.array([rows[file.stem] for file in files], np.int64)[lines.file]
    sizes = np.full((len(stems), 2), np.nan)
    if layout == "yolo":
        if pictures is None:
            raise RetinaError(f"{folder}: fractions need the images' sizes; give the folder of images with --images")
        sizes = np.array([image_size(picture) for picture in pictures.values()], np.float64)
    given = to_xywh(lines, lines.numbers, layout, files, sizes[image])
    boxes = to_continuous(given, pixels)
    label_of = {name: label for label, name in enumerate(classes)}
    return FileTruth(
        str(folder),
        tuple(classes),
        _ids(classes),
        tuple(stems),
        image,
        boxes,
        labels_of(lines, files, label_of, listed, expected),
        np.zeros(len(boxes), np.bool_),
        np.zeros(len(boxes), np.bool_),
        boxes[:, 2] * boxes[:, 3],
        stems=tuple(stems),
        sizes=sizes,
    )


def _sorted_classes(words: Sequence[str]) -> list[str]:
    """The distinct classes, indices as numbers: 2 before 10."""
    distinct = sorted(set(words))
    return sorted(distinct, key=int) if all(map(is_index, distinct)) else distinct


def _ids(classes: Sequence[str]) -> tuple[Id, ...]:
    """The indices that the files use: classes known by their number only keep it."""
    indices = all(is_index(name) and str(int(name)) == name for name in classes)
    return tuple(int(name) for name in classes) if indices else tuple(range(len(classes)))


def text_results(
    folder: Path,
    truth: GroundTruth,
    layout: str,
    pixels: Pixels,
    names: Path | None,
    images: Path | None,
    *,
    strict: bool = True,
) -> Results:
    """Read detections from a folder of text files named like the images.

    Args:
        layout: one of `RESULT_LAYOUTS` but "voc".
        names, images, strict: see `retina.data.load.read_results`.

    Raises:
        RetinaError: names the file and line that is malformed or does not fit the ground truth.
    """
    files = text_files(folder)
    rows = rows_of_stems(truth)
    for file in files if strict else ():
        if file.stem not in rows:
            example = f" (such as '{next(iter(rows))}')" if rows else ""
            raise RetinaError(
                f"{file}: expected a file named like one of the ground truth's {len(truth)} images{example}; "
                "give the ground truth that the detections were made on"
            )
    listed = read_names(names) if names is not None else None
    expected = columns(layout, scored=True)
    lines = read_lines(files, expected, spaces=True)
    image = np.array([rows.get(file.stem, -1) for file in files], np.int64)[lines.file]
    labels = labels_of(lines, files, labels_of_names(truth), listed, expected, strict=strict)
    unknown = {file.stem: 0 for file in files if file.stem not in rows}
    lines, (image, labels), left_out = judged(lines, image, labels, [files[i].stem for i in lines.file], lines.words)
    left_out = left_out._replace(images=unknown | dict(left_out.images))
    refuse_all_left_out(str(folder), left_out, len(image))
    place = 4 if layout == "ultralytics" else 0
    scores, boxes = lines.numbers[:, place], np.delete(lines.numbers, place, axis=1)
    sizes = _sizes(truth, image, images)[image] if layout in FRACTIONS else None
    given = to_xywh(lines, boxes, layout, files, sizes)
    return Results(str(folder), image, to_continuous(given, pixels), scores, labels, left_out)


def judged(
    lines: Lines, image: np.ndarray, labels: np.ndarray, images: Sequence[str], classes: Sequence[str]
) -> tuple[Lines, tuple[np.ndarray, np.ndarray], LeftOut]:
    """Return the lines that the ground truth can judge, their images and labels, and what the others are of.

    Args:
        image, labels: [n], -1 where the ground truth has none.
        images, classes: [n] what the lines call them.
    """
    known = (image >= 0) & (labels >= 0)
    of_images = Counter(name for name, row in zip(images, image.tolist(), strict=True) if row < 0)
    rows = zip(classes, image.tolist(), labels.tolist(), strict=True)
    of_classes = Counter(name for name, row, label in rows if row >= 0 and label < 0)
    words = [word for word, stays in zip(lines.words, known.tolist(), strict=True) if stays]
    chosen = Lines(words, lines.numbers[known], lines.file[known], lines.line[known])
    return chosen, (image[known], labels[known]), LeftOut(of_images, of_classes)


def _sizes(truth: GroundTruth, image: np.ndarray, folder: Path | None) -> np.ndarray:
    """[N, 2] (height, width) of the images that are asked for, NaN where nobody knows."""
    if folder is None:
        return truth.sizes if isinstance(truth, FileTruth) else np.full((len(truth), 2), np.nan)
    files, rows = image_files(folder), rows_of_stems(truth)
    asked = set(np.unique(image).tolist())
    sizes = np.full((len(truth), 2), np.nan)
    for name, row in rows.items():
        if row in asked and name in files:
            sizes[row] = image_size(files[name])
    return sizes


# ------------------------------------------------------------------------------------------------------ files and lines


def columns(layout: str, scored: bool) -> str:
    """Return the columns of a line in words, such as "class score x y w h"."""
    if layout == "voc":
        return f"image score {_BOX[layout]}"
    if not scored:
        return f"class {_BOX[layout]}"
    return f"class {_BOX[layout]} score" if layout == "ultralytics" else f"class score {_BOX[layout]}"


def text_files(folder: Path) -> list[Path]:
    """Return the `.txt` files of a folder by name, without `classes.txt`.

    Raises:
        RetinaError: the folder can't be read.
    """
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() == ".txt")
    except OSError as error:
        raise RetinaError(
            f"{folder}: cannot read this folder of text files: {error.strerror}; check the path"
        ) from None
    # macOS writes companions that begin with "._".
    return [file for file in files if not file.name.startswith("._") and not names_classes(file)]


def names_classes(file: Path) -> bool:
    """Return whether this is `classes.txt` with names, and not the boxes of an image called "classes".

    Raises:
        RetinaError: it can't be read.
    """
    if file.name != CLASSES_FILE or not file.is_file():
        return False
    words = next((line.split() for line in lines_of(read_text(file)) if line.strip()), [])
    return not (len(words) > _LEAST_WORDS and all(map(_is_finite, words[-_LEAST_WORDS:])))


def read_names(file: Path) -> list[str]:
    """Return the class names of a file, one a line, in the order of their indices.

    Raises:
        RetinaError: it can't be read, is empty, or a name stands in it twice.
    """
    names = [line.strip() for line in lines_of(read_text(file))]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise RetinaError(f"{file}: this file of class names is empty; expected one name a line")
    for number, name in enumerate(names, start=1):
        if not name or name in names[: number - 1]:
            what = f"{name!r} for the second time" if name else "an empty line"
            raise RetinaError(f"{file}: line {number}: expected a class name of its own, got {what}")
    return names


def read_lines(files: Sequence[Path], expected: str, *, spaces: bool) -> Lines:
    """Read every line of the files; empty lines are skipped.

    Args:
        expected: the columns in words; all but the first are numbers.
        spaces: whether the first column may hold spaces, as the class "traffic light" does.

    Raises:
        RetinaError: names the file and the line with a wrong number of columns or with something that is not a finite
            number; or a file can't be read or is not UTF-8 text.
    """
    count = len(expected.split()) - 1
    words: list[str] = []
    parts: list[np.ndarray] = []
    file: list[int] = []
    line: list[int] = []
    for index, path in enumerate(files):
        numbers: list[str] = []
        for position, text in enumerate(lines_of(read_text(path)), start=1):
            row = text.strip().rsplit(None, count)
            if not row:
                continue
            if len(row) != count + 1 or not (spaces or len(row[0].split()) == 1):
                raise RetinaError(
                    f"{path}: line {position}: expected {count + 1} columns ({expected}), "
                    f"got {len(text.split())}: {short(text.strip())}"
                )
            words.append(row[0])
            numbers += row[1:]
            file.append(index)
            line.append(position)
        parts.append(read_numbers(numbers, count, path, line[-(len(numbers) // count) :], expected))
    values = np.concatenate(parts) if parts else np.zeros((0, count))
    return Lines(words, values, np.array(file, np.int64), np.array(line, np.int64))


def labels_of(
    lines: Lines,
    files: Sequence[Path],
    classes: Mapping[str, int],
    names: Sequence[str] | None,
    expected: str,
    *,
    strict: bool = True,
) -> np.ndarray:
    """[n] labels of the lines' words: names of classes, or indices; -1 for other classes, if not `strict`.

    Args:
        classes: the label of each class name.
        names: what the indices count; None counts the classes themselves in the order of their labels, unless all of
            them are called by numbers: then a number is a name and nothing else. A word that is both a name and an
            index is a name.
        expected: the columns in words.
        strict: whether a word that is no class of `classes` is refused. A line with too many columns always is.

    Raises:
        RetinaError: names the file and line of the first word that is refused.
    """
    numbered = names is None and all(map(is_index, classes))
    counted = [] if numbered else list(classes) if names is None else list(names)
    known = {str(index): classes.get(name, -1) for index, name in enumerate(counted)} | dict(classes)
    labels = np.array([known.get(word, -1) for word in lines.words], np.int64)
    for row in np.flatnonzero(labels < 0).tolist():
        word = lines.words[row]
        if len(word.split()) > 1 and all(map(_is_finite, word.split()[1:])):
            count = len(word.split()) + lines.numbers.shape[1]
            refuse(lines, files, row, f"expected {len(expected.split())} columns ({expected}), got {count}")
        if not strict:
            continue
        if is_index(word) and int(word) < len(counted):
            refuse(lines, files, row, f"class {word} is '{counted[int(word)]}', which the ground truth does not have")
        refuse(
            lines,
            files,
            row,
            f"expected a class of the ground truth, got {short(word)}; {_hint(word, classes, counted)}",
        )
    return labels


def lines_of(content: str) -> list[str]:
    """Return the lines of a text without their ends. `str.splitlines` would also split at what a name may hold, such as
    U+2028 or U+0085."""
    return re.split(r"\r\n|\r|\n", content)


def is_index(word: str) -> bool:
    """Return whether a word of a file is an index of a class: plain digits."""
    return _INDEX.fullmatch(word) is not None


def _hint(word: str, classes: Mapping[str, int], counted: Sequence[str]) -> str:
    if not is_index(word):
        return suggest(word, list(classes))
    if counted:
        return f"an index from 0 to {len(counted) - 1}"
    return f"its classes are {', '.join(classes)}; if these are indices, give the names that they count with --names"


def to_xywh(
    lines: Lines, boxes: np.ndarray, layout: str, files: Sequence[Path], sizes: np.ndarray | None = None
) -> np.ndarray:
    """[n, 4] x, y, width, height in pixels, from the four numbers `boxes` [n, 4] of each line.

    Args:
        sizes: [n, 2] (height, width) of each line's image, for the layouts in FRACTIONS.

    Raises:
        RetinaError: names the file and line of a box with a negative side, of fractions that can't be any, or of an
            image whose size is not known.
    """
    if layout in ("xyxy", "voc"):
        out = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    elif layout == "xywh":
        out = boxes.copy()
    else:
        far = (np.abs(boxes) > _LARGEST_FRACTION).any(axis=1)
        if far.any():
            row = int(np.argmax(far))
            got = " ".join(f"{number:g}" for number in boxes[row])
            refuse(
                lines, files, row, f"expected cx cy w h as fractions of the image's sides, got {got}; are they pixels?"
            )
        assert sizes is not None
        unknown = np.isnan(sizes).any(axis=1)
        if unknown.any():
            what = "fractions need the size of the image, which the ground truth does not know; give --images"
            refuse(lines, files, int(np.argmax(unknown)), what)
        sides = np.tile(sizes[:, ::-1], 2)
        out = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], axis=1) * sides
    negative = (out[:, 2:] < 0).any(axis=1)
    if negative.any():
        row = int(np.argmax(negative))
        width, height = out[row, 2:]
        refuse(lines, files, row, f"expected a width and height of at least 0, got {width:g} and {height:g}; fix it")
    return out


def refuse(lines: Lines, files: Sequence[Path], row: int, what: str) -> None:
    """Raise the error of a row, with its file and line."""
    raise RetinaError(f"{files[lines.file[row]]}: line {lines.line[row]}: {what}")


def read_numbers(texts: list[str], count: int, path: Path, line: list[int], expected: str) -> np.ndarray:
    """[n, count] float64 from the texts of n rows, one after the other.

    Args:
        line: [n] where each row stands, from 1.
        expected: the columns of the file in words; the numbers are those from the second on.

    Raises:
        RetinaError: names the file, line and column of the first that is not a finite number.
    """
    try:
        values = np.array(list(map(float, texts)), np.float64).reshape(-1, count)
        if (np.abs(values) <= LARGEST).all() and _PLAIN_NUMBERS.fullmatch(" ".join(texts)):
            return values
    except ValueError:
        pass
    index = next(index for index, text in enumerate(texts) if not _is_finite(text))
    number, column = _number(texts[index]), expected.split()[1 + index % count]
    large = "" if number is None else beyond(number)
    raise RetinaError(
        f"{path}: line {line[index // count]}: {column}: expected a finite number, got {short(texts[index])}{large} "
        f"(columns: {expected}); fix or remove it"
    )


def _is_finite(text: str) -> bool:
    number = _number(text)
    return number is not None and abs(number) <= LARGEST


def _number(text: str) -> float | None:
    try:
        return float(text) if _PLAIN_NUMBERS.fullmatch(text) else None
    except ValueError:
        return None


def read_text(file: Path) -> str:
    """Read a whole text file.

    Raises:
        RetinaError: it can't be read, or is not UTF-8 text.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RetinaError(f"{file}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise RetinaError(f"{file}: cannot read this text file: {error.strerror}; check the path") from None
