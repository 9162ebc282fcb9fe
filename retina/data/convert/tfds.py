"""A TensorFlow Datasets dataset in TFRecord or ArrayRecord shards, with the features of TFDS' `coco` or of its `voc`.

`tfds.builder_from_directory(FOLDER)` opens it, no code needed; in `data_dir/NAME/VERSION` also `tfds.load(NAME)`.
A shard is a file of a fixed list of images, so a conversion goes on with the first that is missing. Records are
serialised with sorted keys: protobuf's own order changes from run to run.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from retina import config
from retina.data.convert.images import placed, upright_bytes
from retina.data.convert.part import Part, Spec
from retina.data.dataset import DetectionDataset
from retina.data.formats.tfds import CATEGORY_IDS, IMAGE_IDS
from retina.data.stored import StoredImage, encoded
from retina.errors import RetinaError

FileFormat = Literal["tfrecord", "array_record"]

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
# As in TFDS' voc; what a table does not know is "unspecified".
_POSES = ("frontal", "rear", "left", "right", "unspecified")


class Options(NamedTuple):
    """How shards are written: `shard_bytes` bounds the encoded images of one, unless a single image is larger."""

    spec: Spec
    file_format: FileFormat
    shard_bytes: int


def check(parts: Sequence[Part], options: Options) -> tuple[str, ...]:
    """Notes on what is lost.

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
    """How a configuration reads the split."""
    return config.TfdsSource(data_dir=folder, split=split)


def dataset_name(folder: Path) -> str:
    """What TFDS calls the dataset of a folder: the folder's name, or that above a version's, in lower case."""
    path = folder.absolute()
    called = path.parent.name if _VERSION.fullmatch(path.name) else path.name
    plain = re.sub(r"[^a-z0-9_]+", "_", called.lower()).strip("_")
    return plain if _NAME.fullmatch(plain) else f"dataset_{plain}".rstrip("_")


def write(part: Part, folder: Path, options: Options, *, tick: Callable[[int], None]) -> None:
    """Writes the shards of a split that are missing; `tick` is told how many images each step brought."""
    import tensorflow_datasets as tfds

    adapter = tfds.core.file_adapters.ADAPTER_FOR_FORMAT[tfds.core.FileFormat(options.file_format)]
    features = _features(part, options)
    bounds = _shards(part, options.shard_bytes)
    for path, (start, stop) in zip(_paths(part, folder, options, len(bounds)), bounds, strict=True):
        if path.exists():
            tick(stop - start)
            continue
        with placed(path) as temporary:
            adapter.write_examples(temporary, _records(part, features, options, start, stop, tick))


def finish(parts: Sequence[Part], folder: Path, options: Options) -> None:
    """Writes `dataset_info.json`, `features.json`, the class names and `metadata.json`."""
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


def _records(
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
