"""Checkpoints are written by a thread while training goes on: only the copy of the arrays holds it up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType


class BackgroundWriter:
    """Context manager: one piece of work at a time, in order; what goes wrong in it is raised by the next call.

    Leaving the context waits for the work. If an exception is on its way out already, that one goes on alone.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.wait()
        else:
            self._join()

    def submit(self, work: Callable[[], None]) -> None:
        """Starts the work once what came before it is done."""
        self.wait()

        def run() -> None:
            try:
                work()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, name="checkpoint")
        self._thread.start()

    def check(self) -> None:
        """Raises what went wrong so far; does not wait."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Until the work is done; raises what went wrong in it."""
        self._join()
        self.check()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
