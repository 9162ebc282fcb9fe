#!/usr/bin/env python
"""Run the blocks of retina/guide/ecosystem.md with the real packages, and the trackers of `retina train`.

    pip install supervision torchmetrics wandb mlflow-skinny keras-tuner albumentations ray
    scripts/reproduce/third_parties.py
    scripts/reproduce/third_parties.py supervision "Ray Tune"        sections by their headings

It makes a folder of shapes and a run of two steps on it; then each block runs in a process of its own, in that folder.
A package that is not installed is skipped and named; the exit code is 1 where a block fails.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "retina" / "guide" / "ecosystem.md"
TRACKED = "Trackers of runs: W&B and MLflow"
# Nothing is sent anywhere.
OFFLINE = {
    "WANDB_MODE": "offline", "WANDB_SILENT": "true",
    # mlflow-skinny has no database, and a folder of files is asked for twice.
    "MLFLOW_TRACKING_URI": "file:mlruns", "MLFLOW_ALLOW_FILE_STORE": "true",
}  # fmt: skip

PREPARE = """
import json
from pathlib import Path
import numpy as np
from PIL import Image
import retina

random = np.random.default_rng(0)
for split in ("train", "val"):
    images, labels = (Path("shapes", kind, split) for kind in ("images", "labels"))
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for number in range(8):
        picture = random.integers(0, 90, (64, 64, 3), np.uint8)
        x, y = random.integers(0, 32, 2)
        label = int(random.integers(2))
        picture[y : y + 32, x : x + 32] = (255, 255 * label, 0)
        Image.fromarray(picture).save(images / f"{number}.png")
        (labels / f"{number}.txt").write_text(f"{label} {(x + 16) / 64} {(y + 16) / 64} 0.5 0.5")
Path("shapes/data.yaml").write_text("train: images/train\\nval: images/val\\nnames: [red, yellow]")
retina.convert("shapes", "coco", "coco")
source = "{{format: coco, annotations: coco/annotations/instances_{0}.json, images: coco/images/{0}}}"
config = retina.load_config(overrides=[
    "data={train: " + source.format("train") + ", validation: " + source.format("val") + "}",
    "data.resize={short: 64, long: 64, multiple: 32}", f"data.root={Path.cwd()}",
    "model.fpn={channels: 16, max_level: 5}", "model.head={channels: 16, layers: 1, prior: 0.2}",
    "schedule={kind: constant, steps: 2}", "run={batch_size: 4, preflight: warn, report: false}",
    "inference={max_detections: 20}", "evaluation.max_detections=[1, 10, 100]",
])
Path("shapes.yaml").write_text(retina.config.to_yaml(config))
retina.train(config, "runs/shapes")
"""
BEGIN = """
import numpy as np
import retina

config, data = retina.load_config("shapes.yaml"), retina.load_dataset("shapes", "train")
images = np.stack([data.image(row) for row in range(8)])
boxes = [data.table.objects(row).boxes for row in range(8)]
classes = [data.table.objects(row).labels for row in range(8)]
"""
TRACK = """
config = retina.load_config("shapes.yaml", ["run.trackers=[wandb, mlflow]", "run.log_every=1"])
run = retina.train(config, "runs/tracked")
import mlflow
(sent,) = mlflow.search_runs(output_format="list")
lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
last = [line for line in lines if "loss" in line][-1]
assert abs(sent.data.metrics["train/loss"] - last["loss"]) < 1e-6, (sent.data.metrics, last)
assert "validation/AP" in sent.data.metrics and sent.data.params["run.seed"] == str(config.run.seed)
assert list(run.glob("wandb/offline-run-*/*.wandb"))
longer = retina.load_config("shapes.yaml", ["run.trackers=[wandb, mlflow]", "run.log_every=1", "schedule.steps=4"])
retina.train(longer, run, resume=True)
(sent,) = mlflow.search_runs(output_format="list")
assert sent.data.params["schedule.steps"] == "2" and "nothing more is sent" not in (run / "log.txt").read_text()
history = mlflow.MlflowClient().get_metric_history(sent.info.run_id, "train/loss")
assert [figure.step for figure in history] == [1, 2, 3, 4]
"""


def blocks() -> dict[str, str]:
    """Return the Python of each section of the page by its heading; of the trackers' section, what tests them."""
    parts = re.split(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    code = {
        heading: "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
        for heading, text in zip(parts[1::2], parts[2::2], strict=True)
    }
    return {**code, TRACKED: "import json\nimport wandb\n" + TRACK}


def missing(code: str) -> list[str]:
    """Return the packages that a block imports and that are not installed."""
    names = set(re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE))
    return sorted(name for name in names if importlib.util.find_spec(name) is None)


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **OFFLINE, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help="headings of the page; all by default")
    parser.add_argument("--json", type=Path, help="a file for the outcomes")
    arguments = parser.parse_args()
    every = {heading: code for heading, code in blocks().items() if code.strip()}
    unknown = set(arguments.sections) - set(every)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: expected sections of {', '.join(every)}")
    outcomes: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        prepared = run(PREPARE, Path(name))
        if prepared.returncode:
            sys.exit(prepared.stderr)
        for heading in arguments.sections or every:
            absent = missing(every[heading])
            done = None if absent else run(BEGIN + every[heading], Path(name))
            failed = done is not None and done.returncode != 0
            outcomes[heading] = f"not installed: {', '.join(absent)}" if absent else "failed" if failed else "ran"
            print(f"{heading}: {outcomes[heading]}", flush=True)
            if done is not None and failed:
                print(done.stderr[-3000:], file=sys.stderr)
    if arguments.json:
        arguments.json.write_text(json.dumps(outcomes, indent=1))
    return int("failed" in outcomes.values())


if __name__ == "__main__":
    sys.exit(main())
