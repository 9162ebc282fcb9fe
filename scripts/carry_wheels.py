#!/usr/bin/env python3
"""Carry what retina needs to a GPU machine without a network that has PyTorch, JAX and their CUDA already.

    scripts/carry_wheels.py download wheels --python 3.12                    training, evaluation on JAX (9 MiB)
    scripts/carry_wheels.py download wheels --python 3.12 --sets core data   with TensorFlow (CPU) for tf.data (300 MiB)
    scripts/carry_wheels.py install wheels site                              there, then: export PYTHONPATH=$PWD/site

Versions are those of constraints.txt. A file larger than `--piece` MiB is split (NAME.whl.000, .001, …), so that a
folder can travel in several journeys: bring the pieces together in one folder again before `install`.
"""

# Runs under any Python 3.9 or later: standard library only.
from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Expected there, beside JAX and PyTorch; Python's ImportError names one that is not, and --also adds it.
THERE = (
    "numpy", "scipy", "scikit-learn", "h5py", "ml_dtypes", "absl-py", "packaging", "typing_extensions", "PyYAML",
    "rich", "typer", "jinja2", "pillow", "matplotlib", "opencv-python-headless", "tensorboard", "protobuf", "grpcio",
    "requests", "six", "wrapt", "flatbuffers", "opt_einsum", "setuptools",
)  # fmt: skip
SETS = {
    "core": (
        "keras",
        "namex",
        "optree",
        "pydantic",
        "pydantic_core",
        "annotated-types",
        "typing-inspection",
        "defusedxml",
        "pycocotools",
        "hotcoco",
        "simplejpeg",
    ),
    "data": ("tensorflow-cpu", "astunparse", "gast", "google-pasta", "termcolor", "libclang"),
}
PLATFORMS = (*(f"manylinux_2_{n}_x86_64" for n in (34, 31, 28, 27, 24, 17, 12, 5)), "manylinux2014_x86_64")
# TensorFlow's build without CUDA is a package of another name and of the same version.
SAME_VERSION_AS = {"tensorflow-cpu": "tensorflow"}


def version_of(package: str, constraints: str) -> str | None:
    """Version that constraints.txt names; None where it names none."""
    listed_as = SAME_VERSION_AS.get(package, package)
    for line in constraints.splitlines():
        name, equal, version = line.partition("==")
        if equal and normal(name) == normal(listed_as):
            return version.strip()
    return None


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def download(args: argparse.Namespace) -> None:
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    packages = [package for name in args.sets for package in SETS[name]] + args.also
    wanted = []
    for package in packages:
        version = version_of(package, constraints)
        wanted.append(package if version is None else f"{package}=={version}")
    args.folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-d", str(args.folder)]
    command += ["--python-version", args.python, "--implementation", "cp"]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    pip(command + wanted)
    for wheel in sorted(args.folder.glob("*.whl")):
        split(wheel, args.piece * 2**20)
    total = 0
    for file in sorted(args.folder.iterdir()):
        total += file.stat().st_size
        print(f"{file.stat().st_size / 2**20:8.2f} MiB  {file.name}")
    print(f"{total / 2**20:8.2f} MiB  in all")


def pip(command: list[str]) -> None:
    status = subprocess.run(command).returncode
    if status:
        sys.exit(status)  # pip has said why


def split(file: Path, size: int) -> None:
    """Cut a file that is larger than `size` bytes into pieces beside it, which take its place."""
    if file.stat().st_size <= size:
        return
    with file.open("rb") as whole:
        for number, piece in enumerate(iter(lambda: whole.read(size), b"")):
            file.with_name(f"{file.name}.{number:03d}").write_bytes(piece)
    file.unlink()


def join(folder: Path, target: Path) -> list[Path]:
    """Put each file that was split together in `target`, and return the paths.

    The names don't show that a last piece is missing: pip then refuses the wheel as no zip file.
    """
    pieces: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*.whl.[0-9][0-9][0-9]")):
        pieces.setdefault(file.name[:-4], []).append(file)
    for name, files in pieces.items():
        if [int(file.name[-3:]) for file in files] != list(range(len(files))):
            sys.exit(f"{name}: expected pieces 000 to {files[-1].name[-3:]}, got {len(files)}; bring the others, too")
        with (target / name).open("wb") as whole:
            for file in files:
                whole.write(file.read_bytes())
    return [target / name for name in pieces]


def install(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        wheels = [*sorted(args.folder.glob("*.whl")), *join(args.folder, Path(folder))]
        if not wheels:
            sys.exit(
                f"{args.folder}: expected wheels, got none; run `carry_wheels.py download` where there is a network"
            )
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        pip([*command, "--upgrade", "--target", str(args.target), *map(str, wheels)])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    down = commands.add_parser("download", help="where there is a network")
    down.add_argument("folder", type=Path)
    down.add_argument("--python", default="3.12", help="the GPU machine's")
    down.add_argument("--sets", nargs="+", choices=sorted(SETS), default=["core"])
    down.add_argument("--also", nargs="+", default=[], metavar="PACKAGE")
    down.add_argument("--piece", type=int, default=48, help="MiB")
    there = commands.add_parser("install", help="on the GPU machine")
    there.add_argument("folder", type=Path)
    there.add_argument("target", type=Path)
    args = parser.parse_args(arguments)
    {"download": download, "install": install}[args.command](args)


if __name__ == "__main__":
    main()
