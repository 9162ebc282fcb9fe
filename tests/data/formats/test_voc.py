"""Pascal VOC: every malformed or unsafe file is named; then values, made and real."""

from pathlib import Path

import pytest

from retina.errors import RetinaError
from tests.data.formats.tables import read_voc


def obj(name="cat", box=(11, 21, 30, 40), difficult="<difficult>0</difficult>") -> str:
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name>{difficult}<bndbox>{corners}</bndbox></object>"


def xml(*objects: str, size="<size><width>200</width><height>100</height></size>") -> str:
    return f"<annotation><filename>wrong.bmp</filename>{size}{''.join(objects)}</annotation>"


def devkit(home: Path, annotations: dict[str, str], splits: dict[str, str], extension=".jpg") -> Path:
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    for stem, text in annotations.items():
        (home / "Annotations" / f"{stem}.xml").write_text(text, encoding="utf-8")
        (home / "JPEGImages" / f"{stem}{extension}").write_bytes(b"never opened")
    for split, text in splits.items():
        (home / "ImageSets/Main" / f"{split}.txt").write_text(text, encoding="utf-8")
    return home


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid XML: no element found"),
        ("<annotation><object></annotation>", "not valid XML: mismatched tag"),
        ("<html/>", "expected <annotation> as the outermost element, got <html>"),
        ('<!DOCTYPE a [<!ENTITY e "x">]><annotation>&e;</annotation>', "declares a DTD or entities, .* unsafe"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "declares a DTD or entities, .* unsafe"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "not valid XML: "),
        (xml(size=""), "size has no <size/height>, or it is empty"),
        (
            xml(size="<size><width>200</width><height>x</height></size>"),
            "size: <size/height> must be a number, got 'x'",
        ),
        (xml(size="<size><width>0</width><height>9</height></size>"), "width must be a positive whole number, got 0"),
        (
            xml(size="<size><width>nan</width><height>9</height></size>"),
            "width must be a positive whole number, got nan",
        ),
        (xml(size="<size><width>2.5</width><height>9</height></size>"), "width must be .* got 2.5"),
        (xml(obj(), "<object><name>cat</name></object>"), "object 1 has no <bndbox>"),
        (xml("<object><name>cat</name><bndbox><xmin>1</xmin></bndbox></object>"), "object 0 has no <bndbox/ymin>"),
        (xml(obj(box=(1, "two", 3, 4))), "object 0: <bndbox/ymin> must be a number, got 'two'"),
        (xml(obj(name=" ")), "object 0 has no <name>, or it is empty"),
        (xml(obj(difficult="<difficult>maybe</difficult>")), "object 0: <difficult> must be 0 or 1, got 'maybe'"),
    ],
)
def test_each_malformed_annotation_is_one_clear_line(tmp_path, text, message):
    devkit(tmp_path, {"good": xml(obj()), "bad": text}, {"train": "good\nbad\n"})
    with pytest.raises(RetinaError, match="Annotations/bad.xml: .*" + message) as caught:
        read_voc(tmp_path, ("train",))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "train.txt: this split file lists no image"),
        ("\n  \n", "train.txt: this split file lists no image"),
        ("a\n../a\n", "train.txt: line 2: expected the name of an image without folder, .*, got '../a'"),
        ("a\na\n", "image a is listed twice"),
        ("a\nghost\n", "JPEGImages/ghost: no such image"),
        ("a\nbare\n", "Annotations/bare.xml: cannot read this annotation: No such file"),
    ],
)
def test_each_bad_split_file_is_one_clear_line(tmp_path, line, message):
    devkit(tmp_path, {"a": xml(obj())}, {"train": line})
    (tmp_path / "JPEGImages" / "bare.jpg").write_bytes(b"")
    with pytest.raises(RetinaError, match=message):
        read_voc(tmp_path, ("train",))


def test_missing_folders_and_splits(tmp_path):
    with pytest.raises(RetinaError, match="nowhere: no such folder"):
        read_voc(tmp_path / "nowhere", ("train",))
    with pytest.raises(RetinaError, match=r"train.txt: no such split file .* there is no ImageSets/Main/\*.txt"):
        read_voc(tmp_path, ("train",))
    devkit(tmp_path, {"a": xml()}, {"train": "a", "val": "a", "cat_train": "a 1"})
    with pytest.raises(
        RetinaError, match=r"test.txt: no such split file \(split 'test'\); splits that exist: train, val$"
    ):
        read_voc(tmp_path, ("test",))
    devkit(tmp_path / "VOC2007", {"a": xml()}, {"trainval": "a"})
    with pytest.raises(RetinaError, match="splits that exist: train, val, 2007/trainval$"):
        read_voc(tmp_path, ("2012/trainval",))
    for split in ("../train", "a/b/c", ""):
        with pytest.raises(RetinaError, match="expected a name such as 'train' or '2007/trainval'"):
            read_voc(tmp_path, (split,))
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    (tmp_path / "JPEGImages").rmdir()
    with pytest.raises(RetinaError, match="JPEGImages: no such folder"):
        read_voc(tmp_path, ("train",))


def test_images_without_objects(tmp_path):
    devkit(tmp_path, {"a": xml()}, {"train": "a"})
    data = read_voc(tmp_path, ("train",), classes=("cat",))
    assert len(data) == 1 and data.boxes.shape == (0, 4) and data.labels.shape == (0,)
    with pytest.raises(RetinaError, match="no annotation has an object, .* set data.classes"):
        read_voc(tmp_path, ("train",))


def test_values(tmp_path):
    both = xml(obj("dog"), obj("cat", (1, 1, 200, 100), "<difficult>1</difficult>"), obj("cat", (0, 0, 5.5, 6), ""))
    devkit(tmp_path, {"b": both, "a": xml(), "other": xml(obj("ant"))}, {"train": "b\na\n"}, extension=".png")
    data = read_voc(tmp_path, ("train",))
    assert data.class_names == ("ant", "cat", "dog") and data.category_ids == (1, 2, 3)
    assert data.image_ids == ("b", "a") and data.images[0] == str(tmp_path / "JPEGImages" / "b.png")
    assert data.sizes.tolist() == [[100, 200], [100, 200]] and data.offsets.tolist() == [0, 3, 3]
    # One-based and inclusive in the file; the last box was counted from 0 and reaches 1 pixel out.
    assert data.boxes.tolist() == [[10, 20, 30, 40], [0, 0, 200, 100], [0, 0, 5.5, 6]]
    assert data.labels.tolist() == [2, 1, 1]
    assert data.difficult.tolist() == [False, True, False] and not data.crowd.any()
    assert data.areas.tolist() == [400, 20000, 33] and data.notes == ()


@pytest.mark.parametrize(
    ("policy", "boxes", "flags", "notes"),
    [("ignore", 2, [True, False], 0), ("use", 2, [False, False], 0), ("drop", 1, [False], 1)],
)
def test_difficult(tmp_path, policy, boxes, flags, notes):
    devkit(tmp_path, {"a": xml(obj(difficult="<difficult>1</difficult>"), obj("dog"))}, {"train": "a"})
    data = read_voc(tmp_path, ("train",), difficult=policy)
    assert len(data.boxes) == boxes and data.difficult.tolist() == flags and len(data.notes) == notes
    assert data.class_names == ("cat", "dog") and data.labels[-1] == 1
    assert all(note.endswith("1 of 2 objects are difficult: dropped (data.difficult: drop)") for note in data.notes)


def test_classes(tmp_path):
    devkit(tmp_path, {"a": xml(obj("dog"), obj("cat"))}, {"train": "a"})
    data = read_voc(tmp_path, ("train",), classes=("dog", "emu", "cat"))
    assert data.labels.tolist() == [0, 2] and data.category_ids == (2, 3, 1)  # by name: cat, dog, emu
    with pytest.raises(RetinaError, match="a.xml: object 1: class 'cat' is not in data.classes; did you mean 'cart'?"):
        read_voc(tmp_path, ("train",), classes=("dog", "cart"))


def test_invalid_boxes_are_judged_on_the_numbers_of_the_file(tmp_path):
    bad = (obj(box=(5, 6, 5, 9)), obj(), obj(box=(9, 6, 5, 9)), obj(box=(5, 6, 300, 9)))
    devkit(tmp_path, {"a": xml(*bad)}, {"train": "a"})
    with pytest.raises(RetinaError) as caught:
        read_voc(tmp_path, ("train",))
    message = str(caught.value)
    assert "3 of 4 boxes invalid" in message
    assert "a.xml object 0: box [5, 6, 5, 9] has zero width;" in message
    assert "a.xml object 2: box [9, 6, 5, 9] has negative width (-4);" in message
    assert "a.xml object 3: box [5, 6, 300, 9] reaches 100 px outside its image (200 wide, 100 high)." in message
    assert read_voc(tmp_path, ("train",), invalid_boxes="drop").boxes.tolist() == [[10, 20, 30, 40]]
    assert read_voc(tmp_path, ("train",), invalid_boxes="clip").boxes.tolist() == [[10, 20, 30, 40], [4, 5, 200, 9]]


@pytest.mark.parametrize("parent", ["", "VOCdevkit"])
def test_year_folders_are_concatenated_in_order(tmp_path, parent):
    devkit(tmp_path / parent / "VOC2007", {"000005": xml(obj("cat")), "000007": xml(obj("ant"))}, {"test": "000005"})
    devkit(tmp_path / parent / "VOC2012", {"2008_1": xml(obj("dog"))}, {"cat_train": "2008_1 -1\n"})
    data = read_voc(tmp_path, ("2012/cat_train", "2007/test"))
    assert data.image_ids == ("2008_1", "000005") and data.class_names == ("ant", "cat", "dog")
    assert data.labels.tolist() == [2, 1]
    assert read_voc(tmp_path, ("2007/test",)).class_names == ("ant", "cat")


@pytest.mark.parametrize(
    ("split", "images", "boxes", "dropped"), [("train", 205, 2804, 1), ("val", 87, 1137, 1), ("test", 72, 945, 0)]
)
def test_real_bccd(shared_data, split, images, boxes, dropped):
    data = read_voc(shared_data / "bccd", (split,), invalid_boxes="drop")
    assert (len(data), len(data.boxes), len(data.notes)) == (images, boxes, dropped)
    assert data.class_names == ("Platelets", "RBC", "WBC")
    assert (data.sizes == [480, 640]).all() and all(Path(path).is_file() for path in data.images)


def test_real_bccd_names_its_two_zero_area_boxes(shared_data):
    with pytest.raises(RetinaError) as caught:
        read_voc(shared_data / "bccd", ("train", "val"))
    message = str(caught.value)
    assert "2 of 3943 boxes invalid" in message
    assert "BloodImage_00343.xml object 3: box [181, 329, 181, 329] has zero width and zero height" in message
    assert "BloodImage_00338.xml object 12: box [504, 337, 504, 337] has zero width and zero height" in message


def test_real_voc(shared_data):
    data = read_voc(shared_data / "voc100", ("all",))
    assert (len(data), len(data.boxes), len(data.class_names), int(data.difficult.sum())) == (100, 273, 20, 38)
    row = data.image_ids.index("2007_000027")
    assert data.sizes[row].tolist() == [500, 486]
    assert data.objects(row).boxes.tolist() == [[173, 100, 349, 351]]
    assert len(read_voc(shared_data / "voc100", ("all",), difficult="drop").boxes) == 235
