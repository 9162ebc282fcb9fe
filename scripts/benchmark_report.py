#!/usr/bin/env python
"""The report of a large evaluation: seconds to build it, and its size.

Makes a run directory with a synthetic evaluation (80 classes, seven boxes and by default 100 detections an image, every
second box detected, photographs of noise and shapes of 640 × 480 pixels) and an earlier one, and writes its report. It
fails (exit code 1) above 60 seconds or 10 MB.

    scripts/benchmark_report.py --images 5000 --detections 100
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from retina import config as configuration

CLASSES, BOXES, WIDTH, HEIGHT, STEPS = 80, 7, 640, 480, 1000
# Different pictures; the other images are links to them.
PICTURES = 40
MOST_SECONDS, MOST_MB = 60.0, 10.0


def picture(random: np.random.Generator) -> bytes:
    """A JPEG that is about as hard to compress as a photograph."""
    from PIL import Image

    coarse = random.integers(0, 255, (12, 16, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float64)
    pixels += random.normal(0, 12, pixels.shape)
    out = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=85)
    return out.getvalue()


def make_run(folder: Path, images: int, detections: int) -> Path:
    """A run directory whose last evaluation is the synthetic one."""
    random = np.random.default_rng(0)
    data = folder / "data"
    data.mkdir()
    for number in range(min(PICTURES, images)):
        (data / f"{number}.jpg").write_bytes(picture(random))
    for number in range(PICTURES, images):
        os.link(data / f"{number % PICTURES}.jpg", data / f"{number}.jpg")
    size = np.exp(random.normal(4, 0.8, (images * BOXES, 2))).clip(6, 400)
    corner = random.uniform(0, 1, size.shape) * ([WIDTH, HEIGHT] - size)
    boxes = np.concatenate([corner, size], axis=1).round(2)
    labels = (random.random(len(boxes)) ** 3 * CLASSES).astype(int)
    image = np.repeat(np.arange(images), BOXES)
    truth = {
        "images": [{"id": k, "file_name": f"{k}.jpg", "width": WIDTH, "height": HEIGHT} for k in range(images)],
        "categories": [{"id": k + 1, "name": f"class {k}"} for k in range(CLASSES)],
        "annotations": [
            {"id": k + 1, "image_id": i, "category_id": c + 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for k, (i, c, box) in enumerate(zip(image.tolist(), labels.tolist(), boxes.tolist(), strict=True))
        ],
    }
    (data / "truth.json").write_text(json.dumps(truth))
    detected = []
    for k in range(images):
        rows = np.arange(k * BOXES, k * BOXES + BOXES)[:detections]
        stray = detections - len(rows)
        near = boxes[rows] + random.normal(0, 0.06, (len(rows), 4)) * np.tile(boxes[rows, 2:], 2)
        side = np.exp(random.normal(4, 0.8, (stray, 2))).clip(6, 400)
        far = np.concatenate([random.uniform(0, 1, side.shape) * ([WIDTH, HEIGHT] - side), side], axis=1)
        scores = np.concatenate([random.beta(4, 3, len(rows)), 0.05 + 0.9 * random.beta(1, 9, stray)])
        for box, score, label in zip(
            np.concatenate([near, far]).clip(0).tolist(),
            scores.tolist(),
            np.concatenate([labels[rows], random.integers(0, CLASSES, stray)]).tolist(),
            strict=True,
        ):
            detected.append({"image_id": k, "category_id": label + 1, "bbox": box, "score": score})
    run = folder / "run"
    evaluation = run / "eval" / f"step_{STEPS}"
    evaluation.mkdir(parents=True)
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "best").write_text(f"step_{STEPS}\n")
    source = "{format: coco, annotations: truth.json, images: .}"
    overrides = [f"data={{root: {json.dumps(str(data))}, train: {source}, validation: {source}}}"]
    config = configuration.load(None, [*overrides, f"schedule={{kind: constant, steps: {STEPS}}}"])
    (run / "config.yaml").write_text(configuration.to_yaml(config))
    (evaluation / "detections.json").write_text(json.dumps(detected))
    earlier = run / "eval" / f"step_{STEPS // 2}"
    earlier.mkdir()
    (earlier / "detections.json").write_text(json.dumps(detected[::2]))
    lines = [{"step": s, "loss": 3 / s**0.3, "images_per_second": 20.0, "data_wait": 0.01} for s in range(1, STEPS + 1)]
    lines += [{"step": step, "metrics": {"AP": ap}} for step, ap in ((STEPS // 2, 0.1), (STEPS, 0.2))]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100, help="an image")
    parser.add_argument("--keep", type=Path, help="a new folder for the run and its report")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        run = make_run(folder, options.images, options.detections)
        start, busy = time.perf_counter(), time.process_time()
        from retina.startup import import_tensorflow_quietly

        import_tensorflow_quietly()
        from retina.pages.run_page import write_report

        page = write_report(run)
        seconds, busy, size = time.perf_counter() - start, time.process_time() - busy, page.stat().st_size / 1e6
    figures = {
        "images": options.images,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(busy, 1),
        "MB": round(size, 2),
    }
    print(json.dumps(figures))
    return int(seconds > MOST_SECONDS or size > MOST_MB)


if __name__ == "__main__":
    sys.exit(main())
