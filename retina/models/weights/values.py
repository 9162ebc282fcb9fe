"""What readers of tensor files share: number formats, what a pickle may call, and their errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Damaged(Exception):
    """The bytes contradict themselves."""


class Refused(Exception):
    """The file is whole, but not what is wanted; the message says what, and what to do."""


class Call:
    """A function that a pickle may call. It has no attribute that the pickle could set."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]):
        object.__setattr__(self, "_function", function)

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise Damaged(f"sets the attribute {name} of a function")


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
    """[n] of the stored numbers; every kind of float as float32."""
    if dtype.stored == "bfloat16":
        return (np.frombuffer(stored, "<u2").astype(np.uint32) << 16).view(np.float32)
    values = np.frombuffer(stored, dtype.stored)
    return values.astype(np.float32) if values.dtype.kind == "f" else values
