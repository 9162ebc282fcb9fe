"""`retina predict`: parses, detects, writes pictures, prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retina import api
from retina.commands.options import Checkpoint, Json

if TYPE_CHECKING:
    from retina.inference import Detections


def predict(
    run: Annotated[Path, typer.Argument(help="A run directory, or an export.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures and detections.json.")] = Path("predictions"),
    score: Annotated[float, typer.Option(min=0.0, max=1.0, help="Leave out detections below this score.")] = 0.4,
    checkpoint: Checkpoint = "best",
    as_json: Json = False,
) -> None:
    """Detect objects in images; writes pictures with boxes, and the detections."""
    predictions = api.predict(run, images, out, score=score, checkpoint=checkpoint)
    if as_json:
        print(json.dumps([_as_tree(prediction.file, prediction.detections) for prediction in predictions], indent=2))
        return
    for file, detections, picture in predictions:
        print(f"{file}: {_in_words(detections)}  →  {picture}")


def _as_tree(file: Path, detections: Detections) -> dict[str, Any]:
    return {"image": str(file), "detections": detections.to_list()}


def _in_words(detections: Detections) -> str:
    counts: dict[str, int] = {}
    for name in detections.names:
        counts[name] = counts.get(name, 0) + 1
    return (
        ", ".join(f"{count} × {name}" for name, count in sorted(counts.items(), key=lambda c: -c[1])) or "nothing found"
    )
