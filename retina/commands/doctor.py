"""`retina doctor`: parses, examines, prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from retina.commands.options import Json, config_arguments, console
from retina.errors import RetinaError


def doctor(
    target: Annotated[
        str, typer.Argument(metavar="DATA_OR_CONFIG", help="A configuration or run, data of any format, a TFDS name.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]...", help="Settings of a configuration.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Read only the headers of images.")] = False,
    images: Annotated[Path | None, typer.Option(help="Folder of images of a COCO or CSV file.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where TFDS datasets lie.")] = None,
    time: Annotated[int | None, typer.Option(help="Also run this many training steps and time them.", min=3)] = None,
    html: Annotated[Path | None, typer.Option(help="Write it all as one page.")] = None,
    as_json: Json = False,
) -> None:
    """Examine data, alone or through a configuration's anchors, before training on it.

    Exit code 1 if a finding is an error.
    """
    from retina.doctor.targets import open_target

    file, settings = config_arguments(target, overrides)
    if file is None:
        raise RetinaError(f"doctor: expected data or a configuration first, got the override '{target}'")
    opened = open_target(file, settings, images, data_dir)
    if time is not None and opened.config is None:
        raise RetinaError(f"--time: training steps need a configuration, and {file} is data; leave it out")
    if time is not None and opened.config is not None and (hosts := opened.config.run.hosts) is not None:
        share = opened.config.run.batch_size // hosts.count
        raise RetinaError(
            f"--time: run.hosts: one process cannot time the steps of {hosts.count} hosts; time one host's share of "
            f"them with run.hosts=null run.batch_size={share}"
        )
    if html is not None and not html.absolute().parent.is_dir():
        raise RetinaError(f"--html: {html.absolute().parent}: no such folder; make it first")
    from retina.startup import import_tensorflow_quietly

    import_tensorflow_quietly()
    from retina.doctor.examine import examine, with_timing
    from retina.doctor.printing import print_examination

    terminal = console()
    if as_json:
        examined = examine(opened, quick=quick)
    else:
        with terminal.status("reading …") as status:
            done = 0

            def advance(images: int) -> None:
                nonlocal done
                done += images
                if done % 50 == 0:
                    status.update(f"{done} images opened …")

            examined = examine(opened, quick=quick, advance=advance)
    # Training would stop at what the examination calls an error, and take the examination with it.
    if time is not None and not examined.sound:
        typer.echo("--time: left out, because of the errors that were found; mend those first", err=True)
    elif time is not None and opened.config is not None and "train" in examined.splits:
        from retina.data.load import load_split
        from retina.training.timing import time_steps

        timing = time_steps(opened.config, load_split(opened.config.data, "train"), time)
        examined = with_timing(examined, timing._asdict())
    if html is not None:
        from retina.files import write_text
        from retina.pages.examination import render

        write_text(html, render(examined))
    if as_json:
        print(json.dumps(examined.to_json(), indent=2))
    else:
        print_examination(terminal, examined)
        if html is not None:
            terminal.print(f"The page is {html}.", markup=False, soft_wrap=True)
    if not examined.sound:
        raise typer.Exit(1)
