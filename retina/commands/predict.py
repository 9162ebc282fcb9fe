"""`retina predict`: parses, detects, writes pictures, prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retina import api
from retina.commands.options import Checkpoint, Json
from retina.errors import RetinaError, RunFailed
from retina.files import is_file_name
from retina.output import console

if TYPE_CHECKING:
    from retina.inference import Detections


def predict(
    run: Annotated[Path, typer.Argument(help="A run directory, or an export.")],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE... [KEY.PATH=VALUE]...", help="Image files, or folders of them; inference.* settings."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the pictures and detections.json.")] = Path("predictions"),
    score: Annotated[float, typer.Option(min=0.0, max=1.0, help="Leave out detections below this score.")] = 0.4,
    checkpoint: Checkpoint = "best",
    as_json: Json = False,
) -> None:
    """Detect objects in images; writes pictures with boxes, and the detections."""
    overrides = [word for word in images if "=" in word and not is_file_name(word)]
    files = [word for word in images if word not in overrides]
    if not files:
        raise RetinaError(f"predict: expected an image or a folder, got the override '{overrides[0]}' alone")
    error = console(stderr=True)
    predictions = api.predict(
        run,
        files,
        out,
        score=score,
        checkpoint=checkpoint,
        overrides=overrides,
        say=lambda line: error.print(line, markup=False, soft_wrap=True),
    )
    if as_json:
        trees = [_as_tree(row.file, row.detections) for row in predictions if row.detections is not None]
        print(json.dumps(trees, indent=2))
    for row in predictions:
        if row.detections is None:
            error.print(f"retina: {row.error}", markup=False, soft_wrap=True)
        elif not as_json:
            print(f"{row.file}: {_in_words(row.detections)}  →  {row.picture}")
    left_out = sum(row.detections is None for row in predictions)
    if left_out:
        raise RunFailed(f"{left_out} of {len(predictions)} images could not be read; the others are in {out}")


def _as_tree(file: Path, detections: Detections) -> dict[str, Any]:
    return {"image": str(file), "detections": detections.to_list()}


def _in_words(detections: Detections) -> str:
    counts: dict[str, int] = {}
    for name in detections.names:
        counts[name] = counts.get(name, 0) + 1
    return (
        ", ".join(f"{count} × {name}" for name, count in sorted(counts.items(), key=lambda c: -c[1])) or "nothing found"
    )
