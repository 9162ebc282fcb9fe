#!/usr/bin/env python
"""Train a detector of small defects on large pictures twice: on the pictures shrunk whole, and on their tiles.

    .venv/bin/python scripts/reproduce/train_in_tiles.py ../shared/data/deeppcb --out /tmp/tiles

DeepPCB's boards are put side by side, four to a picture of 1280 × 1280 pixels, with `--side 3` nine to one of 1920 ×
1920, the training and validation boards each among themselves. Both trainings have the settings of
configs/ablation_deeppcb.yaml, a learning rate of 0.004, canvases of 320 × 320 pixels and equally many steps; the first
has anchors as much smaller as its boxes are, and every box gets one. On the same pictures the first is evaluated whole
and, which is not the same, in tiles; the second in tiles. Repeated after a kill, it goes on.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from retina.data.load import read_ground_truth, read_results
from retina.evaluation.comparison import compare
from retina.evaluation.matching import match

CONFIG = Path(__file__).parents[2] / "configs/ablation_deeppcb.yaml"
BOARD = 640  # pixels
MOST = 300  # detections in an image or tile, and of a class in an image; nine boards have up to 99 boxes
IN_TILES = ["evaluation.tiles.size=640", "evaluation.tiles.overlap=0.2"]
TILES = ["data.tiles.size=640", "data.tiles.overlap=0.2", "data.cache=memory", *IN_TILES]
FIGURES = ("AP", "AP50", "AP75", "APs", "APm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of DeepPCB, with annotations/ and images/")
    parser.add_argument("--out", type=Path, default=Path("runs/train_in_tiles"), help="(%(default)s)")
    parser.add_argument("--side", type=int, default=2, help="boards along a side of a picture (%(default)s)")
    parser.add_argument("--steps", type=int, default=300, help="(%(default)s)")
    arguments = parser.parse_args()
    side, steps = arguments.side, arguments.steps
    out = arguments.out / f"{side}x{side}_{steps}"
    pictures = out / "pictures"
    for split in ("train", "val"):
        side_by_side(arguments.data, split, side, pictures)
    common = [f"data.root={pictures.absolute()}", "optimizer.learning_rate=0.004"]
    common += [f"inference.max_detections={MOST}", f"evaluation.max_detections=[1,10,{MOST}]"]
    common += [f"schedule.steps={steps}", f"schedule.warmup_steps={steps // 10}", f"run.evaluate_every={steps}"]
    whole = [f"anchors.size={2 / side:.2f}", "assignment.force_match=true"]  # as the doctor suggests
    for name, settings in (("whole", whole), ("tiles", TILES)):
        run = out / name
        resume = ["--resume"] if (run / "config.yaml").is_file() else []
        retina("train", CONFIG, *common, *settings, "--run-dir", run, *resume)
    evaluations = {"whole": ("whole", []), "whole, evaluated in tiles": ("whole", IN_TILES), "tiles": ("tiles", [])}
    folders = {name: out / "evaluations" / name.replace(", ", "_").replace(" ", "_") for name in evaluations}
    for name, (run, settings) in evaluations.items():
        if not (folders[name] / "metrics.json").is_file():
            retina("evaluate", out / run, *settings, "--out", folders[name])
    summary(folders, pictures / "annotations/val.json")


def summary(folders: dict[str, Path], annotations: Path) -> None:
    """Print the figures of each evaluation, and the differences from the last."""
    print(f"\n{'trained on':26}" + "".join(f"{name:>7}" for name in FIGURES) + "   AP's 95 % interval")
    for name, folder in folders.items():
        document = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        values = [document["metrics"][figure] for figure in FIGURES]
        low, high = document["intervals"]["metrics"]["AP"]
        cells = "".join(f"{'-' if value < 0 else format(value, '.3f'):>7}" for value in values)
        print(f"{name:26}{cells}   {low:.3f} to {high:.3f}")
    truth = read_ground_truth(annotations)
    matches = {
        name: match(truth, read_results(folder / "detections.json", truth), max_detections=MOST)
        for name, folder in folders.items()
    }
    *others, last = matches
    for other in others:
        for figure, of in compare(truth, matches[other], matches[last]).figures.items():
            print(f"{last} - {other}: {figure} {of.difference:+.3f} ({of.low:+.3f} to {of.high:+.3f})")


def retina(command: str, *words: object) -> None:
    print(f"\n$ retina {command} {' '.join(map(str, words))}", flush=True)
    if code := subprocess.run([sys.executable, "-m", "retina", command, *map(str, words)]).returncode:
        sys.exit(code)


def side_by_side(data: Path, split: str, side: int, out: Path) -> None:
    """Write the pictures of a split, without loss, and their annotations; boards that fill no picture are left out."""
    source = json.loads((data / f"annotations/{split}.json").read_text(encoding="utf-8"))
    boxes: dict[int, list[dict[str, Any]]] = {}
    for annotation in source["annotations"]:
        boxes.setdefault(annotation["image_id"], []).append(annotation)
    (out / "images").mkdir(parents=True, exist_ok=True)
    (out / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    places = [(BOARD * column, BOARD * row) for row in range(side) for column in range(side)]
    for number in range(len(source["images"]) // len(places)):
        picture = Image.new("L", (side * BOARD, side * BOARD))
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
