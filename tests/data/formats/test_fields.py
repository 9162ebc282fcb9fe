"""Whatever stands in a field of a file: it is read rightly or refused in one line, alike by every command, and never
raises anything else."""

from __future__ import annotations

import copy
import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import hypothesis.strategies as st
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from PIL import Image

from retina import config
from retina.data.convert.origin import find_source
from retina.data.formats.coco import coco_results
from retina.data.load import load_split, read_ground_truth, read_results, read_source
from retina.doctor.targets import open_target, read_splits
from retina.errors import RetinaError

_VALUES = (
    None, True, False, 0, 1, 2, -1, 0.0, 1.0, -0.0, 0.5, -0.5, 1e-320, 1e20, 1e101, -1e300, 10**19, -(10**400), 2**31,
    math.nan, math.inf, -math.inf, "", "0", "1", "0.0", "nan", " ", "cat", "a.png", "\ud800", "\0", "x" * 300, "é",
    "../a",
    [], [0], [[1, 2]], [1, 2, 3, 4], [1, 2, None, 4], {}, {"a": 1}, [math.nan] * 4, ["1", "2", "3", "4"], [10**400] * 4,
)  # fmt: skip
STRANGE = st.one_of(
    st.sampled_from(_VALUES),
    st.integers(),
    st.floats(),
    st.text(max_size=6),
    st.lists(st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=3)), max_size=5),
)
SIDE = 40
EXAMPLES = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

COCO = {
    "images": [
        {"id": 1, "file_name": "a.png", "height": SIDE, "width": SIDE},
        {"id": 2, "file_name": "b.png", "height": SIDE, "width": SIDE},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 10, 20], "area": 200, "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 2, "bbox": [1.5, 2, 10, 20], "area": 200.5, "iscrowd": 1},
    ],
    "categories": [{"id": 1, "name": "cat", "supercategory": "x"}, {"id": 2, "name": "dog"}],
}
RESULTS = [
    {"image_id": 1, "category_id": 1, "bbox": [1, 2, 10, 20], "score": 0.5},
    {"image_id": 2, "category_id": 2, "bbox": [1.5, 2, 10, 20], "score": 1},
]
VOC = {
    "filename": "a.png",
    "size/width": SIDE,
    "size/height": SIDE,
    "object/name": "cat",
    "object/difficult": 0,
    "object/bndbox/xmin": 2,
    "object/bndbox/ymin": 3,
    "object/bndbox/xmax": 11,
    "object/bndbox/ymax": 22,
}
YOLO = {
    "path": ".",
    "train": "images",
    "val": "images",
    "test": "images",
    "nc": 2,
    "names": ["cat", "dog"],
    "kpt_shape": None,
}
LINE = ["0", "0.5", "0.5", "0.25", "0.25"]
LABELME = {
    "version": "5.4.1",
    "flags": {},
    "shapes": [
        {"label": "cat", "points": [[1, 2], [11, 22]], "group_id": None, "shape_type": "rectangle", "flags": {}},
        {"label": "dog", "points": [[1, 2], [9, 2], [9, 8.5]], "shape_type": "polygon", "difficult": False},
    ],
    "imagePath": "a.png",
    "imageData": None,
    "imageHeight": SIDE,
    "imageWidth": SIDE,
}
TEXT = {
    "xywh": ["cat", "0.5", "1", "2", "10", "20"],
    "xyxy": ["cat", "0.5", "1", "2", "11", "22"],
    "yolo": ["0", "0.5", "0.3", "0.3", "0.2", "0.2"],
    "ultralytics": ["0", "0.3", "0.3", "0.2", "0.2", "0.5"],
    "voc": ["a", "0.5", "1", "2", "11", "22"],
}
CSV = {
    "image": "a.png", "width": SIDE, "height": SIDE, "x1": 1, "y1": 2, "x2": 11, "y2": 22, "label": "cat", "crowd": 0,
    "difficult": 0, "area": 200,
}  # fmt: skip


def places(tree: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of every value in a tree, the tree's own among them."""
    yield path
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries:
        yield from places(value, (*path, key))


def changed(tree: Any, path: tuple, value: Any) -> Any:
    if not path:
        return value
    tree = copy.deepcopy(tree)
    inner = tree
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return tree


IN_RECORDS = {"format": "tfds", "name": "made", "split": "train", "data_dir": "."}
RECORDS = {
    "objects/bbox": [0.1, 0.1, 0.5, 0.5, 0.0, 0.2, 1.0, 0.9],
    "objects/label": [0, 1],
    "objects/is_crowd": [0, 0],
    "objects/is_difficult": [0, 1],
    "objects/area": [100, 200],
    "image/id": [7],
    "image/filename": [b"a.png"],
    "image": [],
}
VALUES = st.one_of(
    st.lists(st.sampled_from((0.0, 0.5, 1.0, -1.0, 1e-320, 3e38, math.nan, math.inf)), max_size=9),
    st.lists(st.sampled_from((0, 1, -1, 5, 2**31, 2**62, -(2**63))), max_size=3),
    st.lists(st.sampled_from((b"", b"x", b"\xff\xfe", b"a\0")), max_size=2),
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A folder with the TFDS dataset `made`, of one record."""
    tfds = pytest.importorskip("tensorflow_datasets")
    from tests.data.formats.test_tfds import example as record
    from tests.data.formats.test_tfds import features, write

    root = tmp_path_factory.mktemp("prepared")
    spec = features(**{"image/id": np.int64, "image/filename": tfds.features.Text()})
    rows = [record(0, **{"image/id": 7, "image/filename": "a.png"})]
    write(root / "made" / "1.0.0", "made", "tfrecord", spec, {"train": rows}, shards=1)
    return root


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("fields")
    for folder in ("images", "JPEGImages", "labels", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for name in "ab":
        for folder in ("images", "JPEGImages", "."):
            Image.new("RGB", (SIDE, SIDE)).save(root / folder / f"{name}.png")
        (root / "labels" / f"{name}.txt").write_text(" ".join(LINE))
    (root / "ImageSets/Main/train.txt").write_text("a\n")
    return root


def outcome(read: Callable[[], Any]) -> str:
    """ "read", or the line that refuses: anything else that is raised fails the test."""
    try:
        read()
    except RetinaError as error:
        line = str(error)
        assert line.isprintable() or "\n" not in line, line
        assert "\n" not in line and len(line) < 3000, line
        return line
    return "read"


def alike(root: Path, source: dict, path: Path, *, scored: bool) -> None:
    """Train, doctor and convert read it, or none of them does; what they read, `score` reads."""
    section = config.Data.model_validate({"root": root, "train": source, "validation": source}).train

    def convert() -> None:
        for part in (origin := find_source(str(path))).splits.values():
            read_source(origin.data, part, "source")

    def doctor() -> None:
        target = open_target(path, [])
        for split in target.splits:
            target.read(split, "error")

    trained = outcome(lambda: load_split(config.Data(root=root, train=section, validation=section), "train"))
    examined, converted = outcome(doctor), outcome(convert)
    # Data without a box that counts can be converted, but neither trained on nor examined.
    if "nothing to train on" in trained:
        trained = examined = converted if converted == "read" else trained
    # The doctor goes on without images that can't be used, and names them.
    unusable = ("no such image", "expected an image file", "expected an encoded image", "data.max_pixels")
    if any(words in trained for words in unusable):
        examined = trained
    # Convert copies files, however many pixels they are declared to have.
    if "data.max_pixels" in trained:
        converted = trained
    assert len({trained == "read", examined == "read", converted == "read"}) == 1, (trained, examined, converted)
    if scored:
        figures = outcome(lambda: read_ground_truth(path))
        assert trained != "read" or figures == "read", figures


@EXAMPLES
@given(st.sampled_from(list(places(COCO))), STRANGE)
@example(("images", 0, "file_name"), "\ud800")
@example(("images", 0, "file_name"), "\0")
def test_coco(home, path, value):
    (home / "data.json").write_text(json.dumps(changed(COCO, path, value)))
    source = {"format": "coco", "annotations": "data.json", "images": "images"}
    alike(home, source, home / "data.json", scored=True)


@EXAMPLES
@given(st.sampled_from(list(places(RESULTS))), STRANGE)
def test_results(home, path, value):
    (home / "truth.json").write_text(json.dumps(COCO))
    (home / "results.json").write_text(json.dumps(changed(RESULTS, path, value)))
    truth = read_ground_truth(home / "truth.json")
    line = outcome(lambda: coco_results(home / "results.json", truth, "continuous"))
    assert line == "read" or "results.json" in line


@EXAMPLES
@given(st.sampled_from(list(VOC)), STRANGE)
def test_voc(home, field, value):
    text = escape(str(value)).encode("utf-8", "replace").decode().replace("\0", "&#0;")
    root = ""
    fields = VOC | {field: text}
    size = "".join(f"<{key}>{fields[f'size/{key}']}</{key}>" for key in ("width", "height"))
    corners = "".join(f"<{key}>{fields[f'object/bndbox/{key}']}</{key}>" for key in ("xmin", "ymin", "xmax", "ymax"))
    thing = f"<name>{fields['object/name']}</name><difficult>{fields['object/difficult']}</difficult>"
    root = f"<filename>{fields['filename']}</filename><size>{size}</size>"
    xml = f"<annotation>{root}<object>{thing}<bndbox>{corners}</bndbox></object></annotation>"
    (home / "Annotations/a.xml").write_text(xml)
    folder = home / "voc"
    folder.mkdir(exist_ok=True)
    for part in ("Annotations", "ImageSets", "JPEGImages"):
        if not (folder / part).exists():
            (folder / part).symlink_to(home / part)
    alike(home, {"format": "voc", "folder": "voc", "splits": ["train"]}, folder, scored=True)


@EXAMPLES
@given(st.sampled_from(list(places(YOLO))), STRANGE)
def test_a_data_yaml(home, path, value):
    tree = changed(YOLO, path, value)
    (home / "data.yaml").write_bytes(yaml.safe_dump(tree).encode("utf-8", "replace"))
    source = {"format": "yolo", "data": "data.yaml", "split": "train"}
    outcomes = [outcome(lambda: load_split(config.Data.model_validate(
        {"root": home, "train": source, "validation": source}), "train"))]  # fmt: skip
    target = outcome(lambda: read_splits(open_target(home / "data.yaml", [])))
    assert all("data.yaml" in line or "images" in line or line == "read" for line in (*outcomes, target)), outcomes


@EXAMPLES
@given(STRANGE)
@example("images/\0.png")
def test_a_list_of_yolo_images(home, value):
    (home / "list.yaml").write_text("train: list.txt\nnames: [cat, dog]\n")
    (home / "list.txt").write_bytes(f"images/a.png\n{value}\n".encode("utf-8", "replace"))
    alike(home, {"format": "yolo", "data": "list.yaml", "split": "train"}, home / "list.yaml", scored=False)


@EXAMPLES
@given(st.sampled_from(range(len(LINE))), STRANGE)
def test_a_yolo_label(home, column, value):
    (home / "plain.yaml").write_text("train: images\nnames: [cat, dog]\n")
    words = [str(value) if place == column else word for place, word in enumerate(LINE)]
    (home / "labels/a.txt").write_bytes(" ".join(words).encode("utf-8", "replace"))
    alike(home, {"format": "yolo", "data": "plain.yaml", "split": "train"}, home / "plain.yaml", scored=False)


@EXAMPLES
@given(st.sampled_from(list(places(LABELME))), STRANGE)
@example(("shapes", 0, "shape_type"), ["rectangle"])
@example(("imagePath",), "\ud800")
@example(("imagePath",), "\0")
def test_labelme(home, path, value):
    folder = home / "labelme"
    folder.mkdir(exist_ok=True)
    for name, tree in (("a", changed(LABELME, path, value)), ("b", LABELME | {"imagePath": "b.png"})):
        Image.new("RGB", (SIDE, SIDE)).save(folder / f"{name}.png")
        (folder / f"{name}.json").write_text(json.dumps(tree))
    alike(home, {"format": "labelme", "folder": "labelme"}, folder, scored=False)


def write_record(prepared: Path, field: str, value: list) -> None:
    """A record with another value of a field, as protocol buffers can hold it."""
    import tensorflow as tf

    (shard,) = (prepared / "made" / "1.0.0").glob("made-train*")
    image = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE)).save(image, "PNG")
    kinds = {
        float: lambda values: tf.train.Feature(float_list=tf.train.FloatList(value=values)),
        int: lambda values: tf.train.Feature(int64_list=tf.train.Int64List(value=values)),
        bytes: lambda values: tf.train.Feature(bytes_list=tf.train.BytesList(value=values)),
    }
    fields = RECORDS | {"image": [image.getvalue()], field: value}
    record = {key: kinds[type(values[0])](values) for key, values in fields.items() if values}
    with tf.io.TFRecordWriter(str(shard)) as writer:
        writer.write(tf.train.Example(features=tf.train.Features(feature=record)).SerializeToString())


@settings(EXAMPLES, max_examples=15)
@given(st.sampled_from(list(RECORDS)), VALUES)
@example("objects/bbox", [0.0, 0.0, 1.0, 1.0])
@example("objects/label", [2**62, 1])
@example("objects/label", [])
@example("objects/area", [1])
@example("image/id", [])
@example("image/filename", [0.5])
@example("image", [])
@example("image", [b""])
def test_tfds(prepared, field, value):
    write_record(prepared, field, value)
    alike(prepared, IN_RECORDS, prepared / "made" / "1.0.0", scored=False)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "objects/bbox",
            [0.0, 0.0, 1.0, 1.0],
            r"image 0 .*: expected a value of each .*, got objects/area 2, objects/bbox 1",
        ),
        ("objects/label", [2**62, 1], "image 7: an object has the label 4611686018427387904, expected 0 to 2"),
        ("image", [], "a record holds NoneType in the place of an encoded image; prepare it again"),
    ],
)
def test_records_that_contradict_themselves(prepared, field, value, message):
    """A box for two labels isn't shared, and a number too large for a label isn't cut."""
    write_record(prepared, field, value)
    data = config.Data.model_validate({"root": prepared, "train": IN_RECORDS, "validation": None})
    with pytest.raises(RetinaError, match=message):
        load_split(data, "train")


@EXAMPLES
@given(st.sampled_from(list(TEXT)), st.sampled_from(range(6)), STRANGE)
def test_text_results(home, layout, column, value):
    (home / "truth.json").write_text(json.dumps(COCO))
    folder = home / layout
    folder.mkdir(exist_ok=True)
    words = [str(value) if place == column else word for place, word in enumerate(TEXT[layout])]
    file = folder / ("comp4_det_test_cat.txt" if layout == "voc" else "a.txt")
    file.write_bytes(" ".join(words).encode("utf-8", "replace"))
    truth = read_ground_truth(home / "truth.json")
    line = outcome(lambda: read_results(folder, truth, format=layout))
    assert line == "read" or file.name in line


@EXAMPLES
@given(st.sampled_from(list(CSV)), STRANGE)
def test_csv(home, field, value):
    word = '"' + str(value).replace('"', '""') + '"'
    row = ",".join(word if key == field else str(cell) for key, cell in CSV.items())
    (home / "data.csv").write_bytes(f"{','.join(CSV)}\n{row}\n".encode("utf-8", "replace"))
    alike(home, {"format": "csv", "annotations": "data.csv"}, home / "data.csv", scored=False)


@pytest.mark.parametrize(
    ("key", "value", "flag"),
    [(key, value, flag) for key in ("iscrowd",) for value, flag in
     ((None, False), (0.0, False), (1.0, True), (True, True), (False, False), (0, False), (1, True))],
)  # fmt: skip
def test_flags_of_coco(home, key, value, flag):
    (home / "data.json").write_text(json.dumps(changed(COCO, ("annotations", 0, key), value)))
    source = {"format": "coco", "annotations": "data.json", "images": "images"}
    data = config.Data.model_validate({"root": home, "train": source, "validation": source})
    if flag:
        assert read_source(data, data.train, "here").crowd.tolist() == [True, True]
    else:
        assert load_split(data, "train").crowd.tolist() == [False, True]
    assert read_ground_truth(home / "data.json").crowd.tolist() == [flag, True]


@pytest.mark.parametrize("value", ["0", "1", "", 2, -1, 0.5, [], {}, math.nan])
def test_no_flags_of_coco(home, value):
    (home / "data.json").write_text(json.dumps(changed(COCO, ("annotations", 0, "iscrowd"), value)))
    source = {"format": "coco", "annotations": "data.json", "images": "images"}
    data = config.Data.model_validate({"root": home, "train": source, "validation": source})
    for read in (lambda: load_split(data, "train"), lambda: read_ground_truth(home / "data.json")):
        with pytest.raises(RetinaError, match=r"data\.json: annotations\[0\]: 'iscrowd' must be 0 or 1, got "):
            read()


def test_whole_numbers_that_a_tool_wrote_with_a_point(home):
    tree = changed(changed(COCO, ("annotations", 0, "category_id"), 1.0), ("annotations", 1, "image_id"), 2.0)
    (home / "data.json").write_text(json.dumps(tree))
    truth = read_ground_truth(home / "data.json")
    source = {"format": "coco", "annotations": "data.json", "images": "images"}
    table = load_split(config.Data.model_validate({"root": home, "train": source, "validation": source}), "train")
    assert truth.image.tolist() == [0, 1] and table.offsets.tolist() == [0, 1, 2]
    assert truth.labels.tolist() == table.labels.tolist() == [0, 1]
