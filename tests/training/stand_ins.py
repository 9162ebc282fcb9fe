"""Quick and exact stand-ins for the network, its step, its data and its evaluation, so that the loop itself is tested.

A training with them takes a tenth of a second; the loop, the checkpoints and the run directory are the package's own.
"""

import contextlib
import json
from types import SimpleNamespace

import keras
import numpy as np

from retina.files import write_text
from retina.training.loop import Collaborators
from retina.training.validation import Evaluation

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
        self.update = self._update
        if keras.backend.backend() == "tensorflow":  # a hundred operations, which take milliseconds by themselves
            import tensorflow as tf

            self.update = tf.function(self._update, input_signature=[tf.TensorSpec((), tf.float32)], autograph=False)

    def _update(self, batch):
        weights = self.model.trainable_variables
        self.optimizer.apply([0.1 * v + batch for v in weights], weights)

    def __call__(self, batch):
        self.update(batch)
        weights = self.model.trainable_variables
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
        self.model.average = float(self.average[0])
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


class Metrics:
    """Rising and falling with the average, so that the best is neither the first nor the last."""

    def __init__(self, average: float):
        self.metrics = {"AP": average, "AP50": round(float(abs(np.sin(1e3 * average))), 6)}


class Evaluator:
    """Evaluates the step's moving average; it stands for the table of detections as well.

    Args:
        figures: an iterator of figures by name, which replace those of `Metrics`, an evaluation after another.
    """

    batches = ()

    def __init__(self, model, figures):
        self.model, self.figures = model, figures

    def detect(self, batches):
        return self.model.average

    def evaluate(self, table):
        metrics = Metrics(table)
        metrics.metrics |= next(self.figures, {})
        return Evaluation(table, None, metrics)

    def write(self, folder, evaluation):
        write_text(folder / "metrics.json", json.dumps(evaluation.metrics.metrics))

    def show(self, tensorboard, step, evaluation):
        pass


def build(config, names, load_weights=True):
    """A network of six weights."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="last")], name="net")
    random = np.random.default_rng(config.run.seed)
    for variable in model.trainable_variables:
        variable.assign(random.normal(size=variable.shape))
    model.weights_report, model.detection_metrics = None, SimpleNamespace()
    return model


def batches(*_, seed, first_step, steps, **__):
    """A number a step, drawn from the seed and the step alone."""
    return (np.float32(np.random.default_rng([seed, step]).normal()) for step in range(first_step, steps))


def collaborators(bad=None, figures=None, **others) -> Collaborators:
    """Return quick collaborators in place of the slow ones.

    Args:
        bad: of `Step`.
        figures: those of the evaluations, in order; None makes `Metrics`.
        others: replace further ones, or these.
    """
    given = iter(figures or ())
    quick = {
        "detector": build,
        "step": lambda model, optimizer, *_: Step(model, optimizer, bad),
        "batches": batches,
        "evaluator": lambda config, dataset, truth, model, distribution: Evaluator(model, given),
        "tensorboard": Silent,
        "check_data": lambda *_: (),
        "describe_environment": lambda _: {"backend": "tensorflow"},
    }
    return Collaborators(**{**quick, **others})
