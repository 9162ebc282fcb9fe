"""The parts of Keras that have no public name, each with the reason why it is needed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import keras
from keras.src.backend.common import global_state


@contextmanager
def fresh_names() -> Iterator[None]:
    """Count the names of new layers from the beginning.

    keras-cv leaves some layers to Keras' process-wide name counters, but a checkpoint finds a variable by its path, so
    paths must not depend on what was built before. Keras has no public way to set the counters aside.
    """
    counters = global_state.get_global_attribute("object_name_uids")
    global_state.set_global_attribute("object_name_uids", defaultdict(int))
    try:
        yield
    finally:
        global_state.set_global_attribute("object_name_uids", counters)


def all_layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """The model and every layer in it, however deep: `model.layers` does not show those inside a block of keras-cv."""
    return model._flatten_layers()


def has_no_layers(layer: keras.layers.Layer) -> bool:
    """Whether nothing lies inside the layer; layers have no public attribute for it."""
    return not layer._layers
