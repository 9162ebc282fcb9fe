"""Preparations for the import of Keras: its backend is there, and TensorFlow starts without chatter."""

from __future__ import annotations

import gc
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from retina.errors import RetinaError, install_hint

_IMPORTING = threading.Lock()
# The severities of TensorFlow's lines, least first, and the line that precedes those of before its log is set up.
_LINE = re.compile(rb"^(?:([IWEF])0000 |WARNING: All log messages before absl::InitializeLog)")
_SEVERITIES = b"IWEF"


def has_tensorflow() -> bool:
    """Return whether TensorFlow is installed; it is not imported."""
    return find_spec("tensorflow") is not None


def require_tensorflow(what: str) -> None:
    """Import TensorFlow for what cannot do without it.

    Raises:
        RetinaError: it is not installed; the message begins with `what`.
    """
    if not has_tensorflow():
        raise RetinaError(f"{what}: expected TensorFlow, which is not installed here; pip install tensorflow")
    import_tensorflow_quietly()


def prepare_keras() -> None:
    """Make ready for the import of Keras.

    Raises:
        RetinaError: `KERAS_BACKEND` names a backend that is not installed, or none that retina runs on.
    """
    backend = os.environ.get("KERAS_BACKEND", "")
    if backend not in ("", "tensorflow", "jax", "torch"):
        raise RetinaError(
            f"KERAS_BACKEND={backend}: expected tensorflow, jax or torch, which retina runs on; set one, or unset it"
        )
    if backend in ("jax", "torch") and find_spec(backend) is None:
        raise RetinaError(
            f"KERAS_BACKEND={backend}: {backend} is not installed; {install_hint(backend)}, or unset KERAS_BACKEND"
        )
    if has_tensorflow():
        import_tensorflow_quietly()
    elif backend not in ("jax", "torch"):
        raise RetinaError(
            f"KERAS_BACKEND={backend}: TensorFlow, the default backend, is not installed; set KERAS_BACKEND=jax, or "
            "pip install tensorflow"
        )


@contextmanager
def garbage_left_alone(package: str) -> Iterator[None]:
    """Look for no garbage inside the context, where a large package is imported for the first time.

    TensorFlow's import makes half a million objects that stay: looking through them again and again, as Python does
    while their number grows, takes a fifth of its time.
    """
    if package in sys.modules:
        yield
        return
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # what the caller has set aside stays so
            # All objects into the oldest generation: as new ones they would be looked through at once.
            gc.freeze()
            gc.unfreeze()
        if enabled:
            gc.enable()


def import_tensorflow_quietly() -> None:
    """Imports TensorFlow once; what its C++ part writes to standard error is left out.

    Part of it comes before any log level takes effect, so standard error is a file meanwhile; errors in it are passed
    on. Later ones are not: on a machine without a GPU each run would start with "failed call to cuInit", and an error
    that stops TensorFlow reaches Python as an exception. `TF_CPP_MIN_LOG_LEVEL`, where the user has set it, says what
    is left out: 0 nothing, 1 information, 2 warnings too.
    """
    # Images are decoded in threads, and standard error is one for all of them.
    with _IMPORTING:
        if "tensorflow" in sys.modules:
            return
        level = os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        if level == "0":
            return
        try:
            terminal = os.dup(2)
        except OSError:  # no standard error at all: nothing to keep quiet
            import tensorflow

            return
        with garbage_left_alone("tensorflow"), tempfile.TemporaryFile() as caught:
            os.dup2(caught.fileno(), 2)
            try:
                import tensorflow  # noqa: F401
            finally:
                os.dup2(terminal, 2)
                os.close(terminal)
                caught.seek(0)
                for line in caught:
                    if not _is_chatter(line, level):
                        sys.stderr.write(line.decode(errors="replace"))


def _is_chatter(line: bytes, level: str) -> bool:
    """Tell whether a line is one of TensorFlow's below a level (1 to 3); its errors are always passed on."""
    match = _LINE.match(line)
    if match is None:
        return False
    most = min(int(level), 2) if level.isdecimal() else 2
    return match[1] is None or _SEVERITIES.index(match[1]) < most
