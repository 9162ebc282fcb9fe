#!/usr/bin/env python
"""Training step of `retina` beside keras-cv, keras-hub and torchvision, and its share of the convolution limit.

Every implementation lives in its own process. The processes take turns, a few steps each, over several rounds, so that
whatever else the machine does falls on all alike; only one computes at any time. All train RetinaNet from random
weights with live batch normalisation and SGD (momentum 0.9) on one fixed random batch with 7 boxes an image of 80
classes: float32, or bfloat16 (Keras: `mixed_bfloat16`; torch: autocast). torch runs channels-last.

The limit is measured in the same rounds: the rate of a large 3x3 convolution over its forward pass, input gradient and
filter gradient together (three passes' FLOPs over their summed times), best of the shapes in `LIMIT_SHAPES`, of
TensorFlow and torch, and of the rounds. `peak_pass` is the best single pass.

Where others use the machine too, wall times suffer (torch's most: its OpenMP threads wait for each other at every
operator), TensorFlow's processor times hardly: `cpu_seconds` of a step, its ratio and `cpu_share_of_limit` (FLOPs per
processor second, against the limit's) stand beside them. Idle cores don't show in them and waiting threads that spin
do, so trust the wall times, and run this on a quiet machine: `load_before` in the JSON should be near 0.

FLOPs are 2 per multiply-add of the convolutions only, counted per implementation (the networks differ a little): twice
for each weight and output position, three times for forward and both gradients, less the first convolution's input
gradient, which nobody computes. Bias, batch normalisation, loss and optimizer count as zero, so a share of 100 % is
out of reach.

    scripts/benchmark_train_step.py --size 256 --batch 4 --backbone resnet50 --precision float32 bfloat16 --json
    scripts/benchmark_train_step.py --backbone resnet18 --only ours ours_xla      what `run.xla: auto` goes by
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import Answer, Worker, machine, median, ratios, serve, take_turns, versions
from peers import load_torchvision

BOXES, CLASSES, LEARNING_RATE, MOMENTUM = 7, 80, 1e-5, 0.9
# (batch, side, channels in = out): large enough to be bound by arithmetic, small enough for the caches of a server.
LIMIT_SHAPES = ((8, 32, 256), (8, 64, 256), (16, 32, 512))
RESNETS = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
}
FILTERS, STRIDES = [64, 128, 256, 512], [1, 2, 2, 2]
LIMITS = ("limit-tensorflow", "limit-torch")
PACKAGES = ("tensorflow", "keras", "keras-cv", "keras-hub", "torch", "torchvision")


@dataclass
class Step:
    """`run` makes one step and returns its loss (a float: the step has ended); `gflop` is what the step convolves.

    `objective`, where given, computes assignment, loss and their gradient alone.
    """

    run: Callable[[], float]
    gflop: float
    objective: Callable[[], float] | None = None


# ------------------------------------------------------------------------------------------------ implementations


def ours(args: argparse.Namespace, xla: str = "auto") -> Step:
    """The step that `retina train` runs, weight decay and the gradient's norm included."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    import tensorflow as tf

    from retina import config
    from retina.models.detector import Detector
    from retina.training.optimizer import build_optimizer
    from retina.training.step import INPUTS, build_step

    settings = config.Sgd(learning_rate=LEARNING_RATE, momentum=MOMENTUM)
    detector = Detector(
        [str(k) for k in range(CLASSES)],
        model=config.Model(backbone=f"keras_cv/{args.backbone}"),
        precision="float32" if args.precision == "float32" else "mixed_bfloat16",
    )
    optimizer = build_optimizer(settings, config.StepSchedule(steps=1000))
    step = build_step(detector, optimizer, settings, config.Run(xla=xla))
    images, boxes, labels = _arrays(args)
    flags = tf.constant(True, shape=labels.shape)
    batch = {
        "images": tf.constant(images, tf.uint8),
        "size": tf.fill((args.batch, 2), args.size),
        "boxes": tf.constant(boxes),
        "labels": tf.constant(labels, tf.int32),
        "valid": flags,
        "crowd": ~flags,
    }
    assert set(INPUTS) == set(batch)
    forward = tf.function(lambda: detector(batch, training=True)).get_concrete_function()
    outputs = {name: tf.Variable(value) for name, value in forward().items()}

    @tf.function
    def loss_alone() -> Any:
        with tf.GradientTape() as tape:
            loss = detector.loss_sums({k: v.value() for k, v in outputs.items()}, batch).losses()["loss"]
        # The gradients themselves are returned, so that no part of them is pruned away.
        return loss, tape.gradient(loss, list(outputs.values()))

    return Step(
        lambda: float(step(batch)["loss"]),
        _graph_gflop(forward.graph),
        lambda: float(loss_alone()[0]),
    )


def keras_cv(args: argparse.Namespace) -> Step:
    """keras_cv.models.RetinaNet with 4-convolution heads (its default is 3)."""
    import keras
    import keras_cv as library
    from keras_cv.src.models.object_detection.retinanet import PredictionHead

    _keras_policy(args)
    blocks, bottleneck = RESNETS[args.backbone]
    backbone = library.models.ResNetBackbone(
        stackwise_filters=FILTERS,
        stackwise_blocks=list(blocks),
        stackwise_strides=STRIDES,
        include_rescaling=True,
        block_type="block" if bottleneck else "basic_block",
        input_shape=(args.size, args.size, 3),
    )
    prior = keras.initializers.Constant(-math.log(99.0))
    model = library.models.RetinaNet(
        backbone=backbone,
        num_classes=CLASSES,
        bounding_box_format="xyxy",
        classification_head=PredictionHead(9 * CLASSES, prior, num_conv_layers=4),
        box_head=PredictionHead(9 * 4, keras.initializers.Zeros(), num_conv_layers=4),
    )
    model.compile(
        classification_loss="focal",
        box_loss="smoothl1",
        optimizer=keras.optimizers.SGD(LEARNING_RATE, momentum=MOMENTUM),
        jit_compile=False,
    )
    images, boxes, labels = _arrays(args)
    return _keras_step(model, images, {"boxes": boxes, "classes": labels})


def keras_hub(args: argparse.Namespace) -> Step:
    """keras_hub.models.RetinaNetObjectDetector; its heads have 4 convolutions by default."""
    import keras
    import keras_hub as library

    _keras_policy(args)
    blocks, bottleneck = RESNETS[args.backbone]
    shape = (args.size, args.size, 3)
    encoder = library.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=FILTERS,
        stackwise_num_blocks=list(blocks),
        stackwise_num_strides=STRIDES,
        block_type="bottleneck_block" if bottleneck else "basic_block",
        image_shape=shape,
    )
    backbone = library.models.RetinaNetBackbone(
        image_encoder=encoder, min_level=3, max_level=7, use_p5=False, image_shape=shape
    )
    model = library.models.RetinaNetObjectDetector(backbone=backbone, num_classes=CLASSES, bounding_box_format="xyxy")
    model.compile(
        optimizer=keras.optimizers.SGD(LEARNING_RATE, momentum=MOMENTUM),
        box_loss="auto",
        classification_loss="auto",
        jit_compile=False,
    )
    images, boxes, labels = _arrays(args)
    return _keras_step(model, images / 255.0, {"boxes": boxes, "labels": labels})


def torchvision(args: argparse.Namespace) -> Step:
    """torchvision's RetinaNet on a ResNet-FPN; for resnet50 it is `retinanet_resnet50_fpn`."""
    import torch

    load_torchvision()
    from torchvision.models import detection, resnet
    from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    sides = {"min_size": args.size, "max_size": args.size}
    if args.backbone == "resnet50":
        model = detection.retinanet_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=CLASSES, trainable_backbone_layers=5, **sides
        )
    else:
        encoder = getattr(resnet, args.backbone)(weights=None)
        backbone = _resnet_fpn_extractor(encoder, 5, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256))
        model = detection.RetinaNet(backbone, CLASSES, **sides)
    model = model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    pixels, boxes, labels = _arrays(args)
    images = torch.from_numpy(pixels / 255.0).permute(0, 3, 1, 2).to(memory_format=torch.channels_last)
    targets = [
        {"boxes": torch.from_numpy(b), "labels": torch.from_numpy(k.astype("int64"))}
        for b, k in zip(boxes, labels, strict=True)
    ]

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bfloat16"):
            loss = sum(model(list(images), targets).values())
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return Step(run, _torch_gflop(model, run))


PEERS = {"ours": ours, "keras_cv": keras_cv, "keras_hub": keras_hub, "torchvision": torchvision}
# Ours under `run.xla: on`: what `auto` chooses between.
IMPLEMENTATIONS: dict[str, Callable[[argparse.Namespace], Step]] = {
    **PEERS,
    "ours_xla": functools.partial(ours, xla="on"),
}


def _arrays(args: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Images [B, H, W, 3] float32 in 0...255, boxes [B, G, 4] xyxy pixels, labels [B, G]: the same for everyone."""
    import numpy as np

    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (args.batch, args.size, args.size, 3)).astype("float32")
    side = draw.uniform(args.size / 16, args.size / 2, (args.batch, BOXES, 2))
    corner = draw.uniform(0, 1, side.shape) * (args.size - side)
    boxes = np.concatenate([corner, corner + side], axis=-1).astype("float32")
    # From 1: torchvision keeps 0 for the background.
    return images, boxes, draw.integers(1, CLASSES, (args.batch, BOXES)).astype("float32")


def _keras_policy(args: argparse.Namespace) -> None:
    import keras

    keras.config.set_dtype_policy("float32" if args.precision == "float32" else "mixed_bfloat16")


def _keras_step(model: Any, images: Any, targets: dict[str, Any]) -> Step:
    """The library's own `train_step`, compiled as `fit` compiles it, without `fit`'s loop around it."""
    import tensorflow as tf

    model.optimizer.build(model.trainable_variables)
    data = (tf.constant(images), {name: tf.constant(value) for name, value in targets.items()})
    step = tf.function(lambda: model.train_step(data)).get_concrete_function()
    return Step(lambda: float(step()["loss"]), _graph_gflop(step.graph))


# ---------------------------------------------------------------------------------------------------------- FLOPs


def _graph_gflop(graph: Any) -> float:
    """GFLOP of a training step whose forward convolutions are in a TensorFlow graph with static shapes."""
    macs = []
    for node in graph.get_operations():
        if node.type == "Conv2D":
            kernel, out = node.inputs[1].shape, node.outputs[0].shape
            macs.append(math.prod(kernel) * math.prod(out[:3]))
        elif node.type == "DepthwiseConv2dNative":
            kernel, out = node.inputs[1].shape, node.outputs[0].shape
            macs.append(math.prod(kernel[:2]) * math.prod(out))
    return _step_gflop(macs)


def _torch_gflop(model: Any, run: Callable[[], float]) -> float:
    import torch

    macs: list[int] = []

    def count(layer: Any, _: Any, out: Any) -> None:
        macs.append(layer.weight[0].numel() * out.numel())

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    run()
    for hook in hooks:
        hook.remove()
    return _step_gflop(macs)


def _step_gflop(macs: list[int]) -> float:
    """`macs` of each forward convolution in order of execution; the first reads the images and has one gradient."""
    return 2e-9 * (3 * sum(macs) - macs[0])


# ---------------------------------------------------------------------------------------------------------- limit


def _limit_passes(framework: str, precision: str) -> dict[str, list[Callable[[], Any]]]:
    """Forward, input gradient and filter gradient of each of `LIMIT_SHAPES`, as callables that block."""
    make = {"tensorflow": _tensorflow_passes, "torch": _torch_passes}[framework]
    return {f"{n}x{side}x{side}x{c}": make(n, side, c, precision) for n, side, c in LIMIT_SHAPES}


def _tensorflow_passes(n: int, side: int, c: int, precision: str) -> list[Callable[[], Any]]:
    import tensorflow as tf

    x, kernel, dy = (
        tf.cast(tf.random.normal(shape), precision) for shape in ((n, side, side, c), (3, 3, c, c), (n, side, side, c))
    )
    common = {"strides": [1] * 4, "padding": "SAME"}
    raw = tf.raw_ops
    return [
        tf.function(lambda: raw.Conv2D(input=x, filter=kernel, **common)),
        tf.function(lambda: raw.Conv2DBackpropInput(input_sizes=x.shape, filter=kernel, out_backprop=dy, **common)),
        tf.function(lambda: raw.Conv2DBackpropFilter(input=x, filter_sizes=kernel.shape, out_backprop=dy, **common)),
    ]


def _torch_passes(n: int, side: int, c: int, precision: str) -> list[Callable[[], Any]]:
    import torch

    x, kernel, dy = (
        torch.randn(shape, dtype=getattr(torch, precision)).to(memory_format=torch.channels_last)
        for shape in ((n, c, side, side), (c, c, 3, 3), (n, c, side, side))
    )

    def backward(mask: list[bool]) -> Any:
        return torch.ops.aten.convolution_backward(dy, x, kernel, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask)

    return [
        lambda: torch.nn.functional.conv2d(x, kernel, padding=1),
        lambda: backward([True, False, False]),
        lambda: backward([False, True, False]),
    ]


def _measure_limit(passes: dict[str, list[Callable[[], Any]]], repeats: int) -> dict[str, float]:
    """Best GFLOP/s of the shapes: `rate` over the three passes together, `peak_pass` over one; each pass counts its
    median time. `cpu_rate` is `rate` per second of processor time."""
    best = {"rate": 0.0, "peak_pass": 0.0, "cpu_rate": 0.0}
    for (n, side, c), callables in zip(LIMIT_SHAPES, passes.values(), strict=True):
        gflop = 2e-9 * n * side * side * c * c * 9
        measured = [_times(call, repeats) for call in callables]
        wall, cpu = ([statistics.median(m[kind]) for m in measured] for kind in ("wall", "cpu"))
        rates = {"rate": 3 * gflop / sum(wall), "peak_pass": gflop / min(wall), "cpu_rate": 3 * gflop / sum(cpu)}
        best = {key: max(best[key], value) for key, value in rates.items()}
    return best


def _times(call: Callable[[], Any], repeats: int) -> dict[str, list[float]]:
    """Seconds on the clock and seconds of processor time (all threads) of each call."""
    times: dict[str, list[float]] = {"wall": [], "cpu": []}
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        times["cpu"].append(time.process_time() - cpu)
        times["wall"].append(time.perf_counter() - wall)
    return times


# -------------------------------------------------------------------------------------------------------- processes


def contestant(name: str, args: argparse.Namespace) -> tuple[Answer, Callable[[], Answer]]:
    """Build a contestant, and return its first answer and its turn."""
    if args.threads and name in ("torchvision", "limit-torch"):
        import torch

        torch.set_num_threads(args.threads)
    if name.startswith("limit-"):
        passes = _limit_passes(name.removeprefix("limit-"), args.precision)
        _measure_limit(passes, 2)
        return {"gflop": None}, lambda: _measure_limit(passes, 5)
    step = IMPLEMENTATIONS[name](args)
    losses = [step.run() for _ in range(2)]
    if not all(map(math.isfinite, losses)):
        raise ValueError(f"the loss is not finite: {losses}")
    if step.objective:
        step.objective()
    gc.collect()

    def turn() -> Answer:
        # The first step after the others' turn meets cold caches: it is not counted.
        step.run()
        return {"step": _times(step.run, args.steps), "objective": _objective_times(step, args.steps)}

    return {"gflop": step.gflop, "loss": losses[0]}, turn


def _objective_times(step: Step, repeats: int) -> dict[str, list[float]]:
    return _times(step.objective, repeats) if step.objective else {"wall": [], "cpu": []}


def start(name: str, precision: str, args: argparse.Namespace) -> Worker:
    """A contestant's process."""
    forwarded = [f"--{key}={getattr(args, key)}" for key in ("size", "batch", "backbone", "steps", "threads")]
    forwarded += ["--debug"] if args.debug else []
    threads = str(args.threads)
    environment = {"OMP_NUM_THREADS": threads, "TF_NUM_INTRAOP_THREADS": threads} if args.threads else {}
    arguments = [__file__, "--worker", name, "--precision", precision, *forwarded]
    return Worker(name, arguments, environment=environment, debug=args.debug)


def measure(precision: str, args: argparse.Namespace) -> dict[str, Any]:
    """All contestants at one precision: `limit` and `rows`."""
    names = [*args.only, *LIMITS]
    turns = take_turns(names, lambda name: start(name, precision, args), args.rounds, f"{precision}: ")
    limits = [answer for name in LIMITS for answer in turns.of(name)]
    limit = {key: max((a[key] for a in limits), default=None) for key in ("rate", "peak_pass", "cpu_rate")}
    rows = {
        name: _row(turns.ready[name], turns.of(name), turns.errors.get(name), limit, args.batch) for name in args.only
    }
    for name, row in rows.items():
        for key, kind in (("time_over_ours", "wall"), ("cpu_time_over_ours", "cpu")):
            sides = [[statistics.median(a["step"][kind]) for a in turns.of(side)] for side in (name, "ours")]
            row[key] = median(ratios(*sides))
    errors = {name: error for name, error in turns.errors.items() if name not in rows}
    return {"limit_gflop_per_second": limit, "rows": rows, **({"limit_errors": errors} if errors else {})}


def _row(
    ready: dict[str, Any],
    answers: list[dict[str, Any]],
    error: str | None,
    limit: dict[str, float | None],
    batch: int,
) -> dict[str, Any]:
    if error or not answers:
        return {"error": error or "no round was measured"}

    def times(part: str, kind: str) -> list[float]:
        return [seconds for answer in answers for seconds in answer[part][kind]]

    seconds, cpu_seconds = (statistics.median(times("step", kind)) for kind in ("wall", "cpu"))
    objective = median(times("objective", "wall"))
    gflop = ready["gflop"]
    return {
        "seconds": seconds,
        "seconds_of_rounds": [statistics.median(a["step"]["wall"]) for a in answers],
        "cpu_seconds": cpu_seconds,
        "images_per_second": batch / seconds,
        "gflop": gflop,
        "gflop_per_second": gflop / seconds,
        "share_of_limit": gflop / seconds / limit["rate"] if limit["rate"] else None,
        "cpu_share_of_limit": gflop / cpu_seconds / limit["cpu_rate"] if limit["cpu_rate"] else None,
        "objective_share": objective / seconds if objective else None,
        "first_loss": ready["loss"],
    }


def _table(precision: str, result: dict[str, Any]) -> str:
    def cell(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    heads = ("", "ms/step", "images/s", "x ours", "x ours CPU", "GFLOP", "GFLOP/s", "of limit", "CPU", "objective")
    widths = (12, 8, 9, 7, 10, 8, 8, 8, 8, 9)
    limit = {key: cell(value, ".0f") for key, value in result["limit_gflop_per_second"].items()}
    lines = [
        f"{precision}: convolution limit {limit['rate']} GFLOP/s (best single pass {limit['peak_pass']}; "
        f"per processor second {limit['cpu_rate']})",
        " ".join(f"{h:>{w}}" for h, w in zip(heads, widths, strict=True)),
    ]
    for name, row in result["rows"].items():
        if "error" in row:
            lines.append(f"{name:>12} {row['error']}")
            continue
        cells = (
            name,
            cell(1e3 * row["seconds"], ".0f"),
            cell(row["images_per_second"], ".2f"),
            cell(row["time_over_ours"], ".3f"),
            cell(row["cpu_time_over_ours"], ".3f"),
            cell(row["gflop"], ".1f"),
            cell(row["gflop_per_second"], ".1f"),
            cell(row["share_of_limit"], ".1%"),
            cell(row["cpu_share_of_limit"], ".1%"),
            cell(row["objective_share"], ".1%"),
        )
        lines.append(" ".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True)))
    return "\n".join(lines)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="side of the square images, a multiple of 128")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--backbone", choices=sorted(RESNETS), default="resnet50")
    parser.add_argument("--precision", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--only", nargs="+", choices=list(IMPLEMENTATIONS), default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="measured steps of each contestant in a round")
    parser.add_argument("--threads", type=int, default=0, help="threads for everyone; 0: each library's default")
    parser.add_argument("--json", action="store_true", help="JSON on standard output instead of the table")
    parser.add_argument("--debug", action="store_true", help="show the contestants' tracebacks and chatter")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    for name in ("size", "batch", "rounds", "steps"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.size % 128:
        parser.error(f"--size must be a multiple of 128 (the stride of P7), got {args.size}")
    if args.threads < 0:
        parser.error(f"--threads must be at least 0, got {args.threads}")
    return args


def main() -> int:
    args = parse()
    if args.worker:
        args.precision = args.precision[0]
        serve(lambda: contestant(args.worker, args), debug=args.debug)
        return 0
    described = machine()
    results = {precision: measure(precision, args) for precision in args.precision}
    if args.json:
        setting = {key: getattr(args, key) for key in ("size", "batch", "backbone", "rounds", "steps", "threads")}
        report = {"setting": setting, "machine": described, "versions": versions(PACKAGES), "results": results}
        print(json.dumps(report, indent=1))
    else:
        print("\n\n".join(_table(precision, result) for precision, result in results.items()))
    return 1 if any("error" in row for result in results.values() for row in result["rows"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
