#!/usr/bin/env python
"""Train on folders as newcomers have them, with one line each, and compare what was said with what came of it.

    .venv/bin/python scripts/reproduce/own_data.py ../shared/data --minutes 10 --seeds 3

DATA holds `bccd` (Pascal VOC) and `coco_mini` (COCO). BCCD's training images are laid out as LabelImg leaves them, XML
files beside the images: 40 of them, and all 205; coco_mini as Roboflow exports it. Each folder is trained by
`retina train FOLDER --minutes M run.seed=S`, with what `retina init` chooses and again with a backbone of random
weights (model.weights=null). BCCD is evaluated on its own test split, which no folder holds; coco_mini on the folder's
validation split.

Prints a row for each training as it ends: the time that was said before the first step, the time that the command
took, AP and AP50. --json keeps the rows in a file, and a row that is in it already is not trained again.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RETINA = [sys.executable, "-m", "retina"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
SAID = re.compile(r"about (\d+(?:\.\d+)?) (s|min|h)\b")
SECONDS = {"s": 1, "min": 60, "h": 3600}


def labelimg(data: Path, folder: Path, count: int) -> None:
    """Write the first images of BCCD's training list and their XML files into one folder."""
    names = (data / "bccd/ImageSets/Main/train.txt").read_text().split()[:count]
    folder.mkdir()
    for name in names:
        shutil.copy(data / f"bccd/JPEGImages/{name}.jpg", folder)
        shutil.copy(data / f"bccd/Annotations/{name}.xml", folder)


def roboflow(data: Path, folder: Path) -> None:
    """Write coco_mini as Roboflow does: a folder a split, the annotations beside its images."""
    for split, name in (("train2017", "train"), ("val2017", "valid")):
        tree = json.loads((data / f"coco_mini/annotations/instances_{split}.json").read_text())
        shutil.copytree(data / f"coco_mini/{split}", folder / name)
        (folder / name / "_annotations.coco.json").write_text(json.dumps(tree))


def train(folder: Path, run: Path, minutes: float, settings: list[str]) -> tuple[float | None, float]:
    """Run the one line; return the seconds that it said, and those that it took."""
    start = time.perf_counter()
    done = subprocess.run(
        [*RETINA, "train", str(folder), *settings, "--minutes", f"{minutes:g}", "--run-dir", str(run)],
        env=ENVIRONMENT, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    said = SAID.findall(done.stdout)
    return (float(said[-1][0]) * SECONDS[said[-1][1]] if said else None), time.perf_counter() - start


def evaluate(run: Path, split: str, settings: list[str]) -> dict[str, float]:
    done = subprocess.run(
        [*RETINA, "evaluate", str(run), *settings, "--split", split, "--json"],
        env=ENVIRONMENT, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    metrics: dict[str, float] = json.loads(done.stdout)["metrics"]
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folders", nargs="*", default=["bccd_40", "bccd_205", "coco_mini"])
    parser.add_argument("--weights", nargs="*", choices=["chosen", "random"], default=["chosen", "random"])
    parser.add_argument("--json", type=Path, help="keeps the rows")
    arguments = parser.parse_args()
    data = arguments.data.resolve()
    rows: list[dict[str, Any]] = (
        json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else []
    )
    finished = {(row["folder"], row["weights"], row["seed"], row["minutes"]) for row in rows}
    print("| folder | weights | seed | said, min | took, min | AP | AP50 |\n|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as place:
        for name in arguments.folders:
            folder = Path(place) / name
            if name == "coco_mini":
                roboflow(data, folder)
                split, of_test = "validation", []
            else:
                labelimg(data, folder, int(name.rpartition("_")[2]))
                split, of_test = "test", [f"data.root={data / 'bccd'}", "data.test={format: voc, splits: [test]}"]
            for seed in range(arguments.seeds):
                for weights in arguments.weights:
                    if (name, weights, seed, arguments.minutes) in finished:
                        continue
                    run = Path(place) / f"{name}_{weights}_{seed}"
                    random = ["model.weights=null"] if weights == "random" else []
                    said, took = train(folder, run, arguments.minutes, [f"run.seed={seed}", *random])
                    metrics = evaluate(run, split, of_test)
                    row = {"folder": name, "weights": weights, "seed": seed, "minutes": arguments.minutes, "said": said}
                    rows.append({**row, "took": took, "AP": metrics["AP"], "AP50": metrics["AP50"]})
                    times = f"{'–' if said is None else f'{said / 60:.1f}'} | {took / 60:.1f}"
                    figures = f"{metrics['AP']:.3f} | {metrics['AP50']:.3f}"
                    print(f"| {name} | {weights} | {seed} | {times} | {figures} |", flush=True)
                    if arguments.json:
                        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
