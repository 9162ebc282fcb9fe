"""retina's own training step and inference on the made-up batch, and a profile of where the step's time goes."""

from __future__ import annotations

import gzip
import json
import re
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
from inputs import CANDIDATES, CLASSES, KEPT, LEARNING_RATE, MOMENTUM, NMS_IOU, PRIOR, THRESHOLD, WEIGHT_DECAY
from measure import jax_flop, rates, seconds, tensorflow_flop, torch_flop
from plan import Part

from retina import config
from retina.inference import _FORWARD
from retina.models.detector import Detector
from retina.training.optimizer import build_optimizer
from retina.training.step import INPUTS, TrainStep, build_step

SETTINGS = config.Sgd(learning_rate=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)


def detector(part: Part) -> Detector:
    """A detector with random weights, frozen as trained ones would be."""
    keras.utils.set_random_seed(0)
    # Only trained weights may be frozen: the configuration names some, which are never read.
    frozen = {"weights": "none.pth", "freeze": 2, "batch_norm": "frozen"} if part.frozen else {}
    small = {"fpn": {"channels": 32}, "head": {"channels": 32, "layers": 1}} if part.tiny else {"fpn": {}, "head": {}}
    head = {**small["head"], **({"prior": PRIOR} if part.kind == "infer" else {})}
    backbone = part.backbone.replace("50", "18") if part.tiny else part.backbone
    return Detector(
        [str(k) for k in range(CLASSES)],
        model=config.Model.model_validate({"backbone": backbone, "fpn": small["fpn"], "head": head, **frozen}),
        inference=config.Inference(
            score_threshold=THRESHOLD, candidates=CANDIDATES, nms_iou=NMS_IOU, max_detections=KEPT
        ),
        precision={"bfloat16": "mixed_bfloat16", "float32": "float32"}[part.precision],
        load_weights=False,
    )


class Training:
    """`retina train`'s own step, optimizer and scalars included, fed with host arrays as the pipeline feeds it."""

    def __init__(self, part: Part):
        self.detector = detector(part)
        optimizer = build_optimizer(SETTINGS, config.StepSchedule(steps=100_000), 16)
        self.step: TrainStep = build_step(self.detector, optimizer, SETTINGS)
        self.backend = keras.backend.backend()
        self.scalars: dict[str, Any] = {}

    def run(self, batch: dict[str, Any]) -> None:
        self.scalars = self.step(batch)

    def wait(self) -> float:
        """Wait for the last step, and return its loss."""
        if self.backend == "jax":
            import jax

            jax.block_until_ready(self.step._state)  # type: ignore[attr-defined]
        elif self.backend == "torch":
            _torch_wait()
        return float(keras.ops.convert_to_numpy(self.scalars["loss"]))

    def flop(self, batch: dict[str, Any]) -> int:
        batch = {name: batch[name] for name in INPUTS}
        if self.backend == "jax":
            return jax_flop(self.step._step, self.step._state, batch)  # type: ignore[attr-defined]
        if self.backend == "torch":
            return torch_flop(lambda: self.step(batch))
        return tensorflow_flop(self.step._step.get_concrete_function(_tensors(batch)).graph)  # type: ignore[attr-defined]

    def feed(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch as the loop hands it to the step: tensors for TensorFlow, arrays otherwise."""
        batch = {name: batch[name] for name in INPUTS}
        return _tensors(batch) if self.backend == "tensorflow" else batch


class Inference:
    """The work of `retina predict` and `evaluate`: network, decoding and suppression, compiled."""

    def __init__(self, part: Part):
        self.detector = detector(part)
        self.backend = keras.backend.backend()
        self._forward = _FORWARD[self.backend](self.detector)
        self.detections: dict[str, Any] = {}

    def feed(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch = {name: batch[name] for name in ("images", "size", "scale")}
        return _tensors(batch) if self.backend == "tensorflow" else batch

    def run(self, batch: dict[str, Any]) -> None:
        self.detections = self._forward(batch)

    def wait(self) -> None:
        if self.backend == "torch":
            _torch_wait()
        keras.ops.convert_to_numpy(self.detections["valid"])

    def flop(self, batch: dict[str, Any]) -> int:
        if self.backend == "jax":
            return jax_flop(lambda b: _network(self.detector, b), batch)
        if self.backend == "torch":
            return torch_flop(lambda: self._forward(batch))
        import tensorflow as tf

        network = tf.function(lambda b: self.detector(b, training=False))
        return tensorflow_flop(network.get_concrete_function(batch).graph)


def _network(model: Detector, batch: dict[str, Any], training: bool = False) -> dict[str, Any]:
    state = ([v.value for v in group] for group in (model.trainable_variables, model.non_trainable_variables))
    return model.stateless_call(*state, batch, training=training)[0]


def _torch_wait() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _tensors(batch: dict[str, Any]) -> dict[str, Any]:
    import tensorflow as tf

    return {name: tf.constant(value) for name, value in batch.items()}


# --------------------------------------------------------------------------------------------------------- profile


def profile(part: Part, size: int, batch: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the step and of parts of it, each compiled by itself, and the device's busiest operations (JAX).

    Parts compiled apart don't fuse with their neighbours, so that they need not add up to the step.
    """
    import jax

    work = Training(part)
    model, step = work.detector, work.step
    host = work.feed(batch)
    on_device = {name: jax.device_put(value) for name, value in host.items()}
    state = step._state  # type: ignore[attr-defined]
    trainable, fixed = ([v.value for v in g] for g in (model.trainable_variables, model.non_trainable_variables))

    def forward(weights: list, b: dict) -> dict:
        return model.stateless_call(weights, fixed, b, training=True)[0]

    def loss(weights: list, b: dict) -> Any:
        return model.loss_sums(forward(weights, b), b).losses()["loss"]

    outputs = jax.jit(forward)(trainable, on_device)
    calls: dict[str, Callable[[], Any]] = {
        "copy_to_device": lambda: {name: jax.device_put(value) for name, value in host.items()},
        "forward": _jitted(forward, trainable, on_device),
        "forward_and_loss": _jitted(loss, trainable, on_device),
        "loss_and_its_gradient": _jitted(
            jax.value_and_grad(lambda o, b: model.loss_sums(o, b).losses()["loss"]), outputs, on_device
        ),
        "forward_and_backward": _jitted(jax.value_and_grad(loss), trainable, on_device),
    }
    spent = {name: _median(call, part) for name, call in calls.items()}
    cost = _cost(step._step.lower(state, host).compile())  # type: ignore[attr-defined]
    flop = work.flop(host)
    del outputs, calls
    work.run(host)
    work.wait()
    spent["step"] = statistics.median(seconds(lambda: work.run(host), work.wait, part.repeats, part.block_seconds))
    spent["update_and_scalars"] = spent["step"] - spent["forward_and_backward"] - spent["copy_to_device"]
    inference, network = _inference_times(part, batch)
    return {
        **rates([spent["step"]], size, flop * 1e-12),
        "parts": spent,
        "suppression_share_of_inference": None if inference == 0 else (inference - network) / inference,
        "xla_tflop": cost.get("flops", 0.0) * 1e-12,
        "xla_gigabytes": cost.get("bytes accessed", 0.0) * 1e-9,
        "operations": operations(work, host),
    }


def _inference_times(part: Part, batch: dict[str, Any]) -> tuple[float, float]:
    """Seconds with decoding and suppression, and of the network alone."""
    from dataclasses import replace

    work = Inference(replace(part, kind="infer"))
    fed = work.feed(batch)
    run, network = (lambda: work._forward(fed)), _jitted(lambda b: _network(work.detector, b), fed)
    return _median(run, part), _median(network, part)


def _jitted(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    import jax

    compiled = jax.jit(function)
    return lambda: compiled(*arguments)


def _median(call: Callable[[], Any], part: Part) -> float:
    import jax

    last: list[Any] = [None]

    def keep() -> None:
        last[0] = call()

    def wait() -> None:
        jax.block_until_ready(last[0])

    keep()
    wait()
    return statistics.median(seconds(keep, wait, part.repeats, part.block_seconds))


def _cost(compiled: Any) -> dict[str, float]:
    """XLA's own estimate; a CUDA library call may count as nothing in it."""
    cost = compiled.cost_analysis()
    return (cost[0] if isinstance(cost, list) else cost) or {}


def operations(work: Training, batch: dict[str, Any], most: int = 25) -> list[dict[str, Any]]:
    """The device's busiest kernels in three steps: name, calls and milliseconds a step."""
    import jax

    steps = 3
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                work.run(batch)
            work.wait()
        files = sorted(Path(folder).rglob("*.trace.json.gz"))
        events = [e for file in files for e in json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]]
    return busiest(events, steps, most)


def busiest(events: list[dict[str, Any]], steps: int, most: int) -> list[dict[str, Any]]:
    """Sum a trace's events by kernel, on the devices' streams where it has any, else on XLA's CPU threads."""
    names = {e["pid"]: e["args"]["name"] for e in events if e.get("name") == "process_name"}
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e.get("name") == "thread_name"}
    gpu = any("/device:" in name for name in names.values())
    spent: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for e in events:
        place = (names.get(e.get("pid"), ""), threads.get((e.get("pid"), e.get("tid")), ""))
        # A device's other lines repeat its streams' time by module and by step.
        wanted = ("/device:" in place[0] and "Stream" in place[1]) if gpu else "XLA" in place[1] or "xla" in place[1]
        if e.get("ph") == "X" and wanted and not str(e["name"]).startswith("ThunkExecutor"):
            # fusion.12 and fusion.7 are of a kind, and so are two kernels that differ in their template's numbers.
            name = re.sub(r"[._]\d+", "", str(e.get("args", {}).get("hlo_op") or e["name"]))
            spent[name] += e["dur"]
            calls[name] += 1
    total = sum(spent.values())
    return [
        {
            "name": name,
            "calls": calls[name] / steps,
            "milliseconds": time / 1000 / steps,
            "share": time / total if total else 0.0,
        }
        for name, time in spent.most_common(most)
    ]
