"""Python functions that `tf.data` calls in its threads, without the two ways in which such a process can hang.

An iterator of TensorFlow waits, when it is destroyed, until its calls in flight have returned. Two of them never do:
one in a thread that itself destroys the iterator, because Python's cyclic garbage collector happens to run there; and
one whose thread comes back to an interpreter that is being taken down, which stops it where it stands.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

# At exit: how often, and how many times in a row without a call in flight, before none is expected any more.
_CHECK_SECONDS, _QUIET_CHECKS = 0.005, 10
# What `iter` of a data set gives; the class is not public.
_ITERATOR = "OwnedIterator"


class Guarded:
    """`function`, for `tf.numpy_function`; threads of its own that it waits for must do their part within `working`.

    While the collector runs in one of these threads, the iterators that it could take are held. They are left to the
    next collection elsewhere. When the interpreter ends, it waits until no call is in flight and none follows: the buffers
    behind them are full then.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._threads: list[int] = []
        self._held: list[Any] = []
        alive = weakref.ref(self)

        def on_collection(phase: str, info: dict[str, int]) -> None:
            if (one := alive()) is not None:
                one._hold_iterators(phase, info["generation"])

        def on_exit() -> None:
            quiet = 0
            while (one := alive()) is not None and quiet < _QUIET_CHECKS:
                quiet = 0 if one._threads else quiet + 1
                time.sleep(_CHECK_SECONDS)

        gc.callbacks.append(on_collection)
        atexit.register(on_exit)
        weakref.finalize(self, gc.callbacks.remove, on_collection).atexit = False
        weakref.finalize(self, atexit.unregister, on_exit).atexit = False

    def __call__(self, *arguments: Any) -> Any:
        with self.working():
            return self._function(*arguments)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Around what a thread does for a call."""
        here = threading.get_ident()
        # Appending and removing are atomic; a thread may stand in the list twice.
        self._threads.append(here)
        try:
            yield
        finally:
            self._threads.remove(here)

    def _hold_iterators(self, phase: str, generation: int) -> None:
        if threading.get_ident() not in self._threads:
            return
        self._held.clear()
        if phase == "start":
            # By name: asking an object for its class may run its code.
            for young in range(generation + 1):
                self._held += [one for one in gc.get_objects(young) if type(one).__name__ == _ITERATOR]
