"""The source of a conversion: the splits of a path or a name, and their new names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from retina import config
from retina.data.dataset import InvalidBoxes, suggest
from retina.data.folders import split_of
from retina.data.formats import Format
from retina.data.formats.layouts import Layout, look, with_asked_splits
from retina.data.orientation import Policy
from retina.errors import RetinaError


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
    orientation: Policy | None = None,
    format: Format | None = None,
) -> Origin:
    """Return what `retina.data.formats.layouts.look` finds, its splits chosen and renamed.

    Args:
        source: a path, or the name of a TFDS dataset such as "voc/2007".
        splits: which of the source's, each NAME or NAME=NEW; for a source that has none, what it is called. Without,
            all of them, but for VOC's lists, which may overlap.
        images, data_dir, format: see `retina.data.formats.layouts.look`.
        invalid_boxes: the policy; None takes that of a configuration, else "error".
        orientation: what boxes belong to where images have an EXIF rotation; None takes a configuration's, else "auto".

    Raises:
        RetinaError: there is no such source, split, or a setting has no effect on it.
    """
    wanted = dict(_renaming(entry) for entry in splits)
    layout = look(source, images, data_dir, format)
    kind, sections, data = layout.format, layout.splits, None
    if layout.config is not None:
        data = config.load(layout.config).data
        configured = {"train": data.train, "validation": data.validation, "test": data.test}
        sections = {name: section for name, section in configured.items() if section is not None}
    if layout.lists:
        sections = _of_lists(source, sections, tuple(wanted))
    if wanted and _is_nameless(source, layout):
        if len(wanted) > 1:
            raise RetinaError(f"{source}: it is one split; expected one --split, got {len(wanted)}")
        sections = {next(iter(wanted)): next(iter(sections.values()))}
    if kind == "yolo":
        sections = with_asked_splits(sections, list(wanted))
    sections |= {_plain(name): section for name, section in sections.items() if _plain(name) in wanted}
    for name in wanted:
        if name not in sections:
            raise RetinaError(f"{source}: it has no split '{name}'; {suggest(name, list(sections))}")
    chosen = {_plain(new): sections[name] for name, new in wanted.items()} if wanted else sections
    if len(chosen) < len(wanted):
        raise RetinaError(f"{source}: --split gives two splits one name; each needs its own")
    if data is None:
        any_source = next(iter(sections.values()))
        data = config.Data(train=any_source, validation=any_source)
    given = {"invalid_boxes": invalid_boxes, "orientation": orientation}
    data = data.model_copy(update={key: value for key, value in given.items() if value is not None})
    return Origin(kind, data, {_plain(name): section for name, section in chosen.items()})


def _renaming(entry: str) -> tuple[str, str]:
    name, _, new = entry.partition("=")
    if not name or (_ and not new):
        raise RetinaError(f"--split {entry}: expected NAME or NAME=NEW, such as val=validation")
    return name, new or name


def _is_nameless(source: str, layout: Layout) -> bool:
    """Whether a source is one split, whose name says nothing: then it may be called anything."""
    if len(layout.splits) != 1 or layout.lists or layout.format == "tfds":
        return False
    return (layout.format in ("coco", "csv") and Path(source).is_file()) or split_of(next(iter(layout.splits))) is None


def _plain(split: str) -> str:
    return re.sub(r"\W", "_", split)


def _of_lists(source: str, sections: dict[str, config.Source], wanted: tuple[str, ...]) -> dict[str, config.Source]:
    if not wanted and len(sections) > 1:
        raise RetinaError(
            f"{source}: it has several splits, which may overlap; choose with --split, repeatable: "
            f"{', '.join(sections)}"
        )
    # Any name is taken: the folder may have more lists than are worth showing, and its reader knows them all.
    any_list = next(iter(sections.values()))
    return {name: any_list.model_copy(update={"splits": (name,)}) for name in wanted or sections}
