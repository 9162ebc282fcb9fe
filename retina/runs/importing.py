"""Import of another ecosystem's weights as a run directory, which evaluates, predicts and exports like any other."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from retina import config as configuration
from retina.config import Config
from retina.data.formats.digits import read_digits
from retina.data.load import load_split
from retina.errors import RetinaError
from retina.files import exists, write_text, written
from retina.inference import build_detector
from retina.runs.checkpoint import Checkpoint, gather, restore, save
from retina.runs.directory import BEST, LATEST, RunDirectory
from retina.runs.environment import describe_environment
from retina.weights import sources
from retina.weights.mapping import Report

Kind = Literal["torchvision", "keras-hub", "detectron2", "torchvision-backbone"]

REPORT, LEFTOVERS, PICTURES = "import.json", "import_leftovers.npz", "pictures"

# Settings that the file of weights does not hold: the places of COCO's files, and the schedule of arXiv:1708.02002.
_UNKNOWN: dict[str, Any] = {
    "data": {
        "root": "coco",
        "train": {"format": "coco", "annotations": "annotations/instances_train2017.json", "images": "train2017"},
        "validation": {"format": "coco", "annotations": "annotations/instances_val2017.json", "images": "val2017"},
        "invalid_boxes": "drop",
    },
    "schedule": {"kind": "step", "steps": 90000, "milestones": [60000, 80000], "warmup_steps": 500},
    "run": {"batch_size": 16},
}
# Settings that decide which variables a detector has, and of which shape.
_OF_THE_NETWORK = (
    "model.backbone", "model.fpn.channels", "model.fpn.min_level", "model.fpn.max_level", "model.fpn.p6_from",
    "model.head.channels", "model.head.layers", "model.head.norm", "model.head.conv_bias", "anchors.ratios",
    "anchors.scales", "anchors.sizes",
)  # fmt: skip
_OF_THE_CONFIG = ("data", "optimizer", "schedule", "run", "evaluation", "export")


def import_run(
    kind: Kind,
    file: str | Path,
    out: str | Path,
    *,
    classes: Sequence[str] | None = None,
    config: Config | None = None,
    overrides: Sequence[str] = (),
) -> Report:
    """Turn a file of another ecosystem's weights into a run directory; return a report on every tensor.

    The run's configuration holds the conventions under which the detector computes here what it computed there, and
    `model.init_from` names the run itself, so that `config.yaml` trains from these weights into another folder. The
    directory has the files of a run (`checkpoints/step_0.npz`, which `best` and `latest` name), `import.json` (the
    report), `import_leftovers.npz` (tensors without a place here, for the export back), and without a `config` four
    built-in `pictures` as the split `test`, so that an export can be certified without data.

    A backbone (`torchvision-backbone`, or a ResNet of `keras-hub`) becomes a run whose detector is the config's, with
    heads drawn by `run.seed`: `model.init_from` takes it.

    Args:
        kind: the ecosystem of the file. `torchvision`: the state dict of `retinanet_resnet50_fpn` or `…_v2`, or of a
            `RetinaNet` on another ResNet with the same pyramid, heads and anchors. `keras-hub`: a preset folder, .keras
            or .weights.h5 of its RetinaNetObjectDetector, or of a ResNetBackbone. `detectron2`: its RetinaNet, .pkl or
            .pth. `torchvision-backbone`: an ImageNet classifier's state dict, timm's as well.
        file: .pth or .safetensors, or as `kind` says; or a name of `retina.weights.sources.PUBLISHED`, to be fetched.
        out: a new folder.
        classes: names of the head's rows; by default COCO's 80 for a head of 91 rows (80 of detectron2), else
            `class_0`, …. Of a backbone, names of the classes; by default those of the config's training data.
        config: its sections data, optimizer, schedule, run, evaluation and export are taken, but for `data.resize` and
            `data.crowd`; of a backbone all.
        overrides: `key.path=value` of the resulting configuration.

    Returns:
        The report: where each tensor went, and which have no place here.

    Raises:
        RetinaError: the file can't be read or is not of this kind, the classes don't fit it, `out` is not empty, or
            `overrides` ask for another network than the file's. Nothing is written then.

    Example:

    >>> names = ["cat", "dog"]
    >>> report = retina.import_weights(
    ...     "torchvision", "model.safetensors", "runs/theirs", classes=names
    ... )
    >>> retina.load("runs/theirs").class_names
    ('cat', 'dog')
    """
    out = Path(out)
    _refuse_taken(out)
    path = sources.published_file(str(file)) if _is_published(kind, file) else Path(file).absolute()
    if kind == "torchvision-backbone" or (kind == "keras-hub" and sources.is_keras_backbone(path)):
        return _import_backbone(path, out, classes, config, overrides)
    source = sources.read_detector(kind, path, classes, str(file))
    resolved = _resolved(source.sections, config, out, overrides)
    detector = build_detector(resolved, source.names, load_weights=False)
    shapes = {variable.path: tuple(variable.shape) for variable in detector.variables}
    if overrides and shapes != source.shapes():
        _refuse_other_network(file, _resolved(source.sections, config, out, ()), resolved)
    converted = source.converted(shapes)
    restore({f"weights/{path}": values for path, values in converted.arrays.items()}, detector)
    checkpoint = _first_checkpoint(resolved, source.names, source.category_ids, detector)
    _write(out, path, resolved, checkpoint, converted.report, converted.leftovers, pictures=config is None)
    return converted.report


def _is_published(kind: Kind, file: str | Path) -> bool:
    """Return whether the file is given by a name.

    Raises:
        RetinaError: that name is of another kind.
    """
    if str(file) not in sources.PUBLISHED or exists(Path(file)):
        return False
    if sources.PUBLISHED[str(file)].kind != kind:
        raise RetinaError(f"{file}: its kind is {sources.PUBLISHED[str(file)].kind}, got {kind}; give that instead")
    return True


def published_run(name: str) -> Path:
    """Return the run of published weights, which are fetched and imported when it is first asked for.

    Raises:
        RetinaError: they can't be fetched, or are a classifier's, which `model.weights` takes.
    """
    kind = sources.PUBLISHED[name].kind
    if kind == "torchvision-backbone":
        raise RetinaError(f"{name}: it is a classifier, not a detector; give it as model.weights")
    run = sources.published_folder() / name / "run"
    if not exists(run):
        partial = run.with_name(f"{run.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        import_run(kind, sources.published_file(name), partial)
        partial.rename(run)
    return run


def _refuse_taken(out: Path) -> None:
    if exists(out) and (not out.is_dir() or any(out.iterdir())):
        raise RetinaError(f"{out}: expected a new or an empty folder, it is taken; choose another --out, or remove it")


def _refuse_other_network(file: str | Path, imported: Config, resolved: Config) -> None:
    """Raise an error that names the overridden settings with which the file does not fit, if there are any."""
    changed = []
    for path in _OF_THE_NETWORK:
        theirs, given = (reduce(getattr, path.split("."), config) for config in (imported, resolved))
        if theirs != given:
            changed.append((path, theirs, given))
    if changed:
        named = " and ".join(f"{path} {_plain(given)} (it has {_plain(theirs)})" for path, theirs, given in changed)
        raise RetinaError(
            f"{file}: expected overrides that fit the network in this file, got {named}; leave "
            f"{'it' if len(changed) == 1 else 'them'} out"
        )


def _plain(value: Any) -> str:
    """Return a value as YAML writes it, on a line."""
    return value if isinstance(value, str) else json.dumps(value)


def _import_backbone(
    path: Path, out: Path, classes: Sequence[str] | None, config: Config | None, overrides: Sequence[str]
) -> Report:
    """Write a run of the config's detector on an imported backbone."""
    depth = sources.backbone_depth(path)
    if config is None:
        tree = {**_UNKNOWN, "model": {"backbone": f"resnet{depth}", "fpn": {"padding": "symmetric"}}}
        config = configuration.parse(tree, "imported configuration")
    chosen = [override.partition("=")[2] for override in overrides if override.startswith("model.backbone=")]
    backbone = chosen[-1] if chosen else config.model.backbone
    _check_depth(path, depth, backbone)
    resolved = configuration.override(config, [f"model.weights={json.dumps(str(path))}", *overrides])
    resolved = configuration.with_absolute_root(resolved)
    _check_depth(path, depth, resolved.model.backbone)  # a whole section may have been overridden
    pixels = sources.pixel_notes(path, resolved.model.pixel_mean, resolved.model.pixel_std)
    names, ids = _classes_of_data(resolved, classes)
    keras.utils.set_random_seed(resolved.run.seed)
    detector = build_detector(resolved, names, load_weights=False)
    report = sources.load_backbone(detector.backbone, path, resolved.model.backbone)
    report = dataclasses.replace(report, notes=(*report.notes, *pixels))
    _write(out, path, resolved, _first_checkpoint(resolved, names, ids, detector), report, {}, pictures=False)
    return report


def _check_depth(path: Path, depth: int, backbone: str) -> None:
    if backbone.removesuffix("_v1") != f"resnet{depth}":
        raise RetinaError(
            f"{path}: holds the weights of resnet{depth}, the configuration's model.backbone is {backbone}; add "
            f"model.backbone=resnet{depth}"
        )


def _classes_of_data(config: Config, names: Sequence[str] | None) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the given classes, or those of the training data."""
    if names is not None:
        if len(set(names)) != len(names) or not all(names):
            raise RetinaError(f"--classes: expected distinct names, got {list(names)}")
        return tuple(names), tuple(range(1, len(names) + 1))
    try:
        data = load_split(config.data, "train")
    except RetinaError as error:
        raise RetinaError(f"the classes are the training data's, unless --classes names them: {error}") from None
    return data.class_names, data.category_ids


def _first_checkpoint(
    config: Config, names: tuple[str, ...], ids: tuple[int, ...], detector: keras.Model
) -> Checkpoint:
    return Checkpoint(
        step=0,
        config=config.model_dump(mode="json"),
        class_names=names,
        category_ids=ids,
        best=None,
        arrays=gather(detector),
    )


def _resolved(conventions: dict[str, Any], config: Config | None, out: Path, overrides: Sequence[str]) -> Config:
    """Return a whole configuration with the conventions of the file."""
    if config is None:
        folder = out.absolute() / PICTURES
        test = {"format": "coco", "annotations": str(folder / "instances.json"), "images": str(folder)}
        tree = {**_UNKNOWN, "data": {**_UNKNOWN["data"], "test": test}}
    else:
        whole = config.model_dump(mode="json")
        tree = {name: whole[name] for name in _OF_THE_CONFIG}
    sections = dict(conventions)
    resize = sections.pop("resize")
    inference = dict(sections.pop("inference"))
    if config is not None:
        resize = {**resize, "max_canvases": config.data.resize.max_canvases}
        inference["batch_size"] = config.inference.batch_size
    # A config of this run trains from it: its weights are in the run, and the file they came in is no classifier's.
    model = {**sections.pop("model"), "weights": None, "init_from": str(out.absolute())}
    data = {**tree["data"], "resize": resize, "crowd": sections.pop("crowd", "ignore")}
    tree = {**tree, **sections, "model": model, "inference": inference, "data": data}
    parsed = configuration.parse(tree, "imported configuration")
    return configuration.with_absolute_root(configuration.override(parsed, overrides))


def _write(
    out: Path,
    file: Path,
    config: Config,
    checkpoint: Checkpoint,
    report: Report,
    leftovers: dict[str, np.ndarray],
    *,
    pictures: bool,
) -> None:
    environment = {**describe_environment(config), "weights": {"file": str(file), "sha256": report.sha256}}
    _refuse_taken(out)  # again: files that appeared while the weights were read must not be removed
    try:
        run = RunDirectory.complete(out, configuration.to_yaml(config), environment)
        if pictures:
            _write_pictures(out / PICTURES, checkpoint.class_names, checkpoint.category_ids)
        with written(out / LEFTOVERS) as temporary:
            np.savez(temporary, **leftovers)  # type: ignore[arg-type]
        write_text(out / REPORT, json.dumps(report.to_json(), indent=1) + "\n")
        path = run.checkpoint_path("step_0")
        save(path, checkpoint)
        for name in (BEST, LATEST):
            run.point(name, path)
    except OSError as error:
        shutil.rmtree(out, ignore_errors=True)  # it was empty: half a run is no run
        raise RetinaError(f"{out}: cannot write the run directory: {error.strerror}; choose another --out") from None
    except RetinaError as error:  # its message is complete, but for the option's name
        shutil.rmtree(out, ignore_errors=True)
        raise RetinaError(str(error).replace("--run-dir", "--out")) from None


def _write_pictures(folder: Path, names: Sequence[str], ids: Sequence[int]) -> None:
    """Write digits as a COCO dataset of these classes: to compare an export on, not to measure a detector with."""
    drawn = read_digits("test", 4, 320)
    folder.mkdir()
    for row, encoded in enumerate(drawn.images):
        assert isinstance(encoded, bytes)
        with written(folder / f"{row}.png") as temporary:
            temporary.write_bytes(encoded)
    owners = np.repeat(np.arange(len(drawn)), np.diff(drawn.offsets))
    sides = drawn.boxes[:, 2:] - drawn.boxes[:, :2]
    tree = {
        "images": [
            {"id": row, "file_name": f"{row}.png", "height": int(size[0]), "width": int(size[1])}
            for row, size in enumerate(drawn.sizes)
        ],
        "categories": [{"id": category, "name": name} for category, name in zip(ids, names, strict=True)],
        "annotations": [
            {
                "id": row + 1,
                "image_id": int(owners[row]),
                "category_id": int(ids[drawn.labels[row] % len(ids)]),
                "bbox": [*map(float, drawn.boxes[row, :2]), *map(float, sides[row])],
                "area": float(sides[row].prod()),
                "iscrowd": 0,
            }
            for row in range(len(drawn.boxes))
        ],
    }
    write_text(folder / "instances.json", json.dumps(tree) + "\n")
