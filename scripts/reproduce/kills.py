#!/usr/bin/env python3
"""Train digits, kill the training at random moments, resume it, and compare with a run that was left alone.

    .venv/bin/python scripts/reproduce/kills.py [--kills 20] [--per-run 4] [--seed 0] [--folder DIR] [--files]
        [--augment flips] [--cache memory] [--precision mixed_float16] [--backend jax] [--devices 2]

Each process is a `retina train` of its own, with every augmentation, two scales, moving averages, accumulation and
clipping, on the CPU with deterministic operations; SIGKILL comes at a moment drawn evenly from the time that a whole
run takes, start-up included. A run is killed `--per-run` times, then left to end. Under mixed_float16 the loss scale
starts so high that updates are left out; with `--files` the images are JPEG files, with a COCO table; `--augment flips`
leaves all but flips and zoom out; `--devices` are parts of the CPU.

Prints a line for each; exits with 0 if every run's weights, optimizer, averages and lines of metrics.jsonl (but for
wall-clock fields) equal those of the run that was left alone, bit for bit.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from retina.data.formats.digits import read_digits
from retina.runs.directory import LATEST, RunDirectory

ROOT = Path(__file__).resolve().parents[2]
WALL_CLOCK = {"images_per_second", "data_wait", "memory", "memory_peak", "device_memory_peak"}
SETTINGS = [
    "data.train={format: digits, split: train, images: 64, size: 64}",
    "data.validation={format: digits, split: validation, images: 8, size: 64}",
    "data.resize={short: 64, train_short: [48, 64], long: 64, multiple: 32}",
    "data.augment={horizontal_flip: 0.5, vertical_flip: 0.5, scale: [0.6, 1.6]%(augment)s}",
    "model={backbone: keras_cv/resnet10, fpn: {channels: 32, max_level: 5}, head: {channels: 32, layers: 1}}",
    "loss.normalizer={kind: ema}",
    "optimizer={kind: adamw, learning_rate: 2.0e-3, clip_norm: 10.0}",
    "schedule={kind: cosine, steps: %(steps)d, warmup_steps: 20}",
    "run={precision: %(precision)s, batch_size: 8, accumulate: 2, ema: {decay: 0.99}, log_every: 7, "
    "checkpoint_every: 6, evaluate_every: 40, checkpoint_minutes: 0.05, keep: 2, deterministic: true, pictures: 2}",
    "inference={batch_size: 8, max_detections: 20}",
]
# Those of retina.config.Augment beyond flips and zoom.
OTHERS = "".join(f", {name}: {{probability: 0.5}}" for name in ("crop", "colour", "erase", "mosaic", "mixup"))
AUGMENT = {"all": OTHERS, "flips": ""}
# The command line, on a CPU that is divided into as many devices as the first argument says.
CHILD = """
import sys
from retina.startup import import_tensorflow_quietly
import_tensorflow_quietly()
import tensorflow as tf
parts = [tf.config.LogicalDeviceConfiguration()] * int(sys.argv.pop(1))
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], parts)
from retina.cli import main
main()
"""


def write_files(folder: Path) -> list[str]:
    """The digits as JPEG files with COCO tables, and the settings that read them."""
    settings = [f"data.root={folder}"]
    counts: dict[Literal["train", "validation"], int] = {"train": 64, "validation": 8}
    for split, count in counts.items():
        data = read_digits(split, count, 64)
        (folder / split).mkdir(parents=True, exist_ok=True)
        objects: list[dict[str, Any]] = []
        for row, image in enumerate(data.images):
            assert isinstance(image, bytes)  # the digits are drawn in memory
            Image.open(io.BytesIO(image)).convert("RGB").save(folder / split / f"{row}.jpg", quality=90)
            boxes = data.objects(row)
            for (x1, y1, x2, y2), label in zip(boxes.boxes.tolist(), boxes.labels.tolist(), strict=True):
                box, number = [x1, y1, x2 - x1, y2 - y1], len(objects) + 1
                objects.append({"id": number, "image_id": row, "category_id": label, "bbox": box, "iscrowd": 0})
        table = {
            "images": [{"id": row, "file_name": f"{row}.jpg", "width": 64, "height": 64} for row in range(count)],
            "annotations": objects,
            "categories": [{"id": place, "name": name} for place, name in enumerate(data.class_names)],
        }
        (folder / f"{split}.json").write_text(json.dumps(table))
        settings.append(f"data.{split}={{format: coco, images: {split}, annotations: {split}.json}}")
    return settings


def command(run: Path, settings: list[str], devices: int, resume: bool) -> list[str]:
    return [
        sys.executable,
        *(["-m", "retina"] if devices == 1 else ["-c", CHILD, str(devices)]),
        "train",
        str(ROOT / "configs" / "digits.yaml"),
        *settings,
        f"run.devices={devices}",
        "--run-dir",
        str(run),
        *(["--resume"] if resume else []),
    ]


class Runner(NamedTuple):
    """Settings, backend and devices with which each training is started."""

    settings: list[str]
    backend: str
    devices: int

    def environment(self) -> dict[str, str]:
        flags = {} if self.devices == 1 else {"XLA_FLAGS": f"--xla_force_host_platform_device_count={self.devices}"}
        return {**os.environ, "KERAS_BACKEND": self.backend, "CUDA_VISIBLE_DEVICES": "", **flags}


def train(run: Path, runner: Runner, *, resume: bool, after: float | None) -> tuple[bool, str, float]:
    """Train, and kill it after so many seconds (None: never).

    Returns:
        Whether it was killed, its last line of output, and its seconds.
    """
    start = time.monotonic()
    log = run.with_suffix(".txt")
    started = command(run, runner.settings, runner.devices, resume)
    with open(log, "ab") as out:
        process = subprocess.Popen(started, stdout=out, stderr=out, env=runner.environment())
        try:
            process.wait(timeout=after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    if process.returncode not in (0, -signal.SIGKILL):
        sys.exit(f"{shlex.join(started)} failed with {process.returncode}: see {log}")
    lines = log.read_text(errors="replace").splitlines()
    return process.returncode != 0, lines[-1] if lines else "", time.monotonic() - start


def state(run: Path) -> str:
    """State that a kill left: the last line, the last checkpoint, files half written."""
    if not (run / "config.yaml").is_file():
        return "no run directory yet"
    directory = RunDirectory(run)
    steps = [json.loads(line)["step"] for line in _whole_lines(run / "metrics.jsonl")]
    saved = directory.pointed_step(LATEST)
    half = sorted(path.name for path in run.rglob(".partial.*"))
    said = f"logged step {max(steps, default=0)}, checkpoint {'none' if saved is None else saved}"
    return said + (f", half written: {' '.join(half)}" if half else "")


def _whole_lines(file: Path) -> list[str]:
    text = file.read_text() if file.is_file() else ""
    return [line for line in text.split("\n")[:-1] if line]


def _scales(run: Path) -> str:
    """Number of lines, and the loss scale that they hold, if there is one."""
    lines = RunDirectory(run).metrics()
    scales = [line["loss_scale"] for line in lines if "loss_scale" in line]
    if not scales:
        return f"{len(lines)} lines"
    left_out = sum(line.get("overflow", 0) > 0 for line in lines)
    return f"{len(lines)} lines, {left_out} with updates left out, loss scale {scales[0]:g} to {scales[-1]:g}"


def compare(run: Path, whole: Path) -> dict[str, str]:
    """By group of arrays, and for the lines: `equal`, or how many differ."""
    arrays, expected = (_arrays(folder) for folder in (run, whole))
    verdicts = {}
    for group in ("weights", "optimizer", "extra"):
        names = [name for name in arrays.keys() | expected.keys() if name.startswith(f"{group}/")]
        wrong = [name for name in names if not _same(arrays.get(name), expected.get(name))]
        verdicts[group] = f"{len(wrong)} of {len(names)} differ" if wrong or not names else "equal"
    ours, theirs = (
        [{k: v for k, v in line.items() if k not in WALL_CLOCK} for line in RunDirectory(folder).metrics()]
        for folder in (run, whole)
    )
    verdicts["metrics.jsonl"] = "equal" if ours == theirs else f"differs ({len(ours)} and {len(theirs)} lines)"
    return verdicts


def _arrays(run: Path) -> dict[str, np.ndarray]:
    with np.load(RunDirectory.open(run).checkpoint_path(LATEST)) as file:
        return {name: file[name] for name in file.files}


def _same(first: np.ndarray | None, second: np.ndarray | None) -> bool:
    if first is None or second is None:
        return False
    return first.dtype == second.dtype and first.tobytes() == second.tobytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--per-run", type=int, default=4)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="float32", choices=("float32", "mixed_bfloat16", "mixed_float16"))
    parser.add_argument("--backend", default="tensorflow", choices=("tensorflow", "jax"))
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--augment", default="all", choices=tuple(AUGMENT))
    parser.add_argument("--cache", default="none", choices=("none", "memory"))
    parser.add_argument("--files", action="store_true", help="images as JPEG files, in place of ones drawn in memory")
    parser.add_argument("--folder", type=Path, help="keep the runs here")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)  # noqa: S311 - not for secrets
    named = {"steps": arguments.steps, "augment": AUGMENT[arguments.augment], "precision": arguments.precision}
    settings = [text % named if "%(" in text else text for text in SETTINGS] + [f"data.cache={arguments.cache}"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        # The later ones of two settings count.
        settings += write_files(folder / "data") if arguments.files else []
        runner = Runner(settings, arguments.backend, arguments.devices)
        whole = folder / "whole"
        _, _, seconds = train(whole, runner, resume=False, after=None)
        images = f"{'JPEG files' if arguments.files else 'images in memory'}, augment {arguments.augment}"
        place = f"{arguments.backend} on {arguments.devices} device{'s' if arguments.devices > 1 else ''}"
        print(f"{place}, {arguments.precision}, {images}, cache {arguments.cache}, {arguments.steps} steps")
        print(f"left alone: {seconds:.1f} s, {len(_arrays(whole))} arrays, {_scales(whole)}", flush=True)
        killed = runs = 0
        while killed < arguments.kills:
            runs += 1
            run = folder / f"run_{runs}"
            ends, left = False, min(arguments.per_run, arguments.kills - killed)
            while left and not ends:
                moment = draw.uniform(0, seconds)
                was_killed, said, _ = train(run, runner, resume=run.with_suffix(".txt").exists(), after=moment)
                ends = not was_killed
                if was_killed:
                    killed, left = killed + 1, left - 1
                    print(
                        f"kill {killed:2}  {run.name}  {moment:5.1f} s  {state(run)}  (last: {said[:60]})", flush=True
                    )
            train(run, runner, resume=True, after=None)
            verdict = compare(run, whole)
            equal = set(verdict.values()) == {"equal"}
            print(f"         {run.name}  " + ", ".join(f"{name}: {text}" for name, text in verdict.items()), flush=True)
            if not equal:
                sys.exit(1)
        print(f"{killed} kills of {runs} runs: every run ended bit for bit as the one that was left alone")


if __name__ == "__main__":
    main()
