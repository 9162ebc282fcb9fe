"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Gives a temporary name of the same suffix in the same folder; on success it becomes `path`, else it is removed.

    The data reaches the disk before the name does, so that a power cut leaves the old file or the new one.
    """
    temporary = path.with_name(f".partial.{path.name}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        # On a full disk the half file would take the room that the next one needs.
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    with written(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
