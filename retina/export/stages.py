"""Where an export first differs from the checkpoint: decode, resize, backbone, head or NMS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
from keras import ops

from retina.inference import Predictor

Stage = Literal["decode", "resize", "backbone", "head", "NMS"]

TENSORS: dict[str, Stage] = {
    "pixels": "decode",
    "canvas": "resize",
    "maps": "backbone",
    "logits": "head",
    "deltas": "head",
}
"""What a runner may show of one image, in the order in which it arises, and the stage that makes it: `pixels` [h,w,3]
and `canvas` [H,W,3] uint8, `maps` the pyramid's maps as one row of float32, `logits` [A,K] and `deltas` [A,4]. "NMS" is
all that follows: candidates, boxes, suppression."""


class Difference(NamedTuple):
    """`stage` is the first that differs, None if the export shows too little to tell; `words` say how."""

    stage: Stage | None
    words: str


def of_checkpoint(predictor: Predictor, image: bytes) -> dict[str, np.ndarray]:
    """`TENSORS` of one encoded image, computed from the checkpoint."""
    from retina.data.batches.evaluation import canvas_image
    from retina.data.images import load_image

    pixels = load_image(image)
    canvas, _, size = canvas_image(pixels, predictor.config.data.resize)
    outputs = _network(predictor)(ops.convert_to_tensor(canvas[None]), ops.convert_to_tensor(size[None]))
    return {"pixels": pixels, "canvas": canvas, **{name: ops.convert_to_numpy(x) for name, x in outputs.items()}}


def _network(predictor: Predictor) -> Any:
    """From a canvas [1,H,W,3] and its content's size [1,2] to `maps`, `logits` and `deltas` of `TENSORS`."""
    detector = predictor.detector

    def network(canvas: Any, size: Any) -> dict[str, Any]:
        maps = detector.feature_maps(canvas, size, training=False)
        rows = [ops.reshape(ops.cast(one[0], "float32"), (-1,)) for one in maps]
        return {"maps": ops.concatenate(rows), **{name: x[0] for name, x in detector.predictions(maps).items()}}

    if keras.backend.backend() != "tensorflow":
        return network
    import tensorflow as tf

    # As prediction computes it: operation by operation bfloat16 rounds more often than in a graph.
    specification = [tf.TensorSpec([None, None, None, 3], tf.uint8), tf.TensorSpec([None, 2], tf.int32)]
    return tf.function(network, input_signature=specification)


def first_difference(
    checkpoint: Mapping[str, np.ndarray], export: Mapping[str, np.ndarray], tolerance: float
) -> Difference:
    """Compares one image's tensors in the order of `TENSORS`; to be asked only where the detections differ.

    Args:
        tolerance: of floats, relative to the largest magnitude of the checkpoint's tensor; pixels must be equal.
    """
    shown = [name for name in TENSORS if name in export]
    if not shown:
        return Difference(None, "the export shows nothing between the image and its detections")
    for name in shown:
        ours, theirs = checkpoint[name], export[name]
        if ours.shape != theirs.shape:
            words = f"{name}: the checkpoint's have shape {list(ours.shape)}, the export's {list(theirs.shape)}"
            return Difference(TENSORS[name], words)
        gap = np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max(initial=0.0)
        largest = np.abs(ours.astype(np.float64)).max(initial=0.0)
        allowed = 0.0 if ours.dtype == np.uint8 else tolerance * largest
        if not gap <= allowed:  # also where it is not a number
            words = f"{name}: off by up to {gap:.4g} (magnitudes reach {largest:.4g}, allowed is {allowed:.2g})"
            return Difference(TENSORS[name], words)
    return Difference("NMS", f"{', '.join(shown)} agree; boxes, candidates or suppression differ")
