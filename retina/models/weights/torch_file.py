"""Files of `torch.save`, read without PyTorch and without running any code in them.

They are pickles: programs that build objects by calling what they name. This reader knows the few names that tensors
and their containers need, and gives each an object of its own that does nothing else; any other name is refused before
it is looked up.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from retina.models.weights.values import DTYPES, Call, Damaged, Refused, values_of

# The pickled magic number that files of PyTorch before 1.6 begin with.
LEGACY_START = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
_LEGACY_VERSION = 1001

DAMAGE = (pickle.UnpicklingError, zlib.error)


def read_zip(file: BinaryIO) -> Any:
    """The object in a file of PyTorch 1.6 or later, with arrays for its tensors."""
    with zipfile.ZipFile(file) as archive:
        # What is not compressed can't grow beyond the file; torch.save compresses nothing.
        plain = [entry for entry in archive.infolist() if entry.compress_type == zipfile.ZIP_STORED]
        sizes = {entry.filename: entry.file_size for entry in plain}
        pickles = [name for name in sizes if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise Refused("this ZIP archive is not a file of torch.save (it has no data.pkl); fetch it again")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in sizes and archive.read(f"{folder}byteorder").strip() != b"little":
            raise Refused("its numbers are big-endian; save it again on a little-endian machine")

        def stored(key: str, size: int) -> bytes:
            name = f"{folder}data/{key}"
            if sizes.get(name) != size:
                raise Damaged(f"{name} has {sizes.get(name, 'no')} bytes, expected {size}")
            return archive.read(name)

        storages = _Storages()
        tree = _Unpickler(io.BytesIO(archive.read(pickles[0])), storages).load()
        return _with_arrays(tree, stored)


def read_legacy(file: BinaryIO) -> Any:
    """The object in a file of PyTorch before 1.6: five pickles, then each storage's count and numbers."""
    rest = io.BytesIO(file.read())
    storages = _Storages()
    heads = [_Unpickler(rest, storages).load() for _ in range(3)]
    if heads[1] != _LEGACY_VERSION or not (isinstance(heads[2], dict) and heads[2].get("little_endian")):
        raise Refused(f"expected version {_LEGACY_VERSION} of torch.save's old format, little-endian; save it again")
    tree = _Unpickler(rest, storages).load()
    written: dict[str, bytes] = {}
    for key in _Unpickler(rest, storages).load():
        (count,) = struct.unpack("<q", rest.read(8))
        written[key] = rest.read(max(count, 0) * storages.known[key].bytes)

    def stored(key: str, size: int) -> bytes:
        if len(written.get(key, b"")) != size:
            raise Damaged(f"storage {key} has {len(written.get(key, b''))} bytes, expected {size}")
        return written[key]

    return _with_arrays(tree, stored)


class _Storage(NamedTuple):
    key: str
    dtype: str
    numbers: int

    @property
    def bytes(self) -> int:
        return DTYPES[self.dtype].bytes


class _Tensor(NamedTuple):
    """A view of a storage; in numbers, not bytes."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Storages:
    """The storages that a pickle speaks of."""

    def __init__(self) -> None:
        self.known: dict[str, _Storage] = {}

    def named(self, identity: Any) -> _Storage:
        kind, dtype, key, _, count, *view = identity
        if kind != "storage" or not isinstance(dtype, _TypeName) or any(part is not None for part in view):
            raise Damaged(f"storage {identity!r}")
        if not isinstance(key, str) or type(count) is not int or count < 0:
            raise Damaged(f"storage {key!r} of {count!r} numbers")
        return self.known.setdefault(key, _Storage(key, dtype.name, count))


class _TypeName:
    """Stands for a class of storages, such as `torch.FloatStorage`."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name


class _Ignored:
    """Stands for an object that tells nothing about tensors."""

    def __init__(self, *arguments: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    """`torch._utils._rebuild_tensor`; what may follow (gradients, hooks) is no number of the tensor's."""
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or len(shape) != len(strides):
        raise Damaged("a tensor without storage, or with another number of strides than sides")
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise Damaged(f"a tensor of shape {shape} with strides {strides} at {offset}")
    last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
    if 0 not in shape and max(last, math.prod(shape) - 1) >= storage.numbers:
        raise Damaged(f"a tensor of shape {shape} reaches beyond its storage of {storage.numbers} numbers")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _counts(mapping: Mapping[Any, int] | None = None) -> dict[Any, int]:
    """In place of `collections.Counter`, a Python class, which a pickle could change."""
    return dict(mapping or {})


_KNOWN: dict[tuple[str, str], Callable[[], Any]] = {
    ("collections", "OrderedDict"): lambda: OrderedDict,
    ("collections", "Counter"): lambda: Call(_counts),  # a learning rate schedule's milestones
    ("torch._utils", "_rebuild_tensor"): lambda: Call(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): lambda: Call(_tensor),
    ("torch._utils", "_rebuild_parameter"): lambda: Call(lambda data, *_: data),
    ("torch", "Size"): lambda: tuple,
    # The arguments of torchvision's training script. A new class each time: a pickle can change a Python class.
    ("argparse", "Namespace"): lambda: type("Ignored", (_Ignored,), {}),
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, storages: _Storages):
        super().__init__(file, encoding="utf-8")
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]()
        dtype = name.removesuffix("Storage")
        if module == "torch" and dtype != name and dtype in DTYPES:
            return _TypeName(dtype)
        raise Refused(
            f"it holds more than tensors: '{module}.{name}', which would run code if it were loaded; nothing was run. "
            "Save model.state_dict() alone, or use a .safetensors file"
        )

    def persistent_load(self, identity: Any) -> _Storage:
        return self._storages.named(identity)


def _with_arrays(tree: Any, stored: Callable[[str, int], bytes]) -> Any:
    """The tree with an array in place of each tensor, two containers deep: deeper ones are an optimizer's, unread.

    `stored` gives the bytes of a storage of that many bytes.
    """

    @cache
    def values(storage: _Storage) -> np.ndarray:
        return values_of(stored(storage.key, storage.numbers * storage.bytes), DTYPES[storage.dtype])

    def filled(node: Any, depth: int) -> Any:
        if isinstance(node, _Tensor):
            array = values(node.storage)
            byte_strides = tuple(stride * array.itemsize for stride in node.strides)
            view = np.lib.stride_tricks.as_strided(array[node.offset :], node.shape, byte_strides, writeable=False)
            return view.copy(order="C")
        if isinstance(node, dict) and depth < 2:
            return {key: filled(value, depth + 1) for key, value in node.items()}
        return node

    return filled(tree, 0)
