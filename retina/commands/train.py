"""`retina train`: parses, trains, and says where the run is."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from retina import api
from retina import config as configuration
from retina.commands.options import DataFormat, Overrides, config_arguments
from retina.data.formats import Format
from retina.data.formats.layouts import look
from retina.errors import RetinaError
from retina.files import exists
from retina.output import console
from retina.runs.directory import RunDirectory, shown
from retina.runs.hosts import hosts_of

_MAY_BE_DATA = (".yaml", ".yml", ".json", ".csv", ".data", ".names")


def train(
    config: Annotated[
        str | None,
        typer.Argument(metavar="[FOLDER_OR_CONFIG]", help="Images and boxes, or a YAML file; or else the digits demo."),
    ] = None,
    overrides: Overrides = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="A new folder for all that the run writes: runs/latest, or runs/FOLDER.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Of a FOLDER: time from start to report; an hour at most by default.")
    ] = None,
    format: DataFormat = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's latest checkpoint.")] = False,
    changed_data: Annotated[
        bool, typer.Option("--changed-data", help="Go on although the data are not the run's any more.")
    ] = False,
    launcher: Annotated[
        Literal["slurm", "env"] | None, typer.Option(help="Whose variables give run.hosts: SLURM's, or torchrun's.")
    ] = None,
) -> None:
    """Train a detector on a folder of images or by a configuration, evaluate it, and write its page."""
    file, settings = config_arguments(config, overrides)
    if changed_data and not resume:
        raise RetinaError("--changed-data: it has an effect on a run that goes on only; add --resume, or leave it out")
    if file is not None and _is_data(file, format):
        if resume or launcher is not None:
            raise RetinaError(
                f"{'--resume' if resume else '--launcher'}: expected a configuration or a run, got data ({file}); "
                + ("give --run-dir RUN alone" if resume else "write a configuration with `retina init` first")
            )
        resolved, run_dir = api.init_run(file, run_dir, minutes=minutes, overrides=settings, format=format, say=_say)
    else:
        for option, given in (("--minutes", minutes), ("--format", format)):
            if given is not None:
                raise RetinaError(f"{option}: it has an effect on a folder of images only; leave it out")
        run_dir = Path("runs/latest") if run_dir is None else run_dir
        resolved = _configured(file, settings, run_dir, resume, launcher)
    api.train(resolved, run_dir, resume=resume, changed_data=changed_data)
    if resolved.run.hosts is not None and resolved.run.hosts.index:
        return  # host 0 says where the run is
    page = _report(run_dir) if resolved.run.report else None
    _say(f"The run is in {run_dir}. Look at it:")
    run = shown(run_dir)
    if resolved.data.validation is not None:
        _say(f"  retina evaluate {run}{'' if resolved.data.test is None else ' --split test'}")
    _say(f"  retina predict {run} IMAGE…")
    if page is not None:
        _say(f"Its report, a page for the browser, is {page}.")


def _say(line: str) -> None:
    console().print(line, markup=False, soft_wrap=True)


def _is_data(word: str, format: Format | None) -> bool:
    """Tell whether the first argument is data of any format rather than a configuration.

    Raises:
        RetinaError: it is a folder or file that is neither.
    """
    path = Path(word)
    if not exists(path) or (path.is_file() and path.suffix not in _MAY_BE_DATA):
        return False  # reading it as a configuration says what is wrong
    return look(word, format=format).config is None


def _report(run: Path) -> Path | None:
    """The page of a complete run; None, and a line on standard error, where it can't be written."""
    try:
        return api.report_after_training(run)
    except Exception as error:
        what = " ".join(str(error).split()) or type(error).__name__
        print(
            f"retina: warning: {what} (the run is complete; its report is not written: `retina report {shown(run)}`)",
            file=sys.stderr,
        )
        return None


def _configured(
    file: str | None, settings: list[str], run_dir: Path, resume: bool, launcher: Literal["slurm", "env"] | None
) -> configuration.Config:
    """The configuration of a file, or without one of the run that goes on or of the digits demo."""
    by_its_own_config = resume and file is None
    if by_its_own_config:
        file = str(RunDirectory.open(run_dir).path / "config.yaml")
    resolved = configuration.load(file, [*settings, *_launched(launcher)])
    place_given = launcher is not None or any(text.startswith("run") and "hosts" in text for text in settings)
    if by_its_own_config and not place_given:
        _refuse_other_place(run_dir, resolved)
    return resolved


def _refuse_other_place(run_dir: Path, config: configuration.Config) -> None:
    """Refuse a run of several hosts: its directory holds host 0's place, and each host would wait for the others.

    Raises:
        RetinaError: the run is one of several hosts.
    """
    hosts = config.run.hosts
    if hosts is not None:
        raise RetinaError(
            f"{run_dir}: the run is one of {hosts.count} hosts, and which one this is has to be said again: add "
            f"--launcher, or run.hosts='{{coordinator: {hosts.coordinator}, count: {hosts.count}, index: N}}'; "
            "run.hosts=null goes on with this host alone"
        )


def _launched(launcher: Literal["slurm", "env"] | None) -> list[str]:
    """The override that says which host this is, of how many."""
    if launcher is None:
        return []
    hosts = hosts_of(launcher, os.environ)
    return [f"run.hosts={'null' if hosts is None else hosts.model_dump_json()}"]
