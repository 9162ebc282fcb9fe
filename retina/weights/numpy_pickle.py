"""Pickles of NumPy arrays, as detectron2's model zoo publishes its weights, read without running any code in them.

As in `torch_file` the reader knows the few names that arrays need, and gives each an object of its own that does
nothing else; any other name is refused before it is looked up.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections import OrderedDict
from typing import Any, BinaryIO

import numpy as np

from retina.weights import pickle_program
from retina.weights.tensor_values import MOST_AXES, Call, Damaged, Refused, Room, as_float32, ordered, shown

# Numbers of a plain kind: byte order, kind, bytes.
_PLAIN = re.compile(r"[<|=]?(f2|f4|f8|i1|i2|i4|i8|u1|u2|u4|u8|b1)")


def read_pickle(file: BinaryIO) -> Any:
    """The object in a pickle of containers, numbers, strings and arrays."""
    content = file.read()
    return _Reader(len(content)).read(io.BytesIO(content))


class _Dtype:
    """Stand-in for `numpy.dtype`."""

    __slots__ = ("big", "name")

    def __init__(self, name: Any, *_: Any):
        text = name.decode("latin1") if isinstance(name, bytes) else name
        if not isinstance(text, str) or not _PLAIN.fullmatch(text):
            raise Refused(f"it holds an array of {shown(text)}, expected plain numbers")
        self.name, self.big = text.lstrip("<|="), False

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or any(part is not None for part in state[2:5]):
            raise Damaged("a type of numbers that is none")
        self.big = state[1] in (">", b">")


class _Array:
    """Stand-in for an array that is being built, in what room there is."""

    __slots__ = ("_room", "values")

    def __init__(self, room: Room):
        self._room = room
        self.values: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        if isinstance(content, (str, bytes)):
            self._room.take(len(content))
        if isinstance(content, str):  # written by Python 2
            content = content.encode("latin1")
        if not isinstance(dtype, _Dtype) or not isinstance(content, bytes):
            raise Damaged("an array that is not of plain numbers")
        if not isinstance(shape, tuple) or len(shape) > MOST_AXES:
            raise Damaged("an array of no shape")
        if not all(type(side) is int and 0 <= side < 1 << 62 for side in shape):
            raise Damaged(f"an array of shape {shown(shape)}")
        stored = np.dtype(("" if dtype.name[1:] == "1" else ">" if dtype.big else "<") + dtype.name)
        if len(content) != math.prod(shape) * stored.itemsize:
            raise Damaged(f"an array of shape {shown(shape)} in {len(content)} bytes")
        values = np.frombuffer(content, stored).reshape(shape, order="F" if fortran else "C")
        self.values = as_float32(values) if stored.kind == "f" else values.astype(stored.newbyteorder("="), order="C")


def _scalar(dtype: Any, content: Any = b"") -> None:
    """A lone number, such as a step: no weight."""


def _no_bytes() -> bytes:
    """Stand-in for `bytes`, by which old protocols write none of them."""
    return b""


class _Reader:
    """Reads the pickle of a file of so many bytes."""

    def __init__(self, file_bytes: int):
        self._room = Room(file_bytes)
        known = {
            ("numpy", "dtype"): Call(_Dtype),
            ("numpy", "ndarray"): Call(self._reconstruct),
            ("_codecs", "encode"): Call(self._encode),
            ("__builtin__", "bytes"): Call(_no_bytes),
            ("collections", "OrderedDict"): Call(self._ordered),
        }
        for core in ("numpy.core", "numpy._core"):  # before and from NumPy 2
            known |= {
                (f"{core}.multiarray", "_reconstruct"): Call(self._reconstruct),
                (f"{core}.multiarray", "scalar"): Call(_scalar),
                (f"{core}.numeric", "_frombuffer"): Call(self._from_buffer),
            }

        class Unpickler(pickle.Unpickler):
            def find_class(self, module: str, name: str) -> Call:
                if (module, name) in known:
                    return known[module, name]
                raise Refused(
                    f"it holds more than arrays: {shown(f'{module}.{name}')}, which would run code if it were loaded; "
                    "nothing was run. Fetch the weights from their publisher, or use a .safetensors file"
                )

        self._unpickler = Unpickler

    def read(self, file: BinaryIO) -> Any:
        return self._with_arrays(pickle_program.load(self._unpickler, file, encoding="latin1"), 0)

    def _reconstruct(self, *_: Any) -> _Array:
        return _Array(self._room)

    def _from_buffer(self, content: Any, dtype: Any, shape: Any, order: Any) -> _Array:
        """An array as protocol 5 writes it."""
        if isinstance(content, bytearray):
            self._room.take(len(content))
            content = bytes(content)
        array = _Array(self._room)
        array.__setstate__((1, shape, dtype, order == "F", content))
        return array

    def _encode(self, text: Any, _encoding: Any = "latin1") -> bytes:
        """Stand-in for `_codecs.encode`, by which old protocols write bytes."""
        if not isinstance(text, str):
            raise Damaged("bytes that are none")
        self._room.take(len(text))
        return text.encode("latin1")

    def _ordered(self, pairs: Any = ()) -> OrderedDict[Any, Any]:
        return ordered(pairs, self._room)

    def _with_arrays(self, node: Any, depth: int) -> Any:
        """The tree with an array in place of each stand-in, two containers deep."""
        if isinstance(node, _Array):
            if node.values is None:
                raise Damaged("an array without values")
            return node.values
        if isinstance(node, dict) and depth < 2:
            self._room.entries(len(node))  # the same array may stand in many places
            return {key: self._with_arrays(value, depth + 1) for key, value in dict.items(node)}
        return node
