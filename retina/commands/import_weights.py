"""`retina import-weights`: parses, imports, and says what became of the tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from retina import api
from retina import config as configuration
from retina.output import console


def import_weights(
    kind: Annotated[
        Literal["torchvision", "keras-hub", "detectron2", "torchvision-backbone"],
        typer.Argument(help="Whose weights; torchvision-backbone is an ImageNet ResNet's, timm's as well."),
    ],
    file: Annotated[
        Path,
        typer.Argument(help="A state dict (.pth, .safetensors, detectron2's .pkl), or keras-hub's preset folder."),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]...", help="Settings of the run, such as data.root.")
    ] = None,
    out: Annotated[Path, typer.Option(help="A new folder: the run.")] = Path("runs/imported"),
    classes: Annotated[
        str | None, typer.Option(help="Names of the classes, comma-separated (COCO's for its heads; the data's).")
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="A YAML file whose data, optimizer, schedule and run the run shall have.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report on every tensor as JSON.")] = False,
) -> None:
    """Turn a detector of another ecosystem into a run that predicts, evaluates and exports like any other.

    A backbone becomes a run to train from: the config's detector on it, with new heads.
    """
    given = None if config is None else configuration.load(config)
    names = None if classes is None else [name.strip() for name in classes.split(",")]
    report = api.import_weights(kind, file, out, classes=names, config=given, overrides=overrides or ())
    if as_json:
        print(json.dumps(report.to_json(), indent=1))
        return
    terminal = console()
    terminal.print(
        f"{len(report.carried)} tensors of {report.file} (SHA-256 {report.sha256}) are in {out}, {len(report.unused)} "
        "had no place; import.json names each.",
        markup=False,
        soft_wrap=True,
    )
    for note in report.notes:
        terminal.print(f"Note: {note}.", markup=False, soft_wrap=True)
    if not any(tensor.target.startswith("detector/") for tensor in report.carried):
        terminal.print(
            f"That is the backbone; the heads are new. Train from it:\n  retina train CONFIG model.init_from={out}",
            markup=False,
            soft_wrap=True,
        )
        return
    if given is None:
        terminal.print(
            "It knows no data yet: give some by data.root=… (COCO's layout). An export can be certified on pictures of"
            " ours:",
            markup=False,
            soft_wrap=True,
        )
    certified = " --split test" if given is None else ""
    train = f"retina train {out / 'config.yaml'}{' data.root=…' if given is None else ''} --run-dir NEW"
    terminal.print(
        f"  retina predict {out} IMAGE…\n  retina export {out}{certified}\n  {train}", markup=False, soft_wrap=True
    )
