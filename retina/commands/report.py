"""`retina report`: parses, writes the page of a run, a study or several runs, opens it."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from retina import api
from retina.commands.options import Split
from retina.errors import RetinaError
from retina.files import is_file_name
from retina.output import console


def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN... [KEY.PATH=VALUE]...", help="A run, a study, or runs to compare; data.* settings."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The page; by default RUN/report/index.html, STUDY/study.html, comparison.html.")
    ] = None,
    split: Annotated[Split, typer.Option(help="Which of the config's data to judge on.")] = "validation",
    checkpoint: Annotated[str, typer.Option(help="best, latest or step_N.")] = "best",
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Write one page that says how good a run is and why; or a study's, or several runs' side by side."""
    overrides = [word for word in runs if "=" in word and not is_file_name(word)]
    paths = [Path(word) for word in runs if word not in overrides]
    if not paths:
        raise RetinaError(f"report: expected a run or a study first, got the override '{overrides[0]}'")
    page = api.write_report(paths, out, split=split, checkpoint=checkpoint, overrides=overrides)
    console().print(f"The page is {page}.", markup=False, soft_wrap=True)
    if show:
        webbrowser.open(page.absolute().as_uri())
