"""Real COCO photographs: all 80 classes, gaps in the ids, crowds."""

import json
from pathlib import Path

import numpy as np
import pytest

import retina
from retina import config as configuration

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "reproduce" / "overfit_coco_mini.py"


def small(root: Path) -> configuration.Config:
    train, validation = (
        {"format": "coco", "annotations": f"annotations/instances_{split}.json", "images": split}
        for split in ("train2017", "val2017")
    )
    return configuration.parse(
        {
            "data": {
                "root": str(root),
                "train": train,
                "validation": validation,
                "resize": {"short": 96, "long": 128, "multiple": 32, "max_canvases": 2},
            },
            "model": {
                "backbone": "keras_cv/resnet10",
                "fpn": {"channels": 16},
                "head": {"channels": 16, "layers": 1},
            },
            "schedule": {"kind": "step", "steps": 2},
            "run": {"batch_size": 4, "log_every": 1, "pictures": 0, "preflight": "warn"},
        }
    )


def test_trains_and_evaluates_with_all_classes_gaps_and_crowds(shared_data: Path, tmp_path: Path):
    config = small(shared_data / "coco_mini")
    train_data, validation_data = (retina.load_split(config.data, split) for split in ("train", "validation"))
    crowded = np.unique(np.repeat(np.arange(len(train_data)), np.diff(train_data.offsets))[train_data.crowd])
    run = retina.train(
        config,
        tmp_path / "run",
        train_data=train_data.subset(crowded[:8]),
        validation_data=validation_data.subset(range(8)),
    )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 2] and all(line["loss"] > 0 for line in lines[:2])
    metrics, _, dataset = retina.evaluate(run, "validation")
    assert len(metrics.per_class) == 80 and dataset.category_ids[-1] == 90
    assert metrics.boxes == int((~dataset.crowd).sum()) and metrics.images == 158
    assert all(0 <= value <= 1 for value in metrics.metrics.values())


@pytest.mark.slow
def test_overfits_eight_photographs(shared_data: Path, tmp_path: Path, python):
    done = python([str(SCRIPT), str(shared_data / "coco_mini")], tmp_path)
    assert done.code == 0, done.out + done.err
