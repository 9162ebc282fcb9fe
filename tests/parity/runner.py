"""What an imported run computes, on one backend, written to an .npz file.

    KERAS_BACKEND=jax python runner.py OUT.npz CASES.npz RUN…

CASES holds for each number i `canvas_i` [H, W, 3] uint8, `size_i` [2] and the targets `boxes_i` [G, 4], `labels_i` [G].
"""

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script: `retina` lies there

import keras
import numpy as np

from retina.runs.loading import load


def results(run, cases, *, detect=True):
    """For each case: logits, deltas, anchors, losses, and where `detect` detections."""
    predictor = load(run)
    detector, out = predictor.detector, {}
    for number in [int(name.removeprefix("canvas_")) for name in cases if name.startswith("canvas_")]:
        boxes = cases[f"boxes_{number}"][None].astype(np.float32)
        batch = {
            "images": cases[f"canvas_{number}"][None],
            "size": cases[f"size_{number}"][None].astype(np.int32),
            "scale": np.ones((1, 2), np.float32),
        }
        targets = {
            "boxes": boxes,
            "labels": cases[f"labels_{number}"][None].astype(np.int32),
            "valid": np.ones(boxes.shape[:2], bool),
            "crowd": np.zeros(boxes.shape[:2], bool),
        }
        whole = {name: keras.ops.convert_to_tensor(value) for name, value in {**batch, **targets}.items()}
        outputs = detector(whole, training=False)
        found = {**outputs, **detector.loss_sums(outputs, whole).losses()}
        found = {name: keras.ops.convert_to_numpy(value) for name, value in found.items()}
        if detect:
            found |= {name: value[0] for name, value in predictor.run(batch).items()}
        found["anchors"] = np.concatenate(detector.level_anchors(batch["images"].shape[1:3]))
        out |= {f"{name}_{number}": value for name, value in found.items()}
    return out


def on_backend(backend, folder, cases, runs):
    """`results` of each run, computed by another process on `backend`; its files are written to `folder`."""
    np.savez(folder / f"{backend}_cases.npz", **cases)
    target = folder / f"{backend}.npz"
    process = subprocess.run(
        [sys.executable, __file__, str(target), str(folder / f"{backend}_cases.npz"), *map(str, runs)],
        env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    with np.load(target) as file:
        prefixes = [f"{index}/" for index in range(len(runs))]
        return [{name.removeprefix(p): file[name] for name in file.files if name.startswith(p)} for p in prefixes]


if __name__ == "__main__":
    with np.load(sys.argv[2]) as file:
        given = dict(file)
    np.savez(
        sys.argv[1],
        **{f"{index}/{name}": x for index, run in enumerate(sys.argv[3:]) for name, x in results(run, given).items()},
    )
