"""Keras' files read for a trial in a process of its own.

HDF5's library walks a file by the addresses in it: a single wrong byte can send it round in circles for ever, or where
it may not read. That ends the trial here, and not the process that asked.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import retina
from retina.weights.tensor_values import Damaged

# Of the processor, and of memory. Reading a sound file takes far less: 0.2 s and a few times its bytes.
_SECONDS, _BYTES_A_SECOND = 4, 20_000_000
_MEMORY, _TIMES = 2 << 30, 8
_NO_MEMORY = 3


def check_readable(path: Path) -> None:
    """Raises `Damaged` if reading this file or folder does not end, or ends the process that does it."""
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


def main(path: Path) -> None:
    """The trial: what the file holds, and what is wrong with it, is for the process that asked to say."""
    files = [one for one in path.iterdir() if one.is_file()] if path.is_dir() else [path]
    size = sum(one.stat().st_size for one in files)
    seconds = _SECONDS + size // _BYTES_A_SECOND
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY + _TIMES * size,) * 2)
    from retina.weights import keras_file

    with suppress(Exception):  # the same one comes in the process that asked
        try:
            keras_file.read_plainly(path)
        except MemoryError:
            sys.exit(_NO_MEMORY)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
