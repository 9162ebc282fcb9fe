"""`retina evaluate`: parses, judges a run, prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from retina.commands.options import Checkpoint, Json, Overrides, ProtocolOption, Replicates, Split, console


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run directory, or an export.")],
    overrides: Overrides = None,
    split: Annotated[Split, typer.Option(help="Which of the config's data to evaluate on.")] = "validation",
    checkpoint: Checkpoint = "best",
    protocol: ProtocolOption = "coco",
    replicates: Replicates = None,
    out: Annotated[Path | None, typer.Option(help="Also write metrics, detections, plots and pictures here.")] = None,
    as_json: Json = False,
) -> None:
    """Print the metrics of a trained run, how sure they are, and what keeps them down."""
    from retina.startup import import_tensorflow_quietly

    import_tensorflow_quietly()
    from retina.drawing.evaluation_files import write_score, write_sheet
    from retina.evaluation.judging import judge
    from retina.evaluation.tables import print_score
    from retina.export.loading import detect_split

    detected = detect_split(run, split, checkpoint=checkpoint, overrides=overrides or ())
    result = judge(
        detected.truth,
        detected.found,
        protocol=protocol,
        settings=detected.config.evaluation,
        replicates=replicates,
    )
    if out is not None:
        write_score(out, result, detected.dataset.images)
        write_sheet(out, detected.dataset, detected.table, pictures=9)
    if as_json:
        told = {"run": str(run), "split": split, "checkpoint": checkpoint, "notes": list(detected.dataset.notes)}
        print(json.dumps({**told, **result.to_json()}, indent=2))
        return
    terminal = console()
    for note in detected.dataset.notes:
        terminal.print(note, markup=False)
    print_score(terminal, result)
    if out is not None:
        terminal.print(f"All of it, with pictures, is in {out}.", markup=False, soft_wrap=True)
