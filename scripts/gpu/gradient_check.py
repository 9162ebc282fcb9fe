"""A float32 training step beside one that a CPU took: loss, gradient norm and the update of every variable.

    KERAS_BACKEND=jax python3 scripts/gpu/gradient_check.py

writes `reference.json` anew, on the CPU.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from plan import Part

REFERENCE = Path(__file__).with_name("reference.json")
# Sums of float32 in another order; TensorFloat-32 is switched off.
BOUND = 2e-3


def figures(part: Part) -> dict[str, float]:
    """Return the losses and the gradient norm of a step of the small network, and the norm of each variable's update.

    Weights are drawn by NumPy, so that every backend and device begins with the same.
    """
    from inputs import batch
    from retina_work import Training

    if part.backend == "jax":
        import jax

        jax.config.update("jax_default_matmul_precision", "highest")
    work = Training(part)
    draw = np.random.default_rng(0)
    before = {}
    for variable in work.detector.trainable_variables:
        shape = variable.shape
        scale = np.prod(shape[:-1]) ** -0.5 if len(shape) > 1 else 0.0
        value = np.asarray(variable) if scale == 0.0 else draw.normal(0, scale, shape).astype(np.float32)
        variable.assign(value)
        before[variable.path] = np.array(value)
    work.step.reload()
    work.run(work.feed(batch(2, (128, 128))))
    work.wait()
    work.step.sync()
    names = ("loss", "loss_classification", "loss_box", "gradient_norm")
    taken = {name: float(np.asarray(work.scalars[name])) for name in names}
    moved = {v.path: float(np.linalg.norm(np.asarray(v) - before[v.path])) for v in work.detector.trainable_variables}
    return {**taken, **moved}


def check(part: Part) -> dict[str, Any]:
    """Return how far the figures are from the stored ones, relative to each and to the largest update.

    Raises:
        ValueError: one is farther than `BOUND`.
    """
    expected, here = json.loads(REFERENCE.read_text(encoding="utf-8")), figures(part)
    if expected.keys() != here.keys():
        raise ValueError(f"{REFERENCE.name} is of another network; write it anew")
    floor = 1e-3 * max(value for name, value in expected.items() if "/" in name)
    off = {name: abs(here[name] - value) / max(abs(value), floor) for name, value in expected.items()}
    worst = max(off, key=lambda name: off[name])
    if not off[worst] <= BOUND:
        raise ValueError(f"{worst} is {here[worst]}, expected {expected[worst]} of the CPU's float32 step")
    return {"gradient_check": "passed", "worst": worst, "relative_error": off[worst]}


def main() -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    taken = figures(Part("check", "retina", "jax", precision="float32", tiny=True))
    REFERENCE.write_text(json.dumps(taken, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
