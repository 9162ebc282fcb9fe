"""`retina benchmark`: parses, calls, prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from retina import api
from retina.errors import RetinaError
from retina.output import console

if TYPE_CHECKING:
    from retina.export.benchmark import Benchmark


def benchmark(
    path: Annotated[Path, typer.Argument(metavar="EXPORT_OR_RUN", help="A run directory or an export.")],
    batch: Annotated[str, typer.Option(help="Batch sizes.")] = "1,2,4",
    images: Annotated[list[Path] | None, typer.Option(help="Image files, repeatable; none: a synthetic one.")] = None,
    repeats: Annotated[int, typer.Option(help="Batches of each size that count.")] = 30,
    checkpoint: Annotated[str, typer.Option(help="Of a run: best, latest or step_N.")] = "best",
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Time detection from encoded images to boxes: latency, throughput, and where the time goes."""
    sizes = _sizes(batch)  # before Keras is imported
    timed = api.benchmark(path, batches=sizes, images=images or (), repeats=repeats, checkpoint=checkpoint)
    if as_json:
        print(json.dumps(timed.to_json(), indent=2))
        return
    terminal = console()
    terminal.print(table(timed))
    terminal.print(f"Stages: {timed.stages_from}. Images: {timed.images}.", markup=False, soft_wrap=True)


def table(timed: Benchmark) -> Table:
    """One row a batch size: milliseconds of a batch, images a second, and the stages' shares."""
    stages = list(timed.timings[0].shares)
    rows = Table(title=f"{timed.path} ({timed.kind})")
    for head in ("batch", "median ms", "p90 ms", "p99 ms", "images/s", *stages):
        rows.add_column(head, justify="right")
    for timing in timed.timings:
        latency = [f"{1e3 * timing.percentile(share):.1f}" for share in (50, 90, 99)]
        shares = [f"{timing.shares[stage]:.0%}" for stage in stages]
        rows.add_row(str(timing.batch), *latency, f"{timing.images_per_second:.2f}", *shares)
    return rows


def _sizes(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise RetinaError(f"--batch: expected whole numbers such as 1,2,4, got '{text}'") from None
