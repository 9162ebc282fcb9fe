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
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from retina.weights import pickle_program
from retina.weights.tensor_values import DTYPES, MOST_AXES, Call, Damaged, Refused, Room, ordered, shown, values_of

# The pickled magic number that files of PyTorch before 1.6 begin with.
LEGACY_START = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
_LEGACY_VERSION = 1001

# As torch.save writes them, a detector's checkpoint with its optimizer has a data.pkl of half a million bytes.
_LONGEST_PICKLE, _LONGEST_BYTEORDER = 20_000_000, 16


def read_zip(file: BinaryIO) -> Any:
    """The object in a file of PyTorch 1.6 or later, with arrays for its tensors."""
    whole = file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        # What is not compressed can't grow beyond the file; torch.save compresses nothing.
        plain = [entry for entry in archive.infolist() if entry.compress_type == zipfile.ZIP_STORED]
        sizes = {entry.filename: entry.file_size for entry in plain}
        pickles = [name for name in sizes if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise Refused("this ZIP archive is not a file of torch.save (it has no data.pkl); fetch it again")
        folder = pickles[0].removesuffix("data.pkl")
        left = whole

        def read(name: str, longest: int) -> bytes:
            nonlocal left
            left -= sizes[name]  # entries may lie over one another
            if sizes[name] > longest or left < 0:
                raise Damaged(f"an entry of {sizes[name]} bytes in a file of {whole}")
            return archive.read(name)

        order = f"{folder}byteorder"
        if order in sizes and read(order, _LONGEST_BYTEORDER).strip() != b"little":
            raise Refused("its numbers are big-endian; save it again on a little-endian machine")

        def stored(key: str, size: int) -> bytes:
            name = f"{folder}data/{key}"
            if sizes.get(name) != size:
                raise Damaged(f"{shown(name)} has {sizes.get(name, 'no')} bytes, expected {size}")
            return read(name, size)

        reader = _Reader(whole)
        tree = reader.load(io.BytesIO(read(pickles[0], _LONGEST_PICKLE)))
        return reader.with_arrays(tree, stored)


def read_legacy(file: BinaryIO) -> Any:
    """The object in a file of PyTorch before 1.6: five pickles, then each storage's count and numbers."""
    content = file.read()
    reader, rest = _Reader(len(content)), io.BytesIO(content)
    heads = [reader.load(rest) for _ in range(3)]
    if heads[1] != _LEGACY_VERSION or not (isinstance(heads[2], dict) and heads[2].get("little_endian")):
        raise Refused(f"expected version {_LEGACY_VERSION} of torch.save's old format, little-endian; save it again")
    tree = reader.load(rest)
    written: dict[str, bytes] = {}
    for key in reader.load(rest):
        if not isinstance(key, str) or key not in reader.storages:
            raise Damaged("a storage that no tensor names")
        (count,) = struct.unpack("<q", rest.read(8))
        written[key] = rest.read(max(count, 0) * reader.storages[key].bytes)

    def stored(key: str, size: int) -> bytes:
        if len(written.get(key, b"")) != size:
            raise Damaged(f"storage {shown(key)} has {len(written.get(key, b''))} bytes, expected {size}")
        return written[key]

    return reader.with_arrays(tree, stored)


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


class _TypeName:
    """Stand-in for a class of storages, such as `torch.FloatStorage`."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name


class _Ignored:
    """Stand-in for an object that says nothing about tensors."""

    def __init__(self, *arguments: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    """`torch._utils._rebuild_tensor`; what may follow (gradients, hooks) is no number of the tensor's."""
    if not isinstance(storage, _Storage) or len(shape) != len(strides) or len(shape) > MOST_AXES:
        raise Damaged("a tensor without storage, or with another number of strides than sides")
    if not all(type(number) is int and 0 <= number < 1 << 62 for number in (offset, *shape, *strides)):
        raise Damaged("a tensor whose shape, strides or offset are no whole numbers from 0")
    last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
    if 0 not in shape and max(last, math.prod(shape) - 1) >= storage.numbers:
        raise Damaged(f"a tensor of shape {shown(shape)} reaches beyond its storage of {storage.numbers} numbers")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _sides(sides: Any = ()) -> tuple[Any, ...]:
    """`torch.Size`."""
    if not isinstance(sides, (list, tuple)) or len(sides) > MOST_AXES:
        raise Damaged("a shape that is none")
    return tuple(sides)


class _Reader:
    """Reads the pickles of one file, of so many bytes. `storages` by key: those that the pickles speak of."""

    def __init__(self, file_bytes: int):
        self.storages: dict[str, _Storage] = {}
        self._room = Room(file_bytes)
        known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): Call(self._ordered),
            ("collections", "Counter"): Call(lambda *_: None),  # a learning rate schedule's milestones
            ("torch._utils", "_rebuild_tensor"): Call(_tensor),
            ("torch._utils", "_rebuild_tensor_v2"): Call(_tensor),
            ("torch._utils", "_rebuild_parameter"): Call(lambda data, *_: data),
            ("torch", "Size"): Call(_sides),
            # Of training scripts: a device, and NumPy's numbers such as the best score so far.
            ("torch", "device"): Call(_Ignored),
            ("numpy", "dtype"): Call(_Ignored),
            **{(f"{core}.multiarray", "scalar"): Call(_Ignored) for core in ("numpy.core", "numpy._core")},
            ("_codecs", "encode"): Call(_Ignored),  # how old protocols write such a number's bytes
            # The arguments of torchvision's training script. A class of this file's, since a pickle can change it.
            ("argparse", "Namespace"): type("Ignored", (_Ignored,), {}),
        }

        storage = self._storage

        class Unpickler(pickle.Unpickler):
            def find_class(self, module: str, name: str) -> Any:
                if (module, name) in known:
                    return known[module, name]
                dtype = name.removesuffix("Storage")
                if module == "torch" and dtype != name and dtype in DTYPES:
                    return _TypeName(dtype)
                raise Refused(
                    f"it holds more than tensors: {shown(f'{module}.{name}')}, which would run code if it were loaded; "
                    "nothing was run. Save model.state_dict() alone, or use a .safetensors file"
                )

            def persistent_load(self, identity: Any) -> _Storage:
                return storage(identity)

        self._unpickler = Unpickler

    def load(self, file: BinaryIO) -> Any:
        """The next object in a file, with a `_Tensor` for each tensor."""
        return pickle_program.load(self._unpickler, file, encoding="utf-8")

    def _storage(self, identity: Any) -> _Storage:
        kind, dtype, key, _, count, *view = identity
        if kind != "storage" or not isinstance(dtype, _TypeName) or any(part is not None for part in view):
            raise Damaged("a storage that is none")
        if not isinstance(key, str) or type(count) is not int or not 0 <= count < 1 << 62:
            raise Damaged(f"storage {shown(key)} of {shown(count)} numbers")
        return self.storages.setdefault(key, _Storage(key, dtype.name, count))

    def _ordered(self, pairs: Any = ()) -> OrderedDict[Any, Any]:
        return ordered(pairs, self._room)

    def with_arrays(self, tree: Any, stored: Callable[[str, int], bytes]) -> Any:
        """The tree with an array in place of each tensor, two containers deep: deeper ones are an optimizer's, unread.

        `stored` gives the bytes of a storage of that many bytes.
        """

        @cache
        def values(storage: _Storage) -> np.ndarray:
            return values_of(stored(storage.key, storage.numbers * storage.bytes), DTYPES[storage.dtype])

        def array(tensor: _Tensor) -> np.ndarray:
            self._room.take(math.prod(tensor.shape) * tensor.storage.bytes)
            numbers = values(tensor.storage)
            strides = tuple(stride * numbers.itemsize for stride in tensor.strides)
            view = np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides, writeable=False)
            return view.copy(order="C")

        def filled(node: Any, depth: int) -> Any:
            if isinstance(node, _Tensor):
                return array(node)
            if isinstance(node, dict) and depth < 2:
                self._room.entries(len(node))  # the same one may stand in many places
                return {key: filled(value, depth + 1) for key, value in dict.items(node)}
            return node

        return filled(tree, 0)
