"""`retina init` on folders: a configuration that loads, the same each time, without a leak, with its reasons."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from retina import config
from retina.data.dataset import DetectionDataset
from retina.data.load import load_split
from retina.errors import RetinaError
from retina.setup import starting
from retina.setup.draft import Draft, to_yaml
from tests.setup.made import CPU, SPEED, cost, photograph, voc_folder


def set_up(folder: Path, lists: Path, *overrides: str, **options) -> starting.Setup:
    """With a batch of 4, so that no network is built to estimate its memory."""
    overrides = ("run.batch_size=4", *overrides)
    return starting.set_up(folder, lists, overrides=overrides, on=CPU, measure=lambda *_: SPEED, **options)


def write_coco(table: DetectionDataset, folder: Path) -> None:
    """`boxes.json` beside `images`."""
    shutil.copytree(Path(table.images[0]).parent, folder / "images")
    images = [
        {"id": row, "file_name": Path(image).name, "height": 96, "width": 128} for row, image in enumerate(table.images)
    ]
    owners = np.repeat(np.arange(len(table)), np.diff(table.offsets)).tolist()
    annotations = [
        {"id": n + 1, "image_id": owner, "category_id": int(label), "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0}
        for n, (owner, label, (x1, y1, x2, y2)) in enumerate(
            zip(owners, table.labels, table.boxes.tolist(), strict=True)
        )
    ]
    categories = [{"id": number, "name": name} for number, name in enumerate(table.class_names)]
    tree = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "boxes.json").write_text(json.dumps(tree))


def write_yolo(table: DetectionDataset, folder: Path) -> None:
    """`images` and `labels`, with `classes.txt`."""
    shutil.copytree(Path(table.images[0]).parent, folder / "images")
    (folder / "labels").mkdir()
    (folder / "labels" / "classes.txt").write_text("\n".join(table.class_names))
    for row, image in enumerate(table.images):
        boxes, labels, *_ = table.objects(row)
        lines = [
            f"{label} {(x1 + x2) / 256!r} {(y1 + y2) / 192!r} {(x2 - x1) / 128!r} {(y2 - y1) / 96!r}"
            for label, (x1, y1, x2, y2) in zip(labels.tolist(), boxes.tolist(), strict=True)
        ]
        (folder / "labels" / f"{Path(image).stem}.txt").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """24 photographs, of which 5 are copies: three times the picture 0, recompressed, and two of picture 3."""
    seeds = [0, 1, 2, 3, *range(10, 25), 0, 0, 0, 3, 3]
    return voc_folder(tmp_path_factory.mktemp("data") / "desk", seeds)


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory):
    """The folder's configuration, written as `retina init` writes it."""
    out = tmp_path_factory.mktemp("out") / "desk.yaml"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(starting, "device", lambda: CPU)
        patch.setattr(starting, "_measured", lambda *_: SPEED)
        patch.setattr(starting, "estimate", lambda *_: cost(1e8))  # building the network takes seconds
        lines: list[str] = []
        settings = starting.init(folder, out, minutes=10, overrides=["run.seed=3"], say=lines.append)
    return out, settings, lines


def test_the_file_loads_as_what_was_returned(made):
    out, settings, _ = made
    assert config.load(out) == settings
    assert settings.run.seed == 3 and settings.data.classes == ("cup", "pen")


def test_only_what_was_chosen_is_written_with_its_reason_in_the_order_of_the_configuration(made):
    out, _, _ = made
    tree = yaml.safe_load(out.read_text())
    assert list(tree) == [name for name in config.Config.model_fields if name in tree]
    assert list(tree["data"]) == [name for name in config.Data.model_fields if name in tree["data"]]
    assert "difficult" not in tree["data"] and "precision" not in tree["run"]
    lines = out.read_text().splitlines()
    assert "  # as given" in lines and max(map(len, lines)) < 160
    for section in (line for line in lines if line.endswith(":")):
        assert lines[lines.index(section) + 1].startswith("  # "), section


def test_the_table_says_the_same(made):
    out, _, lines = made
    text = " ".join(" ".join(lines).split())
    assert "data.classes: [cup, pen]" in text and "boxes of each class: cup 40, pen 8" in text
    assert "batch_size: 8" in text and "within --minutes 10" in text
    assert lines[-1].startswith(f"{out}: written; training it takes about ")


def test_the_splits_leak_no_copy_and_leave_no_image_out(made):
    _, settings, _ = made
    train, validation = (set(load_split(settings.data, role).image_ids) for role in ("train", "validation"))
    assert len(train) + len(validation) == 24 and not train & validation
    for copies in ({"000", "019", "020", "021"}, {"003", "022", "023"}):
        assert copies <= train or copies <= validation
    assert 2 <= len(validation) <= 6


def test_the_same_folder_gives_the_same_file(folder, made, tmp_path):
    first, second = (set_up(folder, tmp_path, minutes=10) for _ in range(2))
    assert first == second


def test_splits_that_are_there_stay(folder, tmp_path):
    copy = voc_folder(tmp_path / "there", list(range(30, 36)))
    lists = copy / "ImageSets" / "Main"
    (lists / "all.txt").unlink()
    (lists / "train.txt").write_text("000\n001\n002\n003\n")
    (lists / "val.txt").write_text("004\n005\n")
    setup = set_up(copy, tmp_path / "lists")
    assert setup.lists == {} and setup.config.data.train == config.VocSource(splits=("train",))
    assert setup.config.data.validation == config.VocSource(splits=("val",)) and setup.config.data.test is None


def test_a_file_is_divided_as_a_folder_is(folder, tmp_path):
    """The same photographs in COCO's JSON and YOLO's text files: the same splits and sizes."""
    table = load_split(config.Data(root=folder, train=config.VocSource(splits=("all",)), validation=None), "train")
    for source, ending in (("coco", ".json"), ("yolo", "")):
        write = {"coco": write_coco, "yolo": write_yolo}[source]
        write(table, tmp_path / source)
        target = tmp_path / source / f"boxes{ending}" if ending else tmp_path / source
        setup, expected = set_up(target, tmp_path), set_up(folder, tmp_path)
        assert setup.config.data.root == tmp_path / source and setup.config.data.train.format == source
        assert setup.config.data.resize == expected.config.data.resize
        assert setup.config.anchors == expected.config.anchors and setup.config.schedule == expected.config.schedule
        assert [len(names) for names in setup.lists.values()] == [len(names) for names in expected.lists.values()]
        assert setup.config.data.classes == ("cup", "pen")


def test_of_a_folder_the_time_begins_with_the_command(folder, tmp_path):
    late = set_up(folder, tmp_path, minutes=6, since=time.monotonic() - 120)
    assert late.config.schedule.length < set_up(folder, tmp_path, minutes=6).config.schedule.length - 80
    assert "within --minutes 6" in late.yaml


def test_overrides_come_first(folder, tmp_path):
    setup = set_up(
        folder, tmp_path, "model.backbone=resnet18", "schedule.epochs=4", "run.batch_size=2", "data.resize.short=64"
    )
    assert setup.config.model.weights is None and setup.config.model.backbone == "resnet18"
    assert setup.config.schedule.epochs == 4 and setup.config.schedule.steps is None
    assert setup.config.run.batch_size == 2 and setup.config.data.resize.short == 64
    with pytest.raises(RetinaError, match="--minutes: it has no effect where schedule.steps"):
        set_up(folder, tmp_path, "schedule.steps=10", minutes=3)


def test_a_damaged_photograph_and_a_faulty_box_are_told(tmp_path):
    folder = voc_folder(tmp_path / "faulty", list(range(8)))
    (folder / "JPEGImages" / "005.jpg").write_bytes(b"\xff\xd8 no picture")
    box = folder / "Annotations" / "002.xml"
    box.write_text(box.read_text().replace("<xmax>110</xmax>", "<xmax>190</xmax>"))
    setup = set_up(folder, tmp_path)
    assert setup.config.data.invalid_boxes == "clip" and "1 invalid box in train" in setup.yaml
    assert "1 image left out that can't be read" in " ".join(setup.yaml.replace("#", "").split())
    assert "005.jpg" not in {name for names in setup.lists.values() for name in names}


@pytest.mark.parametrize(
    ("target", "text"),
    [("configs/digits.yaml", "expected data, it is a configuration or a run"), ("nowhere", "no such file or folder")],
)
def test_what_is_no_data_is_refused(target, text, tmp_path):
    with pytest.raises(RetinaError, match=text):
        set_up(Path(target), tmp_path)


def test_what_is_there_is_not_overwritten(tmp_path):
    (tmp_path / "my.yaml").write_text("mine")
    (tmp_path / "our_splits").mkdir()
    for file, there in (("my.yaml", "my.yaml"), ("our.yaml", "our_splits")):
        with pytest.raises(RetinaError, match=f"{there}: there is something already"):
            starting.init(tmp_path, tmp_path / file)


@pytest.mark.parametrize("minutes", [0, -3.0, float("nan")])
def test_no_time_is_refused(minutes, folder, tmp_path):
    with pytest.raises(RetinaError, match="--minutes: expected more than 0"):
        set_up(folder, tmp_path, minutes=minutes)


def test_a_draft_keeps_the_last_choice_and_marks_what_was_given():
    draft = Draft(("run.seed=1", "data.resize.long=96"))
    draft = draft.choose({"data.root": "x", "data.train": {"format": "digits"}, "data.validation": None}, "made up")
    draft = draft.choose({"schedule.kind": "constant", "schedule.steps": 1}, "first").choose(
        {"schedule.steps": 2}, "last"
    )
    draft = draft.choose({"data.resize": {"short": 64, "long": 64}}, "small")
    assert draft.config().schedule.length == 2 and draft.config().data.resize.long == 96
    reasons = draft.reasons()
    assert reasons["schedule.steps"] == "last" and reasons["run.seed"] == "as given"
    assert reasons["data.resize"] == "small (as given)"
    assert draft.gives("data.resize.long", "x") and draft.gives("data.resize.long.y") and draft.gives("data.resize")
    assert not draft.gives("data.root", "data.resize.lo", "data.resize.longer")
    assert yaml.safe_load(to_yaml(draft, ["made up"])) == draft.tree()


def test_names_in_lists_tell_images_apart(folder):
    table = load_split(config.Data(root=folder, train=config.VocSource(splits=("all",)), validation=None), "train")
    assert starting.list_names(table)[:2] == ["000.jpg", "001.jpg"]
    twice = table.subset([0, 1]).__class__(**{**vars(table.subset([0, 1])), "images": ("a/x.jpg", "b/x.jpg")})
    assert starting.list_names(twice) == ["000", "001"]
    assert photograph(1).size == (128, 96)
