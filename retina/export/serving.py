"""The graph of a SavedModel: encoded photographs in, detections out, with the functions that evaluation itself uses.

Every image is laid on a canvas of its own, as `Predictor.predict` does. A batch whose canvases are all of one size goes
through the network together, any other one image at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from retina.config import Config
from retina.data.batches import pixels
from retina.models.decode import Limits
from retina.models.detector import Detector

Tensors = dict[str, tf.Tensor]

_BYTES = tf.TensorSpec([None], tf.string, name="image_bytes")
_IMAGES = tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")
_CANVAS = tf.TensorSpec([None, None, None, 3], tf.uint8, name="canvas")
_SIZE = tf.TensorSpec([None, 2], tf.int32, name="size")
_LIMITS = (
    tf.TensorSpec([], tf.float32, name="score_threshold"),
    tf.TensorSpec([], tf.float32, name="nms_iou"),
    tf.TensorSpec([], tf.int32, name="max_detections"),
)


class Canvas(NamedTuple):
    """One image as the network takes it: `image` [H,W,3] uint8, `size` [2] int32 (h, w before padding), `scale` [2]
    float32 (canvas pixels per original pixel), and whether there was an image at all."""

    image: tf.Tensor
    size: tf.Tensor
    scale: tf.Tensor
    readable: tf.Tensor


class Serving(tf.Module):
    """What is saved: the weights, the signatures, and two functions for Python.

    `detect(image_bytes, score_threshold, nms_iou, max_detections)` and `detect_images(images, …)` have the trained
    settings as defaults; `stages(image_bytes)` shows what lies between one photograph and its detections.
    """

    def __init__(self, detector: Detector, config: Config, files: Sequence[Path] = ()):
        """
        Args:
            files: copied into the SavedModel as assets, under their own names.
        """
        super().__init__(name="retina")
        # Only the variables: saving the Keras model itself would trace graphs that nobody calls.
        metrics = {id(variable) for variable in detector.metrics_variables}
        weights = [variable.value for variable in detector.variables if id(variable) not in metrics]
        folded = config.export.fold_batch_norm
        self.weights = [] if folded else weights
        self.files = [tf.saved_model.Asset(str(file)) for file in files]
        self._detector = _Untracked(detector)
        self._resize, self._max_pixels = config.data.resize, config.data.max_pixels
        network = tf.function(self.network, input_signature=[_CANVAS, _SIZE])
        self._network = _with_constants(network) if folded else network
        defaults = self._defaults()
        limited = [*_LIMITS]

        def detect(
            image_bytes: tf.Tensor,
            score_threshold: tf.Tensor = defaults[0],
            nms_iou: tf.Tensor = defaults[1],
            max_detections: tf.Tensor = defaults[2],
        ) -> Tensors:
            return self.of_bytes(image_bytes, self._limits(score_threshold, nms_iou, max_detections))

        def detect_images(
            images: tf.Tensor,
            score_threshold: tf.Tensor = defaults[0],
            nms_iou: tf.Tensor = defaults[1],
            max_detections: tf.Tensor = defaults[2],
        ) -> Tensors:
            return self.of_images(images, self._limits(score_threshold, nms_iou, max_detections))

        self.detect = tf.function(detect, input_signature=[_BYTES, *limited])
        self.detect_images = tf.function(detect_images, input_signature=[_IMAGES, *limited])
        self.stages = tf.function(self.intermediate, input_signature=[tf.TensorSpec([1], tf.string, "image_bytes")])

    def signatures(self) -> dict[str, Callable]:
        """By name. Those with options take the three settings as further inputs, with their defaults on record."""
        return {
            "serving_default": tf.function(self.of_bytes, input_signature=[_BYTES]),
            "images": tf.function(self.of_images, input_signature=[_IMAGES]),
            "raw": tf.function(self.raw, input_signature=[_CANVAS, _SIZE]),
            "serving_with_options": self.detect,
            "images_with_options": self.detect_images,
        }

    # ---------------------------------------------------------------------------------------------- the stages

    def decoded(self, encoded: tf.Tensor) -> tf.Tensor:
        """Pixels [h,w,3] uint8 of a scalar string; [0,0,3] if it is no image."""
        return pixels.read(encoded, from_file=False, max_pixels=self._max_pixels)

    def canvas(self, image: tf.Tensor) -> Canvas:
        """An image [h,w,3] on its canvas; an empty one is taken as a black pixel that is not `readable`."""
        readable = tf.size(image) > 0
        image = tf.cond(readable, lambda: image, lambda: tf.zeros([1, 1, 3], tf.uint8))
        image = tf.ensure_shape(image, [None, None, 3])
        stored = tf.shape(image)[:2]
        content, size = pixels.fit(stored, self._resize)
        shown = pixels.pad(pixels.show(image, content), size)
        return Canvas(shown, content, pixels.scale(stored, content), readable)

    def network(self, canvas: tf.Tensor, size: tf.Tensor) -> Tensors:
        """`logits` [B,A,K] and `deltas` [B,A,4] of canvases [B,H,W,3], and the pyramid's `maps` [B,·], a row each."""
        maps = self._detector.it.feature_maps(canvas, size, training=False)
        rows = [tf.reshape(tf.cast(one, tf.float32), [tf.shape(canvas)[0], -1]) for one in maps]
        return {**self._detector.it.predictions(maps), "maps": tf.concat(rows, axis=1)}

    def detections(
        self, outputs: Tensors, canvas: tf.Tensor, size: tf.Tensor, scale: tf.Tensor, limits: Any
    ) -> Tensors:
        """`boxes` [B,D,4], `scores`, `labels`, `valid` [B,D] of the network's outputs."""
        batch = {"images": canvas, "size": size, "scale": scale}
        return self._detector.it.decode(outputs, batch, limits)

    # ------------------------------------------------------------------------------------------- the signatures

    def of_bytes(self, image_bytes: tf.Tensor, limits: Limits | None = None) -> Tensors:
        """Detections of photographs [B] as encoded bytes, of any sizes; what is no image has none."""
        count = tf.shape(image_bytes)[0]
        encoded = _at_least_one(image_bytes, "")
        canvases, sizes, scales, readable, same = self._lay_out(encoded)

        def together() -> Tensors:
            return self._found(canvases.stack(), sizes, scales, limits)

        def one(index: tf.Tensor) -> Tensors:
            image, row = canvases.read(index), slice(index, index + 1)
            found = self._found(image[None], sizes[row], scales[row], limits)
            return {name: value[0] for name, value in found.items()}

        def apart() -> Tensors:
            return tf.map_fn(
                one, tf.range(tf.size(encoded)), parallel_iterations=1, fn_output_signature=self._specification(limits)
            )

        return self._named(tf.cond(same, together, apart), readable, count)

    def of_images(self, images: tf.Tensor, limits: Limits | None = None) -> Tensors:
        """Detections of RGB images [B,H,W,3] of one size."""
        count = tf.shape(images)[0]
        images = _at_least_one(images, 0)
        with tf.device("CPU:0"):
            canvas, size, scale, readable = tf.map_fn(
                self.canvas,
                images,
                fn_output_signature=Canvas(
                    tf.TensorSpec([None, None, 3], tf.uint8),
                    tf.TensorSpec([2], tf.int32),
                    tf.TensorSpec([2], tf.float32),
                    tf.TensorSpec([], tf.bool),
                ),
            )
        return self._named(self._found(canvas, size, scale, limits), readable, count)

    def raw(self, canvas: tf.Tensor, size: tf.Tensor) -> Tensors:
        """The network alone: `logits` and `deltas` of canvases [B,H,W,3] whose content ends at `size` [B,2] (h, w)."""
        outputs = self._network(canvas, size)
        return {name: outputs[name] for name in ("logits", "deltas")}

    def intermediate(self, image_bytes: tf.Tensor) -> Tensors:
        """Every stage of one photograph [1]: `retina.export.stages.TENSORS`, then the detections."""
        image = self.decoded(image_bytes[0])
        laid = self.canvas(image)
        size, scale = laid.size[None], laid.scale[None]
        outputs = self._network(laid.image[None], size)
        found = self.detections(outputs, laid.image[None], size, scale, None)
        return {"pixels": image, "canvas": laid.image, **{name: x[0] for name, x in (outputs | found).items()}}

    # ------------------------------------------------------------------------------------------------- details

    def _lay_out(self, encoded: tf.Tensor) -> tuple[tf.TensorArray, tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """The canvases of [B] encoded images as an array of differing shapes, sizes [B,2], scales [B,2], readable [B]
        bool, and whether the shapes are all one."""
        count = tf.size(encoded)
        # Where tf.data decodes too; and a GPU's resize might round another way.
        with tf.device("CPU:0"):
            laid = (
                tf.TensorArray(
                    tf.uint8, count, infer_shape=False, element_shape=[None, None, 3], clear_after_read=False
                ),
                tf.TensorArray(tf.int32, count, element_shape=[2]),
                tf.TensorArray(tf.float32, count, element_shape=[2]),
                tf.TensorArray(tf.bool, count, element_shape=[]),
                tf.TensorArray(tf.int32, count, element_shape=[2]),
            )

            def lay_out(index: tf.Tensor, arrays: tuple) -> tuple[tf.Tensor, tuple]:
                one = self.canvas(self.decoded(encoded[index]))
                shape = tf.shape(one.image, out_type=tf.int32)[:2] + 0
                values = (*one, shape)
                return index + 1, tuple(array.write(index, value) for array, value in zip(arrays, values, strict=True))

            _, laid = tf.while_loop(lambda index, _: index < count, lay_out, (0, laid))
            canvases, sizes, scales, readable, shapes = laid
            shapes = shapes.stack()
            return canvases, sizes.stack(), scales.stack(), readable.stack(), tf.reduce_all(shapes == shapes[:1])

    def _found(self, canvas: tf.Tensor, size: tf.Tensor, scale: tf.Tensor, limits: Limits | None) -> Tensors:
        return self.detections(self._network(canvas, size), canvas, size, scale, limits)

    def _named(self, found: Tensors, readable: tf.Tensor, count: tf.Tensor) -> Tensors:
        """The outputs of a signature for the first `count` images; what was no image keeps no detection."""
        valid = found["valid"] & readable[:, None]
        names = tf.gather(tf.constant(self._detector.it.class_names), found["labels"])
        outputs = {
            "boxes": tf.where(valid[..., None], found["boxes"], 0.0),
            "scores": tf.where(valid, found["scores"], 0.0),
            "labels": tf.where(valid, found["labels"], 0),
            "label_names": tf.where(valid, names, ""),
            "num_detections": tf.reduce_sum(tf.cast(valid, tf.int32), axis=1),
            "readable": readable,
        }
        return {name: value[:count] for name, value in outputs.items()}

    def _specification(self, limits: Limits | None) -> dict[str, tf.TensorSpec]:
        slots = self._detector.it.sections.inference.max_detections if limits is None else None
        return {
            "boxes": tf.TensorSpec([slots, 4], tf.float32),
            "scores": tf.TensorSpec([slots], tf.float32),
            "labels": tf.TensorSpec([slots], tf.int32),
            "valid": tf.TensorSpec([slots], tf.bool),
        }

    def _defaults(self) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        trained = self._detector.it.sections.inference
        return (
            tf.constant(trained.score_threshold, tf.float32),
            tf.constant(trained.nms_iou, tf.float32),
            tf.constant(trained.max_detections, tf.int32),
        )

    def _limits(self, score_threshold: tf.Tensor, nms_iou: tf.Tensor, max_detections: tf.Tensor) -> Limits:
        """The settings of one call, refused where they mean nothing."""
        checks = []
        for name, value in (("score_threshold", score_threshold), ("nms_iou", nms_iou)):
            inside = (value >= 0.0) & (value <= 1.0)
            checks.append(tf.debugging.Assert(inside, [f"{name}: expected 0 to 1, got", value]))
        checks.append(
            tf.debugging.Assert(max_detections >= 1, ["max_detections: expected at least 1, got", max_detections])
        )
        with tf.control_dependencies(checks):
            return Limits(
                tf.identity(score_threshold),
                self._detector.it.sections.inference.candidates,
                tf.identity(nms_iou),
                tf.identity(max_detections),
            )


class _Untracked:
    """Hides an object from `tf.Module`, which would save it."""

    def __init__(self, it: Any):
        self.it = it


def _with_constants(network: Any) -> Callable[[tf.Tensor, tf.Tensor], Tensors]:
    """The function with its weights as constants: TensorFlow then multiplies batch normalisations into convolutions."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    traced = network.get_concrete_function()
    constant = convert_variables_to_constants_v2(traced)
    names = sorted(traced.structured_outputs)

    return lambda canvas, size: dict(zip(names, constant(canvas, size), strict=True))


def _at_least_one(batch: tf.Tensor, value: Any) -> tf.Tensor:
    """[B, …] with one element of `value` if B is 0: an empty batch has no canvas to stack."""
    shape = tf.shape(batch)
    missing = tf.cast(shape[:1] == 0, tf.int32)
    return tf.concat([batch, tf.fill(tf.concat([missing, shape[1:]], 0), tf.constant(value, batch.dtype))], axis=0)
