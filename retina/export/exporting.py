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
from retina.data.load import Split, load_training
from retina.data.orientation import settled
from retina.errors import RetinaError
from retina.export import litert, onnx, saved_model
from retina.export.agreement import LIMITS, Limits
from retina.export.certificate import Certificate, certify, write_certificate
from retina.export.runner import Format
from retina.inference import Predictor
from retina.models.detector import Detector
from retina.runs.loading import check_sections, inference_in_words, load_checkpoint, split_for
from retina.startup import require_tensorflow

Precision = Literal["float32", "float16", "int8"]

# The first is the default.
_PRECISIONS: dict[Format, tuple[Precision, ...]] = {
    "saved_model": (),
    "onnx": ("float32", "float16"),
    "litert": ("float32", "float16", "int8"),
}
# Images of the training data that int8 takes its ranges of values from.
_REPRESENTATIVE = 100


@dataclass(frozen=True)
class Exported:
    """`path` is where the export lies; one that was refused lies beside the place it was meant for, as `….refused`.

    `notes` say what loading the run had to say, and the inference settings that the export holds.
    """

    path: Path
    certificate: Certificate
    notes: tuple[str, ...] = ()


def export(
    run: str | Path,
    format: Format = "saved_model",
    *,
    out: str | Path | None = None,
    precision: Precision | None = None,
    raw: bool = False,
    checkpoint: str = "best",
    split: Split = "validation",
    certify_images: int | None = None,
    overrides: Sequence[str] = (),
) -> Exported:
    """Write an export of a run's checkpoint, and prove it on data in a process of its own.

    Under another backend than TensorFlow it works in a child process that runs on TensorFlow: checkpoints belong to no
    backend.

    Args:
        run: a run directory.
        format: `saved_model`, `onnx` or `litert`.
        out: the new folder or file; by default in the run's `export/`.
        precision: of an ONNX or LiteRT file, float32 by default.
        raw: of ONNX the network alone, for who resizes and decodes otherwise; other formats have it as a signature.
        checkpoint: `best`, `latest` or `step_N`.
        split: what to certify on.
        certify_images: how many images of it, evenly spread; `export.certify` of the configuration by default.
        overrides: `key.path=value` of the sections `data`, `export` and `inference`.

    Returns:
        `path`, where it lies (`….refused` beside it where it failed), `certificate` and `notes`.

    Raises:
        RetinaError: no such run, checkpoint or data; the place is taken; or a setting without effect.

    Example:

    >>> exported = retina.export("runs/digits", out="served", certify_images=2)
    >>> exported.path.name, exported.certificate.passed
    ('served', True)
    """
    precision = _checked_precision(format, precision, raw)
    out = Path(out) if out is not None else _default_out(Path(run), format, precision, raw)
    _refuse_taken(out)
    require_tensorflow(f"export: {format}")
    if keras.backend.backend() != "tensorflow":
        return _in_child(run, format, out, precision, raw, checkpoint, split, certify_images, overrides)
    check_sections(overrides, ("data", "export", "inference"), "an export")
    counted = [] if certify_images is None else [f"export.certify={certify_images}"]
    predictor, saved = load_checkpoint(run, checkpoint, [*overrides, *counted])
    dataset, truth, _ = split_for(predictor, split)
    config = predictor.config.model_copy(update={"data": settled(predictor.config.data, [dataset])})
    predictor = Predictor(predictor.detector, config)
    chosen = _spread(dataset, config.export.certify)
    notes = {"run": {"checkpoint": checkpoint, "step": saved.step, "best": saved.best}}
    partial = out.with_name(f".partial.{out.name}")
    refused = out.with_name(f"{out.stem}.refused{out.suffix}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove(partial)
        about = {"category_ids": saved.category_ids, "notes": notes, **({"raw": True} if raw else {})}
        images = _representative(predictor.config) if precision == "int8" else None
        _write(predictor, format, partial, precision, about, images)
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
    return Exported(place, certificate, (*predictor.notes, f"detects: {inference_in_words(config.inference)}"))


def export_detector(
    detector: Detector,
    path: str | Path,
    format: str,
    *,
    resize: configuration.Resize | None = None,
    orientation: Literal["stored", "upright"] = "stored",
    precision: Precision | None = None,
    raw: bool = False,
    representative: Sequence[np.ndarray] | None = None,
    category_ids: Sequence[int] | None = None,
) -> None:
    """Write the export of a detector that Keras' `fit` trained, without a certificate: nothing is known of its data.

    The configuration in it holds the detector's sections; its sources are named `not_recorded`.

    Args:
        path: the new folder (SavedModel) or file.
        format: `tf_saved_model` or `saved_model`, `onnx`, `litert`.
        resize, orientation: how images are laid on canvases, and whether encoded ones are turned as EXIF says.
            `resize` None: at the size of the images that `fit` was given.
        precision: of an ONNX or LiteRT file, float32 by default.
        raw: of ONNX the network alone.
        representative: images uint8 [h, w, 3] of the training data, for `precision="int8"`.
        category_ids: [K] the data's own ids; 0…K-1 if left out.

    Raises:
        RetinaError: an unknown format, a setting without effect, no `resize` where `fit` saw no images of one size, the
            place is taken, or the backend is not TensorFlow.
    """
    kinds: dict[str, Format] = {
        "tf_saved_model": "saved_model", "saved_model": "saved_model", "onnx": "onnx", "litert": "litert"
    }  # fmt: skip
    if format not in kinds:
        raise RetinaError(f"Detector.export: expected a format of {', '.join(kinds)}, got {format!r}; choose one")
    kind, path = kinds[format], Path(path)
    precision = _checked_precision(kind, precision, raw)
    _refuse_taken(path)
    if resize is None:
        size = detector.image_size
        if size is None:
            raise RetinaError(
                "Detector.export: expected resize=, since fit was given no images whose size it could keep; give the "
                "section data.resize of the training, retina.config.Resize(short=…, long=…)"
            )
        resize = configuration.Resize(short=min(size), long=max(size), multiple=32)
    predictor = Predictor(detector, _config_of(detector, resize, orientation))
    about: dict[str, Any] = {"category_ids": category_ids, **({"raw": True} if raw else {})}
    partial = path.with_name(f".partial.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(partial)
        _write(predictor, kind, partial, precision, about, representative)
        partial.rename(path)
    except OSError as error:
        raise RetinaError(f"{path}: cannot write the export: {error.strerror or error}; choose another place") from None
    finally:
        _remove(partial)


def _config_of(detector: Detector, resize: configuration.Resize, orientation: str) -> configuration.Config:
    """The configuration of a detector that no run trained."""
    nowhere = {"format": "coco", "annotations": "not_recorded.json", "images": "not_recorded"}
    return configuration.parse(
        {
            "data": {
                "train": nowhere,
                "validation": None,
                "orientation": orientation,
                "resize": resize.model_dump(mode="json"),
            },
            **{name: section.model_dump(mode="json") for name, section in detector.sections._asdict().items()},
            "schedule": {"kind": "constant", "steps": 1},
            "run": {"precision": detector.dtype_policy.name},
        },
        "Detector.export",
    )


def limits_of(format: Format, precision: Precision | None, folded: bool) -> Limits:
    """The limits that an export of this kind is held to."""
    if format == "saved_model":
        return LIMITS["saved_model, folded" if folded else "saved_model"]
    return LIMITS[f"{format}, {precision}"]


def _write(
    predictor: Predictor,
    format: Format,
    path: Path,
    precision: Precision | None,
    about: dict[str, Any],
    images: Sequence[np.ndarray] | None,
) -> None:
    if format == "saved_model":
        saved_model.write_saved_model(predictor, path, **about)
    elif format == "onnx":
        assert precision in ("float32", "float16"), "checked before"
        onnx.write_onnx(predictor, path, precision=precision, **about)
    else:
        assert precision is not None, "checked before"
        litert.write_litert(predictor, path, precision=precision, representative=images, **about)


def _representative(config: configuration.Config) -> list[np.ndarray]:
    dataset = _spread(load_training(config.data), _REPRESENTATIVE)
    return [table_image(dataset, row) for row in range(len(dataset))]


def _refuse_taken(out: Path) -> None:
    if out.exists():
        raise RetinaError(
            f"{out}: expected a place for the export, there is something; remove it or choose another --out"
        )


def _checked_precision(format: Format, precision: Precision | None, raw: bool) -> Precision | None:
    if raw and format != "onnx":
        raise RetinaError(f"--raw: it has no effect on {format}, which has a signature `raw`; leave it out")
    if precision is not None and precision not in _PRECISIONS[format]:
        offered = ", ".join(_PRECISIONS[format]) or "none, it keeps the training's"
        raise RetinaError(f"--precision {precision}: it has no effect on {format}; it takes {offered}")
    return precision or next(iter(_PRECISIONS[format]), None)


def _default_out(run: Path, format: Format, precision: Precision | None, raw: bool) -> Path:
    onnx_name = ("_raw" if raw else "") + ("" if precision == "float32" else f"_{precision}")
    names = {
        "saved_model": "saved_model",
        "onnx": f"model{onnx_name}.onnx",
        "litert": f"model_{precision}.tflite",
    }
    return run / "export" / names[format]


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
    raw: bool,
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
    words += ["--raw"] if raw else []
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
    notes = tuple(tree.pop("notes"))
    return Exported(Path(tree.pop("path")), Certificate.from_json(tree), notes)
