"""The parts of TensorFlow that have no public name, each with the reason why it is needed."""

from __future__ import annotations

from typing import Any


def flatbuffers() -> tuple[Any, Any]:
    """The classes of a .tflite file's parts, and the module that reads and writes them.

    The public converter writes whole models only, and none can be put together from two.
    """
    from tensorflow.lite.python import schema_py_generated
    from tensorflow.lite.tools import flatbuffer_utils

    return schema_py_generated, flatbuffer_utils


def frozen(traced: Any) -> Any:
    """A traced function with the values of its variables as constants; the public name went with TensorFlow 1."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    return convert_variables_to_constants_v2(traced)
