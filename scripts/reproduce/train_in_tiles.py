#!/usr/bin/env python
"""Train a detector of small defects on large pictures twice: on the pictures shrunk whole, and on their tiles.

    .venv/bin/python scripts/reproduce/train_in_tiles.py ../shared/data/deeppcb --out /tmp/tiles

DeepPCB's boards are put side by side, four to a picture of 1280 × 1280 pixels, the training and validation boards each
among themselves. Both trainings have the settings of configs/ablation_deeppcb.yaml, a learning rate of 0.004, canvases
of 320 × 320 pixels and equally many steps; the first has anchors half as large, since its boxes are, and every box gets
one. The first is evaluated on the whole pictures, the second in tiles; then they are compared on the same pictures.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image

CONFIG = Path(__file__).parents[2] / "configs/ablation_deeppcb.yaml"
BOARD, SIDE = 640, 2  # pixels of a board, and boards along a side of a picture
TILES = ["data.tiles.size=640", "data.cache=memory", "evaluation.tiles.size=640"]
WHOLE = ["anchors.size=1.0", "assignment.force_match=true"]  # as the doctor suggests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of DeepPCB, with annotations/ and images/")
    parser.add_argument("--out", type=Path, default=Path("runs/train_in_tiles"), help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=300, help="(%(default)s)")
    arguments = parser.parse_args()
    pictures, out = arguments.out / "pictures", arguments.out
    for split in ("train", "val"):
        side_by_side(arguments.data, split, pictures)
    common = [f"data.root={pictures.absolute()}", "optimizer.learning_rate=0.004", "inference.max_detections=100"]
    steps = arguments.steps
    common += [f"schedule.steps={steps}", f"schedule.warmup_steps={steps // 10}", f"run.evaluate_every={steps}"]
    for name, settings in (("whole", WHOLE), ("tiles", TILES)):
        if not (out / name).exists():
            retina("train", CONFIG, *common, *settings, "--run-dir", out / name)
    retina("compare", out / "whole", out / "tiles")


def retina(command: str, *words: object) -> None:
    print(f"\n$ retina {command} {' '.join(map(str, words))}", flush=True)
    if code := subprocess.run([sys.executable, "-m", "retina", command, *map(str, words)]).returncode:
        sys.exit(code)


def side_by_side(data: Path, split: str, out: Path) -> None:
    """Write the pictures of a split, without loss, and their annotations; boards that fill no picture are left out."""
    source = json.loads((data / f"annotations/{split}.json").read_text(encoding="utf-8"))
    boxes: dict[int, list[dict[str, Any]]] = {}
    for annotation in source["annotations"]:
        boxes.setdefault(annotation["image_id"], []).append(annotation)
    (out / "images").mkdir(parents=True, exist_ok=True)
    (out / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    places = [(BOARD * column, BOARD * row) for row in range(SIDE) for column in range(SIDE)]
    for number in range(len(source["images"]) // len(places)):
        picture = Image.new("L", (SIDE * BOARD, SIDE * BOARD))
        boards = source["images"][number * len(places) : (number + 1) * len(places)]
        for board, (left, top) in zip(boards, places, strict=True):
            picture.paste(Image.open(data / "images" / board["file_name"]).convert("L"), (left, top))
            for annotation in boxes.get(board["id"], []):
                x, y, *size = annotation["bbox"]
                moved = {"id": len(annotations) + 1, "image_id": number, "bbox": [x + left, y + top, *size]}
                annotations.append({**annotation, **moved})
        name = f"{split}_{number:03}.png"
        picture.save(out / "images" / name)
        images.append({"id": number, "file_name": name, "width": picture.width, "height": picture.height})
    document = {"images": images, "annotations": annotations, "categories": source["categories"]}
    (out / f"annotations/{split}.json").write_text(json.dumps(document), encoding="utf-8")
    left_out = len(source["images"]) - len(images) * len(places)
    print(f"{split}: {len(images)} pictures, {len(annotations)} boxes; {left_out} boards left out")


if __name__ == "__main__":
    main()
