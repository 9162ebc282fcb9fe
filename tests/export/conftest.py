"""One small detector and its exports, each written once for all tests that only read it."""

from pathlib import Path

import pytest

ABOUT = {"category_ids": [7, 3, 90], "notes": {"run": "made up"}}


@pytest.fixture(scope="session")
def small_predictor():
    from tests.export.small import make_predictor

    return make_predictor()


@pytest.fixture(scope="session")
def onnx_file(small_predictor, tmp_path_factory) -> Path:
    for name in ("onnx", "onnxruntime", "tf2onnx"):
        pytest.importorskip(name)
    from retina.export.onnx import write_onnx

    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    write_onnx(small_predictor, path, **ABOUT)
    return path


@pytest.fixture(scope="session")
def litert_file(small_predictor, tmp_path_factory) -> Path:
    pytest.importorskip("ai_edge_litert")
    from retina.export.litert import write_litert

    path = tmp_path_factory.mktemp("litert") / "model.tflite"
    write_litert(small_predictor, path, precision="float32", **ABOUT)
    return path


@pytest.fixture(scope="session")
def saved_model_folder(small_predictor, tmp_path_factory) -> Path:
    from retina.export.saved_model import write_saved_model

    folder = tmp_path_factory.mktemp("saved_model") / "model"
    write_saved_model(small_predictor, folder, **ABOUT)
    return folder
