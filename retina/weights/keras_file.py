"""Files that Keras and keras-hub write: `.weights.h5`, `.keras` and preset folders. Nothing in them is run: the weights
are read as arrays, and the configuration as JSON, from which no object is made.

A file is first read for a trial in a process of its own, which runs this module. HDF5's library walks a file by the
addresses in it: a single wrong byte can send it round in circles for ever, or where it may not read. That ends the
trial, and not the process that asked.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

import retina
from retina.errors import RetinaError
from retina.files import refuse_special
from retina.weights.tensor_file import sha256_of_file
from retina.weights.tensor_values import DAMAGE, Damaged, Refused, Room, as_float32, named

_HDF5_START, _ZIP_START = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"
_CONFIGS = ("config.json", "task.json", "image_converter.json", "preprocessor.json")
_WEIGHTS, _TASK_WEIGHTS, _SHARDS = "model.weights.h5", "task.weights.h5", "model.weights.json"
_LONGEST_JSON, _STORED = 10_000_000, zipfile.ZIP_STORED

# A trial's share of the processor, and of memory. Reading a sound file takes far less: 0.2 s and a few times its bytes.
_SECONDS, _BYTES_A_SECOND = 4, 20_000_000
_MEMORY, _TIMES = 2 << 30, 8
_NO_MEMORY = 3


class Group(NamedTuple):
    """A layer's variables: `path` in the file, `name` of the layer (None in files of older Keras), arrays in order."""

    path: str
    name: str | None
    variables: tuple[np.ndarray, ...]


class KerasFile(NamedTuple):
    """`groups` in the file's order, layers without variables included; `configs` by file name, as plain JSON."""

    path: Path
    sha256: str
    groups: tuple[Group, ...]
    configs: dict[str, Any]


def read_keras(path: Path) -> KerasFile:
    """Read a preset folder (`task.json`, `config.json`, `*.weights.h5`), a `.keras` or a `.weights.h5` file.

    Raises:
        RetinaError: it is missing, damaged, or none of these, or its values are not finite.
    """
    with suppress(OSError):  # opening it says why
        refuse_special(path)
    try:
        _check_readable(path)
        content = _read_plainly(path)
    except Refused as error:
        raise RetinaError(f"{path}: {error}") from None
    except (FileNotFoundError, NotADirectoryError):
        raise RetinaError(f"{path}: no such file or preset folder") from None
    except PermissionError as error:
        raise RetinaError(f"{path}: cannot read this file of weights: {error.strerror}") from None
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise RetinaError(f"{path}: damaged file of weights ({reason}); fetch it again") from None
    for group in content.groups:
        for values in group.variables:
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise RetinaError(f"{path}: {named(group.path)} has values that are not finite; fetch the file again")
    return content


def _read_plainly(path: Path) -> KerasFile:
    """`read_keras` in this very process, with all that HDF5 may do to it, and errors as they come."""
    if path.is_dir():
        return _read_preset(path)
    with open(path, "rb") as file:
        start = file.read(8)
    if start == _HDF5_START:
        return KerasFile(path, sha256_of_file(path), _groups(path), {})
    if start.startswith(_ZIP_START):
        return _read_archive(path)
    if not start:
        raise Refused("the file of weights is empty; fetch it again")
    raise Refused("expected a preset folder of keras-hub, a .keras or a .weights.h5 file; this is none of them")


def _read_preset(folder: Path) -> KerasFile:
    weights = [name for name in (_WEIGHTS, _TASK_WEIGHTS) if (folder / name).is_file()]
    if not weights:
        if (folder / _SHARDS).exists():
            raise Refused(
                f"its weights are in several files ({_SHARDS}); save the model again in one, by "
                "save_to_preset(…, max_shard_size=10) of keras-hub"
            )
        raise Refused(f"expected a preset folder of keras-hub; it has no {_WEIGHTS}")
    groups = tuple(group for name in weights for group in _groups(folder / name, f"{name.split('.')[0]}/"))
    names = [name for name in _CONFIGS if (folder / name).is_file()]
    configs = {name: _json(folder / name) for name in names}
    digest = hashlib.sha256()
    for name in sorted([*weights, *names]):
        digest.update(f"{name} {sha256_of_file(folder / name)}\n".encode())
    return KerasFile(folder, digest.hexdigest(), groups, configs)


def _read_archive(path: Path) -> KerasFile:
    with zipfile.ZipFile(path) as archive:
        # What is not compressed can't grow beyond the file; Keras compresses nothing.
        sizes = {entry.filename: entry.file_size for entry in archive.infolist() if entry.compress_type == _STORED}
        if not {_WEIGHTS, "config.json"} <= set(sizes):
            raise Refused(f"this ZIP archive is not a .keras file (it has no {_WEIGHTS} and config.json)")
        if sizes[_WEIGHTS] + sizes["config.json"] > path.stat().st_size:
            raise Damaged("its entries have more bytes than the file")
        _check_length(sizes["config.json"])
        config = json.loads(archive.read("config.json"))
        groups = _groups(io.BytesIO(archive.read(_WEIGHTS)))
    return KerasFile(path, sha256_of_file(path), groups, {"task.json": config})


def _json(path: Path) -> Any:
    _check_length(path.stat().st_size)
    return json.loads(path.read_bytes())


def _check_length(count: int) -> None:
    if count > _LONGEST_JSON:
        raise Damaged(f"{count} bytes of configuration")


def _groups(file: Path | io.BytesIO, prefix: str = "") -> tuple[Group, ...]:
    """The groups `…/vars` of HDF5: one for each layer, its variables numbered from 0."""
    groups: list[Group] = []
    room = Room(file.stat().st_size if isinstance(file, Path) else len(file.getbuffer()))

    def visit(path: str, node: Any) -> None:  # links to elsewhere are not followed by visititems
        if not isinstance(node, h5py.Group) or path.rsplit("/", 1)[-1] != "vars":
            return
        arrays = []
        for number in range(len(node)):
            link = node.get(str(number), getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise Damaged(f"{named(path)}/{number} is a link to elsewhere, or missing")
            arrays.append(_array(node[str(number)], f"{named(path)}/{number}", room))
        if not path.startswith("optimizer"):
            groups.append(Group(prefix + path.removesuffix("vars").rstrip("/"), _name(node), tuple(arrays)))

    with h5py.File(file, "r") as opened:
        opened.visititems(visit)
    return tuple(groups)


def _name(node: Any) -> str | None:
    """The layer's name; a list of texts, which can all be the same long text, is none."""
    if "name" not in node.attrs or node.attrs.get_id("name").shape != ():
        return None
    name = node.attrs["name"]
    return name.decode() if isinstance(name, bytes) else name if isinstance(name, str) else None


def _array(dataset: Any, where: str, room: Room) -> np.ndarray:
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "fiub":
        raise Damaged(f"{where} is no array of numbers")
    # Only numbers that stand in this file, as many as it says: no other file's, and nothing that unfolds.
    if dataset.is_virtual or dataset.external or dataset.chunks or dataset.id.get_storage_size() != dataset.nbytes:
        raise Damaged(f"{where} is not stored plainly")
    room.take(dataset.nbytes)  # links can name the same array many times
    values = dataset[()]
    return as_float32(np.asarray(values)) if dataset.dtype.kind == "f" else np.asarray(values)


# ----------------------------------------------------------------------------------------------------- the trial


def _check_readable(path: Path) -> None:
    """Raise `Damaged` if reading this file or folder does not end, or ends the process that does it."""
    folder = str(Path(retina.__file__).parents[1])
    paths = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
    ended = subprocess.run(
        [sys.executable, "-m", __spec__.name, str(path.absolute())],
        env={**os.environ, "PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    ).returncode
    if ended in (-signal.SIGXCPU, -signal.SIGKILL):
        raise Damaged("its HDF5 never ends")
    if ended < 0 or ended == _NO_MEMORY:
        raise Damaged("its HDF5 can't be read")


def _try(path: Path) -> None:
    """Read the file within the limits; what is wrong with its content is for the process that asked to say."""
    files = [file for file in path.iterdir() if file.is_file()] if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files)
    seconds = _SECONDS + size // _BYTES_A_SECOND
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY + _TIMES * size,) * 2)
    with suppress(Exception):  # the same error comes in the process that asked
        try:
            _read_plainly(path)
        except MemoryError:
            sys.exit(_NO_MEMORY)


if __name__ == "__main__":
    _try(Path(sys.argv[1]))
