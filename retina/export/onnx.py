"""ONNX exports: image tensor in, detections out, for onnxruntime and whatever else reads the format.

The network is converted by tf2onnx from the TensorFlow graph (Keras' `export(format="onnx")` takes the same way),
with any canvas and any batch; what stands around it is written by hand (`onnx_graph`), since a converted while-loop
would suppress a hundred boxes one at a time. Class names, category ids and settings travel in `metadata_props`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from retina import config
from retina.errors import RetinaError
from retina.export import onnx_graph
from retina.export.canvas import lay_out
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
from retina.models.detector import Detector, Sections

Precision = Literal["float32", "float16"]
Runtime = Literal["onnxruntime", "openvino"]

_KEY = "retina"
# Part of the format: exports that are there are cut into the same parts.
_PREFIXES = ("before/", "network/", "behind/")
_GEOMETRY = ("given", "canvas", "size", "per_original")
_OUTPUTS = ("boxes", "scores", "labels", "num_detections")
# What float16 is too narrow for: statistics of group normalisation, which squares and adds up whole maps.
_FLOAT32_OPERATIONS = ["ReduceMean", "ReduceSum", "Pow", "Sqrt", "Reciprocal", "Div", "Max"]
_ABOUT = "uint8 RGB images [B, H, W, 3] to boxes (xyxy pixels of the image), scores and labels"
_ABOUT_RAW = "canvas [B, h, w, 3] (float32 RGB levels 0 to 255, padded in the mean colour) to logits and deltas"
_UINT8, _FLOAT, _INT32, _INT64 = 2, 1, 6, 7  # TensorProto.DataType
# Of the tensors that an export is cut at, and of its inputs and outputs. OpenVINO wants to know ranks and channels.
_TYPES: dict[str, tuple[int, list[int | None]]] = {
    "images": (_UINT8, [None, None, None, 3]),
    "levels": (_FLOAT, [None, None, None, 3]),
    "pixels": (_FLOAT, [None, None, None, 3]),
    "given": (_INT64, [3]),
    "canvas": (_INT64, [2]),
    "size": (_INT64, [2]),
    "per_original": (_FLOAT, [4]),
    "logits": (_FLOAT, [None, None, None]),
    "deltas": (_FLOAT, [None, None, 4]),
    "boxes": (_FLOAT, [None, None, 4]),
    "scores": (_FLOAT, [None, None]),
    "labels": (_INT32, [None, None]),
    "num_detections": (_INT32, [None]),
}


def write_onnx(
    predictor: Predictor,
    path: Path,
    *,
    category_ids: Sequence[int] | None = None,
    precision: Precision = "float32",
    raw: bool = False,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write one file that takes images and gives detections.

    Input `images` uint8 [B, H, W, 3] (RGB, any B, H, W); outputs `boxes` [B, D, 4] float32 xyxy in the images' own
    pixels, `scores` [B, D] float32, `labels` [B, D] int32, by falling score, and `num_detections` [B] int32: what
    stands after them is zero. Images without a row or a column have no detections.

    Args:
        precision: of the network, whatever the run was trained in; resizing, boxes and suppression stay float32.
        raw: the network alone: `canvas` float32 [B, h, w, 3], laid out as `retina.export.canvas` does, to `logits`
            [B, A, K] and `deltas` [B, A, 4].
        category_ids: [K] the data's own ids; 0…K-1 if left out.
        notes: more for the metadata; JSON values.

    Raises:
        RetinaError: the backend is not TensorFlow, suppression is soft, resizing antialiased, or tf2onnx is missing.
    """
    check_backend("onnx")
    check_expressible("onnx", predictor.detector.sections.inference, predictor.config.data.resize)
    try:
        import onnx
    except ImportError as error:
        raise missing_extra("onnx", error) from None
    document = {**describe(predictor, category_ids, notes), "precision": precision, "raw": raw}
    detector = float32_detector(predictor)
    network = _network(detector, precision)
    whole = _raw(network, detector) if raw else _whole(network, detector, predictor.config.data.resize)
    _name_dimensions(whole)
    # Merged lists of all three, and domains of which no node comes.
    del whole.opset_import[:]
    whole.opset_import.append(onnx.helper.make_opsetid("", onnx_graph.OPSET))
    whole.graph.name, whole.producer_name = "detector", "retina"
    whole.doc_string = f"RetinaNet: {_ABOUT_RAW if raw else _ABOUT}"
    onnx.helper.set_model_props(whole, {_KEY: json.dumps(document), "class_names": json.dumps(document["class_names"])})
    onnx.checker.check_model(whole, full_check=True)
    with written(Path(path)) as temporary:
        temporary.write_bytes(whole.SerializeToString())


def _whole(network: Any, detector: Detector, resize: config.Resize) -> Any:
    """The network with all that is around it."""
    from onnx import compose, parser

    sections = detector.sections
    texts = (
        onnx_graph.before_network(resize, sections.model),
        onnx_graph.after_network(sections, detector.fpn.levels, len(detector.class_names)),
    )
    before, after = (parser.parse_model(text) for text in texts)
    before, network, after = (
        compose.add_prefix(model, prefix) for model, prefix in zip((before, network, after), _PREFIXES, strict=True)
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
    return whole


def _raw(network: Any, detector: Detector) -> Any:
    """The network with normalisation before it."""
    from onnx import compose, parser

    before = parser.parse_model(onnx_graph.normalised_canvas(detector.sections.model))
    before, network = (
        compose.add_prefix(model, prefix) for model, prefix in zip((before, network), _PREFIXES[:2], strict=True)
    )
    raw = compose.merge_models(before, network, io_map=[("before/pixels", "network/pixels")])
    _rename(raw, {"before/canvas": "canvas", "network/logits": "logits", "network/deltas": "deltas"})
    for value in raw.graph.output:
        batch, anchors, width = value.type.tensor_type.shape.dim
        batch.dim_param, anchors.dim_param = "B", "A"
        width.dim_value = len(detector.class_names) if value.name == "logits" else 4
    return raw


def _network(detector: Any, precision: Precision) -> Any:
    """The network as an ONNX model: `pixels` [B, h, w, 3] float32, normalised, to `logits` and `deltas` in float32."""
    import tensorflow as tf

    try:
        import tf2onnx
    except ImportError as error:
        raise missing_extra("onnx", error) from None

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32, name="pixels")], autograph=False)
    def network(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        maps = detector.fpn(detector.backbone(pixels, training=False))
        return {"logits": detector.classification(maps), "deltas": detector.box(maps)}

    with quiet("tf2onnx"):
        model, _ = tf2onnx.convert.from_function(
            network, input_signature=network.input_signature, opset=onnx_graph.OPSET
        )
    _slice_by_integers(model.graph)
    if precision == "float16":
        from onnxruntime.transformers.float16 import convert_float_to_float16
        from onnxruntime.transformers.onnx_model import OnnxModel

        squares = [node.name for node in model.graph.node if node.op_type == "Mul" and len(set(node.input)) == 1]
        model = convert_float_to_float16(
            model, keep_io_types=True, op_block_list=_FLOAT32_OPERATIONS, node_block_list=squares
        )
        OnnxModel(model).topological_sort()  # casts of the input come last
    model.ir_version = onnx_graph.IR_VERSION
    return model


def _slice_by_integers(graph: Any) -> None:
    """Let `Max` compare integers where tf2onnx casts the ends of a slice to floats for it, with ±1e9 for what is open:
    neither ends nor limits survive float16."""
    from onnx import numpy_helper

    makers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        maximum = makers.get(node.input[0]) if node.op_type == "Cast" and node.attribute[0].i == _INT32 else None
        if maximum is None or maximum.op_type != "Max":
            continue
        limits = [name for name in maximum.input if name in constants]
        casts = [makers[name] for name in maximum.input if name in makers and makers[name].op_type == "Cast"]
        if len(limits) != 1 or len(casts) != 1:
            continue
        whole = numpy_helper.to_array(constants[limits[0]]).astype(np.int32)
        if f"{limits[0]}_int32" not in constants:
            graph.initializer.append(numpy_helper.from_array(whole, f"{limits[0]}_int32"))
            constants[f"{limits[0]}_int32"] = graph.initializer[-1]
        maximum.input[:] = [casts[0].input[0], f"{limits[0]}_int32"]
    _drop_unused(graph)


def _drop_unused(graph: Any) -> None:
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    nodes = [node for node in graph.node if used.intersection(node.output)]
    tensors = [tensor for tensor in graph.initializer if tensor.name in used]
    for field, values in ((graph.node, nodes), (graph.initializer, tensors)):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(copies)


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


class _Compiled(NamedTuple):
    """A model in a runtime: its tensors' names, its metadata, and a function of its inputs by name."""

    inputs: tuple[str, ...]
    metadata: Mapping[str, str]
    run: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


class OnnxRunner:
    """An ONNX export in one of its runtimes: `run` does all of it, `parts` opens it in pieces."""

    def __init__(
        self,
        path: Path,
        document: Mapping[str, Any],
        run: Callable[[np.ndarray], dict[str, np.ndarray]],
        parts: Callable[[], Parts],
    ):
        self.path, self.document = path, document
        self._run, self._parts = run, parts
        self.class_names: tuple[str, ...] = tuple(document["class_names"])

    def detect(self, images: Sequence[np.ndarray | bytes | Path]) -> list[Detections]:
        """Detections of each image: uint8 RGB [H, W, 3], the bytes of a file, or a path; sizes may differ.

        Raises:
            RetinaError: an image is missing, damaged or of another type.
        """
        return [detections_of(self.run(pixels_of(image, self.document)[None]), self.class_names) for image in images]

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The model's own outputs for a batch uint8 [B, H, W, 3] of one size."""
        return self._run(images)

    def stages(self, image: np.ndarray | bytes | Path) -> dict[str, np.ndarray]:
        """The tensors between an image and its detections, named as in `retina.export.agreement.TENSORS`."""
        pixels = pixels_of(image, self.document)
        parts = self._parts()
        tensors = parts.network(parts.before(pixels[None]))
        canvas = np.zeros((*tensors["canvas"], 3), np.uint8)
        height, width = tensors["size"]
        canvas[:height, :width] = tensors["levels"][0]
        return {"pixels": pixels, "canvas": canvas, "logits": tensors["logits"][0], "deltas": tensors["deltas"][0]}


def open_onnx(
    path: str | Path, *, runtime: Runtime = "onnxruntime", providers: Sequence[str] = ("CPUExecutionProvider",)
) -> OnnxRunner:
    """Load an export.

    Args:
        runtime: OpenVINO computes on the CPU, in float32 also where it would take bfloat16 by itself.
        providers: onnxruntime's execution providers, best first.

    Raises:
        RetinaError: the runtime is missing, the file is missing or damaged, or it is no export of retina.
    """
    path = Path(path)
    if not path.is_file():
        raise RetinaError(f"{path}: expected an ONNX file, there is none; check the path")
    compiled = _compiled(path, path, runtime, providers)
    if _KEY not in compiled.metadata:
        raise RetinaError(f"{path}: expected an export of retina, its metadata has no '{_KEY}'; use `retina export`")
    document = json.loads(compiled.metadata[_KEY])
    if document.get("raw"):
        parts = _around_raw(path, compiled, document, runtime, providers)
        return OnnxRunner(path, document, lambda x: parts.after(parts.network(parts.before(x))), lambda: parts)
    opened = partial(open_parts, path, runtime=runtime, providers=providers)
    return OnnxRunner(path, document, lambda images: compiled.run({"images": images}), opened)


class Parts(NamedTuple):
    """An export cut in three. Each part takes and gives arrays by name.

    `before`: `images` [B, H, W, 3] uint8 to `pixels` [B, h, w, 3] (normalised), `levels` (the content before that,
    float32 of 0…255), `canvas`, `size` and `per_original`; `network`: adds `logits` and `deltas`; `after`: gives the
    detections.
    """

    before: Callable[[np.ndarray], dict[str, np.ndarray]]
    network: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
    after: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def open_parts(
    path: str | Path, *, runtime: Runtime = "onnxruntime", providers: Sequence[str] = ("CPUExecutionProvider",)
) -> Parts:
    """The three parts of an export, to time or to look at one by one; what `write_onnx` wrote, node for node."""
    try:
        import onnx
    except ImportError as error:
        raise missing_extra("onnx", error) from None
    path = Path(path)
    model = onnx.load(path)
    document = json.loads(next((entry.value for entry in model.metadata_props if entry.key == _KEY), "{}"))
    if document.get("raw"):
        return _around_raw(path, _compiled(path, path, runtime, providers), document, runtime, providers)

    def part(prefix: str, inputs: Sequence[str], outputs: Sequence[str]) -> _Compiled:
        return _compiled(path, _cut(model, prefix, inputs, outputs), runtime, providers)

    # Exports of before have no `given`.
    names = {name for node in model.graph.node for name in node.output}
    geometry = [f"before/{name}" for name in _GEOMETRY if f"before/{name}" in names]
    predictions = ["network/logits", "network/deltas"]
    front = ["before/pixels", "before/levels", *geometry]
    compiled = (
        part("before/", ["images"], front),
        part("network/", ["before/pixels"], predictions),
        part("behind/", [*predictions, *geometry], _OUTPUTS),
    )

    def run(part: _Compiled, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = part.run({name: values[name.rpartition("/")[2]] for name in part.inputs})
        return {name.rpartition("/")[2]: value for name, value in outputs.items()}

    return Parts(
        lambda images: run(compiled[0], {"images": images}),
        lambda values: {**values, **run(compiled[1], values)},
        lambda values: run(compiled[2], values),
    )


def _around_raw(
    path: Path, network: _Compiled, document: Mapping[str, Any], runtime: Runtime, providers: Sequence[str]
) -> Parts:
    """What lies around a network alone: its images laid out with NumPy, its outputs decoded as in a whole export."""
    from onnx import parser

    settings = config.parse(document["config"], str(path))
    sections = Sections(settings.model, settings.anchors, settings.assignment, settings.loss, settings.inference)
    levels = range(settings.model.fpn.min_level, settings.model.fpn.max_level + 1)
    text = onnx_graph.after_network(sections, levels, len(document["class_names"]))
    decoding = _compiled(path, parser.parse_model(text).SerializeToString(), runtime, providers)

    def before(images: np.ndarray) -> dict[str, np.ndarray]:
        laid = [lay_out(image, settings.data.resize, settings.model.pixel_mean) for image in images]
        pixels, (height, width) = np.stack([canvas.pixels for canvas in laid]), laid[0].size
        return {
            "pixels": pixels,
            "levels": pixels[:, :height, :width],
            "given": np.array(images.shape[:3], np.int64),
            "canvas": np.array(pixels.shape[1:3], np.int64),
            "size": laid[0].size.astype(np.int64),
            "per_original": np.tile(np.float32(1) / laid[0].scale[::-1], 2),
        }

    return Parts(
        before,
        lambda values: {**values, **network.run({"canvas": values["pixels"]})},
        lambda values: decoding.run({name: values[name] for name in decoding.inputs}),
    )


def _cut(model: Any, prefix: str, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """The nodes and constants under a prefix of `_PREFIXES` as a model by themselves."""
    import onnx

    def values(names: Sequence[str]) -> list[Any]:
        known = ((name, *_TYPES[name.rpartition("/")[2]]) for name in names)
        return [onnx.helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in known]

    part = onnx.helper.make_graph(
        [node for node in model.graph.node if node.output[0].startswith(prefix) or node.output[0] in outputs],
        prefix.rstrip("/"),
        values(inputs),
        values(outputs),
        [tensor for tensor in model.graph.initializer if tensor.name.startswith(prefix)],
    )
    made = onnx.helper.make_model(part, opset_imports=model.opset_import, ir_version=model.ir_version)
    return made.SerializeToString()


def _compiled(path: Path, model: Path | bytes, runtime: Runtime, providers: Sequence[str]) -> _Compiled:
    try:
        return _in_openvino(model) if runtime == "openvino" else _in_onnxruntime(model, providers)
    except ImportError as error:
        raise missing_extra("openvino" if runtime == "openvino" else "onnx", error) from None
    except Exception as error:  # neither runtime's exceptions have a common public base
        reason = " ".join(str(error).split())[:200]
        raise RetinaError(f"{path}: damaged or not an ONNX model ({reason}); export it again") from None


def _in_onnxruntime(model: Path | bytes, providers: Sequence[str]) -> _Compiled:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=list(providers))
    names = [value.name for value in session.get_outputs()]
    return _Compiled(
        tuple(value.name for value in session.get_inputs()),
        session.get_modelmeta().custom_metadata_map,
        lambda inputs: dict(zip(names, session.run(names, inputs), strict=True)),
    )


def _in_openvino(model: Path | bytes) -> _Compiled:
    import openvino

    read = openvino.Core().read_model(model)
    metadata = ["framework", _KEY]
    compiled = openvino.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return _Compiled(
        tuple(value.any_name for value in compiled.inputs),
        {_KEY: read.get_rt_info(metadata).astype(str)} if read.has_rt_info(metadata) else {},
        # A tensor that is an input of one part and an output of another has the names of both.
        lambda inputs: {name: value for output, value in compiled(inputs).items() for name in output.names},
    )
