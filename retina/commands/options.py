"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from retina.data.formats import Format
from retina.files import is_file_name

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]...", help="Settings that replace the file's.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]
Conventions = Annotated[bool, typer.Option("--conventions", help="Also say by which rules the figures are made.")]
Checkpoint = Annotated[str, typer.Option(help="best, latest or step_N.")]
DataFormat = Annotated[Format | None, typer.Option(help="Of a folder that may be read in several ways.")]
DataImages = Annotated[Path | None, typer.Option(help="Folder of images of COCO, CSV or labelme annotations.")]
DataDir = Annotated[Path | None, typer.Option(help="Where TFDS datasets lie.")]
Split = Literal["train", "validation", "test"]
ProtocolOption = Annotated[Literal["coco", "voc07", "voc10", "pascal-devkit"], typer.Option(help="Whose rules.")]
Replicates = Annotated[
    int | None, typer.Option(help="Resamples of the images for coco's intervals: 1000; 0 for none.", min=0)
]


def config_arguments(config: str | None, overrides: list[str] | None) -> tuple[str | None, list[str]]:
    """The file and the overrides of a command; `retina train run.seed=1` has no file, and one override."""
    if config is not None and "=" in config and not is_file_name(config):
        return None, [config, *(overrides or [])]
    return config, overrides or []
