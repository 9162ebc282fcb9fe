"""`run.deterministic`: a step that is built again gives the same bits, or a resumed run could not equal another."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.threads import without_limits

# Heads that all levels share, whose gradients are summed over levels and parts: what graph optimisers reorder.
WORK = """
import hashlib, json
from retina.startup import import_tensorflow_quietly
import_tensorflow_quietly()
import numpy as np
from retina import config
from retina.data.load import load_split
from retina.data.batches.training import training_batches
from retina.training.parts import assemble
from retina.training.devices import make_deterministic

settings = config.load(None, [
    "data.train={format: digits, images: 8, size: 64}",
    "data.resize={short: 64, long: 64, multiple: 32}",
    "model={backbone: keras_cv/resnet10, fpn: {channels: 32, max_level: 5}, head: {channels: 32, layers: 1}}",
    "optimizer={kind: adamw, learning_rate: 2.0e-3, clip_norm: 10.0}",
    "run={batch_size: 8, accumulate: 2, ema: {decay: 0.99}}",
])
make_deterministic()
data = load_split(settings.data, "train")
batch = next(iter(training_batches(data, settings.data, batch_size=8, seed=0, steps=1)))
found = []
for _ in range(5):
    parts = assemble(settings, data)
    parts.step(batch)
    arrays = [v.numpy() for v in (*parts.detector.variables, *parts.optimizer.variables)]
    found.append(hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest())
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_step_that_is_compiled_again_gives_the_same_bits():
    """With TensorFlow's arithmetic optimiser on there are several results among five."""
    environment = {**without_limits(), "KERAS_BACKEND": "tensorflow", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", WORK], env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 5 and len(set(found)) == 1
