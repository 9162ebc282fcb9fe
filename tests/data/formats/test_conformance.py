"""What holds for every source: the same five images, written in each format, become the same table.

A new source joins by one function in `WRITERS`, which writes `PICTURES` into a folder in its format.
"""

import io
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retina import config
from retina.data.dataset import DetectionDataset, Objects
from retina.data.load import load_split, read_split
from retina.data.stored import encoded
from retina.errors import RetinaError

NAMES = ("cat", "dog", "emu")


@dataclass(frozen=True)
class Thing:
    box: tuple[float, float, float, float]  # xyxy pixels
    name: str
    crowd: bool = False
    difficult: bool = False
    area: float | None = None


@dataclass(frozen=True)
class Picture:
    stem: str
    size: tuple[int, int]  # height, width
    things: tuple[Thing, ...] = ()

    @property
    def file(self) -> str:
        return f"{self.stem}.png"


# Sorted by name, as sources without an order of their own list them.
PICTURES = (
    Picture("a", (60, 80), (Thing((0, 0, 80, 60), "dog"), Thing((10.25, 5.5, 30.75, 20), "cat", area=77.5))),
    Picture("b", (80, 60)),
    Picture("c", (64, 64), (Thing((1, 2, 3, 4), "emu", difficult=True), Thing((20, 20, 50, 40.125), "dog"))),
    Picture("d", (50, 100), (Thing((33, 0, 99.5, 50), "cat", crowd=True), Thing((5, 5, 10, 10), "cat"))),
    Picture("e", (100, 50), (Thing((0.5, 0.5, 49.5, 99.5), "dog"),) * 1),
)


@dataclass(frozen=True)
class Written:
    """A source of the configuration, and what its format holds beside boxes and labels."""

    source: dict
    ids: tuple[int | str, ...]
    category_ids: tuple[int, ...]
    holds: frozenset[str] = field(default_factory=frozenset)  # of crowd, difficult and area
    precision: float = 1e-9  # pixels
    files: bool = True  # each image is one


def drawn(number: int, picture: Picture) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", picture.size[::-1], (50 * number, 100, 100)).save(out, format="PNG")
    return out.getvalue()


def pictures(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for number, picture in enumerate(PICTURES):
        (folder / picture.file).write_bytes(drawn(number, picture))
    return folder


def write_coco(root: Path) -> Written:
    pictures(root / "images")
    ids, kinds = (7, 3, 12, 900, 5), (2, 4, 10)  # neither in order nor without gaps
    things = [(image, thing) for image, picture in zip(ids, PICTURES, strict=True) for thing in picture.things]
    annotations = []
    for number, (image, thing) in enumerate(things):
        (x1, y1, x2, y2), label = thing.box, NAMES.index(thing.name)
        entry = {"id": number, "image_id": image, "category_id": kinds[label], "bbox": [x1, y1, x2 - x1, y2 - y1]}
        annotations.append(entry | {"iscrowd": int(thing.crowd)} | ({"area": thing.area} if thing.area else {}))
    tree = {
        "images": [
            {"id": image, "file_name": picture.file, "height": picture.size[0], "width": picture.size[1]}
            for image, picture in zip(ids, PICTURES, strict=True)
        ],
        "annotations": annotations,
        "categories": [{"id": kind, "name": name} for kind, name in zip(kinds, NAMES, strict=True)],
    }
    (root / "a.json").write_text(json.dumps(tree))
    source = {"format": "coco", "annotations": "a.json", "images": "images"}
    return Written(source, ids, kinds, frozenset({"crowd", "area"}))


def write_voc(root: Path) -> Written:
    pictures(root / "JPEGImages")
    (root / "Annotations").mkdir()
    (root / "ImageSets/Main").mkdir(parents=True)
    (root / "ImageSets/Main/all.txt").write_text("".join(f"{picture.stem}\n" for picture in PICTURES))
    for picture in PICTURES:
        height, width = picture.size
        objects = ""
        for thing in picture.things:
            x1, y1, x2, y2 = thing.box
            objects += (
                f"<object><name>{thing.name}</name><difficult>{int(thing.difficult)}</difficult><bndbox>"
                f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
            )
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        (root / f"Annotations/{picture.stem}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    source = {"format": "voc", "splits": ["all"]}
    return Written(source, tuple(picture.stem for picture in PICTURES), (1, 2, 3), frozenset({"difficult"}))


def write_yolo(root: Path) -> Written:
    pictures(root / "images/train")
    (root / "labels/train").mkdir(parents=True)
    (root / "data.yaml").write_text(f"path: .\ntrain: images/train\nnames: {list(NAMES)}\n")
    for picture in PICTURES:
        height, width = picture.size
        lines = ""
        for thing in picture.things:
            x1, y1, x2, y2 = thing.box
            cx, cy, w, h = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
            lines += f"{NAMES.index(thing.name)} {cx} {cy} {w} {h}\n"
        if lines:
            (root / f"labels/train/{picture.stem}.txt").write_text(lines)
    source = {"format": "yolo", "data": "data.yaml", "split": "train"}
    return Written(source, tuple(picture.stem for picture in PICTURES), (0, 1, 2))


def write_csv(root: Path) -> Written:
    pictures(root / "images")
    lines = ["image,width,height,x1,y1,x2,y2,label,crowd,difficult,area"]
    for picture in PICTURES:
        start = f"{picture.file},{picture.size[1]},{picture.size[0]}"
        for thing in picture.things:
            numbers = ",".join(map(str, thing.box))
            flags = f"{int(thing.crowd)},{int(thing.difficult)},{thing.area or ''}"
            lines.append(f"{start},{numbers},{thing.name},{flags}")
        if not picture.things:
            lines.append(f"{start},,,,,,,,")
    (root / "boxes.csv").write_text("\n".join(lines) + "\n")
    source = {"format": "csv", "annotations": "boxes.csv", "images": "images"}
    ids = tuple(picture.file for picture in PICTURES)
    return Written(source, ids, (1, 2, 3), frozenset({"crowd", "difficult", "area"}))


def write_labelme(root: Path) -> Written:
    pictures(root / "images")
    for picture in PICTURES:
        shapes = [
            {
                "label": thing.name,
                "points": [list(thing.box[:2]), list(thing.box[2:])],
                "shape_type": "rectangle",
                "difficult": thing.difficult,
            }
            for thing in picture.things
        ]
        height, width = picture.size
        tree = {"imagePath": f"../images/{picture.file}", "imageHeight": height, "imageWidth": width, "shapes": shapes}
        (root / "annotations").mkdir(exist_ok=True)
        (root / f"annotations/{picture.stem}.json").write_text(json.dumps(tree))
    ids = tuple(picture.stem for picture in PICTURES)
    return Written({"format": "labelme"}, ids, (1, 2, 3), frozenset({"difficult"}))


def write_tfds(root: Path) -> Written:
    """Two shards by TFDS' own means; corners are fractions in float32 there."""
    import tensorflow_datasets as tfds

    label = tfds.features.ClassLabel(names=NAMES)
    kinds = {"is_crowd": np.bool_, "is_difficult": np.bool_, "area": np.float32}
    objects = tfds.features.Sequence({"bbox": tfds.features.BBoxFeature(), "label": label, **kinds})
    spec = tfds.features.FeaturesDict({"image": tfds.features.Image(), "image/id": np.int64, "objects": objects})
    ids = (7, 3, 12, 900, 5)
    folder = root / "made/1.0.0"
    folder.mkdir(parents=True)

    def example(number: int) -> bytes:
        picture = PICTURES[number]
        height, width = picture.size
        things = []
        for thing in picture.things:
            x1, y1, x2, y2 = thing.box
            things.append(
                {
                    "bbox": tfds.features.BBox(y1 / height, x1 / width, y2 / height, x2 / width),
                    "label": thing.name,
                    "is_crowd": thing.crowd,
                    "is_difficult": thing.difficult,
                    "area": thing.area or (x2 - x1) * (y2 - y1),
                }
            )
        image = io.BytesIO(drawn(number, picture))
        return spec.serialize_example({"image": image, "image/id": ids[number], "objects": things})

    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name="made", split="train", filetype_suffix="tfrecord"
    )
    adapter = tfds.core.file_adapters.TfRecordFileAdapter
    for path, (start, stop) in zip(template.sharded_filepaths(2), itertools.pairwise((0, 2, 5)), strict=True):
        adapter.write_examples(path, ((number, example(number)) for number in range(start, stop)))
    info = tfds.core.SplitInfo(name="train", shard_lengths=[2, 3], num_bytes=1, filename_template=template)
    tfds.folder_dataset.write_metadata(data_dir=folder, features=spec, split_infos=[info], check_data=False)
    source = {"format": "tfds", "name": "made", "split": "train", "data_dir": "."}
    holds = frozenset({"crowd", "difficult", "area"})
    return Written(source, ids, (0, 1, 2), holds, precision=100 * 2.0**-24, files=False)


WRITERS: dict[str, Callable[[Path], Written]] = {
    "coco": write_coco,
    "voc": write_voc,
    "yolo": write_yolo,
    "csv": write_csv,
    "labelme": write_labelme,
    "tfds": write_tfds,
}
# Made in memory: nothing can be written for it, so it is held only to what needs no known content.
DIGITS = {"format": "digits", "images": 5, "size": 64}
SOURCES = [*WRITERS, "digits"]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, tuple[Path, Written]]:
    found = {}
    for name, write in WRITERS.items():
        root = tmp_path_factory.mktemp(name)
        found[name] = root, write(root)
    return found


def section(written, name: str, **changes) -> config.Data:
    root, source = (".", DIGITS) if name == "digits" else (written[name][0], written[name][1].source)
    flat = {"augment": {"horizontal_flip": 0.0}, "resize": {"short": 64, "long": 128, "max_canvases": 1}}
    return config.Data.model_validate({"root": root, "train": source, "validation": DIGITS, **flat, **changes})


def same(first: DetectionDataset, second: DetectionDataset) -> bool:
    plain = ("name", "class_names", "category_ids", "image_ids", "images", "notes")
    arrays = ("sizes", "offsets", *Objects._fields)
    return all(getattr(first, key) == getattr(second, key) for key in plain) and all(
        np.array_equal(getattr(first, key), getattr(second, key)) for key in arrays
    )


def test_a_format_of_the_configuration_without_a_writer_is_noticed():
    formats = {section.model_fields["format"].default for section in config.Source.__origin__.__args__}
    assert formats == set(SOURCES)


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_pictures_give_the_same_table(written, name):
    expected = written[name][1]
    table = load_split(section(written, name), "train")
    assert table.image_ids == expected.ids and table.category_ids == expected.category_ids
    assert table.class_names == NAMES
    assert table.sizes.tolist() == [list(picture.size) for picture in PICTURES]
    assert table.offsets.tolist() == [0, 2, 2, 4, 6, 7], "the image without objects stays"
    things = [thing for picture in PICTURES for thing in picture.things]
    np.testing.assert_allclose(table.boxes, [thing.box for thing in things], rtol=0, atol=expected.precision)
    assert [table.class_names[label] for label in table.labels] == [thing.name for thing in things]
    for flag, column in (("crowd", table.crowd), ("difficult", table.difficult)):
        assert column.tolist() == [getattr(thing, flag) and flag in expected.holds for thing in things]
    own = [(thing.box[2] - thing.box[0]) * (thing.box[3] - thing.box[1]) for thing in things]
    given = [thing.area if "area" in expected.holds else None for thing in things]
    areas = [box if area is None else area for area, box in zip(given, own, strict=True)]
    np.testing.assert_allclose(table.areas, areas, rtol=1e-9)
    if expected.files:
        assert [Path(image).name for image in table.images] == [picture.file for picture in PICTURES]
    for number, (image, picture) in enumerate(zip(table.images, PICTURES, strict=True)):
        assert encoded(image) == drawn(number, picture)


@pytest.mark.parametrize("name", WRITERS)
def test_the_ground_truth_is_that_of_the_table(written, name):
    data = section(written, name)
    table, truth = read_split(data, "train")
    assert same(table, load_split(data, "train"))
    assert (truth.image_ids, truth.class_names, truth.category_ids) == (
        table.image_ids,
        table.class_names,
        table.category_ids,
    )
    assert truth.image.tolist() == [0, 0, 2, 2, 3, 3, 4] and truth.labels.tolist() == table.labels.tolist()
    corners = np.concatenate([truth.boxes[:, :2], truth.boxes[:, :2] + truth.boxes[:, 2:]], axis=1)
    np.testing.assert_allclose(corners, table.boxes, rtol=0, atol=1e-9)
    np.testing.assert_allclose(truth.areas, table.areas, rtol=1e-9)
    assert truth.crowd.tolist() == table.crowd.tolist() and truth.difficult.tolist() == table.difficult.tolist()


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(("policy", "flags", "boxes"), [("use", 0, 7), ("drop", 0, 6)])
def test_the_policy_for_difficult_boxes(written, name, policy, flags, boxes):
    data = section(written, name, difficult=policy)
    table, truth = read_split(data, "train")
    holds = "difficult" in written[name][1].holds
    assert table.difficult.sum() == flags and len(table.boxes) == (boxes if holds else 7)
    assert len(truth.boxes) == len(table.boxes)


@pytest.mark.parametrize("name", WRITERS)
def test_classes_in_another_order_and_merged(written, name):
    straight = load_split(section(written, name), "train")
    turned = load_split(section(written, name, classes=["emu", "dog", "cat"]), "train")
    assert turned.labels.tolist() == [2 - label for label in straight.labels]
    assert turned.category_ids == straight.category_ids[::-1]
    pets = {"rename": {"cat": "pet", "dog": "pet"}}
    data = section(written, name, relabel=pets, classes=["emu", "pet"])
    merged, truth = read_split(data, "train")
    assert merged.labels.tolist() == [1 - (label == 2) for label in straight.labels]
    assert truth.labels.tolist() == merged.labels.tolist()


@pytest.mark.parametrize("name", WRITERS)
def test_a_merged_class_that_does_not_occur(written, name):
    """Fine where the files tell only what occurs and `data.classes` says that there is more; else it is a slip."""
    relabel = {"rename": {"cat": "pet", "yak": "herd"}}
    data = section(written, name, relabel=relabel, classes=["herd", "dog", "pet", "emu"])
    if name in ("voc", "csv", "labelme"):
        table, truth = read_split(data, "train")
        assert table.class_names == ("herd", "dog", "pet", "emu") and table.category_ids == (3, 1, 4, 2)
        assert table.labels.tolist() == [1, 2, 3, 1, 2, 2, 1]
        assert truth.labels.tolist() == table.labels.tolist()
    else:
        with pytest.raises(RetinaError, match="data.relabel.rename: unknown class 'yak'"):
            load_split(data, "train")
    with pytest.raises(RetinaError, match="data.relabel.rename: unknown class 'yak'"):
        load_split(section(written, name, relabel=relabel), "train")


def test_a_class_that_only_another_split_shows_is_no_matter(tmp_path):
    """VOC's names are those of all annotations; `data.classes` need only hold those of the split."""
    source = write_voc(tmp_path).source
    (tmp_path / "Annotations/other.xml").write_text(
        "<annotation><size><width>9</width><height>9</height></size><object><name>ant</name><bndbox><xmin>1</xmin>"
        "<ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object></annotation>"
    )
    data = config.Data.model_validate({"root": tmp_path, "train": source, "validation": DIGITS, "classes": list(NAMES)})
    table, truth = read_split(data, "train")
    assert truth.labels.tolist() == table.labels.tolist()
    found = load_split(data.model_copy(update={"classes": None}), "train")
    assert found.class_names == ("ant", *NAMES)


@pytest.mark.parametrize("name", SOURCES)
def test_reading_twice_gives_equal_tables_that_nobody_can_change(written, name):
    first, second = (load_split(section(written, name), "train") for _ in range(2))
    assert same(first, second) and len(first) == 5
    assert not any(getattr(first, key).flags.writeable for key in ("sizes", "offsets", *Objects._fields))
    with pytest.raises(ValueError, match="read-only"):
        first.boxes[0, 0] = 1


@pytest.mark.parametrize("name", SOURCES)
def test_a_selection(written, name):
    root, source = (".", DIGITS) if name == "digits" else (written[name][0], written[name][1].source)
    parts = []
    for share in ([0, 0.6], [0.6, 1]):
        data = section(written, name, root=root, train={**source, "select": {"share": share}})
        part, truth = read_split(data, "train")
        assert truth.image_ids == part.image_ids
        parts.append(part)
    whole = load_split(section(written, name), "train")
    assert [len(part) for part in parts] == [3, 2]
    assert set(parts[0].image_ids) | set(parts[1].image_ids) == set(whole.image_ids)


@pytest.mark.parametrize("name", SOURCES)
def test_batches(written, name):
    from retina.data.batches.training import training_batches

    data = section(written, name)
    table = load_split(data, "train")
    (batch,) = training_batches(table, data, batch_size=5, seed=0, steps=1).as_numpy_iterator()
    assert sorted(batch["index"].tolist()) == [0, 1, 2, 3, 4] and batch["images"].shape == (5, 128, 128, 3)
    for slot, index in enumerate(batch["index"]):
        objects = table.objects(index)
        valid = batch["valid"][slot]
        assert batch["labels"][slot][valid].tolist() == objects.labels.tolist()
        scale = np.tile(batch["scale"][slot][::-1], 2)
        np.testing.assert_allclose(batch["boxes"][slot][valid], objects.boxes * scale, atol=1e-3)
        assert batch["crowd"][slot][valid].tolist() == (objects.crowd | objects.difficult).tolist()
