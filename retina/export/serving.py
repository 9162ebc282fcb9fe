"""The graph of a SavedModel: encoded photographs in, detections out, with the functions that evaluation itself uses.

Every image is laid on a canvas of its own, as `Predictor.predict` does. A batch whose canvases are all of one size goes
through the network together, any other one image at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from retina.config import Config, Inference
from retina.data.batches import exif, pixels
from retina.data.images import as_configured
from retina.models.detector import Detector
from retina.private_names import with_constant_weights

if TYPE_CHECKING:
    import tensorflow as tf

Tensors = dict[str, Any]


class Canvas(NamedTuple):
    """One image as the network takes it: `image` [H,W,3] uint8, `size` [2] int32 (h, w before padding), `scale` [2]
    float32 (canvas pixels per original pixel), and whether there was an image at all."""

    image: tf.Tensor
    size: tf.Tensor
    scale: tf.Tensor
    readable: tf.Tensor


class Serving:
    """The graph of a detector, and `module()`, which is what is saved.

    `detect(image_bytes, score_threshold, nms_iou, max_detections)` and `detect_images(images, …)` have the trained
    settings as defaults; `stages(image_bytes)` shows what lies between one photograph and its detections.
    """

    def __init__(self, detector: Detector, config: Config, files: Sequence[Path] = ()):
        """
        Args:
            files: copied into the SavedModel as assets, under their own names.
        """
        import tensorflow as tf

        # Only the variables: saving the Keras model itself would trace graphs that nobody calls.
        metrics = {id(variable) for variable in detector.metrics_variables}
        weights = [variable.value for variable in detector.variables if id(variable) not in metrics]
        folded = config.export.fold_batch_norm
        self.weights = [] if folded else weights
        self.files = [tf.saved_model.Asset(str(file)) for file in files]
        self.detector = detector
        self._resize, self._max_pixels = config.data.resize, config.data.max_pixels
        _, self._upright, self._depth = as_configured(b"", config.data)
        inputs, defaults = _inputs(), self._defaults()
        network = _function(self.network, [inputs["canvas"], inputs["size"]])
        self._network = _with_constants(network) if folded else network

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

        limits = [inputs[name] for name in ("score_threshold", "nms_iou", "max_detections")]
        self.detect = _function(detect, [inputs["image_bytes"], *limits])
        self.detect_images = _function(detect_images, [inputs["images"], *limits])
        self.stages = _function(self.intermediate, [tf.TensorSpec([1], tf.string, "image_bytes")])

    def module(self) -> tf.Module:
        """The object to save, from which no way leads to the Keras model: weights, assets, functions for Python."""
        import tensorflow as tf

        module = tf.Module(name="retina")
        for name in ("weights", "files", "detect", "detect_images", "stages"):
            setattr(module, name, getattr(self, name))
        return module

    def signatures(self) -> dict[str, Callable]:
        """Signatures by name. Those with options also take the three settings, with their defaults on record."""
        inputs = _inputs()
        return {
            "serving_default": _function(self.of_bytes, [inputs["image_bytes"]]),
            "images": _function(self.of_images, [inputs["images"]]),
            "raw": _function(self.raw, [inputs["canvas"], inputs["size"]]),
            "serving_with_options": self.detect,
            "images_with_options": self.detect_images,
        }

    # ---------------------------------------------------------------------------------------------- the stages

    def decoded(self, encoded: tf.Tensor) -> tf.Tensor:
        """Pixels [h,w,3] uint8 of a scalar string; [0,0,3] if it is no image."""
        image = pixels.read(encoded, from_file=False, max_pixels=self._max_pixels, depth=self._depth)
        return exif.turned(image, exif.orientation(encoded)) if self._upright else image

    def canvas(self, image: tf.Tensor) -> Canvas:
        """An image [h,w,3] on its canvas; an empty one is taken as a black pixel that is not `readable`."""
        import tensorflow as tf

        readable = tf.size(image) > 0
        image = tf.cond(readable, lambda: image, lambda: tf.zeros([1, 1, 3], tf.uint8))
        image = tf.ensure_shape(image, [None, None, 3])
        stored = tf.shape(image)[:2]
        content, size = pixels.fit(stored, self._resize)
        shown = pixels.pad(pixels.show(image, content, self._resize.antialias), size)
        return Canvas(shown, content, pixels.scale(stored, content), readable)

    def network(self, canvas: tf.Tensor, size: tf.Tensor) -> Tensors:
        """`logits` [B,A,K] and `deltas` [B,A,4] of canvases [B,H,W,3], and the pyramid's `maps` [B,·], a row each."""
        import tensorflow as tf

        maps = self.detector.feature_maps(canvas, size, training=False)
        rows = [tf.reshape(tf.cast(level, tf.float32), [tf.shape(canvas)[0], -1]) for level in maps]
        return {**self.detector.predictions(maps), "maps": tf.concat(rows, axis=1)}

    def detections(
        self, outputs: Tensors, canvas: tf.Tensor, size: tf.Tensor, scale: tf.Tensor, limits: Any
    ) -> Tensors:
        """`boxes` [B,D,4], `scores`, `labels`, `valid` [B,D] of the network's outputs."""
        batch = {"images": canvas, "size": size, "scale": scale}
        return self.detector.decode(outputs, batch, limits)

    # ------------------------------------------------------------------------------------------- the signatures

    def of_bytes(self, image_bytes: tf.Tensor, limits: Inference | None = None) -> Tensors:
        """Detections of photographs [B] as encoded bytes, of any sizes; what is no image has none."""
        import tensorflow as tf

        count = tf.shape(image_bytes)[0]
        encoded = _at_least_one(image_bytes, "")
        canvases, sizes, scales, readable, same = self._lay_out(encoded)

        def together() -> Tensors:
            return self._detected(canvases.stack(), sizes, scales, limits)

        def alone(index: tf.Tensor) -> Tensors:
            image, row = canvases.read(index), slice(index, index + 1)
            detections = self._detected(image[None], sizes[row], scales[row], limits)
            return {name: value[0] for name, value in detections.items()}

        def apart() -> Tensors:
            return tf.map_fn(
                alone,
                tf.range(tf.size(encoded)),
                parallel_iterations=1,
                fn_output_signature=self._specification(limits),
            )

        return self._named(tf.cond(same, together, apart), readable, count)

    def of_images(self, images: tf.Tensor, limits: Inference | None = None) -> Tensors:
        """Detections of RGB images [B,H,W,3] of one size."""
        import tensorflow as tf

        count, readable = tf.shape(images)[0], tf.reduce_all(tf.shape(images)[1:3] > 0)
        # Without a loop over the images, which OpenVINO gets wrong: what is empty gets black pixels.
        lacking = tf.maximum(1 - tf.shape(images)[:3], 0)
        images = tf.pad(images, [[0, lacking[0]], [0, lacking[1]], [0, lacking[2]], [0, 0]])
        stored, batch = tf.shape(images)[1:3], tf.shape(images)[:1]
        with tf.device("CPU:0"):
            content, size = pixels.fit(stored, self._resize)
            missing = size - content
            shown = pixels.show(images, content, self._resize.antialias)
            canvas = tf.pad(shown, [[0, 0], [0, missing[0]], [0, missing[1]], [0, 0]])
            sizes = tf.tile(content[None], [batch[0], 1])
            scales = tf.tile(pixels.scale(stored, content)[None], [batch[0], 1])
        detections = self._detected(canvas, sizes, scales, limits)
        return self._named(detections, tf.fill(batch, readable), count)

    def raw(self, canvas: tf.Tensor, size: tf.Tensor) -> Tensors:
        """The network alone: `logits` and `deltas` of canvases [B,H,W,3] whose content ends at `size` [B,2] (h, w)."""
        outputs = self._network(canvas, size)
        return {name: outputs[name] for name in ("logits", "deltas")}

    def intermediate(self, image_bytes: tf.Tensor) -> Tensors:
        """Every stage of one photograph [1]: `retina.export.agreement.TENSORS`, then the detections."""
        image = self.decoded(image_bytes[0])
        laid = self.canvas(image)
        size, scale = laid.size[None], laid.scale[None]
        outputs = self._network(laid.image[None], size)
        detections = self.detections(outputs, laid.image[None], size, scale, None)
        return {"pixels": image, "canvas": laid.image, **{name: x[0] for name, x in (outputs | detections).items()}}

    # ------------------------------------------------------------------------------------------------- details

    def _lay_out(self, encoded: tf.Tensor) -> tuple[tf.TensorArray, tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """The canvases of [B] encoded images as an array of differing shapes, sizes [B,2], scales [B,2], readable [B]
        bool, and whether all shapes are equal."""
        import tensorflow as tf

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
                canvas = self.canvas(self.decoded(encoded[index]))
                shape = tf.shape(canvas.image, out_type=tf.int32)[:2] + 0
                values = (*canvas, shape)
                return index + 1, tuple(array.write(index, value) for array, value in zip(arrays, values, strict=True))

            _, laid = tf.while_loop(lambda index, _: index < count, lay_out, (0, laid))
            canvases, sizes, scales, readable, shapes = laid
            shapes = shapes.stack()
            return canvases, sizes.stack(), scales.stack(), readable.stack(), tf.reduce_all(shapes == shapes[:1])

    def _detected(self, canvas: tf.Tensor, size: tf.Tensor, scale: tf.Tensor, limits: Inference | None) -> Tensors:
        return self.detections(self._network(canvas, size), canvas, size, scale, limits)

    def _named(self, detections: Tensors, readable: tf.Tensor, count: tf.Tensor) -> Tensors:
        """The outputs of a signature for the first `count` images; what was no image has no detection."""
        import tensorflow as tf

        valid = detections["valid"] & readable[:, None]
        names = tf.gather(tf.constant(self.detector.class_names), detections["labels"])
        outputs = {
            "boxes": tf.where(valid[..., None], detections["boxes"], 0.0),
            "scores": tf.where(valid, detections["scores"], 0.0),
            "labels": tf.where(valid, detections["labels"], 0),
            "label_names": tf.where(valid, names, ""),
            "num_detections": tf.reduce_sum(tf.cast(valid, tf.int32), axis=1),
            "readable": readable,
        }
        return {name: value[:count] for name, value in outputs.items()}

    def _specification(self, limits: Inference | None) -> dict[str, tf.TensorSpec]:
        import tensorflow as tf

        slots = self.detector.sections.inference.max_detections if limits is None else None
        return {
            "boxes": tf.TensorSpec([slots, 4], tf.float32),
            "scores": tf.TensorSpec([slots], tf.float32),
            "labels": tf.TensorSpec([slots], tf.int32),
            "valid": tf.TensorSpec([slots], tf.bool),
        }

    def _defaults(self) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        import tensorflow as tf

        trained = self.detector.sections.inference
        return (
            tf.constant(trained.score_threshold, tf.float32),
            tf.constant(trained.nms_iou, tf.float32),
            tf.constant(trained.max_detections, tf.int32),
        )

    def _limits(self, score_threshold: tf.Tensor, nms_iou: tf.Tensor, max_detections: tf.Tensor) -> Inference:
        """The settings of one call, refused where they mean nothing."""
        import tensorflow as tf

        trained, checks = self.detector.sections.inference, []
        for name, value in (("score_threshold", score_threshold), ("nms_iou", nms_iou)):
            inside = (value >= 0.0) & (value <= 1.0)
            checks.append(tf.debugging.Assert(inside, [f"{name}: expected 0 to 1, got", value]))
        checks.append(
            tf.debugging.Assert(max_detections >= 1, ["max_detections: expected at least 1, got", max_detections])
        )
        if trained.suppression == "gaussian":
            idle = f"nms_iou: without effect on gaussian suppression, leave it at {trained.nms_iou}; got"
            checks.append(tf.debugging.Assert(tf.equal(nms_iou, trained.nms_iou), [idle, nms_iou]))
        with tf.control_dependencies(checks):
            given = {"score_threshold": score_threshold, "nms_iou": nms_iou, "max_detections": max_detections}
            return trained.model_copy(update={name: tf.identity(value) for name, value in given.items()})


def _function(of: Callable, signature: list[tf.TensorSpec]) -> Any:
    """Graph of a function. All its branches are TensorFlow's; AutoGraph would take seconds to look for others."""
    import tensorflow as tf

    return tf.function(of, input_signature=signature, autograph=False)


def _inputs() -> dict[str, tf.TensorSpec]:
    """The inputs of all signatures, by name."""
    import tensorflow as tf

    kinds: dict[str, tuple[list[int | None], tf.DType]] = {
        "image_bytes": ([None], tf.string),
        "images": ([None, None, None, 3], tf.uint8),
        "canvas": ([None, None, None, 3], tf.uint8),
        "size": ([None, 2], tf.int32),
        "score_threshold": ([], tf.float32),
        "nms_iou": ([], tf.float32),
        "max_detections": ([], tf.int32),
    }
    return {name: tf.TensorSpec(shape, dtype, name=name) for name, (shape, dtype) in kinds.items()}


def _with_constants(network: Any) -> Callable[[tf.Tensor, tf.Tensor], Tensors]:
    """The function with its weights as constants: TensorFlow then multiplies batch normalisations into convolutions."""
    traced = network.get_concrete_function()
    constant = with_constant_weights(traced)
    names = sorted(traced.structured_outputs)

    return lambda canvas, size: dict(zip(names, constant(canvas, size), strict=True))


def _at_least_one(batch: tf.Tensor, value: Any) -> tf.Tensor:
    """The batch [B, …], with an element of `value` if B is 0: an empty batch has no canvas to stack."""
    import tensorflow as tf

    shape = tf.shape(batch)
    missing = tf.cast(shape[:1] == 0, tf.int32)
    return tf.concat([batch, tf.fill(tf.concat([missing, shape[1:]], 0), tf.constant(value, batch.dtype))], axis=0)
