#!/usr/bin/env python
"""Files of retina that two small images pass between the disk and the loss, as JSON on standard output.

It writes two JPEG files of 64 x 48 pixels with a COCO table, and lets `retina.train` make one step on them: flips and
zoom, batch of two, ResNet-18, TensorFlow, everything else as it is by default. A file of the package counts where at
least one line inside a function of it is executed, in any thread,

- after Keras callbacks are told `on_train_begin` (configuration and table are read, the network is built; what plans,
  opens, decodes and batches the images comes then), and
- before the gradient of the loss is asked for (the loss has its value; update, metrics and checkpoint come after it).

Nothing in that time is left out, whether it touches pixels or not. Both images must be opened in it. TensorFlow traces
the step's function then, so that the Python which builds network, assignment and losses runs once, as it does in every
training. Lines that run only because a module is imported do not count.

    PYTHONPATH=CHECKOUT scripts/trace_step.py
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

WIDTH, HEIGHT, IMAGES = 64, 48, 2
SETTINGS = """
data:
  root: {folder}
  train: {{format: coco, annotations: table.json, images: images}}
  validation: {{format: coco, annotations: table.json, images: images}}
  resize: {{short: 64, long: 128, multiple: 64}}
  augment: {{horizontal_flip: 0.5, scale: [0.8, 1.25]}}
model: {{backbone: keras_cv/resnet18}}
schedule: {{kind: constant, steps: 1}}
run: {{batch_size: {images}, preflight: "off", pictures: 0}}
"""


class LossIsKnown(BaseException):
    """End of the training: the loss has its value."""


class Recorder:
    """`files` below `package` of which a line is executed while it is `on`, and the images `opened` meanwhile."""

    def __init__(self, package: Path, images: Path):
        self.package, self.images = f"{package}{os.sep}", f"{images}{os.sep}"
        self.files: dict[str, None] = {}
        self.opened: list[str] = []
        self.on = False

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note the image files that are opened."""
        if self.on and event == "open" and isinstance(arguments[0], str) and arguments[0].startswith(self.images):
            self.opened.append(Path(arguments[0]).name)

    def begin(self) -> None:
        self.on = True

    def trace(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        """Return the tracer of a frame's lines, if it is a function's of the package."""
        code = frame.f_code
        # Bodies of modules and classes are not optimised: they run when something is imported.
        is_ours = code.co_filename.startswith(self.package) and code.co_flags & inspect.CO_OPTIMIZED
        return self.line if is_ours else None

    def line(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
        if self.on and event == "line":
            self.files.setdefault(frame.f_code.co_filename.removeprefix(self.package))
        return self.line


def write_data(folder: Path) -> Path:
    """Two images with their COCO table, and the configuration of a training on them, whose path is returned."""
    import numpy as np
    from PIL import Image

    (folder / "images").mkdir()
    draw = np.random.default_rng(0)
    for number in range(IMAGES):
        pixels = draw.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.jpg")
    numbers = range(IMAGES)
    table = {
        "images": [{"id": n + 1, "file_name": f"{n}.jpg", "width": WIDTH, "height": HEIGHT} for n in numbers],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": n + 1, "image_id": n + 1, "category_id": 1, "bbox": [8, 8, 24, 24], "area": 576, "iscrowd": 0}
            for n in numbers
        ],
    }
    (folder / "table.json").write_text(json.dumps(table))
    config = folder / "config.yaml"
    config.write_text(SETTINGS.format(folder=folder, images=IMAGES))
    return config


def stop_at_the_loss(recorder: Recorder) -> None:
    """Let the first request for a gradient switch the recorder off and end the training."""
    import tensorflow as tf

    def gradient(*arguments: Any, **options: Any) -> Any:
        recorder.on = False
        raise LossIsKnown

    tf.GradientTape.gradient = gradient


def traced(folder: Path) -> Recorder:
    """Return the record of one training step on two images in a new folder."""
    import keras

    import retina

    config = retina.load_config(write_data(folder))
    assert retina.__file__ is not None
    recorder = Recorder(Path(retina.__file__).parent, folder / "images")
    stop_at_the_loss(recorder)
    sys.addaudithook(recorder.audit)
    threading.settrace(recorder.trace)
    sys.settrace(recorder.trace)
    beginning = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: recorder.begin())
    try:
        retina.train(config, folder / "run", callbacks=[beginning])
    except LossIsKnown:
        return recorder
    finally:
        sys.settrace(None)
        threading.settrace(None)
    raise SystemExit("trace_step: expected a gradient, the training asked for none")


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    with tempfile.TemporaryDirectory() as name:
        recorder = traced(Path(name).resolve())
    if len(set(recorder.opened)) != IMAGES:
        print(f"trace_step: expected {IMAGES} image files to be opened, got {recorder.opened}", file=sys.stderr)
        return 1
    print(json.dumps({"package": recorder.package, "files": list(recorder.files)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
