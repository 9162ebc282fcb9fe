"""Checkpoints: one file holds all that affects what comes next. Written under a temporary name, then renamed."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from retina.errors import RetinaError
from retina.files import written

# What NumPy, zipfile and json raise over a file that is cut short, altered, or something else altogether.
_DAMAGE = (
    OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error,
    struct.error,
)  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """`arrays` by `weights/<variable path>` and `optimizer/<variable path>`; `step` updates have been made."""

    step: int
    config: dict[str, Any]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    best: float | None
    arrays: dict[str, np.ndarray]


def gather(model: keras.Model, optimizer: keras.optimizers.Optimizer | None = None) -> dict[str, np.ndarray]:
    """The arrays of a model (weights and random states, not metrics) and of an optimizer, by variable path."""
    arrays = {f"weights/{v.path}": keras.ops.convert_to_numpy(v.value) for v in _state(model)}
    if optimizer is not None:
        arrays |= {f"optimizer/{v.path}": keras.ops.convert_to_numpy(v.value) for v in optimizer.variables}
    return arrays


def restore(
    arrays: dict[str, np.ndarray], model: keras.Model, optimizer: keras.optimizers.Optimizer | None = None
) -> None:
    """Assigns arrays to variables of the same path and shape.

    Raises:
        RetinaError: a variable has no array, an array no variable (of the model; or of the optimizer, if one is given),
            or shapes differ. Nothing is assigned then.
    """
    variables = {f"weights/{v.path}": v for v in _state(model)}
    wanted = {name for name in arrays if name.startswith("weights/")}
    if optimizer is not None:
        variables |= {f"optimizer/{v.path}": v for v in optimizer.variables}
        wanted = set(arrays)
    missing, unused = sorted(set(variables) - set(arrays)), sorted(wanted - set(variables))
    shapes = [
        f"{name} (model {tuple(v.shape)}, checkpoint {arrays[name].shape})"
        for name, v in variables.items()
        if name in arrays and tuple(v.shape) != arrays[name].shape
    ]
    for problem, names in (("lacks", missing), ("has unused", unused), ("has other shapes for", shapes)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise RetinaError(f"checkpoint {problem} {', '.join(names[:3])}{more}: was it made by another config?")
    for name, variable in variables.items():
        variable.assign(arrays[name])


def save(path: Path, checkpoint: Checkpoint) -> None:
    meta = {
        "format": 1,
        "step": checkpoint.step,
        "config": checkpoint.config,
        "class_names": list(checkpoint.class_names),
        "category_ids": list(checkpoint.category_ids),
        "best": checkpoint.best,
    }
    arrays: dict[str, Any] = {"__meta__": np.array(json.dumps(meta)), **checkpoint.arrays}
    with written(path) as temporary:
        np.savez(temporary, **arrays)


def read(path: Path) -> Checkpoint:
    """Reads a checkpoint; no code in it is run.

    Raises:
        RetinaError: the file is missing, damaged or no checkpoint.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(str(arrays.pop("__meta__")))
        return Checkpoint(
            meta["step"],
            meta["config"],
            tuple(meta["class_names"]),
            tuple(meta["category_ids"]),
            meta["best"],
            arrays,
        )
    except FileNotFoundError:
        raise RetinaError(f"{path}: no such checkpoint") from None
    except _DAMAGE as error:
        raise RetinaError(f"{path}: damaged or not a checkpoint of retina ({error}); use another one") from None


def _state(model: keras.Model) -> list[Any]:
    metrics = {id(v) for v in model.metrics_variables}
    return [v for v in model.variables if id(v) not in metrics]
