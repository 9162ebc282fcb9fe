"""Preparations for the import of Keras: its backend is there, and TensorFlow starts without chatter."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import threading
from importlib.util import find_spec

from retina.errors import RetinaError, install_hint

_IMPORTING = threading.Lock()
_CHATTER = re.compile(rb"^([IW]0000 |WARNING: All log messages before absl::InitializeLog)")


def prepare_keras() -> None:
    """Make ready for the import of Keras.

    Raises:
        RetinaError: `KERAS_BACKEND` names a backend that is not installed.
    """
    backend = os.environ.get("KERAS_BACKEND", "")
    if backend in ("jax", "torch") and find_spec(backend) is None:
        raise RetinaError(
            f"KERAS_BACKEND={backend}: {backend} is not installed; {install_hint(backend)}, or unset KERAS_BACKEND"
        )
    import_tensorflow_quietly()


def import_tensorflow_quietly() -> None:
    """Imports TensorFlow once; what its C++ part writes to standard error is left out.

    Part of it comes before any log level takes effect, so standard error is a file meanwhile; errors in it are passed
    on. Later ones are not: on a machine without a GPU each run would start with "failed call to cuInit", and an error
    that stops TensorFlow reaches Python as an exception. `TF_CPP_MIN_LOG_LEVEL`, where the user has set it, switches
    this off.
    """
    # Images are decoded in threads, and standard error is one for all of them.
    with _IMPORTING:
        if "tensorflow" in sys.modules or "TF_CPP_MIN_LOG_LEVEL" in os.environ:
            return
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        try:
            terminal = os.dup(2)
        except OSError:  # no standard error at all: nothing to keep quiet
            import tensorflow

            return
        with tempfile.TemporaryFile() as caught:
            os.dup2(caught.fileno(), 2)
            try:
                import tensorflow  # noqa: F401
            finally:
                os.dup2(terminal, 2)
                os.close(terminal)
                caught.seek(0)
                for line in caught:
                    if not _CHATTER.match(line):
                        sys.stderr.write(line.decode(errors="replace"))
