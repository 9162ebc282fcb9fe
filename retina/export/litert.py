"""LiteRT (TensorFlow Lite) exports: canvas in, detections out, for phones and small boards.

The model takes any canvas and any batch (`resize_tensor_input`), but not images of any size: a size that is known only
while the model runs would shut its fast kernels (XNNPACK) out. The runner lays images out with NumPy, equal bit for bit
to what evaluation does. The file is a .tflite with a zip after it, as TensorFlow Lite's own metadata has it:
`retina.json` (class names, category ids, preprocessing, configuration) and `labels.txt`.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from retina import config
from retina.errors import RetinaError
from retina.export import litert_graph
from retina.export.canvas import Canvas, lay_out
from retina.export.description import (
    check_backend,
    check_expressible,
    describe,
    detections_of,
    float32_detector,
    missing_extra,
    pixels_of,
    quiet,
)
from retina.files import written
from retina.inference import Detections, Predictor

Precision = Literal["float32", "float16", "int8"]
Runtime = Literal["ai-edge-litert", "tensorflow"]

_DEPRECATED = r"(?s).*tf\.lite\.Interpreter is deprecated"
_DOCUMENT, _LABELS = "retina.json", "labels.txt"


def write_litert(
    predictor: Predictor,
    path: Path,
    *,
    precision: Precision,
    representative: Iterable[np.ndarray] | None = None,
    category_ids: Sequence[int] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write a .tflite file whose signature `serving_default` takes canvases and gives detections.

    Inputs `canvas` float32 [B, h, w, 3] (RGB levels 0…255, sides multiples of `data.resize.multiple`, padding in the
    mean colour), `size` int32 [B, 2] (h, w of the content) and `scale` float32 [B, 2] (canvas pixels per pixel of the
    image); outputs as of `retina.export.onnx.write_onnx`. `retina.export.canvas` makes the inputs. The signature `raw`
    is the network alone: `canvas` to `logits` [B, A, K] and `deltas` [B, A, 4].

    Args:
        precision: of the weights; `float16` halves the file, the arithmetic stays float32 where the processor has no
            float16.
        representative: images uint8 [h, w, 3] of the training data, which `int8` takes the ranges of values from.
        category_ids: [K] the data's own ids; 0…K-1 if left out.
        notes: more for the metadata; JSON values.

    Raises:
        RetinaError: the backend is not TensorFlow, suppression is soft, resizing antialiased, or `representative` is
            missing or has no effect.
    """
    check_backend("litert")
    check_expressible("litert", predictor.detector.sections.inference, predictor.config.data.resize)
    images = list(representative or ())
    if (precision == "int8") != bool(images):
        expected = "images of the training data" if precision == "int8" else "no images, they have no effect"
        raise RetinaError(f"export to litert in {precision}: expected {expected} as `representative`")
    document = {**describe(predictor, category_ids, notes), "precision": precision}
    model = _converted(predictor, precision, images)
    with written(Path(path)) as temporary:
        temporary.write_bytes(model)
        with zipfile.ZipFile(temporary, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(_DOCUMENT, json.dumps(document, indent=2))
            archive.writestr(_LABELS, "\n".join(predictor.class_names) + "\n")


def _converted(predictor: Predictor, precision: Precision, images: Sequence[np.ndarray]) -> bytes:
    import tensorflow as tf

    detector = float32_detector(predictor)
    sections, levels, classes = detector.sections, detector.fpn.levels, len(predictor.class_names)
    weights = [variable.value for variable in detector.variables]
    canvas_spec = tf.TensorSpec([None, None, None, 3], tf.float32, name="canvas")
    predictions = [
        tf.TensorSpec([None, None, width], tf.float32, name) for name, width in (("logits", classes), ("deltas", 4))
    ]
    geometry = [tf.TensorSpec([None, 2], tf.int32, name="size"), tf.TensorSpec([None, 2], tf.float32, name="scale")]

    @tf.function(input_signature=[canvas_spec], autograph=False)
    def raw(canvas: tf.Tensor) -> dict[str, tf.Tensor]:
        return litert_graph.network(detector, canvas)

    @tf.function(input_signature=[*predictions, canvas_spec, *geometry], autograph=False)
    def detect(
        logits: tf.Tensor, deltas: tf.Tensor, canvas: tf.Tensor, size: tf.Tensor, scale: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        outputs = {"logits": logits, "deltas": deltas}
        return litert_graph.detections(outputs, canvas, size, scale, sections, levels)

    def quantise(converter: Any) -> None:
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if images:
            resize, mean = predictor.config.data.resize, sections.model.pixel_mean
            # Laid out anew for each pass that the converter makes, one at a time: a hundred canvases fill a memory.
            converter.representative_dataset = lambda: (
                {"canvas": lay_out(image, resize, mean).pixels[None]} for image in images
            )

    network = _convert(raw, weights, quantise)
    return litert_graph.join(network, _convert(detect, [], lambda _: None), whole="serving_default", alone="raw")


def _convert(function: Any, weights: Sequence[Any], prepare: Callable[[Any], None]) -> bytes:
    import tensorflow as tf

    module = tf.Module()
    module.weights = weights
    with tempfile.TemporaryDirectory() as folder, quiet("tensorflow"), warnings.catch_warnings():
        # The converter takes the ranges with an interpreter that it calls deprecated itself.
        warnings.filterwarnings("ignore", message=_DEPRECATED)
        tf.saved_model.save(module, folder, signatures={"serving_default": function})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        prepare(converter)
        return converter.convert()


class LiteRtRunner:
    """A LiteRT export in its interpreter, with the preprocessing around it."""

    def __init__(self, path: Path, interpreter: Any, document: Mapping[str, Any]):
        self.path, self.interpreter, self.document = path, interpreter, document
        self.class_names: tuple[str, ...] = tuple(document["class_names"])
        self.config = config.parse(document["config"], str(path))
        self._detect, self._raw = (interpreter.get_signature_runner(name) for name in ("serving_default", "raw"))

    def detect(self, images: Sequence[np.ndarray | bytes | Path]) -> list[Detections]:
        """Detections of each image: uint8 RGB [H, W, 3], the bytes of a file, or a path; sizes may differ.

        Raises:
            RetinaError: an image is missing, damaged or of another type.
        """
        return [self._detected(pixels_of(image, self.document)) for image in images]

    def run(self, canvas: np.ndarray, size: np.ndarray, scale: np.ndarray) -> dict[str, np.ndarray]:
        """The model's own outputs for a batch of canvases, as `write_litert` describes them."""
        return self._detect(canvas=canvas, size=size, scale=scale)

    def run_network(self, canvas: np.ndarray) -> dict[str, np.ndarray]:
        """`logits` [B, A, K] and `deltas` [B, A, 4] of a batch of canvases."""
        return self._raw(canvas=canvas)

    def lay_out(self, image: np.ndarray) -> Canvas:
        """The inputs of the model for one image, uint8 RGB [H, W, 3]."""
        return lay_out(image, self.config.data.resize, self.config.model.pixel_mean)

    def stages(self, image: np.ndarray | bytes | Path) -> dict[str, np.ndarray]:
        """The tensors between an image and its detections, named as in `retina.export.agreement.TENSORS`."""
        pixels = pixels_of(image, self.document)
        canvas = self.lay_out(pixels)
        outputs = {name: value[0] for name, value in self.run_network(canvas.pixels[None]).items()}
        return {"pixels": pixels, "canvas": canvas.black_padded(), **outputs}

    def _detected(self, image: np.ndarray) -> Detections:
        canvas = self.lay_out(image)
        outputs = self.run(canvas.pixels[None], canvas.size[None], canvas.scale[None])
        return detections_of(outputs, self.class_names)


def open_litert(path: str | Path, *, runtime: Runtime = "ai-edge-litert", threads: int | None = None) -> LiteRtRunner:
    """Load an export.

    Args:
        runtime: LiteRT's own package, or TensorFlow Lite as TensorFlow brings it.
        threads: of the interpreter; all processors if left out.

    Raises:
        RetinaError: the runtime is missing, the file is missing or damaged, or it is no export of retina.
    """
    path = Path(path)
    interpreter_of = _interpreter(runtime)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RetinaError(
            f"{path}: expected a .tflite file, cannot read it: {error.strerror}; check the path"
        ) from None
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            document = json.loads(archive.read(_DOCUMENT))
    except (zipfile.BadZipFile, KeyError, ValueError):
        raise RetinaError(
            f"{path}: expected an export of retina, it carries no {_DOCUMENT}; it is cut short or comes from elsewhere"
        ) from None
    try:
        # TensorFlow's interpreter calls itself deprecated.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=_DEPRECATED)
            # By content: the file may be replaced while the interpreter lives, and would be read through its mapping.
            interpreter = interpreter_of(model_content=content, num_threads=threads or os.cpu_count())
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise RetinaError(f"{path}: damaged or not a LiteRT model ({reason}); export it again") from None
    return LiteRtRunner(path, interpreter, document)


def _interpreter(runtime: Runtime) -> Callable[..., Any]:
    if runtime == "ai-edge-litert":
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise missing_extra("litert", error) from None
        return Interpreter
    import tensorflow as tf

    return tf.lite.Interpreter
