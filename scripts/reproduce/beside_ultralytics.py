#!/usr/bin/env python
"""Train a folder of photographs with `retina train` and with Ultralytics' nano detector, at equal CPU seconds.

    python -m venv ULTRALYTICS && ULTRALYTICS/bin/pip install ultralytics
    .venv/bin/python scripts/reproduce/beside_ultralytics.py ../shared/data --python ULTRALYTICS/bin/python --minutes 10

DATA holds `bccd` (Pascal VOC). Its 205 training images are laid out as LabelImg leaves them, XML files beside the
images, and `retina train FOLDER --minutes M model.weights=null` trains from random weights. The split that it made is
converted to YOLO's format, and Ultralytics trains its nano detector on it, from random weights too and with its
defaults, for as many epochs as the CPU seconds allow that the first command took: three epochs tell what one costs.
Both detect on BCCD's test images, which neither saw, and one evaluator scores both.

Prints the CPU seconds (of training, validation and start), AP and AP50 of each. Ultralytics' package is under the AGPL
and is no dependency of this one, so it has an environment of its own.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from own_data import ENVIRONMENT, RETINA, labelimg

# Runs in Ultralytics' environment, with the arguments: data.yaml, epochs, folder, images to detect on or nothing.
NANO = """
import json, sys, time
from pathlib import Path
from ultralytics import YOLO

data, epochs, folder, images = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:]
ends = []
model = YOLO(MODEL)
model.add_callback("on_fit_epoch_end", lambda trainer: ends.append(time.process_time()))
model.train(data=data, epochs=epochs, pretrained=False, device="cpu", workers=0, project=folder, name="nano",
            exist_ok=True, plots=False, seed=SEED, verbose=False)
cpu = time.process_time()
best = YOLO(Path(folder) / "nano/weights/best.pt")
detections = []
for image in images:
    result = best.predict(image, conf=0.001, iou=0.7, max_det=100, device="cpu", verbose=False)[0].boxes
    for box, score, label in zip(result.xyxy.tolist(), result.conf.tolist(), result.cls.tolist()):
        detections.append([Path(image).name, box, score, best.names[int(label)]])
Path(folder, "nano.json").write_text(json.dumps({"epochs": ends, "cpu": cpu, "detections": detections}))
"""


def cpu_seconds() -> float:
    """Return those of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def call(command: list[str], **environment: str) -> str:
    done = subprocess.run(command, env={**ENVIRONMENT, **environment}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return done.stdout


def nano(python: Path, model: str, seed: int, data: Path, folder: Path, epochs: int, images: list[str]) -> Any:
    """Train for some epochs, then detect on images; return the CPU seconds at each epoch's end and the detections."""
    code = NANO.replace("MODEL", repr(model)).replace("SEED", str(seed))
    call([str(python), "-c", code, str(data), str(epochs), str(folder), *images], PYTHONPATH="", YOLO_OFFLINE="true")
    return json.loads((folder / "nano.json").read_text())


def results(detections: list[Any], truth: dict[str, Any]) -> list[dict[str, Any]]:
    """Return COCO results of (file name, corners, score, class name), with the ids of `truth`."""
    ids = {image["file_name"]: image["id"] for image in truth["images"]}
    classes = {category["name"]: category["id"] for category in truth["categories"]}
    return [
        {"image_id": ids[image], "category_id": classes[name], "score": score,
         "bbox": [left, top, right - left, bottom - top]}
        for image, (left, top, right, bottom), score, name in detections
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--python", type=Path, required=True, help="of the environment that holds ultralytics")
    parser.add_argument("--model", default="yolo11n.yaml")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    data = arguments.data.resolve()
    with tempfile.TemporaryDirectory() as place:
        folder, run, yolo = Path(place, "photographs"), Path(place, "run"), Path(place, "yolo")
        labelimg(data, folder, 205)
        before = cpu_seconds()
        options = ["--minutes", f"{arguments.minutes:g}", f"run.seed={arguments.seed}", "model.weights=null"]
        call([*RETINA, "train", str(folder), "--run-dir", str(run), *options])
        cpu = cpu_seconds() - before
        of_test = [f"data.root={data / 'bccd'}", "data.test={format: voc, splits: [test]}"]
        ours = json.loads(call([*RETINA, "evaluate", str(run), *of_test, "--split", "test", "--json"]))["metrics"]
        print(f"retina: {cpu:.0f} CPU s, AP {ours['AP']:.3f}, AP50 {ours['AP50']:.3f}", flush=True)

        call([*RETINA, "convert", str(run), str(yolo), "--to", "yolo"])
        test = Path(place, "test")
        call([*RETINA, "convert", str(data / "bccd"), str(test), "--to", "coco", "--split", "test"])
        annotations = test / "annotations/instances_test.json"
        truth = json.loads(annotations.read_text())
        images = [str(test / "images/test" / image["file_name"]) for image in truth["images"]]

        train = partial(nano, arguments.python, arguments.model, arguments.seed, yolo / "data.yaml", Path(place))
        trial = train(3, [])["epochs"]
        cost = trial[2] - trial[1]
        epochs = max(1, round((cpu - trial[0]) / cost) + 1)
        trained = train(epochs, images)
        detections = Path(place, "detections.json")
        detections.write_text(json.dumps(results(trained["detections"], truth)))
        scored = call([*RETINA, "score", "--ground-truth", str(annotations), "--detections", str(detections), "--json"])
        theirs = json.loads(scored)["metrics"]
        took = f"{trained['cpu']:.0f} CPU s ({epochs} epochs)"
        print(f"{arguments.model}: {took}, AP {theirs['AP']:.3f}, AP50 {theirs['AP50']:.3f}")


if __name__ == "__main__":
    main()
