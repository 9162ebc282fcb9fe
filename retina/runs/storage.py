"""What is told where a run can no longer be written: the disk is full, or the folder is no longer ours."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeVar

from retina import config
from retina.errors import RunFailed
from retina.runs.directory import LATEST, RunDirectory, resume_command

T = TypeVar("T")
_STORAGE_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS, errno.ESTALE,
)  # fmt: skip


class Unwritable(Exception):
    """A file of the run could not be written; the message is the system's reason."""


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Around what writes into the run directory `path`, and around nothing else: what is read fails in its own words.

    Raises:
        Unwritable: it could not be written.
    """
    try:
        yield
    except OSError as error:
        reason = _reason(error, path)
        if reason is None:
            raise
        raise Unwritable(reason) from error


@contextmanager
def stored(path: Path, writer: AbstractContextManager[T]) -> Iterator[T]:
    """A context manager whose opening and closing write into the run directory `path`.

    An error that is on its way out already goes on alone, whatever the closing says.

    Raises:
        Unwritable: it could not be opened or closed.
    """
    with storing(path):
        entered = writer.__enter__()
    try:
        yield entered
    except BaseException as error:
        with contextlib.suppress(OSError):
            writer.__exit__(type(error), error, error.__traceback__)
        raise
    with storing(path):
        writer.__exit__(None, None, None)


@contextmanager
def storage_errors_told(path: Path, hosts: config.Hosts | None = None) -> Iterator[None]:
    """Around the run.

    Args:
        hosts: `run.hosts`, for the command that goes on.

    Raises:
        RunFailed: a file of it could not be written; says which checkpoint stands.
    """
    try:
        yield
    except Unwritable as error:
        raise RunFailed(
            f"{path}: the run stopped, since it cannot be written: {error}; {_what_stands(path)}. Make room, then go "
            f"on with: {resume_command(path, hosts)}"
        ) from None


def _reason(error: OSError, path: Path) -> str | None:
    """Why a file of the run could not be written; None where the error is another one."""
    # An evaluation's pictures are made of images that lie elsewhere.
    elsewhere = isinstance(error.filename, str) and not Path(error.filename).absolute().is_relative_to(path.absolute())
    return None if elsewhere or error.errno not in _STORAGE_ERRORS else error.strerror


def _what_stands(path: Path) -> str:
    try:
        step = RunDirectory(path).pointed_step(LATEST)
    except OSError:
        step = None
    return "it has no checkpoint yet" if step is None else f"the last checkpoint is whole (step {step})"
