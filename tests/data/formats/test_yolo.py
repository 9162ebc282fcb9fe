"""YOLO text labels: every malformed file is named with its line; then the layouts people have, and values by hand."""

from pathlib import Path

import pytest
from PIL import Image

from retina import config
from retina.config.reading import write_yaml
from retina.data.load import load_split
from retina.doctor.preflight import check
from retina.doctor.statistics import table_findings
from retina.errors import RetinaError
from tests.data.formats.tables import read_yolo


def picture(path: Path, width=200, height=100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height)).save(path)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def folders(root: Path, labels: dict[str, str | None], names: str | None = "cat\ndog\n") -> Path:
    """`images` and `labels`; a label text of None is a missing file."""
    for name, text in labels.items():
        picture(root / "images" / f"{name}.png")
        if text is not None:
            write(root / "labels" / f"{name}.txt", text)
    (root / "labels").mkdir(exist_ok=True)
    if names is not None:
        write(root / "labels" / "classes.txt", names)
    return root / "images"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "0 0.5 0.5 0.1\n",
            r"line 1: expected 5 columns \(class cx cy w h\) or a polygon's .*, got 4: '0 0.5 0.5 0.1'",
        ),
        ("\n0 .5 .5 .1 .1\n1 .5 .5 .1 .1 .9\n", "line 3: expected 5 columns .*, got 6"),
        ("0 .1 .1 .2 .2 .3 .3 .4\n", "line 1: expected 5 columns .*, got 8"),
        ("0\n", "line 1: expected 5 columns .*, got 1"),
        ("0 .5 x .1 .1\n", "line 1: cy: expected a finite number, got 'x'"),
        ("0 .5 .5 nan .1\n", "line 1: w: expected a finite number, got 'nan'"),
        ("0 .5 .5 .1 1e999\n", "line 1: h: expected a finite number, got '1e999'"),
        ("0 .1 .1 .2 .2 .3 y\n", "line 1: y3: expected a finite number, got 'y'"),
        ("0 .5 .5 .1 .1\n\n2 .5 .5 .1 .1\n", "line 3: expected a class index from 0 to 1 .*classes.txt.*, got '2'"),
        ("cat .5 .5 .1 .1\n", "line 1: expected a class index from 0 to 1 .*, got 'cat'"),
        ("-1 .5 .5 .1 .1\n", "line 1: expected a class index from 0 to 1 .*, got '-1'"),
        ("1.0 .5 .5 .1 .1\n", "line 1: expected a class index from 0 to 1 .*, got '1.0'"),
        ("0 100 50 20 10\n", "line 1: expected cx cy w h as fractions .*, got 100 50 20 10, .* are they pixels?"),
        ("0 .5 .5 0 .1\n", r"line 1: box \[0.5, 0.5, 0, 0.1\] has zero width"),
        ("0 .5 .5 .1 -.1\n", r"line 1: box \[0.5, 0.5, 0.1, -0.1\] has negative height"),
        ("1 1 .5 .2 .1\n", "line 1: box .* reaches 20 px outside its image"),
        ("0 .1 .1 .2 .1 .3 .1\n", "line 1: box .* has zero height"),
    ],
)
def test_each_malformed_line_is_named(tmp_path, text, message):
    images = folders(tmp_path, {"good": "0 .5 .5 .2 .2\n", "bad": text})
    if "pixels" in message:
        write(tmp_path / "labels" / "good.txt", "")
    with pytest.raises(RetinaError, match="labels/bad.txt:? .*" + message) as caught:
        read_yolo(images=images)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    images = folders(tmp_path, {"a": "0 .5 .5 .2 .2\n"})
    (tmp_path / "labels" / "a.txt").write_bytes(b"0 .5 \xff")
    with pytest.raises(RetinaError, match="a.txt: not UTF-8 text"):
        read_yolo(images=images)
    write(tmp_path / "labels" / "a.txt", "")
    (images / "a.png").write_bytes(b"no image")
    with pytest.raises(RetinaError, match="a.png: cannot read the size of this image"):
        read_yolo(images=images)


def test_folders_that_cannot_be(tmp_path):
    with pytest.raises(RetinaError, match="nowhere: no such folder of YOLO images"):
        read_yolo(images=tmp_path / "nowhere")
    (tmp_path / "images").mkdir()
    with pytest.raises(RetinaError, match="images: no image found; expected files ending in .jpg"):
        read_yolo(images=tmp_path / "images", classes=("cat",))
    images = folders(tmp_path, {"a": ""}, names=None)
    with pytest.raises(
        RetinaError, match="labels: its labels are indices and there is no classes.txt; name the classes"
    ):
        read_yolo(images=images)
    with pytest.raises(RetinaError, match="else: no such folder of YOLO labels"):
        read_yolo(images=images, labels=tmp_path / "else", classes=("cat",))
    picture(images / "a.jpg")
    with pytest.raises(RetinaError, match=r"a.jpg and .*a.png share a label file; rename one"):
        read_yolo(images=images, classes=("cat",))


def test_images_without_objects_are_kept(tmp_path):
    images = folders(tmp_path, {"b": None, "a": "", "c": "\n \n"})
    table = read_yolo(images=images)
    assert table.image_ids == ("a", "b", "c") and table.offsets.tolist() == [0, 0, 0, 0]
    assert table.notes == (f"{images}: 1 of 3 images have no label file: taken as without objects",)


def test_values(tmp_path):
    text = "1 0.5 0.5 0.1 0.2\n\n0 0.25 0.25 0.5 0.5 \n1 .1 .1 .4 .2 .2 .9\n1 0.5  0.5 0.1 0.2\n"
    images = folders(tmp_path, {"a": text, "sub/b": "0 0.995 0.5 0.02 0.1\n"})
    write(tmp_path / "labels" / "gone.txt", "0 .5 .5 .1 .1\n")
    write(images / "notes.xyz", "")
    write(images / ".hidden.png", "")
    table = read_yolo(images=images)
    assert table.image_ids == ("a", "sub/b") and table.images[1] == str(images / "sub" / "b.png")
    assert table.class_names == ("cat", "dog") and table.category_ids == (0, 1)
    assert table.sizes.tolist() == [[100, 200], [100, 200]] and table.offsets.tolist() == [0, 3, 4]
    # The last box reaches 1 pixel out of 200, which is cut off without a word.
    assert table.boxes.round(9).tolist() == [[90, 40, 110, 60], [0, 0, 100, 50], [20, 10, 80, 90], [197, 45, 200, 55]]
    assert table.labels.tolist() == [1, 0, 1, 0] and table.areas.round(9).tolist() == [400, 5000, 4800, 30]
    assert not table.crowd.any() and not table.difficult.any()
    assert [note.removeprefix(f"{images}: ") for note in table.notes] == [
        "1 file of no known kind of image left out: 1 .xyz",
        f"1 label file without image left out, such as {tmp_path}/labels/gone.txt",
        "1 of 4 objects are polygons: their bounding boxes are taken",
        "1 line repeated in a label file: taken once",
    ]


@pytest.mark.parametrize(
    ("policy", "boxes"), [("drop", [[0, 0, 20, 20]]), ("clip", [[0, 0, 20, 20], [180, 45, 200, 55]])]
)
def test_invalid_boxes(tmp_path, policy, boxes):
    images = folders(tmp_path, {"a": "0 .05 .1 .1 .2\n1 1 .5 .2 .1\n0 .5 .5 0 0\n"})
    table = read_yolo(images=images, invalid_boxes=policy)
    assert table.boxes.round(9).tolist() == boxes and "2 of 3 boxes invalid" in table.notes[-1]


def test_where_names_come_from(tmp_path):
    images = folders(tmp_path, {"a": "1 .5 .5 .2 .2\n"}, names=None)
    assert read_yolo(images=images, classes=("ant", "bee")).labels.tolist() == [1]
    write(tmp_path / "classes.txt", "emu\nfox\n")
    assert read_yolo(images=images).class_names == ("emu", "fox")
    turned = read_yolo(images=images, classes=("fox", "emu"))  # another order of the file's names
    assert turned.labels.tolist() == [0] and turned.category_ids == (1, 0)
    assert read_yolo(images=images, names=write(tmp_path / "n.names", "gnu\nhen")).class_names == ("gnu", "hen")
    with pytest.raises(RetinaError, match="data.classes must name the classes of this file"):
        read_yolo(images=images, classes=("ant", "bee"))


def test_labels_beside_the_images_or_elsewhere(tmp_path):
    picture(tmp_path / "all" / "a.png")
    write(tmp_path / "all" / "a.txt", "0 .5 .5 .2 .2")
    assert len(read_yolo(images=tmp_path / "all", classes=("cat",)).boxes) == 1
    write(tmp_path / "other" / "a.txt", "0 .5 .5 .2 .2\n0 .5 .5 .4 .4")
    assert len(read_yolo(images=tmp_path / "all", labels=tmp_path / "other", classes=("cat",)).boxes) == 2


# -------------------------------------------------------------------------------------------------------- data.yaml


def yaml(root: Path, text: str) -> Path:
    picture(root / "images/train/a.png")
    picture(root / "images/val/b.png")
    write(root / "labels/train/a.txt", "0 .5 .5 .2 .2\n")
    write(root / "labels/val/b.txt", "1 .5 .5 .2 .2\n")
    return write(root / "data.yaml", text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "expected an Ultralytics data.yaml with names and splits, got a list"),
        ("train: [", "not valid YAML"),
        ("train: images/train", "names: expected a list of class names, or {0: name, …}, got None"),
        ("train: images/train\nnames: []", "names: expected a list of class names"),
        ("train: images/train\nnames: [true, cat]", "names: expected a text for class 0, got True; put it into quotes"),
        ("train: images/train\nnames: [a, a]", "names: 'a' is given twice"),
        ("train: images/train\nnames: {0: a, 2: b}", r"names: expected the indices 0 to 1, got \[0, 2\]"),
        ("train: images/train\nnames: [a, b]\nnc: 3", "nc is 3, but there are 2 names; correct one of them"),
        ("train: images/train\nnames: [a]\nnc: 0", "nc: expected the number of classes, got 0"),
        ("val: images/val\nnames: [a]", r"it has no split 'train'; expected one of \['val'\]"),
        (
            "train: images/trian\nnames: [a]",
            r"train: expected a folder of images or a .txt file .*images/trian is neither",
        ),
        ("train: 3\nnames: [a]", "train: expected a folder, a text file or a list of these, got 3"),
        ("train: ../../else\nnames: [a]", "train: '../../else' leaves the data set's root"),
        ("train: /etc\nnames: [a]", "train: '/etc' leaves the data set's root"),
        ("path: 3\ntrain: images/train\nnames: [a]", "path: expected the data set's folder, got 3"),
        ("train: [images/train, images]\nnames: [a, b]", r"\(train\): .*train/a.png is listed twice"),
        ("train: images/train\nnames: [a]\nkpt_shape: 17", r"kpt_shape: expected \[points, 2 or 3\], got 17"),
    ],
)
def test_each_malformed_yaml_is_one_clear_line(tmp_path, text, message):
    file = yaml(tmp_path, text)
    with pytest.raises(RetinaError, match=str(file) + ".*" + message) as caught:
        read_yolo(file, "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("./images/train/a.png\n/etc/passwd.png", "line 2: '/etc/passwd.png' leaves the data set's root"),
        ("../../x.png", "line 1: '../../x.png' leaves the data set's root"),
        ("data.yaml", "line 1: expected an image ending in .jpg, .*, got 'data.yaml'"),
    ],
)
def test_a_listed_image_stays_in_the_root(tmp_path, line, message):
    file = yaml(tmp_path, "train: train.txt\nnames: [a]")
    write(tmp_path / "train.txt", line)
    with pytest.raises(RetinaError, match="train.txt: " + message):
        read_yolo(file, "train")


def test_the_layouts_of_a_data_yaml(tmp_path):
    root = tmp_path / "set"
    names = "names: {1: dog, 0: cat}\nnc: 2\n"
    file = yaml(root, f"train: images/train\nval: images/val\n{names}")
    table = read_yolo(file, "val")
    assert table.image_ids == ("b",) and table.class_names == ("cat", "dog") and table.labels.tolist() == [1]
    assert table.name == f"{file} (val)" and table.boxes.tolist() == [[80, 40, 120, 60]] and table.notes == ()

    write(file, f"path: .\ntrain: [images/val, images/train]\nvalid: images/val\n{names}")
    both = read_yolo(file, "train")
    assert both.image_ids == ("images/val/b", "images/train/a") and both.labels.tolist() == [1, 0]
    assert read_yolo(file, "val").image_ids == ("b",)

    absolute = root / "images/train/a.png"
    write(root / "list.txt", f"./images/val/b.png\n\n{absolute}\n")
    write(file, f"train: list.txt\n{names}")
    assert read_yolo(file, "train").image_ids == both.image_ids

    elsewhere = write(tmp_path / "cfg/set.yaml", f"path: ../set\ntrain: images/train\n{names}")
    assert read_yolo(elsewhere, "train").images == (str(absolute),)
    write(file, f"path: /content/set\ntrain: images/train\n{names}")
    assert read_yolo(file, "train").notes == (
        f"{file}: path: no such folder as /content/set: the file's own folder is taken",
    )
    write(file, "train: images/train\nnc: 2")
    assert read_yolo(file, "train").class_names == ("class_0", "class_1")


def test_the_layout_of_roboflow(tmp_path):
    picture(tmp_path / "valid/images/a.png")
    write(tmp_path / "valid/labels/a.txt", "0 .5 .5 .2 .2")
    file = write(tmp_path / "data.yaml", "train: ../train/images\nval: ../valid/images\nnames: ['0']\n")
    assert read_yolo(file, "val").boxes.tolist() == [[80, 40, 120, 60]]


def test_the_box_of_pose_labels(tmp_path):
    file = yaml(tmp_path, "train: images/train\nnames: [person, dog]\nkpt_shape: [2, 3]")
    write(tmp_path / "labels/train/a.txt", "0 .5 .5 .2 .2 .1 .1 2 .9 .9 2\n0 .5 .5 .4 .4\n")
    assert read_yolo(file, "train").boxes.tolist() == [[80, 40, 120, 60], [60, 30, 140, 70]]
    write(tmp_path / "labels/train/a.txt", "0 .1 .1 .2 .1 .3 .1\n")
    with pytest.raises(RetinaError, match=r"expected 5 columns \(class cx cy w h\) or 11 with keypoints, got 7"):
        read_yolo(file, "train")


def test_links_in_a_circle_end(tmp_path):
    images = folders(tmp_path, {"a": "0 .5 .5 .2 .2\n"})
    (images / "again").symlink_to(images, target_is_directory=True)
    assert read_yolo(images=images).image_ids == ("a",)


def label(path: Path) -> None:
    write(path, "0 0.5 0.5 0.2 0.2\n")


@pytest.mark.parametrize(
    ("stray", "share"),
    [
        ("labels/b.TXT", 1 / 2),
        ("labels/B.txt", 1 / 2),
        ("Labels/b.txt", 1 / 2),
        ("annotations/yolo/b.txt", 1 / 2),
        ("labels_new/sub/b.txt", 1 / 2),
        ("labels/c.txt", 1 / 2),
    ],
)
def test_labels_that_no_image_claims_are_told_apart_from_images_without_labels(tmp_path, stray, share):
    for name in "ab":
        picture(tmp_path / "images" / f"{name}.png")
    label(tmp_path / "labels/a.txt")
    label(tmp_path / stray)
    write(tmp_path / "data.yaml", "train: images\nnames: [cat]\n")
    for table in (read_yolo(tmp_path / "data.yaml", "train"), read_yolo(images=tmp_path / "images", classes=("cat",))):
        sought = (str(tmp_path / "labels"),)
        assert table.unused == ((str(tmp_path / stray),), share, sought, ".txt", "is trained as background")
        assert any(str(tmp_path / stray) in note for note in table.notes)
        (finding,) = (found for found in table_findings(table, "train", training=True) if found.code == "unused-labels")
        assert finding.grade == "error" and str(tmp_path / stray) in finding.message
        assert f"sought in {tmp_path / 'labels'}" in finding.message and "run.preflight: warn" in finding.remedy


def test_labels_of_other_splits_and_a_few_leftovers(tmp_path):
    """Images of two splits may have one name, and one label of a hundred may be left over."""
    for split in ("train", "val"):
        picture(tmp_path / f"images/{split}/a.png")
    label(tmp_path / "labels/val/a.txt")
    label(tmp_path / "labels/train/b.txt")
    picture(tmp_path / "images/train/b.png")
    write(tmp_path / "data.yaml", "train: images/train\nval: images/val\nnames: [cat]\n")
    table = read_yolo(tmp_path / "data.yaml", "train")
    assert table.unused is None and len(table.notes) == 1
    for number in range(99):
        picture(tmp_path / f"images/train/{number}.png")
        label(tmp_path / f"labels/train/{number}.txt")
    label(tmp_path / "labels/train/left.txt")
    table = read_yolo(tmp_path / "data.yaml", "train")
    assert table.unused.share == 1 / 101
    grades = {finding.code: finding.grade for finding in table_findings(table, "train", training=True)}
    assert grades["unused-labels"] == "warning"


def test_labels_of_other_data_sets_are_theirs(tmp_path):
    """What lies beside a folder of images and labels does not belong to it."""
    for name in "ab":
        picture(tmp_path / f"mine/{name}.png")
    label(tmp_path / "mine/a.txt")
    label(tmp_path / "theirs/labels/b.txt")
    assert read_yolo(images=tmp_path / "mine", classes=("cat",)).unused is None
    label(tmp_path / "mine/new/b.txt")
    assert read_yolo(images=tmp_path / "mine", classes=("cat",)).unused.files == (str(tmp_path / "mine/new/b.txt"),)


def test_an_image_called_classes(tmp_path):
    """Its label file has the name of the file of names; what stands in it decides."""
    for name in ("a", "classes"):
        picture(tmp_path / f"images/{name}.png")
        label(tmp_path / f"labels/{name}.txt")
    table = read_yolo(images=tmp_path / "images", classes=("cat",))
    assert table.offsets.tolist() == [0, 1, 2] and not table.notes
    write(tmp_path / "labels/classes.txt", "traffic light 3\nstop sign\n")
    table = read_yolo(images=tmp_path / "images")
    assert table.class_names == ("traffic light 3", "stop sign") and table.offsets.tolist() == [0, 1, 1]


def test_the_preflight_refuses_unused_labels_until_told_otherwise(tmp_path):
    for name in "abcd":
        picture(tmp_path / f"images/{name}.png")
        label(tmp_path / f"labels/{name}.{'txt' if name < 'c' else 'TXT'}")
    write(tmp_path / "data.yaml", "train: images\nval: images\nnames: [cat]\n")
    source = {"format": "yolo", "data": "data.yaml", "split": "train"}
    write(tmp_path / "c.yaml", write_yaml({"data": {"root": str(tmp_path), "train": source, "validation": source}}))
    settings = config.load(tmp_path / "c.yaml", ["schedule={kind: constant, steps: 10}"])
    table = load_split(settings.data, "train")
    with pytest.raises(RetinaError, match=r"preflight: train: 2 label files \(50.0%\) belong to no image"):
        check(settings, table, table)
    lines = check(
        config.load(tmp_path / "c.yaml", ["schedule={kind: constant, steps: 10}", "run.preflight=warn"]), table, table
    )
    assert any("belong to no image" in line for line in lines)
