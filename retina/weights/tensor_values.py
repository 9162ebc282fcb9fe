"""Common parts of the readers of tensor files: number formats, the functions that a pickle may call, and errors."""

from __future__ import annotations

import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Damaged(Exception):
    """The bytes contradict themselves."""


class Refused(Exception):
    """The file is whole, but not what is wanted; the message says what, and what to do."""


# What readers and the libraries under them raise at bytes that contradict themselves.
DAMAGE = (
    Damaged, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError, RuntimeError, MemoryError,
    OverflowError, RecursionError, NotImplementedError, zipfile.BadZipFile, zlib.error, struct.error,
    pickle.UnpicklingError,
)  # fmt: skip

# NumPy's own bound on an array's axes, before version 2.
MOST_AXES = 32


class Room:
    """The bytes of arrays that a file may become: a few times its own, however often it names the same ones.

    Some sharing is legitimate (tied weights, an average beside them).
    """

    _TIMES, _AT_LEAST, _ENTRY = 4, 1 << 20, 100

    def __init__(self, file_bytes: int):
        self._file = file_bytes
        self._left = self._TIMES * file_bytes + self._AT_LEAST

    def take(self, count: int) -> None:
        """Raise `Damaged` if so many bytes more are too many."""
        self._left -= count
        if self._left < 0:
            raise Damaged(f"its tensors take more than {self._TIMES} times the file's own {self._file} bytes")

    def entries(self, count: int) -> None:
        """`take` for so many entries of a dictionary."""
        self.take(count * self._ENTRY)


def is_plain_key(value: Any) -> bool:
    """Return whether this may be a dictionary's key: a text, or a number of which no many can have the same hash."""
    return type(value) in (str, bytes, bool) or (type(value) is int and value.bit_length() <= 60)


def ordered(pairs: Any, room: Room) -> OrderedDict[Any, Any]:
    """A dictionary, in place of the class OrderedDict, which takes whatever pairs a pickle gives."""
    if isinstance(pairs, dict):
        pairs = list(dict.items(pairs))
    if not isinstance(pairs, (list, tuple)):
        raise Damaged("a dictionary of what are no pairs")
    room.entries(len(pairs))
    if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 and is_plain_key(pair[0]) for pair in pairs):
        raise Damaged("a dictionary of what are no pairs")
    return OrderedDict(pairs)


def shown(value: Any) -> str:
    """A value out of a file in a message: the beginning of a text, a small number, else its type.

    Never the representation of a container: of a few bytes it can be made as long as one likes.
    """
    if type(value) is str:
        return f"'{named(value)}'"
    if type(value) in (int, float, bool, type(None)) and (type(value) is not int or value.bit_length() <= 64):
        return repr(value)
    if type(value) in (tuple, list) and len(value) <= 8 and all(type(side) is int for side in value):
        return f"[{', '.join(map(shown, value))}]"
    return f"a value of type {type(value).__name__[:80]}"


def named(name: Any) -> str:
    """A name out of a file in a message, on one line and not for the terminal to obey."""
    if type(name) is not str:
        return shown(name)
    return ascii(name[:80])[1:-1] + ("…" if len(name) > 80 else "")


class Call:
    """A function that a pickle may call. It has no attribute that the pickle could set."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]):
        object.__setattr__(self, "_function", function)

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise Damaged(f"sets the attribute {shown(name)} of a function")


class Dtype(NamedTuple):
    stored: str
    bytes: int


# By PyTorch's names, little-endian. NumPy has no bfloat16: it is the upper half of a float32.
DTYPES = {
    "Double": Dtype("<f8", 8), "Float": Dtype("<f4", 4), "Half": Dtype("<f2", 2), "BFloat16": Dtype("bfloat16", 2),
    "Long": Dtype("<i8", 8), "Int": Dtype("<i4", 4), "Short": Dtype("<i2", 2), "Char": Dtype("<i1", 1),
    "Byte": Dtype("<u1", 1), "Bool": Dtype("<b1", 1),
}  # fmt: skip


def values_of(stored: bytes, dtype: Dtype) -> np.ndarray:
    """The stored numbers [n]; every kind of float as float32."""
    if dtype.stored == "bfloat16":
        return (np.frombuffer(stored, "<u2").astype(np.uint32) << 16).view(np.float32)
    values = np.frombuffer(stored, dtype.stored)
    return as_float32(values) if values.dtype.kind == "f" else values


def as_float32(values: np.ndarray) -> np.ndarray:
    """The values as float32; those that it can't hold become infinite, which readers refuse by the tensor's name."""
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32, order="C")
