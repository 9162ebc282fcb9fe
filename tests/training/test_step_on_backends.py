"""What a step can do besides (parts, averages, loss scaling), on each backend, each in a process of its own."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from retina.runs.record import ModeLosses
from tests.quick_jax import QUICK_JAX

BACKENDS = [name for name in ("tensorflow", "jax", "torch") if importlib.util.find_spec(name)]
OTHERS = [name for name in BACKENDS if name != "tensorflow"]

# The work of a process: see its own comments.
WORK = """
import json
import sys
import numpy as np
from retina.startup import import_tensorflow_quietly
import_tensorflow_quietly()
from retina import config
from retina.models.keras_inputs import checked_batch, padded
from retina.runs.checkpoint import gather
from retina.training.optimizer import build_optimizer
from retina.training.step import build_step
from retina.training.validation import ModeCheck
from tests.training.small_step import MODEL, SCHEDULE, SGD, four_images, numbers, small_detector

def small(precision, run, loss):
    # The small network with weights that every backend has alike, under a step of its own.
    detector = small_detector(("a", "b"), model=MODEL, loss=loss, precision=precision)
    random = np.random.default_rng(0)
    for v in detector.trainable_variables:
        if v.path.endswith("kernel"):
            v.assign(random.normal(0, np.prod(v.shape[:-1]) ** -0.5, v.shape).astype(np.float32))
    optimizer = build_optimizer(SGD, SCHEDULE)
    return detector, optimizer, build_step(detector, optimizer, SGD, run)

def everything(final):
    # Parts, averages of weights and of positives, in one step.
    loss = config.Loss(normalizer=config.EmaNormalizer(initial=20.0))
    run = config.Run(batch_size=4, accumulate=2, ema=config.Ema(decay=0.5))
    detector, optimizer, step = small("float32", run, loss)
    lines = [numbers(step(four_images(seed))) for seed in range(3)]
    step.sync()
    with step.averaged():
        averaged = gather(detector)
    np.savez(final, **gather(detector, optimizer, step.state()), **{f"averaged/{k}": v for k, v in averaged.items()})
    return lines

def half():
    # float16: a step at a scale that fits, then one at a scale that does not.
    detector, optimizer, step = small("mixed_float16", config.Run(), config.Loss())
    lines, moved = [], []
    for scale in (2.0**10, 2.0**100):
        step.sync()
        before = gather(detector, optimizer)
        step.load({"loss_scale/scale": np.float32(scale), "loss_scale/good_steps": np.int32(0)})
        lines.append(numbers(step(four_images())))
        step.sync()
        after = gather(detector, optimizer)
        kept = [n for n in after if "moving" not in n and not n.endswith("/iteration")]
        moved.append(sum(not np.array_equal(after[n], before[n]) for n in kept))
        assert after["optimizer/sgd/iteration"] == len(moved)
    return {"lines": lines, "moved": moved, "scale": float(step.state()["loss_scale/scale"])}

def outside():
    # Weights that are assigned between two steps, of which the backend may keep a copy of its own.
    detector, _, step = small("float32", config.Run(), config.Loss())
    step(four_images())
    step.sync()
    told = [step.reload()]
    bias = detector.box.bias
    bias.assign(np.full(bias.shape, 3.0, np.float32))
    told += [step.reload(), step.reload()]
    step.sync()
    numbers(step(four_images()))
    step.sync()
    # How often JAX compiled the step, for the one canvas there is.
    compiled = step._step._cache_size() if sys.argv[2:] == ["jax"] else 1
    return {"told": told, "bias": float(np.mean(gather(detector)[f"weights/{bias.path}"])), "compiled": compiled}

def modes():
    # The losses in both modes of batch normalisation: after a step, with another variance, and the arrays that changed.
    detector, _, step = small("float32", config.Run(), config.Loss())
    step(four_images())
    step.sync()
    check = ModeCheck(None, None, detector)
    check.__dict__["_batch"] = four_images()
    before = gather(detector)
    losses = [check()]
    changed = [name for name, array in gather(detector).items() if not np.array_equal(array, before[name])]
    changed += ["taken over"] * step.reload()
    for variable in detector.variables:
        if variable.path.endswith("moving_variance"):
            variable.assign(1e-3 * np.asarray(before[f"weights/{variable.path}"]))
    losses.append(check())
    return {"losses": losses, "changed": changed}

def fitted():
    # The loss of Keras' fit on arrays, and of a step on the same, padded: images with and without boxes, and one alone.
    images = four_images()["images"][:, :60, :61]
    boxes = [[[4, 4, 36, 36], [20, 10, 60, 40]], [], [], [[10, 20, 40, 60]]]
    targets = {"boxes": boxes, "classes": [[0, 1], [], [], [1]]}
    pairs = []
    for rows in (slice(0, 4), slice(1, 2)):
        x, y = images[rows], {name: field[rows] for name, field in targets.items()}
        detector, _, step = small("float32", config.Run(), config.Loss())
        other, _, _ = small("float32", config.Run(), config.Loss())
        other.compile(optimizer="sgd")
        history = other.fit(x, y, batch_size=len(x), verbose=0).history
        line = numbers(step(padded(checked_batch(x, y, detector.convention))))
        names = ("loss", "loss_classification", "loss_box", "positives")
        pairs.append([[line[name], history[name][0]] for name in names])
    return pairs

def loaded():
    # PyTorch's DataLoader, at a size that the strides don't divide, and the same as arrays.
    from torch.utils.data import DataLoader
    from retina.inference import CocoMetrics
    images = four_images()["images"][:, :60, :50]
    boxes = np.array([[[4, 4, 36, 36], [20, 10, 50, 40]], *[[[10, 20, 40, 60], [0] * 4]] * 3], "float32")
    classes = np.array([[0, 1], *[[1, -1]] * 3])
    rows = [(image, {"boxes": b, "labels": k}) for image, b, k in zip(images, boxes, classes)]
    of_each = []
    for x, y in ((DataLoader(rows, batch_size=2), None), (images, {"boxes": boxes, "labels": classes})):
        detector = small("float32", config.Run(), config.Loss())[0]
        detector.compile(optimizer="sgd", metrics=[CocoMetrics()])
        settings = {} if y is None else {"batch_size": 2, "shuffle": False}
        history = detector.fit(x, y, epochs=2, verbose=0, **settings).history
        size = {} if y is None else {"batch_size": 2}
        figures = detector.evaluate(x, y, verbose=0, return_dict=True, **size)
        detections = detector.predict(x, verbose=0, **size)
        losses = {f"fit_{k}": v for k, v in history.items()}
        of_each.append({**losses, **figures, "boxes": detections["boxes"].ravel().tolist()})
    return of_each

parts = {"everything": everything(sys.argv[1]), "half": half(), "outside": outside(), "modes": modes()}
if sys.argv[2] == "torch":
    parts["loaded"] = loaded()
print(json.dumps({**parts, "fitted": fitted()}))
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, tuple[dict, dict[str, np.ndarray]]]:
    """By backend: what the process printed, and the arrays after the steps with everything."""
    folder = tmp_path_factory.mktemp("steps")
    processes = {
        name: subprocess.Popen(
            [sys.executable, "-c", WORK, str(folder / f"{name}.npz"), name],
            env={**os.environ, "KERAS_BACKEND": name, "PYTHONPATH": str(Path(__file__).parents[2]), **QUICK_JAX},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in BACKENDS
    }
    found = {}
    for name, process in processes.items():
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        found[name] = json.loads(out.splitlines()[-1]), dict(np.load(folder / f"{name}.npz"))
    return found


@pytest.mark.parametrize("backend", BACKENDS)
def test_fit_on_arrays_gives_the_loss_of_a_step_on_the_same(results, backend):
    for pairs, positives in zip(results[backend][0]["fitted"], (True, False), strict=True):
        for of_step, of_fit in pairs:
            assert of_fit == pytest.approx(of_step, rel=1e-6, abs=1e-7)
        assert pairs[0][0] > 0 and bool(pairs[-1][0]) == positives


@pytest.mark.skipif("torch" not in BACKENDS, reason="torch is not installed")
def test_a_data_loader_gives_what_arrays_give(results):
    """`fit`, `evaluate` with its figures, and `predict`."""
    of_loader, of_arrays = results["torch"][0]["loaded"]
    assert of_loader.keys() == of_arrays.keys() >= {"fit_loss", "loss", "AP", "boxes"}
    for name, value in of_arrays.items():
        np.testing.assert_allclose(of_loader[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    assert any(of_loader["boxes"])


@pytest.mark.parametrize("backend", OTHERS)
def test_other_backends_accumulate_and_average_alike(results, backend):
    (ours, arrays), (theirs, others) = results["tensorflow"], results[backend]
    for one, other in zip(ours["everything"], theirs["everything"], strict=True):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-5)
    assert arrays.keys() == others.keys()
    for name in arrays:
        # Momenta of a bias in front of batch normalisation are zero but for rounding.
        bound = 1e-3 * np.abs(arrays[name]).max() + 1e-5
        np.testing.assert_allclose(others[name], arrays[name], rtol=0, atol=bound, err_msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_averages_are_evaluated_and_the_weights_go_on(results, backend):
    said, arrays = results[backend]
    averages = [name for name in arrays if name.startswith("extra/ema/")]
    assert len(averages) > 10 and arrays["extra/ema_updates"] == 3
    for name in averages:
        path = name.removeprefix("extra/ema/")
        np.testing.assert_array_equal(arrays[f"averaged/weights/{path}"], arrays[name], err_msg=name)
    assert any(not np.array_equal(arrays[n], arrays[f"weights/{n.removeprefix('extra/ema/')}"]) for n in averages)
    expected = 20.0
    for line in said["everything"]:
        expected = 0.9 * expected + 0.1 * max(line["positives"], 1)
    assert arrays["extra/normalizer/positives"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_that_overflows_is_left_out(results, backend):
    half, on_tensorflow = results[backend][0]["half"], results["tensorflow"][0]["half"]
    fits, overflows = half["lines"]
    assert fits["overflow"] == 0 and fits["loss_scale"] == 2**10 and half["moved"][0] > 10
    assert overflows["overflow"] == 1 and overflows["gradient_norm"] == 0 and half["moved"][1] == 0
    assert half["scale"] == 2.0**99
    for name in ("loss", "loss_classification", "loss_box", "gradient_norm"):
        assert fits[name] == pytest.approx(on_tensorflow["lines"][0][name], rel=0.02), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_assigned_from_outside_are_trained_on(results, backend):
    outside = results[backend][0]["outside"]
    assert outside["told"] == [False, backend == "jax", False] and outside["compiled"] == 1
    assert outside["bias"] == pytest.approx(3.0, abs=0.2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_both_modes_of_batch_norm_are_alike_and_leave_no_trace(results, backend):
    modes, on_tensorflow = results[backend][0]["modes"], results["tensorflow"][0]["modes"]
    assert modes["changed"] == []
    for losses, expected in zip(modes["losses"], on_tensorflow["losses"], strict=True):
        assert losses == pytest.approx(expected, rel=1e-3)
    (batch, moving), (same, spoilt) = modes["losses"]
    assert same == batch and not ModeLosses(batch, moving).part and ModeLosses(batch, spoilt).part
