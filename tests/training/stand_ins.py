"""Quick and exact stand-ins for the network, its step, its data and its evaluation, so that the loop itself is tested.

A training with them takes a tenth of a second; the loop, the checkpoints and the run directory are the package's own.
"""

import contextlib
import json

import keras
import numpy as np

from retina.files import write_text
from retina.training import loop, parts, train, validation

SETTINGS = [
    "data.train={format: digits, images: 8, size: 64}",
    "data.validation={format: digits, split: validation, images: 4, size: 64}",
    "schedule={kind: cosine, steps: 20, warmup_steps: 3}",
    "run={batch_size: 2, log_every: 3, evaluate_every: 5, checkpoint_every: 4, keep: 2}",
    "evaluation.metric=AP50",
]
WALL_CLOCK = {"images_per_second", "data_wait", "memory", "memory_peak", "device_memory_peak"}


class Step:
    """Momentum on a gradient made of the batch, a number, with a moving average beside it.

    Args:
        bad: from step to the scalars that it shall report in the place of its own.
    """

    def __init__(self, model, optimizer, bad=None):
        self.model, self.optimizer, self.bad = model, optimizer, bad or {}
        self.average = np.zeros(3, np.float32)

    def __call__(self, batch):
        weights = self.model.trainable_variables
        self.optimizer.apply([0.1 * v + batch for v in weights], weights)
        last = keras.ops.convert_to_numpy(weights[-1].value)
        self.average = np.float32(0.9) * self.average + np.float32(0.1) * last
        scalars = {"loss": last[0], "loss_classification": last[1], "loss_box": last[2], "gradient_norm": batch}
        scalars |= self.bad.get(int(self.optimizer.iterations), {})
        return {name: np.float32(value) for name, value in scalars.items()}

    def sync(self):
        pass

    def reload(self):
        return False

    def state(self):
        return {"average": self.average}

    def load(self, arrays):
        self.average = arrays["average"]

    @contextlib.contextmanager
    def averaged(self):
        self.model.seen = float(self.average[0])
        yield


class Silent:
    """In the place of TensorBoard."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def scalars(self, *_):
        pass

    picture = settings = precision_recall = scalars


class Figures:
    """Rising and falling with the average, so that the best is neither the first nor the last."""

    def __init__(self, seen: float):
        self.metrics = {"AP": seen, "AP50": round(float(abs(np.sin(1e3 * seen))), 6)}


def build(config, names, load_weights=True):
    """A network of six weights."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="last")], name="net")
    random = np.random.default_rng(config.run.seed)
    for variable in model.trainable_variables:
        variable.assign(random.normal(size=variable.shape))
    model.weights_report = None
    return model


def batches(*_, seed, first_step, steps, **__):
    """A number a step, drawn from the seed and the step alone."""
    return (np.float32(np.random.default_rng([seed, step]).normal()) for step in range(first_step, steps))


def write_evaluation(folder, dataset, table, metrics, *, pictures):
    write_text(folder / "metrics.json", json.dumps(metrics.metrics))


def put_in(replace, bad=None, figures=None) -> None:
    """Puts the quick parts in the place of the slow ones.

    Args:
        replace: like `setattr`, or a test's `monkeypatch.setattr`.
        bad: of `Step`.
        figures: what the evaluations give, in order; None makes `Figures`.
    """
    given = iter(figures or ())

    def evaluate(settings, truth, seen):
        made = Figures(seen)
        made.metrics |= next(given, {})
        return made

    replace(parts, "build_detector", build)
    replace(parts, "build_step", lambda model, optimizer, *_: Step(model, optimizer, bad))
    replace(validation, "compile_inference", lambda model, _: model)
    replace(validation, "detect", lambda model, *_: model.seen)
    replace(validation, "results", lambda seen, _: seen)
    replace(validation, "evaluate_as", evaluate)
    replace(loop, "training_batches", batches)
    replace(validation, "write_evaluation", write_evaluation)
    replace(validation, "pictures_with_truth", lambda *_: [])
    replace(validation, "match", lambda *_, **__: None)
    replace(loop, "TensorBoard", Silent)
    replace(train.preflight, "check", lambda *_: ())
    replace(train, "describe_environment", lambda _: {"backend": "tensorflow"})
