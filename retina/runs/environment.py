"""What a run ran on: versions, revision, device."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import resource
import subprocess
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
    """Versions, git revision of the code (None outside a checkout), backend, device and seed."""
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
    """The devices that the backend sees, in its own words."""
    if keras.backend.backend() != "torch":
        return [str(device) for device in keras.distribution.list_devices()]
    # Keras has no distribution for PyTorch, and so no list of its devices.
    import torch

    return [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cpu:0"]


def _weights(config: Config) -> dict[str, dict[str, str]]:
    """Which file of weights the run started from; nothing for a preset, whose name tells."""
    file = Path(config.model.weights or "")
    return {"weights": {"file": str(file), "sha256": sha256_of_file(file)}} if file.is_file() else {}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _revision(package: Path = Path(retina.__file__)) -> str | None:
    """Of the repository that tracks the file `package`; one that it merely lies in, as a virtual environment may, is
    somebody else's."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", package.name)
        return git("describe", "--always", "--dirty", "--abbrev=12")
    except (OSError, subprocess.SubprocessError):
        return None


def memory() -> dict[str, float]:
    """Memory in MB: `memory` and `memory_peak` of this process, `device_memory_peak` where the backend tells it."""
    found = {}
    statm = Path("/proc/self/statm")
    if statm.exists():
        found["memory"] = int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    kilo = 1 if platform.system() == "Darwin" else 1024  # macOS counts bytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilo / 1e6
    found["memory_peak"] = max(peak, found.get("memory", 0.0))  # the kernel's peak lags behind
    device = _device_peak()
    return {name: round(value, 1) for name, value in found.items()} | (
        {} if device is None else {"device_memory_peak": round(device / 1e6, 1)}
    )


def trim_memory() -> None:
    """Gives the system back what was freed in between, where the C library can (glibc).

    It keeps a heap for every thread that allocates; an evaluation and a checkpoint leave holes in all of them, which
    fill in another order each time, so that memory would creep up.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _device_peak() -> float | None:
    """Bytes at the peak on the accelerator that holds most; None on a CPU."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        names = [device.name.removeprefix("/physical_device:") for device in tf.config.list_physical_devices("GPU")]
        return max((float(tf.config.experimental.get_memory_info(name)["peak"]) for name in names), default=None)
    if backend == "jax":
        import jax

        stats = [device.memory_stats() or {} for device in jax.local_devices()]
        return max((float(one["peak_bytes_in_use"]) for one in stats if "peak_bytes_in_use" in one), default=None)
    import torch

    if not torch.cuda.is_available():
        return None
    return float(max(torch.cuda.max_memory_allocated(number) for number in range(torch.cuda.device_count())))
