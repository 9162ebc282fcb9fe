"""Figures of a run, also sent to W&B and MLflow (`run.trackers`)."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from retina.config import Config
from retina.config.differences import flat
from retina.errors import RetinaError, install_hint
from retina.runs.directory import RunDirectory, storing

Track = Callable[[str, dict[str, Any]], None]
"""Sends a group ("train" or "validation") and a line of figures with its `step`."""

Send = Callable[[dict[str, float], int], object]
"""Sends figures and their step to a service."""

_MOST_PARAMETERS = 100  # that MLflow takes at once
# Seconds that W&B may take at a run's end: it would wait for its server without a limit, and a preempted run can't.
_LONGEST_FINISH = 30.0


def check_installed(names: Sequence[str]) -> None:
    """Raise a RetinaError that names the extra of a tracker whose package is missing."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise RetinaError(
                f"run.trackers: {name} is not installed ({error}); {install_hint(name)}, or leave it out"
            ) from None


@contextmanager
def tracked(path: Path | None, config: Config, say: Callable[[str], None]) -> Iterator[Track]:
    """Open the trackers of a run, and close them; without a path (another host writes) nothing is sent.

    Args:
        say: called with a line where a tracker fails; the run goes on without it.

    Raises:
        Unwritable: the run's id for its trackers could not be written.
    """
    with ExitStack() as until_done:
        trackers = []
        if path is not None and config.run.trackers:
            with storing(path):
                identity = RunDirectory(path).tracker_id()
            for name in config.run.trackers:
                trackers.append(until_done.enter_context(_Tracker(name, _OPEN[name](path, identity, config), say)))

        def track(group: str, line: dict[str, Any]) -> None:
            figures = {
                f"{group}/{name}": float(value) for name, value in line.items() if name != "step" and value != -1
            }
            for tracker in trackers:
                tracker.send(figures, line["step"])

        yield track


class _Tracker:
    """Tracker that costs no run, a context manager: its first error is a line, and nothing is sent to it afterwards.

    Every `Exception` is caught: services raise errors of their own, of HTTP, of sockets and of the disk, and none of
    them is worth the steps since the last checkpoint, or the error with which a run ends.
    """

    def __init__(self, name: str, service: AbstractContextManager[Send], say: Callable[[str], None]):
        self._name, self._service, self._say = name, service, say
        self._send: Send | None = None

    def __enter__(self) -> _Tracker:
        try:
            self._send = self._service.__enter__()
        except Exception as error:
            self._warn("opening", error)
        return self

    def send(self, figures: dict[str, float], step: int) -> None:
        if self._send is None:
            return
        try:
            self._send(figures, step)
        except Exception as error:
            self._warn("sending", error)
            # Now, not at the run's end: closing may wait for the service as well, and the exit code would wait with it.
            self.__exit__(type(error), error, error.__traceback__)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        opened, self._send = self._send is not None, None
        try:
            if opened:
                self._service.__exit__(kind, error, trace)
        except Exception as failure:
            self._warn("closing", failure)

    def _warn(self, action: str, error: Exception) -> None:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        self._say(f"warning: run.trackers: {self._name}: {action} failed: {reason}; nothing more is sent to it")


@contextmanager
def _wandb(path: Path, identity: str, config: Config) -> Iterator[Send]:
    import wandb

    run = wandb.init(
        project="retina",
        name=path.name,
        id=identity,
        resume="allow",
        dir=path,
        config=_plain(config),
        # Otherwise a run that the caller has opened would be taken, and closed at the end.
        reinit="default" if wandb.run is None else "create_new",
        settings={"finish_timeout": float(os.environ.get("WANDB_FINISH_TIMEOUT", _LONGEST_FINISH))},
    )
    exit_code = 1
    try:
        yield lambda figures, step: run.log(figures, step=step)
        exit_code = 0
    finally:
        run.finish(exit_code)  # a `with` would print a traceback of every signal


@contextmanager
def _mlflow(path: Path, identity: str, config: Config) -> Iterator[Send]:
    import mlflow

    tag = {"retina.run": identity}
    known = mlflow.search_runs(filter_string=f"tags.`retina.run` = '{identity}'", output_format="list")
    place = {"run_id": known[0].info.run_id} if known else {"run_name": path.name, "tags": tag}
    with mlflow.start_run(**place, nested=True):  # the caller may have a run open
        # MLflow refuses a second value, and a run may be resumed with other settings.
        sent = known[0].data.params if known else {}
        parameters = [(key, value) for key, value in _plain(config).items() if key not in sent]
        for first in range(0, len(parameters), _MOST_PARAMETERS):
            mlflow.log_params(dict(parameters[first : first + _MOST_PARAMETERS]))
        yield lambda figures, step: mlflow.log_metrics(figures, step=step)


_OPEN: dict[str, Callable[[Path, str, Config], AbstractContextManager[Send]]] = {"wandb": _wandb, "mlflow": _mlflow}


def _plain(config: Config) -> dict[str, str]:
    return {key: str(value) for key, value in flat(config).items()}
