"""Pickles of NumPy arrays, as detectron2's model zoo publishes its weights, read without running any code in them.

As in `torch_file` the reader knows the few names that arrays need, and gives each an object of its own that does
nothing else; any other name is refused before it is looked up.
"""

from __future__ import annotations

import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from retina.models.weights.values import Call, Damaged, Refused

# Numbers of a plain kind: byte order, kind, bytes.
_PLAIN = re.compile(r"[<|=]?(f2|f4|f8|i1|i2|i4|i8|u1|u2|u4|u8|b1)")


def read_pickle(file: BinaryIO) -> Any:
    """The object in a pickle of containers, numbers, strings and arrays."""
    tree = _Unpickler(file, encoding="latin1").load()
    return _with_arrays(tree, 0)


class _Dtype:
    """Stands for `numpy.dtype`."""

    __slots__ = ("big", "name")

    def __init__(self, name: Any, *_: Any):
        text = name.decode("latin1") if isinstance(name, bytes) else name
        if not isinstance(text, str) or not _PLAIN.fullmatch(text):
            raise Refused(f"it holds an array of {text!r}, expected plain numbers")
        self.name, self.big = text.lstrip("<|="), False

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or any(part is not None for part in state[2:5]):
            raise Damaged("a type of numbers that is none")
        self.big = state[1] in (">", b">")


class _Array:
    """Stands for an array that is being built."""

    __slots__ = ("values",)

    def __init__(self, *_: Any):
        self.values: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        if isinstance(content, str):  # written by Python 2
            content = content.encode("latin1")
        if not isinstance(dtype, _Dtype) or not isinstance(content, bytes):
            raise Damaged("an array that is not of plain numbers")
        if not all(type(side) is int and side >= 0 for side in shape):
            raise Damaged(f"an array of shape {shape}")
        stored = np.dtype(("" if dtype.name[1:] == "1" else ">" if dtype.big else "<") + dtype.name)
        if len(content) != math.prod(shape) * stored.itemsize:
            raise Damaged(f"an array of shape {shape} in {len(content)} bytes")
        values = np.frombuffer(content, stored).reshape(shape, order="F" if fortran else "C")
        self.values = values.astype(np.float32 if stored.kind == "f" else stored.newbyteorder("="), order="C")


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    """How protocol 5 writes an array."""
    found = _Array()
    found.__setstate__((1, shape, dtype, order == "F", bytes(content) if isinstance(content, bytearray) else content))
    return found


def _scalar(dtype: Any, content: Any = b"") -> None:
    """A lone number, such as a step: no weight."""


def _encode(text: Any, _encoding: Any = "latin1") -> bytes:
    """In place of `_codecs.encode`, by which old protocols write bytes."""
    if not isinstance(text, str):
        raise Damaged("bytes that are none")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """In place of `bytes`, by which old protocols write none of them."""
    return b""


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _reconstruct,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):  # a built-in class, which a pickle can't change
            return OrderedDict
        if (module, name) in _KNOWN:
            return Call(_KNOWN[module, name])
        raise Refused(
            f"it holds more than arrays: '{module}.{name}', which would run code if it were loaded; nothing was run. "
            "Fetch the weights from their publisher, or use a .safetensors file"
        )


def _with_arrays(node: Any, depth: int) -> Any:
    """The tree with an array in place of each stand-in, two containers deep."""
    if isinstance(node, _Array):
        if node.values is None:
            raise Damaged("an array without values")
        return node.values
    if isinstance(node, dict) and depth < 2:
        return {key: _with_arrays(value, depth + 1) for key, value in node.items()}
    return node
