#!/usr/bin/env python
"""A client for an exported SavedModel behind TensorFlow Serving's REST API; it needs nothing but Python.

Export a run, and serve it. TensorFlow Serving wants a folder of numbered versions, so that the export is mounted as
version 1 (`$PWD`: Docker takes absolute paths only):

    retina export runs/digits --format saved_model --out runs/digits/export/saved_model
    docker run --rm -p 8501:8501 -e MODEL_NAME=retina \\
        --mount type=bind,source="$PWD/runs/digits/export/saved_model",target=/models/retina/1 tensorflow/serving

then ask it, from anywhere:

    scripts/serve_example.py http://localhost:8501/v1/models/retina photo.jpg other.png

It reads the model's signature from the server (`GET …/metadata`), sends the files as they are, base64 under "b64"
(`POST …:predict`, by columns, so that images of any sizes share a request), and prints one JSON object a file, with
boxes as xyxy in the image's pixels. A file that is no image has no detections and `"readable": false`; the others of
its request are not harmed.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SIGNATURE = "serving_default"
OUTPUTS = ("boxes", "scores", "labels", "label_names", "num_detections", "readable")


class ServingError(Exception):
    """One line for the user."""


def signature(metadata: dict[str, Any], name: str = SIGNATURE) -> dict[str, Any]:
    """`inputs` and `outputs` of a signature in what `GET …/metadata` answers."""
    try:
        return metadata["metadata"]["signature_def"]["signature_def"][name]
    except (KeyError, TypeError):
        raise ServingError(
            f"metadata: expected a signature '{name}', there is none; is this an export of retina?"
        ) from None


def request(signature: dict[str, Any], images: Sequence[bytes], name: str = SIGNATURE) -> dict[str, Any]:
    """The body of a predict request: the signature's one input of strings gets the encoded images."""
    inputs = signature["inputs"]
    strings = [key for key, tensor in inputs.items() if tensor["dtype"] == "DT_STRING"]
    if len(inputs) != 1 or len(strings) != 1:
        kinds = {key: tensor["dtype"] for key, tensor in inputs.items()}
        raise ServingError(f"signature {name}: expected one input of type DT_STRING, got {kinds}")
    missing = sorted(set(OUTPUTS) - set(signature["outputs"]))
    if missing:
        raise ServingError(
            f"signature {name}: expected the outputs {', '.join(OUTPUTS)}; {', '.join(missing)} is missing"
        )
    encoded = [{"b64": base64.b64encode(image).decode("ascii")} for image in images]
    return {"signature_name": name, "inputs": {strings[0]: encoded}}


def detections(response: dict[str, Any]) -> list[dict[str, Any]]:
    """`readable` and `detections`, by falling score, of each image of a predict request."""
    if "outputs" not in response:
        raise ServingError(f"predict: expected outputs, got {response.get('error', sorted(response))}")
    columns = response["outputs"]
    answers = []
    for row, count in enumerate(columns["num_detections"]):
        boxes, scores, labels, names = (
            columns[name][row][:count] for name in ("boxes", "scores", "labels", "label_names")
        )
        rows = zip(names, labels, scores, boxes, strict=True)
        listed = [{"name": name, "label": label, "score": score, "box": box} for name, label, score, box in rows]
        answers.append({"readable": bool(columns["readable"][row]), "detections": listed})
    return answers


def ask(address: str, images: Sequence[bytes], timeout: float = 60.0) -> list[dict[str, Any]]:
    """`detections` of encoded images from the model at `address` (`http://host:8501/v1/models/NAME`)."""
    address = address.rstrip("/")
    body = request(signature(_call(f"{address}/metadata", None, timeout)), images)
    return detections(_call(f"{address}:predict", body, timeout))


def _call(url: str, body: dict[str, Any] | None, timeout: float) -> dict[str, Any]:
    if not url.startswith(("http://", "https://")):
        raise ServingError(f"{url}: expected an address that starts with http:// or https://")
    data = None if body is None else json.dumps(body).encode()
    sent = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310 - checked above
    try:
        with urllib.request.urlopen(sent, timeout=timeout) as answer:  # noqa: S310
            return json.load(answer)
    except urllib.error.HTTPError as error:
        said = " ".join(error.read().decode(errors="replace").split())[:300]
        raise ServingError(f"{url}: expected an answer, got status {error.code}: {said}") from None
    except (OSError, ValueError) as error:
        raise ServingError(f"{url}: expected a JSON answer, got none ({error}); is the server up?") from None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="for instance http://localhost:8501/v1/models/retina")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--score", type=float, default=0.4, help="leave out detections below this score")
    args = parser.parse_args()
    try:
        files = [path.read_bytes() for path in args.images]
        answers = ask(args.address, files)
    except (OSError, ServingError) as error:
        print(f"serve_example: {error}", file=sys.stderr)
        return 2
    for path, answer in zip(args.images, answers, strict=True):
        sure = [detection for detection in answer["detections"] if detection["score"] >= args.score]
        print(json.dumps({"image": str(path), **answer, "detections": sure}, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
