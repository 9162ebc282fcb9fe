#!/usr/bin/env python3
"""Install retina into .venv of this checkout; return at once when nothing has changed since the last time.

    scripts/setup.py [--extras dev,jax] [--bare torchvision]

--extras: optional dependencies (see pyproject.toml), in addition to those that are installed already.
--bare:   packages to install without their dependencies, at the version that constraints.txt states.

Nothing but Python 3.11 to 3.13 is needed. Pip's own configuration (PIP_INDEX_URL and so on) is honoured: where the
index at hand offers only the CUDA build of PyTorch, an extra index with its CPU build saves several GB.
"""

# Runs under any Python 3, so that an old one can say so in a clear message: standard library, plain syntax.
import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Iterable, NoReturn

OLDEST, NEWEST = (3, 11), (3, 13)  # TensorFlow has wheels for these
ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "retina-setup.json"
INPUTS = ("pyproject.toml", "constraints.txt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extras", type=names, default=set(), help="for instance dev,jax")
    parser.add_argument("--bare", type=names, default=set(), help="for instance torchvision")
    options = parser.parse_args()

    before = read_stamp()
    state = {
        "checkout": str(ROOT),
        "inputs": digest(),
        "extras": sorted(options.extras | set(before.get("extras", ()))),
        "bare": sorted(options.bare | set(before.get("bare", ()))),
    }
    if before == state:
        return
    started = time.time()
    if not before and not works():
        create()
    if STAMP.exists():
        STAMP.unlink()
    install(state["extras"], state["bare"])
    STAMP.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    say("done in {:.0f} s".format(time.time() - started))


def names(text: str) -> set:
    return {name for name in text.split(",") if name}


def digest() -> str:
    """Digest of what decides what is installed: two files, and the version, which pip records."""
    joined = hashlib.sha256()
    for name in INPUTS:
        joined.update((ROOT / name).read_bytes() + b"\0")
    package = (ROOT / "retina" / "__init__.py").read_text(encoding="utf-8")
    line = re.search(r"^__version__ = .*$", package, re.MULTILINE)
    assert line is not None
    joined.update(line.group().encode())
    return joined.hexdigest()


def read_stamp() -> dict:
    """Stamp of the last set-up; empty if there was none, it was cut off, or the checkout has moved since."""
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if stamp.get("checkout") == str(ROOT) else {}


def works() -> bool:
    """Return whether .venv has a suitable Python with pip, made for this folder: its scripts name their folder."""
    if not PYTHON.exists() or not suitable(str(PYTHON)):
        return False
    pip = VENV / "bin" / "pip"
    return pip.exists() and str(VENV) in pip.read_text(encoding="utf-8", errors="replace").partition("\n")[0]


def create() -> None:
    python = find_python()
    say("making the environment .venv with " + python)
    if run([python, "-m", "venv", "--clear", str(VENV)]).returncode == 0:
        return
    # Debian's bare Python lacks ensurepip: its own pip, where there is one, can fill the environment from outside.
    bare = run([python, "-m", "venv", "--clear", "--without-pip", str(VENV)])
    pip = run([python, "-m", "pip", "--python", str(PYTHON), "install", "-q", "pip"]) if bare.returncode == 0 else bare
    if pip.returncode != 0:
        shutil.rmtree(VENV, ignore_errors=True)
        stop("cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv", pip.stdout)


def find_python() -> str:
    for candidate in (sys.executable, "python3.13", "python3.12", "python3.11"):
        path = shutil.which(candidate) if candidate else None
        if path and suitable(path):
            return path
    stop(
        "needs Python {0[0]}.{0[1]} to {1[0]}.{1[1]}, but this is {2[0]}.{2[1]} and no other is on the PATH; "
        "install one of them".format(OLDEST, NEWEST, sys.version_info)
    )


def suitable(python: str) -> bool:
    test = "import sys; sys.exit(not {} <= sys.version_info[:2] <= {})".format(OLDEST, NEWEST)
    return run([python, "-c", test]).returncode == 0


def install(extras: Iterable, bare: Iterable) -> None:
    what = "retina" + (" with " + ", ".join(extras) if extras else "")
    say("installing {}; the first time this downloads about 1 GB and takes some minutes".format(what))
    constraints = ["-c", str(ROOT / "constraints.txt")]
    pip("--upgrade", "pip")
    pip("-e", str(ROOT) + ("[{}]".format(",".join(extras)) if extras else ""), *constraints)
    if bare:
        pip("--no-deps", *bare, *constraints)


def pip(*arguments: str) -> None:
    done = run([str(PYTHON), "-m", "pip", "install", "-q", *arguments])
    if done.returncode != 0:
        stop("pip install {} failed".format(" ".join(arguments)), done.stdout)


def run(command: list) -> subprocess.CompletedProcess:
    environment = dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1", PIP_ROOT_USER_ACTION="ignore")
    # A PYTHONPATH or --user of the caller's would leak foreign packages into the environment.
    for name in ("PYTHONPATH", "PYTHONHOME", "PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_VIRTUALENV"):
        environment.pop(name, None)
    return subprocess.run(
        command,
        env=environment,
        cwd=str(ROOT),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
    )


def say(text: str) -> None:
    print("setup: " + text, file=sys.stderr, flush=True)


def stop(text: str, output: str = "") -> NoReturn:
    if output:
        print(output.rstrip(), file=sys.stderr)
    say(text)
    sys.exit(1)


if __name__ == "__main__":
    main()
