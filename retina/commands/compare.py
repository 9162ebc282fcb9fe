"""`retina compare`: parses, compares two detectors, prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from retina import api
from retina.commands.options import Json
from retina.evaluation.comparison import class_comparison_table, comparison_table, to_json, verdict
from retina.output import console


def compare(
    a: Annotated[Path, typer.Argument(help="A run directory, or a COCO results file.")],
    b: Annotated[Path, typer.Argument(help="Another one, on the same ground truth.")],
    ground_truth: Annotated[
        Path | None, typer.Option(help="What results files are scored against; runs bring their own.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Which data to compare on; of runs validation if left out, of a VOC folder any.")
    ] = None,
    checkpoint: Annotated[str | None, typer.Option(help="Of both runs: best (default), latest or step_N.")] = None,
    replicates: Annotated[int, typer.Option(help="Resamples of the images.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the resamples.")] = 0,
    level: Annotated[float, typer.Option(help="Of the intervals.")] = 0.95,
    as_json: Json = False,
) -> None:
    """Tell whether B is better than A on the same images, with intervals from a paired bootstrap."""
    comparison = api.compare(
        a,
        b,
        ground_truth=ground_truth,
        split=split,
        checkpoint=checkpoint,
        replicates=replicates,
        seed=seed,
        level=level,
    )
    if as_json:
        print(json.dumps({"a": str(a), "b": str(b), **to_json(comparison)}, indent=2))
        return
    terminal = console()
    terminal.print(f"A: {a}\nB: {b}", markup=False, soft_wrap=True)
    terminal.print(comparison_table(comparison, terminal.width))
    terminal.print(class_comparison_table(comparison, terminal.width, coloured=terminal.color_system is not None))
    terminal.print(verdict(comparison), markup=False, soft_wrap=True)
