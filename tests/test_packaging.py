"""The package as a user meets it: what is in the wheel, how light it starts, and that it states one version."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import retina

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("tensorflow", "keras", "keras_cv", "jax", "torch", "numpy", "matplotlib", "sklearn", "pandas")
HELP_SECONDS = 0.4


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter, with warnings shown and without this process's test settings."""
    own = ("TF_", "KERAS_", "PYTHON")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)


# -------------------------------------------------------------------------------------------------------- start-up


def loaded_by(statement: str) -> list[str]:
    code = f"import json, sys; {statement}; print(json.dumps(sorted(n for n in sys.modules if n in {HEAVY!r})))"
    return json.loads(run("-c", code).stdout)


def test_import_is_light() -> None:
    assert loaded_by("import colorsys") == []
    assert loaded_by("import numpy") == ["numpy"]
    assert loaded_by("import retina") == []
    assert loaded_by("import retina.config, retina.cli") == []


def test_help_is_fast_and_silent() -> None:
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        done = run("-W", "default", "-m", "retina", "--help")
        seconds.append(time.perf_counter() - started)
        assert done.stderr == ""
        for command in ("train", "evaluate", "predict", "config"):
            assert re.search(rf"^\W*{command}\b", done.stdout, re.MULTILINE), f"'{command}' is not in:\n{done.stdout}"
    assert min(seconds) <= HELP_SECONDS


# --------------------------------------------------------------------------------------------------------- version


def test_one_version() -> None:
    assert retina.__version__ == importlib.metadata.version("retina-detection")
    assert retina.__version__ == run("-m", "retina", "version").stdout.strip()
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == retina.__version__


def test_entry_point() -> None:
    scripts = importlib.metadata.distribution("retina-detection").entry_points.select(group="console_scripts")
    assert [(script.name, script.value) for script in scripts] == [("retina", "retina.cli:main")]


# ----------------------------------------------------------------------------------------------------------- wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    folder = tmp_path_factory.mktemp("wheel")
    run("-m", "hatchling", "build", "-t", "wheel", "-d", str(folder))
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_wheel_holds_the_configs(wheel: zipfile.ZipFile) -> None:
    configs = sorted(path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").rglob("*.yaml"))
    assert "digits.yaml" in configs
    inside = sorted(name for name in wheel.namelist() if name.startswith("retina/configs/"))
    assert inside == [f"retina/configs/{name}" for name in configs]
    assert wheel.read("retina/configs/digits.yaml") == (ROOT / "configs" / "digits.yaml").read_bytes()


def test_wheel_holds_the_whole_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    """A pattern of .gitignore such as `data/` would silently leave a subpackage out."""
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "retina").rglob("*") if path.is_file()}
    expected = {name for name in files if "__pycache__" not in name}
    assert {"retina/__init__.py", "retina/data/__init__.py", "retina/models/__init__.py"} <= expected
    inside = {name for name in wheel.namelist() if ".dist-info/" not in name and not name.startswith("retina/configs/")}
    assert inside == expected


def test_wheel_holds_the_guide(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    pages = {path.name: path.read_bytes() for path in (ROOT / "retina" / "guide").glob("*.md")}
    assert len(pages) >= 12
    assert {name: wheel.read(f"retina/guide/{name}") for name in pages} == pages
    wheel.extractall(tmp_path)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from retina import guide; print(*guide.topics())"
    assert {f"{topic}.md" for topic in run("-P", "-c", code).stdout.split()} == set(pages)


def test_wheel_finds_the_digits_demo(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from retina import config; print(config.default_path())"
    found = Path(run("-P", "-c", code).stdout.strip())
    assert found == tmp_path / "retina" / "configs" / "digits.yaml"


def test_wheel_explains_its_settings(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Descriptions are read from the source, which has to be there."""
    wheel.extractall(tmp_path)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from retina.config.reference import page; print(page())"
    assert run("-P", "-c", code).stdout.strip() == wheel.read("retina/guide/settings.md").decode().strip()


# ---------------------------------------------------------------------------------------------------- dependencies


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    entries = [line for line in lines if line and not line.startswith("#")]
    wrong = [line for line in entries if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line)]
    assert wrong == [], "only NAME==VERSION, without URLs, hashes and local builds"
    names = [canonicalize_name(line.partition("==")[0]) for line in entries]
    assert sorted(names) == sorted(set(names))
    return dict(zip(names, (line.partition("==")[2] for line in entries), strict=True))


def test_constraints_pin_every_dependency_within_its_bounds() -> None:
    table = project()["project"]
    texts = table["dependencies"] + [text for extra in table["optional-dependencies"].values() for text in extra]
    requirements = [requirement for requirement in map(Requirement, texts) if requirement.name != "retina-detection"]
    assert {"tensorflow", "keras", "jax", "torch", "pytest"} <= {requirement.name for requirement in requirements}
    pinned = pins()
    for requirement in requirements:
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} has no line in constraints.txt"
        assert Version(version) in requirement.specifier, f"{requirement}: constraints.txt says {version}"


def test_core_dependencies_are_bounded_below() -> None:
    for text in project()["project"]["dependencies"]:
        assert any(bound.operator in (">=", "~=") for bound in Requirement(text).specifier), text


# -------------------------------------------------------------------------------------------------- what is written

# Put together from parts, so that this file does not find itself.
FOREIGN = re.compile(
    "|".join(
        [
            r"(?<![\w.~}/])/(?:home|Users|root|work|opt|mnt)" + r"/\w",
            r"\b[A-Z]:\\" + "Users",
            "file:" + r"///(?!etc\b)",  # an XML test reads a file that it must not get
            r"https?://\S+/" + r"simple\b",
            "pythonhosted" + r"\.org",
            r"pytorch\.org" + "/whl",
        ]
    )
)


def written_files() -> Iterator[Path]:
    """The text files of the checkout, whether or not git knows them yet."""
    yield from (path for path in ROOT.iterdir() if path.is_file() and path.name != ".git")
    for folder in (".ci", "configs", "notebooks", "retina", "scripts", "tests"):
        inside = (path for path in (ROOT / folder).rglob("*") if path.is_file())
        yield from (path for path in inside if not {"__pycache__", ".ipynb_checkpoints"} & {*path.parts})


@pytest.mark.parametrize(
    ("text", "foreign"),
    [
        ("see /home" + "/me/x", True),
        ("data.root=/opt" + "/coco", True),
        ("--extra-index-url https://example.org" + "/simple", True),
        ("find-links = file:" + "///wheels", True),
        ("../shared/data/bccd", False),
        ("#!/usr/bin/env bash", False),
        ("https://example.org/home/page", False),
        ("runs/work/x", False),
    ],
)
def test_foreign_text_is_recognised(text: str, foreign: bool) -> None:
    assert bool(FOREIGN.search(text)) is foreign


def test_no_path_of_a_machine_and_no_package_index() -> None:
    found, read = [], set()
    for path in written_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        read.add(path.relative_to(ROOT).as_posix())
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in FOREIGN.finditer(text)]
    assert {"pyproject.toml", "scripts/setup.py", ".ci/run", "retina/config/reading.py"} <= read
    assert found == []


def test_scripts_can_be_run() -> None:
    for name in ("scripts/setup.py", "scripts/demo", "scripts/test", ".ci/run"):
        path = ROOT / name
        assert os.access(path, os.X_OK), f"{name} is not executable"
        assert path.read_text(encoding="utf-8").startswith("#!/usr/bin/env "), name
