"""Fine-tuning: first weights from another run, all but the rows of classes that the other did not have."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from retina import config as configuration
from retina.config import Config
from retina.config.differences import changed_keys
from retina.errors import RetinaError
from retina.files import exists
from retina.models import backbones
from retina.models.detector import Detector
from retina.models.efficientnet_lite import INSTALLED, SCALES
from retina.runs.checkpoint import Checkpoint, read, restore
from retina.runs.directory import BEST, LATEST, RunDirectory
from retina.runs.ema import averaged_weights
from retina.runs.importing import published_run
from retina.weights.sources import PUBLISHED

# Settings that a run chooses for itself, whatever its first weights. The weights were trained for all others of the
# model, and for the anchors: other values are allowed, with a note.
_FREE = {"weights", "init_from", "init_classes", "batch_norm", "batch_norm_momentum", "freeze"}
_FREE_IN_PARTS = {"init", "prior", "init_std"}

# Share of letters that two names have in common, in order; cat and car have 0.67.
_ALIKE = 0.8


def read_initial(source: Path) -> Checkpoint:
    """Read the checkpoint that `model.init_from` names: a file, a run's best (its latest if no best is known), or
    published weights.

    Raises:
        RetinaError: there is no such checkpoint, or it is damaged.
    """
    if str(source) in PUBLISHED and not exists(source):
        source = published_run(str(source))
    if not exists(source):
        raise RetinaError(
            f"model.init_from: {source}: not a run directory (no such folder); make one with `retina import-weights` "
            "or `retina train`, or check the path: the config.yaml of an imported run names the folder it was made in"
        )
    if source.is_file():
        if source.suffix != ".npz":
            raise RetinaError(
                f"model.init_from: {source}: expected a run directory or one of its checkpoints (.npz), got a "
                f"'{source.suffix}' file; make a run of other weights with `retina import-weights`, and name that"
            )
        return read(source)
    run = RunDirectory.open(source)
    return read(run.checkpoint_path(BEST if run.pointed_step(BEST) is not None else LATEST))


def detector_of_preset(preset: str | Path, class_names: Sequence[str] | None, **arguments: Any) -> Detector:
    """Return a detector with trained weights; see `retina.Detector.from_preset`."""
    name = str(preset)
    of_classifier = name in PUBLISHED and PUBLISHED[name].kind == "torchvision-backbone"
    if of_classifier or name.startswith("efficientnet_lite"):
        if class_names is None:
            raise RetinaError(
                f"Detector.from_preset: {name}: it is a classifier's, whose classes are no detector's; give "
                "class_names= or num_classes="
            )
        return Detector(class_names, **{"model": _of_classifier(name), **arguments})
    if (Path(name) / "saved_model.pb").is_file() or Path(name).suffix.lower() in (".onnx", ".tflite"):
        raise RetinaError(
            f"Detector.from_preset: {name}: expected weights to train on, got an export, a graph without any; give the "
            "run that it was made of, or predict with it by retina.load"
        )
    if name not in PUBLISHED and not exists(Path(name)):
        raise RetinaError(f"Detector.from_preset: {name}: {_no_preset(name)}")
    try:
        saved = read_initial(Path(name))
    except RetinaError as error:
        raise RetinaError(f"Detector.from_preset: {str(error).removeprefix('model.init_from: ')}") from None
    trained = configuration.parse(saved.config, name)
    parts = ("model", "anchors", "assignment", "loss", "inference")
    sections = {part: getattr(trained, part) for part in parts} | {"precision": trained.run.precision} | arguments
    detector = Detector(class_names or saved.class_names, **sections, load_weights=False)
    model = {**trained.model.model_dump(), "weights": None, "init_from": Path(name), "init_classes": {}}
    initialise(detector, saved, trained.model_copy(update={"model": configuration.Model.model_validate(model)}))
    return detector


def _no_preset(name: str) -> str:
    if name in backbones.names():
        return (
            f"a network without weights; for random ones make Detector(class_names, "
            f"model=retina.config.Model(backbone={name!r}))"
        )
    presets = [*(f"efficientnet_lite{variant}" for variant in SCALES), *PUBLISHED]
    near = difflib.get_close_matches(name, presets, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"no such run directory or checkpoint, and no preset; {hint}presets: {', '.join(presets)}"


def _of_classifier(name: str) -> configuration.Model:
    if name in PUBLISHED:
        network = re.search(r"resnet\d+", name)
        assert network, name
        return configuration.Model(backbone=network[0], weights=name)
    return configuration.Model(backbone=name, weights=INSTALLED, pixel_mean=(127.0,) * 3, pixel_std=(128.0,) * 3)


def initialise(detector: Detector, saved: Checkpoint, config: Config) -> list[str]:
    """Give the detector the checkpoint's weights, or their moving average if it has one; return notes for the log.

    The classification head's last rows are taken by class name (`config.model.init_classes` translates); those of other
    classes stay as they were drawn, at the prior. All other weights must fit by path and shape.

    Raises:
        RetinaError: a weight does not fit, or `init_classes` names a class that does not exist; nothing is assigned.
    """
    source = config.model.init_from
    pairs = matching_classes(detector.class_names, saved.class_names, config.model.init_classes)
    arrays = averaged_weights(saved.arrays)
    for variable in (detector.classification.prediction.kernel, detector.classification.bias):
        name = f"weights/{variable.path}"
        if name in arrays:
            fresh = keras.ops.convert_to_numpy(variable.value)
            arrays[name] = _rows_by_class(
                f"{source}: {name}", arrays[name], fresh, detector.classification.anchors, pairs, len(saved.class_names)
            )
    try:
        restore(arrays, detector)
    except RetinaError as error:
        raise RetinaError(f"model.init_from: {source}: {error} Only classes may differ") from None
    return [f"weights from {source}, step {saved.step}", *_describe(detector.class_names, saved, config, pairs)]


def matching_classes(
    here: Sequence[str], there: Sequence[str], translation: Mapping[str, str]
) -> list[tuple[int, int]]:
    """Return (label here, label there) of each class that both have.

    Raises:
        RetinaError: the translation names a class that does not exist.
    """
    for name, other in translation.items():
        if name not in here or other not in there:
            side, known = ("this run's", here) if name not in here else ("the checkpoint's", there)
            raise RetinaError(
                f"model.init_classes: '{name}: {other}': expected one of {side} classes, got "
                f"'{name if name not in here else other}'; they are {', '.join(known)}"
            )
    places = {name: label for label, name in enumerate(there)}
    pairs = ((label, places.get(translation.get(name, name))) for label, name in enumerate(here))
    return [(label, other) for label, other in pairs if other is not None]


def _rows_by_class(
    where: str, old: np.ndarray, fresh: np.ndarray, anchors: int, pairs: list[tuple[int, int]], classes: int
) -> np.ndarray:
    """Return `fresh` [..., A·K] with the columns of shared classes from `old` [..., A·K'], anchor by anchor."""
    if old.shape != (*fresh.shape[:-1], anchors * classes):
        raise RetinaError(
            f"{where}: expected {list(fresh.shape[:-1])} and {anchors} anchors times {classes} classes, got "
            f"{list(old.shape)}; take over its anchors and head as well"
        )
    new = fresh.reshape(*fresh.shape[:-1], anchors, -1).copy()
    here, there = [list(labels) for labels in zip(*pairs, strict=True)] or ([], [])
    new[..., here] = old.reshape(*old.shape[:-1], anchors, classes)[..., there]
    return new.reshape(fresh.shape)


def _describe(names: Sequence[str], saved: Checkpoint, config: Config, pairs: list[tuple[int, int]]) -> list[str]:
    known = {label for label, _ in pairs}
    used = {label for _, label in pairs}
    fresh = [name for label, name in enumerate(names) if label not in known]
    left = [name for label, name in enumerate(saved.class_names) if label not in used]
    lines = []
    if fresh or left:
        lines.append(f"classification rows taken over for {_counted([names[label] for label, _ in pairs])}")
    if fresh:
        lines.append(f"classification rows drawn anew, at the prior {config.model.head.prior}, for {_counted(fresh)}")
    if left:
        lines.append(f"classification rows of the checkpoint left out: {_counted(left)}")
    near = [f"{name}: {other[0]}" for name in fresh if (other := _near(name, left))]
    if near:
        lines.append(f"if these are the same classes, set model.init_classes={{{', '.join(near)}}}")
    before = configuration.parse(saved.config, str(config.model.init_from))
    changed = changed_keys(_conventions(before), _conventions(config))
    if changed:
        lines.append(f"these weights were trained with other settings: {', '.join(changed.values())}")
    return lines


def _near(name: str, others: Sequence[str]) -> list[str]:
    """Return the most similar of other names, without regard to case; `aeroplane` and `airplane` are similar."""
    plain = {other.casefold(): other for other in others}
    return [plain[folded] for folded in difflib.get_close_matches(name.casefold(), plain, n=1, cutoff=_ALIKE)]


def _conventions(config: Config) -> dict[str, Any]:
    tree = config.model_dump(mode="json")
    model = {name: value for name, value in tree["model"].items() if name not in _FREE}
    for part in ("fpn", "head"):
        model[part] = {name: value for name, value in model[part].items() if name not in _FREE_IN_PARTS}
    return {"model": model, "anchors": tree["anchors"]}


def _counted(names: Sequence[str]) -> str:
    shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    return f"{len(names)} classes ({shown})" if len(names) != 1 else f"1 class ({shown})"
