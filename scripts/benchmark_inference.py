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
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from harness import Answer, Worker, machine, note, ratios, serve, take_turns, versions
from peers import load_torchvision

ROOT = Path(__file__).resolve().parent.parent
CLASSES, THRESHOLD, CANDIDATES, NMS_IOU, KEPT = 80, 0.05, 1000, 0.5, 100
PACKAGES = ("tensorflow", "keras", "torch", "torchvision", "onnxruntime")
BACKEND = {"KERAS_BACKEND": "tensorflow"}
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

    from retina.data.batches.evaluation import canvas_image
    from retina.data.images import load_image

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

    load_torchvision(suppression=True)
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
    candidates: list[int] = []
    hook = model.head.register_forward_hook(
        lambda *call: candidates.append(int((call[2]["cls_logits"].sigmoid() > THRESHOLD).sum()))
    )
    with torch.inference_mode():
        model(ready)
    hook.remove()

    def run() -> Any:
        with torch.inference_mode():
            return model(ready)

    return Contestant(run, candidates[0])


def build(name: str, args: argparse.Namespace) -> Contestant:
    if name.startswith("saved_model"):
        return saved_model(args, name)
    return {"onnx": onnx, "network": network, "jpeg": jpeg, "torchvision": torchvision}[name](args)


# --------------------------------------------------------------------------------------------------------- workers


def contestant(name: str, args: argparse.Namespace) -> tuple[Answer, Callable[[], Answer]]:
    """Build a contestant and warm it up, and return its first answer and its turn: seconds of some images."""
    made = build(name, args)
    for _ in range(3):
        made.run()

    def turn() -> Answer:
        seconds = []
        # The first image after the others' turn meets cold caches.
        made.run()
        for _ in range(args.images):
            started = time.perf_counter()
            made.run()
            seconds.append(time.perf_counter() - started)
        return {"seconds": seconds}

    return {"candidates": made.candidates}, turn


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """`rows` by contestant, and the two `ratios` that have a bound."""
    forwarded = [
        "--short", str(args.short), "--long", str(args.long), "--images", str(args.images), "--prior", str(args.prior),
        "--backbone", args.backbone, "--folder", str(folder), *(["--debug"] if args.debug else []),
    ]  # fmt: skip
    failed: dict[str, str] = {}
    for name in args.only:
        if name.startswith("saved_model") or name == "onnx":
            note(f"writing {name}")
            failed |= _written(name, forwarded, args.debug)

    def start(name: str) -> Worker:
        return Worker(name, [__file__, *forwarded, "--worker", name], environment=BACKEND, debug=args.debug)

    turns = take_turns([name for name in args.only if name not in failed], start, args.rounds)
    failed |= turns.errors
    rounds = {name: [answer["seconds"] for answer in turns.of(name)] for name in args.only}
    rows = {name: _row(rounds[name], failed.get(name), turns.ready.get(name, {})) for name in args.only}
    medians = {name: list(map(statistics.median, rounds[name])) for name in args.only if name not in failed}
    return {"rows": rows, "ratios": _ratios(medians)}


def _written(name: str, forwarded: list[str], debug: bool) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, __file__, *forwarded, "--write", name],
        env={**os.environ, **BACKEND, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=not debug,
        text=True,
    )
    if done.returncode == 0:
        return {}
    return {name: (done.stderr or "see above").strip().splitlines()[-1][:300]}


def _row(rounds: list[list[float]], error: str | None, ready: dict[str, Any]) -> dict[str, Any]:
    if error or not rounds:
        return {"error": error or "no round was measured"}
    every = sorted(second for seconds in rounds for second in seconds)
    return {
        "seconds": statistics.median(map(statistics.median, rounds)),
        "p90": every[min(len(every) - 1, math.ceil(0.9 * len(every)) - 1)],
        "seconds_of_rounds": list(map(statistics.median, rounds)),
        "candidates": ready.get("candidates"),
    }


def _ratios(medians: dict[str, list[float]]) -> dict[str, float]:
    """Medians of the rounds' ratios, of each export to the bare network with its JPEG, and to torchvision."""
    by_pair: dict[str, float] = {}
    for name in ("saved_model", "saved_model_folded", "onnx"):
        for other, parts in (("network + jpeg", ("network", "jpeg")), ("torchvision", ("torchvision",))):
            if {name, *parts} <= medians.keys():
                sums = [sum(values) for values in zip(*(medians[part] for part in parts), strict=True)]
                by_pair[f"{name} / {other}"] = statistics.median(ratios(medians[name], sums))
    return by_pair


# ------------------------------------------------------------------------------------------------------------- main


def table(result: dict[str, Any]) -> str:
    lines = [f"{'':>20} {'median ms':>10} {'p90 ms':>10} {'candidates':>11}"]
    for name, row in result["rows"].items():
        if "error" in row:
            lines.append(f"{name:>20} {row['error']}")
        else:
            counted = "-" if row["candidates"] is None else row["candidates"]
            lines.append(f"{name:>20} {1e3 * row['seconds']:>10.1f} {1e3 * row['p90']:>10.1f} {counted:>11}")
    return "\n".join([*lines, *(f"{name}: {ratio:.3f}" for name, ratio in result["ratios"].items())])


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
        serve(lambda: contestant(args.worker, args), debug=args.debug)
        return 0
    if args.write:
        write(args, args.write, Path(args.folder))
        return 0
    described = {**machine(), "versions": versions(PACKAGES)}
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
