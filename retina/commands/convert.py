"""`retina convert`: parses, converts, prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from retina import api
from retina.commands.options import DataDir, DataFormat, DataImages, Json
from retina.config.reading import write_yaml
from retina.data.convert.converting import Conversion
from retina.data.convert.part import Written
from retina.output import console, count
from retina.startup import require_tensorflow

_Choice = Literal["keep", "drop"]


def convert(
    source: Annotated[
        str,
        typer.Argument(metavar="SRC", help="A configuration or run, data of any format, or a TFDS name."),
    ],
    folder: Annotated[Path, typer.Argument(metavar="DST", help="A new folder.")],
    to: Annotated[Written, typer.Option(help="The format to write.")],
    split: Annotated[
        list[str] | None, typer.Option(help="NAME or NAME=NEW of the source's splits, repeatable; all if left out.")
    ] = None,
    images: DataImages = None,
    data_dir: DataDir = None,
    format: DataFormat = None,
    invalid_boxes: Annotated[
        Literal["error", "clip", "drop"] | None, typer.Option(help="Boxes without area or outside their image.")
    ] = None,
    orientation: Annotated[
        Literal["stored", "upright"] | None,
        typer.Option(help="What boxes belong to where images have an EXIF rotation and sizes don't tell."),
    ] = None,
    crowd: Annotated[_Choice | None, typer.Option(help="Crowd boxes, where the format can't mark them.")] = None,
    difficult: Annotated[_Choice | None, typer.Option(help="Difficult boxes, where it can't mark them.")] = None,
    upright: Annotated[bool, typer.Option("--upright", help="Turn images with an EXIF rotation, boxes too.")] = False,
    link: Annotated[bool, typer.Option("--link", help="Hard links in the place of copies.")] = False,
    spec: Annotated[Literal["coco", "voc"] | None, typer.Option(help="Of tfds: whose features.")] = None,
    file_format: Annotated[
        Literal["tfrecord", "array_record"] | None, typer.Option(help="Of tfds: tfrecord if left out.")
    ] = None,
    shard_mib: Annotated[int | None, typer.Option(help="Of tfds: size of a shard, 256 if left out.", min=1)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a conversion that was cut off.")] = False,
    as_json: Json = False,
) -> None:
    """Write a dataset in another format, and check what was written."""
    if to == "tfds":
        require_tensorflow("--to tfds")
    with _Bar() as bar:
        conversion = api.convert(
            source,
            folder,
            to,
            splits=split or (),
            images=images,
            data_dir=data_dir,
            format=format,
            invalid_boxes=invalid_boxes,
            orientation=orientation,
            crowd=crowd,
            difficult=difficult,
            upright=upright,
            link=link,
            spec=spec,
            file_format=file_format,
            shard_bytes=None if shard_mib is None else shard_mib * 2**20,
            resume=resume,
            progress=bar.show,
        )
    if as_json:
        print(json.dumps(conversion.to_json(), indent=2))
    else:
        _print(conversion)
    if conversion.problems:
        raise typer.Exit(1)


class _Bar:
    """A live line on a terminal; nothing elsewhere, so that logs stay short."""

    def __init__(self) -> None:
        error = console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
            console=error,
            disable=not error.is_terminal,
            transient=True,
        )
        self.task = self.progress.add_task("reading", total=None)
        self.step = "reading"

    def __enter__(self) -> _Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def show(self, step: str, done: int, total: int) -> None:
        if step != self.step:
            self.step = step
            self.progress.reset(self.task, description=step, total=total)
        self.progress.update(self.task, completed=done, total=total)


def _print(conversion: Conversion) -> None:
    terminal = console()
    for split, counts in conversion.splits.items():
        terminal.print(
            f"{split}: {count(counts['images'], 'image', ',')}, {count(counts['boxes'], 'box', ',')}", markup=False
        )
    for note in conversion.notes:
        terminal.print(f"note: {note}", markup=False, soft_wrap=True)
    folder = conversion.folder
    if conversion.problems:
        for problem in conversion.problems:
            terminal.print(f"wrong: {problem}", markup=False, soft_wrap=True)
        remedy = "remove what is wrong and repeat the command with --resume, or begin again in a new folder"
        terminal.print(f"{folder}: it is not what was to be written; {remedy}.", markup=False, soft_wrap=True)
        return
    held = "its source holds, damaged images too" if conversion.damaged else "it should"
    terminal.print(f"Read again and compared: {folder} holds what {held}.", markup=False, soft_wrap=True)
    tree, left = conversion.configuration()
    if "train" in tree["data"]:
        says = "A configuration begins like this; how many steps to train is yours to say:"
    else:
        says = "Part of a configuration, which also needs data.train, a split to train on:"
    terminal.print(says, soft_wrap=True)
    terminal.print(write_yaml(tree), end="", markup=False, soft_wrap=True)
    if left:
        terminal.print(f"# without a place in it: {', '.join(left)}", markup=False, soft_wrap=True)
