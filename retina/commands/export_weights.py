"""`retina export-weights`: parses, writes, and says how the file is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from retina import api
from retina.output import console, count


def export_weights(
    kind: Annotated[Literal["torchvision"], typer.Argument(help="Whose format.")],
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    file: Annotated[Path, typer.Argument(help="A new file: .safetensors, or with PyTorch installed .pth.")],
    checkpoint: Annotated[str, typer.Option(help="best, latest or step_N.")] = "best",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report on every tensor as JSON.")] = False,
) -> None:
    """Write a run's weights as a state dict of another ecosystem, and print the code that loads it there."""
    report = api.export_weights(kind, run, file, checkpoint=checkpoint)
    if as_json:
        print(json.dumps(report.to_json(), indent=1))
        return
    terminal = console()
    classes = sum(name is not None for name in report.labels)
    terminal.print(
        f"{len(report.tensors)} tensors are in {file} (SHA-256 {report.sha256}), with {len(report.labels)} rows for "
        f"{count(classes, 'class')} (--json names them). In Python:",
        markup=False,
        soft_wrap=True,
    )
    terminal.print(report.code, markup=False, soft_wrap=True)
