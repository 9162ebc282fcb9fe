"""Names are data: images whose names hold blanks, dots, brackets, flags or endings are never taken for one another.

Each picture has a colour and a box of its own, so that a mixed up pair shows.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retina import config
from retina.data.convert.converting import convert
from retina.data.dataset import DetectionDataset
from retina.data.formats.layouts import look
from retina.data.image_files import stem, without_ending
from retina.data.load import load_split, read_ground_truth, read_results
from retina.data.select import select_images
from retina.data.stored import TableImage, encoded
from retina.doctor.targets import open_target, read_splits
from retina.errors import RetinaError
from tests.data.formats.test_tfds import features, tfds, write
from tests.data.formats.test_voc import devkit, obj, xml

NAMES = (
    "a.png",
    "a 1.png",
    "a 0.png",
    "a -1.png",
    "b.c.png",
    "b.d.png",
    "frame.0001.png",
    "photo.png",
    "photo.png.png",
    "photo.jpg.png",
    "(1) [x] {y}.png",
    "[1].png",
    "-dash.png",
    "--resume.png",
    "UPPER.PNG",
    "upper2.Png",
    "#hash.png",
    "%20.png",
    "a,b;c.png",
    "it's.png",
    "é日本.png",
    "line\u2028end.png",
    "c:d.png",
    "1.png",
    "0.png",
    "true.png",
    "1e3.png",
    "classes.png",
)
SIDE = 64


def box_of(number: int) -> tuple[int, int, int, int]:
    return (number % 8, number // 8, number % 8 + 20, number // 8 + 30)


def pictures(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for number, name in enumerate(NAMES):
        Image.new("RGB", (SIDE, SIDE), (8 * number, 100, 100)).save(folder / name, format="PNG")
    return folder


def write_coco(root: Path) -> dict:
    pictures(root / "images")
    sizes = {"width": SIDE, "height": SIDE}
    tree = {
        "images": [{"id": 100 + n, "file_name": name, **sizes} for n, name in enumerate(NAMES)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": n, "image_id": 100 + n, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            for n, (x1, y1, x2, y2) in enumerate(map(box_of, range(len(NAMES))))
        ],
    }
    (root / "data.json").write_text(json.dumps(tree))
    return {"format": "coco", "annotations": "data.json", "images": "images"}


def write_voc(root: Path) -> dict:
    pictures(root / "JPEGImages")
    (root / "Annotations").mkdir()
    (root / "ImageSets/Main").mkdir(parents=True)
    stems = [Path(name).stem for name in NAMES]
    (root / "ImageSets/Main/all.txt").write_text("".join(f"{stem}\n" for stem in stems))
    for number, stem_ in enumerate(stems):
        x1, y1, x2, y2 = box_of(number)
        thing = obj(box=(x1 + 1, y1 + 1, x2, y2))
        size = f"<size><width>{SIDE}</width><height>{SIDE}</height></size>"
        (root / "Annotations" / f"{stem_}.xml").write_text(xml(thing, size=size))
    return {"format": "voc", "splits": ["all"]}


def write_yolo(root: Path) -> dict:
    pictures(root / "images")
    (root / "labels").mkdir()
    (root / "data.yaml").write_text("train: list.txt\nnames: [cat]\n")
    (root / "list.txt").write_text("".join(f"./images/{name}\n" for name in NAMES))
    for number, name in enumerate(NAMES):
        x1, y1, x2, y2 = box_of(number)
        numbers = ((x1 + x2) / 2 / SIDE, (y1 + y2) / 2 / SIDE, (x2 - x1) / SIDE, (y2 - y1) / SIDE)
        (root / "labels" / f"{Path(name).stem}.txt").write_text(f"0 {' '.join(map(str, numbers))}\n")
    return {"format": "yolo", "data": "data.yaml", "split": "train"}


def write_csv(root: Path) -> dict:
    pictures(root / "images")
    with open(root / "data.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        for number, name in enumerate(NAMES):
            writer.writerow([f"images/{name}", *box_of(number), "cat"])
    return {"format": "csv", "annotations": "data.csv"}


def write_darknet(root: Path) -> dict:
    """The same as YOLO's, in darknet's own files."""
    source = write_yolo(root)
    (root / "data.yaml").unlink()
    (root / "obj.data").write_text("classes = 1\ntrain = list.txt\nnames = obj.names\n")
    (root / "obj.names").write_text("cat\n")
    return source | {"data": "obj.data"}


def write_labelme(root: Path) -> dict:
    folder = pictures(root / "all")
    for number, name in enumerate(NAMES):
        x1, y1, x2, y2 = box_of(number)
        shape = {"label": "cat", "shape_type": "rectangle", "points": [[x1, y1], [x2, y2]]}
        tree = {"shapes": [shape], "imagePath": name, "imageHeight": SIDE, "imageWidth": SIDE}
        (folder / f"{Path(name).stem}.json").write_text(json.dumps(tree))
    return {"format": "labelme", "folder": "all"}


def write_tfds(root: Path) -> dict:
    folder = pictures(root / "pictures")
    flags = {"label": 0, "is_crowd": False, "is_difficult": False, "area": 600}
    rows = []
    for number, name in enumerate(NAMES):
        x1, y1, x2, y2 = (side / SIDE for side in box_of(number))
        thing = {"bbox": tfds.features.BBox(y1, x1, y2, x2), **flags}
        image = io.BytesIO((folder / name).read_bytes())
        rows.append({"image": image, "image/filename": name, "objects": [thing]})
    spec = features(**{"image/filename": tfds.features.Text()})
    write(root / "all/1.0.0", "all", "tfrecord", spec, {"train": rows})
    return {"format": "tfds", "name": "all", "split": "train", "data_dir": "."}


# Of each format what writes it, what a command is given, and how its split is called.
WRITERS = {
    "coco": (write_coco, "data.json", "data"),
    "voc": (write_voc, ".", "all"),
    "yolo": (write_yolo, "data.yaml", "train"),
    "darknet": (write_darknet, "obj.data", "train"),
    "csv": (write_csv, "data.csv", "data"),
    "labelme": (write_labelme, "all", "all"),
    "tfds": (write_tfds, "all/1.0.0", "train"),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, tuple[Path, dict]]:
    homes = {name: tmp_path_factory.mktemp(name) for name in WRITERS}
    return {name: (homes[name], writer(homes[name])) for name, (writer, _, _) in WRITERS.items()}


def number_of(image: TableImage) -> int:
    """Place of a picture in NAMES, by its colour."""
    return Image.open(io.BytesIO(encoded(image))).getpixel((0, 0))[0] // 8


def check(table: DetectionDataset) -> None:
    assert sorted(number_of(image) for image in table.images) == list(range(len(NAMES)))
    for row, image in enumerate(table.images):
        boxes = table.objects(row).boxes
        np.testing.assert_allclose(boxes, [box_of(number_of(image))], atol=1e-4, err_msg=image)


@pytest.mark.parametrize("name", WRITERS)
def test_the_table_of_training_and_of_the_doctor(written, name):
    root, source = written[name]
    data = config.Data.model_validate({"root": root, "train": source, "validation": source})
    table = load_split(data, "train")
    check(table)
    if name != "labelme":  # whose files are sorted by their names
        assert [number_of(image) for image in table.images] == list(range(len(NAMES)))
    if name == "tfds":  # whose records are not files
        assert list(table.image_ids) == [without_ending(file) for file in NAMES]
    splits, findings = read_splits(open_target(root / WRITERS[name][1], []))
    assert not findings
    check(next(iter(splits.values())))


@pytest.mark.parametrize("to", ["coco", "voc", "yolo", "csv", "tfds"])
@pytest.mark.parametrize("name", WRITERS)
def test_conversion(written, tmp_path, name, to):
    root, _ = written[name]
    done = convert(root / WRITERS[name][1], tmp_path / "out", to, splits=[f"{WRITERS[name][2]}=train"])
    assert done.problems == ()
    data = config.Data.model_validate(
        {
            "root": tmp_path / "out",
            "train": next(iter(done.data.values())),
            "validation": next(iter(done.data.values())),
        }
    )
    table = load_split(data, "train")
    assert len(table) == len(NAMES)
    check(table)
    if to != "tfds":
        assert len({Path(image).name.casefold() for image in table.images}) == len(NAMES)


@pytest.mark.parametrize("name", ["coco", "voc"])
def test_the_ground_truth_to_score(written, tmp_path, name):
    root, _ = written[name]
    truth = read_ground_truth(root / WRITERS[name][1])
    place = {without_ending(file): number for number, file in enumerate(NAMES)}
    for row, box in zip(truth.image, truth.boxes, strict=True):
        assert tuple(box[:2]) == box_of(place[truth.stems[row]])[:2]
    # Detections by the names of files, of the devkit by the first column, of COCO by `file_name`.
    (tmp_path / "text").mkdir()
    (tmp_path / "devkit").mkdir()
    lines, entries = [], []
    for number, file in enumerate(NAMES):
        x1, y1, x2, y2 = box_of(number)
        (tmp_path / "text" / f"{without_ending(file)}{'.TXT' if number % 2 else '.txt'}").write_text(
            f"cat 0.5 {x1} {y1} {x2 - x1} {y2 - y1}\n"
        )
        lines.append(f"{without_ending(file)} 0.5 {x1} {y1} {x2} {y2}\n")
        entries.append({"image_id": number, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": 0.5})
    (tmp_path / "devkit/comp4_det_test_cat.txt").write_text("".join(lines))
    images = [{"id": number, "file_name": file} for number, file in enumerate(NAMES)]
    tree = {"images": images, "annotations": entries, "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "dt.json").write_text(json.dumps(tree))
    for path, format in ((tmp_path / "text", "xywh"), (tmp_path / "devkit", "voc"), (tmp_path / "dt.json", "coco")):
        results = read_results(path, truth, format=format)
        assert len(results) == len(NAMES)
        for row, box in zip(results.image, results.boxes, strict=True):
            assert tuple(box[:2]) == box_of(place[truth.stems[row]])[:2], format


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "tfds"])
def test_a_selection_by_name(written, tmp_path, name):
    root, source = written[name]
    table = load_split(config.Data.model_validate({"root": root, "train": source, "validation": source}), "train")
    wanted = ["a 1.png", "(1) [x] {y}.png", "photo.jpg.png", "line\u2028end.png"]
    (tmp_path / "list.txt").write_text("\n".join(wanted))
    chosen = select_images(table, config.Select(images="list.txt"), tmp_path, "here")
    assert sorted(NAMES[number_of(image)] for image in chosen.images) == sorted(wanted)
    # Whose ids are names without ending: photo.png is the id of one image and the file of another.
    if name in ("voc", "labelme"):
        (tmp_path / "list.txt").write_text("photo.png\n")
        with pytest.raises(RetinaError, match="several images have this id or file name"):
            select_images(table, config.Select(images="list.txt"), tmp_path, "here")


@pytest.mark.parametrize(
    ("lines", "images"),
    [
        ("street 1\n", ["street 1"]),
        ("street 1\nstreet 0", ["street 1", "street 0"]),
        ("plain 1\nother -1\n", ["plain", "other"]),
        ("plain  1\r\nother\t0\r\n", ["plain", "other"]),
        ("plain 2\n", ["plain 2"]),
        ("plain.jpg\n", ["plain"]),
        ("plain.jpg 1\nother.JPG -1\n", ["plain", "other"]),
        ("x.jpg\n", ["x.jpg"]),
        ("both\nboth 1\n", ["both", "both 1"]),
        (" lead\n", [" lead"]),
    ],
)
def test_a_line_of_a_voc_list(tmp_path, lines, images):
    stems = ("street 1", "street 0", "plain", "other", "plain 2", "x.jpg", "both", "both 1", " lead")
    devkit(tmp_path, {name: xml(obj()) for name in stems}, {"train": lines})
    data = config.Data.model_validate(
        {"root": tmp_path, "train": {"format": "voc", "splits": ["train"]}, "validation": {"format": "digits"}}
    )
    table = load_split(data, "train")
    assert list(table.image_ids) == images
    assert [Path(image).name for image in table.images] == [f"{name}.jpg" for name in images]
    assert list(read_ground_truth(tmp_path, splits=["train"]).stems) == images


def test_names_with_folders_in_a_voc_list(tmp_path):
    """As CVAT writes them, and others that name the image's file."""
    devkit(tmp_path, {"a": xml(obj()), "b": xml(obj("dog"))}, {})
    for folder, ending in (("Annotations", "xml"), ("JPEGImages", "jpg")):
        (tmp_path / folder / "cam 1").mkdir()
        (tmp_path / folder / f"b.{ending}").rename(tmp_path / folder / "cam 1" / f"b.{ending}")
        (tmp_path / folder / f"a.{ending}").rename(tmp_path / folder / f"b.{ending}")
    for lines in ("b\ncam 1/b", "b\ncam 1\\b", "./JPEGImages/b.jpg\nJPEGImages/cam 1/b.jpg", "b 1\ncam 1/b -1"):
        (tmp_path / "ImageSets/Main/train.txt").write_text(lines)
        data = config.Data.model_validate(
            {"root": tmp_path, "train": {"format": "voc", "splits": ["train"]}, "validation": {"format": "digits"}}
        )
        table = load_split(data, "train")
        assert table.image_ids == ("b", "cam 1/b") and table.labels.tolist() == [0, 1]
        assert table.images == tuple(str(tmp_path / "JPEGImages" / name) for name in ("b.jpg", "cam 1/b.jpg"))
    for line in ("../b", "/etc/b", "cam 2/b", "cam 1/../b", "..\\b"):
        (tmp_path / "ImageSets/Main/train.txt").write_text(f"b\n{line}\n")
        with pytest.raises(RetinaError, match="train.txt: line 2: expected the name of an image without folder"):
            load_split(data, "train")


def test_a_name_that_may_be_two_is_refused(tmp_path):
    devkit(tmp_path, {name: xml(obj()) for name in ("both", "both 1")}, {"train": "both 1\n"})
    with pytest.raises(RetinaError, match="train.txt: line 1: 'both 1' may be the image 'both 1' or the image 'both'"):
        read_ground_truth(tmp_path, splits=["train"])
    (tmp_path / "ImageSets/Main/train.txt").write_text("both\n")
    (tmp_path / "JPEGImages/both.png").write_bytes(b"")
    data = config.Data.model_validate(
        {"root": tmp_path, "train": {"format": "voc", "splits": ["train"]}, "validation": {"format": "digits"}}
    )
    with pytest.raises(RetinaError, match=r"both\.xml: image both may be any of both\.jpg, both\.png"):
        load_split(data, "train")
    (tmp_path / "Annotations/both.xml").write_text(xml(obj()).replace("wrong.bmp", "both.png"))
    assert load_split(data, "train").images == (str(tmp_path / "JPEGImages/both.png"),)


def test_split_files_and_annotations_of_any_name(tmp_path):
    devkit(tmp_path, {"a": xml(obj())}, {"train": "a", "val new": "a", "cat_train": "a 1", "my_list": "a"})
    (tmp_path / "Annotations/a.xml").rename(tmp_path / "Annotations/a.XML")
    (tmp_path / "Annotations/._a.xml").write_bytes(b"\0\0")
    assert list(look(str(tmp_path)).splits) == ["my_list", "train", "val new"]
    assert read_ground_truth(tmp_path, splits=["val new"]).stems == ("a",)


def test_the_file_of_a_class_is_not_that_of_another_one(tmp_path):
    """comp4_det_test_race_car.txt holds no cars."""
    devkit(tmp_path / "gt", {"a": xml(obj("car"), obj("bus"))}, {"test": "a"})
    (tmp_path / "dt").mkdir()
    (tmp_path / "dt/comp4_det_test_race_car.txt").write_text("a 0.5 1 1 9 9\n")
    with pytest.raises(RetinaError, match="race_car"):
        read_results(tmp_path / "dt", read_ground_truth(tmp_path / "gt"), format="voc")


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("a.jpg", "a"),
        ("A.JPG", "A"),
        ("a.b.png", "a.b"),
        ("a.jpg.png", "a.jpg"),
        ("frame.0001", "frame.0001"),
        ("x/y.z/a.tif", "a"),
        ("x\\y.z\\a.bmp", "a"),
        ("c:d.png", "c:d"),
        ("C:\\x\\a.png", "a"),
        (".png", ".png"),
        ("-a.jpeg", "-a"),
        (" a .webp", " a "),
    ],
)
def test_stems(file, expected):
    assert stem(file) == expected
