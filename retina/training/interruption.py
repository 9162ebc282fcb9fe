"""A run that is told to stop writes its checkpoint first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from retina.errors import Interrupted

__all__ = ["Interrupted", "InterruptionGuard"]

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class InterruptionGuard:
    """Context manager: `signal` names the SIGINT, SIGTERM or SIGHUP that came, and is empty before.

    A second signal of the kind acts as it would without the guard. Outside the main thread, where Python delivers no
    signals, it does nothing.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.signal = ""
        self._say = say
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> InterruptionGuard:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name
        signal.signal(number, self._before[signal.Signals(number)])
        self._say(f"{self.signal}: finishing this step, then writing a checkpoint (again to stop at once)")
