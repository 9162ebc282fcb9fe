#!/usr/bin/env python
"""Changes in the detections of an imported RetinaNet by torchvision's own resizing, and by a shared canvas.

    .venv/bin/python scripts/reproduce/imported_resizing.py PHOTOGRAPH

Random weights (ResNet-18, 5 classes, V1 and V2), so the figures are those of `retina guide weights` and not of a
trained detector. For each pair of settings: how many of the detections above 0.3 are there again (the same class, an
IoU over 0.5), and how far boxes (pixels of the photograph) and scores then differ, median and most. A minute on 2
cores; needs torchvision.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import tensorflow as tf
import torch
from PIL import Image

from retina.inference import Predictor
from retina.runs.importing import import_run
from retina.runs.loading import load
from tests.parity import torchvision_models as torchvision

THRESHOLD, SHORT = 0.3, 800


def ours(predictor: Predictor, image: np.ndarray, width: int, canvas: tuple[int, int]) -> dict[str, np.ndarray]:
    """Detections on the photograph resized to SHORT x `width`, in the corner of a canvas (height, width)."""
    pixels = np.zeros((*canvas, 3), np.uint8)
    pixels[:SHORT, :width] = tf.cast(tf.round(tf.image.resize(image, (SHORT, width))), tf.uint8)
    scale = np.array([[SHORT / image.shape[0], width / image.shape[1]]], np.float32)
    outputs = predictor.run({"images": pixels[None], "size": np.array([[SHORT, width]], np.int32), "scale": scale})
    outputs = {name: np.asarray(values)[0] for name, values in outputs.items()}
    return {name: values[outputs["valid"]] for name, values in outputs.items()}


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """IoU of each box of the first with each of the second."""
    low, high = (np.maximum, 0), (np.minimum, 2)
    corners = [take(first[:, None, at : at + 2], second[None, :, at : at + 2]) for take, at in (low, high)]
    shared = np.clip(corners[1] - corners[0], 0, None).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (first, second)]
    return shared / (areas[0][:, None] + areas[1][None] - shared + 1e-9)


def compare(name: str, first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    """Print how many of the first detections are among the second, and how far apart those are."""
    fits = (first["labels"][:, None] == second["labels"][None]) * overlaps(first["boxes"], second["boxes"])
    again, partner = fits.max(1) > 0.5, fits.argmax(1)
    boxes = np.abs(first["boxes"] - second["boxes"][partner]).max(-1)[again]
    scores = np.abs(first["scores"] - second["scores"][partner])[again]
    print(
        f"{name}: {again.sum()} of {len(again)} again; boxes {np.median(boxes):.2f} px (most {boxes.max():.1f}), "
        f"scores {np.median(scores):.3f} (most {scores.max():.3f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photograph", type=Path, help="wider than high")
    image = np.asarray(Image.open(parser.parse_args().photograph).convert("RGB"))
    height, width = image.shape[:2]
    if width <= height:
        parser.error(f"photograph: expected one that is wider than high, got {width} x {height} pixels")
    down = int(width * SHORT / height)
    tight = (SHORT, -(-down // 32) * 32)
    for version in torchvision.VERSIONS:
        with tempfile.TemporaryDirectory() as folder:
            model = torchvision.retinanet(version, 5, depth=18)
            model.score_thresh = THRESHOLD
            file = torchvision.save(model, Path(folder) / "weights.pth")
            import_run("torchvision", file, Path(folder) / "run", overrides=[f"inference.score_threshold={THRESHOLD}"])
            predictor = load(Path(folder) / "run")
            with torch.no_grad():
                theirs = model([torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255])[0]
            theirs = {name: values.numpy() for name, values in theirs.items()}
            base = ours(predictor, image, down, tight)
            compare(f"{version}, torchvision's own resize and retina's ({down} px wide)", theirs, base)
            for canvas in ((832, 1344), (1344, 1344)):
                compare(f"{version}, canvas {canvas} and {tight}", ours(predictor, image, down, canvas), base)


if __name__ == "__main__":
    main()
