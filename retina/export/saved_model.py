"""SavedModels written, and run: photographs in, detections out, with TensorFlow alone."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retina import config as configuration
from retina.data.headers import is_tiff
from retina.data.images import load_image
from retina.errors import RetinaError
from retina.export.description import as_described, check_backend, describe, detections_of, pixels_of, portable
from retina.export.serving import Serving
from retina.files import write_text
from retina.inference import Detections, Predictor
from retina.startup import require_tensorflow

DESCRIPTION, CONFIG = "retina.json", "config.yaml"
WARM_UP_FILE = "tf_serving_warmup_requests"  # in `assets.extra`

# Field numbers of tensorflow_serving/apis: prediction_log.proto, predict.proto and model.proto.
_LOG_PREDICT, _PREDICT_REQUEST, _REQUEST_MODEL, _REQUEST_INPUTS, _MODEL_SIGNATURE = 6, 1, 1, 2, 3
_KEY, _VALUE = 1, 2  # of a map's entries

_ABOUT = {
    "serving_default": "image_bytes [B] (JPEG, PNG, GIF, BMP or WebP of any size) to detections",
    "images": "images uint8 [B, H, W, 3] RGB of any size to detections",
    "raw": "canvas uint8 [B, H, W, 3] and size [B, 2] (h, w of its content) to logits and deltas",
    "serving_with_options": "serving_default with score_threshold, nms_iou and max_detections",
    "images_with_options": "images with score_threshold, nms_iou and max_detections",
}
_OUTPUTS = (
    "boxes [B, D, 4] xyxy in the image's pixels, scores [B, D], labels [B, D] (0 to K-1), label_names [B, D], "
    "num_detections [B], readable [B]: by falling score; slots from num_detections on are 0 and ''; an image that "
    "can't be decoded has none and is not readable"
)


def write_saved_model(
    predictor: Predictor,
    folder: Path,
    *,
    category_ids: Sequence[int] | None = None,
    notes: Mapping[str, Any] | None = None,
    serving: type[Serving] = Serving,
) -> None:
    """Write a SavedModel that scores as the predictor does, bit for bit on the same machine.

    It computes in the precision that the run was trained in. `assets/` holds `retina.json` (class names, category ids,
    settings, versions, what the signatures mean) and the training's `config.yaml`; `assets.extra/` what TensorFlow
    Serving runs once when it loads the model.

    Args:
        folder: a new folder.
        category_ids: [K] the data's own ids; 0…K-1 if left out.
        notes: more for `retina.json`; JSON values.
        serving: the graph; another in tests.

    Raises:
        RetinaError: the backend is not TensorFlow, or the folder is not empty.
    """
    import tensorflow as tf

    check_backend("saved_model")
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RetinaError(f"{folder}: expected a new folder for the SavedModel, it is not empty; choose another one")
    about = {"signatures": _ABOUT, "outputs": _OUTPUTS, **(notes or {})}
    document = describe(predictor, category_ids, about)
    with tempfile.TemporaryDirectory() as temporary:
        texts = {DESCRIPTION: json.dumps(document, indent=2), CONFIG: configuration.to_yaml(portable(predictor.config))}
        for name, text in texts.items():
            write_text(Path(temporary) / name, text)
        graph = serving(predictor.detector, predictor.config, [Path(temporary) / name for name in texts])
        tf.saved_model.save(graph.module(), str(folder), signatures=graph.signatures())
    _write_warm_up(folder / "assets.extra" / WARM_UP_FILE, predictor.config)


def is_saved_model(path: Path) -> bool:
    """Return whether a SavedModel lies in the folder."""
    return (path / "saved_model.pb").is_file()


def read_description(folder: Path) -> dict[str, Any]:
    """Return `assets/retina.json` of a SavedModel.

    Raises:
        RetinaError: it is missing or damaged.
    """
    file = folder / "assets" / DESCRIPTION
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        document = None
    if not isinstance(document, dict) or not {"class_names", "category_ids", "config"} <= set(document):
        raise RetinaError(f"{file}: expected the description of an export, it is missing or damaged; export again")
    return document


class SavedModel:
    """A loaded SavedModel as a `retina.export.runner.Runner`."""

    def __init__(self, path: Path):
        import tensorflow as tf

        self.path = path
        document = read_description(path)
        self.document = document
        self.class_names: tuple[str, ...] = tuple(document["class_names"])
        try:
            self.module = tf.saved_model.load(str(path))
            self._bytes, self._images = (self.module.signatures[name] for name in ("serving_default", "images"))
        except (OSError, ValueError, KeyError, tf.errors.OpError) as error:
            reason = str(error).splitlines()[0]
            raise RetinaError(
                f"{path}: expected a SavedModel of retina, cannot load it: {reason}; export again"
            ) from None

    def detect(self, images: Sequence[np.ndarray | bytes | str | Path]) -> list[Detections]:
        """Detect in one image at a time, as `Predictor.predict` does.

        Raises:
            RetinaError: a file is missing or no image, or an array is no uint8 [H, W, 3].
        """
        return [self._detected(image) for image in images]

    def stages(self, image: bytes) -> dict[str, np.ndarray]:
        """The tensors between an encoded photograph and its detections: `retina.export.agreement.TENSORS`."""
        import tensorflow as tf

        return {name: value.numpy() for name, value in self.module.stages(tf.constant([image])).items()}

    def _detected(self, image: np.ndarray | bytes | str | Path) -> Detections:
        import tensorflow as tf

        if isinstance(image, np.ndarray):
            return detections_of(
                self._images(images=tf.constant(pixels_of(image, self.document)[None])), self.class_names
            )
        try:
            encoded = image if isinstance(image, bytes) else Path(image).read_bytes()
        except OSError:
            encoded = b""  # the reader below says why
        outputs = self._bytes(image_bytes=tf.constant([encoded]))
        if not bool(outputs["readable"][0]):
            pixels = load_image(as_described(image if isinstance(image, bytes) else str(image), self.document))
            if is_tiff(encoded):  # TensorFlow reads none
                return self._detected(pixels)
            raise RetinaError(f"{self.path}: it could not decode an image that retina can; export again")
        return detections_of(outputs, self.class_names)


def open_saved_model(path: str | Path) -> SavedModel:
    """Load a SavedModel that `write_saved_model` wrote.

    Raises:
        RetinaError: it is none, or damaged, or TensorFlow is not installed.
    """
    path = Path(path)
    require_tensorflow(f"{path}: a SavedModel")
    if not is_saved_model(path):
        raise RetinaError(
            f"{path}: expected a SavedModel folder, it has no saved_model.pb; make one with retina export"
        )
    return SavedModel(path)


def _write_warm_up(file: Path, config: configuration.Config) -> None:
    """Write requests for a landscape and a portrait of the trained size, which TensorFlow Serving replays when it loads
    the model, so that the first user does not wait for it."""
    import tensorflow as tf
    from PIL import Image

    short, long = config.data.resize.short, config.data.resize.long
    shapes = sorted({(short, min(long, short * 4 // 3)), (min(long, short * 4 // 3), short)})
    file.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(file)) as writer:
        for height, width in shapes:
            encoded = io.BytesIO()
            Image.new("RGB", (width, height), (124, 116, 104)).save(encoded, "JPEG")
            writer.write(predict_record("serving_default", {"image_bytes": np.array([encoded.getvalue()], object)}))


def predict_record(signature: str, inputs: Mapping[str, np.ndarray]) -> bytes:
    """A `PredictionLog` with one `PredictRequest` for a signature, ready for a TFRecord.

    These few fields of the messages are encoded here, since the package that holds the message classes brings gRPC with
    it.

    Args:
        inputs: arrays by the names of the signature's inputs; strings as an object array of bytes.
    """
    import tensorflow as tf

    request = _field(_REQUEST_MODEL, _field(_MODEL_SIGNATURE, signature.encode()))
    for name, array in inputs.items():
        tensor = tf.make_tensor_proto(array).SerializeToString()
        request += _field(_REQUEST_INPUTS, _field(_KEY, name.encode()) + _field(_VALUE, tensor))
    return _field(_LOG_PREDICT, _field(_PREDICT_REQUEST, request))


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field (protobuf.dev/programming-guides/encoding)."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
