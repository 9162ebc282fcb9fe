"""From a run to an export with its certificate."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from retina import config as configuration
from retina.data.dataset import DetectionDataset
from retina.data.images import table_image
from retina.data.load import Split, load_split
from retina.data.orientation import settled
from retina.errors import RetinaError
from retina.export import litert, onnx, saved_model
from retina.export.agreement import LIMITS, Limits
from retina.export.certificate import Certificate, certify, write_certificate
from retina.export.runner import Format
from retina.inference import Predictor
from retina.runs.loading import load_checkpoint, split_for

Precision = Literal["float32", "float16", "int8"]

# Images of the training data that int8 takes its ranges of values from.
_REPRESENTATIVE = 100


@dataclass(frozen=True)
class Exported:
    """`path` is where the export lies; one that was refused lies beside the place it was meant for, as `….refused`."""

    path: Path
    certificate: Certificate


def export(
    run: str | Path,
    format: Format = "saved_model",
    *,
    out: str | Path | None = None,
    precision: Precision | None = None,
    checkpoint: str = "best",
    split: Split = "validation",
    certify_images: int | None = None,
    overrides: Sequence[str] = (),
) -> Exported:
    """Write an export of a run's checkpoint, and prove it on data in a process of its own.

    Under another backend than TensorFlow it works in a child process that runs on TensorFlow: checkpoints belong to no
    backend.

    Args:
        out: the new folder or file; by default in the run's `export/`.
        precision: of a LiteRT file, float32 by default.
        split: what to certify on.
        certify_images: how many images of it, evenly spread; `export.certify` of the configuration by default.
        overrides: `key.path=value` of the sections `data` and `export`.

    Raises:
        RetinaError: no such run, checkpoint or data; the place is taken; or a setting without effect.
    """
    precision = _checked_precision(format, precision)
    out = Path(out) if out is not None else _default_out(Path(run), format, precision)
    if out.exists():
        raise RetinaError(
            f"{out}: expected a place for the export, there is something; remove it or choose another --out"
        )
    if keras.backend.backend() != "tensorflow":
        return _in_child(run, format, out, precision, checkpoint, split, certify_images, overrides)
    predictor, saved = load_checkpoint(run, checkpoint)
    config = _configured(predictor.config, certify_images, overrides)
    data_overrides = [override for override in overrides if override.startswith("data.")]
    dataset, truth, _ = split_for(predictor, split, data_overrides)
    config = config.model_copy(update={"data": settled(config.data, [dataset])})
    predictor = Predictor(predictor.detector, config)
    chosen = _spread(dataset, config.export.certify)
    notes = {"run": {"checkpoint": checkpoint, "step": saved.step, "best": saved.best}}
    partial = out.with_name(f".partial.{out.name}")
    refused = out.with_name(f"{out.stem}.refused{out.suffix}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove(partial)
        _write(predictor, format, partial, precision, {"category_ids": saved.category_ids, "notes": notes})
        certificate = certify(
            partial,
            predictor,
            chosen,
            limits=limits_of(format, precision, config.export.fold_batch_norm),
            truth=truth if chosen is dataset else None,
        )
        certificate = _named(certificate, out.name)
        place = out if certificate.passed else refused
        _remove(refused)
        partial.rename(place)
        write_certificate(certificate, place)
    except OSError as error:
        raise RetinaError(f"{out}: cannot write the export: {error.strerror or error}; choose another --out") from None
    finally:
        _remove(partial)
    return Exported(place, certificate)


def limits_of(format: Format, precision: Precision | None, folded: bool) -> Limits:
    """The limits that an export of this kind is held to."""
    if format == "saved_model":
        return LIMITS["saved_model, folded" if folded else "saved_model"]
    return LIMITS["onnx" if format == "onnx" else f"litert, {precision}"]


def _write(
    predictor: Predictor, format: Format, path: Path, precision: Precision | None, about: dict[str, Any]
) -> None:
    if format == "saved_model":
        saved_model.write_saved_model(predictor, path, **about)
    elif format == "onnx":
        onnx.write_onnx(predictor, path, **about)
    else:
        assert precision is not None, "checked before"
        images = _representative(predictor.config) if precision == "int8" else None
        litert.write_litert(predictor, path, precision=precision, representative=images, **about)


def _representative(config: configuration.Config) -> list[np.ndarray]:
    dataset = _spread(load_split(config.data, "train"), _REPRESENTATIVE)
    return [table_image(dataset, row) for row in range(len(dataset))]


def _checked_precision(format: Format, precision: Precision | None) -> Precision | None:
    if format == "litert":
        return precision or "float32"
    if precision is not None:
        raise RetinaError(f"--precision {precision}: it has no effect on {format}, only on litert; leave it out")
    return None


def _default_out(run: Path, format: Format, precision: Precision | None) -> Path:
    names = {"saved_model": "saved_model", "onnx": "model.onnx", "litert": f"model_{precision}.tflite"}
    return run / "export" / names[format]


def _configured(
    config: configuration.Config, certify_images: int | None, overrides: Sequence[str]
) -> configuration.Config:
    for override in overrides:
        if not override.startswith(("data.", "export.")):
            raise RetinaError(
                f"override '{override}': an export takes only data.* and export.*; the rest is the checkpoint's"
            )
    counted = [] if certify_images is None else [f"export.certify={certify_images}"]
    return configuration.override(config, [*overrides, *counted])


def _spread(dataset: DetectionDataset, count: int | None) -> DetectionDataset:
    """`count` images, evenly spread over the table; the table itself if that is all of it."""
    if count is None or count >= len(dataset):
        return dataset
    return dataset.subset(np.linspace(0, len(dataset) - 1, count).round().astype(np.int64))


def _named(certificate: Certificate, name: str) -> Certificate:
    """The certificate of an export that was made under a temporary name."""
    return Certificate.from_json({**certificate.to_json(), "export": name})


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _in_child(
    run: str | Path,
    format: Format,
    out: Path,
    precision: Precision | None,
    checkpoint: str,
    split: Split,
    certify_images: int | None,
    overrides: Sequence[str],
) -> Exported:
    options: dict[str, Any] = {
        "--format": format, "--out": out, "--precision": precision, "--checkpoint": checkpoint, "--split": split,
        "--certify": certify_images,
    }  # fmt: skip
    words = [str(word) for name, value in options.items() if value is not None for word in (name, value)]
    done = subprocess.run(
        [sys.executable, "-m", "retina", "export", str(run), *overrides, *words, "--json"],
        env={**os.environ, "KERAS_BACKEND": "tensorflow"},
        capture_output=True,
        text=True,
    )
    if not done.stdout.strip():
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), f"exit {done.returncode}")
        raise RetinaError(last.removeprefix("retina: "))
    tree = json.loads(done.stdout)
    return Exported(Path(tree.pop("path")), Certificate.from_json(tree))
