#!/usr/bin/env python3
"""Predict 2,000 images of many sizes, in flat memory; kill the prediction at random moments, and compare.

    .venv/bin/python scripts/reproduce/predict_kills.py [--run RUN] [--images 2000] [--kills 3] [--seed 0]

The images are JPEG files of digits in folders, between 320 and 640 pixels, one in a hundred of them damaged. `retina
predict` detects in all of them, watched from outside: resident memory (VmRSS) after a quarter of the images, when every
buffer has been used, and at the end. Then a second prediction is killed (SIGKILL) when it comes to images drawn at
random, half a line is added to what it left, and the same command goes on. Without a run a tiny detector is
trained first, whose detections mean nothing.

Exits with 0 if memory grew by less than 5 % and both folders hold the same files, bit for bit.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

import retina
from retina import config
from retina.data.formats.digits import read_digits
from retina.data.images import table_image

GOAL = 0.05
SETTINGS = [
    "data.train={format: digits, split: train, images: 64, size: 64}",
    "data.validation=null",
    "data.resize={short: 64, long: 64, multiple: 32}",
    "model={backbone: keras_cv/resnet10, fpn: {channels: 16, max_level: 5}, "
    "head: {channels: 16, layers: 1, prior: 0.2}}",
    "schedule={kind: cosine, steps: 6, warmup_steps: 2}",
    "run={batch_size: 4}",
]


def draw(folder: Path, count: int, rng: np.random.Generator) -> None:
    """Write the images."""
    table = read_digits("test", images=40, size=256)
    boards = [Image.fromarray(table_image(table, row)) for row in range(len(table))]
    for number in range(count):
        file = folder / f"{number % 20:02}" / f"{number:05}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        if number % 100 == 50:
            file.write_bytes(b"damaged")
        else:
            width, height = rng.integers(320, 641, 2).tolist()
            boards[number % len(boards)].resize((width, height)).save(file, quality=90)


def start(run: Path, images: Path, out: Path) -> subprocess.Popen:
    command = ["predict", run, images, "--out", out, "--no-pictures", "--score", "0.05"]
    return subprocess.Popen(
        [sys.executable, "-m", "retina", *map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def lines(out: Path) -> int:
    """Images that are done."""
    file = out / "detections.jsonl"
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def resident(process: subprocess.Popen) -> float | None:
    """MB that a process holds in memory; None once it has ended."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return None
    values = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")]
    return int(values[0]) / 1024 if values else None


def watched(process: subprocess.Popen, out: Path, count: int) -> tuple[float, float]:
    """Print the memory of a prediction on its way; return it after a quarter of the images, and the last."""
    readings: list[tuple[int, float]] = []
    while process.poll() is None:
        memory, done = resident(process), lines(out)
        if memory is not None and done:
            readings.append((done, memory))
        time.sleep(0.2)
    if process.returncode != 1:  # some images are damaged
        raise SystemExit(f"retina predict ended with {process.returncode}")
    for share in (0.1, 0.25, 0.5, 0.75, 1.0):
        done, memory = [reading for reading in readings if reading[0] <= share * count][-1]
        print(f"after {done:5} images {memory:8.1f} MB")
    return [memory for done, memory in readings if done <= count / 4][-1], readings[-1][1]


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)  # noqa: S311 - no secret
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = arguments.run or retina.train(config.load(None, SETTINGS), folder / "run")
        draw(folder / "images", arguments.images, np.random.default_rng(arguments.seed))
        begin = time.perf_counter()
        base, last = watched(start(run, folder / "images", folder / "whole"), folder / "whole", arguments.images)
        seconds = time.perf_counter() - begin
        growth = last / base - 1
        print(f"{arguments.images} images in {seconds:.0f} s; memory {growth:+.2%} (goal: less than {GOAL:.0%})")
        for moment in sorted(chance.uniform(0, arguments.images) for _ in range(arguments.kills)):
            process = start(run, folder / "images", folder / "killed")
            while process.poll() is None and lines(folder / "killed") < moment:
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            print(f"killed after {lines(folder / 'killed')} images")
            if (folder / "killed" / "detections.jsonl").is_file():
                with open(folder / "killed" / "detections.jsonl", "ab") as journal:
                    journal.write(b'{"image": "half a')
        start(run, folder / "images", folder / "killed").wait()
        same = content(folder / "whole") == content(folder / "killed")
        print(f"{sorted(content(folder / 'whole'))}: {'equal' if same else 'DIFFERENT'}, bit for bit")
    sys.exit(0 if same and growth < GOAL else 1)


if __name__ == "__main__":
    main()
