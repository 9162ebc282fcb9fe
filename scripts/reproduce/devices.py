#!/usr/bin/env python3
"""Train the same 20 steps on 1, 2 and 4 devices and on two hosts, and print how far the results lie apart.

    .venv/bin/python scripts/reproduce/devices.py [--steps 20] [--only tensorflow,jax] [--accumulate 2] [--folder DIR]

The devices are parts of this machine's CPU, the hosts processes on it that reach each other by the loopback. Each row
is a whole `retina.train` in a process of its own: digits with augmentation, batches of 8, a ResNet whose batch
normalisation is synchronised, moving averages, clipping, an evaluation of 13 images. Compared with one device of the
same backend: the loss of every step (a share), all weights, moving statistics and averages after the last (an absolute
difference, beside how far they moved since step 1), and the validation figures. Exits with 0 if no loss and no weight
differs by more than 1e-5.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
GOAL = 1e-5
SETTINGS = [
    "data.train={format: digits, split: train, images: 60, size: %(size)d}",
    "data.validation={format: digits, split: validation, images: 13, size: %(size)d}",
    "data.resize={short: %(size)d, long: %(size)d, multiple: 32}",
    "data.augment={horizontal_flip: 0.5, scale: [0.8, 1.2]}",
    "model={backbone: keras_cv/resnet10, batch_norm: sync, fpn: {channels: 32, max_level: 5}, "
    "head: {channels: 32, layers: 1}}",
    "optimizer={kind: sgd, learning_rate: %(rate)g, clip_norm: 10.0}",
    "schedule={kind: cosine, steps: %(steps)d, warmup_steps: 5}",
    "run={batch_size: 8, accumulate: %(accumulate)d, ema: {decay: 0.9}, log_every: 1, checkpoint_every: 1, "
    "keep: %(steps)d, pictures: 2, preflight: 'off'}",
    "inference={batch_size: 2, max_detections: 20, score_threshold: 0.001}",
]


class Case(NamedTuple):
    backend: str
    devices: int
    hosts: int = 1


CASES = (
    *(Case("tensorflow", devices) for devices in (1, 2, 4)),
    *(Case("jax", devices) for devices in (1, 2, 4)),
    Case("jax", 1, 2),
    Case("jax", 2, 2),
)

CHILD = """
import sys
from retina.startup import import_tensorflow_quietly
import_tensorflow_quietly()
import tensorflow as tf
devices, run, *settings = sys.argv[1:]
part = tf.config.LogicalDeviceConfiguration()
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [part] * int(devices))
import retina
retina.train(retina.load_config(None, settings), run)
"""


class Result(NamedTuple):
    losses: np.ndarray
    first: dict[str, np.ndarray]
    last: dict[str, np.ndarray]
    figures: dict[str, float]


def train(case: Case, settings: list[str], folder: Path) -> Result:
    """Run a case to its end; the run directory of a host that is not the first must stay absent."""
    runs = [folder / f"{case.backend}_{case.devices}x{case.hosts}_{host}" for host in range(case.hosts)]
    port = _free_port()
    processes = []
    for host, run in enumerate(runs):
        of_host = [*settings, f"run.devices={case.devices}"]
        if case.hosts > 1:
            of_host.append(f"run.hosts={{coordinator: 'localhost:{port}', count: {case.hosts}, index: {host}}}")
        flags = f"--xla_force_host_platform_device_count={case.devices}"
        environment = {**os.environ, "KERAS_BACKEND": case.backend, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", CHILD, str(case.devices), str(run), *of_host]
        with open(folder / f"{run.name}.txt", "w", encoding="utf-8") as output:
            processes.append(subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=900) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for run, code in zip(runs, codes, strict=True):
        if code:
            raise SystemExit(f"{case}: exit code {code}\n{(folder / f'{run.name}.txt').read_text(encoding='utf-8')}")
    written = [run.name for run in runs[1:] if run.exists()]
    if written:
        raise SystemExit(f"{case}: only the first host may write, and there is {written}")
    return read(runs[0])


def read(run: Path) -> Result:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    first, last = (arrays(run / "checkpoints" / f"step_{step}.npz") for step in (1, lines[-1]["step"]))
    return Result(np.array([line["loss"] for line in lines if "loss" in line]), first, last, lines[-1]["metrics"])


def arrays(checkpoint: Path) -> dict[str, np.ndarray]:
    """Weights, moving statistics and averages, by path."""
    with np.load(checkpoint) as file:
        return {name: file[name] for name in file.files if name.startswith(("weights/", "extra/ema/"))}


def farthest(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> float:
    """The largest absolute difference of two elements."""
    assert first.keys() == second.keys()
    return max(float(np.max(np.abs(first[name] - second[name]), initial=0.0)) for name in first)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--accumulate", type=int, default=1, choices=(1, 2), help="parts of a batch")
    parser.add_argument("--size", type=int, default=64, help="of the images, in pixels")
    parser.add_argument("--rate", type=float, default=1e-4, help="the learning rate")
    parser.add_argument("--only", default="tensorflow,jax", help="backends")
    parser.add_argument("--folder", type=Path, help="keeps the runs here")
    arguments = parser.parse_args()
    if not set(arguments.only.split(",")) <= {case.backend for case in CASES}:
        parser.error(f"--only: expected tensorflow, jax or both, got {arguments.only}")
    if arguments.steps < 5:
        parser.error("--steps: expected at least 5, the warm-up")
    values = {
        "steps": arguments.steps,
        "accumulate": arguments.accumulate,
        "size": arguments.size,
        "rate": arguments.rate,
    }
    settings = [text % values for text in SETTINGS]
    bad = 0
    alone: dict[str, Result] = {}
    print(
        "backend     devices  hosts      last loss  losses differ by  weights differ by  they moved by  AP differs by",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for case in CASES:
            if case.backend not in arguments.only.split(","):
                continue
            result = train(case, settings, folder)
            base = alone.setdefault(case.backend, result)
            assert len(result.losses) == arguments.steps
            losses = float(np.max(np.abs(result.losses / base.losses - 1)))
            weights, moved = farthest(result.last, base.last), farthest(result.last, result.first)
            figures = max(abs(result.figures[name] - base.figures[name]) for name in base.figures)
            bad += losses > GOAL or weights > GOAL
            print(
                f"{case.backend:10}  {case.devices:7}  {case.hosts:5}  {result.losses[-1]:13.8f}  {losses:16.1e}  "
                f"{weights:17.1e}  {moved:13.1e}  {figures:13.1e}",
                flush=True,
            )
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
