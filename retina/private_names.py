"""Private names of Keras and TensorFlow: each use of one stands here, with the reason why no public name serves.

A new version of either may move or change them: then this module alone changes. Keras and TensorFlow are imported
inside the functions, so that importing this module costs nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import keras

Optimizer = TypeVar("Optimizer", bound="type[keras.optimizers.Optimizer]")


def all_layers(model: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Return a model itself and every layer in it, those inside of other layers included.

    `Model.layers` lists the outermost ones only; layers that a layer holds as attributes, as the blocks of keras-cv's
    networks do, stand in no public list.
    """
    return model._flatten_layers()


def innermost_layers(model: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Return the layers of a model that hold no other layer: see `all_layers`."""
    return [layer for layer in model._flatten_layers(include_self=False) if not layer._layers]


@contextmanager
def fresh_layer_names() -> Iterator[None]:
    """Number automatic layer names from the start inside the context, and as before after it.

    keras-cv leaves some names to Keras' process-wide counters, but a checkpoint finds a variable by its path, which
    must not depend on what was built before. The public `keras.utils.clear_session` resets the counters for good, and
    much else that other models of the process need.
    """
    from keras.src.backend.common import global_state

    counters = global_state.get_global_attribute("object_name_uids")
    global_state.set_global_attribute("object_name_uids", defaultdict(int))
    try:
        yield
    finally:
        global_state.set_global_attribute("object_name_uids", counters)


@contextmanager
def uncast_variables() -> Iterator[None]:
    """Let variables that a layer reads inside the context keep their dtype, where its call would cast them.

    The public `autocast=False` is a layer's or a variable's for good, not that of a computation.
    """
    from keras.src.backend import AutocastScope

    with AutocastScope(None):
        yield


def variable_index(optimizer: keras.optimizers.Optimizer, variable: Any) -> int:
    """Return the place of a variable among those that the optimizer was built with.

    `update_step`, which subclasses override, is given Keras' variable on some backends and TensorFlow's on others, and
    the slots have no public key that both share. Keras' own optimizers find their slots by this method.
    """
    return optimizer._get_variable_index(variable)


def adam_slots(optimizer: keras.optimizers.Adam, index: int) -> tuple[keras.Variable, keras.Variable]:
    """Return Adam's averages of a variable's gradient and of its square, by the variable's place.

    The public `variables` are all of an optimizer together, in an order that depends on its options.
    """
    return optimizer._momentums[index], optimizer._velocities[index]


def updates_in_turn(condition: Callable[[], bool]) -> Callable[[Optimizer], Optimizer]:
    """Class decorator: where the condition holds, an optimizer calls `update_step` for one variable after another.

    On TensorFlow `Optimizer.apply` adds the gradients up over all replicas and updates each replica's copy, whatever
    the caller has done already; no public argument turns that off.
    """

    def decorate(optimizer: Optimizer) -> Optimizer:
        on_backend = optimizer._backend_update_step

        def update(self: Any, gradients: Sequence[Any], variables: Sequence[Any], learning_rate: Any) -> None:
            if not condition():
                return on_backend(self, gradients, variables, learning_rate)
            for gradient, variable in zip(gradients, variables, strict=True):
                self.update_step(gradient, variable, learning_rate)

        optimizer._backend_update_step = update
        return optimizer

    return decorate


def directions(rising: Iterable[str], falling: Iterable[str]) -> keras.metrics.Metric:
    """Return a metric without a value that tells Keras' callbacks which way figures get better, by their names.

    They look for it at the metrics that `compile` wraps, which Keras computes from outputs in every step. Figures of
    detections are no such metrics, and no public name tells of others.
    """
    from keras.src.trainers.compile_utils import MetricsList

    class Directions(MetricsList):
        def result(self) -> dict[str, Any]:
            return {}

    names = {**dict.fromkeys(falling, "down"), **dict.fromkeys(rising, "up")}
    entries = [SimpleNamespace(name=name, _direction=way, reset_state=lambda: None) for name, way in names.items()]
    return Directions(entries)


def with_constant_weights(function: Any) -> Any:
    """Return a concrete TensorFlow function with its variables replaced by constants.

    The public `tf.compat.v1.graph_util.convert_variables_to_constants` takes sessions of TensorFlow 1 only.
    """
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    return convert_variables_to_constants_v2(function)


def flatbuffers() -> tuple[Any, Any]:
    """Return the classes of a .tflite file's parts, and the module that reads and writes them.

    The public converter writes whole models only, and none can be put together from two.
    """
    from tensorflow.lite.python import schema_py_generated
    from tensorflow.lite.tools import flatbuffer_utils

    return schema_py_generated, flatbuffer_utils
