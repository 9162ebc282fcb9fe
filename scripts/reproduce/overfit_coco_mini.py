#!/usr/bin/env python
"""Overfit eight real COCO photographs: a detector that can't learn eight images can't learn any.

    .venv/bin/python scripts/reproduce/overfit_coco_mini.py ../shared/data/coco_mini [--run-dir DIR]

Takes the first eight training images all of whose boxes the anchors can cover (best IoU at least 0.5), prints the
count, trains on them, and evaluates on the same eight. Exit code 1 if AP stays below 0.9.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

import retina
from retina import config as configuration
from retina.doctor.coverage import best_overlaps
from retina.runs.directory import RunDirectory

IMAGES, GOAL = 8, 0.9


def settings(root: Path, steps: int) -> retina.Config:
    source = {"format": "coco"}
    return configuration.parse(
        {
            "data": {
                "root": str(root),
                "train": {**source, "annotations": "annotations/instances_train2017.json", "images": "train2017"},
                "validation": {**source, "annotations": "annotations/instances_val2017.json", "images": "val2017"},
                # One canvas, so that a batch is the eight images: batch normalisation then learns their statistics.
                "resize": {"short": 256, "long": 320, "multiple": 64, "max_canvases": 1},
                "augment": {"horizontal_flip": 0.0},
            },
            "model": {
                "backbone": "keras_cv/resnet18",
                "fpn": {"channels": 64},
                "head": {"channels": 64, "layers": 2, "norm": "group", "init_std": 0.03},
            },
            "anchors": {"size": 3.0},
            "optimizer": {"kind": "adamw", "learning_rate": 1e-3, "weight_decay": 1e-4, "clip_norm": 10.0},
            "schedule": {"kind": "cosine", "steps": steps, "warmup_steps": 20},
            "run": {"batch_size": 8},
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("--steps", type=int, default=120)
    arguments = parser.parse_args()

    config = settings(arguments.root, arguments.steps)
    data = retina.load_split(config.data, "train")
    overlaps = best_overlaps(data, config.data.resize, config.anchors, config.model.fpn)
    image_of = np.repeat(np.arange(len(data)), np.diff(data.offsets))
    counts = np.bincount(image_of[~data.crowd], minlength=len(data))
    usable = ~data.crowd
    covered = np.bincount(image_of[usable], overlaps[usable] >= config.assignment.positive_iou, minlength=len(data))
    whole = (covered == counts) & (counts > 0) & (np.bincount(image_of[~usable], minlength=len(data)) == 0)
    chosen = data.subset(np.flatnonzero(whole)[:IMAGES])
    print(
        f"{usable.sum()} boxes, {int(covered.sum())} with an anchor of IoU >= {config.assignment.positive_iou}; "
        f"{whole.sum()} of {len(data)} images have all of theirs covered; overfitting {len(chosen)} images with "
        f"{len(chosen.boxes)} boxes of {len(np.unique(chosen.labels))} of {len(chosen.class_names)} classes"
    )
    with tempfile.TemporaryDirectory() as folder:
        run = retina.train(config, arguments.run_dir or folder, train_data=chosen, validation_data=chosen)
        metrics = RunDirectory.open(run).metrics()[-1]["metrics"]
    print(f"AP {metrics['AP']:.4f}, AP50 {metrics['AP50']:.4f} on the same {len(chosen)} images")
    sys.exit(0 if metrics["AP"] >= GOAL else 1)


if __name__ == "__main__":
    main()
