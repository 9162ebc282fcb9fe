#!/usr/bin/env python3
"""Install retina into .venv of this checkout; return at once when nothing has changed since the last time.

    scripts/setup.py [--extras dev,jax] [--bare torchvision] [--without tensorflow] [--environment .venv]

--extras:      optional dependencies (see pyproject.toml), in addition to those that are installed already.
--bare:        packages to install without their dependencies, at the version that constraints.txt states.
--without:     tensorflow leaves out TensorFlow and what imports it (keras-cv, TFDS): an environment for
               KERAS_BACKEND=jax, whose CUDA packages are JAX's alone. Give it another folder:
               scripts/setup.py --without tensorflow --extras jax-cuda --environment .venv-jax
--environment: the environment's folder, .venv of this checkout by default.

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
from typing import Iterable, NoReturn, Optional

OLDEST, NEWEST = (3, 11), (3, 13)  # TensorFlow has wheels for these
ROOT = Path(__file__).resolve().parent.parent
INPUTS = ("pyproject.toml", "constraints.txt")
# What is of no use without a package: it imports the package.
WITHOUT = {"tensorflow": ("tensorflow", "keras-cv", "tensorflow-datasets", "importlib_resources")}
# Prints, as a JSON list, what pyproject.toml (the first word) asks for with the extras of the second.
REQUIREMENTS = """
import json, sys, tomllib
project = tomllib.load(open(sys.argv[1], "rb"))["project"]
extras = [name for name in sys.argv[2].split(",") if name]
print(json.dumps(sum((project["optional-dependencies"][name] for name in extras), project["dependencies"])))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extras", type=names, default=set(), help="for instance dev,jax")
    parser.add_argument("--bare", type=names, default=set(), help="for instance torchvision")
    parser.add_argument("--without", choices=sorted(WITHOUT), help="leave it out, and what imports it")
    parser.add_argument("--environment", type=Path, default=ROOT / ".venv", help="folder of the environment")
    options = parser.parse_args()

    venv = options.environment.absolute()
    before = read_stamp(venv)
    if before and before.get("without") != options.without:
        has = "without " + before["without"] if before.get("without") else "with everything"
        stop("{} is an environment {}; give another --environment, or remove it".format(venv, has))
    state = {
        "checkout": str(ROOT),
        "inputs": digest(),
        "extras": sorted(options.extras | set(before.get("extras", ()))),
        "bare": sorted(options.bare | set(before.get("bare", ()))),
        "without": options.without,
    }
    if before == state:
        return
    started = time.time()
    if not before and not works(venv):
        create(venv)
    if stamp_of(venv).exists():
        stamp_of(venv).unlink()
    install(venv, state["extras"], state["bare"], options.without)
    stamp_of(venv).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
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


def python_of(venv: Path) -> Path:
    return venv / "bin" / "python"


def stamp_of(venv: Path) -> Path:
    return venv / "retina-setup.json"


def read_stamp(venv: Path) -> dict:
    """Stamp of the last set-up; empty if there was none, it was cut off, or the checkout has moved since."""
    try:
        stamp = json.loads(stamp_of(venv).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if stamp.get("checkout") == str(ROOT) else {}


def works(venv: Path) -> bool:
    """Return whether it has a suitable Python with pip, made for this folder: its scripts name their folder."""
    if not python_of(venv).exists() or not suitable(str(python_of(venv))):
        return False
    pip = venv / "bin" / "pip"
    return pip.exists() and str(venv) in pip.read_text(encoding="utf-8", errors="replace").partition("\n")[0]


def create(venv: Path) -> None:
    python = find_python()
    say("making the environment {} with {}".format(venv.name, python))
    if run([python, "-m", "venv", "--clear", str(venv)]).returncode == 0:
        return
    # Debian's bare Python lacks ensurepip: its own pip, where there is one, can fill the environment from outside.
    bare = run([python, "-m", "venv", "--clear", "--without-pip", str(venv)])
    filled = [python, "-m", "pip", "--python", str(python_of(venv)), "install", "-q", "pip"]
    pip = run(filled) if bare.returncode == 0 else bare
    if pip.returncode != 0:
        shutil.rmtree(venv, ignore_errors=True)
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


def install(venv: Path, extras: Iterable, bare: Iterable, without: Optional[str]) -> None:
    what = "retina" + (" with " + ", ".join(extras) if extras else "")
    say("installing {}; the first time this downloads about 1 GB and takes some minutes".format(what))
    constraints = ["-c", str(ROOT / "constraints.txt")]
    pip(venv, "--upgrade", "pip")
    if without is None:
        pip(venv, "-e", str(ROOT) + ("[{}]".format(",".join(extras)) if extras else ""), *constraints)
    else:
        pip(venv, *remaining(venv, extras, without), *constraints)
        bare = ["-e", str(ROOT), *bare]
    if bare:
        pip(venv, "--no-deps", *bare, *constraints)


def remaining(venv: Path, extras: Iterable, without: str) -> list:
    """Requirements of retina and of some extras, but those of `WITHOUT`."""
    done = run([str(python_of(venv)), "-c", REQUIREMENTS, str(ROOT / "pyproject.toml"), ",".join(extras)])
    if done.returncode != 0:
        stop("cannot read pyproject.toml: is each of --extras one of its optional dependencies?", done.stdout)
    return [text for text in json.loads(done.stdout) if re.split(r"[^\w.-]", text)[0] not in WITHOUT[without]]


def pip(venv: Path, *arguments: str) -> None:
    done = run([str(python_of(venv)), "-m", "pip", "install", "-q", *arguments])
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
