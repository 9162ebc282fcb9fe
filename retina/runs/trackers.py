"""Figures of a run, also sent to W&B and MLflow (`run.trackers`)."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from retina.config import Config
from retina.config.differences import flat
from retina.errors import RetinaError, install_hint

Track = Callable[[str, dict[str, Any]], None]
"""Sends a group ("train" or "validation") and a line of figures with its `step`."""

_MOST_PARAMETERS = 100  # that MLflow takes at once


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
def tracked(path: Path | None, config: Config) -> Iterator[Track]:
    """Open the trackers of a run, and close them; without a path (another host writes) nothing is sent.

    Raises:
        RetinaError: a service can't be reached, or is set up wrongly.
    """
    with ExitStack() as until_done:
        names = config.run.trackers if path is not None else ()
        opened = []
        for name in names:
            try:
                opened.append(until_done.enter_context(_OPEN[name](path, config)))
            except Exception as error:  # of a service: whatever it raises
                raise RetinaError(
                    f"run.trackers: {name}: expected a service that takes figures, got {type(error).__name__}: "
                    f"{error}; correct its environment variables, or leave it out"
                ) from error

        def track(group: str, line: dict[str, Any]) -> None:
            figures = {
                f"{group}/{name}": float(value) for name, value in line.items() if name != "step" and value != -1
            }
            for send in opened:
                send(figures, line["step"])

        yield track


@contextmanager
def _wandb(path: Path, config: Config) -> Iterator[Callable[..., None]]:
    import wandb

    with wandb.init(
        project="retina", name=path.name, id=_identity(path), resume="allow", dir=path, config=_plain(config)
    ) as run:
        yield lambda figures, step: run.log(figures, step=step)


@contextmanager
def _mlflow(path: Path, config: Config) -> Iterator[Callable[..., None]]:
    import mlflow

    tag = {"retina.run": _identity(path)}
    known = mlflow.search_runs(filter_string=f"tags.`retina.run` = '{_identity(path)}'", output_format="list")
    identity = {"run_id": known[0].info.run_id} if known else {"run_name": path.name, "tags": tag}
    with mlflow.start_run(**identity):
        parameters = list(_plain(config).items())
        for first in range(0, len(parameters), _MOST_PARAMETERS):
            mlflow.log_params(dict(parameters[first : first + _MOST_PARAMETERS]))
        yield lambda figures, step: mlflow.log_metrics(figures, step=step)


_OPEN: dict[str, Callable[[Any, Config], AbstractContextManager[Callable[..., None]]]] = {
    "wandb": _wandb,
    "mlflow": _mlflow,
}


def _identity(path: Path) -> str:
    """Return what a run is known by when it goes on: the same for the same directory."""
    return hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:16]


def _plain(config: Config) -> dict[str, str]:
    return {key: str(value) for key, value in flat(config).items()}
