"""The layout of a path or a name, recognised by looking at it, for every command that takes data.

Each format's file knows its layouts and recognises them; here the one that fits is chosen.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from retina import config
from retina.config.reading import read_yaml
from retina.data.folders import files, subfolders
from retina.data.formats import Format, coco, csv, labelme, tfds, voc, yolo
from retina.errors import RetinaError
from retina.files import exists

TAKEN = (
    "a configuration or run, a folder of COCO JSON, Pascal VOC XML, YOLO, labelme or CSV annotations and their images, "
    "one of their files (.json, .csv, data.yaml, obj.data), a TFDS folder (dataset_info.json) or the name of a TFDS "
    "dataset"
)
"""The sources that are known, for messages."""

PICK = "choose one"
"""What a message on several readings advises; a command without `--format` has other advice."""

TFDS_HOME = Path("~/tensorflow_datasets")
_TFDS_NAME = re.compile(r"\w+(/[\w.\-]+)?(:[\w.*]+)?")
_YAML = (".yaml", ".yml")
_NEAREST = 3
_DEEPEST = 3  # folders around the one that holds the data, as archives have them
_LISTED = 8

_IN_FOLDER: dict[Format, Callable[[Path, Path | None], dict[str, config.Source]]] = {
    "tfds": tfds.sections,
    "yolo": yolo.sections,
    "coco": coco.sections,
    "voc": voc.sections,
    "labelme": labelme.sections,
    "csv": csv.sections,
}
# The more common with who starts first, of the formats and of the layouts of each.
_IN_WORDS = (voc.LAYOUTS, coco.LAYOUTS, yolo.LAYOUTS, labelme.LAYOUTS, csv.LAYOUTS, tfds.LAYOUTS)
LAYOUTS = {words: patterns for layouts in _IN_WORDS for words, patterns in layouts.items()}
"""The layouts of folders that are known, in words, each with patterns of what hints at it."""


class Layout(NamedTuple):
    """The `format` of a source; its `splits` by their own names, in order; `config`: the file of a configuration,
    whose splits are not read here, for they depend on overrides; `lists`: whether the splits are VOC's lists, of which
    several may hold one image."""

    format: Format | Literal["config"]
    splits: dict[str, config.Source]
    config: Path | None = None
    lists: bool = False


def look(source: str, images: Path | None = None, data_dir: Path | None = None, format: Format | None = None) -> Layout:
    """Tell a configuration or run, and data in any layout of any format apart.

    Of a VOC folder with lists these are all its lists, which may overlap (but for those of single classes). A file of
    COCO or CSV is one split, called as the file is; a folder without splits is one, called as the folder is.

    Args:
        source: a path, or the name of a TFDS dataset such as "voc/2007".
        images: the folder of images of COCO, CSV or labelme annotations.
        data_dir: where TFDS datasets lie, `TFDS_HOME` by default.
        format: the format as which a folder is read that may be of several.

    Raises:
        RetinaError: there is nothing, nothing that is known, or what may be read in several ways; or an option has no
            effect on it.
    """
    path = Path(source)
    there = exists(path)
    layout = _at(path, images, format) if there else _by_name(source, data_dir)
    for option, given, used in (
        ("--images", images is not None, layout.format in ("coco", "csv", "labelme")),
        ("--data-dir", data_dir is not None, not there),
        ("--format", format is not None, layout.format == format and path.is_dir()),
    ):
        if given and not used:
            raise RetinaError(f"{source}: {option} has no effect on a source of format '{layout.format}'; leave it out")
    return layout


def _by_name(source: str, data_dir: Path | None) -> Layout:
    home = TFDS_HOME if data_dir is None else data_dir
    named = _TFDS_NAME.fullmatch(source) is not None
    # Looked for first: TFDS takes seconds to import, and most of what is not there is a path with a slip in it.
    if named and (home.expanduser() / re.split("[/:]", source)[0]).is_dir():
        return Layout("tfds", tfds.sections_of_name(source, home))
    also = f", nor a TFDS dataset of this name in {home} (--data-dir)" if named else ""
    raise RetinaError(f"{source}: no such file or folder{also}; expected {TAKEN}")


def _at(path: Path, images: Path | None, format: Format | None) -> Layout:
    if path.is_dir():
        return _in_folder(path, images, format)
    ending = path.suffix.lower()
    if ending in _YAML:
        tree = read_yaml(path, str(path))
        if yolo.is_data_yaml(tree):
            return Layout("yolo", yolo.sections_of_file(path))
        if isinstance(tree, dict) and not config.is_ours(tree):
            config.load(path)  # says whose file it is
        return Layout("config", {}, path)
    if ending in (".data", ".names"):
        return Layout("yolo", yolo.sections_of_file(path))
    if ending == ".json":
        return Layout("coco", {coco.split_name(path): coco.section_of_file(path, images)})
    if ending == ".csv":
        return Layout("csv", {path.stem: csv.section_of_file(path, images)})
    raise RetinaError(
        f"{path}: expected a file ending in .yaml, .json, .csv or .data, or a folder; give the folder of those "
        f"that are a file for each image. Taken are {TAKEN}"
    )


def _in_folder(path: Path, images: Path | None, format: Format | None) -> Layout:
    settings = path / "config.yaml"
    there = exists(settings)
    if there and config.is_ours(read_yaml(settings, str(settings))):
        return Layout("config", {}, settings)
    inner = path
    for _ in range(_DEEPEST):
        layout = _as_data(inner, images, format)
        inside = subfolders(inner)
        if layout is not None:
            return layout
        if len(inside) != 1 or files(inner):
            break
        inner = inside[0]
    also = "; its config.yaml is not a configuration of retina" if there else ""
    what = TAKEN if format is None else f"a folder of format '{format}'"
    nearest = "; ".join(_nearest(path))
    raise RetinaError(
        f"{path}: expected {what}; got none of them{also}. It holds {_content(path)}. The nearest layouts: {nearest}"
    )


def _as_data(path: Path, images: Path | None, format: Format | None) -> Layout | None:
    """The layout of a folder of data, None for none.

    Raises:
        RetinaError: several formats fit, or the only one that does is not whole.
    """
    readings: dict[Format, dict[str, config.Source]] = {}
    faults: dict[Format, RetinaError] = {}
    for name, sections in _IN_FOLDER.items():
        if format in (None, name):
            try:
                splits = sections(path, images)
            except RetinaError as error:
                faults[name] = error
                continue
            if splits:
                readings[name] = splits
    if len(readings) + len(faults) > 1:
        ways = [f"--format {name} ({', '.join(splits)})" for name, splits in readings.items()]
        ways += [f"--format {name} ({error})" for name, error in faults.items()]
        raise RetinaError(f"{path}: it may be read in {len(ways)} ways; {PICK}: {'; '.join(ways)}")
    for fault in faults.values():
        raise fault
    for name, splits in readings.items():
        return Layout(name, splits, lists=name == "voc" and bool(voc.split_lists(path)))
    return None


def _content(path: Path) -> str:
    """The files of a folder, counted by ending, and its folders."""
    endings = Counter(file.suffix.lower() or file.name for file in files(path, ("",)))
    parts = [f"{count} {ending}" for ending, count in endings.most_common(_LISTED)]
    parts += [f"{inside.name}/" for inside in subfolders(path)][:_LISTED]
    return ", ".join(parts) or "nothing"


def _nearest(path: Path) -> list[str]:
    """The layouts at which most of a folder hints, in words; of equals the more common, and not all of one format."""
    hints = {words: sum(any(path.glob(pattern)) for pattern in patterns) for words, patterns in LAYOUTS.items()}
    places = {words: place for layouts in _IN_WORDS for place, words in enumerate(layouts)}
    return sorted(LAYOUTS, key=lambda words: (-hints[words], places[words]))[:_NEAREST]


def with_asked_splits(sections: dict[str, config.Source], names: Sequence[str]) -> dict[str, config.Source]:
    """Return the splits of a data.yaml, and those that are asked for though nothing is there: their reader says so."""
    first = next(iter(sections.values()))
    if not isinstance(first, config.YoloSource) or first.data is None:
        return sections
    asked = {name: config.YoloSource(data=first.data, split=name) for name in names if name in yolo.SPLITS}
    return {**asked, **sections}
