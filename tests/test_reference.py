"""The reference of Python: its page is current, every public name is described, and every example runs."""

from __future__ import annotations

import doctest
import inspect
import re
import shutil
import tarfile
from pathlib import Path

import keras
import numpy as np
import pytest
import yaml

import retina
from tests.data.formats import folders
from tests.manual import GUIDE, ROOT
from tests.scripts import load_script

reference = load_script("api_reference")
PUBLIC = reference.public()
NAMES = [f"{entry.owner.name}.{entry.name}" if entry.owner else entry.name for entry in PUBLIC]
TENSORS = ("Tensor", "np.ndarray")
OF_KERAS = {"reduction", "name", "dtype", "kwargs"}  # of every Keras loss and layer


def example(entry) -> str:
    return entry.sections.get("Example", "")


# What takes a trained run, a network or a study; several seconds each.
HEAVY = ("runs/", "study", "Detector(", "browse(", "init(")
EXAMPLES = [
    pytest.param(entry, id=name, marks=[pytest.mark.slow] if any(word in example(entry) for word in HEAVY) else [])
    for entry, name in zip(PUBLIC, NAMES, strict=True)
    if ">>>" in example(entry)
]


def test_the_page_is_current():
    assert (GUIDE / "reference.md").read_text(encoding="utf-8") == reference.page(), f"run {reference.COMMAND}"


def test_all_that_is_public_is_on_it():
    assert {f"retina.{name}" for name in retina.__all__} - {"retina.__version__", "retina.losses"} <= set(NAMES)
    assert {f"retina.losses.{name}" for name in retina.losses.__all__} <= set(NAMES)
    assert {"retina.Detector.fit", "retina.Detector.from_preset", "Dataset.show", "Predictor.predict"} <= set(NAMES)


@pytest.mark.parametrize("entry", PUBLIC, ids=NAMES)
def test_a_public_name_is_described(entry):
    """What each argument is, with shapes of arrays, what comes back, what is raised, and an example."""
    parts = entry.sections
    assert re.match(r"[A-Z`0-9αN½].*[.:]", parts[""], re.DOTALL), "a first sentence"
    if hasattr(entry.value, "model_fields"):  # the page of settings describes every field
        return
    arguments = {name: text for names, text in reference.described(parts.get("Args", "")) for name in names}
    given = [each for each in entry.parameters if not (is_of_keras(entry) and each.name in OF_KERAS)]
    asked = {each.name for each in given if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)}
    assert asked <= set(arguments), f"without a description: {sorted(asked - set(arguments))}"
    assert set(arguments) <= {each.name for each in entry.parameters} | {"settings"}
    for each in given:
        if any(kind in str(each.annotation) for kind in TENSORS):
            assert re.search(r"\[[^\]]+\]|as in|as of", arguments[each.name]), f"{each.name}: no shape"
    function = entry.function
    if inspect.isfunction(function) and not isinstance(entry.value, property) and entry.owner is None:
        returns = str(inspect.signature(function).return_annotation) != "None"
        assert ("Returns" in parts) == returns
    if not isinstance(entry.value, property) and not (entry.owner and "raise " not in inspect.getsource(function)):
        assert "Raises" in parts or (inspect.isclass(entry.value) and issubclass(entry.value, Exception | tuple))
    assert ">>>" in example(entry) or f".{entry.name}" in example(entry.owner), "no example"


def is_of_keras(entry) -> bool:
    return inspect.isclass(entry.value) and issubclass(
        entry.value, keras.losses.Loss | keras.layers.Layer | keras.metrics.Metric
    )


def test_a_missing_description_is_seen():
    def huber(prediction, delta):
        """Return the loss."""

    with pytest.raises(AssertionError, match=r"without a description: \['delta', 'prediction'\]"):
        test_a_public_name_is_described(reference.Public("huber", huber))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the examples are run in: photographs of pets, a run, a study, and a detector as torchvision has it."""
    folder = tmp_path_factory.mktemp("examples")
    folders.ultralytics(folder / "pets")
    first, second, *_ = sorted((folder / "pets").rglob("*.png"))
    shutil.copy(first, folder / "dog.png")
    shutil.copy(second, folder / "cat.png")
    (folder / "runs").mkdir()
    for name in ("run", "study"):
        with tarfile.open(ROOT / "tests" / "fixtures" / f"{name}.tar.xz") as archive:
            archive.extractall(folder, filter="data")
    for name in ("a_0", "b_0"):
        shutil.copytree(folder / "run", folder / "runs" / name)
    (folder / "run").rename(folder / "runs" / "digits")
    study = yaml.safe_load((folder / "study" / "study.yaml").read_text())
    (folder / "digits.yaml").write_text(yaml.safe_dump(study["config"]))
    return folder


@pytest.fixture(scope="module")
def torchvision_run(folder) -> Path:
    """A run whose network torchvision has, never trained, and its weights in a file."""
    from retina.inference import build_detector
    from retina.runs.checkpoint import Checkpoint, gather, save
    from retina.runs.directory import RunDirectory

    settings = [
        "model.backbone=resnet18", "model.fpn={channels: 256, max_level: 7, padding: symmetric}",
        "model.head={channels: 256, layers: 4, norm: none}",
        "anchors={sizes: null, size: 4.0, offset: 0.0, rounding: true, spacing: canvas}",
    ]  # fmt: skip
    config = retina.load_config(overrides=settings)
    run = RunDirectory.create(folder / "runs" / "resnet18", retina.config.to_yaml(config), {})
    arrays = gather(build_detector(config, ("cat", "dog")))
    save(
        run.checkpoint_path("step_0"),
        Checkpoint(0, config.model_dump(mode="json"), ("cat", "dog"), (1, 2), None, arrays),
    )
    run.point("best", run.checkpoint_path("step_0"))
    retina.export_weights("torchvision", run.path, folder / "model.safetensors")
    return run.path


@pytest.mark.parametrize("entry", EXAMPLES)
def test_an_example_prints_what_stands_there(entry, request, folder, monkeypatch):
    if "torchvision" in example(entry):
        request.getfixturevalue("torchvision_run")
    monkeypatch.chdir(folder)
    test = doctest.DocTestParser().get_doctest(
        example(entry), {"retina": retina, "np": np}, entry.name, str(inspect.getsourcefile(entry.function)), 0
    )
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
    report: list[str] = []
    runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)
