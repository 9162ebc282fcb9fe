"""`retina init`: parses, looks at a folder, and says what was decided."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retina import api
from retina.commands.options import DataFormat, Overrides
from retina.files import bare_name
from retina.output import console
from retina.runs.directory import shown

Minutes = Annotated[
    float | None, typer.Option(help="Time that training may take, from start to report; an hour at most by default.")
]


def init(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Images and boxes, as `retina doctor` takes them.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The YAML file to write; FOLDER.yaml by default.")] = None,
    minutes: Minutes = None,
    format: DataFormat = None,
) -> None:
    """Write a configuration for a folder of your images: splits, sizes, network, schedule, each with its reason."""
    terminal = console()

    def say(line: str) -> None:
        terminal.print(line, markup=False, soft_wrap=True)

    file = Path(f"{bare_name(folder)}.yaml") if out is None else out
    api.init(folder, file, minutes=minutes, overrides=overrides or [], format=format, say=say)
    say(f"Train it:\n  retina train {shown(file)}")
