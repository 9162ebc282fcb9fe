"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retina.errors import RetinaError

# Of the images that are read.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


# With a single slash too, as `Path` has it. A drive has a single letter.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def refuse_scheme(path: object) -> None:
    """Check that a path that a user names is one of this machine's file system.

    Raises:
        RetinaError: it has a scheme, such as gs://, of which nothing here is read or written.
    """
    if _SCHEME.match(str(path)):
        raise RetinaError(
            f"{path}: expected a path of this machine, got one with a scheme; copy it here, or mount it as a folder"
        )


def exists(path: Path) -> bool:
    """Return whether there is a file or folder of this name.

    Raises:
        RetinaError: it has a scheme; or the system won't look for it: its name is too long, or it lies in a folder that
            may not be entered.
    """
    refuse_scheme(path)
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a zero byte in the name
        return False
    except OSError as error:
        raise RetinaError(f"{path}: cannot look for this file or folder: {error.strerror}; check the path") from None
    return True


def refuse_special(path: str | Path) -> None:
    """Called before a file that a user names is opened: a pipe would be waited for without end.

    Raises:
        RetinaError: it is a pipe, a socket or a device.
        OSError: it can't be looked for.
    """
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise RetinaError(f"{path}: expected a file, it is a pipe, a socket or a device; give a regular file")


def is_file_name(word: str) -> bool:
    """Return whether a word of the command line names a file or folder; a word too long for a name does not."""
    try:
        return exists(Path(word))
    except RetinaError:
        return False


def bare_name(path: str | Path) -> str:
    """Return the name of a folder or file without its ending, to name after it what is made of it."""
    return Path(path).absolute().stem or "data"


def partial(path: Path) -> Path:
    """Return the temporary name of a file that is being written."""
    return path.with_name(f".partial.{path.name}")


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Gives a temporary name of the same suffix in the same folder; on success it becomes `path`, else it is removed.

    The data reaches the disk before the name does, so that a power cut leaves the old file or the new one.
    """
    temporary = partial(path)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException:
        # On a full disk the half file would take the room that the next one needs.
        temporary.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """A new name is on the disk only when its folder is; some file systems can't be asked, and lose nothing by it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def locked(folder: Path, busy: str) -> Iterator[None]:
    """Hold the lock of a folder, which the kernel releases however the process ends; nothing is written into it.

    Systems and file systems without locks give no protection.

    Args:
        busy: what to say where another process holds it, and what to do.

    Raises:
        RetinaError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RetinaError(f"{folder}: {busy}") from None
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """In UTF-8; bytes of a file's name that are no text are written as escapes."""
    with written(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
