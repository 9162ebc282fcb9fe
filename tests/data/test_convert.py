"""Conversions: from every format into every other, what is lost, upright copies, kills, and the check itself."""

import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from defusedxml.ElementTree import fromstring, parse
from PIL import Image, ImageOps
from typer.testing import CliRunner

from retina import config
from retina.cli import app_of
from retina.data.convert.converting import REPORT, Conversion, convert
from retina.data.convert.origin import find_source
from retina.data.convert.part import HOLDS, Part, file_names, fitted, whole_corners
from retina.data.convert.verify import differences
from retina.data.dataset import DetectionDataset
from retina.data.formats import voc, yolo
from retina.data.image_files import read_header, upright_boxes, upright_bytes
from retina.data.load import load_split
from retina.data.orientation import turned
from retina.errors import RetinaError
from tests.data.formats.tables import read_coco, read_voc


def table(count: int = 3, **columns) -> DetectionDataset:
    """Images of 40 rows and 60 columns with two boxes each, of the classes "a" and "b & <c>"."""
    boxes = [[1.5, 2.25, 20, 30], [10, 10, 59.875, 40]] * count
    default = {
        "name": "made",
        "class_names": ("a", "b & <c>"),
        "category_ids": (3, 7),
        "image_ids": tuple(range(10, 10 + count)),
        "images": tuple(f"{n}.png" for n in range(count)),
        "sizes": [(40, 60)] * count,
        "offsets": np.arange(count + 1) * 2,
        "boxes": boxes,
        "labels": [0, 1] * count,
        "crowd": [False] * 2 * count,
        "difficult": [False] * 2 * count,
        "areas": [500.5, 1400.0] * count,
    }
    return DetectionDataset(**{**default, **columns})


def write_coco(root: Path, count: int = 3, crowd: int = 0, names=None, **image_changes) -> Path:
    """The table above as COCO JSON with noise for images; the first `crowd` boxes are crowds. Image 1 has no box."""
    made = table(count)
    (root / "photos").mkdir(parents=True)
    images, annotations = [], []
    for row in range(count):
        name = names[row] if names else f"p{row}.png"
        pixels = np.random.default_rng(row).integers(0, 256, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(root / "photos" / name, **image_changes)
        images.append({"id": 10 + row, "file_name": name, "height": 40, "width": 60})
        for place in range(2 if row != 1 else 0):
            x1, y1, x2, y2 = made.boxes[2 * row + place].tolist()
            number = len(annotations)
            annotations.append(
                {
                    "id": 5 * number,
                    "image_id": 10 + row,
                    "category_id": (3, 7)[place],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": 500.5,
                    "iscrowd": int(number < crowd),
                }
            )
    categories = [{"id": 3, "name": "a"}, {"id": 7, "name": "b & <c>"}]
    tree = {"images": images, "annotations": annotations, "categories": categories}
    (root / "instances_all.json").write_text(json.dumps(tree))
    return root / "instances_all.json"


def tree_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


# ---------------------------------------------------------------------------------------------------- there and back


def test_coco_to_coco_is_the_same_table(tmp_path):
    file = write_coco(tmp_path / "src", crowd=1)
    done = convert(file, tmp_path / "dst", "coco", images=tmp_path / "src/photos")
    assert done.problems == () and done.notes == () and done.renamed == ()
    assert done.splits == {"all": {"images": 3, "boxes": 4}}
    before = read_coco(file, tmp_path / "src/photos")
    after = read_coco(tmp_path / "dst/annotations/instances_all.json", tmp_path / "dst/images/all")
    for column in ("class_names", "category_ids", "image_ids"):
        assert getattr(after, column) == getattr(before, column)
    for column in ("sizes", "offsets", "boxes", "labels", "crowd", "areas"):
        assert np.array_equal(getattr(after, column), getattr(before, column)), column
    assert [Path(image).read_bytes() for image in after.images] == [Path(image).read_bytes() for image in before.images]
    tree = json.loads((tmp_path / "dst/annotations/instances_all.json").read_text())
    assert [entry["id"] for entry in tree["annotations"]] == [1, 2, 3, 4]
    assert tree["annotations"][0]["bbox"] == [1.5, 2.25, 18.5, 27.75] and tree["annotations"][0]["iscrowd"] == 1


def test_voc_keeps_fractions_and_escapes_names(tmp_path):
    file = write_coco(tmp_path / "src")
    done = convert(file, tmp_path / "dst", "voc", images=tmp_path / "src/photos", splits=["train"])
    assert done.problems == ()
    assert done.notes == (
        f"{file}: 4 areas other than the box's lost, Pascal VOC has only those of the boxes",
        "Pascal VOC: truncated and pose are not known: written as 0 and Unspecified",
        "Pascal VOC: the names of the files take the place of image ids, 1 to K that of category ids",
    )
    root = parse(tmp_path / "dst/Annotations/p0.xml").getroot()
    assert [element.text for element in root.findall("object/name")] == ["a", "b & <c>"]
    assert b"b &amp; &lt;c&gt;" in (tmp_path / "dst/Annotations/p0.xml").read_bytes()
    corners = [[float(box.findtext(key)) for key in ("xmin", "ymin", "xmax", "ymax")] for box in root.iter("bndbox")]
    assert corners == [[2.5, 3.25, 20, 30], [11, 11, 59.875, 40]]
    assert (root.findtext("size/width"), root.findtext("size/height")) == ("60", "40")
    assert (tmp_path / "dst/ImageSets/Main/train.txt").read_text() == "p0\np1\np2\n"
    back = read_voc(tmp_path / "dst", ("train",))
    assert back.image_ids == ("p0", "p1", "p2") and back.offsets.tolist() == [0, 2, 2, 4]
    assert back.boxes.tolist() == [[1.5, 2.25, 20, 30], [10, 10, 59.875, 40]] * 2


@pytest.mark.parametrize("way", [("yolo", "voc"), ("tfds", "voc"), ("coco", "yolo", "voc"), ("voc", "tfds", "voc")])
def test_whole_numbers_stay_whole_through_every_format(tmp_path, way):
    """At sides of which most fractions are none of a float's."""
    rng = np.random.default_rng(0)
    corners = np.sort(rng.integers(0, 600, (200, 2, 2)), axis=1)
    corners[:, 1] += 2
    file = write_coco(tmp_path / "src")
    tree = json.loads(file.read_text())
    for entry in tree["images"]:
        entry.update(width=653, height=607)
        Image.new("RGB", (653, 607)).save(tmp_path / "src/photos" / entry["file_name"])
    tree["annotations"] = [
        {"id": n, "image_id": 10 + n % 3, "category_id": 3, "bbox": [int(x1), int(y1), int(x2 - x1), int(y2 - y1)]}
        for n, ((x1, y1), (x2, y2)) in enumerate(corners)
    ]
    file.write_text(json.dumps(tree))
    source, images = file, tmp_path / "src/photos"
    for number, to in enumerate(way):
        folder = tmp_path / str(number)
        splits = ["all=train"] if number == 0 else ["train"]
        done = convert(source, folder, to, images=images, splits=splits, spec="coco" if to == "tfds" else None)
        assert done.problems == ()
        source, images = folder / "data.yaml" if to == "yolo" else folder, None
    texts = [
        box.findtext(key)
        for file in (source / "Annotations").iterdir()
        for box in parse(file).getroot().iter("bndbox")
        for key in ("xmin", "ymin", "xmax", "ymax")
    ]
    assert len(texts) == 4 * len(corners) and all(word.isdigit() for word in texts)
    wanted = sorted((x1 + 1, y1 + 1, x2, y2) for x1, y1, x2, y2 in corners.reshape(-1, 4).tolist())
    assert sorted(tuple(map(int, texts[place : place + 4])) for place in range(0, len(texts), 4)) == wanted


def test_fractions_have_the_digits_of_a_float32(tmp_path):
    given = table(1, boxes=[[0.1 + 0.2, 1 / 3, 33.123456789, 39.99999999999], [10, 10, 59.875, 40.0]])
    text = voc.annotation(part_of(whole_corners(given)), 0)
    corners = [element.text for box in fromstring(text).iter("bndbox") for element in box]
    assert corners == ["1.3", "1.3333334", "33.123455", "40", "11", "11", "59.875", "40"]


@pytest.mark.parametrize("to", ["voc", "yolo"])
def test_the_check_compares_texts_as_well(tmp_path, to, monkeypatch):
    file = write_coco(tmp_path / "src")
    module = {"voc": voc, "yolo": yolo}[to]
    write = module.write

    def other(part, folder, **settings):
        write(part, folder, **settings)
        written, text = next(iter(module.written_texts(part, folder)))
        assert written.read_text() == text
        written.write_text(text + "\n")

    monkeypatch.setattr(module, "write", other)
    done = convert(file, tmp_path / "dst", to, images=tmp_path / "src/photos", splits=["train"])
    assert len(done.problems) == 1 and "its text is not what was to be written" in done.problems[0]


def test_yolo_layout(tmp_path):
    file = write_coco(tmp_path / "src")
    done = convert(file, tmp_path / "dst", "yolo", images=tmp_path / "src/photos", splits=["val"])
    assert done.problems == ()
    said = "YOLO: Ultralytics also asks for the split train in data.yaml: written as null, without images"
    assert said in done.notes
    assert yaml.safe_load((tmp_path / "dst/data.yaml").read_text()) == {
        "train": None,
        "val": "images/val",
        "names": {0: "a", 1: "b & <c>"},
    }
    lines = (tmp_path / "dst/labels/val/p0.txt").read_text().splitlines()
    assert [[float(word) for word in line.split()] for line in lines] == [
        pytest.approx([0, 10.75 / 60, 16.125 / 40, 18.5 / 60, 27.75 / 40], abs=1e-9),
        pytest.approx([1, 34.9375 / 60, 25 / 40, 49.875 / 60, 30 / 40], abs=1e-9),
    ]
    assert (tmp_path / "dst/labels/val/p1.txt").read_text() == "", "an image without objects is said to have none"
    data = config.Data.model_validate(
        {"root": tmp_path / "dst", "train": done.data["validation"], "validation": {"format": "digits"}}
    )
    assert load_split(data, "train").image_ids == ("p0", "p1", "p2")


@pytest.mark.parametrize("first", ["coco", "voc", "yolo", "csv"])
@pytest.mark.parametrize("second", ["coco", "voc", "yolo", "csv"])
def test_each_format_converts_into_each(tmp_path, first, second):
    file = write_coco(tmp_path / "src")
    convert(file, tmp_path / "one", first, images=tmp_path / "src/photos", splits=["all=train"])
    source = tmp_path / "one/annotations/instances_train.json" if first == "coco" else tmp_path / "one"
    done = convert(source, tmp_path / "two", second, splits=["train"])
    assert done.problems == ()
    data = config.Data.model_validate(
        {"root": tmp_path / "two", "train": done.data["train"], "validation": {"format": "digits"}}
    )
    found = load_split(data, "train")
    assert found.class_names == ("a", "b & <c>") and found.labels.tolist() == [0, 1, 0, 1]
    np.testing.assert_allclose(found.boxes, [[1.5, 2.25, 20, 30], [10, 10, 59.875, 40]] * 2, rtol=0, atol=1e-5)
    assert found.offsets.tolist() == [0, 2, 2, 4] and found.sizes.tolist() == [[40, 60]] * 3


def test_splits_of_a_configuration(tmp_path):
    """The digits are drawn in memory; their splits are converted together, with the images' bytes as they are."""
    changes = ["data.train.images=3", "data.validation.images=2", "data.train.size=64", "data.validation.size=64"]
    changes += ["data.test.images=1", "data.test.size=64"]
    file = tmp_path / "c.yaml"
    file.write_text(config.to_yaml(config.load(None, changes)))
    done = convert(file, tmp_path / "dst", "yolo", splits=["validation=val", "train"])
    assert done.problems == () and done.splits["train"]["images"] == 3 and done.splits["val"]["images"] == 2
    three = ["000000000000.png", "000000000001.png", "000000000002.png"]
    assert sorted(os.listdir(tmp_path / "dst/images/train")) == three
    assert sorted(os.listdir(tmp_path / "dst/images/val")) == three[:2]
    # VOC has one folder for all: there both splits' image 0 needs a name.
    done = convert(file, tmp_path / "voc", "voc")
    assert done.problems == () and [new for _, new in done.renamed] == [
        "000000000000_2.png",
        "000000000001_2.png",
        "000000000000_3.png",
    ]
    lists = (tmp_path / f"voc/ImageSets/Main/{split}.txt" for split in ("train", "validation"))
    assert [file.read_text().split() for file in lists] == [
        ["000000000000", "000000000001", "000000000002"],
        ["000000000000_2", "000000000001_2"],
    ]


# ------------------------------------------------------------------------------------------------------ what is lost


def test_crowds_ask_for_a_decision(tmp_path):
    file = write_coco(tmp_path / "src", crowd=1)
    photos = tmp_path / "src/photos"
    with pytest.raises(RetinaError, match=r"1 of 4 boxes are marked crowd, which Pascal VOC can't say; decide with"):
        convert(file, tmp_path / "dst", "voc", images=photos)
    assert not (tmp_path / "dst").exists()
    dropped = convert(file, tmp_path / "dropped", "voc", images=photos, crowd="drop")
    assert dropped.splits["all"]["boxes"] == 3 and f"{file}: 1 crowd box left out (--crowd drop)" in dropped.notes
    kept = convert(file, tmp_path / "kept", "voc", images=photos, crowd="keep")
    assert kept.splits["all"]["boxes"] == 4
    assert f"{file}: 1 crowd box made ordinary (--crowd keep)" in kept.notes
    with pytest.raises(RetinaError, match="--crowd keep: it has no effect, COCO JSON marks crowd boxes"):
        convert(file, tmp_path / "dst", "coco", images=photos, crowd="keep")


def test_difficult_boxes_and_areas():
    given = table(2, difficult=[True, False, False, True])
    with pytest.raises(RetinaError, match="2 of 4 boxes are marked difficult, which COCO JSON can't say"):
        fitted(given, HOLDS["coco"], None, None)
    held, notes = fitted(given, HOLDS["coco"], None, "keep")
    assert not held.difficult.any() and held.areas.tolist() == [500.5, 1400] * 2
    assert notes == ("made: 2 difficult boxes made ordinary (--difficult keep)",)
    held, _ = fitted(given, HOLDS["coco"], None, "drop")
    assert held.offsets.tolist() == [0, 1, 2] and held.labels.tolist() == [1, 0]
    held, notes = fitted(given, HOLDS["tfds-voc"], None, None)
    assert held.difficult.tolist() == [True, False, False, True] and held.areas[0] == 18.5 * 27.75
    held, notes = fitted(table(1), HOLDS["tfds-coco"], None, None)
    assert held.areas.tolist() == [500, 1400] and "1 area cut to whole pixels" in notes[0]


def test_boxes_that_a_format_cannot_hold():
    thin = table(1, boxes=[[5, 5, 6, 20], [5, 5, 6.01, 20]])
    assert voc.unheld(thin)[0].tolist() == [True, False], "xmin = xmax = 6 would read as no width"
    twice = table(1, boxes=[[5, 5, 6, 20]] * 2, labels=[1, 1])
    assert yolo.unheld(twice)[0].tolist() == [False, True]
    assert yolo.unheld(table(1, boxes=[[5, 5, 6, 20]] * 2))[0].tolist() == [False, False], "of two classes"


def test_invalid_boxes_name_the_option(tmp_path):
    file = write_coco(tmp_path / "src")
    file.write_text(file.read_text().replace("[1.5, 2.25, 18.5, 27.75]", "[1.5, 2.25, 0, 27.75]", 1))
    photos = tmp_path / "src/photos"
    with pytest.raises(RetinaError, match=r"box \[1.5, 2.25, 0, 27.75\] has zero width.* set --invalid-boxes drop"):
        convert(file, tmp_path / "dst", "coco", images=photos)
    done = convert(file, tmp_path / "dst", "coco", images=photos, invalid_boxes="drop")
    assert done.splits == {"all": {"images": 3, "boxes": 3}} and "1 dropped" in done.notes[0]


def test_what_the_formats_refuse(tmp_path):
    with pytest.raises(RetinaError, match="class 'a\\\\nb': XML can't hold its blanks or control characters"):
        voc.check([part_of(table(1, class_names=("a\nb", "c")))])
    with pytest.raises(RetinaError, match="x.webp: Pascal VOC holds JPEG and PNG"):
        voc.check([replace(part_of(table(1)), names=("x.webp",))])
    with pytest.raises(RetinaError, match="YOLO knows the splits train, val and test, got 'all'; .* --split all=train"):
        yolo.check([replace(part_of(table(1)), split="all")])
    assert voc.check([part_of(table(1, class_names=("a", "z"), labels=[0, 0]))])[1] == (
        "Pascal VOC has no list of classes: 1 without a box are lost: ['z']"
    )


def part_of(made: DetectionDataset) -> Part:
    names = tuple(f"{n}.png" for n in range(len(made)))
    return Part("train", made, names, (".png",) * len(made), np.ones(len(made), np.int64))


# ------------------------------------------------------------------------------------------------------------- names


def test_file_names():
    images = [
        "a/x.jpg",
        "b/x.jpg",
        "c/X.png",
        "a/x.jpg",
        "d/kätze 1.JPG",
        "d/classes.png",
        "d/.hidden.png",
        b"",
        "e/noext",
    ]
    ids = [1, 2, 3, 4, 5, 6, 7, 42, 9]
    names, renamed = file_names(images, ids, [".jpg"] * 9)
    assert names == (
        "x.jpg",
        "x_2.jpg",
        "X_3.png",
        "x.jpg",
        "kätze_1.JPG",
        "classes_2.png",
        "_hidden.png",
        "000000000042.jpg",
        "noext.jpg",
    )
    assert renamed[0] == ("b/x.jpg", "x_2.jpg") and len(renamed) == 6
    assert file_names([], [], []) == ((), ())
    odd = file_names(["\udcff\n?*.png", "y" * 300 + ".png", "..png"], [0, 1, 2], [".png"] * 3)[0]
    assert odd[0] == "____.png" and len(odd[1]) == 204 and len(set(odd)) == 3


def test_odd_names_are_stated_and_read_again(tmp_path):
    file = write_coco(tmp_path / "src", names=["a b.png", "a?b.png", "ü.png"])
    done = convert(file, tmp_path / "dst", "voc", images=tmp_path / "src/photos")
    assert done.problems == ()
    photos = tmp_path / "src/photos"
    assert done.renamed == ((f"{photos}/a b.png", "a_b.png"), (f"{photos}/a?b.png", "a_b_2.png"))
    assert any(note.startswith("2 images renamed, such as a_b.png for ") for note in done.notes)
    assert json.loads((tmp_path / "dst" / REPORT).read_text())["renamed"] == [list(pair) for pair in done.renamed]


# ----------------------------------------------------------------------------------------------------------- rotations


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_boxes_follow_the_pixels(orientation):
    """The box is painted into the stored image and found again in the turned one."""
    stored = np.zeros((40, 60), np.uint8)
    stored[5:12, 20:33] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    Image.fromarray(stored).save(out, format="PNG", exif=exif)
    header = read_header(out.getvalue(), "x")
    assert header.size == (40, 60) and header.orientation == orientation and header.suffix == ".png"
    turned = np.asarray(Image.open(io.BytesIO(upright_bytes(out.getvalue(), "x"))))
    assert turned.shape == header.upright == ((40, 60) if orientation < 5 else (60, 40))
    rows, columns = np.nonzero(turned)
    expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert upright_boxes(np.array([[20, 5, 33, 12]]), orientation, (40, 60)).tolist() == [expected]
    assert upright_boxes(np.zeros((0, 4)), orientation, (40, 60)).shape == (0, 4)
    assert read_header(upright_bytes(out.getvalue(), "x"), "x").orientation == 1


def test_upright_copies(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = write_coco(tmp_path / "src", exif=exif)
    photos = tmp_path / "src/photos"
    plain = convert(file, tmp_path / "plain", "coco", images=photos)
    assert plain.notes == (
        f"{file}: 3 of 3 images carry an EXIF rotation: copied as they are, boxes in their stored pixels; --upright "
        "turns both",
    )
    assert (tmp_path / "plain/images/all/p0.png").read_bytes() == (photos / "p0.png").read_bytes()
    turned = convert(file, tmp_path / "turned", "coco", images=photos, upright=True)
    assert turned.problems == () and "turned upright, boxes with them; 0 of them JPEGs" in turned.notes[0]
    table = read_coco(tmp_path / "turned/annotations/instances_all.json", tmp_path / "turned/images/all")
    assert table.sizes.tolist() == [[60, 40]] * 3
    assert table.boxes[0].tolist() == [40 - 30, 1.5, 40 - 2.25, 20]
    picture = Image.open(tmp_path / "turned/images/all/p0.png")
    assert picture.size == (40, 60) and 0x0112 not in picture.getexif()


def test_boxes_of_the_upright_picture_stay(tmp_path):
    """An annotation tool that applied EXIF declares the turned size; then the boxes are already right."""
    exif = Image.Exif()
    exif[0x0112] = 8
    file = write_coco(tmp_path / "src", count=1, exif=exif)
    tree = json.loads(file.read_text())
    tree["images"][0] |= {"height": 60, "width": 40}
    tree["annotations"] = tree["annotations"][:1]
    file.write_text(json.dumps(tree))
    photos = tmp_path / "src/photos"
    with pytest.raises(RetinaError, match="its boxes are those of the upright picture, 40x60, .* with --upright"):
        convert(file, tmp_path / "dst", "coco", images=photos)
    convert(file, tmp_path / "dst", "coco", images=photos, upright=True)
    table = read_coco(tmp_path / "dst/annotations/instances_all.json", tmp_path / "dst/images/all")
    assert table.boxes.tolist() == [[1.5, 2.25, 20, 30]] and table.sizes.tolist() == [[60, 40]]
    tree["images"][0] |= {"height": 41}
    file.write_text(json.dumps(tree))
    with pytest.raises(RetinaError, match="expected 40x41 pixels .* as declared, the image has 60x40"):
        convert(file, tmp_path / "other", "coco", images=photos)


def test_a_jpeg_is_encoded_again_and_says_so(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    out = io.BytesIO()
    ramp = np.tile(np.linspace(0, 255, 60, dtype=np.uint8), (40, 1))
    Image.fromarray(ramp).convert("RGB").save(out, format="JPEG", quality=95, exif=exif, icc_profile=b"profile")
    turned = Image.open(io.BytesIO(upright_bytes(out.getvalue(), "x")))
    assert turned.format == "JPEG" and turned.info["icc_profile"] == b"profile"
    assert np.abs(np.asarray(turned.convert("L")).astype(int) - ramp[::-1, ::-1]).max() <= 6


@pytest.mark.parametrize("to", ["label-studio", "cocco"])
def test_what_is_not_read_again_is_refused_before_anything_is_written(tmp_path, to):
    """Label Studio's tasks are written of predictions alone: a file of them holds a single split."""
    with pytest.raises(RetinaError, match=f"^to: expected one of coco, voc, yolo, csv, tfds, .*got '{to}'$"):
        convert(write_coco(tmp_path / "src"), tmp_path / "dst", to, images=tmp_path / "src/photos")
    assert not (tmp_path / "dst").exists()


# --------------------------------------------------------------------------------------------------- killed and resumed

CHILD = """
import os, signal, sys
from pathlib import Path
from retina.data.convert.converting import convert
source, folder, to, moment = sys.argv[1:5]
steps = 0
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def progress(step, done, total):
    if moment == f"{step} {done}":
        die()
replace = Path.replace
def replacing(self, target):
    global steps
    steps += 1
    if moment == f"rename {steps}":
        die()
    return replace(self, target)
Path.replace = replacing
convert(source, folder, to, images=Path(source).parent / "photos", splits=["train"], resume=True, progress=progress)
"""


@pytest.mark.parametrize(
    ("to", "moments"),
    [
        ("coco", ["rename 1", "writing 2", "rename 3", "checking 0"]),
        ("voc", ["rename 3", "writing 3", "rename 2"]),
    ],
)
def test_killed_at_any_moment_it_gives_the_same_bytes(tmp_path, to, moments):
    file = write_coco(tmp_path / "src")
    child = [sys.executable, "-c", CHILD, str(file)]
    convert(file, tmp_path / "whole", to, images=tmp_path / "src/photos", splits=["train"])
    for moment in moments:
        killed = subprocess.run([*child, str(tmp_path / "killed"), to, moment], capture_output=True, text=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert not (tmp_path / "killed" / REPORT).exists()
    convert(file, tmp_path / "killed", to, images=tmp_path / "src/photos", splits=["train"], resume=True)
    assert tree_of(tmp_path / "killed") == tree_of(tmp_path / "whole")


def test_folders_that_are_not_empty(tmp_path):
    file = write_coco(tmp_path / "src")
    photos = tmp_path / "src/photos"
    with pytest.raises(RetinaError, match="src: expected a new or empty folder, it holds instances_all.json; choose a"):
        convert(file, tmp_path / "src", "coco", images=photos)
    with pytest.raises(RetinaError, match="there is no conversion to go on with"):
        convert(file, tmp_path / "src", "coco", images=photos, resume=True)
    convert(file, tmp_path / "dst", "coco", images=photos)
    before = tree_of(tmp_path / "dst")
    convert(file, tmp_path / "dst", "coco", images=photos, resume=True)
    assert tree_of(tmp_path / "dst") == before
    with pytest.raises(RetinaError, match="another source or other settings"):
        convert(file, tmp_path / "dst", "voc", images=photos, resume=True)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut/.retina_convert.json").write_text("{}")
    with pytest.raises(RetinaError, match="it was cut off: go on with --resume"):
        convert(file, tmp_path / "cut", "coco", images=photos)


def test_hard_links(tmp_path):
    file = write_coco(tmp_path / "src")
    convert(file, tmp_path / "dst", "yolo", images=tmp_path / "src/photos", splits=["train"], link=True)
    assert os.path.samefile(tmp_path / "dst/images/train/p0.png", tmp_path / "src/photos/p0.png")


# ------------------------------------------------------------------------------------------------------------ the check


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"boxes": [[1.5, 2.25, 20, 30.1], [10, 10, 59.875, 40]]}, "1 of 2 boxes differ in their box, in 0.png"),
        ({"labels": [1, 1]}, "1 of 2 boxes differ in their class, in 0.png"),
        ({"crowd": [True, True]}, "2 of 2 boxes differ in their crowd flag, in 0.png"),
        ({"difficult": [False, True]}, "1 of 2 boxes differ in their difficult flag, in 0.png"),
        ({"areas": [500.5, 1401.0]}, "1 of 2 boxes differ in their area, in 0.png"),
        ({"sizes": [(41, 60)]}, "0.png: (height, width) is [41, 60], expected [40, 60]"),
        ({"images": ("1.png",)}, "1 image not there, such as 0.png"),
    ],
)
def test_the_check_can_fail(tmp_path, monkeypatch, change, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0.png").write_bytes(b"1234")
    made = table(1)
    tolerance = np.full(2, 1e-6)
    assert differences(part_of(made), made, tolerance) == ()
    assert differences(part_of(made), replace(made, **change), tolerance) == (said,)


def test_the_check_counts_images_boxes_and_bytes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in (("0.png", b"1234"), ("1.png", b"1"), ("copy/0.png", b"123"), ("copy/1.png", b"1")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    made = table(2)
    assert differences(part_of(made), made.subset([0]), np.zeros(4)) == ("1 image, expected 2",)
    assert differences(part_of(made), made.subset([1, 0]), np.zeros(4)) == (), "in another order is no matter"
    fewer = replace(
        made.subset([0, 1]),
        offsets=[0, 2, 3],
        **{c: getattr(made, c)[:3] for c in ("boxes", "labels", "crowd", "difficult", "areas")},
    )
    assert differences(part_of(made), fewer, np.zeros(4)) == ("1.png: 1 box, expected 2",)
    copied = replace(made, images=("copy/0.png", "copy/1.png"))
    assert differences(part_of(made), copied, np.zeros(4)) == ("0.png: 3 bytes, expected 4",)
    (tmp_path / "copy/1.png").write_bytes(b"2")
    counted: list[None] = []
    assert differences(part_of(made), copied, np.zeros(4), lambda: counted.append(None)) == (
        "0.png: 3 bytes, expected 4",
        "1.png: its bytes are not those of the source",
    )
    assert len(counted) == 2


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_check_compares_the_pixels_of_turned_images(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    stored = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save("0.png", format=kind, exif=exif)
    (tmp_path / "copy").mkdir()
    made = table(
        1, sizes=[(60, 40)], boxes=np.zeros((0, 4)), offsets=[0, 0], labels=[], crowd=[], difficult=[], areas=[]
    )
    part = replace(part_of(made), rotations=np.array([6]))
    copied = replace(made, images=("copy/0.png",))

    def said(content: bytes) -> tuple[str, ...]:
        (tmp_path / "copy/0.png").write_bytes(content)
        return differences(part, copied, np.zeros(0))

    right = upright_bytes("0.png", "x")
    assert said(right) == ()
    assert "differ" in said(encoded_as(np.rot90(stored, 1), kind))[0], "turned the other way"
    assert said((tmp_path / "0.png").read_bytes()) == (
        "0.png: its pixels have the shape (40, 60, 4), expected (60, 40, 4)",
    )
    assert "can't be decoded" in said(right[: len(right) // 2])[0]
    changed = np.asarray(Image.open(io.BytesIO(right))).copy()
    changed[5:9, 5:9] = 255 - changed[5:9, 5:9]
    assert "turned source" in said(encoded_as(changed, kind))[0]


def encoded_as(pixels: np.ndarray, kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format=kind, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}))
    return out.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_check_turns_pixels_as_pillow_does(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(1).integers(0, 256, (4, 6, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(out)))
    assert turned(pixels, orientation).tolist() == expected.tolist()


# ---------------------------------------------------------------------------------------------------------- the sources


def test_sources_are_told_apart(tmp_path):
    with pytest.raises(RetinaError, match="no such file or folder; expected a configuration"):
        find_source(str(tmp_path / "none"))
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(RetinaError, match="expected a file ending in"):
        find_source(str(tmp_path / "x.bin"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(RetinaError, match="got none of them"):
        find_source(str(tmp_path / "empty"))
    file = write_coco(tmp_path / "src")
    assert next(iter(find_source(str(file)).splits.values())).images == tmp_path / "src/photos"
    (tmp_path / "src/photos").rename(tmp_path / "photos")
    with pytest.raises(RetinaError, match="its images are not in .*; say where they are with --images"):
        find_source(str(file))
    (tmp_path / "photos").rename(tmp_path / "src/all")
    found = find_source(str(file))
    assert found.format == "coco" and list(found.splits) == ["all"]
    assert found.splits["all"].images == tmp_path / "src/all"
    assert list(find_source(str(file), splits=["train"]).splits) == ["train"]
    with pytest.raises(RetinaError, match="--data-dir has no effect on a source of format 'coco'"):
        find_source(str(file), data_dir=tmp_path)
    with pytest.raises(RetinaError, match="--split a=: expected NAME or NAME=NEW"):
        find_source(str(file), splits=["a="])


def test_voc_lists_overlap_so_one_is_chosen(tmp_path):
    lists = tmp_path / "VOC2007/ImageSets/Main"
    lists.mkdir(parents=True)
    for name in ("train", "trainval"):
        (lists / f"{name}.txt").write_text("x\n")
    with pytest.raises(
        RetinaError, match="several splits, which may overlap; choose with --split.*2007/train, 2007/tr"
    ):
        find_source(str(tmp_path))
    found = find_source(str(tmp_path), splits=["2007/trainval=train"])
    assert list(found.splits) == ["train"] and found.splits["train"].splits == ("2007/trainval",)
    assert list(find_source(str(tmp_path), splits=["2007/train"]).splits) == ["2007_train"]
    with pytest.raises(RetinaError, match="splits that exist: 2007/train, 2007/trainval"):
        convert(tmp_path, tmp_path / "dst", "coco", splits=["2007/trin"])


def test_an_image_that_is_cut_short_is_named_and_copied_as_it_is(tmp_path):
    """The copy equals its source, which is not what an image should be."""
    file = write_coco(tmp_path / "src", names=["p0.jpg", "p1.jpg", "p2.jpg"])
    photo = tmp_path / "src/photos/p1.jpg"
    photo.write_bytes(photo.read_bytes()[:-800])
    options = [str(file), str(tmp_path / "dst"), "--to", "coco", "--images", str(photo.parent)]
    answer = CliRunner().invoke(app_of("convert"), options)
    assert answer.exit_code == 0
    assert "note: all: 1 image can't be decoded, copied unchanged: p1.jpg: " in answer.stdout
    assert "holds what its source holds, damaged images too." in answer.stdout
    assert "holds what it should" not in answer.stdout


def test_the_command(tmp_path):
    file = write_coco(tmp_path / "src")
    app = app_of("convert")
    base = [str(file), str(tmp_path / "dst"), "--to", "coco", "--images", str(tmp_path / "src/photos")]
    answer = CliRunner().invoke(app, [*base, "--json"])
    assert answer.exit_code == 0, answer.output
    told = json.loads(answer.stdout)
    assert told["splits"] == {"all": {"images": 3, "boxes": 4}} and told["problems"] == []
    assert told["data"]["all"] == {
        "format": "coco",
        "annotations": "annotations/instances_all.json",
        "images": "images/all",
    }
    answer = CliRunner().invoke(app, [*base, "--resume"])
    assert answer.exit_code == 0 and "Read again and compared" in answer.stdout
    (tmp_path / "dst/images/all/p0.png").write_bytes(b"cut")
    answer = CliRunner().invoke(app, [*base, "--resume"])
    assert answer.exit_code == 1 and "wrong: all: p0.png: 3 bytes, expected" in answer.stdout
    assert "remove what is wrong and repeat the command with --resume" in answer.stdout
    (tmp_path / "dst/images/all/p0.png").unlink()
    assert CliRunner().invoke(app, [*base, "--resume"]).exit_code == 0
    for options, said in (
        (["--spec", "coco"], "--spec has no effect"),
        (["--shard-mib", "1"], "--shard-mib has no ef"),
    ):
        answer = CliRunner().invoke(app, [*base, *options])
        assert isinstance(answer.exception, RetinaError) and said in str(answer.exception)


@pytest.mark.parametrize(
    ("splits", "places", "left"),
    [
        (["all"], {"train": "all", "validation": None}, []),
        (["test", "train", "val"], {"train": "train", "validation": "val", "test": "test"}, []),
        (["train2017", "val2017"], {"train": "train2017", "validation": "val2017"}, []),
        (["validation", "all", "training"], {"train": "training", "validation": "validation"}, ["all"]),
        (["2007_valid", "a", "b"], {"train": "a", "validation": "2007_valid"}, ["b"]),
    ],
)
def test_the_configuration_that_is_printed_loads(splits, places, left):
    data = {"validation" if split == "val" else split: {"format": "voc", "splits": [split]} for split in splits}
    counts = {split: {"images": 1, "boxes": 1} for split in splits}
    done = Conversion("voc", Path("there"), counts, (), (), (), data | {"orientation": "stored"})
    tree, unused = done.configuration()
    loaded = config.parse(tree).data
    assert loaded.root == Path("there") and loaded.orientation == "stored" and list(unused) == left
    sources = {"train": loaded.train, "validation": loaded.validation, "test": loaded.test}
    expected = {"test": None} | places
    assert {name: source and source.splits[0] for name, source in sources.items()} == expected


def test_a_configuration_without_a_split_to_train_on():
    data = {"test": {"format": "voc", "splits": ["test"]}}
    tree, _ = Conversion("voc", Path("there"), {"test": {}}, (), (), (), data).configuration()
    assert "train" not in tree["data"]


@pytest.mark.parametrize(
    ("splits", "written", "message"),
    [
        (["train", "validation"], ["train", "val"], None),
        (["train=valid"], ["val"], None),
        (
            ["validation=val", "train=validation"],
            None,
            "got 'validation'; val is there already: leave one out",
        ),
        (["train", "validation=photos"], None, "got 'photos'; say which it is with --split photos=val"),
        (["validation=train2017"], None, "got 'train2017'; say which it is with --split train2017=train"),
    ],
)
def test_the_splits_of_yolo(tmp_path, splits, written, message):
    """Its names for ours; what it has no name for gets a hint that puts no two splits together."""
    file = write_coco(tmp_path / "src")
    source = {"format": "coco", "annotations": file.name, "images": "photos"}
    tree = {"data": {"root": str(file.parent), "train": source, "validation": source}}
    tree["schedule"] = {"kind": "cosine", "steps": 1000}
    (tmp_path / "c.yaml").write_text(json.dumps(tree))
    if message is None:
        done = convert(tmp_path / "c.yaml", tmp_path / "dst", "yolo", splits=splits)
        assert list(done.splits) == written and not done.problems
    else:
        with pytest.raises(RetinaError, match=message):
            convert(tmp_path / "c.yaml", tmp_path / "dst", "yolo", splits=splits)


# ----------------------------------------------------------------------------------------------------------------- TFDS


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_cocos_features_in_shards(tmp_path, file_format):
    tfds = pytest.importorskip("tensorflow_datasets")
    file = write_coco(tmp_path / "src", crowd=1)
    photos = tmp_path / "src/photos"
    size = (photos / "p0.png").stat().st_size
    settings = {"images": photos, "splits": ["train"], "file_format": file_format, "shard_bytes": 2 * size}
    done = convert(file, tmp_path / "sets/tiny/2.0.0", "tfds", **settings)
    assert done.problems == ()
    assert done.notes == (f"{file}: 4 areas cut to whole pixels, as TFDS with COCO's features stores them",)
    builder = tfds.builder_from_directory(tmp_path / "sets/tiny/2.0.0")
    assert builder.info.full_name == "tiny/2.0.0" and builder.info.splits["train"].shard_lengths == [1, 2]
    told = builder.info.features.get_serialized_info()
    assert {key: (value.shape, np.dtype(value.np_dtype).kind) for key, value in told.items() if key != "objects"} == {
        "image": ((), "O"),
        "image/filename": ((), "O"),
        "image/id": ((), "i"),
    }
    assert {key: (value.shape, np.dtype(value.np_dtype).kind) for key, value in told["objects"].items()} == {
        "area": ((None,), "i"),
        "bbox": ((None, 4), "f"),
        "id": ((None,), "i"),
        "is_crowd": ((None,), "b"),
        "label": ((None,), "i"),
    }
    if file_format == "array_record":
        examples = list(builder.as_data_source("train"))
    else:
        examples = list(tfds.as_numpy(builder.as_dataset("train")))
    assert [int(example["image/id"]) for example in examples] == [10, 11, 12]
    assert np.array_equal(examples[2]["image"], np.asarray(Image.open(photos / "p2.png")))
    np.testing.assert_allclose(
        examples[0]["objects"]["bbox"],
        [[2.25 / 40, 1.5 / 60, 30 / 40, 20 / 60], [0.25, 1 / 6, 1, 59.875 / 60]],
        rtol=1e-7,
    )
    assert list(examples[0]["objects"]["is_crowd"]) == [True, False]
    again = convert(tmp_path / "sets/tiny/2.0.0", tmp_path / "back", "coco")
    assert again.problems == ()
    back = read_coco(tmp_path / "back/annotations/instances_train.json", tmp_path / "back/images/train")
    before = read_coco(file, photos)
    assert back.category_ids == (3, 7) and back.image_ids == before.image_ids and back.areas.tolist() == [500] * 4
    np.testing.assert_allclose(back.boxes, before.boxes, rtol=0, atol=60 * 2**-23)
    assert [Path(i).read_bytes() for i in back.images] == [Path(i).read_bytes() for i in before.images]


def test_vocs_features_and_resumed_shards(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    file = write_coco(tmp_path / "src")
    convert(file, tmp_path / "voc", "voc", images=tmp_path / "src/photos", splits=["train"])
    xml = tmp_path / "voc/Annotations/p2.xml"
    xml.write_text(xml.read_text().replace("<difficult>0", "<difficult>1", 1))
    whole = convert(tmp_path / "voc", tmp_path / "a/set", "tfds", shard_bytes=1)
    assert whole.problems == () and whole.splits == {"train": {"images": 3, "boxes": 4}}
    data = config.Data.model_validate(
        {"root": tmp_path / "a/set", "train": whole.data["train"], "validation": {"format": "digits"}}
    )
    table = load_split(data, "train")
    assert table.difficult.tolist() == [False, False, True, False] and table.image_ids == ("p0", "p1", "p2")
    assert table.category_ids == (1, 2)

    class Cut(BaseException):
        pass

    def progress(step, done, total):
        if (step, done) == ("writing", 2):
            raise Cut

    with pytest.raises(Cut):
        convert(tmp_path / "voc", tmp_path / "b/set", "tfds", shard_bytes=1, progress=progress)
    assert len(list((tmp_path / "b/set").glob("set-train.tfrecord-*-of-00003"))) == 1, "the second is not whole"
    convert(tmp_path / "voc", tmp_path / "b/set", "tfds", shard_bytes=1, resume=True)
    assert tree_of(tmp_path / "b/set") == tree_of(tmp_path / "a/set")


# ------------------------------------------------------------------------------------------------------------ real data


def test_voc100_through_every_format(tmp_path, shared_data):
    folder = shared_data / "voc100"
    before = read_voc(folder, ("all",))
    done = convert(folder, tmp_path / "voc", "voc", splits=["all=train"])
    assert done.problems == () and done.splits == {"train": {"images": 100, "boxes": 273}}
    after = read_voc(tmp_path / "voc", ("train",))
    for column in ("class_names", "category_ids", "image_ids"):
        assert getattr(after, column) == getattr(before, column)
    for column in ("sizes", "offsets", "boxes", "labels", "difficult"):
        assert np.array_equal(getattr(after, column), getattr(before, column)), column
    with pytest.raises(RetinaError, match="38 of 273 boxes are marked difficult, which YOLO can't say"):
        convert(folder, tmp_path / "yolo", "yolo", splits=["all=train"])
    assert (
        convert(folder, tmp_path / "yolo", "yolo", splits=["all=train"], difficult="drop").splits["train"]["boxes"]
        == 235
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file_format", "moment"),
    [
        ("tfrecord", "rename 3"),
        ("tfrecord", "writing 3"),
        ("array_record", "writing 2"),
        ("array_record", "checking 0"),
    ],
)
def test_a_tfds_conversion_killed_gives_the_same_bytes(tmp_path, file_format, moment):
    pytest.importorskip("tensorflow_datasets")
    file = write_coco(tmp_path / "src")
    child = CHILD.replace("progress=progress)", f"progress=progress, shard_bytes=1, file_format={file_format!r})")
    settings = {"images": tmp_path / "src/photos", "splits": ["train"], "shard_bytes": 1, "file_format": file_format}
    convert(file, tmp_path / "a/set", "tfds", **settings)
    killed = subprocess.run(
        [sys.executable, "-c", child, str(file), str(tmp_path / "b/set"), "tfds", moment],
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "b/set" / REPORT).exists()
    convert(file, tmp_path / "b/set", "tfds", **settings, resume=True)
    assert tree_of(tmp_path / "b/set") == tree_of(tmp_path / "a/set")


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
@pytest.mark.parametrize("name", ["coco_mini", "bccd"])
def test_training_from_shards(tmp_path, shared_data, name, file_format):
    """The table equals that of the files themselves, boxes to float32, and a few steps have the same losses."""
    pytest.importorskip("tensorflow_datasets")
    import retina

    files = {
        "coco_mini": {
            "format": "coco",
            "annotations": "annotations/instances_train2017.json",
            "images": "train2017",
        },
        "bccd": {"format": "voc", "splits": ["train"]},
    }[name]
    source = shared_data / name
    source = source / files["annotations"] if name == "coco_mini" else source
    folder = tmp_path / "sets" / name / "1.0.0"
    done = convert(source, folder, "tfds", splits=["train"], invalid_boxes="drop", file_format=file_format)
    assert done.problems == ()
    shards = {"format": "tfds", "name": name, "split": "train", "data_dir": str(tmp_path / "sets")}
    tables, losses = [], []
    for number, section in enumerate((files, shards)):
        few = {**section, "select": {"first": 8}}
        settings = [
            f"data.root={shared_data / name}",
            f"data.train={json.dumps(few)}",
            f"data.validation={json.dumps(few)}",
            "data.invalid_boxes=drop",
            "data.resize={short: 64, long: 96, multiple: 32}",
            "model.fpn={channels: 16, max_level: 5}",
            "model.head={channels: 16, layers: 1}",
            "schedule={kind: cosine, steps: 3, warmup_steps: 1}",
            "run={batch_size: 4, checkpoint_every: 3, evaluate_every: 3, log_every: 1, deterministic: true}",
            "run.pictures=0",
            "assignment.force_match=true",
        ]
        resolved = config.load(None, settings)
        whole = resolved.data.model_copy(update={"train": resolved.data.train.model_copy(update={"select": None})})
        tables.append(load_split(whole, "train"))
        if (name, file_format) not in {("coco_mini", "tfrecord"), ("bccd", "array_record")}:
            continue
        retina.train(resolved, tmp_path / f"run{number}")
        lines = (tmp_path / f"run{number}/metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)])
    direct, stored = tables
    for column in ("class_names", "category_ids", "image_ids"):
        assert getattr(stored, column) == getattr(direct, column)
    for column in ("sizes", "offsets", "labels", "crowd", "difficult"):
        assert np.array_equal(getattr(stored, column), getattr(direct, column)), column
    np.testing.assert_allclose(stored.boxes, direct.boxes, rtol=0, atol=640 * 2**-23)
    np.testing.assert_allclose(stored.areas, direct.areas, rtol=1e-4, atol=1)
    assert [image.read() for image in stored.images] == [Path(image).read_bytes() for image in direct.images]
    if losses:
        assert len(losses[0]) == 3 and losses[1] == pytest.approx(losses[0], rel=1e-3)
