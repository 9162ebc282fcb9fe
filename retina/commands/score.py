"""`retina score`: parses, scores files, prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from retina import api
from retina.commands.options import Conventions, Json, ProtocolOption, Replicates
from retina.drawing.evaluation_files import write_score
from retina.errors import RetinaError
from retina.evaluation.tables import print_score
from retina.output import console


def score(
    ground_truth: Annotated[Path, typer.Option(help="Data of any format, text folder, configuration or run.")],
    detections: Annotated[Path, typer.Option(help="COCO results JSON, or a folder of text files.")],
    protocol: ProtocolOption = "coco",
    engine: Annotated[Literal["hotcoco", "pycocotools"] | None, typer.Option(help="Of coco; equal figures.")] = None,
    max_detections: Annotated[str | None, typer.Option(help="Of coco, per class and image: 1,10,100.")] = None,
    area_ranges: Annotated[
        str | None, typer.Option(help="Of coco, in square pixels: s=0:1024,m=1024:9216,l=9216:1e10.")
    ] = None,
    replicates: Replicates = None,
    iou: Annotated[list[float] | None, typer.Option(help="Of the others, repeatable; 0.5 if left out.")] = None,
    difficult: Annotated[Literal["ignore", "use"], typer.Option(help="VOC's difficult boxes.")] = "ignore",
    pixels: Annotated[
        Literal["inclusive", "continuous"] | None,
        typer.Option(help="Meaning of the numbers; VOC protocols: inclusive, coco: continuous."),
    ] = None,
    gt_pixels: Annotated[
        Literal["inclusive", "continuous"] | None, typer.Option(help="The same for the ground truth alone.")
    ] = None,
    gt_format: Annotated[
        Literal["auto", "coco", "voc", "config", "xywh", "xyxy", "yolo"], typer.Option(help="Of the ground truth.")
    ] = "auto",
    dt_format: Annotated[
        Literal["auto", "coco", "voc", "xywh", "xyxy", "yolo", "ultralytics"], typer.Option(help="Of the detections.")
    ] = "auto",
    splits: Annotated[str | None, typer.Option(help="Of the ground truth: 2007/test,2012/val or validation.")] = None,
    names: Annotated[Path | None, typer.Option(help="Class names, one a line, where files hold indices.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of images, where text files need their sizes.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse detections of classes or images that the ground truth lacks.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Also write metrics, detections and plots here.")] = None,
    conventions: Conventions = False,
    as_json: Json = False,
) -> None:
    """Score anybody's detections against anybody's ground truth, without a model."""
    result = api.score(
        ground_truth,
        detections,
        protocol=protocol,
        engine=engine,
        max_detections=None if max_detections is None else _whole_numbers("--max-detections", max_detections),
        area_ranges=None if area_ranges is None else _ranges("--area-ranges", area_ranges),
        replicates=replicates,
        iou=iou or None,
        difficult=difficult,
        pixels=pixels,
        gt_pixels=gt_pixels,
        gt_format=gt_format,
        dt_format=dt_format,
        splits=splits.split(",") if splits else (),
        names=names,
        images=images,
        strict=strict,
    )
    if out is not None:
        write_score(out, result)
    if as_json:
        print(json.dumps(result.to_json(), indent=2))
        return
    terminal = console()
    print_score(terminal, result, conventions=conventions)
    if out is not None:
        terminal.print(f"All of it is in {out}.", markup=False, soft_wrap=True)


def _whole_numbers(option: str, text: str) -> list[int]:
    parts = text.split(",")
    # Python's int would also take 1_0 and digits of other scripts, and stop at those too long to convert.
    if not all(part.isascii() and part.isdecimal() and len(part) <= 100 for part in map(str.strip, parts)):
        raise RetinaError(f"{option}: expected whole numbers such as 1,10,100, got '{text}'")
    return [int(part) for part in parts]


def _ranges(option: str, text: str) -> dict[str, tuple[float, float]]:
    try:
        named = dict(part.split("=", 1) for part in text.split(","))
        return {name: (float(low), float(high)) for name, (low, high) in ((n, r.split(":")) for n, r in named.items())}
    except ValueError:
        raise RetinaError(f"{option}: expected names and ranges such as s=0:1024,m=1024:9216, got '{text}'") from None
