"""Signals that stop a run: it writes its checkpoint first."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from retina.errors import Interrupted

__all__ = ["Interrupted", "InterruptionGuard"]

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

# Seconds.
_REPEATED = 2.0
_PATIENCE = 0.5


class InterruptionGuard:
    """Guard against signals, a context manager: `signal` names the SIGINT, SIGTERM or SIGHUP that came, empty before.

    A second signal of the kind acts as it would without the guard: SIGINT at once, the others only if they come more
    than 2 seconds after the first, since launchers send a signal to the process and another to its group. Outside the
    main thread, where Python delivers no signals, the guard does nothing. A SIGHUP that is ignored, as under `nohup`,
    stays so.

    Args:
        say: called with a line when the first signal comes, in a thread: a terminal that is gone or does not take the
            line must not keep the checkpoint waiting.
        clock: returns seconds.
    """

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.signal = ""
        self._say, self._clock = say, clock
        self._came: dict[int, float] = {}
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> InterruptionGuard:
        if threading.current_thread() is threading.main_thread():
            ignored = {number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_IGN} - {signal.SIGINT}
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS if number not in ignored}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = self._clock()
        if number in self._came:
            if number == signal.SIGINT or now - self._came[number] > _REPEATED:
                signal.signal(number, self._before[signal.Signals(number)])
                signal.raise_signal(number)
            return
        self._came[number] = now
        self.signal = signal.Signals(number).name
        line = f"{self.signal}: finishing this step, then writing a checkpoint (again to stop at once)"
        announcement = threading.Thread(target=self._say, args=(line,), name="announcement", daemon=True)
        announcement.start()
        announcement.join(_PATIENCE)
