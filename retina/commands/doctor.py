"""`retina doctor`: parses, examines, prints."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from retina import api
from retina.commands.options import DataDir, DataFormat, DataImages, Json, config_arguments
from retina.errors import RetinaError
from retina.output import console


def doctor(
    target: Annotated[
        str, typer.Argument(metavar="DATA_OR_CONFIG", help="A configuration or run, data of any format, a TFDS name.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]...", help="Settings of a configuration.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Read only the headers of images.")] = False,
    images: DataImages = None,
    data_dir: DataDir = None,
    format: DataFormat = None,
    time: Annotated[int | None, typer.Option(help="Also run this many training steps and time them.", min=3)] = None,
    html: Annotated[Path | None, typer.Option(help="Write it all as one page.")] = None,
    as_json: Json = False,
) -> None:
    """Examine data, alone or through a configuration's anchors, before training on it.

    Exit code 1 if a finding is an error.
    """
    file, settings = config_arguments(target, overrides)
    if file is None:
        raise RetinaError(f"doctor: expected data or a configuration first, got the override '{target}'")
    terminal = console()
    with terminal.status("reading …") if not as_json else nullcontext() as status:
        opened = 0

        def advance(images: int) -> None:
            nonlocal opened
            opened += images
            if status is not None and opened % 50 == 0:
                status.update(f"{opened} images opened …")

        examination = api.examine(
            file,
            settings,
            images=images,
            data_dir=data_dir,
            format=format,
            quick=quick,
            time=time,
            html=html,
            advance=advance,
        )
    # Training would stop at what the examination calls an error, and take the examination with it.
    if time is not None and not examination.sound:
        typer.echo("--time: left out, because of the errors below; fix those first", err=True)
    if as_json:
        print(json.dumps(examination.to_json(), indent=2))
    else:
        api.print_examination(terminal, examination)
        if html is not None:
            terminal.print(f"The page is {html}.", markup=False, soft_wrap=True)
    if not examination.sound:
        raise typer.Exit(1)
