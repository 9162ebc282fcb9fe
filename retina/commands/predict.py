"""`retina predict`: parses, detects, writes pictures, prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retina.commands.options import Checkpoint, Json
from retina.errors import RetinaError
from retina.files import IMAGE_SUFFIXES, exists

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
    files = _image_files(images)
    from retina.startup import import_tensorflow_quietly

    import_tensorflow_quietly()
    from retina.drawing.prediction_files import write_predictions
    from retina.export.loading import load

    predictor = load(run, checkpoint)
    lowest = predictor.config.inference.score_threshold
    if score < lowest:
        raise RetinaError(
            f"--score {score}: the run's inference.score_threshold is {lowest}; nothing below it is found"
        )
    # Everything is detected before anything is written: a broken image leaves no half-filled folder.
    found = [detections.above(score) for detections in predictor.predict(files)]
    pictures = write_predictions(out, files, found, predictor.class_names)
    if as_json:
        print(json.dumps([_as_tree(file, detections) for file, detections in zip(files, found, strict=True)], indent=2))
        return
    for file, detections, picture in zip(files, found, pictures, strict=True):
        print(f"{file}: {_in_words(detections)}  →  {picture}")


def _image_files(paths: list[Path]) -> list[Path]:
    files = []
    for path in paths:
        if not exists(path):
            raise RetinaError(f"{path}: no such image")
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise RetinaError(
                    f"{path}: no image in this folder; expected files ending in {', '.join(IMAGE_SUFFIXES)}"
                )
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise RetinaError(f"{path}: no such image; expected a file or a folder, got a device, a pipe or a socket")
    return files


def _as_tree(file: Path, detections: Detections) -> dict[str, Any]:
    return {"image": str(file), "detections": detections.to_list()}


def _in_words(detections: Detections) -> str:
    counts: dict[str, int] = {}
    for name in detections.names:
        counts[name] = counts.get(name, 0) + 1
    return (
        ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda c: -c[1])) or "nothing found"
    )
