#!/usr/bin/env python
"""Latency of one photograph through an exported ResNet-50 detector, beside its bare network and beside torchvision.

Contestants, all float32 with random weights, 80 classes, candidates above 0.05, 1000 a level, NMS at 0.5, 100 kept:

    saved_model          encoded JPEG to detections in one call of `serving_default`
    saved_model_folded   the same, written with `export.fold_batch_norm`
    onnx                 encoded JPEG to detections: decoded by retina, the rest in onnxruntime
    network              the bare forward pass and box decoding with NMS, compiled, on a canvas that is ready
    jpeg                 decoding the JPEG alone
    torchvision          retinanet_resnet50_fpn, eager, on a decoded image (its own resizing, normalisation and NMS;
                         where its compiled operators don't fit the installed torch, onnxruntime's NMS stands in)

The classification bias is raised (`--prior`) in all, so that NMS sees thousands of candidates an image; how many were
above 0.05 stands in the table. The canvas is a multiple of 32, as torchvision's is, so that all convolve the same area.

Every contestant lives in a process of its own. They take turns over several rounds, so that whatever else the machine
does falls on all alike; figures are medians over the rounds' medians, ratios medians of the rounds' ratios. Wanted: the
SavedModel at most 1.05 x (network + jpeg), and at most 1.0 x torchvision. Run it on a quiet machine: `load_before` in
the JSON should be near 0.

    scripts/benchmark_inference.py --short 384 --long 512 --rounds 5 --json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
CLASSES, THRESHOLD, CANDIDATES, NMS_IOU, KEPT = 80, 0.05, 1000, 0.5, 100
CONTESTANTS = ("saved_model", "saved_model_folded", "onnx", "network", "jpeg", "torchvision")


class Contestant(NamedTuple):
    """`run` does one image and waits for it; `candidates` are the pairs of anchor and class above the threshold."""

    run: Callable[[], Any]
    candidates: int | None = None


# ----------------------------------------------------------------------------------------------------- contestants


def predictor(args: argparse.Namespace, *, fold: bool = False) -> Any:
    """Our detector as `retina.load` would give it, with the bias raised."""
    sys.path.insert(0, str(ROOT))
    from retina.startup import import_tensorflow_quietly

    import_tensorflow_quietly()
    import keras

    from retina import config
    from retina.inference import Predictor, build_detector

    keras.utils.set_random_seed(0)
    settings = config.load(
        None,
        [
            f"model={{backbone: keras_cv/{args.backbone}, head: {{prior: {args.prior}}}}}",
            "anchors={}",
            f"data.resize={{short: {args.short}, long: {args.long}, multiple: 32}}",
            f"inference={{score_threshold: {THRESHOLD}, candidates: {CANDIDATES}, nms_iou: {NMS_IOU}, "
            f"max_detections: {KEPT}}}",
            f"export.fold_batch_norm={'true' if fold else 'false'}",
        ],
    )
    return Predictor(build_detector(settings, [str(k) for k in range(CLASSES)]), settings)


def image() -> bytes:
    from retina.export.benchmark import synthetic_image

    return synthetic_image()


def write(args: argparse.Namespace, name: str, folder: Path) -> None:
    """The export of a contestant that has one, in a process of its own."""
    ours = predictor(args, fold=name == "saved_model_folded")
    if name == "onnx":
        from retina.export.onnx import write_onnx

        write_onnx(ours, folder / "model.onnx")
    else:
        from retina.export.saved_model import write_saved_model

        write_saved_model(ours, folder / name)


def saved_model(args: argparse.Namespace, name: str) -> Contestant:
    sys.path.insert(0, str(ROOT))
    import tensorflow as tf

    signature = tf.saved_model.load(str(Path(args.folder) / name)).signatures["serving_default"]
    encoded = tf.constant([image()])
    return Contestant(lambda: {key: value.numpy() for key, value in signature(image_bytes=encoded).items()})


def onnx(args: argparse.Namespace) -> Contestant:
    sys.path.insert(0, str(ROOT))
    from retina.export.onnx import open_onnx

    runner, encoded = open_onnx(Path(args.folder) / "model.onnx"), image()
    return Contestant(lambda: runner.detect([encoded]))


def network(args: argparse.Namespace) -> Contestant:
    ours = predictor(args)
    import numpy as np
    import tensorflow as tf

    from retina.data.images import load_image
    from retina.data.pipeline import canvas_image

    canvas, scale, size = canvas_image(load_image(image()), ours.config.data.resize)
    batch = {"images": tf.constant(canvas[None]), "scale": tf.constant(scale[None]), "size": tf.constant(size[None])}
    detector = ours.detector
    # Of one fixed shape: nothing is known about the bare network less than that.
    forward = tf.function(lambda: detector.decode(detector(batch, training=False), batch))
    logits = detector(batch, training=False)["logits"].numpy()
    above = int((logits > math.log(THRESHOLD / (1 - THRESHOLD))).sum())
    return Contestant(lambda: {key: np.asarray(value) for key, value in forward().items()}, above)


def jpeg(args: argparse.Namespace) -> Contestant:
    sys.path.insert(0, str(ROOT))
    from retina.data.images import load_image

    encoded = image()
    return Contestant(lambda: load_image(encoded))


def torchvision(args: argparse.Namespace) -> Contestant:
    sys.path.insert(0, str(ROOT))
    import io

    import numpy as np
    import torch
    from PIL import Image

    load_torchvision()
    from torchvision.models import detection

    torch.manual_seed(0)
    model = detection.retinanet_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=CLASSES,
        min_size=args.short,
        max_size=args.long,
        score_thresh=THRESHOLD,
        topk_candidates=CANDIDATES,
        nms_thresh=NMS_IOU,
        detections_per_img=KEPT,
    ).eval()
    torch.nn.init.constant_(model.head.classification_head.cls_logits.bias, math.log(args.prior / (1 - args.prior)))
    pixels = torch.from_numpy(np.asarray(Image.open(io.BytesIO(image())).convert("RGB")).copy())
    ready = [pixels.permute(2, 0, 1).contiguous().float() / 255]
    seen: list[int] = []
    hook = model.head.register_forward_hook(
        lambda *call: seen.append(int((call[2]["cls_logits"].sigmoid() > THRESHOLD).sum()))
    )
    with torch.inference_mode():
        model(ready)
    hook.remove()

    def run() -> Any:
        with torch.inference_mode():
            return model(ready)

    return Contestant(run, seen[0])


def load_torchvision() -> None:
    """Imports torchvision; if its compiled operators are missing, with onnxruntime's suppression in their place."""
    import torch

    try:
        import torchvision.ops

        return
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.impl("nms", _nms_of_onnxruntime(), "CPU")
    # The registration lives as long as the library object.
    torch.library._retina_benchmark = library
    import torchvision.extension

    torchvision.extension._has_ops = lambda: True


def _nms_of_onnxruntime() -> Callable[..., Any]:
    """Compiled, greedy, and like torchvision's own quick to skip what is suppressed already."""
    import numpy as np
    import onnxruntime
    import torch
    from onnx import parser

    text = """<ir_version: 8, opset_import: ["" : 18]>
    nms (float[1, n, 4] boxes, float[1, 1, n] scores, int64[1] most, float[1] overlap) => (int64[k, 3] kept) {
        kept = NonMaxSuppression(boxes, scores, most, overlap)
    }"""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # its threads would wait in a loop for the next call, in torch's way
    session = onnxruntime.InferenceSession(parser.parse_model(text).SerializeToString(), options)

    def nms(boxes: Any, scores: Any, iou_threshold: float) -> Any:
        given = {
            "boxes": boxes.numpy()[None],
            "scores": scores.numpy()[None, None],
            "most": np.array([len(boxes)]),
            "overlap": np.array([iou_threshold], np.float32),
        }
        return torch.from_numpy(session.run(None, given)[0][:, 2])

    return nms


def build(name: str, args: argparse.Namespace) -> Contestant:
    if name.startswith("saved_model"):
        return saved_model(args, name)
    return {"onnx": onnx, "network": network, "jpeg": jpeg, "torchvision": torchvision}[name](args)


# --------------------------------------------------------------------------------------------------------- workers


def worker(name: str, args: argparse.Namespace) -> None:
    """Builds a contestant, then times some images at each line on standard input."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries talk on standard output

    def answer(tree: dict[str, Any]) -> None:
        print(json.dumps(tree), file=answers, flush=True)

    try:
        contestant = build(name, args)
        for _ in range(3):
            contestant.run()
        answer({"candidates": contestant.candidates})
        for _ in sys.stdin:
            seconds = []
            # The first image after the others' turn finds cold caches.
            contestant.run()
            for _ in range(args.images):
                started = time.perf_counter()
                contestant.run()
                seconds.append(time.perf_counter() - started)
            answer({"seconds": seconds})
    except Exception as error:
        if args.debug:
            raise
        answer({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})


class Worker:
    def __init__(self, name: str, arguments: list[str], debug: bool):
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, __file__, *arguments, "--worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if debug else subprocess.DEVNULL,
            text=True,
            env={**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        self.ready = self._read()

    def ask(self) -> dict[str, Any]:
        try:
            print("go", file=self.process.stdin, flush=True)
        except BrokenPipeError:
            return {"error": "the process ended"}
        return self._read()

    def _read(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"error": f"the process ended with status {self.process.wait()}"}

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """`rows` by contestant, and the two `ratios` that the issue bounds."""
    forwarded = [
        "--short", str(args.short), "--long", str(args.long), "--images", str(args.images), "--prior", str(args.prior),
        "--backbone", args.backbone, "--folder", str(folder), *(["--debug"] if args.debug else []),
    ]  # fmt: skip
    failed, workers, rounds = {}, [], {name: [] for name in args.only}
    try:
        for name in args.only:
            if name.startswith("saved_model") or name == "onnx":
                note(f"writing {name}")
                failed |= _written(name, forwarded, args.debug)
        for name in args.only:
            if name not in failed:
                note(f"building {name}")
                workers.append(Worker(name, forwarded, args.debug))
        failed |= {w.name: w.ready["error"] for w in workers if "error" in w.ready}
        for number in range(args.rounds):
            note(f"round {number + 1} of {args.rounds}")
            for w in workers:
                if w.name not in failed:
                    answer = w.ask()
                    if "error" in answer:
                        failed[w.name] = answer["error"]
                    else:
                        rounds[w.name].append(answer["seconds"])
    finally:
        for w in workers:
            w.close()
    ready = {w.name: w.ready for w in workers}
    rows = {name: _row(rounds[name], failed.get(name), ready.get(name, {})) for name in args.only}
    medians = {name: [statistics.median(one) for one in rounds[name]] for name in args.only if name not in failed}
    return {"rows": rows, "ratios": _ratios(medians)}


def _written(name: str, forwarded: list[str], debug: bool) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, __file__, *forwarded, "--write", name],
        env={**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=not debug,
        text=True,
    )
    if done.returncode == 0:
        return {}
    return {name: (done.stderr or "see above").strip().splitlines()[-1][:300]}


def _row(rounds: list[list[float]], error: str | None, ready: dict[str, Any]) -> dict[str, Any]:
    if error or not rounds:
        return {"error": error or "no round was measured"}
    every = sorted(second for one in rounds for second in one)
    return {
        "seconds": statistics.median(statistics.median(one) for one in rounds),
        "p90": every[min(len(every) - 1, math.ceil(0.9 * len(every)) - 1)],
        "seconds_of_rounds": [statistics.median(one) for one in rounds],
        "candidates": ready.get("candidates"),
    }


def _ratios(medians: dict[str, list[float]]) -> dict[str, float]:
    """Of each export to the bare network with its JPEG, and to torchvision: medians of the rounds' ratios."""
    found = {}
    for name in ("saved_model", "saved_model_folded", "onnx"):
        if name not in medians:
            continue
        for other, parts in (("network + jpeg", ("network", "jpeg")), ("torchvision", ("torchvision",))):
            if all(part in medians for part in parts):
                sums = [sum(values) for values in zip(*(medians[part] for part in parts), strict=True)]
                found[f"{name} / {other}"] = statistics.median(
                    mine / theirs for mine, theirs in zip(medians[name], sums, strict=True)
                )
    return found


# ------------------------------------------------------------------------------------------------------------- main


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def table(result: dict[str, Any]) -> str:
    lines = [f"{'':>20} {'median ms':>10} {'p90 ms':>10} {'candidates':>11}"]
    for name, row in result["rows"].items():
        if "error" in row:
            lines.append(f"{name:>20} {row['error']}")
        else:
            counted = "-" if row["candidates"] is None else row["candidates"]
            lines.append(f"{name:>20} {1e3 * row['seconds']:>10.1f} {1e3 * row['p90']:>10.1f} {counted:>11}")
    return "\n".join([*lines, *(f"{name}: {ratio:.3f}" for name, ratio in result["ratios"].items())])


def machine() -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": platform.python_version()}
    for name in ("tensorflow", "keras", "torch", "torchvision", "onnxruntime"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "absent"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor()
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0],
        "date": date.today().isoformat(),
        "versions": versions,
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", type=int, default=384, help="short side after resizing 640x480")
    parser.add_argument("--long", type=int, default=512, help="limit of the long side")
    parser.add_argument("--backbone", default="resnet50", help="of ours; torchvision's is always resnet50")
    parser.add_argument("--prior", type=float, default=0.2, help="initial probability of every class at every anchor")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=5, help="timed images of each contestant in a round")
    parser.add_argument("--json", action="store_true", help="JSON on standard output instead of the table")
    parser.add_argument("--debug", action="store_true", help="show the contestants' tracebacks and chatter")
    for hidden in ("--worker", "--write", "--folder"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    for name in ("short", "long", "rounds", "images"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if not 0 < args.prior < 1:
        parser.error(f"--prior must be between 0 and 1, got {args.prior}")
    return args


def main() -> int:
    args = parse()
    if args.worker:
        worker(args.worker, args)
        return 0
    if args.write:
        write(args, args.write, Path(args.folder))
        return 0
    described = machine()
    with tempfile.TemporaryDirectory(prefix="retina_inference_") as folder:
        result = measure(args, Path(folder))
    if args.json:
        setting = {key: getattr(args, key) for key in ("short", "long", "backbone", "prior", "rounds", "images")}
        print(json.dumps({"setting": setting, "machine": described, **result}, indent=1))
    else:
        print(table(result))
    return 1 if any("error" in row for row in result["rows"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
