"""Training on real photographs, through the whole of retina: pipeline, step, evaluation. It needs no TensorFlow."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from PIL import Image
from plan import DIGITS, MADE_UP, Part

import retina
from retina import config as configuration
from retina.runs.directory import RunDirectory

ROOT = Path(__file__).resolve().parents[2]


def settings(part: Part) -> retina.Config:
    """BCCD as configs/bccd.yaml trains it, a folder in COCO's layout otherwise; `fed` is a short run of the full-sized
    network on the part's canvas. No part of keras-cv is asked for."""
    if part.data == DIGITS:
        length = {} if part.steps is None else {"schedule.steps": part.steps, "schedule.warmup_steps": part.steps // 2}
        small = {"data.train.images": 40, "data.validation.images": 8} if part.tiny else {}
        words = [f"{key}={value}" for key, value in {**length, **small, "run.evaluate_every": "null"}.items()]
        return configuration.load(ROOT / "configs/digits.yaml", words)
    root = Path(part.data or "").absolute()
    coco = (root / "annotations").is_dir()
    values = _coco(root) if coco else _bccd(root)
    precision = {"bfloat16": "mixed_bfloat16", "float32": "float32"}[part.precision]
    if part.kind == "fed":
        steps = part.steps or 60
        size = "resnet18" if part.tiny else "resnet50"
        values |= {
            "model": {"backbone": size},
            "anchors": {},
            "optimizer": {"kind": "sgd", "learning_rate": 1e-4},
            "schedule": {"kind": "constant", "steps": steps, "warmup_steps": 0},
            "run": {
                "batch_size": part.batches[0],
                "evaluate_every": 10 * steps,
                "log_every": max(1, steps // 6),
                "preflight": "warn",
            },
        }
        short, long = part.canvas
        values["data"] |= {"resize": {"short": short, "long": long, "multiple": 32, "max_canvases": 1}, "augment": {}}
    elif part.steps is not None:
        warmup = min(values["schedule"].get("warmup_steps", 0), part.steps // 2)
        values["schedule"] |= {"steps": part.steps, "warmup_steps": warmup}
    values["run"] |= {"precision": precision}
    return configuration.parse(values)


def _bccd(root: Path) -> dict[str, Any]:
    values = configuration.load(ROOT / "configs/bccd.yaml", [f"data.root={root}"]).model_dump(
        mode="json", exclude_unset=True
    )
    values["model"]["backbone"] = "resnet18"
    return values


def _coco(root: Path) -> dict[str, Any]:
    return {
        "data": {
            "root": str(root),
            "train": {
                "format": "coco",
                "annotations": "annotations/instances_train2017.json",
                "images": "train2017",
            },
            "validation": {
                "format": "coco",
                "annotations": "annotations/instances_val2017.json",
                "images": "val2017",
            },
            "resize": {"short": 512, "long": 640, "multiple": 128, "max_canvases": 2},
        },
        "model": {"backbone": "resnet50", "head": {"norm": "group"}},
        "optimizer": {"kind": "adamw", "learning_rate": 5e-4, "weight_decay": 0.05, "clip_norm": 10.0},
        "schedule": {"kind": "cosine", "steps": 1000, "warmup_steps": 100},
        "run": {"batch_size": 16, "evaluate_every": 500},
    }


def made_up(root: Path, count: int) -> Path:
    """Write square JPEGs of smooth noise with seven boxes each, in COCO's layout: they fill a square canvas."""
    draw = np.random.default_rng(0)
    for split in ("train2017", "val2017"):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(count if split == "train2017" else 8):
            coarse = draw.integers(0, 256, (80, 80, 3), dtype=np.uint8)
            images.append({"id": number + 1, "file_name": f"{number}.jpg", "width": 640, "height": 640})
            file = root / split / f"{number}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(coarse).resize((640, 640), Image.Resampling.BICUBIC).save(file, quality=90)
            for x, y in draw.integers(0, 300, (7, 2)).tolist():
                box = {"bbox": [x, y, 120, 90], "area": 10800, "iscrowd": 0, "category_id": 1}
                annotations.append({"id": len(annotations) + 1, "image_id": number + 1, **box})
        table = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(table))
    return root


class BeforeEvaluation(keras.callbacks.Callback):
    """Call a function before each evaluation."""

    def __init__(self, call: Callable[[], None]):
        super().__init__()
        self.call = call

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.call()


def run(part: Part, answer: Callable[[dict[str, Any]], None]) -> None:
    """Train, and answer with the speed and the share of time spent waiting for data before each evaluation, which is
    compiled anew and may not end in time, and with the validation figures at the end (coco_mini's 160 photographs teach
    little from scratch: its figure shows that the path works, not what the detector can do)."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        if part.data == MADE_UP:
            part = replace(part, data=str(made_up(Path(folder) / "data", 8 if part.tiny else 256)))
        config = settings(part)
        directory = Path(folder) / "run"

        def figures() -> dict[str, Any]:
            return _figures(config, RunDirectory.open(directory).metrics(), time.perf_counter() - start)

        retina.train(config, directory, callbacks=[BeforeEvaluation(lambda: answer(figures()))])
        answer(figures())


def _figures(config: retina.Config, lines: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    speeds = [line["images_per_second"] for line in lines if line.get("images_per_second")]
    waits = [value for line in lines for key, value in line.items() if key == "data_wait"]
    scored = [line["metrics"] for line in lines if "metrics" in line]
    return {
        "batch": config.run.batch_size,
        "steps": config.schedule.steps,
        "wall_seconds": seconds,
        # The first line holds the compilation.
        "fed_images_per_second": statistics.median(speeds[1:] or speeds) if speeds else None,
        "waiting_for_data": statistics.median(waits) if waits else None,
        "metrics": max(scored, key=lambda m: m["AP"]) if scored else None,
    }
