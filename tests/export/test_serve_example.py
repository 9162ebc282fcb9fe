"""scripts/serve_example.py against a stand-in for TensorFlow Serving that runs the SavedModel itself."""

import base64
import io
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from tests.export.small import assert_same, noise
from tests.scripts import SCRIPTS, load_script

if keras.backend.backend() != "tensorflow":
    pytest.skip("a SavedModel is written on TensorFlow", allow_module_level=True)

import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.protobuf import saved_model_pb2

from retina.export.saved_model import open_saved_model
from retina.inference import Detections

SCRIPT = SCRIPTS / "serve_example.py"
client = load_script("serve_example")


def encoded(height: int, width: int, kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(noise(height, width)).save(out, kind)
    return out.getvalue()


class Model:
    """Answers as TensorFlow Serving does: https://www.tensorflow.org/tfx/serving/api_rest."""

    def __init__(self, folder: Path):
        saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
        definitions = saved.meta_graphs[0].signature_def
        tree = {k: json_format.MessageToDict(v, preserving_proto_field_name=True) for k, v in definitions.items()}
        self.metadata = {"model_spec": {"name": "retina"}, "metadata": {"signature_def": {"signature_def": tree}}}
        self.signatures = tf.saved_model.load(str(folder)).signatures

    def predict(self, body: dict) -> dict:
        call = self.signatures[body["signature_name"]]
        columns = {}
        for name, values in body["inputs"].items():
            raw = [base64.b64decode(v["b64"], validate=True) if isinstance(v, dict) else v for v in values]
            columns[name] = tf.constant(raw, tf.string)
        found = {name: value.numpy() for name, value in call(**columns).items()}
        return {"outputs": {name: _plain(value) for name, value in found.items()}}


def _plain(value: np.ndarray) -> list:
    if value.dtype == object:
        return np.vectorize(bytes.decode, otypes=[object])(value).tolist()
    return value.tolist()


@pytest.fixture(scope="module")
def model(saved_model_folder) -> Model:
    return Model(saved_model_folder)


@pytest.fixture(scope="module")
def address(model):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer(200, model.metadata) if self.path.endswith("/retina/metadata") else self.answer(404, {})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.answer(200, model.predict(body)) if self.path.endswith("/retina:predict") else self.answer(404, {})

        def answer(self, status: int, tree: dict):
            data = json.dumps(tree).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/models/retina"
    server.shutdown()
    thread.join()
    server.server_close()


def test_no_image_and_what_is_none(model):
    signature = client.signature(model.metadata)
    assert client.detections(model.predict(client.request(signature, []))) == []
    answers = client.detections(model.predict(client.request(signature, [b"", encoded(40, 50, "PNG"), b"no image"])))
    assert [answer["readable"] for answer in answers] == [False, True, False]
    assert answers[0]["detections"] == answers[2]["detections"] == [] != answers[1]["detections"]


def test_the_request_is_the_signatures(model):
    body = client.request(client.signature(model.metadata), [b"\x00\xffab"])
    assert body == {"signature_name": "serving_default", "inputs": {"image_bytes": [{"b64": "AP9hYg=="}]}}
    assert json.loads(json.dumps(body)) == body


def test_detections_are_those_of_the_savedmodel(saved_model_folder, model):
    images = [encoded(48, 64, "PNG"), encoded(100, 75, "JPEG"), encoded(20, 90, "PNG")]
    body = json.loads(json.dumps(client.request(client.signature(model.metadata), images)))
    answers = client.detections(json.loads(json.dumps(model.predict(body))))
    expected = open_saved_model(saved_model_folder).detect(images)
    assert sum(map(len, expected)) > 20
    for answer, wanted in zip(answers, expected, strict=True):
        found = answer["detections"]
        boxes = np.array([one["box"] for one in found], np.float32).reshape(-1, 4)
        scores, labels = (np.array([one[name] for one in found]) for name in ("score", "label"))
        # An image alone and one in a batch go through the same network, within its rounding.
        assert_same(Detections(boxes, scores, labels, tuple(one["name"] for one in found)), wanted)


def test_over_http(address, tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(48, 64, "PNG"))
    (tmp_path / "b.txt").write_text("no image")
    command = [sys.executable, str(SCRIPT), address, "a.png", "b.txt", "--score", "0.8"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    first, second = map(json.loads, done.stdout.splitlines())
    everything, _ = client.ask(address, [(tmp_path / "a.png").read_bytes(), b"no image"])
    kept = [one for one in everything["detections"] if one["score"] >= 0.8]
    assert 0 < len(kept) < len(everything["detections"])
    assert first == {"image": "a.png", "readable": True, "detections": kept}
    assert second == {"image": "b.txt", "readable": False, "detections": []}


def test_what_goes_wrong_is_one_line(address, model, tmp_path):
    with pytest.raises(client.ServingError, match="expected a signature 'other'"):
        client.signature(model.metadata, "other")
    with pytest.raises(client.ServingError, match="expected one input of type DT_STRING, got {'images': 'DT_UINT8'}"):
        client.request(client.signature(model.metadata, "images"), [])
    with pytest.raises(client.ServingError, match="raw: expected one input"):
        client.request(client.signature(model.metadata, "raw"), [], "raw")
    with pytest.raises(client.ServingError, match="expected outputs, got Unknown model"):
        client.detections({"error": "Unknown model"})
    with pytest.raises(client.ServingError, match="got status 404"):
        client.ask(address.replace("retina", "other"), [b""])
    with pytest.raises(client.ServingError, match="starts with http"):
        client.ask("file:" + "//x", [b""])
    command = [sys.executable, str(SCRIPT), address, "absent.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "absent.png" in done.stderr
