"""`retina evaluate`: parses, judges a run, prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from retina import api
from retina.commands.gates import FailBelow, below, fail, limits
from retina.commands.options import Checkpoint, Conventions, Json, Overrides, ProtocolOption, Replicates, Split
from retina.evaluation.tables import print_score
from retina.output import bar, console


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run directory, or an export.")],
    overrides: Overrides = None,
    split: Annotated[Split, typer.Option(help="Which of the config's data to evaluate on.")] = "validation",
    checkpoint: Checkpoint = "best",
    protocol: ProtocolOption = "coco",
    replicates: Replicates = None,
    out: Annotated[Path | None, typer.Option(help="Also write metrics, detections, plots and pictures here.")] = None,
    conventions: Conventions = False,
    fail_below: FailBelow = None,
    as_json: Json = False,
) -> None:
    """Print the metrics of a trained run, how sure they are, and what keeps them down."""
    least = limits(fail_below)
    score, notes = api.judge(
        run,
        split,
        checkpoint=checkpoint,
        protocol=protocol,
        replicates=replicates,
        overrides=overrides or (),
        out=out,
        watched=bar("detecting"),
    )
    if as_json:
        head = {"run": str(run), "split": split, "checkpoint": checkpoint, "notes": list(notes)}
        print(json.dumps({**head, **score.to_json()}, indent=2))
    else:
        terminal = console()
        for note in notes:
            terminal.print(note, markup=False)
        print_score(terminal, score, conventions=conventions)
        if out is not None:
            terminal.print(f"All of it, with pictures, is in {out}.", markup=False, soft_wrap=True)
    fail(below(least, score.to_json()["metrics"]))
