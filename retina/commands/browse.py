"""`retina browse`: parses, writes the page, opens it."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from retina import api
from retina.commands.options import DataDir, DataFormat, DataImages, config_arguments
from retina.errors import RetinaError
from retina.output import console


def browse(
    target: Annotated[
        str, typer.Argument(metavar="DATA", help="Data of any format, a TFDS name, a configuration or run.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]...", help="Settings of a configuration.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="By default the one to train on, or the only one.")] = None,
    out: Annotated[Path | None, typer.Option(help="The page; by default DATA-SPLIT.html here.")] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    limit: Annotated[int, typer.Option(help="Images on the page; those with defects come first.", min=1)] = 300,
    quick: Annotated[bool, typer.Option("--quick", help="Read only the headers of images not shown.")] = False,
    images: DataImages = None,
    data_dir: DataDir = None,
    format: DataFormat = None,
) -> None:
    """Look through a dataset: one page with its images, their boxes and their defects."""
    source, settings = config_arguments(target, overrides)
    if source is None:
        raise RetinaError(f"browse: expected data or a configuration first, got the override '{target}'")
    terminal = console()
    done = 0
    with terminal.status("reading …") as status:

        def advance(number: int) -> None:
            nonlocal done
            done += number
            if done % 100 == 0:
                status.update(f"{done} images opened …")

        page = api.browse(
            source,
            split=split,
            out=out,
            limit=limit,
            overrides=settings,
            images=images,
            data_dir=data_dir,
            format=format,
            quick=quick,
            advance=advance,
        )
    terminal.print(f"The page is {page}.", markup=False, soft_wrap=True)
    if show:
        webbrowser.open(page.absolute().as_uri())
