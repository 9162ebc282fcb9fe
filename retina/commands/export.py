"""`retina export`: parses, exports, and says what the certificate found."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from retina import api


def export(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]...", help="Settings of data, inference and export.")
    ] = None,
    format: Annotated[Literal["saved_model", "onnx", "litert"], typer.Option(help="What to write.")] = "saved_model",
    out: Annotated[Path | None, typer.Option(help="A new folder or file; by default in RUN/export.")] = None,
    precision: Annotated[
        Literal["float32", "float16", "int8"] | None, typer.Option(help="Of onnx (not int8) or litert (float32).")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Of onnx the network alone, canvas to logits and deltas.")] = False,
    checkpoint: Annotated[str, typer.Option(help="best, latest or step_N.")] = "best",
    split: Annotated[Literal["train", "validation", "test"], typer.Option(help="What to certify on.")] = "validation",
    certify: Annotated[int | None, typer.Option(help="Images to certify on, evenly spread (all).", min=1)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the certificate as JSON.")] = False,
) -> None:
    """Write a trained detector as one folder or file that takes photographs, and prove that it scores the same.

    Beyond its limit an export is refused: exit code 1, and the stage in which the first difference arises.
    """
    exported = api.export(
        run,
        format,
        out=out,
        precision=precision,
        raw=raw,
        checkpoint=checkpoint,
        split=split,
        certify_images=certify,
        overrides=overrides or (),
    )
    certificate = exported.certificate
    if as_json:
        head = {"path": str(exported.path), "notes": list(exported.notes)}
        print(json.dumps({**head, **certificate.to_json()}, indent=2))
    else:
        for note in exported.notes:
            print(note)
        print(certificate.words())
        print(f"It is in {exported.path}.")
    if not certificate.passed:
        where = f" in {certificate.stage}" if certificate.stage else ""
        reason = f"the first difference arises{where}: {certificate.difference}" if certificate.difference else ""
        problems = "; ".join(filter(None, [*certificate.problems, reason]))
        print(f"retina: export refused: {problems}; it is in {exported.path}", file=sys.stderr)
        raise typer.Exit(1)
