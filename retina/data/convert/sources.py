"""What a path or a name means as the source of a conversion: splits, and how a configuration would read each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from retina import config
from retina.config.reading import read_yaml
from retina.data.dataset import InvalidBoxes, suggest
from retina.data.tfds_source import split_names
from retina.data.voc import split_names as voc_lists
from retina.errors import RetinaError
from retina.files import exists

_TFDS_NAME = re.compile(r"\w+(/[\w.\-]+)?(:[\w.*]+)?")
_YOLO_SPLITS = ("train", "val", "test")


class Origin(NamedTuple):
    """A source: its format, the policies that reading it follows, and its splits by the names they get."""

    format: str
    data: config.Data
    splits: dict[str, config.Source]


def find_source(
    source: str,
    *,
    splits: Sequence[str] = (),
    images: Path | None = None,
    data_dir: Path | None = None,
    invalid_boxes: InvalidBoxes | None = None,
) -> Origin:
    """Tells a configuration or run, COCO JSON, VOC folder, YOLO data.yaml or folder, CSV and TFDS dataset apart.

    Args:
        source: a path, or the name of a TFDS dataset such as "voc/2007".
        splits: which of the source's, each NAME or NAME=NEW; for a source that has none, what it is called. Without,
            all of them, but for VOC, whose lists overlap.
        images: the folder of images of a COCO JSON or CSV file.
        data_dir: where TFDS datasets lie.
        invalid_boxes: the policy; None takes that of a configuration, else "error".

    Raises:
        RetinaError: there is no such source, split, or a setting has no effect on it.
    """
    wanted = dict(_renaming(entry) for entry in splits)
    kind, found, data = _look(Path(source), source, images, data_dir, tuple(wanted))
    for option, given, used in (
        ("--images", images is not None, kind in ("coco", "csv")),
        ("--data-dir", data_dir is not None, kind == "tfds" and not Path(source).exists()),
    ):
        if given and not used:
            raise RetinaError(f"{source}: {option} has no effect on a source of format '{kind}'; leave it out")
    if kind in ("coco", "csv") and wanted:
        if len(wanted) > 1:
            raise RetinaError(f"{source}: a {kind} file is one split; expected one --split, got {len(wanted)}")
        found = {next(iter(wanted)): next(iter(found.values()))}
    for name in wanted:
        if name not in found:
            raise RetinaError(f"{source}: it has no split '{name}'; {suggest(name, list(found))}")
    chosen = {_plain(new): found[name] for name, new in wanted.items()} if wanted else found
    if len(chosen) < len(wanted):
        raise RetinaError(f"{source}: --split gives two splits one name; each needs its own")
    if data is None:
        any_source = next(iter(found.values()))
        data = config.Data(train=any_source, validation=any_source)
    if invalid_boxes is not None:
        data = data.model_copy(update={"invalid_boxes": invalid_boxes})
    return Origin(kind, data, {_plain(name): section for name, section in chosen.items()})


def _renaming(entry: str) -> tuple[str, str]:
    name, _, new = entry.partition("=")
    if not name or (_ and not new):
        raise RetinaError(f"--split {entry}: expected NAME or NAME=NEW, such as val=validation")
    return name, new or name


def _plain(split: str) -> str:
    return re.sub(r"\W", "_", split)


def _look(
    path: Path, text: str, images: Path | None, data_dir: Path | None, wanted: tuple[str, ...]
) -> tuple[str, dict[str, config.Source], config.Data | None]:
    if not exists(path):
        if _TFDS_NAME.fullmatch(text):
            home = data_dir if data_dir is not None else Path("~/tensorflow_datasets")
            return "tfds", _of_tfds(text, home), None
        raise RetinaError(
            f"{text}: no such file or folder; expected a configuration, a COCO JSON or CSV file, a VOC, YOLO or TFDS "
            "folder, or the name of a TFDS dataset"
        )
    if path.is_dir():
        return _of_folder(path, wanted)
    if path.suffix in (".yaml", ".yml"):
        tree = read_yaml(path, str(path))
        if isinstance(tree, dict) and "data" not in tree and ("names" in tree or "nc" in tree):
            return "yolo", _of_yolo_yaml(path, tree), None
        return _of_config(path)
    if path.suffix == ".json":
        return "coco", {_coco_split(path): config.CocoSource(annotations=path, images=_coco_images(path, images))}, None
    if path.suffix == ".csv":
        return "csv", {path.stem: config.CsvSource(annotations=path, images=images)}, None
    raise RetinaError(f"{path}: expected a file ending in .yaml, .json or .csv, or a folder")


def _of_folder(path: Path, wanted: tuple[str, ...]) -> tuple[str, dict[str, config.Source], config.Data | None]:
    if exists(path / "config.yaml"):
        return _of_config(path / "config.yaml")
    if exists(path / "dataset_info.json"):
        return "tfds", _of_tfds(None, path), None
    if exists(path / "data.yaml"):
        return "yolo", _of_yolo_yaml(path / "data.yaml", read_yaml(path / "data.yaml", str(path))), None
    known = voc_lists(path)
    if known:
        if not wanted and len(known) > 1:
            raise RetinaError(
                f"{path}: it has several splits, which may overlap; choose with --split, repeatable: {', '.join(known)}"
            )
        # Any name is taken: the folder may have more lists than are worth showing, and its reader knows them all.
        names = wanted or tuple(known)
        return "voc", {name: config.VocSource(folder=path, splits=(name,)) for name in names}, None
    if exists(path / "images"):
        return "yolo", {path.name: config.YoloSource(images=path / "images")}, None
    raise RetinaError(
        f"{path}: expected a run, or a folder with dataset_info.json (TFDS), ImageSets/Main (VOC), data.yaml or images "
        "(YOLO); found none of these"
    )


def _of_config(file: Path) -> tuple[str, dict[str, config.Source], config.Data | None]:
    data = config.load(file).data
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    return "config", {name: section for name, section in splits.items() if section is not None}, data


def _of_tfds(name: str | None, data_dir: Path) -> dict[str, config.Source]:
    return {
        split: config.TfdsSource(name=name, split=split, data_dir=data_dir) for split in split_names(name, data_dir)
    }


def _of_yolo_yaml(file: Path, tree: object) -> dict[str, config.Source]:
    there = [split for split in _YOLO_SPLITS if isinstance(tree, dict) and tree.get(split)]
    if not there:
        raise RetinaError(f"{file}: expected at least one of train, val and test in this data.yaml, got none")
    return {split: config.YoloSource(data=file, split=split) for split in there}


def _coco_split(file: Path) -> str:
    return file.stem.removeprefix("instances_")


def _coco_images(file: Path, images: Path | None) -> Path:
    """Where COCO's own layout keeps the images of `annotations/instances_train2017.json`, unless it is said."""
    if images is not None:
        return images
    home = file.parent.parent if file.parent.name == "annotations" else file.parent
    for folder in (home / _coco_split(file), home / "images" / _coco_split(file), home / "images"):
        if exists(folder):
            return folder
    raise RetinaError(f"{file}: its images are not in {home / _coco_split(file)}; say where they are with --images")
