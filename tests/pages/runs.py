"""What a training leaves behind, made without one: data, figures, detections; with hostile names."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from retina import config as configuration
from retina.data.ground_truth import ground_truth
from retina.data.load import load_split, read_results
from retina.evaluation.coco import evaluate_as
from retina.evaluation.document import to_json

EVIL = "<script>alert(1)</script>"
NAMES = ("cat", EVIL, "bird")
CATEGORIES = (3, 7, 9)
STEPS, EVERY, BATCH = 40, 20, 4
WIDTH, HEIGHT, IMAGES = 96, 64, 8


def make_run(folder: Path, *, best: int = STEPS, last: int = STEPS) -> Path:
    """A run in `folder`, evaluated each 20 steps up to `last`.

    Each image has three boxes, one of each class. The detections of the cat are exact (score 0.9), of the second class
    shifted to an IoU of 0.6 (score 0.7, every second image 0.2), of the bird missing in odd images; each image has one
    detection where nothing is (score 0.4 + 0.05 x its row).
    """
    data = folder / "data"
    data.mkdir(parents=True)
    write_data(data)
    run = folder / "run & <b>"
    (run / "checkpoints").mkdir(parents=True)
    config = configuration.load(
        None,
        [
            f"data={{root: {json.dumps(str(data))}, train: {SOURCE}, validation: {SOURCE}}}",
            "data.resize={short: 64, long: 96, multiple: 32}",
            f"schedule={{kind: cosine, steps: {STEPS}, warmup_steps: 4}}",
            f"run={{seed: 3, batch_size: {BATCH}, evaluate_every: {EVERY}}}",
            "optimizer={kind: adamw, learning_rate: 0.002}",
        ],
    )
    (run / "config.yaml").write_text(configuration.to_yaml(config))
    (run / "environment.json").write_text(json.dumps({"retina": "0.1.0", "backend": "jax", "devices": [EVIL]}))
    (run / "checkpoints" / "best").write_text(f"step_{best}\n")
    (run / "checkpoints" / "latest").write_text(f"step_{last}\n")
    lines: list[dict[str, Any]] = []
    for step in range(EVERY, last + 1, EVERY):
        lines.append(
            {
                "step": step, "loss": 40 / step, "loss_classification": 30 / step, "loss_box": 10 / step,
                "positives": 12.0, "positives_p3": 9.0, "positives_p4": 3.0, "background_probability": 0.01 * 10 / step,
                "gradient_norm": 1.5, "images_per_second": 8.0, "data_wait": 0.25, "learning_rate": 0.002 / step,
            }
        )  # fmt: skip
        lines.append({"step": step, "split": "validation", "metrics": write_evaluation(run, config, step)})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


SOURCE = "{format: coco, annotations: truth.json, images: images}"


def boxes_of(row: int) -> list[list[float]]:
    """x, y, width, height of the three boxes of an image."""
    return [[2.0 + row, 4.0, 20.0, 20.0], [30.0, 8.0 + row, 20.0, 20.0], [60.0, 30.0, 24.0, 24.0]]


def detections() -> list[dict[str, Any]]:
    found = []
    for row in range(IMAGES):
        cat, second, bird = boxes_of(row)
        # Shifted by 5 of 20: 15 / 25 is an IoU of 0.6.
        shifted = [second[0] + 5, *second[1:]]
        rows = [(0, cat, 0.9), (1, shifted, 0.2 if row % 2 else 0.7), (0, [1.0, 40.0, 15.0, 15.0], 0.4 + 0.05 * row)]
        rows += [] if row % 2 else [(2, bird, 0.8)]
        found += [
            {"image_id": row + 1, "category_id": CATEGORIES[k], "bbox": box, "score": score} for k, box, score in rows
        ]
    return found


def write_data(data: Path) -> None:
    (data / "images").mkdir()
    for row in range(IMAGES):
        pixels = np.random.default_rng(row).integers(0, 255, (4, 6, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(pixels).resize((WIDTH, HEIGHT)).save(out, "JPEG")
        (data / "images" / file_name(row)).write_bytes(out.getvalue())
    truth = {
        "images": [
            {"id": row + 1, "file_name": file_name(row), "width": WIDTH, "height": HEIGHT} for row in range(IMAGES)
        ],
        "categories": [{"id": one, "name": name} for one, name in zip(CATEGORIES, NAMES, strict=True)],
        "annotations": [
            {
                "id": 3 * row + k + 1, "image_id": row + 1, "category_id": CATEGORIES[k], "bbox": box,
                "area": box[2] * box[3], "iscrowd": 0,
            }
            for row in range(IMAGES)
            for k, box in enumerate(boxes_of(row))
        ],
    }  # fmt: skip
    (data / "truth.json").write_text(json.dumps(truth))


def file_name(row: int) -> str:
    return f"<img src=x onerror=alert(1)>{row}.jpg"


def write_evaluation(run: Path, config: configuration.Config, step: int) -> dict[str, float]:
    """`metrics.json` and `detections.json` as training writes them; gives the figures."""
    folder = run / "eval" / f"step_{step}"
    folder.mkdir(parents=True)
    (folder / "detections.json").write_text(json.dumps(detections()))
    truth = ground_truth(load_split(config.data, "validation"))
    metrics = evaluate_as(config.evaluation, truth, read_results(folder / "detections.json", truth, format="coco"))
    (folder / "metrics.json").write_text(json.dumps(to_json(metrics)))
    return dict(metrics.metrics)
