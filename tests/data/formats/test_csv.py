"""CSV files of boxes: every malformed file is named with its line; then values by hand."""

from pathlib import Path

import pytest
from PIL import Image

from retina import config
from retina.data.convert.converting import convert
from retina.data.formats.layouts import look
from retina.data.load import load_split
from retina.doctor.targets import open_target, read_splits
from retina.errors import RetinaError
from tests.data.formats.tables import read_coco, read_csv

HEADER = "image,x1,y1,x2,y2,label\n"
GOOD = "a.png,1,2,11,22,cat\n"


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (200, 100)).save(tmp_path / name)
    return tmp_path


def write(folder: Path, text: str | bytes, name="boxes.csv") -> Path:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty; expected rows image,x1,y1,x2,y2,label"),
        ("\n ,,\n", "it is empty"),
        (HEADER, "it has a header but no row"),
        (b"a.png,1,2,3,4,\xe9", "not UTF-8 text"),
        ("image,x1,y1,x2,y2,labl\n" + GOOD, "line 1: unknown column 'labl'; did you mean 'label'?"),
        ("image,x1,y1,x2,y2,label,x1\n", "line 1: column 'x1' is given twice"),
        ("image,x1,y1,x2,label\n" + GOOD, "line 1: column 'y2' is missing; expected image,x1,y1,x2,y2,label"),
        ("image,x1,y1,x2,y2,label,width\n" + GOOD, "line 1: width and height belong together"),
        (HEADER + GOOD + "\na.png,1,2,3,cat\n", "line 4: expected 6 columns .*, got 5: 'a.png,1,2,3,cat'"),
        ("file,left,top,right,bottom,name,more\n", "line 1: expected 6 columns .*, got 7.*a header would begin with"),
        (HEADER + GOOD + "a.png,1,x,3,4,cat\n", "line 3: y1: expected a finite number, got 'x'"),
        (HEADER + GOOD + "a.png,1,2,nan,4,cat\n", "line 3: x2: expected a finite number, got 'nan'"),
        (HEADER + GOOD + "a.png,1,2,3,1e999,cat\n", "line 3: y2: expected a finite number, got '1e999'"),
        (HEADER + "a.png,1,2,,4,cat\n", "line 2: x2 is empty; fill it in, or leave box and label empty"),
        (HEADER + "a.png,1,2,3,4,\n", "line 2: label is empty"),
        (HEADER + "a.png,,,,,cat\n", "line 2: x1 is empty"),
        (HEADER + ",1,2,3,4,cat\n", "line 2: image: expected the name of an image file, got nothing"),
        (HEADER + GOOD + "../c.png,1,2,3,4,cat\n", "line 3: image '../c.png' leaves the image folder"),
        (HEADER + "/etc/c.png,1,2,3,4,cat\n", "line 2: image '/etc/c.png' leaves the image folder"),
        (HEADER + '"a.png,1,2,3,4,cat\n', "line 2: not valid CSV: unexpected end of data; check its quotes"),
        (HEADER[:-1] + ",crowd\na.png,1,2,3,4,cat,2\n", "line 2: crowd must be 0, 1 or empty"),
        (HEADER[:-1] + ",difficult\na.png,1,2,3,4,cat,yes\n", "line 2: difficult: expected a finite number, got 'yes'"),
        (HEADER[:-1] + ",area\na.png,1,2,3,4,cat,-1\n", "line 2: area must not be negative"),
        (HEADER[:-1] + ",width,height\na.png,1,2,3,4,cat,200,\n", "line 2: width and height belong together"),
        (HEADER[:-1] + ",width,height\na.png,1,2,3,4,cat,0,9\n", "line 2: width and height must be positive whole"),
        (HEADER[:-1] + ",width,height\na.png,1,2,3,4,cat,9.5,9\n", "line 2: width and height must be positive whole"),
        (
            HEADER[:-1] + ",width,height\na.png,1,2,3,4,cat,9,9\na.png,1,2,3,4,cat,9,8\n",
            "line 3: width and height are not those of an earlier row of the same image",
        ),
        (HEADER + "a.png,,,,,\n", "no row has a label, so there are no class names; set data.classes"),
        (HEADER + "a.png,5,2,5,4,cat\n" + GOOD, r"line 2 \(image a.png\): box \[5, 2, 5, 4\] has zero width"),
        (HEADER + GOOD + "b.png,5,2,205,4,cat\n", r"line 3 \(image b.png\): box .* reaches 5 px outside its image"),
    ],
)
def test_each_malformed_file_is_one_clear_line(folder, text, message):
    with pytest.raises(RetinaError, match="boxes.csv: .*" + message) as caught:
        read_csv(write(folder, text))
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there(folder):
    with pytest.raises(RetinaError, match="none.csv: cannot read this text file"):
        read_csv(folder / "none.csv")
    with pytest.raises(RetinaError, match=r"ghost.png: no such image \(line 3 of .*boxes.csv\)"):
        read_csv(write(folder, HEADER + GOOD + "ghost.png,,,,,\nghost.png,1,2,3,4,cat\n"))
    with pytest.raises(RetinaError, match="pictures: no such image folder"):
        read_csv(write(folder, GOOD), folder / "pictures")
    (folder / "a.png").write_bytes(b"")
    with pytest.raises(RetinaError, match="a.png: cannot read the size of this image"):
        read_csv(write(folder, GOOD))


@pytest.mark.parametrize("head", ["", HEADER, "\ufeff" + HEADER, HEADER.upper(), "\n" + HEADER])
def test_values(folder, head):
    rows = "b.png,1,2,11.5,22,dog\r\na.png,,,,,\n\nb.png , 0 ,0,200.5, 100,cat\n"
    table = read_csv(write(folder, head + rows))
    assert table.image_ids == ("b.png", "a.png") and table.images[1] == str(folder / "a.png")
    assert table.class_names == ("cat", "dog") and table.category_ids == (1, 2)
    assert table.sizes.tolist() == [[100, 200], [100, 200]] and table.offsets.tolist() == [0, 2, 2]
    assert table.boxes.tolist() == [[1, 2, 11.5, 22], [0, 0, 200, 100]] and table.labels.tolist() == [1, 0]
    assert table.areas.tolist() == [210, 20000] and table.notes == ()


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5, 6, 7), (7, 3, 0, 1, 2, 6, 5, 4)])
def test_the_columns_of_tensorflows_object_detection(folder, order):
    """As `xml_to_csv.py` and Roboflow write them; by every command that reads data."""
    columns = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax")
    rows = [("b.png", 200, 100, "dog", 1, 2, 11, 22), ("a.png", 200, 100, "cat", 0, 0, 200, 100)]
    file = write(folder, "".join(",".join(str(row[i]) for i in order) + "\n" for row in (columns, *rows)))
    (section,) = look(str(file)).splits.values()
    data = config.Data(train=section, validation=section)
    splits, findings = read_splits(open_target(file, []))
    assert not findings
    done = convert(file, folder / "out", "coco", splits=["boxes=train"])
    assert done.problems == () and done.splits == {"train": {"images": 2, "boxes": 2}}
    written = read_coco(folder / "out/annotations/instances_train.json", folder / "out/images/train")
    for table in (read_csv(file), load_split(data, "train"), splits["data"], written):
        assert [Path(image).name for image in table.images] == ["b.png", "a.png"]
        assert table.class_names == ("cat", "dog") and table.labels.tolist() == [1, 0]
        assert table.boxes.tolist() == [[1, 2, 11, 22], [0, 0, 200, 100]]
        assert table.sizes.tolist() == [[100, 200]] * 2


def test_every_column(folder):
    text = (
        "label,area,image,crowd,x1,y1,x2,y2,difficult,height,width\n"
        'cat,7.5,"a.png",1,0,0,5,5,0,50,60\n'
        "dog,,a.png,,0,0,5,5,1,,\n"
        ",,b.png,,,,,,,,\n"
    )
    table = read_csv(write(folder, text))
    assert table.sizes.tolist() == [[50, 60], [100, 200]], "what the file says comes first"
    assert table.areas.tolist() == [7.5, 25] and table.crowd.tolist() == [True, False]
    assert table.difficult.tolist() == [False, True]
    assert not read_csv(folder / "boxes.csv", difficult="use").difficult.any()
    dropped = read_csv(folder / "boxes.csv", difficult="drop")
    assert dropped.class_names == ("cat", "dog") and dropped.labels.tolist() == [0] and len(dropped) == 2
    assert dropped.notes == (f"{folder}/boxes.csv: 1 of 2 objects are difficult: dropped (data.difficult: drop)",)


def test_classes(folder):
    file = write(folder, "a.png,1,2,11,22,dog\na.png,1,2,11,22,cat\n")
    listed = read_csv(file, classes=("dog", "emu", "cat"))
    assert listed.labels.tolist() == [0, 2] and listed.category_ids == (2, 3, 1)  # by name: cat, dog, emu
    with pytest.raises(RetinaError, match="line 2: class 'cat' is not in data.classes; did you mean 'cart'?"):
        read_csv(file, classes=("dog", "cart"))
    mapping = write(folder, "dog,7\ncat,3\n", "classes.csv")
    mapped = read_csv(file, class_file=mapping)
    assert mapped.class_names == ("cat", "dog") and mapped.category_ids == (3, 7) and mapped.labels.tolist() == [1, 0]
    assert read_csv(file, class_file=mapping, classes=("dog", "cat")).category_ids == (7, 3)
    with pytest.raises(RetinaError, match="line 1: class 'dog' is not in .*classes.csv"):
        read_csv(file, class_file=write(folder, "cat,0", "classes.csv"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "this file of classes is empty"),
        ("cat\n", "line 1: expected 'class name,id', got 'cat'"),
        ("cat,0\ndog,x\n", "line 2: expected 'class name,id', got 'dog,x'"),
        ("cat,0\ncat,1\n", "line 2: 'cat,1': name or id is given twice"),
        ("cat,0\ndog,0\n", "line 2: 'dog,0': name or id is given twice"),
    ],
)
def test_malformed_classes(folder, text, message):
    with pytest.raises(RetinaError, match="classes.csv: " + message):
        read_csv(write(folder, GOOD), class_file=write(folder, text, "classes.csv"))


def test_the_folder_of_images(folder):
    (folder / "lists").mkdir()
    table = read_csv(write(folder, GOOD, "lists/boxes.csv"), folder)
    assert table.images == (f"{folder}/a.png",)
    absolute = read_csv(write(folder, f"{folder}/a.png,1,2,11,22,cat\n" + GOOD))
    assert absolute.images == (f"{folder}/a.png",) and absolute.image_ids == ("a.png",)
    assert len(absolute.boxes) == 2


def test_invalid_boxes(folder):
    file = write(folder, "a.png,9,2,5,4,cat\na.png,190,2,210,4,cat\n" + GOOD)
    assert read_csv(file, invalid_boxes="drop").boxes.tolist() == [[1, 2, 11, 22]]
    assert read_csv(file, invalid_boxes="clip").boxes.tolist() == [[190, 2, 200, 4], [1, 2, 11, 22]]
