"""labelme's JSON: every malformed file is named; then shapes by hand, images, classes and splits."""

import json

import numpy as np
import pytest
from PIL import Image

from retina import config
from retina.data.dataset import DetectionDataset, build
from retina.data.formats.labelme import labelme_records
from retina.data.load import load_split
from retina.errors import RetinaError

CAT = {"label": "cat", "shape_type": "rectangle", "points": [[5, 6], [25, 16]]}


def write(folder, name="a", shapes=(CAT,), image=True, **keys):
    folder.mkdir(parents=True, exist_ok=True)
    if image:
        Image.new("RGB", (40, 30)).save(folder / f"{name}.png")
    tree = {"version": "5.4", "imagePath": f"{name}.png", "imageHeight": 30, "imageWidth": 40, "shapes": [*shapes]}
    (folder / f"{name}.json").write_text(json.dumps(tree | keys))
    return folder


def read(folder, **settings) -> DetectionDataset:
    return build(labelme_records(folder, **settings), invalid_boxes="error")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"imagePath": 7}, r"a\.json: expected a list as shapes and a path as imagePath, got list and 7"),
        ({"imagePath": ""}, "expected a list as shapes and a path as imagePath"),
        ({"imagePath": "b.png"}, r"b\.png: no such image \(a\.json of .*\*\.json"),
        ({"imagePath": "../../b.png"}, r"a\.json: imagePath '../../b\.png' leaves the image folder"),
        ({"imageHeight": -3}, r"imageHeight and imageWidth must be positive whole numbers, got \[-3, 40\]"),
        ({"shapes": ["cat"]}, "shape 0: expected an object with a label, got 'cat'"),
        ({"shapes": [CAT, CAT | {"label": ""}]}, "shape 1: expected an object with a label"),
        (
            {"shapes": [CAT | {"shape_type": "cuboid"}]},
            "shape_type must be one of rectangle, .*, got 'cuboid'",
        ),
        ({"shapes": [CAT | {"points": [[1, 2]]}]}, r"a rectangle needs at least 2 points \[x, y\], got \[\[1, 2\]\]"),
        ({"shapes": [CAT | {"points": [[1, 2], [3, None]]}]}, "a rectangle needs at least 2 points"),
        ({"shapes": [CAT | {"points": [[1, 2], [3, float("nan")]]}]}, "a rectangle needs at least 2 points"),
        ({"shapes": [CAT | {"shape_type": "polygon"}]}, "a polygon needs at least 3 points"),
        ({"shapes": [CAT | {"points": [[5, 6], [5, 16]]}]}, r"a\.json object 0: .*zero width"),
        ({"shapes": [CAT | {"difficult": "true"}]}, r"a\.json: shape 0: difficult must be true or false, got 'true'"),
        ({"shapes": [CAT | {"difficult": 2}]}, "difficult must be true or false, got 2"),
        ({"shapes": [CAT | {"shape_type": ["rectangle"]}]}, "shape_type must be one of rectangle, .*, got "),
        ({"imagePath": "a\0.png"}, r"a\.json: imagePath 'a\\x00\.png': no file can be called so"),
        ({"shapes": []}, "no file has a shape, so there are no class names; set data.classes"),
    ],
)
def test_malformed(tmp_path, keys, message):
    with pytest.raises(RetinaError, match=message):
        read(write(tmp_path, **keys))


def test_what_is_no_annotation(tmp_path):
    with pytest.raises(RetinaError, match="expected a folder of labelme's JSON files, got none"):
        read(tmp_path)
    write(tmp_path)
    (tmp_path / "notes.json").write_text('{"by": "me"}')
    assert f"{tmp_path}: 1 JSON file of another tool left out, such as notes.json" in read(tmp_path).notes
    (tmp_path / "b.json").write_text('{"shapes": [')
    with pytest.raises(RetinaError, match=r"b\.json: not valid JSON: .*is the file complete\?"):
        read(tmp_path)


def test_one_file_for_each_image(tmp_path):
    write(tmp_path)
    write(tmp_path, "b", imagePath="a.png", image=False)
    with pytest.raises(RetinaError, match=r"a\.json and .*b\.json have one image, .*a\.png; remove one of the files"):
        read(tmp_path)


def test_shapes(tmp_path):
    def shape(kind, *points):
        return {"label": kind or "polygon", "shape_type": kind, "points": [list(point) for point in points]}

    shapes = [
        shape("rectangle", (25.5, 6), (5, 16)),
        shape(None, (1, 2), (9, 3), (4, 11.5)),
        shape("circle", (20, 15), (23, 19)),
        shape("mask", (3, 4), (8, 9)),
        shape("rotation", (10, 0), (20, 10), (10, 20), (0, 10)),
        shape("point", (1, 1)),
        shape("linestrip", (1, 1), (9, 9)),
    ]
    table = read(write(tmp_path, shapes=[*shapes, CAT | {"difficult": True}]))
    assert table.class_names == ("cat", "circle", "mask", "polygon", "rectangle", "rotation")
    named = [table.class_names[label] for label in table.labels]
    assert named == ["rectangle", "polygon", "circle", "mask", "rotation", "cat"]
    expected = [[5, 6, 25.5, 16], [1, 2, 9, 11.5], [15, 10, 25, 20], [3, 4, 8, 9], [0, 0, 20, 20], [5, 6, 25, 16]]
    np.testing.assert_allclose(table.boxes, expected)
    assert table.difficult.tolist() == [False] * 5 + [True]
    assert table.notes[:2] == (
        f"{tmp_path}: 4 of 8 shapes are outlines or masks: their bounding boxes are taken",
        f"{tmp_path}: 2 of 8 shapes are points or lines, which have no area: left out",
    )


@pytest.mark.parametrize(("flag", "difficult"), [(None, False), (0, False), (1, True), (1.0, True), (True, True)])
def test_flags(tmp_path, flag, difficult):
    assert read(write(tmp_path, shapes=[CAT | {"difficult": flag}])).difficult.tolist() == [difficult]


def test_sizes_that_are_not_given_are_measured(tmp_path):
    write(tmp_path, imageHeight=None)
    records = labelme_records(tmp_path)
    assert records.sizes.tolist() == [[30, 40]] and np.asarray(records.measured).tolist() == [True]
    (tmp_path / "a.png").write_bytes(b"none")
    with pytest.raises(RetinaError, match=r"a\.png: cannot read the size of this image"):
        labelme_records(tmp_path)
    assert labelme_records(tmp_path, keep_unreadable=True).sizes.min() > 2**20


def test_classes_of_every_split(tmp_path):
    write(tmp_path / "train")
    write(tmp_path / "test", "b", shapes=[CAT | {"label": "ant"}])
    write(tmp_path, "other", shapes=[CAT | {"label": "yak"}])
    train = config.LabelmeSource(folder=tmp_path, splits=("train",))
    table = load_split(config.Data(train=train, validation=None), "train")
    assert table.class_names == ("ant", "cat") and table.category_ids == (1, 2) and table.labels.tolist() == [1]
    assert read(tmp_path).class_names == ("yak",), "the folder itself"
    both = read(tmp_path, splits=("train", "test"), classes=("cat", "ant", "dog"))
    assert both.labels.tolist() == [0, 1] and both.image_ids == ("a", "b")
    with pytest.raises(RetinaError, match=r"b\.json: object 0: class 'ant' is not in data\.classes"):
        read(tmp_path, splits=("train", "test"), classes=("cat",))


def test_images_elsewhere(tmp_path):
    (tmp_path / "far").mkdir()
    write(tmp_path / "set", imagePath="C:\\photos\\a.png", image=False)
    Image.new("RGB", (40, 30)).save(tmp_path / "far/a.png")
    assert read(tmp_path / "set", images=tmp_path / "far").images == (f"{tmp_path}/far/a.png",)
    with pytest.raises(RetinaError, match="no such image|leaves the image folder"):
        read(tmp_path / "set")
