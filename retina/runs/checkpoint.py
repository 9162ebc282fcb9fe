"""Checkpoints: a single file holds everything that affects later steps. Written under a temporary name, then renamed.

A thread writes them while training goes on: only the copy of the arrays holds training up.
"""

from __future__ import annotations

import errno
import hashlib
import json
import struct
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import keras
import numpy as np

from retina.errors import RetinaError
from retina.files import written
from retina.runs.hosts import Hosts

# Errors of NumPy, zipfile and json for a file that is cut short, altered, or something else altogether.
_DAMAGE = (
    OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error,
    struct.error,
)  # fmt: skip
_META, _DIGEST = "__meta__", "__sha256__"
_WEIGHTS, _OPTIMIZER, _EXTRA = "weights/", "optimizer/", "extra/"


class DamagedCheckpoint(RetinaError):
    """Error of a file that is cut short, altered, or not a checkpoint."""


@dataclass(frozen=True)
class Checkpoint:
    """State of a run after `step` updates: all that it needs to go on.

    Attributes:
        step: the number of updates so far.
        config: the resolved configuration.
        class_names, category_ids: of the data.
        best: the best figure on the validation data so far.
        arrays: by `weights/<variable path>`, `optimizer/<variable path>` and `extra/<name>` (the training step's other
            state: moving averages, the loss scale).
        progress: the loop's state, plain values for JSON: see `retina.runs.state.Progress`.
    """

    step: int
    config: dict[str, Any]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    best: float | None
    arrays: dict[str, np.ndarray]
    progress: dict[str, Any] = field(default_factory=dict)


def gather(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    """Copy the arrays of a model (weights and random states, not metrics) and of an optimizer, by variable path.

    Args:
        extra: further arrays by name, each stored as `extra/<name>`.
    """
    arrays = {f"{_WEIGHTS}{v.path}": _copy(keras.ops.convert_to_tensor(v)) for v in _state(model)}
    if optimizer is not None:
        arrays |= {f"{_OPTIMIZER}{v.path}": _copy(keras.ops.convert_to_tensor(v)) for v in optimizer.variables}
    return arrays | {f"{_EXTRA}{name}": _copy(value) for name, value in (extra or {}).items()}


def extra_of(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays that `gather` stored as `extra`, by their names there."""
    return {name.removeprefix(_EXTRA): array for name, array in arrays.items() if name.startswith(_EXTRA)}


def restore(
    arrays: dict[str, np.ndarray], model: keras.Model, optimizer: keras.optimizers.Optimizer | None = None
) -> None:
    """Assign arrays to variables of the same path and shape; `extra/` arrays are left to the training step.

    Raises:
        RetinaError: a variable has no array, an array no variable (of the model; or of the optimizer, if given), or
            shapes differ. Nothing is assigned then.
    """
    variables = {f"{_WEIGHTS}{v.path}": v for v in _state(model)}
    prefixes: tuple[str, ...] = (_WEIGHTS,)
    if optimizer is not None:
        variables |= {f"{_OPTIMIZER}{v.path}": v for v in optimizer.variables}
        prefixes = (_WEIGHTS, _OPTIMIZER)
    wanted = {name for name in arrays if name.startswith(prefixes)}
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
    """Write a checkpoint with the SHA-256 of each array and of the description; whole, or not at all."""
    meta = {
        "format": 2,
        "step": checkpoint.step,
        "config": checkpoint.config,
        "class_names": list(checkpoint.class_names),
        "category_ids": list(checkpoint.category_ids),
        "best": checkpoint.best,
        "progress": checkpoint.progress,
        "sha256": {name: _digest(array) for name, array in checkpoint.arrays.items()},
    }
    text = json.dumps(meta)
    description = {_META: np.array(text), _DIGEST: np.array(hashlib.sha256(text.encode()).hexdigest())}
    arrays: dict[str, Any] = {**description, **checkpoint.arrays}
    with written(path) as temporary:
        np.savez(temporary, **arrays)


def read(path: Path) -> Checkpoint:
    """Read a checkpoint and verify its checksums; no code in the file is run.

    Raises:
        DamagedCheckpoint: the file is cut short or altered, or not a checkpoint.
        RetinaError: the file is missing, or the system could not read it.
    """
    try:
        # Opened here: NumPy leaves the file of a damaged archive open.
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        text = str(arrays.pop(_META))
        meta = json.loads(text)
        if meta["format"] >= 2:
            _verify(text, str(arrays.pop(_DIGEST)), meta["sha256"], arrays)
        return Checkpoint(
            meta["step"],
            meta["config"],
            tuple(meta["class_names"]),
            tuple(meta["category_ids"]),
            meta["best"],
            arrays,
            meta.get("progress", {}),
        )
    except FileNotFoundError:
        raise RetinaError(f"{path}: no such checkpoint") from None
    except _DAMAGE as error:
        raise _unusable(path, error) from None


def classes_of(path: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return class names and category ids of a checkpoint, without reading its arrays or verifying its checksums.

    Raises:
        DamagedCheckpoint: the file is cut short, or not a checkpoint.
        RetinaError: the file is missing, or the system could not read it.
    """
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            meta = json.loads(str(file[_META]))
        return tuple(meta["class_names"]), tuple(meta["category_ids"])
    except FileNotFoundError:
        raise RetinaError(f"{path}: no such checkpoint") from None
    except _DAMAGE as error:
        raise _unusable(path, error) from None


def _unusable(path: Path, error: Exception) -> RetinaError:
    """Return the error of a file that NumPy could not read: an error of the disk does not make the file damaged."""
    # EINVAL is damage: the archive points to a place before the start of the file.
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        return RetinaError(
            f"{path}: this checkpoint cannot be read: {error.strerror}; nothing was changed: check the disk and the "
            "permissions, then try again"
        )
    return DamagedCheckpoint(f"{path}: damaged or not a checkpoint of retina ({error}); use another checkpoint")


def of_chief(hosts: Hosts, checkpoint: Checkpoint | None) -> Checkpoint | None:
    """Return the chief's checkpoint on every host: the run directory need not be on a disk that all share."""
    if hosts.count == 1:
        return checkpoint
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "checkpoint.npz"
        if checkpoint is not None and hosts.chief:
            save(file, checkpoint)
        payload = hosts.broadcast(file.read_bytes() if file.exists() else b"")
        if hosts.chief or not payload:
            return checkpoint if hosts.chief else None
        file.write_bytes(payload)
        return read(file)


def _verify(text: str, digest: str, digests: dict[str, str], arrays: dict[str, np.ndarray]) -> None:
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise ValueError("its description is not what was written")
    if digests.keys() != arrays.keys():
        raise ValueError(f"arrays are missing or added: {', '.join(sorted(digests.keys() ^ arrays.keys())[:3])}")
    for name, array in arrays.items():
        if _digest(array) != digests[name]:
            raise ValueError(f"{name} is not what was written: its SHA-256 differs")


def _digest(array: np.ndarray) -> str:
    """Return the SHA-256 of an array's type, shape and bytes."""
    array = np.asarray(array)
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _copy(value: Any) -> np.ndarray:
    # An array may share the memory of a tensor that the next step writes to.
    return np.array(keras.ops.convert_to_numpy(value))


def _state(model: keras.Model) -> list[Any]:
    metrics = {id(v) for v in model.metrics_variables}
    return [v for v in model.variables if id(v) not in metrics]


class BackgroundWriter:
    """Thread that does pieces of work in order; an error in a piece is raised by the next call.

    A context manager: leaving it waits for the work. An exception from inside goes on, and hides an error of the work.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.wait()
        else:
            self._join()

    def submit(self, work: Callable[[], None]) -> None:
        """Start the work once the piece before it is done."""
        self.wait()

        def run() -> None:
            try:
                work()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, name="checkpoint")
        self._thread.start()

    def check(self) -> None:
        """Raise the error of the work so far, if any; does not wait."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Wait until the work is done; raise its error, if any."""
        self._join()
        self.check()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
