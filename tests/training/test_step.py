"""The training step: the same three updates on TensorFlow, JAX and PyTorch, each in its own process."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from retina import config
from retina.models.detector import Detector
from retina.runs.checkpoint import gather, restore
from retina.training.optimizer import build_optimizer
from retina.training.step import build_step
from tests.quick_jax import QUICK_JAX

BACKENDS = [name for name in ("jax", "torch") if importlib.util.find_spec(name)]

# What every process builds. AdamW without gradients shows which variables each backend's optimizer decays.
SHARED = """
import json
import sys
import keras
import numpy as np
from retina import config
from retina.models.detector import Detector
from retina.runs.checkpoint import gather, restore
from retina.training.optimizer import build_optimizer
from retina.training.step import build_step

MODEL = config.Model(
    backbone="keras_cv/resnet10",
    fpn=config.Fpn(channels=64, max_level=5),
    head=config.Head(channels=64, layers=2),
)
SGD = config.Sgd(learning_rate=0.01, momentum=0.9, weight_decay=1e-2, clip_norm=5.0)
SCHEDULE = config.CosineSchedule(steps=6, warmup_steps=1, warmup_factor=0.5)

def fixed_batch():
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    boxes = np.zeros((2, 8, 4), np.float32)
    boxes[0, :2] = [[4, 4, 36, 36], [20, 10, 60, 40]]
    boxes[1, 0] = [10, 20, 40, 60]
    valid = np.zeros((2, 8), bool)
    valid[0, :2] = valid[1, 0] = True
    labels = np.zeros((2, 8), np.int32)
    labels[0, 1] = 1
    size = np.array([[64, 64], [64, 56]], np.int32)
    crowd = np.zeros((2, 8), bool)
    return {"images": images, "boxes": boxes, "labels": labels, "valid": valid, "crowd": crowd, "size": size}

def decayed():
    weights = [keras.Variable(np.ones((1, 2), np.float32), name="kernel"), keras.Variable(np.ones(2), name="bias")]
    adamw = build_optimizer(config.AdamW(learning_rate=0.1, weight_decay=0.5), config.StepSchedule(steps=1))
    adamw.build(weights)
    adamw.apply([keras.ops.zeros((1, 2)), keras.ops.zeros(2)], weights)
    return [keras.ops.convert_to_numpy(w.value).ravel().tolist() for w in weights]

def three_steps(initial, final):
    detector = Detector(("a", "b"), model=MODEL)
    optimizer = build_optimizer(SGD, SCHEDULE)
    optimizer.build(detector.trainable_variables)
    restore(dict(np.load(initial)), detector, optimizer)
    step = build_step(detector, optimizer, SGD)
    lines = []
    for _ in range(3):
        scalars = step(fixed_batch())
        lines.append({name: float(keras.ops.convert_to_numpy(value)) for name, value in scalars.items()})
    step.sync()
    np.savez(final, **gather(detector, optimizer))
    # Copies went out: the step can go on, and what was synced stays.
    later = float(keras.ops.convert_to_numpy(step(fixed_batch())["loss"]))
    return {"backend": keras.backend.backend(), "lines": lines, "later": later, "decayed": decayed()}
"""
TOOLS: dict = {}
exec(SHARED, TOOLS)
SGD_STILL = config.Sgd(learning_rate=1e-9, momentum=0.0, weight_decay=0.0)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, tuple[dict, dict[str, np.ndarray]]]:
    """By backend: the scalars of three steps, and the arrays after them; `initial` holds the arrays before."""
    folder = tmp_path_factory.mktemp("steps")
    keras.utils.set_random_seed(0)
    detector = Detector(("a", "b"), model=TOOLS["MODEL"])
    optimizer = build_optimizer(TOOLS["SGD"], TOOLS["SCHEDULE"])
    optimizer.build(detector.trainable_variables)
    np.savez(folder / "initial.npz", **gather(detector, optimizer))
    processes = {name: start(name, folder) for name in BACKENDS}
    found = {"tensorflow": TOOLS["three_steps"](folder / "initial.npz", folder / "tensorflow.npz")}
    for name, process in processes.items():
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        found[name] = json.loads(out.splitlines()[-1])
    arrays = {name: dict(np.load(folder / f"{name}.npz")) for name in found}
    return {
        "initial": ({}, dict(np.load(folder / "initial.npz"))),
        **{name: (found[name], arrays[name]) for name in found},
    }


def start(backend: str, folder: Path) -> subprocess.Popen:
    code = f"{SHARED}\nprint(json.dumps(three_steps(sys.argv[1], sys.argv[2])))"
    arguments = [sys.executable, "-c", code, str(folder / "initial.npz"), str(folder / f"{backend}.npz")]
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(Path(__file__).parents[2]), **QUICK_JAX}
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_loss_falls(results):
    losses = [line["loss"] for line in results["tensorflow"][0]["lines"]]
    assert losses[0] > losses[1] > losses[2] > results["tensorflow"][0]["later"] > 0


def test_the_loss_is_the_sum_of_its_parts_and_positives_are_counted(results):
    for line in results["tensorflow"][0]["lines"]:
        assert line["loss"] == pytest.approx(line["loss_classification"] + line["loss_box"], rel=1e-6)
        assert line["positives"] == results["tensorflow"][0]["lines"][0]["positives"] > 0


def test_every_trainable_array_moved_and_updates_were_counted(results):
    before, after = results["initial"][1], results["tensorflow"][1]
    assert before.keys() == after.keys()
    still = [name for name in before if name.startswith("weights/") and np.array_equal(before[name], after[name])]
    assert still == []
    assert after["optimizer/sgd/iteration"] == before["optimizer/sgd/iteration"] + 3 == 3


def test_the_first_update_is_the_formula(results):
    """Momentum starts at zero: w - lr · (clipped gradient + decay · w), with lr = 0.01 · 0.5 in warm-up."""
    detector = Detector(("a", "b"), model=TOOLS["MODEL"])
    settings = config.Sgd(learning_rate=0.01, momentum=0.0, weight_decay=1e-2, clip_norm=1e-9)
    optimizer = build_optimizer(settings, TOOLS["SCHEDULE"])
    restore(results["initial"][1], detector)
    scalars = build_step(detector, optimizer, settings)(TOOLS["fixed_batch"]())
    unclipped = results["tensorflow"][0]["lines"][0]["gradient_norm"]
    assert float(scalars["gradient_norm"]) == pytest.approx(unclipped, rel=1e-4) and unclipped > 0.1
    # With the gradient clipped away only the decay is left.
    before, after = results["initial"][1], gather(detector)
    kernel, bias = "classification/conv_0/kernel", "classification/conv_0/bias"
    kernel, bias = (next(name for name in before if name.endswith(end)) for end in (kernel, bias))
    np.testing.assert_allclose(after[kernel], before[kernel] * (1 - 0.005 * 1e-2), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(after[bias], before[bias], atol=1e-9)


def test_a_batch_without_boxes_trains_its_background(results):
    detector = Detector(("a", "b"), model=TOOLS["MODEL"])
    restore(results["initial"][1], detector)
    batch = TOOLS["fixed_batch"]()
    batch["valid"] = np.zeros_like(batch["valid"])
    settings = config.Sgd()
    scalars = build_step(detector, build_optimizer(settings, TOOLS["SCHEDULE"]), settings)(batch)
    assert float(scalars["positives"]) == float(scalars["loss_box"]) == 0.0
    assert np.isfinite(float(scalars["loss"])) and float(scalars["loss"]) > 0
    assert np.isfinite(float(scalars["gradient_norm"])) and float(scalars["gradient_norm"]) > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_other_backends_give_the_same_losses(results, backend):
    assert results[backend][0]["backend"] == backend
    for ours, theirs in zip(results["tensorflow"][0]["lines"], results[backend][0]["lines"], strict=True):
        assert theirs == pytest.approx(ours, rel=1e-3)
    assert results[backend][0]["later"] == pytest.approx(results["tensorflow"][0]["later"], rel=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_other_backends_give_the_same_arrays_after_sync(results, backend):
    ours, theirs = results["tensorflow"][1], results[backend][1]
    assert ours.keys() == theirs.keys()
    for name in ours:
        # Momenta of a bias in front of batch normalisation are zero but for rounding.
        bound = 1e-3 * np.abs(ours[name]).max() + 1e-5
        np.testing.assert_allclose(theirs[name], ours[name], rtol=0, atol=bound, err_msg=name)


@pytest.mark.parametrize("backend", ["tensorflow", *BACKENDS])
def test_adamw_decays_kernels_only_on_each_backend(results, backend):
    kernel, bias = results[backend][0]["decayed"]
    assert kernel == pytest.approx([0.95, 0.95]) and bias == [1.0, 1.0]


@pytest.mark.parametrize("frozen", [True, False])
def test_the_step_computes_the_network_as_it_is(frozen):
    """A step rearranges layers (`retina.training.fused_layers`): its loss is that of the detector before."""
    model = {"backbone": "resnet10", "fpn": {"channels": 8, "max_level": 5}, "head": {"channels": 8, "layers": 1}}
    recipe = {"weights": "none.pth", "freeze": 1, "batch_norm": "frozen"} if frozen else {}
    detector = Detector(("a", "b"), model=config.Model.model_validate({**model, **recipe}), load_weights=False)
    random = np.random.default_rng(1)
    for variable in detector.backbone.variables:
        if variable.path.endswith(("moving_mean", "beta")):
            variable.assign(random.normal(0, 0.1, variable.shape))
        elif variable.path.endswith(("moving_variance", "gamma")):
            variable.assign(random.uniform(0.5, 1.5, variable.shape))
    batch = TOOLS["fixed_batch"]()
    sums = detector.loss_sums(detector(batch, training=True), batch)
    expected = [float(keras.ops.convert_to_numpy(value)) for value in (sums.classification, sums.box)]
    optimizer = build_optimizer(SGD_STILL, config.ConstantSchedule(steps=1))
    scalars = build_step(detector, optimizer, SGD_STILL)(batch)
    divisor = float(keras.ops.convert_to_numpy(sums.positives))
    of_step = [
        float(keras.ops.convert_to_numpy(scalars[f"loss_{name}"])) * divisor for name in ("classification", "box")
    ]
    assert of_step == pytest.approx(expected, rel=1e-5)
