"""Warm-up records against the wire format of protocol buffers, read by hand."""

import numpy as np
from tensorflow.core.framework.tensor_pb2 import TensorProto

from retina.export.saved_model import predict_record


def fields(message: bytes) -> list[tuple[int, bytes]]:
    """(number, content) of a message of length-delimited fields (protobuf.dev/programming-guides/encoding)."""

    def varint(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = message[at]
            value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
            if byte < 128:
                return value, at

    out, at = [], 0
    while at < len(message):
        tag, at = varint(at)
        assert tag & 7 == 2
        length, at = varint(at)
        out.append((tag >> 3, message[at : at + length]))
        at += length
    return out


def test_the_fields_of_a_record():
    # PredictionLog.predict_log = 6, PredictLog.request = 1, PredictRequest.model_spec = 1 and inputs = 2 (a map),
    # ModelSpec.signature_name = 3.
    image = b"\xff" * 300  # longer than one byte of a length can say
    ((number, log),) = fields(predict_record("serving_default", {"image_bytes": np.array([image], object)}))
    assert number == 6
    ((number, request),) = fields(log)
    assert number == 1
    (model, entry) = fields(request)
    assert (model[0], fields(model[1])) == (1, [(3, b"serving_default")])
    assert entry[0] == 2
    key, value = fields(entry[1])
    assert key == (1, b"image_bytes") and value[0] == 2
    tensor = TensorProto.FromString(value[1])
    assert list(tensor.string_val) == [image] and tensor.tensor_shape.dim[0].size == 1


def test_a_request_without_inputs():
    assert predict_record("s", {}) == b"\x32\x07\x0a\x05\x0a\x03\x1a\x01s"
