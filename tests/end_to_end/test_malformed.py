"""Every kind of malformed input through the command line: exit code, one line that names it, nothing left behind."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest

from retina import cli
from tests.malformed import KINDS, Kind


class Done(NamedTuple):
    command: str
    code: int
    out: str
    err: str
    message: str  # what the user reads: the line on standard error, or the doctor's worst finding


def run(kind: Kind, folder: Path) -> Done:
    """Makes the files of a kind in `folder`, and runs its command there, in this process."""
    home = Path.cwd()
    arguments = kind.make(folder)
    out, err = io.StringIO(), io.StringIO()
    os.chdir(folder)
    try:
        with (
            mock.patch.object(sys, "argv", ["retina", *arguments]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as stop,
        ):
            cli.main()
    finally:
        os.chdir(home)
    message = err.getvalue().strip()
    if arguments[0] == "doctor" and not message:
        message = json.loads(out.getvalue())["findings"][0]["message"]
    return Done(arguments[0], int(stop.value.code or 0), out.getvalue(), err.getvalue(), message)


def test_there_are_enough_of_them():
    names = [kind.name for kind in KINDS]
    assert len(names) >= 40 and len(set(names)) == len(names)


@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_malformed(kind, tmp_path):
    before_run = tmp_path / "run"
    done = run(kind, tmp_path)
    assert re.search(kind.message, done.message), done.message
    assert done.code == kind.code
    assert "Traceback" not in done.out + done.err
    if done.code == 2:
        assert done.out == "" and done.err.startswith("retina: ") and done.err.count("\n") == 1
    assert not before_run.exists() and not (tmp_path / "out").exists()
