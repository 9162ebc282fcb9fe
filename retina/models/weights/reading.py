"""Tensor files of any known format as NumPy arrays. No code in a file is run, whatever it holds."""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from retina.errors import RetinaError
from retina.models.weights import torch_file
from retina.models.weights.numpy_pickle import read_pickle
from retina.models.weights.values import DTYPES, Damaged, Dtype, Refused, values_of

# What is torch.save's first argument in training scripts, where it is not the state dict itself.
_WRAPPERS = ("model", "state_dict", "model_state_dict")

# A header of safetensors is JSON of a few kB; the format's own bound.
_LONGEST_HEADER = 100_000_000

# The protocols in which a pickle of arrays is written, by the byte that follows its first one.
_PICKLES = (b"\x02", b"\x03", b"\x04", b"\x05")

_SAFETENSORS_DTYPES = {
    "F64": "Double", "F32": "Float", "F16": "Half", "BF16": "BFloat16", "I64": "Long", "I32": "Int", "I16": "Short",
    "I8": "Char", "U8": "Byte", "BOOL": "Bool",
}  # fmt: skip

_DAMAGE = (
    Damaged, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError, RuntimeError, MemoryError,
    OverflowError, RecursionError, NotImplementedError, zipfile.BadZipFile, struct.error,
    *torch_file.DAMAGE,
)  # fmt: skip


class TensorFile(NamedTuple):
    """`tensors` by name, in the file's order: floats as float32 whatever they were stored as, the rest as it is."""

    path: Path
    sha256: str
    tensors: dict[str, np.ndarray]


def read_tensors(path: Path) -> TensorFile:
    """Reads a file of torch.save (either of its formats), of safetensors or a pickle of NumPy arrays; its content
    decides, not its name.

    A state dict below `model`, `state_dict` or `model_state_dict`, as training scripts write it, is found; the prefix
    `module.` of data-parallel training is left out.

    Raises:
        RetinaError: the file is missing, damaged, holds anything but plain tensors where they are expected, or has
            values that are not finite.
    """
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            tree = _read(file)
            tensors = {name: np.asarray(value) for name, value in _state_dict(tree)}
    except Refused as error:
        raise RetinaError(f"{path}: {error}") from None
    except (FileNotFoundError, NotADirectoryError):
        raise RetinaError(f"{path}: no such file of weights") from None
    except (IsADirectoryError, PermissionError) as error:
        raise RetinaError(f"{path}: cannot read this file of weights: {error.strerror}") from None
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise RetinaError(f"{path}: damaged file of weights ({reason}); fetch it again") from None
    for name, values in tensors.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise RetinaError(f"{path}: tensor {name} has values that are not finite; fetch the file again")
    return TensorFile(path, digest, tensors)


def sha256_of_file(path: Path) -> str:
    """Hexadecimal digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_arrays(arrays: dict[str, np.ndarray]) -> str:
    """Digest of names, shapes and little-endian values, by sorted name: equal for equal weights, however stored."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        values = np.ascontiguousarray(arrays[name])
        values = values.astype(values.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{name} {values.dtype.str} {values.shape}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _read(file: BinaryIO) -> Any:
    start = file.read(16)
    file.seek(0)
    if start.startswith(b"PK\x03\x04"):
        return torch_file.read_zip(file)
    if start.startswith(torch_file.LEGACY_START):
        return torch_file.read_legacy(file)
    if len(start) > 8 and start[8:9] == b"{":
        return _read_safetensors(file)
    if start[:1] == b"\x80" and start[1:2] in _PICKLES:
        return read_pickle(file)
    if not start:
        raise Refused("the file of weights is empty; fetch it again")
    raise Refused("expected a file of torch.save (.pth, .pt) or of safetensors, this is neither; fetch it again")


def _read_safetensors(file: BinaryIO) -> dict[str, np.ndarray]:
    """The format: length of the header (uint64), header (JSON: dtype, shape, place in the rest), values."""
    (length,) = struct.unpack("<Q", file.read(8))
    if length > _LONGEST_HEADER:
        raise Damaged(f"a header of {length} bytes")
    header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    values = file.read()
    return {name: _safetensor(name, entry, values) for name, entry in header.items()}


def _safetensor(name: str, entry: dict[str, Any], values: bytes) -> np.ndarray:
    dtype = _SAFETENSORS_DTYPES.get(entry["dtype"])
    if dtype is None:
        raise Refused(f"tensor {name} has type {entry['dtype']}, expected one of {', '.join(_SAFETENSORS_DTYPES)}")
    shape, (start, stop) = tuple(entry["shape"]), entry["data_offsets"]
    known: Dtype = DTYPES[dtype]
    if not all(type(side) is int and side >= 0 for side in (*shape, start, stop)):
        raise Damaged(f"tensor {name} has shape {shape} at {start} to {stop}")
    if stop > len(values) or stop - start != math.prod(shape) * known.bytes:
        raise Damaged(f"tensor {name} of shape {shape} at {start} to {stop} of {len(values)} bytes")
    return values_of(values[start:stop], known).reshape(shape)


def _state_dict(tree: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The named tensors of what a file holds."""
    wrapper = next((name for name in _WRAPPERS if isinstance(tree, dict) and isinstance(tree.get(name), dict)), None)
    state = tree if wrapper is None else tree[wrapper]
    if not isinstance(state, dict) or not state:
        raise Refused(f"expected a state dict (names and tensors), found {_kind(tree)}; save model.state_dict()")
    prefix = "module." if all(isinstance(name, str) and name.startswith("module.") for name in state) else ""
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray):
            raise Refused(
                f"expected a state dict (names and tensors), found {_kind(value)} under {name!r}; "
                "save model.state_dict()"
            )
        yield name.removeprefix(prefix), value


def _kind(value: Any) -> str:
    return "an empty dict" if value == {} else f"a value of type {type(value).__name__}"
