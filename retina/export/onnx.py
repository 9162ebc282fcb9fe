"""ONNX exports: image tensor in, detections out, for onnxruntime and whatever else reads the format.

The network is converted by tf2onnx from the TensorFlow graph (Keras' `export(format="onnx")` takes the same way),
with any canvas and any batch; what stands around it is written by hand (`onnx_graph`), since a converted while-loop
would suppress a hundred boxes one at a time. Class names, category ids and settings travel in `metadata_props`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from retina.errors import RetinaError
from retina.export import onnx_graph
from retina.export.description import (
    check_backend,
    describe,
    detections_of,
    float32_detector,
    missing_extra,
    pixels_of,
    quiet,
)
from retina.files import written
from retina.inference import Detections, Predictor

_KEY = "retina"
# Part of the format: exports that are there are cut into the same parts.
_PREFIXES = ("before/", "network/", "behind/")
_GEOMETRY = ("canvas", "size", "per_original")
_OUTPUTS = ("boxes", "scores", "labels", "num_detections")


def write_onnx(
    predictor: Predictor,
    path: Path,
    *,
    category_ids: Sequence[int] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write one file that takes images and gives detections.

    Input `images` uint8 [B, H, W, 3] (RGB, any B, H, W); outputs `boxes` [B, D, 4] float32 xyxy in the images' own
    pixels, `scores` [B, D] float32, `labels` [B, D] int32, by falling score, and `num_detections` [B] int32: what
    stands after them is zero. The weights are float32 whatever precision the run was trained in.

    Args:
        category_ids: [K] the data's own ids; 0…K-1 if left out.
        notes: more for the metadata; JSON values.

    Raises:
        RetinaError: the backend is not TensorFlow, or tf2onnx is missing.
    """
    check_backend("onnx")
    try:
        import onnx
        from onnx import compose, parser
    except ImportError as error:
        raise missing_extra("onnx", error) from None
    document = describe(predictor, category_ids, notes)
    detector = float32_detector(predictor)
    sections, resize = detector.sections, predictor.config.data.resize
    texts = (
        onnx_graph.before_network(resize, sections.model),
        onnx_graph.after_network(sections, detector.fpn.levels, len(detector.class_names)),
    )
    before, after = (parser.parse_model(text) for text in texts)
    before, network, after = (
        compose.add_prefix(model, prefix)
        for model, prefix in zip((before, _network(detector), after), _PREFIXES, strict=True)
    )
    front = compose.merge_models(
        before,
        network,
        io_map=[("before/pixels", "network/pixels")],
        outputs=["network/logits", "network/deltas", *(f"before/{name}" for name in _GEOMETRY)],
    )
    whole = compose.merge_models(
        front,
        after,
        io_map=[
            *((f"network/{name}", f"behind/{name}") for name in ("logits", "deltas")),
            *((f"before/{name}", f"behind/{name}") for name in _GEOMETRY),
        ],
    )
    _rename(whole, {"before/images": "images", **{f"behind/{name}": name for name in _OUTPUTS}})
    _name_dimensions(whole)
    # Merged lists of all three, and domains of which no node comes.
    del whole.opset_import[:]
    whole.opset_import.append(onnx.helper.make_opsetid("", onnx_graph.OPSET))
    whole.graph.name, whole.producer_name = "detector", "retina"
    whole.doc_string = "RetinaNet: uint8 RGB images [B, H, W, 3] to boxes (xyxy pixels of the image), scores and labels"
    onnx.helper.set_model_props(whole, {_KEY: json.dumps(document), "class_names": json.dumps(document["class_names"])})
    onnx.checker.check_model(whole, full_check=True)
    with written(Path(path)) as temporary:
        temporary.write_bytes(whole.SerializeToString())


def _network(detector: Any) -> Any:
    """The network as an ONNX model: `pixels` [B, h, w, 3] float32, normalised, to `logits` and `deltas`."""
    import tensorflow as tf

    try:
        import tf2onnx
    except ImportError as error:
        raise missing_extra("onnx", error) from None

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32, name="pixels")])
    def network(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        maps = detector.fpn(detector.backbone(pixels, training=False))
        return {"logits": detector.classification(maps), "deltas": detector.box(maps)}

    with quiet("tf2onnx"):
        model, _ = tf2onnx.convert.from_function(
            network, input_signature=network.input_signature, opset=onnx_graph.OPSET
        )
    model.ir_version = onnx_graph.IR_VERSION
    return model


def _rename(model: Any, names: Mapping[str, str]) -> None:
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*model.graph.input, *model.graph.output):
        value.name = names.get(value.name, value.name)


def _name_dimensions(model: Any) -> None:
    """Dimensions by their letters (`retina/ARCHITECTURE.md`, Words); the runtime infers those inside the graph."""
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = dimension.dim_param.rpartition("/")[2]


class OnnxRunner:
    """An ONNX export in onnxruntime, on the CPU unless `providers` says otherwise."""

    def __init__(self, path: Path, session: Any, document: Mapping[str, Any]):
        self.path, self.session, self.document = path, session, document
        self.class_names: tuple[str, ...] = tuple(document["class_names"])

    def detect(self, images: Sequence[np.ndarray | bytes | Path]) -> list[Detections]:
        """Detections of each image: uint8 RGB [H, W, 3], the bytes of a file, or a path; sizes may differ.

        Raises:
            RetinaError: an image is missing, damaged or of another type.
        """
        return [detections_of(self.run(pixels_of(image, self.document)[None]), self.class_names) for image in images]

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The model's own outputs for a batch uint8 [B, H, W, 3] of one size."""
        return dict(zip(_OUTPUTS, self.session.run(list(_OUTPUTS), {"images": images}), strict=True))

    def stages(self, image: np.ndarray | bytes | Path) -> dict[str, np.ndarray]:
        """The tensors between an image and its detections, named as in `retina.export.agreement.TENSORS`."""
        pixels = pixels_of(image, self.document)
        parts = open_parts(self.path)
        tensors = parts.network(parts.before(pixels[None]))
        canvas = np.zeros((*tensors["canvas"], 3), np.uint8)
        height, width = tensors["size"]
        canvas[:height, :width] = tensors["levels"][0]
        return {"pixels": pixels, "canvas": canvas, "logits": tensors["logits"][0], "deltas": tensors["deltas"][0]}


def open_onnx(path: str | Path, *, providers: Sequence[str] = ("CPUExecutionProvider",)) -> OnnxRunner:
    """Load an export.

    Args:
        providers: onnxruntime's execution providers, best first.

    Raises:
        RetinaError: onnxruntime is missing, the file is missing or damaged, or it is no export of retina.
    """
    path = Path(path)
    if not path.is_file():
        raise RetinaError(f"{path}: expected an ONNX file, there is none; check the path")
    session = _session(path, path, providers)
    properties = session.get_modelmeta().custom_metadata_map
    if _KEY not in properties:
        raise RetinaError(f"{path}: expected an export of retina, its metadata has no '{_KEY}'; use `retina export`")
    return OnnxRunner(path, session, json.loads(properties[_KEY]))


class Parts(NamedTuple):
    """An export cut in three. Each part takes and gives arrays by name.

    `before`: `images` [B, H, W, 3] uint8 to `pixels` [B, h, w, 3] (normalised), `levels` (the content before that,
    float32 of 0…255), `canvas`, `size` and `per_original`; `network`: adds `logits` and `deltas`; `after`: gives the
    detections.
    """

    before: Callable[[np.ndarray], dict[str, np.ndarray]]
    network: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
    after: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def open_parts(path: str | Path, *, providers: Sequence[str] = ("CPUExecutionProvider",)) -> Parts:
    """The three parts of an export, to time or to look at one by one; what `write_onnx` wrote, node for node."""
    try:
        import onnx
    except ImportError as error:
        raise missing_extra("onnx", error) from None
    path = Path(path)
    model = onnx.load(path)

    def part(prefix: str, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
        return _session(path, _cut(model, prefix, inputs, outputs), providers)

    geometry = [f"before/{name}" for name in _GEOMETRY]
    predictions = ["network/logits", "network/deltas"]
    front = ["before/pixels", "before/levels", *geometry]
    sessions = (
        part("before/", ["images"], front),
        part("network/", ["before/pixels"], predictions),
        part("behind/", [*predictions, *geometry], _OUTPUTS),
    )

    def run(session: Any, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        short = {name.rpartition("/")[2]: value for name, value in values.items()}
        fed = {value.name: short[value.name.rpartition("/")[2]] for value in session.get_inputs()}
        names = [value.name for value in session.get_outputs()]
        return dict(zip((name.rpartition("/")[2] for name in names), session.run(names, fed), strict=True))

    return Parts(
        lambda images: run(sessions[0], {"images": images}),
        lambda values: {**values, **run(sessions[1], values)},
        lambda values: run(sessions[2], values),
    )


def _cut(model: Any, prefix: str, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """The nodes and constants under a prefix of `_PREFIXES` as a model by themselves."""
    import onnx

    kinds = {
        "images": onnx.TensorProto.UINT8,
        "before/canvas": onnx.TensorProto.INT64,
        "before/size": onnx.TensorProto.INT64,
    }
    kinds |= dict.fromkeys(("labels", "num_detections"), onnx.TensorProto.INT32)

    def values(names: Sequence[str]) -> list[Any]:
        return [onnx.helper.make_tensor_value_info(n, kinds.get(n, onnx.TensorProto.FLOAT), None) for n in names]

    part = onnx.helper.make_graph(
        [node for node in model.graph.node if node.output[0].startswith(prefix) or node.output[0] in outputs],
        prefix.rstrip("/"),
        values(inputs),
        values(outputs),
        [tensor for tensor in model.graph.initializer if tensor.name.startswith(prefix)],
    )
    made = onnx.helper.make_model(part, opset_imports=model.opset_import, ir_version=model.ir_version)
    return made.SerializeToString()


def _session(path: Path, model: Path | bytes, providers: Sequence[str]) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_extra("onnx", error) from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model, options, providers=list(providers))
    except Exception as error:  # onnxruntime's exceptions have no common public base
        reason = " ".join(str(error).split())[:200]
        raise RetinaError(f"{path}: damaged or not an ONNX model ({reason}); export it again") from None
