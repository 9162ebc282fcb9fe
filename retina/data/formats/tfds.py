"""TensorFlow Datasets (https://www.tensorflow.org/datasets) to `DetectionDataset`, from files that are already there.

Nothing is ever downloaded or prepared: the builder is made of the prepared folder alone. Images stay encoded in their
shards and are read one at a time, from TFRecord by their place in the file, from ArrayRecord by `tfds.data_source`. The
table itself costs one pass over the shards, in which TensorFlow checks every record's checksum.

Labels of a TFDS dataset are 0..K-1 already, so its category ids are its labels, with two exceptions: a dataset that
`retina convert` wrote keeps those of its source in `metadata.json`, and TFDS' own `coco`, which numbers COCO's 80
classes through, gets back the ids of COCO's files, so that its results score against those files.

Box convention: TFDS stores ymin, xmin, ymax, xmax as fractions of the image, in float32. Its own `voc` divides the
numbers of the XML files as they are; there a box starts at [xmin - 1, ymin - 1], as in `retina.data.formats.voc`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from retina.data.dataset import DetectionDataset, InvalidBoxes, RawObjects, first_repeated
from retina.data.ground_truth import GroundTruth
from retina.data.image_files import NO_SIZE_FRACTIONS, stem
from retina.data.records import Records, to_dataset, to_ground_truth
from retina.data.stored import FileSlice, SourceImage, StoredImage
from retina.errors import RetinaError

CATEGORY_IDS = "category_ids"
IMAGE_IDS = "image_ids"
"""Keys of `metadata.json`: the K category ids; how to take an image's id, "id" or "filename"."""

# Of the 90 ids of COCO's paper, its files use 80.
_COCO_UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
_COCO_IDS = tuple(identifier for identifier in range(1, 91) if identifier not in _COCO_UNUSED)

# What TensorFlow puts around the reason of an error, which says nothing about the file.
_WHERE_IN_TENSORFLOW = re.compile(r"\{\{.*?\}\}|\[Op:\w+\]( name: ?)?")

# A record of TFRecord: length (8 bytes), its checksum (4), the data, its checksum (4).
_RECORD_HEAD, _RECORD_FRAME = 12, 16


class _Record(NamedTuple):
    """A deserialised example, its image encoded, and where that image lies."""

    example: dict[str, Any]
    image: StoredImage


def read_tfds(
    name: str | None,
    split: str,
    data_dir: Path,
    *,
    classes: tuple[str, ...] | None = None,
    invalid_boxes: InvalidBoxes = "error",
    difficult: Literal["ignore", "use", "drop"] = "ignore",
    keep_unreadable: bool = False,
) -> DetectionDataset:
    """Reads a split of a prepared TFDS dataset with features `image`, `objects/bbox` and `objects/label`.

    Of the other features, `objects/is_crowd`, `objects/is_difficult` and `objects/area` are taken where they are there.
    An image's id is its `image/id`, else the name of its `image/filename` without extension, else its number.

    Args:
        name: such as "coco/2017" or "voc/2007:5.0.0"; None takes `data_dir` itself for the dataset's folder.
        split: TFDS' name of it; its slicing, such as "train[:10%]", works too.
        data_dir: where prepared datasets lie, with `~` for the home folder.
        classes: the class names in label order; None takes the dataset's own.
        difficult: "ignore" flags difficult objects, "use" takes them like any other, "drop" leaves them out.
        keep_unreadable: an image without readable header counts as one of 1 pixel, to be left out by who decodes it.

    Raises:
        RetinaError: there is no such prepared dataset or split, it lacks the features, a shard is missing or damaged,
            an image has no readable header, two images share an id, an object has no label, or a box is invalid and
            `invalid_boxes` is "error".
    """
    return to_dataset(_read(name, split, data_dir, difficult, keep_unreadable), classes, invalid_boxes)


def tfds_truth(
    name: str | None,
    split: str,
    data_dir: Path,
    *,
    difficult: Literal["ignore", "use", "drop"] = "ignore",
    keep_unreadable: bool = False,
) -> GroundTruth:
    """The same split as ground truth: all its boxes, those without area too.

    Raises:
        RetinaError: as `read_tfds`, but for invalid boxes.
    """
    records = _read(name, split, data_dir, difficult, keep_unreadable)
    corners = records.raw.boxes
    return to_ground_truth(records._replace(raw=records.raw._replace(extent=corners[:, 2:] - corners[:, :2])))


def _read(name: str | None, split: str, data_dir: Path, difficult: str, keep_unreadable: bool) -> Records:
    builder = _open(name, Path(data_dir).expanduser())
    title = f"{builder.info.full_name} ({split})"
    features = builder.info.features
    label = _check_features(title, features)
    images: list[StoredImage] = []
    sizes, ids, columns = [], [], []
    unreadable = NO_SIZE_FRACTIONS if keep_unreadable else None
    for row, record in enumerate(_records(builder, split, title)):
        images.append(record.image)
        sizes.append(_size(title, row, record.example, unreadable))
        ids.append(_image_id(record.example, row, builder.info.metadata))
        columns.append({key: np.array(values) for key, values in record.example["objects"].items()})
    if not images:
        raise RetinaError(f"{title}: this split holds no image; choose another split")
    again = first_repeated(ids)
    if again is not None:
        raise RetinaError(f"{title}: image {again[0]}: id {again[1]!r} is given twice; each image needs its own")
    size = np.array(sizes, np.int32)
    official_voc = builder.name == "voc" and CATEGORY_IDS not in builder.info.metadata
    raw = _objects(columns, size, one_based=official_voc)
    _refuse_unlabelled(title, raw, ids, label.num_classes)
    notes: tuple[str, ...] = ()
    if difficult == "use":
        raw = raw._replace(difficult=np.zeros_like(raw.difficult))
    elif difficult == "drop" and raw.difficult.any():
        count = f"{raw.difficult.sum()} of {len(raw.difficult)} objects"
        notes = (f"{title}: {count} are difficult: dropped (data.difficult: drop)",)
        raw = RawObjects(*(column[~raw.difficult] for column in raw))
    known = dict(zip(label.names, _category_ids(builder, label.num_classes), strict=True))
    return Records(
        name=title,
        classes=known,
        image_ids=tuple(ids),
        images=tuple(images),
        sizes=size,
        raw=raw,
        describe=lambda row: f"an object of image {ids[raw.image[row]]}",
        notes=notes,
    )


def split_names(name: str | None, data_dir: Path) -> tuple[str, ...]:
    """The splits of a prepared dataset.

    Raises:
        RetinaError: there is no such prepared dataset.
    """
    return tuple(_open(name, Path(data_dir).expanduser()).info.splits)


def _open(name: str | None, data_dir: Path) -> Any:
    """The builder of a prepared dataset, made from its files alone: its code is not run, nothing is fetched."""
    from retina.startup import import_tensorflow_quietly

    import_tensorflow_quietly()
    import tensorflow_datasets as tfds

    try:
        if name is None:
            return tfds.builder_from_directory(data_dir)
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        pass
    except (OSError, ValueError) as error:
        if name is not None or (data_dir / "dataset_info.json").exists():
            reason = str(error).partition("\n")[0]
            raise RetinaError(f"{name or data_dir}: cannot open this TFDS dataset: {reason}") from None
    if name is None:
        raise RetinaError(
            f"{data_dir}: expected the folder of a prepared TFDS dataset, which holds dataset_info.json and "
            "features.json; give data.*.name for a dataset in a folder of several"
        )
    raise RetinaError(
        f"{name}: expected a TFDS dataset prepared in {data_dir}, there is none; nothing is downloaded on its own: "
        f"prepare it with `tfds build {name} --data_dir {data_dir}`, or write one with "
        "`retina convert SRC DST --to tfds`"
    )


def _check_features(title: str, features: Any) -> Any:
    """The ClassLabel of `objects/label`."""
    import tensorflow_datasets as tfds

    known = _inner(features)
    inner = _inner(getattr(known.get("objects"), "feature", None))
    expected = {
        "image": isinstance(known.get("image"), tfds.features.Image),
        "objects/bbox": isinstance(inner.get("bbox"), tfds.features.BBoxFeature),
        "objects/label": isinstance(inner.get("label"), tfds.features.ClassLabel),
    }
    missing = [key for key, right in expected.items() if not right]
    if missing:
        raise RetinaError(
            f"{title}: expected the features image (Image), objects/bbox (BBoxFeature) and objects/label (ClassLabel), "
            f"got no such {' and '.join(missing)}; its features: {', '.join(sorted(known))}"
        )
    if inner["label"].num_classes is None or inner["label"].num_classes < 1:
        raise RetinaError(f"{title}: objects/label names no class; a detector needs at least one")
    return inner["label"]


def _inner(features: Any) -> dict[str, Any]:
    import tensorflow_datasets as tfds

    return dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}


def _records(builder: Any, split: str, title: str) -> Iterator[_Record]:
    import tensorflow as tf
    import tensorflow_datasets as tfds

    try:
        instructions = builder.info.splits[split].file_instructions
    except (KeyError, ValueError) as error:
        known = ", ".join(builder.info.splits)
        reason = str(error).partition("\n")[0].strip("'\"")
        raise RetinaError(f"{title}: no such split: {reason}; splits that exist: {known or 'none'}") from None
    if not instructions:
        return
    decoders = {"image": tfds.decode.SkipDecoding()}
    try:
        if builder.info.file_format.value == "tfrecord":
            yield from _from_tfrecord(instructions, builder.info.features, decoders)
            return
        source = builder.as_data_source(split, decoders=decoders)
        for row in range(len(source)):
            example = source[row]
            yield _Record(example, SourceImage(source, row, len(example["image"])))
    except (tf.errors.OpError, OSError, RuntimeError, ValueError, NotImplementedError) as error:
        reason = (getattr(error, "message", None) or str(error)).splitlines()[0]
        plain = _WHERE_IN_TENSORFLOW.sub("", reason).strip()
        raise RetinaError(
            f"{title}: cannot read its shards in {builder.data_path}: {plain}; prepare it again"
        ) from None


def _from_tfrecord(instructions: Sequence[Any], features: Any, decoders: Mapping[str, Any]) -> Iterator[_Record]:
    import tensorflow as tf

    for part in instructions:
        place, number, path = 0, -1, str(part.filename)
        with tf.device("CPU:0"):
            shard = tf.data.TFRecordDataset(part.filename)
        for number, record in enumerate(shard.as_numpy_iterator()):
            if number >= part.skip + part.take:
                break
            if number >= part.skip:
                example = features.deserialize_example_np(record, decoders=decoders)
                # The image is stored as it is: its bytes stand in the record once, or equal ones do.
                start = place + _RECORD_HEAD + record.index(example["image"])
                yield _Record(example, FileSlice(path, start, len(example["image"])))
            place += len(record) + _RECORD_FRAME
        else:
            if number + 1 < part.skip + part.take:
                raise OSError(f"{part.filename} holds {number + 1} records, expected {part.skip + part.take}")


def _size(title: str, row: int, example: Mapping[str, Any], unreadable: tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) as stored, from the header; `unreadable` of an image without one, unless that is None."""
    from PIL import Image, UnidentifiedImageError

    image = example["image"]
    try:
        with Image.open(io.BytesIO(image)) as header:
            return header.height, header.width
    except UnidentifiedImageError:
        fault = f"expected an encoded image, got {len(image)} bytes that are none; remove it"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        fault = f"cannot read the size of this image: {error}; mend it"
    if unreadable is not None:
        return unreadable
    raise RetinaError(f"{title}: image {row}{_called(example)}: {fault}, or set data.invalid_images: skip")


def _called(example: Mapping[str, Any]) -> str:
    """How a record calls its image, for messages: a row's number finds nothing in a folder of files."""
    name, told = example.get("image/filename"), []
    if "image/id" in example:
        told.append(f"image/id {int(example['image/id'])}")
    if name:
        told.append(f"image/filename {name.decode('utf-8', 'replace')}")
    return f" ({', '.join(told)})" if told else ""


def _refuse_unlabelled(title: str, raw: RawObjects, ids: Sequence[int | str], classes: int) -> None:
    wrong = (raw.labels < 0) | (raw.labels >= classes)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise RetinaError(
            f"{title}: image {ids[raw.image[row]]}: an object has the label {raw.labels[row]}, expected 0 to "
            f"{classes - 1}, and so have {wrong.sum()} of {len(wrong)} objects; TFDS writes -1 where labels are not "
            "public, as in a test split: choose a split with labels"
        )


def _image_id(example: Mapping[str, Any], row: int, metadata: Mapping[str, Any]) -> int | str:
    name = example.get("image/filename")
    if "image/id" in example and metadata.get(IMAGE_IDS) != "filename":
        return int(example["image/id"])
    return row if name is None else stem(name.decode("utf-8", "surrogateescape"))


def _category_ids(builder: Any, classes: int) -> tuple[int, ...]:
    written = builder.info.metadata.get(CATEGORY_IDS)
    if written is not None:
        if len(written) != classes or any(type(identifier) is not int for identifier in written):
            raise RetinaError(f"{builder.data_path}/metadata.json: {CATEGORY_IDS}: expected {classes} whole numbers")
        return tuple(written)
    return _COCO_IDS if builder.name == "coco" and classes == len(_COCO_IDS) else tuple(range(classes))


def _objects(columns: Sequence[Mapping[str, np.ndarray]], sizes: np.ndarray, *, one_based: bool) -> RawObjects:
    counts = [len(column["label"]) for column in columns]
    image = np.repeat(np.arange(len(columns)), counts)

    def column(key: str, kind: type, default: float) -> np.ndarray:
        if key not in columns[0]:
            return np.full(len(image), default, kind)
        return np.concatenate([objects[key] for objects in columns]).astype(kind)

    given = np.concatenate([objects["bbox"].reshape(-1, 4) for objects in columns]).astype(np.float64)
    sides = np.tile(sizes[image].astype(np.float64), 2)
    boxes = (given * sides)[:, [1, 0, 3, 2]]
    extent = boxes[:, 2:] - boxes[:, :2]
    if one_based:
        boxes[:, :2] = np.maximum(boxes[:, :2] - 1, 0)
    return RawObjects(
        image=image,
        boxes=boxes,
        given=given,
        extent=extent,
        labels=column("label", np.int32, 0),
        crowd=column("is_crowd", np.bool_, False),
        difficult=column("is_difficult", np.bool_, False),
        areas=column("area", np.float64, np.nan),
    )
