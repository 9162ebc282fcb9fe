"""Tensor files of any known format as NumPy arrays. No code in a file is run, whatever it holds."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from retina.errors import RetinaError
from retina.files import refuse_special
from retina.weights import torch_file
from retina.weights.numpy_pickle import read_pickle
from retina.weights.tensor_values import DAMAGE, DTYPES, MOST_AXES, Damaged, Refused, named, shown, values_of

# What is torch.save's first argument in training scripts, where it is not the state dict itself.
_WRAPPERS = ("model", "state_dict", "model_state_dict")
# What stands before every name where the network was wrapped: data-parallel, compiled, in a Lightning module.
_PREFIXES = ("module.", "_orig_mod.", "model.")
# PyTorch's AveragedModel counts its updates beside the weights.
_AVERAGES = "n_averaged"

# A header of safetensors is JSON of some 100 bytes a tensor; parsed, it takes up to thirty times its length.
_LONGEST_HEADER = 10_000_000
_LONGEST_NAME = 300

# The protocols in which a pickle of arrays is written, by the byte that follows its first one.
_PICKLES = (b"\x02", b"\x03", b"\x04", b"\x05")

_SAFETENSORS_DTYPES = {
    "F64": "Double", "F32": "Float", "F16": "Half", "BF16": "BFloat16", "I64": "Long", "I32": "Int", "I16": "Short",
    "I8": "Char", "U8": "Byte", "BOOL": "Bool",
}  # fmt: skip


class TensorFile(NamedTuple):
    """`tensors` by name, in the file's order: floats as float32 whatever they were stored as, the rest as it is."""

    path: Path
    sha256: str
    tensors: dict[str, np.ndarray]


def read_tensors(path: Path) -> TensorFile:
    """Read a file of torch.save (either of its formats), of safetensors or a pickle of NumPy arrays; its content
    decides, not its name.

    A state dict below `model`, `state_dict` or `model_state_dict`, as training scripts write it, is found; the prefixes
    of wrapped networks (`module.`, `_orig_mod.`, `model.` before every name) are left out.

    Raises:
        RetinaError: the file is missing, damaged, holds anything but plain tensors where they are expected, or has
            values that are not finite.
    """
    with suppress(OSError):  # opening it says why
        refuse_special(path)
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            tree = _read(file)
            tensors = {name: np.asarray(value) for name, value in _state_dict(tree)}
    except Refused as error:
        raise RetinaError(f"{path}: {error}") from None
    except (FileNotFoundError, NotADirectoryError):
        raise RetinaError(
            f"{path}: no such file of weights; check the path, or fetch it (`retina guide weights`)"
        ) from None
    except IsADirectoryError as error:
        raise RetinaError(
            f"{path}: cannot read this file of weights: {error.strerror}; give the .pth or .safetensors file in it. (A "
            f"preset folder of keras-hub's: `retina import-weights keras-hub {path}`)"
        ) from None
    except PermissionError as error:
        raise RetinaError(f"{path}: cannot read this file of weights: {error.strerror}") from None
    except DAMAGE as error:
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
    values, end = file.read(), 0
    # The format has no gaps, and no two tensors in the same place: so many names can't stand for the same bytes.
    for name, (start, stop) in sorted(
        ((name, _place(name, entry, len(values))) for name, entry in header.items()), key=_second
    ):
        if start != end:
            raise Damaged(f"tensor {named(name)} begins at byte {start}, where byte {end} is the next")
        end = stop
    if end != len(values):
        raise Damaged(f"its tensors have {end} bytes, {len(values)} are there")
    return {name: _safetensor(entry, values) for name, entry in header.items()}


def _second(pair: tuple[str, tuple[int, int]]) -> tuple[int, int]:
    return pair[1]


def _place(name: str, entry: dict[str, Any], held: int) -> tuple[int, int]:
    shape, (start, stop) = entry["shape"], entry["data_offsets"]
    dtype = _SAFETENSORS_DTYPES.get(entry["dtype"])
    if dtype is None:
        known = ", ".join(_SAFETENSORS_DTYPES)
        raise Refused(f"tensor {named(name)} has type {named(entry['dtype'])}, expected one of {known}")
    where = f"{shown(shape)} at {shown(start)} to {shown(stop)}"
    if not isinstance(shape, list) or len(shape) > MOST_AXES:
        raise Damaged(f"tensor {named(name)} has shape {where}")
    if not all(type(side) is int and 0 <= side < 1 << 62 for side in (*shape, start, stop)):
        raise Damaged(f"tensor {named(name)} has shape {where}")
    if stop > held or stop - start != math.prod(shape) * DTYPES[dtype].bytes:
        raise Damaged(f"tensor {named(name)} of shape {where} of {held} bytes")
    return start, stop


def _safetensor(entry: dict[str, Any], values: bytes) -> np.ndarray:
    start, stop = entry["data_offsets"]
    return values_of(values[start:stop], DTYPES[_SAFETENSORS_DTYPES[entry["dtype"]]]).reshape(entry["shape"])


def _state_dict(tree: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The named tensors of what a file holds."""
    wrapper = next((name for name in _WRAPPERS if isinstance(tree, dict) and isinstance(tree.get(name), dict)), None)
    state = tree if wrapper is None else tree[wrapper]
    if not isinstance(state, dict) or not state:
        raise Refused(f"expected a state dict (names and tensors), found {_kind(tree)}; save model.state_dict()")
    prefix = _prefix(state)
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray):
            raise Refused(
                f"expected a state dict (names and tensors), found {_kind(value)} under {shown(name)}; "
                "save model.state_dict()"
            )
        if len(name) > _LONGEST_NAME or not name.isprintable():
            raise Refused(f"a tensor's name is no plain text of at most {_LONGEST_NAME} characters: {shown(name)}")
        if name != _AVERAGES or not prefix:
            yield name.removeprefix(prefix), value


def _prefix(state: dict[Any, Any]) -> str:
    """The prefix of every name; one wrapper may hold another."""
    names = [name for name in state if isinstance(name, str) and name != _AVERAGES]
    prefix = ""
    while names and len(prefix) < _LONGEST_NAME:
        more = next((known for known in _PREFIXES if all(name.startswith(prefix + known) for name in names)), None)
        if more is None:
            break
        prefix += more
    return prefix


def _kind(value: Any) -> str:
    return "an empty dict" if isinstance(value, dict) and not value else f"a value of type {type(value).__name__[:80]}"
