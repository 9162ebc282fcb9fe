"""The device that training runs on: how much memory it has, and whether it computes in bfloat16."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Literal, NamedTuple

from retina.data.batches.cache import available_memory
from retina.runs.environment import devices

# Of a processor that multiplies in bfloat16; others emulate it, which takes longer than float32.
_BFLOAT16 = re.compile(r"\b(avx512_bf16|amx_bf16|bf16)\b")
# From this compute capability on NVIDIA's GPUs have bfloat16.
_AMPERE = 8.0
_LEAST_GPU = 8 * 2**30


class Device(NamedTuple):
    """A device: `memory` in bytes that training may take, `bfloat16` whether its processor multiplies in it."""

    kind: Literal["cpu", "gpu"]
    name: str
    memory: int
    bfloat16: bool


def device() -> Device:
    """Return the device that the backend trains on by default."""
    accelerators = [name for name in devices() if "cpu" not in name.lower()]
    if accelerators:
        return accelerator(accelerators[0], _ask_driver())
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # macOS
        flags = ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return processor(cores, available_memory(), flags)


def processor(cores: int, memory: int, flags: str) -> Device:
    """Return a CPU from its number of cores, its free memory, and the flags that the system lists."""
    return Device("cpu", f"{cores} CPU core{'s' if cores > 1 else ''}", memory, _BFLOAT16.search(flags) is not None)


def accelerator(name: str, answer: str) -> Device:
    """Return a GPU from a line `name, MiB, compute capability` of its driver; of one that does not say, the least."""
    parts = [part.strip() for part in answer.split(",")]
    try:
        return Device("gpu", parts[0], int(parts[1]) * 2**20, float(parts[2]) >= _AMPERE)
    except (IndexError, ValueError):
        return Device("gpu", name, _LEAST_GPU, False)


def _ask_driver() -> str:
    """The first line of NVIDIA's tool on name, memory and compute capability; empty where there is none."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return next(iter(answer.splitlines()), "")
