"""The speed of a run or an export, and the stages that its time goes to.

A batch goes from encoded files to detections in host memory. It holds one image several times, so that all formats do
the same work: ONNX takes batches of one size only.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import keras
import numpy as np

from retina import config
from retina.data.batches.evaluation import canvas_image
from retina.data.images import load_image
from retina.errors import RetinaError
from retina.export.litert import open_litert
from retina.export.onnx import open_onnx, open_parts
from retina.export.runner import format_of
from retina.export.saved_model import read_description
from retina.runs import loading

Kind = Literal["run", "saved_model", "onnx", "litert"]
Step = tuple[str, Callable[[Any], Any]]


@dataclass(frozen=True)
class Timing:
    """The `seconds` of each batch of one size, and each stage's share of them (they add up to 1)."""

    batch: int
    seconds: tuple[float, ...]
    shares: dict[str, float]

    @property
    def images_per_second(self) -> float:
        return self.batch * len(self.seconds) / sum(self.seconds)

    def percentile(self, share: float) -> float:
        """Seconds within which this percentage of the batches was done, interpolated linearly."""
        return float(np.percentile(self.seconds, share))

    def to_json(self) -> dict[str, Any]:
        seconds = {name: self.percentile(share) for name, share in (("median", 50), ("p90", 90), ("p99", 99))}
        return {
            "batch": self.batch,
            "batches": len(self.seconds),
            "seconds": seconds,
            "images_per_second": self.images_per_second,
            "shares": self.shares,
        }


@dataclass(frozen=True)
class Benchmark:
    """`images` says what was detected in; `stages_from` how the shares were found."""

    path: Path
    kind: Kind
    images: str
    stages_from: str
    timings: tuple[Timing, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "format": self.kind,
            "images": self.images,
            "stages_from": self.stages_from,
            "timings": [timing.to_json() for timing in self.timings],
        }


class _Target(NamedTuple):
    """`detect` does all of a batch of encoded files; `stages` does it in parts and gives the seconds of each."""

    kind: Kind
    stages_from: str
    detect: Callable[[list[bytes]], Any]
    stages: Callable[[list[bytes]], dict[str, float]]


def benchmark(
    path: str | Path,
    *,
    batches: Sequence[int] = (1, 2, 4),
    images: Sequence[bytes | Path] = (),
    repeats: int = 30,
    checkpoint: str = "best",
) -> Benchmark:
    """Time a run directory or an export.

    Args:
        path: a run directory or an export.
        batches: sizes to measure.
        images: encoded images or their paths, taken in turn; without any, a synthetic 640x480 JPEG.
        repeats: batches of each size that count; each image is done once before them, uncounted.
        checkpoint: of a run.

    Returns:
        `timings`: of each size of batch the seconds of each repeat, and the shares of the stages.

    Raises:
        RetinaError: the path holds neither a run nor an export, an image is unreadable, or a number is below 1.

    Example:

    >>> measured = retina.benchmark("runs/digits", batches=(1,), repeats=2)
    >>> len(measured.timings[0].seconds)
    2
    """
    path = Path(path)
    for name, numbers in (("batches", batches), ("repeats", [repeats])):
        if not numbers or min(numbers) < 1:
            raise RetinaError(f"benchmark: expected {name} of at least 1, got {list(numbers)}")
    files = [image if isinstance(image, bytes) else _read(image) for image in images] or [synthetic_image()]
    target = _open(path, checkpoint)
    described = f"{len(files)} given" if images else "synthetic, 640x480"
    timings = tuple(_time(target, files, size, repeats) for size in batches)
    return Benchmark(path, target.kind, described, target.stages_from, timings)


def synthetic_image(width: int = 640, height: int = 480) -> bytes:
    """A JPEG of coloured clouds, always the same: about as many bytes, and as long to decode, as a photograph."""
    from PIL import Image

    draw = np.random.default_rng(0)
    layers = [(draw.integers(0, 256, (height // step, width // step, 3)).astype(np.uint8)) for step in (80, 20, 5)]
    sized = [np.asarray(Image.fromarray(layer).resize((width, height)), np.float32) for layer in layers]
    mixed = 0.5 * sized[0] + 0.3 * sized[1] + 0.2 * sized[2]
    encoded = io.BytesIO()
    Image.fromarray(mixed.round().astype(np.uint8)).save(encoded, "JPEG", quality=90)
    return encoded.getvalue()


def _read(path: Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise RetinaError(f"{path}: expected an image file, cannot read it: {error.strerror}; check the path") from None


def _time(target: _Target, files: list[bytes], size: int, repeats: int) -> Timing:
    for file in files:  # graphs are traced and memory is laid out now
        target.detect([file] * size)
        target.stages([file] * size)
    batches = [[files[number % len(files)]] * size for number in range(repeats)]
    seconds = []
    for batch in batches:
        started = time.perf_counter()
        target.detect(batch)
        seconds.append(time.perf_counter() - started)
    # Afterwards, not in turn: onnxruntime's threads go on spinning for a while after each run.
    return Timing(size, tuple(seconds), _shares([target.stages(batch) for batch in batches]))


def _shares(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """Each stage's median over the rounds, as a share of the medians' sum."""
    medians = {name: max(float(np.median([seconds[name] for seconds in rounds])), 0.0) for name in rounds[0]}
    total = sum(medians.values())
    return {name: seconds / total for name, seconds in medians.items()}


def _open(path: Path, checkpoint: str) -> _Target:
    kind: Kind | None = format_of(path)
    if kind is None and (path / "config.yaml").is_file():
        kind = "run"
    if kind is None:
        raise RetinaError(f"{path}: expected a run directory or an export (SavedModel folder, .onnx or .tflite file)")
    if kind == "run":
        return _run(path, checkpoint)
    return {"saved_model": _saved_model, "onnx": _onnx, "litert": _litert}[kind](path)


# ---------------------------------------------------------------------------------------------------- the formats


def _in_turn(value: Any, steps: Iterable[Step]) -> dict[str, float]:
    """The seconds of each step, which takes what the one before it gave."""
    seconds = {}
    for name, step in steps:
        started = time.perf_counter()
        value = step(value)
        seconds[name] = time.perf_counter() - started
    return seconds


def _last(value: Any, steps: Iterable[Step]) -> Any:
    for _, step in steps:
        value = step(value)
    return value


def _decode(files: list[bytes]) -> list[np.ndarray]:
    return [load_image(file) for file in files]


def _run(path: Path, checkpoint: str) -> _Target:
    predictor = loading.load(path, checkpoint)
    detector = predictor.detector

    def resize(images: list[np.ndarray]) -> dict[str, np.ndarray]:
        laid = [canvas_image(image, predictor.config.data.resize) for image in images]
        canvases, scales, sizes = (np.stack(column) for column in zip(*laid, strict=True))
        return {"images": canvases, "scale": scales.astype(np.float32), "size": sizes.astype(np.int32)}

    ahead: list[Step] = [("decode", _decode), ("resize", resize)]
    whole: list[Step] = [*ahead, ("network and nms", predictor.run)]
    if keras.backend.backend() != "tensorflow":
        return _Target("run", "its steps in turn", lambda f: _last(f, whole), lambda f: _in_turn(f, whole))
    import tensorflow as tf

    network = tf.function(lambda batch: detector(batch, training=False), autograph=False)
    nms = tf.function(detector.decode, autograph=False)

    def run_network(batch: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, Any]]:
        tensors = {name: tf.constant(value) for name, value in batch.items()}
        return _awaited(network(tensors)), tensors

    parts: list[Step] = [*ahead, ("network", run_network), ("nms", lambda pair: _awaited(nms(*pair)))]
    return _Target(
        "run", "the network and NMS as graphs of their own", lambda f: _last(f, whole), lambda f: _in_turn(f, parts)
    )


def _saved_model(path: Path) -> _Target:
    import tensorflow as tf

    signatures = tf.saved_model.load(str(path)).signatures
    resize = config.parse(read_description(path)["config"], str(path)).data.resize

    def detect(files: list[bytes]) -> Any:
        return _awaited(signatures["serving_default"](image_bytes=tf.constant(files)))

    def stages(files: list[bytes]) -> dict[str, float]:
        images = _decode(files)
        canvas, _, size = canvas_image(images[0], resize)
        pixels = tf.constant(np.stack(images))
        canvases, sizes = (tf.constant(np.stack([x] * len(files))) for x in (canvas, size.astype(np.int32)))
        calls: dict[str, Callable[[], Any]] = {
            "all": lambda: detect(files),
            "images": lambda: _awaited(signatures["images"](images=pixels)),
            "raw": lambda: _awaited(signatures["raw"](canvas=canvases, size=sizes)),
        }
        took = {}
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            took[name] = time.perf_counter() - started
        network = took["raw"]
        return {
            "decode": took["all"] - took["images"],
            "network": network,
            "resize and nms": took["images"] - network,
        }

    return _Target("saved_model", "differences between its signatures", detect, stages)


def _onnx(path: Path) -> _Target:
    runner, parts = open_onnx(path), open_parts(path)
    whole: list[Step] = [("decode", lambda files: np.stack(_decode(files))), ("all", runner.run)]
    steps: list[Step] = [whole[0], ("resize", parts.before), ("network", parts.network), ("nms", parts.after)]
    return _Target("onnx", "its graph cut in three", lambda f: _last(f, whole), lambda f: _in_turn(f, steps))


def _litert(path: Path) -> _Target:
    runner = open_litert(path)

    def canvases(images: list[np.ndarray]) -> list[np.ndarray]:
        return [np.stack(column) for column in zip(*map(runner.lay_out, images), strict=True)]

    ahead: list[Step] = [("decode", _decode), ("resize", canvases)]
    steps: list[Step] = [*ahead, ("all", lambda laid: runner.run(*laid))]
    network: list[Step] = [*ahead, ("network", lambda laid: runner.run_network(laid[0]))]

    def stages(files: list[bytes]) -> dict[str, float]:
        took = _in_turn(files, network)
        return {**took, "nms": _in_turn(files, steps)["all"] - took["network"]}

    return _Target("litert", "its steps; NMS: what all takes more than the network", lambda f: _last(f, steps), stages)


def _awaited(outputs: dict[str, Any]) -> dict[str, Any]:
    """The outputs, once they are there: on an accelerator a call returns before its work is done."""
    for value in outputs.values():
        value.numpy()
    return outputs
