"""`retina predict`: parses, detects, writes, prints."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
            metavar="IMAGE... [KEY.PATH=VALUE]...",
            help="Image files, folders, patterns ('a/**/*.jpg') and lists (names.txt); inference.* settings.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the detections; a call cut off there is resumed.")] = Path(
        "predictions"
    ),
    score: Annotated[
        str,
        typer.Option(
            metavar="NUMBER|FILE",
            help="Leave out detections below it; by class: the metrics.json of retina evaluate --out.",
        ),
    ] = "0.4",
    checkpoint: Checkpoint = "best",
    tile: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Detect in tiles of this side: small objects in large images.")
    ] = None,
    overlap: Annotated[float | None, typer.Option(help="Share of a tile that neighbours have in common: 0.2.")] = None,
    to: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FORMAT",
            help="Also as a dataset to correct, in OUT/FORMAT: coco, voc, yolo, csv, label-studio; repeatable.",
        ),
    ] = None,
    link: Annotated[bool, typer.Option("--link", help="Of --to: hard links in the place of copies.")] = False,
    no_pictures: Annotated[bool, typer.Option("--no-pictures", help="Draw nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Detect objects in images; writes pictures with boxes, and the detections."""
    overrides = [word for word in images if "=" in word and not is_file_name(word)]
    files = [word for word in images if word not in overrides]
    if not files:
        raise RetinaError(f"predict: expected an image or a folder, got the override '{overrides[0]}' alone")
    error = console(stderr=True)

    def say(line: str) -> None:
        error.print(line, markup=False, soft_wrap=True)

    predictions = api.predict_each(
        run, files, out, score=_score(score), checkpoint=checkpoint, overrides=overrides, tile=tile, overlap=overlap,
        pictures=not no_pictures, to=to or (), link=link, say=say,
    )  # fmt: skip
    count = left_out = 0
    for row in predictions:
        count += 1
        if row.detections is None:
            left_out += 1
            say(f"retina: {row.error}")
        elif not as_json:
            print(f"{row.file}: {_in_words(row.detections)}" + (f"  →  {row.picture}" if row.picture else ""))
    if as_json:
        with open(out / "detections.json", encoding="utf-8") as tree:
            for line in tree:
                print(line, end="")
    if left_out:
        raise RunFailed(f"{left_out} of {count} images could not be read; the others are in {out}")


def _score(word: str) -> float | Path:
    number: float | None = None
    with contextlib.suppress(ValueError):
        number = float(word)
    if number is None:
        return Path(word)
    if not 0 <= number <= 1:
        raise typer.BadParameter(f"{word} is not in the range 0<=x<=1.", param_hint="'--score'")
    return number


def _in_words(detections: Detections) -> str:
    counts: dict[str, int] = {}
    for name in detections.names:
        counts[name] = counts.get(name, 0) + 1
    return (
        ", ".join(f"{count} × {name}" for name, count in sorted(counts.items(), key=lambda c: -c[1])) or "nothing found"
    )
