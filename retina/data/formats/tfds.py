"""TensorFlow Datasets (https://www.tensorflow.org/datasets), read from files that are already there, and written.

Nothing is ever downloaded or prepared: the builder is made of the prepared folder alone. Images stay encoded in their
shards and are read one at a time, from TFRecord by their place in the file, from ArrayRecord by `tfds.data_source`. The
table itself costs one pass over the shards, in which TensorFlow checks every record's checksum.

Labels of a TFDS dataset are 0..K-1 already, so its category ids are its labels, with two exceptions: a dataset that
`retina convert` wrote keeps those of its source in `metadata.json`, and TFDS' own `coco`, which numbers COCO's 80
classes through, gets back the ids of COCO's files, so that its results score against those files.

Box convention: TFDS stores ymin, xmin, ymax, xmax as fractions of the image, in float32. Its own `voc` divides the
numbers of the XML files as they are; there a box starts at [xmin - 1, ymin - 1], as in `retina.data.formats.voc`.

Written are TFRecord or ArrayRecord shards with the features of TFDS' `coco` or of its `voc`.
`tfds.builder_from_directory(FOLDER)` opens them, no code needed; in `data_dir/NAME/VERSION` also `tfds.load(NAME)`.
A shard is a file of a fixed list of images, so a conversion goes on with the first that is missing. Records are
serialised with sorted keys: protobuf's own order changes from run to run.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from retina import config
from retina.data.batches.pixels import leave_gpu_to_backend
from retina.data.convert.part import Part, Spec
from retina.data.dataset import (
    DetectionDataset,
    Difficult,
    RawObjects,
    Records,
    first_repeated,
    handle_difficult,
)
from retina.data.detections import to_xywh
from retina.data.headers import QUARTER_TURNS, orientation
from retina.data.image_files import NO_SIZE_FRACTIONS, placed, stem, upright_bytes
from retina.data.stored import FileSlice, SourceImage, StoredImage, encoded
from retina.errors import RetinaError
from retina.files import exists
from retina.startup import require_tensorflow

FileFormat = Literal["tfrecord", "array_record"]

CATEGORY_IDS = "category_ids"
IMAGE_IDS = "image_ids"
"""Keys of `metadata.json`: the K category ids; how to take an image's id, "id" or "filename"."""

# Of the 90 ids of COCO's paper, its files use 80.
_COCO_UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
_COCO_IDS = tuple(identifier for identifier in range(1, 91) if identifier not in _COCO_UNUSED)

# What TensorFlow puts around the reason of an error, which says nothing about the file.
_WHERE_IN_TENSORFLOW = re.compile(r"\{\{.*?\}\}|\[Op:\w+\]( name: ?)?")

LAYOUTS = {
    "TensorFlow Datasets: dataset_info.json and features.json": ("dataset_info.json", "features.json", "*.tfrecord*")
}
"""The layouts of folders in words, each with patterns of what hints at it."""

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
# As in TFDS' voc; what a table does not know is "unspecified".
_POSES = ("frontal", "rear", "left", "right", "unspecified")

# A record of TFRecord: length (8 bytes), its checksum (4), the data, its checksum (4).
_RECORD_HEAD, _RECORD_FRAME = 12, 16
_NAMES = "image/id", "image/filename"
# What is read of an object; it may have any other feature.
_OBJECT = "bbox", "label", "is_crowd", "is_difficult", "area"


class _Record(NamedTuple):
    """A deserialised example, its image encoded, and where that image lies."""

    example: dict[str, Any]
    image: StoredImage


def tfds_records(
    name: str | None,
    split: str,
    data_dir: Path,
    *,
    difficult: Difficult = "ignore",
    keep_unreadable: bool = False,
    upright: bool = False,
) -> Records:
    """Read a split of a prepared TFDS dataset with features `image`, `objects/bbox` and `objects/label`.

    Of the other features, `objects/is_crowd`, `objects/is_difficult` and `objects/area` are taken where they are there.
    An image's id is its `image/id`, else the name of its `image/filename` without extension, else its number.

    Args:
        name: such as "coco/2017" or "voc/2007:5.0.0"; None takes `data_dir` itself for the dataset's folder.
        split: TFDS' name of it; its slicing, such as "train[:10%]", works too.
        data_dir: where prepared datasets lie, with `~` for the home folder.
        difficult: see `retina.data.dataset.handle_difficult`.
        keep_unreadable: an image without readable header counts as one of 1 pixel, to be left out by who decodes it.
        upright: boxes are fractions of the sides of the upright picture.

    Raises:
        RetinaError: there is no such prepared dataset or split, it lacks the features, a shard is missing or damaged,
            an image has no readable header, two images share an id, or an object has no label.
    """
    builder = _open(name, Path(data_dir).expanduser())
    title = f"{builder.info.full_name} ({split})"
    label = _check_features(title, builder.info.features)
    images: list[StoredImage] = []
    sizes, ids, columns = [], [], []
    unreadable = NO_SIZE_FRACTIONS if keep_unreadable else None
    for row, record in enumerate(_records(builder, split, title)):
        images.append(record.image)
        height, width = _size(title, row, record.example, unreadable)
        turned = upright and orientation(record.example["image"]) in QUARTER_TURNS
        sizes.append((width, height) if turned else (height, width))
        ids.append(_image_id(record.example, row, builder.info.metadata))
        objects = record.example["objects"]
        columns.append({key: np.array(objects[key]) for key in _OBJECT if key in objects})
        _refuse_uneven(f"{title}: image {row}{_called(record.example)}", columns[-1])
    if not images:
        raise RetinaError(f"{title}: this split holds no image; choose another split")
    again = first_repeated(ids)
    if again is not None:
        raise RetinaError(f"{title}: image {again[0]}: id {again[1]!r} is given twice; each image needs its own")
    size = np.array(sizes, np.int32)
    official_voc = builder.name == "voc" and CATEGORY_IDS not in builder.info.metadata
    raw = _objects(columns, size, one_based=official_voc)
    _refuse_unlabelled(title, raw, ids, label.num_classes)
    raw, _, notes = handle_difficult(title, raw, difficult)
    classes = dict(zip(label.names, _category_ids(builder, label.num_classes), strict=True))
    return Records(
        title,
        classes,
        ids,
        images,
        size,
        raw,
        lambda row: f"an object of image {ids[raw.image[row]]}",
        notes,
        measured=True,
    )


def sections(folder: Path, images: Path | None = None) -> dict[str, config.Source]:
    """Return the splits of a folder of this format, none if it is no such folder."""
    if not any(exists(folder / file) for file in ("dataset_info.json", "features.json")):
        return {}
    return sections_of_name(None, folder)


def sections_of_name(name: str | None, data_dir: Path) -> dict[str, config.Source]:
    """Return the splits of a prepared dataset.

    Raises:
        RetinaError: there is no such prepared dataset.
    """
    return {
        split: config.TfdsSource(name=name, split=split, data_dir=data_dir) for split in split_names(name, data_dir)
    }


def split_names(name: str | None, data_dir: Path) -> tuple[str, ...]:
    """Return the splits of a prepared dataset.

    Raises:
        RetinaError: there is no such prepared dataset.
    """
    return tuple(_open(name, Path(data_dir).expanduser()).info.splits)


def _open(name: str | None, data_dir: Path) -> Any:
    """The builder of a prepared dataset, made from its files alone: its code is not run, nothing is fetched."""
    require_tensorflow("format tfds")
    leave_gpu_to_backend()
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
            yield _Record(example, SourceImage(source, row, len(_image(example))))
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
                image = _image(example)
                start = place + _RECORD_HEAD + record.index(image)
                yield _Record(example, FileSlice(path, start, len(image)))
            place += len(record) + _RECORD_FRAME
        else:
            if number + 1 < part.skip + part.take:
                raise OSError(f"{part.filename} holds {number + 1} records, expected {part.skip + part.take}")


def _image(example: Mapping[str, Any]) -> bytes:
    image = example["image"]
    if not isinstance(image, bytes):
        raise ValueError(f"a record holds {type(image).__name__} in the place of an encoded image")
    return image


def _refuse_uneven(where: str, objects: Mapping[str, np.ndarray]) -> None:
    counts = {key: len(values) for key, values in objects.items()}
    if len(set(counts.values())) > 1:
        numbers = ", ".join(f"objects/{key} {number}" for key, number in sorted(counts.items()))
        raise RetinaError(f"{where}: expected a value of each feature for each object, got {numbers}; prepare it again")


def _size(title: str, row: int, example: Mapping[str, Any], unreadable: tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) as stored, from the header; `unreadable` of an image without one, unless that is None."""
    image = example["image"]
    try:
        with Image.open(io.BytesIO(image)) as header:
            return header.height, header.width
    except UnidentifiedImageError:
        fault = f"expected an encoded image, got {len(image)} bytes that are none; remove it"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        fault = f"cannot read the size of this image: {error}; fix it"
    if unreadable is not None:
        return unreadable
    raise RetinaError(f"{title}: image {row}{_called(example)}: {fault}, or set data.invalid_images: skip")


def _called(example: Mapping[str, Any]) -> str:
    """The name of a record's image in messages: a row's number finds nothing in a folder of files."""
    keys = [f"{key} {_plain(example[key])}" for key in _NAMES if _plain(example.get(key)) not in (None, "")]
    return f" ({', '.join(keys)})" if keys else ""


def _plain(value: Any, errors: str = "replace") -> int | str | None:
    """A number or a text of a record; None for anything else."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors)
    return int(value) if isinstance(value, int | np.integer) else None


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
    identifier, name = (_plain(example.get(key), "surrogateescape") for key in _NAMES)
    if identifier is not None and metadata.get(IMAGE_IDS) != "filename":
        return identifier
    return stem(name) if isinstance(name, str) else row


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
    with np.errstate(invalid="ignore"):  # of infinite corners
        extent = boxes[:, 2:] - boxes[:, :2]
        if one_based:
            boxes[:, :2] = np.maximum(boxes[:, :2] - 1, 0)
        xywh = to_xywh(boxes)
    return RawObjects(
        image=image,
        boxes=boxes,
        xywh=xywh,
        given=given,
        extent=extent,
        labels=column("label", np.int64, 0),
        crowd=column("is_crowd", np.bool_, False),
        difficult=column("is_difficult", np.bool_, False),
        areas=column("area", np.float64, np.nan),
    )


# ------------------------------------------------------------------------------------------------------------- writing


class Options(NamedTuple):
    """The settings of shards: `shard_bytes` bounds the encoded images of one, unless a single image is larger."""

    spec: Spec
    file_format: FileFormat
    shard_bytes: int


def check(parts: Sequence[Part], options: Options) -> tuple[str, ...]:
    """Return notes on what is lost.

    Raises:
        RetinaError: TFDS can't hold the name of a class, in whose file each stands on a line.
    """
    table = parts[0].table
    for called in table.class_names:
        if called != called.strip() or len(called.splitlines()) != 1:
            raise RetinaError(f"{table.name}: class {called!r}: TFDS can't hold its blanks or line breaks; rename it")
    whole = all(isinstance(identifier, int) for part in parts for identifier in part.table.image_ids)
    if options.spec == "coco" and not whole:
        return ("TFDS: image/id holds numbers: counted from 1; image/filename keeps the ids",)
    if options.spec == "voc" and whole:
        return ("TFDS: VOC's features have no image id: image/filename keeps them as texts",)
    return ()


def unheld(table: DetectionDataset) -> tuple[np.ndarray, str]:
    """[M] the boxes that can't be written, and why."""
    fractions = _fractions(table)
    return np.asarray((fractions[:, 2:] <= fractions[:, :2]).any(axis=1)), "too thin for the float32 fractions of TFDS"


def tolerance(table: DetectionDataset) -> np.ndarray:
    """[M] by how many pixels a corner may differ when it is read again: float32 has 24 bits for a fraction."""
    sides = np.repeat(table.sizes.max(axis=1, initial=0), np.diff(table.offsets))
    return sides * 2.0**-23


def source(folder: Path, split: str, names: Sequence[str]) -> config.TfdsSource:
    """Return the section of a configuration that reads the split."""
    return config.TfdsSource(data_dir=folder, split=split)


def dataset_name(folder: Path) -> str:
    """Return TFDS' name of a folder's dataset: the folder's own, or that above a version's, in lower case."""
    path = folder.absolute()
    called = path.parent.name if _VERSION.fullmatch(path.name) else path.name
    plain = re.sub(r"[^a-z0-9_]+", "_", called.lower()).strip("_")
    return plain if _NAME.fullmatch(plain) else f"dataset_{plain}".rstrip("_")


def write(part: Part, folder: Path, options: Options, *, tick: Callable[[int], None]) -> None:
    """Write the shards of a split that are missing; `tick` is given the number of images of each step."""
    import tensorflow_datasets as tfds

    adapter = tfds.core.file_adapters.ADAPTER_FOR_FORMAT[tfds.core.FileFormat(options.file_format)]
    features = _features(part, options)
    bounds = _shards(part, options.shard_bytes)
    for path, (start, stop) in zip(_paths(part, folder, options, len(bounds)), bounds, strict=True):
        if path.exists():
            tick(stop - start)
            continue
        with placed(path) as temporary:
            adapter.write_examples(temporary, _serialised(part, features, options, start, stop, tick))


def finish(parts: Sequence[Part], folder: Path, options: Options) -> None:
    """Write `dataset_info.json`, `features.json`, the class names and `metadata.json`."""
    import tensorflow_datasets as tfds

    template = _template(parts[0], folder, options)
    infos = []
    for part in parts:
        bounds = _shards(part, options.shard_bytes)
        files = _paths(part, folder, options, len(bounds))
        infos.append(
            tfds.core.SplitInfo(
                name=part.split,
                shard_lengths=[stop - start for start, stop in bounds],
                num_bytes=sum(file.stat().st_size for file in files),
                filename_template=template.replace(split=part.split),
            )
        )
    table = parts[0].table
    texts = any(isinstance(identifier, str) for part in parts for identifier in part.table.image_ids)
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=_features(parts[0], options, [suffix for part in parts for suffix in part.suffixes]),
        split_infos=infos,
        version=folder.absolute().name if _VERSION.fullmatch(folder.absolute().name) else "1.0.0",
        description="Written by retina convert.",
        metadata=tfds.core.MetadataDict(
            {CATEGORY_IDS: list(table.category_ids), IMAGE_IDS: "filename" if texts else "id"}
        ),
        check_data=False,
    )


def _shards(part: Part, shard_bytes: int) -> list[tuple[int, int]]:
    """[start, stop) of the images of each shard: as few as possible of about the same number of images."""
    sizes = [_bytes(image) for image in part.table.images]
    count = min(len(sizes), max(1, -(-sum(sizes) // shard_bytes)))
    edges = [len(sizes) * shard // count for shard in range(count + 1)]
    return list(itertools.pairwise(edges))


def _bytes(image: Any) -> int:
    if isinstance(image, StoredImage):
        return image.length
    return len(image) if isinstance(image, bytes) else Path(image).stat().st_size


def _template(part: Part, folder: Path, options: Options) -> Any:
    import tensorflow_datasets as tfds

    return tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=dataset_name(folder), split=part.split, filetype_suffix=options.file_format
    )


def _paths(part: Part, folder: Path, options: Options, count: int) -> list[Path]:
    return [Path(path) for path in _template(part, folder, options).sharded_filepaths(num_shards=count)]


def _features(part: Part, options: Options, suffixes: Sequence[str] = ()) -> Any:
    import tensorflow_datasets as tfds

    label = tfds.features.ClassLabel(names=list(part.table.class_names))
    common = {"image/filename": tfds.features.Text()}
    box = {"bbox": tfds.features.BBoxFeature(), "label": label}
    if options.spec == "coco":
        jpeg = all(suffix == ".jpg" for suffix in suffixes)
        objects = {"id": np.int64, "area": np.int64, "is_crowd": np.bool_}
        return tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(encoding_format="jpeg" if jpeg else None),
                "image/id": np.int64,
                "objects": tfds.features.Sequence(objects | box),
                **common,
            }
        )
    objects = {
        "pose": tfds.features.ClassLabel(names=_POSES),
        "is_truncated": np.bool_,
        "is_difficult": np.bool_,
    }
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(),
            "objects": tfds.features.Sequence(objects | box),
            "labels": tfds.features.Sequence(label),
            "labels_no_difficult": tfds.features.Sequence(label),
            **common,
        }
    )


def _serialised(
    part: Part, features: Any, options: Options, start: int, stop: int, tick: Callable[[int], None]
) -> Iterator[tuple[int, bytes]]:
    import tensorflow as tf

    fractions = _fractions(part.table)
    for row in range(start, stop):
        example = _example(part, fractions, options.spec, row)
        record = tf.train.Example.FromString(features.serialize_example(example))
        yield row, record.SerializeToString(deterministic=True)
        tick(1)


def _example(part: Part, fractions: np.ndarray, spec: Spec, row: int) -> dict[str, Any]:
    table = part.table
    image, identifier = table.images[row], table.image_ids[row]
    data = upright_bytes(image, str(identifier)) if part.rotations[row] != 1 else encoded(image)
    objects, first = table.objects(row), int(table.offsets[row])
    boxes = fractions[first : first + len(objects.labels)]
    labels = objects.labels.tolist()
    example: dict[str, Any] = {"image": io.BytesIO(data), "image/filename": part.names[row]}
    if spec == "coco":
        example["image/id"] = identifier if isinstance(identifier, int) else row + 1
        example["objects"] = [
            {"id": first + index + 1, "area": int(area), "bbox": box, "label": label, "is_crowd": bool(crowd)}
            for index, (area, box, label, crowd) in enumerate(
                zip(objects.areas, boxes, labels, objects.crowd, strict=True)
            )
        ]
        return example
    example["objects"] = [
        {"bbox": box, "label": label, "pose": "unspecified", "is_truncated": False, "is_difficult": bool(difficult)}
        for box, label, difficult in zip(boxes, labels, objects.difficult, strict=True)
    ]
    example["labels"] = sorted(set(labels))
    example["labels_no_difficult"] = sorted(set(objects.labels[~objects.difficult].tolist()))
    return example


def _fractions(table: DetectionDataset) -> np.ndarray:
    """[M,4] float32 ymin, xmin, ymax, xmax."""
    sides = np.repeat(np.tile(table.sizes.astype(np.float64), 2), np.diff(table.offsets), axis=0)
    return (table.boxes[:, [1, 0, 3, 2]] / sides).astype(np.float32)
