"""Requests that TensorFlow Serving replays when it loads a model, so that the first user does not wait for it.

The records are `tensorflow.serving.PredictionLog` messages. Their few fields are encoded here, since the package that
holds the message classes brings gRPC with it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

WARM_UP_FILE = "tf_serving_warmup_requests"
"""Its name inside `assets.extra/`."""

# Field numbers of tensorflow_serving/apis: prediction_log.proto, predict.proto and model.proto.
_LOG_PREDICT, _PREDICT_REQUEST, _REQUEST_MODEL, _REQUEST_INPUTS, _MODEL_SIGNATURE = 6, 1, 1, 2, 3
_KEY, _VALUE = 1, 2  # of a map's entries


def predict_record(signature: str, inputs: Mapping[str, np.ndarray]) -> bytes:
    """A `PredictionLog` with one `PredictRequest` for a signature, ready for a TFRecord.

    Args:
        inputs: arrays by the names of the signature's inputs; strings as an object array of bytes.
    """
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
