"""Ground truth from other people's files, taken as they are: what the reference evaluators score, retina scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from retina import config
from retina.data.dataset import DetectionDataset
from retina.data.detections import Pixels, beyond, is_name, is_number, short, to_continuous
from retina.data.formats import text as text_boxes
from retina.data.formats.coco import entries, read_tree
from retina.data.formats.voc import read_voc_objects
from retina.data.ground_truth import GroundTruth, Id, ground_truth
from retina.data.image_files import image_files, image_size, stem
from retina.data.load import load_split
from retina.errors import RetinaError
from retina.files import exists

TruthFormat = Literal["auto", "coco", "voc", "config", "xywh", "xyxy", "yolo"]


@dataclass(frozen=True, eq=False)
class FileTruth(GroundTruth):
    """Ground truth that also knows its image files, by which text files and other tools name an image.

    Attributes:
        stems: [N] names of the image files, without folder and extension.
        sizes: [N, 2] float64 (height, width) in pixels, NaN where the source does not say.
    """

    stems: tuple[str, ...] = ()
    sizes: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))

    def __post_init__(self) -> None:
        super().__post_init__()
        assert len(self.stems) == len(self.sizes) == len(self.image_ids)


def read_ground_truth(
    path: str | Path,
    *,
    format: TruthFormat = "auto",
    pixels: Pixels | None = None,
    splits: Sequence[str] = (),
    names: Path | None = None,
    images: Path | None = None,
) -> FileTruth:
    """Boxes to score against; no image is opened, unless fractions have to be turned into pixels.

    Args:
        path: a COCO JSON file; a Pascal VOC folder; a retina configuration (`.yaml`) or run folder; or a folder of text
            files, one for each image. "auto" tells all but the text files apart.
        format: text files hold lines `class x y w h` ("xywh"), `class x1 y1 x2 y2` ("xyxy") or, as fractions of the
            image's sides, `class cx cy w h` ("yolo").
        pixels: what the numbers mean, see `retina.data.detections.to_continuous`. None is "inclusive" for a VOC folder
            and "continuous" for the others.
        splits: of a VOC folder (its only one by default), or the one of a configuration ("validation" by default).
        names: a file of class names, one a line, for text files whose class is an index.
        images: the folder of images for text files; an image without text file then has no boxes.

    Raises:
        RetinaError: names the file and the place in it that is missing or malformed, or a setting without effect.
    """
    path = Path(path)
    kind = truth_format(path, format)
    text = kind in text_boxes.TRUTH_LAYOUTS
    for option, given, used in (
        ("--splits", bool(splits), kind in ("voc", "config")),
        ("--names", names is not None, text),
        ("--images", images is not None, text),
        ("--gt-pixels", pixels is not None, kind != "config"),
    ):
        if given and not used:
            raise RetinaError(f"{path}: {option} has no effect on ground truth of format '{kind}'; leave it out")
    if kind == "config":
        return _from_config(path, tuple(splits))
    if kind == "voc":
        return _from_voc(path, tuple(splits), pixels or "inclusive")
    if text:
        return _from_text(path, kind, pixels or "continuous", names, images)
    return _from_coco(path, pixels or "continuous")


def truth_format(path: Path, format: TruthFormat) -> str:
    """The format of ground truth, "auto" resolved by looking at `path`.

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
    if path.suffix in (".yaml", ".yml") or exists(path / "config.yaml"):
        return "config"
    if path.is_file() or path.is_fifo():
        return "coco"
    if not path.is_dir():
        raise RetinaError(f"{path}: expected a COCO JSON file or a folder, got a device or a socket")
    if any((path / inside).is_dir() for inside in ("Annotations", "VOCdevkit")) or any(path.glob("VOC*/Annotations")):
        return "voc"
    if text_boxes.text_files(path):
        raise RetinaError(
            f"{path}: a folder of text files does not tell what its numbers mean; say it with --gt-format: "
            f"{', '.join(text_boxes.TRUTH_LAYOUTS)}"
        )
    raise RetinaError(f"{path}: expected a Pascal VOC folder (Annotations/*.xml) or text files; got neither")


def from_dataset(dataset: DetectionDataset) -> FileTruth:
    """A dataset as ground truth that knows its files."""
    truth = ground_truth(dataset)
    stems = tuple(
        stem(image) if isinstance(image, str) else str(identifier)
        for image, identifier in zip(dataset.images, dataset.image_ids, strict=True)
    )
    return FileTruth(**vars(truth), stems=stems, sizes=np.asarray(dataset.sizes, np.float64))


def _from_config(path: Path, splits: tuple[str, ...]) -> FileTruth:
    if len(splits) > 1 or set(splits) - {"train", "validation", "test"}:
        raise RetinaError(f"{path}: --splits: expected one of train, validation and test, got {', '.join(splits)}")
    file = path / "config.yaml" if path.is_dir() else path
    split: Any = splits[0] if splits else "validation"
    data = config.load(file).data
    # It reads the split's files with this very module.
    from retina.data.split_truth import split_truth

    dataset = load_split(data, split)
    known = from_dataset(dataset)
    return FileTruth(**vars(split_truth(data, split, dataset)), stems=known.stems, sizes=known.sizes)


def _from_voc(folder: Path, splits: tuple[str, ...], pixels: Pixels) -> FileTruth:
    objects = read_voc_objects(folder, splits)
    corners = objects.corners
    boxes = to_continuous(np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1), pixels)
    return FileTruth(
        objects.name,
        objects.names,
        tuple(range(1, len(objects.names) + 1)),
        objects.stems,
        objects.image,
        boxes,
        objects.labels,
        np.zeros(len(boxes), np.bool_),
        objects.difficult,
        boxes[:, 2] * boxes[:, 3],
        stems=objects.stems,
        sizes=objects.sizes,
    )


# ---------------------------------------------------------------------------------------------------- text files


def _from_text(folder: Path, layout: str, pixels: Pixels, names: Path | None, images: Path | None) -> FileTruth:
    files = text_boxes.text_files(folder)
    pictures = image_files(images) if images is not None else None
    if not files and pictures is None:
        raise RetinaError(f"{folder}: no .txt file in this folder; expected one for each image")
    stems = list(pictures) if pictures is not None else [file.stem for file in files]
    rows = {name: row for row, name in enumerate(stems)}
    for file in files:
        if file.stem not in rows:
            raise RetinaError(f"{file}: no image of this name in {images}; each text file belongs to an image")
    if names is None and (folder / text_boxes.CLASSES_FILE).is_file():
        names = folder / text_boxes.CLASSES_FILE
    listed = text_boxes.read_names(names) if names is not None else None
    expected = text_boxes.columns(layout, scored=False)
    lines = text_boxes.read_lines(files, expected, spaces=listed is not None)
    classes = listed if listed is not None else _sorted_words(lines.words)
    if not classes:
        raise RetinaError(f"{folder}: no text file has a box, so there are no classes; give their names with --names")
    image = np.array([rows[file.stem] for file in files], np.int64)[lines.file]
    sizes = np.full((len(stems), 2), np.nan)
    if layout == "yolo":
        if pictures is None:
            raise RetinaError(f"{folder}: fractions need the images' sizes; give the folder of images with --images")
        sizes = np.array([image_size(picture) for picture in pictures.values()], np.float64)
    given = text_boxes.to_xywh(lines, lines.numbers, layout, files, sizes[image])
    boxes = to_continuous(given, pixels)
    label_of = {name: label for label, name in enumerate(classes)}
    return FileTruth(
        str(folder),
        tuple(classes),
        _ids(classes),
        tuple(stems),
        image,
        boxes,
        text_boxes.labels_of(lines, files, label_of, listed, expected),
        np.zeros(len(boxes), np.bool_),
        np.zeros(len(boxes), np.bool_),
        boxes[:, 2] * boxes[:, 3],
        stems=tuple(stems),
        sizes=sizes,
    )


def _sorted_words(words: Sequence[str]) -> list[str]:
    """The distinct classes, indices as numbers: 2 before 10."""
    distinct = sorted(set(words))
    return sorted(distinct, key=int) if all(map(text_boxes.is_index, distinct)) else distinct


def _ids(classes: Sequence[str]) -> tuple[Id, ...]:
    """The indices that the files use: classes known by their number only keep it."""
    indices = all(text_boxes.is_index(name) and str(int(name)) == name for name in classes)
    return tuple(int(name) for name in classes) if indices else tuple(range(len(classes)))


# ---------------------------------------------------------------------------------------------------------- COCO


def _from_coco(path: Path, pixels: Pixels) -> FileTruth:
    """As pycocotools reads it: any box, ids of any kind, neither file names nor sizes needed; `ignore` has no effect.

    Where pycocotools would stop for want of an `area`, a box's own is taken. An annotation's own id is not read.
    """
    name = str(path)
    tree = read_tree(path, hint="check --ground-truth")
    pictures, annotations, categories = (entries(name, tree, key) for key in ("images", "annotations", "categories"))
    for key, rows_of in (("images", pictures), ("categories", categories)):
        if not rows_of:
            raise RetinaError(f"{name}: '{key}' is empty; ground truth needs at least one")
    # pycocotools keeps the last of several images with one id.
    by_id = {_id(name, "images", index, entry, "id"): entry for index, entry in enumerate(pictures)}
    rows = {identifier: row for row, identifier in enumerate(by_id)}
    names = _categories(name, categories)
    labels = {identifier: label for label, identifier in enumerate(names)}
    image, label = (
        _look_up(name, annotations, key, table, place)
        for key, table, place in (("image_id", rows, "images"), ("category_id", labels, "categories"))
    )
    given = _boxes(name, annotations)
    boxes = to_continuous(given, pixels)
    crowd = [entry.get("iscrowd", 0) for entry in annotations]
    _refuse(name, crowd, [not _is_flag(value) for value in crowd], "iscrowd", "0 or 1")
    return FileTruth(
        name,
        tuple(names.values()),
        tuple(names),
        tuple(by_id),
        image,
        boxes,
        label,
        np.array(crowd, np.bool_),
        np.zeros(len(boxes), np.bool_),
        _areas(name, annotations, boxes),
        stems=tuple(_stem(entry, identifier) for identifier, entry in by_id.items()),
        sizes=np.array([_size(entry) for entry in by_id.values()], np.float64),
    )


def _id(name: str, table: str, index: int, entry: dict[str, Any], key: str) -> Id:
    if key not in entry:
        raise RetinaError(f"{name}: {table}[{index}] has no '{key}'; add it")
    value = entry[key]
    if type(value) not in (int, str):
        raise RetinaError(f"{name}: {table}[{index}]: '{key}' must be a whole number or a text, got {short(value)}")
    return value


def _categories(name: str, categories: list[dict[str, Any]]) -> dict[Id, str]:
    """`{id: name}` in the order of the ids; a name that two ids share gets the id, for figures stand under a name."""
    by_id: dict[Id, str] = {}
    for index, entry in enumerate(categories):
        identifier = _id(name, "categories", index, entry, "id")
        called = entry.get("name", str(identifier))
        if not is_name(called):
            raise RetinaError(
                f"{name}: categories[{index}]: 'name' must be a text of whole characters, got {short(called)}"
            )
        if by_id.setdefault(identifier, called) != called:
            raise RetinaError(
                f"{name}: categories[{index}]: id {identifier!r} is already that of '{by_id[identifier]}'; "
                "each must be distinct"
            )
    try:
        ids = sorted(by_id, key=lambda identifier: identifier)
    except TypeError:  # Numbers and texts mixed: the file's order.
        ids = list(by_id)
    counts = Counter(by_id.values())
    taken = {called for called, count in counts.items() if count == 1}
    names: dict[Id, str] = {}
    for i in ids:
        called = by_id[i]
        if counts[called] > 1:
            called = f"{called} ({i})"
            while called in taken:
                called = f"{called} ({i})"
        taken.add(called)
        names[i] = called
    return names


def _look_up(name: str, annotations: list[dict[str, Any]], key: str, table: dict[Id, int], place: str) -> np.ndarray:
    try:
        values = [entry[key] for entry in annotations]
    except KeyError:
        index = next(i for i, entry in enumerate(annotations) if key not in entry)
        raise RetinaError(f"{name}: annotations[{index}] has no '{key}'; add it") from None
    good = (int, str, float)
    found = [table.get(value, -1) if type(value) in good else -1 for value in values]
    _refuse(name, values, [row < 0 for row in found], key, f"the id of one of '{place}'")
    return np.array(found, np.int64)


def _boxes(name: str, annotations: list[dict[str, Any]]) -> np.ndarray:
    try:
        values = [entry["bbox"] for entry in annotations]
    except KeyError:
        index = next(i for i, entry in enumerate(annotations) if "bbox" not in entry)
        raise RetinaError(f"{name}: annotations[{index}] has no 'bbox'; add it") from None
    wrong = [not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))) for box in values]
    _refuse(name, values, wrong, "bbox", "four finite numbers (x, y, width, height)")
    return np.array(values, np.float64).reshape(-1, 4)


def _areas(name: str, annotations: list[dict[str, Any]], boxes: np.ndarray) -> np.ndarray:
    own = (boxes[:, 2] * boxes[:, 3]).tolist()
    areas = [entry.get("area", area) for entry, area in zip(annotations, own, strict=True)]
    wrong = ["area" in entry and not is_number(entry["area"]) for entry in annotations]
    _refuse(name, areas, wrong, "area", "a finite number")
    return np.array(areas, np.float64)


def _refuse(name: str, values: Sequence[Any], wrong: list[bool], key: str, expected: str) -> None:
    if any(wrong):
        index = wrong.index(True)
        value = values[index]
        large = "".join(map(beyond, value)) if isinstance(value, list) else beyond(value)
        raise RetinaError(f"{name}: annotations[{index}]: '{key}' must be {expected}, got {short(value)}{large}")


def _is_flag(value: Any) -> bool:
    return type(value) in (int, bool, float) and value in (0, 1)


def _stem(entry: dict[str, Any], identifier: Id) -> str:
    file = entry.get("file_name")
    return stem(file) if isinstance(file, str) and file else str(identifier)


def _size(entry: dict[str, Any]) -> list[Any]:
    return [entry[side] if is_number(entry.get(side)) else np.nan for side in ("height", "width")]
