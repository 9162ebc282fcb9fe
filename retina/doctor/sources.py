"""What `retina doctor` was pointed at: a configuration, a run, or bare data of any format, as splits to read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from retina import config as configuration
from retina.config.reading import read_yaml
from retina.data.dataset import DetectionDataset
from retina.data.load import load_split
from retina.doctor.findings import Finding, count, listed
from retina.errors import RetinaError
from retina.files import exists

_CONFIG_SUFFIXES = (".yaml", ".yml")


class Target(NamedTuple):
    """What is examined: its name for the reports, the configuration if there is one, and `read`, from a split's name
    and a policy for invalid boxes to its table."""

    name: str
    config: configuration.Config | None
    splits: tuple[str, ...]
    read: Callable[[str, str], DetectionDataset]
    invalid_boxes: str


def open_target(path: Path, overrides: list[str], images: Path | None = None) -> Target:
    """Finds out what a path is.

    Args:
        path: a configuration (.yaml) or run folder; an Ultralytics data.yaml; a COCO JSON file or a folder with
            `annotations/*.json`; a Pascal VOC folder; a CSV file; or a TFDS folder (`features.json`).
        overrides: of a configuration.
        images: the folder of images of a COCO or CSV file, where it is not found by itself.

    Raises:
        RetinaError: there is nothing, nothing that is known, or an option has no effect on it.
    """
    if not exists(path):
        raise RetinaError(f"{path}: no such file or folder; expected data or a configuration (.yaml)")
    run = path / "config.yaml"
    if (path.suffix in _CONFIG_SUFFIXES and not _is_yolo(path)) or exists(run):
        if images is not None:
            raise RetinaError("--images: no effect on a configuration, which names its images; leave it out")
        return _of_config(path, configuration.load(run if exists(run) else path, overrides))
    if overrides:
        raise RetinaError(f"{overrides[0]}: overrides need a configuration, and {path} is data; leave them out")
    sources = _sources(path, images)
    return Target(str(path), None, tuple(sources), lambda split, policy: _read(sources[split], policy), "error")


def read_splits(target: Target) -> tuple[dict[str, DetectionDataset], list[Finding]]:
    """Every split that can be read, and a finding for each that can't and for each that has invalid boxes.

    Invalid boxes never stop it: they are listed, and left out unless the configuration cuts them.
    """
    splits, findings = {}, []
    for split in target.splits:
        try:
            splits[split] = target.read(split, "error")
            continue
        except RetinaError as error:
            findings.append(_finding(error, split, target))
            if not error.details:
                continue
        try:
            splits[split] = target.read(split, "drop" if target.invalid_boxes == "error" else target.invalid_boxes)
        except RetinaError as error:
            findings.append(_finding(error, split, target))
    return splits, findings


def _finding(error: RetinaError, split: str, target: Target) -> Finding:
    if not error.details:
        return Finding("error", "unreadable-split", str(error), "correct what it names", split)
    handled = target.invalid_boxes != "error"
    return Finding(
        "warning" if handled else "error",
        "invalid-boxes",
        f"{count(len(error.details), 'invalid box')}{'' if len(error.details) < 1000 else ' or more'}: "
        f"{error.details[0]}",
        f"they are handled by data.invalid_boxes: {target.invalid_boxes}; better correct the file"
        if handled
        else "correct the file, or set data.invalid_boxes: drop (or clip)",
        split,
        listed(error.details),
    )


def _of_config(path: Path, config: configuration.Config) -> Target:
    splits = tuple(name for name in ("train", "validation", "test") if getattr(config.data, name) is not None)

    def read(split: Any, policy: str) -> DetectionDataset:
        # Images that training would skip are the doctor's to find.
        seen = {"invalid_boxes": policy, "invalid_images": "error", "max_pixels": configuration.MAX_PIXELS}
        return load_split(config.data.model_copy(update=seen), split)

    return Target(str(path), config, splits, read, config.data.invalid_boxes)


def _read(source: configuration.Source, policy: Any) -> DetectionDataset:
    return load_split(configuration.Data(train=source, validation=source, invalid_boxes=policy), "train")


def _sources(path: Path, images: Path | None) -> dict[str, configuration.Source]:
    if path.suffix == ".csv":
        return {"data": configuration.CsvSource(annotations=path, images=images)}
    if path.suffix == ".json":
        return {"data": _coco(path, images)}
    if images is not None:
        raise RetinaError(f"--images: no effect on {path}; it is for a COCO or CSV file")
    if path.suffix in _CONFIG_SUFFIXES:
        tree = read_yaml(path, str(path))
        keys = [key for key in ("train", "val", "valid", "validation", "test") if tree.get(key)]
        return {key: configuration.YoloSource(data=path, split="val" if key.startswith("val") else key) for key in keys}
    if exists(path / "features.json"):
        return {name: configuration.TfdsSource(split=name, data_dir=path) for name in _tfds_splits(path)}
    found = {file.stem: file for file in sorted(path.glob("annotations/*.json")) if _has_boxes(file)}
    if found:
        return {name.removeprefix("instances_"): _coco(file, None) for name, file in found.items()}
    splits = list(_voc_splits(path))
    if splits:
        return {split: configuration.VocSource(folder=path, splits=(split,)) for split in splits}
    raise RetinaError(
        f"{path}: expected a configuration, a COCO JSON file or a folder with annotations/*.json, a Pascal VOC folder "
        "with ImageSets/Main/*.txt, a data.yaml, a CSV file or a TFDS folder; got none of them"
    )


def _is_yolo(path: Path) -> bool:
    """An Ultralytics data.yaml has `names` (and paths), a configuration has `data` and `schedule`."""
    tree = read_yaml(path, str(path))
    return isinstance(tree, dict) and "names" in tree and "data" not in tree


def _coco(file: Path, images: Path | None) -> configuration.CocoSource:
    """A COCO file with its folder of images: the one given, or `../val2017` of `annotations/instances_val2017.json`,
    `images` beside it, or the folder that it lies in."""
    if images is None:
        home = file.parent.parent if file.parent.name == "annotations" else file.parent
        name = file.stem.removeprefix("instances_")
        places = (home / name, home / "images" / name, home / "images", file.parent / "images", file.parent)
        images = next(place for place in places if place.is_dir())
    return configuration.CocoSource(annotations=file, images=images)


def _has_boxes(file: Path) -> bool:
    """Of COCO's own annotation files those of instances; captions and keypoints lie beside them."""
    return not file.stem.startswith(("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_"))


def _tfds_splits(folder: Path) -> list[str]:
    import json

    try:
        described = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
        return [split["name"] for split in described["splits"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RetinaError(f"{folder / 'dataset_info.json'}: cannot read the splits of this dataset: {error}") from None


def _voc_splits(folder: Path) -> Iterator[str]:
    """The splits of a devkit, without those of single classes (aeroplane_train), and without `trainval` where its
    parts are there: every image would be in two splits."""
    homes = [("", folder)] + [
        (f"{home.name.removeprefix('VOC')}/", home)
        for place in (folder, folder / "VOCdevkit")
        for home in sorted(place.glob("VOC*"))
        if home.name != "VOCdevkit"
    ]
    for prefix, home in homes:
        names = [file.stem for file in sorted((home / "ImageSets" / "Main").glob("*.txt")) if "_" not in file.stem]
        for name in names:
            if name != "trainval" or not {"train", "val"} <= set(names):
                yield prefix + name
