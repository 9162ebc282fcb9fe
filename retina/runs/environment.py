"""The environment of a run: versions, revision, devices and memory."""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import os
import platform
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras

import retina
from retina.config import Config
from retina.weights.tensor_file import sha256_of_file

_PACKAGES = (
    "tensorflow",
    "keras",
    "keras-cv",
    "numpy",
    "pycocotools",
    "opencv-python-headless",
    "simplejpeg",
    "jax",
    "torch",
)


def describe_environment(config: Config) -> dict[str, Any]:
    """Return versions, git revision of the code (None outside a checkout), backend, devices and seed."""
    return {
        "retina": retina.__version__,
        "revision": _revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "backend": keras.backend.backend(),
        "devices": devices(),
        "seed": config.run.seed,
        **_weights(config),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def devices() -> list[str]:
    """Return the names of the devices that the backend sees."""
    if keras.backend.backend() != "torch":
        return [str(device) for device in keras.distribution.list_devices()]
    # Keras has no distribution for PyTorch, and so no list of its devices.
    import torch

    return [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cpu:0"]


def _weights(config: Config) -> dict[str, dict[str, str]]:
    """Return file and SHA-256 of the weights that the run started from; empty for a preset: its name suffices."""
    file = Path(config.model.weights or "")
    return {"weights": {"file": str(file), "sha256": sha256_of_file(file)}} if file.is_file() else {}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _revision(package: Path = Path(retina.__file__)) -> str | None:
    """Return the revision of the repository that tracks the file `package`.

    A repository that only contains it untracked, as a virtual environment may be contained, is another project's.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", package.name)
        return git("describe", "--always", "--dirty", "--abbrev=12")
    except (OSError, subprocess.SubprocessError):
        return None


def memory() -> dict[str, float]:
    """Return memory in MB: `memory` and `memory_peak` of the process, `device_memory_peak` if the backend knows it."""
    figures = {}
    statm = Path("/proc/self/statm")
    if statm.exists():
        figures["memory"] = int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    kilo = 1 if platform.system() == "Darwin" else 1024  # macOS counts bytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilo / 1e6
    figures["memory_peak"] = max(peak, figures.get("memory", 0.0))  # the kernel updates its peak late
    device = _device_peak()
    if device is not None:
        figures["device_memory_peak"] = device / 1e6
    return {name: round(value, 1) for name, value in figures.items()}


def trim_memory() -> None:
    """Return freed memory to the system, where the C library can (glibc).

    It has a heap for every thread that allocates; an evaluation and a checkpoint leave holes in all of them, which fill
    in another order each time, so that memory would grow slowly.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextmanager
def long_lived_objects_set_aside() -> Iterator[None]:
    """Let `gc.collect` look only at objects made since: milliseconds, where those of TensorFlow take half a second.

    Objects that the caller has set aside already (`gc.freeze`) stay as they are.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _device_peak() -> float | None:
    """Return the bytes at the peak on the accelerator that holds most; None on a CPU."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        names = [device.name.removeprefix("/physical_device:") for device in tf.config.list_physical_devices("GPU")]
        return max((float(tf.config.experimental.get_memory_info(name)["peak"]) for name in names), default=None)
    if backend == "jax":
        import jax

        stats = [device.memory_stats() or {} for device in jax.local_devices()]
        return max((float(peak["peak_bytes_in_use"]) for peak in stats if "peak_bytes_in_use" in peak), default=None)
    import torch

    if not torch.cuda.is_available():
        return None
    return float(max(torch.cuda.max_memory_allocated(number) for number in range(torch.cuda.device_count())))
