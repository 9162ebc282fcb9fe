#!/usr/bin/env python3
"""Train digits for 2,000 steps with evaluations and checkpoints, and print the memory of the process on the way.

    .venv/bin/python scripts/reproduce/memory.py [--steps 2000] [--every 100] [--run-dir DIR]

Resident memory is read from metrics.jsonl. It counts from the second evaluation on, when every graph is compiled and
every buffer has been used once; exits with 0 if it has grown by less than 2 % at the end.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

import retina
from retina import config as configuration
from retina.runs.directory import RunDirectory

GOAL = 0.02


def settings(steps: int, every: int) -> configuration.Config:
    return configuration.load(
        None,
        [
            "data.train={format: digits, split: train, images: 256, size: 64}",
            "data.validation={format: digits, split: validation, images: 32, size: 64}",
            "data.resize={short: 64, long: 64, multiple: 32}",
            "model={backbone: keras_cv/resnet10, fpn: {channels: 32, max_level: 5}, head: {channels: 32, layers: 1}}",
            f"schedule={{kind: cosine, steps: {steps}, warmup_steps: 20}}",
            f"run={{batch_size: 4, ema: {{}}, evaluate_every: {every}, checkpoint_every: {max(every // 2, 1)}, "
            "log_every: 10, pictures: 4}",
            "inference={batch_size: 8}",
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=100, help="steps between evaluations")
    parser.add_argument("--run-dir", type=Path)
    arguments = parser.parse_args()
    if arguments.steps < 4 * arguments.every:
        parser.error("--steps: expected at least four evaluations")
    with tempfile.TemporaryDirectory() as folder:
        run = retina.train(settings(arguments.steps, arguments.every), arguments.run_dir or Path(folder) / "run")
        lines = [line for line in RunDirectory(run).metrics() if "memory" in line]
    steps, memory = (np.array([line[name] for line in lines]) for name in ("step", "memory"))
    # Means over the lines between two evaluations: single readings swing with the checkpoint's copy.
    stretches = [(end, memory[(steps > end - arguments.every) & (steps <= end)].mean()) for end in
                 range(arguments.every, arguments.steps + 1, arguments.every)]  # fmt: skip
    base, widest = stretches[2][1], max(mean for _, mean in stretches)
    for end, mean in stretches:
        print(f"to step {end:5}  {mean:8.1f} MB  {'#' * round(60 * mean / widest)}")
    growth = stretches[-1][1] / base - 1
    print(f"from step {stretches[2][0]} to {stretches[-1][0]}: {growth:+.2%} (goal: less than {GOAL:.0%})")
    sys.exit(0 if growth < GOAL else 1)


if __name__ == "__main__":
    main()
