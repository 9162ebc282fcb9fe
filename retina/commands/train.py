"""`retina train`: parses, trains, and says where the run is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from retina.commands.options import Overrides, config_arguments, console


def train(
    config: Annotated[str | None, typer.Argument(help="A YAML file; without one, the digits demo.")] = None,
    overrides: Overrides = None,
    run_dir: Annotated[Path, typer.Option(help="A new folder for everything the run writes.")] = Path("runs/latest"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's latest checkpoint.")] = False,
    launcher: Annotated[
        Literal["slurm", "env"] | None, typer.Option(help="Whose variables give run.hosts: SLURM's, or torchrun's.")
    ] = None,
) -> None:
    """Train a detector and evaluate it on the validation data."""
    from retina import config as configuration

    file, settings = config_arguments(config, overrides)
    if resume and file is None:
        from retina.training.run_directory import RunDirectory

        file = str(RunDirectory.open(run_dir).path / "config.yaml")
    # Read before TensorFlow is imported, which takes seconds: a typo is told at once.
    resolved = configuration.load(file, [*settings, *_launched(launcher)])
    from retina.startup import import_tensorflow_quietly

    import_tensorflow_quietly()
    from retina.training.run_directory import shown
    from retina.training.train import train as train_run

    train_run(resolved, run_dir, resume=resume)
    if resolved.run.hosts is not None and resolved.run.hosts.index:
        return  # host 0 says where the run is
    terminal = console()
    terminal.print(f"The run is in {run_dir}. Look at it:", markup=False, soft_wrap=True)
    run = shown(run_dir)
    terminal.print(f"  retina evaluate {run}\n  retina predict {run} IMAGE…", markup=False, soft_wrap=True)


def _launched(launcher: Literal["slurm", "env"] | None) -> list[str]:
    """The override that says which host this is, of how many."""
    if launcher is None:
        return []
    import os

    from retina.training.launchers import hosts_of

    hosts = hosts_of(launcher, os.environ)
    return [f"run.hosts={'null' if hosts is None else hosts.model_dump_json()}"]
