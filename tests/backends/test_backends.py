"""The same arrays through TensorFlow, JAX and PyTorch, each in its own process."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.quick_jax import QUICK_JAX

RUNNER = Path(__file__).parent / "runner.py"
OTHERS = ("jax", "torch")


@pytest.fixture(scope="module")
def compute(tmp_path_factory):
    """Results by backend; TensorFlow's come first, as it writes the weights."""
    folder = tmp_path_factory.mktemp("backends")
    done = {}

    def compute(backend):
        if backend not in done:
            done[backend] = run(backend, folder)
        return done[backend]

    compute("tensorflow")
    return compute


def run(backend, folder):
    target = folder / f"{backend}.npz"
    process = subprocess.run(
        [sys.executable, str(RUNNER), str(target), str(folder / "weights.npz")],
        env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu", **QUICK_JAX},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert process.returncode == 0, f"{backend}: {process.stderr[-3000:]}"
    with np.load(target) as file:
        results = {"functions": {}, "detector": {}}
        for name in file.files:
            part, _, rest = name.partition("/")
            results[part][rest] = file[name]
    return results


def compare(expected, found, rtol, atol):
    """Indices equal; everything else within `rtol`, plus `atol` of the array's maximum."""
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        if name.startswith("index/"):
            np.testing.assert_array_equal(found[name], values, err_msg=name)
        else:
            assert np.isfinite(values).all(), name
            np.testing.assert_allclose(
                found[name], values, rtol=rtol, atol=atol * np.abs(values).max(initial=0), err_msg=name
            )


def test_the_comparison_is_not_of_nothing(compute):
    functions, detector = compute("tensorflow").values()
    for force in (False, True):
        rows, ignored = functions[f"index/match/{force}"]
        assert (rows >= 0).sum() > 10 and ignored.sum() > 10
    assert functions["index/detections/valid"].sum() > 40 and detector["index/detections/valid"].sum() > 10
    assert (functions["index/nms/ties"] >= 0).sum() > 20
    assert all(np.abs(functions[name]).max() > 0 for name in functions if name.endswith("/gradient"))
    # Where a result is 0 no gradient passes; of equal values the first of a window has it.
    assert 0 < np.count_nonzero(functions["relu/gradient"]) == np.count_nonzero(functions["relu"])
    assert np.count_nonzero(functions["max_pool/2/2/gradient"]) == functions["max_pool/2/2"].size
    assert np.abs(detector["outputs/deltas"]).max() > 0.01 and detector["training/loss_box"] > 0.01


@pytest.mark.parametrize("backend", OTHERS)
def test_functions(backend, compute):
    pytest.importorskip(backend)
    # atol: a gradient that is a difference of like terms is known to float32's ε = 1.2e-7 of those, a few times over.
    compare(compute("tensorflow")["functions"], compute(backend)["functions"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", OTHERS)
def test_a_whole_detector(backend, compute):
    """Logits, deltas, detections, losses, and the gradient of every variable, of the same weights."""
    pytest.importorskip(backend)
    compare(compute("tensorflow")["detector"], compute(backend)["detector"], rtol=0, atol=1e-4)
