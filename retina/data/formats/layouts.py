"""The layout of a path or a name, told by looking at it, for `retina doctor`, `retina convert` and configurations."""

from __future__ import annotations

import json
import mmap
import os
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from retina import config
from retina.config.reading import read_yaml
from retina.data.detections import short
from retina.data.formats.tfds import split_names
from retina.data.formats.voc import split_names as voc_lists
from retina.data.formats.yolo import SPLITS, leads_to_images, splits_of_yaml
from retina.data.image_files import guess_folder, readings
from retina.errors import RetinaError
from retina.files import exists

TAKEN = (
    "a configuration or run, a COCO JSON file or a folder with annotations/*.json, a Pascal VOC folder with "
    "ImageSets/Main/*.txt, a YOLO data.yaml, a folder with one or with images and labels, a CSV file, a TFDS folder "
    "(dataset_info.json) or the name of a TFDS dataset"
)
"""The layouts that are known, for messages."""

TFDS_HOME = Path("~/tensorflow_datasets")
_TFDS_NAME = re.compile(r"\w+(/[\w.\-]+)?(:[\w.*]+)?")
_YAML = (".yaml", ".yml")
# Beside COCO's boxes lie files without any.
_NO_BOXES = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")
_LOOKED_AT = 100
_FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')


class Layout(NamedTuple):
    """The `format` of a source; its `splits` by their own names, in order; `config`: the file of a configuration,
    whose splits are not read here, for they depend on overrides."""

    format: Literal["config", "coco", "voc", "yolo", "csv", "tfds"]
    splits: dict[str, config.Source]
    config: Path | None = None


def look(source: str, images: Path | None = None, data_dir: Path | None = None) -> Layout:
    """Tell a configuration or run, COCO JSON, VOC folder, YOLO data.yaml or folder, CSV and TFDS dataset apart.

    Of a VOC folder these are all its lists, which may overlap (but for those of single classes). A file of COCO or CSV
    is one split, called as the file is.

    Args:
        source: a path, or the name of a TFDS dataset such as "voc/2007".
        images: the folder of images of a COCO JSON or CSV file.
        data_dir: where TFDS datasets lie, `TFDS_HOME` by default.

    Raises:
        RetinaError: there is nothing, nothing that is known, or an option has no effect on it.
    """
    path = Path(source)
    there = exists(path)
    layout = _at(path, images) if there else _by_name(source, data_dir)
    for option, given, used in (
        ("--images", images is not None, layout.format in ("coco", "csv") and path.is_file()),
        ("--data-dir", data_dir is not None, not there),
    ):
        if given and not used:
            raise RetinaError(f"{source}: {option} has no effect on a source of format '{layout.format}'; leave it out")
    return layout


def _by_name(source: str, data_dir: Path | None) -> Layout:
    home = TFDS_HOME if data_dir is None else data_dir
    named = _TFDS_NAME.fullmatch(source) is not None
    # Looked for first: TFDS takes seconds to import, and most of what is not there is a path with a slip in it.
    if named and (home.expanduser() / re.split("[/:]", source)[0]).is_dir():
        return Layout("tfds", _of_tfds(source, home))
    also = f", nor a TFDS dataset of this name in {home} (--data-dir)" if named else ""
    raise RetinaError(f"{source}: no such file or folder{also}; expected {TAKEN}")


def _at(path: Path, images: Path | None) -> Layout:
    if path.is_dir():
        return _in_folder(path)
    ending = path.suffix.lower()
    if ending in _YAML:
        tree = read_yaml(path, str(path))
        if config.is_ours(tree) or not isinstance(tree, dict):
            return Layout("config", {}, path)
        if {"names", "nc", "train", "val", "test"} & set(tree):
            return Layout("yolo", _of_yolo_yaml(path, tree))
        config.load(path)  # says whose file it is
        return Layout("config", {}, path)
    if ending == ".json":
        return Layout("coco", {_coco_split(path): _of_coco(path, images)})
    if ending == ".csv":
        return Layout("csv", {path.stem: config.CsvSource(annotations=path, images=images)})
    raise RetinaError(f"{path}: expected a file ending in .yaml, .json or .csv, or a folder; taken are {TAKEN}")


def _in_folder(path: Path) -> Layout:
    settings = path / "config.yaml"
    there = exists(settings)
    if there and config.is_ours(read_yaml(settings, str(settings))):
        return Layout("config", {}, settings)
    if exists(path / "dataset_info.json") or exists(path / "features.json"):
        return Layout("tfds", _of_tfds(None, path))
    if exists(path / "data.yaml"):
        return Layout("yolo", _of_yolo_yaml(path / "data.yaml", read_yaml(path / "data.yaml", str(path / "data.yaml"))))
    files = [file for file in sorted(path.glob("annotations/*.json")) if not file.stem.startswith(_NO_BOXES)]
    if files:
        return Layout("coco", {_coco_split(file): _of_coco(file, None) for file in files})
    lists = voc_lists(path)
    if lists:
        return Layout("voc", {name: config.VocSource(folder=path, splits=(name,)) for name in lists})
    if (path / "images").is_dir() and ((path / "labels").is_dir() or any((path / "images").rglob("*.txt"))):
        return Layout("yolo", {path.absolute().name: config.YoloSource(images=path / "images")})
    also = "; its config.yaml is not a configuration of retina" if there else ""
    raise RetinaError(f"{path}: expected {TAKEN}; got none of them{also}")


def _of_tfds(name: str | None, data_dir: Path) -> dict[str, config.Source]:
    return {
        split: config.TfdsSource(name=name, split=split, data_dir=data_dir) for split in split_names(name, data_dir)
    }


def _of_yolo_yaml(file: Path, tree: object) -> dict[str, config.Source]:
    there = splits_of_yaml(tree) if isinstance(tree, dict) else []
    # Tools write a test split that was never made. Who asks for it learns that its folder is not there.
    if isinstance(tree, dict) and len(there) > 1 and not leads_to_images(file, tree, "test"):
        there = [split for split in there if split != "test"]
    if not there:
        raise RetinaError(f"{file}: expected at least one of train, val and test in this data.yaml, got none")
    return {split: config.YoloSource(data=file, split=split) for split in there}


def with_asked_splits(sections: dict[str, config.Source], names: Sequence[str]) -> dict[str, config.Source]:
    """Return the splits of a data.yaml, and those that are asked for though nothing is there: their reader says so."""
    first = next(iter(sections.values()))
    if not isinstance(first, config.YoloSource) or first.data is None:
        return sections
    asked = {name: config.YoloSource(data=first.data, split=name) for name in names if name in SPLITS}
    return {**asked, **sections}


def _coco_split(file: Path) -> str:
    return file.stem.removeprefix("instances_")


def _of_coco(file: Path, images: Path | None) -> config.CocoSource:
    """A COCO file with its folder of images, the one given or the one that is guessed from the names in the file."""
    names = [] if images is not None else _file_names(file)
    folder, looked = (images, ()) if images is not None else guess_folder(file, names)
    if names and not any(
        os.path.isfile(folder / path) for name in names for path in readings(name, folder, file.parent)
    ):
        places = ", ".join(map(str, looked))
        raise RetinaError(
            f"{file}: its images are not in {places} (sought: {short(names[0])}); say where they are with --images"
        )
    return config.CocoSource(annotations=file, images=folder)


def _file_names(file: Path) -> list[str]:
    """The first names of images in a COCO file, without parsing all of it; what is wrong with it, its reader tells."""
    names = []
    try:
        with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for match in islice(_FILE_NAME.finditer(content), _LOOKED_AT):
                names.append(json.loads(match[1]))
    except (OSError, ValueError):  # ValueError: an empty file, or no JSON
        return []
    return names
