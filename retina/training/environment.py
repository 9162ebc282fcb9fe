"""What a run ran on: versions, revision, device."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import keras

import retina
from retina.config import Config

_PACKAGES = ("tensorflow", "keras", "keras-cv", "numpy", "pycocotools", "jax", "torch")


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
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def devices() -> list[str]:
    """The devices that the backend sees, in its own words."""
    if keras.backend.backend() != "torch":
        return [str(device) for device in keras.distribution.list_devices()]
    # Keras has no distribution for PyTorch, and so no list of its devices.
    import torch

    return [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cpu:0"]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _revision() -> str | None:
    folder = Path(retina.__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
