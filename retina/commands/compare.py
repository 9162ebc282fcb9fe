"""`retina compare`: parses, compares two detectors or two settings, prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from retina import api
from retina.ablation import runs as settings
from retina.commands.gates import FailBelow, SpelledOut, below, fail, limits, worse
from retina.commands.options import Json
from retina.errors import RetinaError
from retina.evaluation.comparison import class_comparison_table, comparison_table, to_json, verdict
from retina.output import console

PARSER = SpelledOut


def compare(
    a: Annotated[Path | None, typer.Argument(help="A run directory, or a COCO results file.")] = None,
    b: Annotated[Path | None, typer.Argument(help="Another one, on the same ground truth.")] = None,
    runs_a: Annotated[
        list[Path] | None, typer.Option("--a", metavar="RUN...", help="Runs of setting A, one for each seed.")
    ] = None,
    runs_b: Annotated[list[Path] | None, typer.Option("--b", metavar="RUN...", help="Of setting B.")] = None,
    ground_truth: Annotated[
        Path | None, typer.Option(help="What results files are scored against; runs bring their own.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Which data to compare on; of runs validation if left out, of a VOC folder any.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Of all runs: best (of two runs), latest (of settings) or step_N.")
    ] = None,
    replicates: Annotated[int, typer.Option(help="Resamples of the images, and of the seeds.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the resamples.")] = 0,
    level: Annotated[float | None, typer.Option(help="Of the intervals (0.95); of two detectors only.")] = None,
    fail_if_worse: Annotated[
        float | None, typer.Option(metavar="[0.01]", help="Exit code 1 where B has less AP than A by more than this.")
    ] = None,
    fail_below: FailBelow = None,
    as_json: Json = False,
) -> None:
    """Tell whether B is better than A on the same images, with intervals from a paired bootstrap.

    `--a RUN... --b RUN...` compares two settings over seeds and images; otherwise A and B are two detectors.
    """
    least = limits(fail_below)
    if runs_a and runs_b and a is None:
        if ground_truth is not None or level is not None:
            option = "--level" if ground_truth is None else "--ground-truth"
            raise RetinaError(f"{option}: it has no effect with --a and --b; leave it out")
        figures = _settings(runs_a, runs_b, split, checkpoint or "latest", replicates, seed, as_json)
    elif a is not None and b is not None and not (runs_a or runs_b):
        compared = api.compare(
            a,
            b,
            ground_truth=ground_truth,
            split=split,
            checkpoint=checkpoint,
            replicates=replicates,
            seed=seed,
            level=0.95 if level is None else level,
        )
        figures = to_json(compared)
        if as_json:
            print(json.dumps({"a": str(a), "b": str(b), **figures}, indent=2))
        else:
            terminal = console()
            terminal.print(f"A: {a}\nB: {b}", markup=False, soft_wrap=True)
            terminal.print(comparison_table(compared, terminal.width))
            coloured = terminal.color_system is not None
            terminal.print(class_comparison_table(compared, terminal.width, coloured=coloured))
            terminal.print(verdict(compared), markup=False, soft_wrap=True)
    else:
        raise RetinaError("compare: expected two detectors (A B), or runs of two settings (--a RUN... --b RUN...)")
    metrics = figures["metrics"]
    of_b = {name: row["b"]["mean"] if isinstance(row["b"], dict) else row["b"] for name, row in metrics.items()}
    difference = metrics["AP"]["difference"]
    change = difference["value"] if isinstance(difference, dict) else difference
    fail([*worse(fail_if_worse, change), *below(least, of_b)])


def _settings(
    a: list[Path], b: list[Path], split: str | None, checkpoint: str, replicates: int, seed: int, as_json: bool
) -> dict[str, Any]:
    compared = api.compare_settings(a, b, split=split, checkpoint=checkpoint, replicates=replicates, seed=seed)
    figures = settings.to_json(compared)
    if as_json:
        print(json.dumps({"a": list(map(str, a)), "b": list(map(str, b)), **figures}, indent=2))
        return figures
    terminal = console()
    terminal.print(f"A: {', '.join(map(str, a))}\nB: {', '.join(map(str, b))}", markup=False, soft_wrap=True)
    terminal.print(settings.settings_table(compared, terminal.width))
    terminal.print(settings.settings_verdict(compared), markup=False, soft_wrap=True)
    return figures
