"""Named arrays as a file that PyTorch's ecosystem reads."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from retina.errors import RetinaError, install_hint
from retina.files import written

SUFFIXES = (".safetensors", ".pth", ".pt")

_SAFETENSORS_NAMES = {"<f4": "F32", "<i8": "I64"}
_ALIGNMENT = 8


def check_writable(path: Path) -> None:
    """Refuse, before any work, a file that `write_tensors` could not write.

    Raises:
        RetinaError: another suffix, a folder or a file that is there, no such folder, or .pth without PyTorch.
    """
    if path.suffix not in SUFFIXES:
        raise RetinaError(f"{path}: expected a file name that ends in {', '.join(SUFFIXES)}; choose one of these")
    if path.exists():
        raise RetinaError(f"{path}: is there already; choose another file name, or remove it")
    if not path.parent.is_dir():
        raise RetinaError(f"{path}: there is no folder {path.parent}; make it first")
    if path.suffix != ".safetensors":
        _torch(path)


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write float32 and int64 arrays: .safetensors, or with PyTorch's `torch.save` (.pth, .pt); whole, or not at
    all.

    Raises:
        RetinaError: as `check_writable`, or the disk refuses.
    """
    check_writable(path)
    try:
        with written(path) as temporary:
            if path.suffix == ".safetensors":
                _write_safetensors(temporary, tensors)
            else:
                torch = _torch(path)
                torch.save({name: torch.from_numpy(np.array(values)) for name, values in tensors.items()}, temporary)
    except OSError as error:
        raise RetinaError(f"{path}: cannot write: {error.strerror}; choose another file name") from None


def _torch(path: Path):  # type: ignore[no-untyped-def]
    try:
        import torch
    except ImportError:
        raise RetinaError(
            f"{path}: writing {path.suffix} needs PyTorch, which is not installed; write a .safetensors file, or "
            f"{install_hint('torch')}"
        ) from None
    return torch


def _write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    stored = {name: values.astype(values.dtype.newbyteorder("<"), copy=False) for name, values in tensors.items()}
    start = 0
    for name, values in stored.items():
        dtype = _SAFETENSORS_NAMES[values.dtype.str]
        header[name] = {"dtype": dtype, "shape": values.shape, "data_offsets": [start, start + values.nbytes]}
        start += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for values in stored.values():
            file.write(values.tobytes())
