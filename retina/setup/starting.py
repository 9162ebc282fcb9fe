"""`retina init`: look at a folder, decide, and write down what was decided and why."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from retina import config
from retina.config import Config
from retina.data.batches import plan
from retina.data.dataset import DetectionDataset
from retina.data.formats import Format
from retina.data.formats.layouts import look
from retina.data.load import load_split
from retina.doctor.ceiling import report
from retina.doctor.cost import duration, estimate
from retina.doctor.coverage import place, resized_sides, sampled
from retina.doctor.inspection import Images, duplicate_groups, inspect
from retina.doctor.suggest import propose
from retina.errors import RetinaError, install_hint
from retina.files import bare_name, exists, write_text
from retina.models.efficientnet_lite import installed_file
from retina.output import count
from retina.runs.directory import SETUP, numbered, refuse_if_used
from retina.setup import decisions
from retina.setup.decisions import Speed, Work
from retina.setup.device import Device, device
from retina.setup.draft import Choice, Draft, to_table, to_yaml
from retina.setup.splits import ROLES, Role, divide, joined, roles, shares
from retina.training.timing import time_steps

_FORMATS = {"coco": "COCO", "voc": "Pascal VOC", "yolo": "YOLO", "csv": "CSV", "labelme": "labelme", "tfds": "TFDS"}
# Enough to see a tendency in brightness.
_LOOKED_AT = 200
# Enough for shares of boxes to within a percent.
_MEASURED_ON = 2000
_TIMED_STEPS = 4
_FEW_COVERED = 0.9
# Until the length is known.
_SOME_STEPS = {"schedule.kind": "cosine", "schedule.steps": 1000}

Measure = Callable[[Config, DetectionDataset], Speed]
Say = Callable[[str], None]


class Folder(NamedTuple):
    """Data and its splits: `tables` by what they are for, and the `draft` with the section `data` that reads them.

    Attributes:
        lists: names of images by split, where the splits were made here.
        images: those that were opened, of the training split or of all.
    """

    tables: dict[Role, DetectionDataset]
    draft: Draft
    lists: dict[Role, list[str]]
    images: Images


class Setup(NamedTuple):
    """A configuration: its `yaml` with reasons, the lists of images that it names, by file, and the expected time."""

    config: Config
    yaml: str
    table: tuple[str, ...]
    lists: dict[Path, list[str]]
    seconds: float


def init(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    minutes: float | None = None,
    overrides: Sequence[str] = (),
    format: Format | None = None,
    since: float | None = None,
    say: Say = lambda line: None,
) -> Config:
    """Write a configuration for a folder of images, each value with its reason, and return it.

    The same folder gives the same file, but for the number of steps, which follows from the speed that a few training
    steps have here. Where the folder has no validation split, one is made: lists of images are written to a folder
    beside the file.

    Args:
        folder: data that `retina doctor` recognises.
        out: the YAML file to write; by default it is called as the folder is, in the current folder.
        minutes: the time that training may take, from its start to the page; by default as long as is useful, up to an
            hour.
        overrides: `key.path=value`, which come before what would be chosen.
        format: the format as which a folder is read that may be of several.
        since: `time.monotonic()` at which `minutes` began; None begins with the training.
        say: called with lines on what is done, and what was decided.

    Returns:
        The configuration that was written.

    Raises:
        RetinaError: the folder can't be read or divided, `out` exists, or an override is wrong.

    Example:

    >>> config = retina.init("pets", "pets.yaml", overrides=["schedule.steps=20"])
    >>> config.schedule.steps, config.data.classes
    (20, ('cat', 'dog'))
    """
    file = Path(f"{bare_name(folder)}.yaml" if out is None else out)
    lists = file.absolute().with_name(f"{file.stem}_splits")
    for path in (file, lists):
        if exists(path):
            raise RetinaError(f"{path}: there is something already; remove it, or choose another --out")
    setup = set_up(folder, lists, minutes=minutes, overrides=overrides, format=format, since=since, say=say)
    for line in setup.table:
        say(line)
    file.parent.mkdir(parents=True, exist_ok=True)
    for path, names in setup.lists.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(f"{name}\n" for name in names))
    write_text(file, setup.yaml)
    say(f"{file}: written; training it takes about {duration(setup.seconds / 3600)} here")
    return setup.config


def init_run(
    folder: str | Path,
    run_dir: str | Path | None = None,
    *,
    minutes: float | None = None,
    overrides: Sequence[str] = (),
    format: Format | None = None,
    say: Say = lambda line: None,
) -> tuple[Config, Path]:
    """Write a folder's configuration into the run directory that it is for; return both.

    Args:
        run_dir: by default `runs/` and the folder's name, with a number if that is there.
        minutes: the time from this call to the page.

    The others as of `init`.

    Raises:
        RetinaError: as `init`; or the run directory is not empty.
    """
    name = bare_name(folder)
    path = numbered(Path("runs") / name) if run_dir is None else Path(run_dir)
    refuse_if_used(path)
    file, since = path / SETUP / f"{name}.yaml", time.monotonic()
    return init(folder, file, minutes=minutes, overrides=overrides, format=format, since=since, say=say), path


def set_up(
    folder: str | Path,
    lists: Path,
    *,
    minutes: float | None = None,
    overrides: Sequence[str] = (),
    format: Format | None = None,
    since: float | None = None,
    on: Device | None = None,
    measure: Measure | None = None,
    say: Say = lambda line: None,
) -> Setup:
    """Return the configuration for a folder, writing nothing.

    Args:
        lists: the folder of the lists of images, where splits are made.
        on: the device; None is this machine's.
        measure: returns the speed of a configuration's training; None runs a few steps.

    The others, and errors, as of `init`.
    """
    if minutes is not None and not minutes > 0:
        raise RetinaError(f"--minutes: expected more than 0, got {minutes:g}")
    on = device() if on is None else on
    say(f"{folder}: looking at the images")
    data = read(folder, lists, Draft(tuple(overrides)), format)
    train, draft = data.tables["train"], data.draft
    for choice in _of_the_images(data, on):
        draft = draft.choose(*choice)
    draft = _with_network(draft, train, on)
    say(f"measuring the speed of training on {on.name}")
    speed = (_measured if measure is None else measure)(draft.config(), train)
    spent = 0.0 if since is None else time.monotonic() - since
    draft, seconds = _with_length(draft, data.tables, speed, on, minutes, spent)
    files = {lists / f"{role}.txt": names for role, names in data.lists.items()}
    heading = [
        f"Written by `retina init` for {folder}. Each value has its reason above it; change what you like.",
        f"What is not here stays at its default: `retina config FILE` shows all. Training takes about "
        f"{duration(seconds / 3600)} on {on.name}.",
    ]
    return Setup(draft.config(), to_yaml(draft, heading), tuple(to_table(draft)), files, seconds)


# ------------------------------------------------------------------------------------------------- data and splits


def read(folder: str | Path, lists: Path, draft: Draft, format: Format | None = None) -> Folder:
    """Read a folder's splits, or make some.

    Raises:
        RetinaError: it is a configuration, it can't be read, or it can't be divided.
    """
    layout = look(str(folder), format=format)
    if layout.config is not None:
        raise RetinaError(f"{folder}: expected data, it is a configuration or a run; `retina train` takes it as it is")
    path = Path(folder)
    root = (path if path.is_dir() else path.parent if exists(path) else Path()).absolute()  # Path(): of a TFDS name
    sources = {
        role: relative_to(_merged([layout.splits[name] for name in names], role), root)
        for role, names in roles(list(layout.splits)).items()
    }
    draft = draft.choose({"data.root": str(root)}, _FORMATS[layout.format])
    tables, draft = _tables(sources, draft)
    images = sum(len(table) for table in tables.values())
    boxes = sum(len(table.boxes) for table in tables.values())
    draft = draft.choose(
        {"data.root": str(root)}, f"{_FORMATS[layout.format]}: {count(images, 'image')}, {count(boxes, 'box')}"
    )
    draft = draft.choose(*_classes(tables))
    if "validation" in tables:
        opened = inspect(sampled(tables["train"], _LOOKED_AT))
        there = "; ".join(f"{role} {len(table)}" for role, table in tables.items())
        return Folder(
            tables, draft.choose(_sections(sources), f"the splits of the folder (images: {there})"), {}, opened
        )
    return _divided(sources, tables, draft, lists)


def relative_to(source: config.Source, root: Path) -> config.Source:
    """Return a source with its paths relative to a folder, where they lie in it; others are absolute."""
    paths = {name: value.absolute() for name, value in source if isinstance(value, Path)}
    update = {name: path.relative_to(root) if path.is_relative_to(root) else path for name, path in paths.items()}
    return source.model_copy(update=update)


def _merged(sources: list[config.Source], role: Role) -> config.Source:
    """A source of several splits; only VOC's lists can be read together."""
    first, *others = sources
    if not others:
        return first
    if not all(isinstance(source, config.VocSource) for source in sources):
        raise RetinaError(
            f"splits: expected one for {role}, got {len(sources)}; remove all but one, or write a configuration "
            "(`retina guide data`)"
        )
    names = tuple(name for source in sources if isinstance(source, config.VocSource) for name in source.splits)
    return first.model_copy(update={"splits": names})


def _section(source: config.Source) -> dict[str, Any]:
    return {"format": source.format, **source.model_dump(mode="json", exclude_defaults=True)}


def _sections(sources: dict[Role, config.Source]) -> dict[str, Any]:
    return {"data.validation": None} | {f"data.{role}": _section(source) for role, source in sources.items()}


def _tables(sources: dict[Role, config.Source], draft: Draft) -> tuple[dict[Role, DetectionDataset], Draft]:
    """Read every split; where boxes are invalid, they are cut to their images, and the draft says so."""
    tables: dict[Role, DetectionDataset] = {}
    draft = draft.choose(_sections(sources), "").choose(_SOME_STEPS, "")
    for role in sources:
        try:
            tables[role] = load_split(draft.config().data, role)
        except RetinaError as error:
            if not error.details or draft.config().data.invalid_boxes != "error":
                raise
            reason = f"{count(len(error.details), 'invalid box')} in {role}, such as {error.details[0]}"
            draft = draft.choose(
                {"data.invalid_boxes": "clip"}, f"{reason}: cut to the image, or left out if nothing remains"
            )
            tables[role] = load_split(draft.config().data, role)
    return tables, draft


def _classes(tables: dict[Role, DetectionDataset]) -> Choice:
    """The classes of all splits, with their boxes."""
    boxes: dict[str, int] = {}
    for table in tables.values():
        counts = np.bincount(table.labels, minlength=len(table.class_names)).tolist()
        for name, number in zip(table.class_names, counts, strict=True):
            boxes[name] = boxes.get(name, 0) + number
    shown = ", ".join(f"{name} {number}" for name, number in boxes.items())
    return Choice({"data.classes": list(boxes)}, f"boxes of each class: {shown}")


def _divided(
    sources: dict[Role, config.Source], tables: dict[Role, DetectionDataset], draft: Draft, lists: Path
) -> Folder:
    """Divide the training images; images that can't be used are left out."""
    whole = tables["train"]
    images = inspect(whole)
    usable = np.array([fault is None for fault in images.faults], bool)
    same, near, _ = duplicate_groups([images])
    group = joined(len(whole), [*same, *near.rows])
    rows = np.flatnonzero(usable)
    parts = shares(len(rows), "test there" if "test" in tables else "all")
    part = divide([whole.image_ids[row] for row in rows], showing(whole)[rows], group[rows], parts)
    names = list_names(whole)
    made: dict[Role, DetectionDataset] = {}
    listed: dict[Role, list[str]] = {}
    for number, role in enumerate(ROLES[: len(parts)]):
        chosen = rows[part == number]
        made[role], listed[role] = whole.subset(chosen), [names[row] for row in chosen]
        select = config.Select(images=lists / f"{role}.txt")
        sources = {**sources, role: sources["train"].model_copy(update={"select": select})}
    copies = len(rows) - len(np.unique(group[rows]))
    reason = (
        f"the folder has no validation split: {', '.join(f'{len(table)} for {role}' for role, table in made.items())}"
    )
    reason += f", so that each shows each class in its share, and copies and near copies ({copies}) stay on one side"
    if len(rows) < len(whole):
        reason += f"; {count(len(whole) - len(rows), 'image')} left out that can't be read"
    ordered = {role: sources[role] for role in ROLES if role in sources}
    return Folder({**tables, **made}, draft.choose(_sections(ordered), reason), listed, images)


def showing(table: DetectionDataset) -> np.ndarray:
    """[N,K] bool: the classes of which each image shows an object that counts."""
    there = np.zeros((len(table), len(table.class_names)), bool)
    counted = ~(table.crowd | table.difficult)
    image = np.repeat(np.arange(len(table)), np.diff(table.offsets))
    there[image[counted], table.labels[counted]] = True
    return there


def list_names(table: DetectionDataset) -> list[str]:
    """Return what a list calls each image: its file, where no two have a name, else its id."""
    ids = [str(name) for name in table.image_ids]
    files = [Path(image).name if isinstance(image, str) else "" for image in table.images]
    return files if all(files) and len(set(files)) == len(files) and not set(files) & set(ids) else ids


# ---------------------------------------------------------------------------------------------- images and network


def _of_the_images(data: Folder, on: Device) -> list[Choice]:
    """The decisions that follow from images and boxes."""
    train = data.tables["train"]
    counted = ~(train.crowd | train.difficult)
    image = np.repeat(np.arange(len(train)), np.diff(train.offsets))[counted]
    boxes, sizes = train.boxes[counted], train.sizes[image]
    wide, high = (boxes[:, 2:] - boxes[:, :2]).T
    sides = np.sqrt(wide * high) / sizes.min(axis=1)
    aspects = {
        name: np.log(high / wide)[train.labels[counted] == label] for label, name in enumerate(train.class_names)
    }
    centres = boxes[:, 1::2].mean(axis=1) / sizes[:, 0]
    upright = decisions.orientation(data.images.thumbnails, centres, aspects)
    most = max(int(np.diff(table.offsets).max(initial=0)) for table in data.tables.values())
    return [
        decisions.resize(sides, train.labels[counted], train.sizes, on),
        decisions.augment(train.class_names, *upright),
        decisions.thresholds(most, config.Inference().max_detections),
        decisions.optimizer(),
        decisions.precision(on),
    ]


def _with_network(draft: Draft, train: DetectionDataset, on: Device) -> Draft:
    """Choose the network, its anchors, and the batch that fits into memory."""
    if not draft.gives("model.backbone", "model.weights", "model.init_from"):
        draft = draft.choose(*decisions.backbone(len(train), on, _installed(), install_hint("lite")))
    placed = resized_sides(place(train, draft.config().data.resize))
    draft = draft.choose(*decisions.heads(float(np.percentile(placed, 95)), on))
    draft = _with_anchors(draft, sampled(train, _MEASURED_ON), len(train))
    if draft.gives("run.batch_size"):
        return draft
    return draft.choose(*decisions.batch_size(estimate(draft.config(), train), on, len(train)))


def _with_anchors(draft: Draft, part: DetectionDataset, images: int) -> Draft:
    """Choose the anchors that the doctor proposes, and force matches where many boxes still have none."""
    if draft.gives("anchors"):
        return draft
    settings = draft.config()
    before = report(part, settings, images).total
    proposal = propose(part, settings)
    share = before.share
    if proposal is not None:
        changed = {
            f"anchors.{name}": list(value) if isinstance(value, tuple) else value
            for name, value in proposal.anchors
            if value != getattr(settings.anchors, name)
        }
        draft = draft.choose({"model.fpn": {**draft.tree()["model"]["fpn"], **_levels(proposal.fpn, settings)}}, "")
        share = report(part, draft.choose(changed, "").config(), images).total.share
        reason = f"{share:.1%} of the boxes have a positive anchor; {before.share:.1%} with the paper's anchors"
        draft = draft.choose(changed, reason)
    if share < _FEW_COVERED:
        forced = f"only {share:.1%} of the boxes have a positive anchor by overlap: each gets its best"
        return draft.choose({"assignment.force_match": True}, forced)
    return draft if proposal else draft.choose({}, f"anchors stay the paper's: {share:.1%} of the boxes have one")


def _levels(fpn: config.Fpn, settings: Config) -> dict[str, int]:
    """The levels of a pyramid that differ from those that are set."""
    names = ("min_level", "max_level")
    return {name: getattr(fpn, name) for name in names if getattr(fpn, name) != getattr(settings.model.fpn, name)}


def _installed() -> bool:
    try:
        installed_file("efficientnet_lite0")
    except RetinaError:
        return False
    return True


# ------------------------------------------------------------------------------------------------------------ length


def _measured(settings: Config, train: DetectionDataset) -> Speed:
    timing = time_steps(settings, train, _TIMED_STEPS)
    return Speed(timing.first_step, timing.step)


def _with_length(
    draft: Draft,
    tables: dict[Role, DetectionDataset],
    speed: Speed,
    on: Device,
    minutes: float | None,
    spent: float,
) -> tuple[Draft, float]:
    """Choose the schedule, unless an override does; return the expected seconds, too.

    Args:
        spent: seconds of `minutes` that are gone.
    """
    settings, train = draft.config(), tables["train"]
    batch = settings.run.batch_size
    geometries = plan.training_geometries(train, settings.data, batch_size=batch)
    canvases = sum(len(geometry.canvases) for geometry in geometries)
    work = Work(len(train), batch, len(tables["validation"]), canvases)
    if draft.gives("schedule.steps", "schedule.epochs"):
        if minutes is not None:
            raise RetinaError(
                "--minutes: it has no effect where schedule.steps or schedule.epochs are given; leave it out"
            )
        steps = plan.with_steps(settings, train).schedule.length
        evaluations = steps // (settings.run.evaluate_every or steps)
        return draft, decisions.seconds(steps, evaluations, work, speed)
    left = None if minutes is None else minutes - spent / 60
    chosen = decisions.length(work, speed, pretrained=settings.model.weights is not None, minutes=left)
    draft = draft.choose(*decisions.schedule(chosen, work, len(train.boxes), speed, on, minutes))
    every = {"run.evaluate_every": chosen.evaluate_every}
    return draft.choose(every, "the best of these checkpoints is used in the end"), chosen.seconds
