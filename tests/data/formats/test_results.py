"""Other people's files, read for scoring: ground truth and detections, COCO's JSON, VOC's folders and text."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retina import config
from retina.data.detections import to_continuous
from retina.data.ground_truth import FileTruth, GroundTruth, Results, file_truth
from retina.data.load import read_ground_truth, read_results
from retina.errors import RetinaError
from tests.data.formats.tables import read_voc


def coco(**changes):
    tree = {
        "images": [{"id": 7, "file_name": "a/x.jpg", "height": 100, "width": 200}, {"id": 0, "file_name": "y.jpg"}],
        "categories": [{"id": 9, "name": "dog"}, {"id": 0, "name": "traffic light"}],
        "annotations": [
            {"image_id": 0, "category_id": 9, "bbox": [1.1, 2.2, 3.3, 4.4], "area": 5.0, "iscrowd": 1, "id": 0},
            {"image_id": 7, "category_id": 0, "bbox": [-5, 0, 0, -1], "id": 0, "ignore": 1},
        ],
    }
    return tree | changes


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def truth(tmp_path, **changes):
    return read_ground_truth(write(tmp_path / "gt.json", coco(**changes)))


def detections(tmp_path, given, content, **settings):
    return read_results(write(tmp_path / "dt.json", content), given, **settings)


def entry(**changes):
    return {"image_id": 7, "category_id": 9, "bbox": [1, 2, 3, 4], "score": 0.5} | changes


def voc(folder, objects, splits=("train",), size=(100, 200)):
    for name in objects:
        parts = "".join(
            f"<object><name>{kind}</name><difficult>{difficult}</difficult><bndbox>"
            + "".join(f"<{c}>{v}</{c}>" for c, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
            + "</bndbox></object>"
            for kind, difficult, box in objects[name]
        )
        sides = f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
        write(folder / "Annotations" / f"{name}.xml", f"<annotation>{sides}{parts}</annotation>")
    for split in splits:
        write(folder / "ImageSets/Main" / f"{split}.txt", "\n".join(objects))
    return folder


# ------------------------------------------------------------------------------------------------- empty things


def test_nothing_annotated_and_nothing_found(tmp_path):
    given = truth(tmp_path, annotations=[])
    assert len(given) == 2 and given.boxes.shape == (0, 4)
    for content in ([], {"annotations": []}):
        found = detections(tmp_path, given, content)
        assert len(found) == 0 and found.boxes.shape == (0, 4) and found.scores.dtype == np.float64
    (tmp_path / "none").mkdir()
    for layout in ("xywh", "xyxy", "yolo", "ultralytics", "voc"):
        assert len(read_results(tmp_path / "none", given, format=layout)) == 0
    write(tmp_path / "blank/x.txt", "\n  \r\n")
    assert len(read_results(tmp_path / "blank", given, format="yolo")) == 0


def test_empty_text_file_is_an_image_without_boxes(tmp_path):
    write(tmp_path / "gts/a.txt", "")
    write(tmp_path / "gts/b.txt", "cat 1 2 3 4\n")
    given = read_ground_truth(tmp_path / "gts", format="xywh")
    assert given.image_ids == ("a", "b") and given.image.tolist() == [1] and given.class_names == ("cat",)
    write(tmp_path / "gts/b.txt", "")
    with pytest.raises(RetinaError, match="no text file has a box, so there are no classes"):
        read_ground_truth(tmp_path / "gts", format="xywh")


# ---------------------------------------------------------------------------------------------------------- COCO


def test_coco_truth_is_taken_as_it_is(tmp_path):
    given = truth(tmp_path)
    assert isinstance(given, FileTruth)
    # Labels follow the categories' ids, images the file; neither `ignore` nor equal annotation ids matter.
    assert given.class_names == ("traffic light", "dog") and given.category_ids == (0, 9)
    assert given.image_ids == (7, 0) and given.stems == ("x", "y")
    assert given.image.tolist() == [1, 0] and given.labels.tolist() == [1, 0]
    assert given.boxes.tolist() == [[1.1, 2.2, 3.3, 4.4], [-5, 0, 0, -1]]
    assert given.crowd.tolist() == [True, False] and not given.difficult.any()
    assert given.areas.tolist() == [5.0, 0.0]  # Without `area`: width x height.
    assert given.sizes[0].tolist() == [100, 200] and np.isnan(given.sizes[1]).all()


def test_ids_may_be_texts_huge_or_repeated(tmp_path):
    given = truth(
        tmp_path,
        images=[{"id": "b"}, {"id": 10**30}, {"id": "b"}],
        categories=[{"id": 5, "name": "dog"}, {"id": "x", "name": "dog"}, {"id": -1}],
        annotations=[{"image_id": 10**30, "category_id": "x", "bbox": [0, 0, 1, 1]}],
    )
    assert given.image_ids == ("b", 10**30)
    assert given.category_ids == (5, "x", -1)  # They can't be ordered.
    assert given.class_names == ("dog (5)", "dog (x)", "-1")  # Figures stand under a name: each needs its own.
    assert given.image.tolist() == [1] and given.labels.tolist() == [1]
    found = detections(tmp_path, given, [entry(image_id="b", category_id=-1), entry(image_id=10**30, category_id="x")])
    assert found.image.tolist() == [0, 1] and found.labels.tolist() == [2, 1]


def test_coco_results_keep_their_numbers(tmp_path):
    given = truth(tmp_path)
    content = [entry(score=0.1234567890123456, extra=[1]), entry(image_id=0, category_id=0, bbox=[0.1, -2, 0, 1e6])]
    for wrapped in (content, {"annotations": content}):
        found = detections(tmp_path, given, wrapped)
        assert found.scores.tolist() == [0.1234567890123456, 0.5]
        assert found.boxes.tolist() == [[1, 2, 3, 4], [0.1, -2, 0, 1e6]]
        assert found.image.tolist() == [0, 1] and found.labels.tolist() == [1, 0]
    assert detections(tmp_path, given, content, pixels="inclusive").boxes[0].tolist() == [0, 1, 4, 5]


def test_wrapped_results_are_matched_by_their_own_names(tmp_path):
    given = truth(tmp_path)
    content = {
        "images": [
            {"id": 0, "file_name": "elsewhere\\x.png"},
            {"id": 7, "file_name": "y"},
            {"id": 3, "file_name": "z"},
        ],
        "categories": [{"id": 9, "name": "traffic light"}, {"id": 1, "name": "dog"}, {"id": 2, "name": "unknown"}],
        "annotations": [entry(), entry(image_id=0, category_id=1)],
    }
    found = detections(tmp_path, given, content)
    assert found.image.tolist() == [1, 0] and found.labels.tolist() == [0, 1]
    with pytest.raises(RetinaError, match="annotations: entry 0: category_id: .* got 2"):
        detections(tmp_path, given, content | {"annotations": [entry(category_id=2)]})
    with pytest.raises(RetinaError, match="categories: expected names of the ground truth's categories .*got none"):
        detections(tmp_path, given, content | {"categories": [{"id": 9, "name": "Dog"}]})


# ----------------------------------------------------------------------------------------------------------- VOC


def test_voc_boxes_are_neither_cut_nor_dropped(tmp_path):
    objects = {"p.1": [("dog", 0, (0, 1, 300, 1)), ("cat", 1, (10, 20, 10, 20))], "q": []}
    given = read_ground_truth(voc(tmp_path, objects))
    assert given.class_names == ("cat", "dog") and given.category_ids == (1, 2)
    assert given.image_ids == ("p.1", "q") == given.stems and given.sizes.tolist() == [[100, 200]] * 2
    assert given.boxes.tolist() == [[-1, 0, 301, 1], [9, 19, 1, 1]]
    assert given.areas.tolist() == [301, 1] and given.difficult.tolist() == [False, True]
    plain = read_ground_truth(tmp_path, pixels="continuous")
    assert plain.boxes.tolist() == [[0, 1, 300, 0], [10, 20, 0, 0]]
    # An image is named by its whole stem, dots and all.
    write(tmp_path / "dt/p.1.txt", "dog 0.5 1 2 3 4")
    assert read_results(tmp_path / "dt", given, format="xyxy").image.tolist() == [0]


def test_voc_splits(tmp_path):
    objects = {"p": [("dog", 0, (1, 1, 5, 5))], "q": [("dog", 0, (1, 1, 6, 6))]}
    assert len(read_ground_truth(voc(tmp_path / "bare", objects, splits=()))) == 2
    two = voc(tmp_path / "two", objects, splits=("train", "val"))
    with pytest.raises(RetinaError, match="several splits; choose with --splits, splits that exist: train, val"):
        read_ground_truth(two)
    assert len(read_ground_truth(two, splits=("val",))) == 2


def test_voc_agrees_with_the_dataset(shared_data):
    dataset = read_voc(shared_data / "voc100", ("all",))
    given, expected = read_ground_truth(shared_data / "voc100"), file_truth(dataset)
    assert given.class_names == expected.class_names and given.stems == expected.stems
    assert given.category_ids == expected.category_ids
    for field in ("image", "boxes", "labels", "difficult", "crowd", "areas", "sizes"):
        np.testing.assert_array_equal(getattr(given, field), getattr(expected, field))


def test_voc_number_that_is_not_finite(tmp_path):
    voc(tmp_path, {"p": [("dog", 0, (1, 1, 5, 5)), ("dog", 0, (1, 1, "nan", 5))]})
    with pytest.raises(RetinaError, match=r"p\.xml: object 1: <bndbox> must hold finite numbers"):
        read_ground_truth(tmp_path)


def test_the_devkits_result_files(tmp_path):
    objects = {"000001": [("car", 0, (1, 1, 5, 5)), ("race_car", 0, (1, 1, 5, 5))], "000002": []}
    given = read_ground_truth(voc(tmp_path, objects))
    write(tmp_path / "dt/comp4_det_test_car.txt", "000002 0.25 1 2 3 4\n000001 .5 1 1 1 1\n")
    write(tmp_path / "dt/comp4_det_test_race_car.txt", "000001 0.75 1 2 3.5 4")
    found = read_results(tmp_path / "dt", given, format="voc", pixels="inclusive")
    assert found.labels.tolist() == [0, 0, 1] and found.image.tolist() == [1, 0, 0]
    assert found.scores.tolist() == [0.25, 0.5, 0.75]
    assert found.boxes.tolist() == [[0, 1, 3, 3], [0, 0, 1, 1], [0, 1, 3.5, 3]]
    write(tmp_path / "dt/truck.txt", "")
    with pytest.raises(RetinaError, match=r"truck\.txt: expected a name that ends in one of the .* 2 classes"):
        read_results(tmp_path / "dt", given, format="voc")


# ---------------------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize(
    ("layout", "line"),
    [
        ("xywh", "dog 0.5 20 10 40 30"),
        ("xyxy", "dog 0.5 20 10 60 40"),
        ("yolo", "dog 0.5 0.2 0.25 0.2 0.3"),
        ("ultralytics", "dog 0.2 0.25 0.2 0.3 0.5"),
    ],
)
def test_every_layout_gives_the_same_box(tmp_path, layout, line):
    given = truth(tmp_path)
    write(
        tmp_path / "dt/x.txt", f"\ufeff{line}\r\n\r\n{line.replace('dog', 'traffic light')}\n{line.replace('dog', '1')}"
    )
    found = read_results(tmp_path / "dt", given, format=layout)
    np.testing.assert_allclose(found.boxes, [[20, 10, 40, 30]] * 3, rtol=0, atol=1e-12)
    assert found.scores.tolist() == [0.5] * 3
    # An index without a file of names counts the ground truth's classes.
    assert found.labels.tolist() == [1, 0, 1] and found.image.tolist() == [0] * 3
    inclusive = read_results(tmp_path / "dt", given, format=layout, pixels="inclusive")
    np.testing.assert_allclose(inclusive.boxes, [[19, 9, 41, 31]] * 3, rtol=0, atol=1e-12)


def test_indices_count_the_file_of_names(tmp_path):
    given = truth(tmp_path)
    names = write(tmp_path / "coco.names", "cat\ndog\ntraffic light\n\n")
    write(tmp_path / "dt/y.txt", "2 .1 0 0 1 1\n1 .2 0 0 1 1\ndog .3 0 0 1 1")
    found = read_results(tmp_path / "dt", given, format="xywh", names=names)
    assert found.labels.tolist() == [0, 1, 1] and found.image.tolist() == [1, 1, 1]
    write(tmp_path / "dt/y.txt", "1 .2 0 0 1 1\n0 .1 0 0 1 1")
    with pytest.raises(RetinaError, match=r"y\.txt: line 2: class 0 is 'cat', which the ground truth does not have"):
        read_results(tmp_path / "dt", given, format="xywh", names=names)


def test_text_truth_and_its_classes(tmp_path):
    write(tmp_path / "gts/a.txt", "10 1 2 3 4\n2 5 6 8 9")
    given = read_ground_truth(tmp_path / "gts", format="xyxy")
    # Numbers are ordered as numbers, and stay the ids.
    assert given.class_names == ("2", "10") and given.category_ids == (2, 10) and given.labels.tolist() == [1, 0]
    assert given.boxes.tolist() == [[1, 2, 2, 2], [5, 6, 3, 3]] and given.areas.tolist() == [4, 9]
    inclusive = read_ground_truth(tmp_path / "gts", format="xyxy", pixels="inclusive")
    assert inclusive.boxes.tolist() == [[0, 1, 3, 3], [4, 5, 4, 4]]
    # labelImg's classes.txt holds names, it is not an image.
    write(tmp_path / "gts/classes.txt", "\n".join("abcdefghijk"))
    named = read_ground_truth(tmp_path / "gts", format="xyxy")
    assert named.class_names == tuple("abcdefghijk") and named.labels.tolist() == [10, 2] and len(named) == 1


def test_fractions_take_the_images_sizes(tmp_path):
    for name, size in (("a", (200, 100)), ("b", (50, 40))):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", size).save(tmp_path / "images" / f"{name}.png")
    write(tmp_path / "gts/a.txt", "0 0.5 0.5 1 1")
    with pytest.raises(RetinaError, match="fractions need the images' sizes; give the folder of images with --images"):
        read_ground_truth(tmp_path / "gts", format="yolo")
    given = read_ground_truth(tmp_path / "gts", format="yolo", images=tmp_path / "images")
    assert given.image_ids == ("a", "b") and given.boxes.tolist() == [[0, 0, 200, 100]]
    assert given.sizes.tolist() == [[100, 200], [40, 50]]
    write(tmp_path / "dt/b.txt", "0 .5 .5 .5 1 .5")
    assert read_results(tmp_path / "dt", given, format="yolo").boxes.tolist() == [[0, 10, 50, 20]]
    # COCO's image y does not say its size.
    unsized = truth(tmp_path)
    write(tmp_path / "dt2/y.txt", "dog .5 .5 .5 1 .5")
    with pytest.raises(RetinaError, match=r"y\.txt: line 1: fractions need the size of the image"):
        read_results(tmp_path / "dt2", unsized, format="yolo")
    (tmp_path / "images/b.png").rename(tmp_path / "images/y.png")
    found = read_results(tmp_path / "dt2", unsized, format="yolo", images=tmp_path / "images")
    assert found.boxes.tolist() == [[0, 10, 50, 20]]


def test_ground_truth_in_memory_names_images_by_id(tmp_path):
    empty = np.zeros(0)
    given = GroundTruth("made", ("dog",), (4,), (12, "b"), empty, np.zeros((0, 4)), empty, empty, empty, empty)
    write(tmp_path / "dt/12.txt", "dog 1 2 3 4 5")
    assert read_results(tmp_path / "dt", given, format="xywh").image.tolist() == [0]


def test_images_of_one_name_need_ids(tmp_path):
    given = truth(tmp_path, images=[{"id": 7, "file_name": "a/x.jpg"}, {"id": 0, "file_name": "b/x.jpg"}])
    write(tmp_path / "dt/x.txt", "")
    with pytest.raises(RetinaError, match="share the file name 'x'"):
        read_results(tmp_path / "dt", given, format="xywh")
    assert len(detections(tmp_path, given, [entry()])) == 1


def test_a_configuration_is_ground_truth(tmp_path):
    settings = config.load(None, ["data.validation={format: digits, split: validation, images: 3, size: 64}"])
    write(tmp_path / "c.yaml", config.to_yaml(settings))
    given = read_ground_truth(tmp_path / "c.yaml")
    assert len(given) == 3 and len(given.boxes) > 0 and given.class_names[0] == "0"
    with pytest.raises(RetinaError, match="--splits: expected one of train, validation and test, got val"):
        read_ground_truth(tmp_path / "c.yaml", splits=("val",))


def test_inclusive_pixels_have_the_devkits_areas():
    # The devkit: width and height of xmax - xmin + 1, here 3 x 4 at the upper left pixel.
    assert to_continuous(np.array([[1.0, 1.0, 2.0, 3.0]]), "inclusive").tolist() == [[0, 0, 3, 4]]
    assert to_continuous(np.array([[1.0, 1.0, 2.0, 3.0]]), "continuous").tolist() == [[1, 1, 2, 3]]


# ----------------------------------------------------------------------------------------------------- malformed

BAD_RESULTS = {
    "not a list": (3, "expected a list of detections .* got int"),
    "an object without list": ({"results": []}, "or an object with them as 'annotations'"),
    "annotations are no list": ({"annotations": 3}, "annotations: expected a list of detections"),
    "an entry is no object": ([entry(), 3], "entry 1: expected a mapping, got int"),
    "no score": ([{k: v for k, v in entry().items() if k != "score"}], "entry 0: .* but score is missing"),
    "unknown image": ([entry(), entry(image_id=8)], "entry 1: image_id: .* got 8"),
    "image as text": ([entry(image_id="7")], "entry 0: image_id: .* got '7'"),
    "image is a list": ([entry(image_id=[7])], r"entry 0: image_id: .* got \[7\]"),
    "image is null": ([entry(image_id=None)], "entry 0: image_id: .* got None"),
    "unknown category": ([entry()] * 3 + [entry(category_id=2)], "entry 3: category_id: .* got 2"),
    "category is false": ([entry(category_id=False)], "entry 0: category_id: .* got False"),
    "NaN score": ([entry(), entry(score=float("nan"))], "entry 1: expected a finite score, got nan"),
    "infinite score": ([entry(score=float("-inf"))], "entry 0: expected a finite score, got -inf"),
    "score as text": ([entry(score="0.5")], "entry 0: expected a finite score, got '0.5'"),
    "score is true": ([entry(score=True)], "entry 0: expected a finite score, got True"),
    "negative width": ([entry(), entry(bbox=[1, 2, -3, 4])], "entry 1: expected a bbox with width and height"),
    "three numbers": ([entry(bbox=[1, 2, 3])], "entry 0: expected bbox as four finite numbers"),
    "NaN in a box": ([entry(bbox=[1, 2, float("nan"), 4])], "entry 0: expected bbox as four finite numbers"),
    "text in a box": ([entry(bbox=[1, 2, "3", 4])], "entry 0: expected bbox as four finite numbers"),
    "box is null": ([entry(bbox=None)], "entry 0: expected bbox as four finite numbers"),
    "box is an object": ([entry(bbox={"x": 1, "y": 1, "w": 1, "h": 1})], "entry 0: expected bbox as four"),
    "beyond float64": ([entry(bbox=[10**400, 2, 3, 4])], r"entry 0: expected bbox as four .* got \[1000.*\.\.\."),
    "truncated": (
        '[{"image_id": 7, "cat',
        "not valid JSON: Unterminated string starting at line 1, column 18; is the file complete",
    ),
    "empty file": ("", "not valid JSON"),
    "a number of 5000 digits": (f"[{'1' * 5000}]", "not valid JSON"),
    "nested too deeply": ("[" * 100_000, "not a JSON text file"),
}


@pytest.mark.parametrize("case", BAD_RESULTS)
def test_bad_coco_results_name_the_entry(tmp_path, case):
    content, said = BAD_RESULTS[case]
    with pytest.raises(RetinaError, match=rf"^\S*dt\.json: .*{said}") as caught:
        detections(tmp_path, truth(tmp_path), content)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


BAD_TEXT = {
    "columns missing": ("dog 1 2 3 4", r"line 1: expected 6 columns \(class score x y w h\), got 5"),
    "columns too many": ("dog .5 1 2 3 4\ndog .5 1 2 3 4 5", r"line 2: expected 6 columns .* got 7"),
    "one word": ("\ndog", "line 2: expected 6 columns .* got 1"),
    "not a number": ("dog .5 1 2 3 4\n\ndog .5 1 2 x 4", r"line 3: w: expected a finite number, got 'x'"),
    "NaN score": ("dog nan 1 2 3 4", "line 1: score: expected a finite number, got 'nan'"),
    "infinite box": ("dog .5 1 2 inf 4", "line 1: w: expected a finite number, got 'inf'"),
    "negative height": ("dog .5 1 2 3 -4", "line 1: expected a width and height of at least 0, got 3 and -4"),
    "unknown class": ("dgo .5 1 2 3 4", "line 1: expected a class of the ground truth, got 'dgo'; did you mean 'dog'"),
    "unknown class of two words": ("stop sign .5 1 2 3 4", "line 1: expected a class of .* got 'stop sign'"),
    "unknown index": ("2 .5 1 2 3 4", "line 1: expected a class of the ground truth, got '2'; an index from 0 to 1"),
    "commas": ("dog,.5,1,2,3,4", "line 1: expected 6 columns .* got 1"),
}


@pytest.mark.parametrize("case", BAD_TEXT)
def test_bad_text_names_the_line(tmp_path, case):
    content, said = BAD_TEXT[case]
    write(tmp_path / "dt/x.txt", "dog .5 1 2 3 4")
    write(tmp_path / "dt/y.txt", content)
    with pytest.raises(RetinaError, match=rf"^\S*y\.txt: {said}"):
        read_results(tmp_path / "dt", truth(tmp_path), format="xywh")


def test_other_bad_text_files(tmp_path):
    given = truth(tmp_path)
    (tmp_path / "latin").mkdir()
    (tmp_path / "latin/x.txt").write_bytes("café .5 1 2 3 4".encode("latin-1"))
    with pytest.raises(RetinaError, match=r"x\.txt: not UTF-8 text \(byte 3\)"):
        read_results(tmp_path / "latin", given, format="xywh")
    write(tmp_path / "unknown/z.txt", "")
    with pytest.raises(RetinaError, match=r"z\.txt: expected a file named like one of the .* 2 images \(such as 'x'\)"):
        read_results(tmp_path / "unknown", given, format="xywh")
    write(tmp_path / "pixels/x.txt", "dog .5 120 80 40 30")
    with pytest.raises(RetinaError, match=r"line 1: expected cx cy w h as fractions .* got 120 80 40 30; are they pix"):
        read_results(tmp_path / "pixels", given, format="yolo")
    with pytest.raises(RetinaError, match="say it with --dt-format: xywh, xyxy, yolo, ultralytics, voc"):
        read_results(tmp_path / "pixels", given)
    with pytest.raises(RetinaError, match="say it with --gt-format: xywh, xyxy, yolo"):
        read_ground_truth(tmp_path / "pixels")
    write(tmp_path / "gts/x.txt", "big dog 1 2 3 4")
    with pytest.raises(RetinaError, match=r"x\.txt: line 1: expected 5 columns \(class x y w h\), got 6"):
        read_ground_truth(tmp_path / "gts", format="xywh")
    names = write(tmp_path / "names", "dog\ncat\ndog\n")
    with pytest.raises(RetinaError, match="names: line 3: expected a class name of its own, got 'dog' for the second"):
        read_results(tmp_path / "pixels", given, format="xywh", names=names)


BAD_TRUTH = {
    "no images": ({"images": []}, "'images' is empty"),
    "no categories": ({"categories": []}, "'categories' is empty"),
    "annotations missing": ({"annotations": None}, "'annotations' is a NoneType, not a list"),
    "image is no object": ({"images": [1]}, r"images\[0\] is a int, expected an object"),
    "image without id": ({"images": [{"id": 7}, {}]}, r"images\[1\] has no 'id'"),
    "image id is null": ({"images": [{"id": None}]}, r"images\[0\]: 'id' must be a whole number or a text, got None"),
    "one id, two names": (
        {"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]},
        r"categories\[1\]: id 1 is already that of 'a'",
    ),
}
BAD_ANNOTATION = {
    "bbox missing": ({"image_id": 7, "category_id": 9}, r"annotations\[1\] has no 'bbox'"),
    "image unknown": (
        {"image_id": 8, "category_id": 9, "bbox": [1, 2, 3, 4]},
        r"annotations\[1\]: 'image_id' must be the id of one of 'images', got 8",
    ),
    "category unknown": ({"image_id": 7, "category_id": [9], "bbox": [1, 2, 3, 4]}, r"\[1\]: 'category_id' .* got \[9"),
    "NaN": ({"image_id": 7, "category_id": 9, "bbox": [1, 2, 3, float("nan")]}, r"\[1\]: 'bbox' must be four finite"),
    "huge": ({"image_id": 7, "category_id": 9, "bbox": [1, 2, 3, 10**400]}, r"\[1\]: 'bbox' must be four finite"),
    "crowd": ({"image_id": 7, "category_id": 9, "bbox": [1, 2, 3, 4], "iscrowd": "no"}, r"\[1\]: 'iscrowd' must be 0"),
    "area": ({"image_id": 7, "category_id": 9, "bbox": [1, 2, 3, 4], "area": None}, r"\[1\]: 'area' must be a finite"),
}


@pytest.mark.parametrize("case", [*BAD_TRUTH, *BAD_ANNOTATION])
def test_bad_coco_truth_names_the_place(tmp_path, case):
    if case in BAD_TRUTH:
        changes, said = BAD_TRUTH[case]
    else:
        annotation, said = BAD_ANNOTATION[case]
        changes = {"annotations": [coco()["annotations"][0], annotation]}
    with pytest.raises(RetinaError, match=rf"^\S*gt\.json: .*{said}"):
        truth(tmp_path, **changes)


def test_settings_without_effect(tmp_path):
    given, path = truth(tmp_path), write(tmp_path / "dt.json", [])
    for settings in ({"names": path}, {"images": tmp_path}):
        with pytest.raises(RetinaError, match="has no effect on detections of format 'coco'"):
            read_results(path, given, **settings)
        with pytest.raises(RetinaError, match="has no effect on ground truth of format 'coco'"):
            read_ground_truth(tmp_path / "gt.json", **settings)
    with pytest.raises(RetinaError, match="expected one of the formats auto, coco, .* got 'pascal'"):
        read_results(path, given, format="pascal")
    for read in (lambda p: read_results(p, given), read_ground_truth):
        with pytest.raises(RetinaError, match="nowhere: no such"):
            read(tmp_path / "nowhere")


# --------------------------------------------------------------------------- what would be taken for something else


def test_classes_known_by_number_only_are_not_counted(tmp_path):
    """The ground truth's third class is called 3: a detection's 2 is not it."""
    write(tmp_path / "gts/a.txt", "0 1 2 3 4\n1 1 2 3 4\n3 1 2 3 4")
    given = read_ground_truth(tmp_path / "gts", format="xywh")
    write(tmp_path / "dt/a.txt", "3 .5 1 2 3 4\n0 .5 1 2 3 4")
    assert read_results(tmp_path / "dt", given, format="xywh").labels.tolist() == [2, 0]
    write(tmp_path / "dt/a.txt", "3 .5 1 2 3 4\n2 .5 1 2 3 4")
    said = r"a\.txt: line 2: expected a class of the ground truth, got '2'; its classes are 0, 1, 3; if .* --names$"
    with pytest.raises(RetinaError, match=said):
        read_results(tmp_path / "dt", given, format="xywh")
    # A file of names says what the indices mean.
    names = write(tmp_path / "names", "3\n1\n0")
    assert read_results(tmp_path / "dt", given, format="xywh", names=names).labels.tolist() == [2, 0]
    # Without a number beyond them, an index of 5000 digits is no class either.
    write(tmp_path / "dt/a.txt", f"{'9' * 5000} .5 1 2 3 4")
    with pytest.raises(RetinaError, match=r"line 1: expected a class of the ground truth, got '999.*\.\.\.; expected"):
        read_results(tmp_path / "dt", given, format="xywh")


def test_two_devkit_files_of_one_class(tmp_path):
    given = read_ground_truth(voc(tmp_path, {"000001": [("car", 0, (1, 1, 5, 5))]}))
    write(tmp_path / "dt/comp3_det_test_car.txt", "000001 .5 1 1 1 1\n")
    assert len(read_results(tmp_path / "dt", given, format="voc")) == 1
    for other in ("comp4_det_test_car.txt", "car.txt"):
        file = write(tmp_path / "dt" / other, "")
        with pytest.raises(RetinaError, match=r"\.txt: expected one file a class, got .* of 'car', too; ") as caught:
            read_results(tmp_path / "dt", given, format="voc")
        assert "comp3_det_test_car.txt" in str(caught.value) and other in str(caught.value)
        file.unlink()


@pytest.mark.parametrize(
    ("categories", "expected"),
    [
        ([(1, "x"), (2, "x"), (3, "x (1)")], ("x (1) (1)", "x (2)", "x (1)")),
        ([(1, "x"), (2, "x (1)"), (3, "x (1)"), (4, "x")], ("x (1)", "x (1) (2)", "x (1) (3)", "x (4)")),
        ([(1, "x"), ("1", "x")], ("x (1)", "x (1) (1)")),
    ],
)
def test_names_told_apart_by_id_are_distinct(tmp_path, categories, expected):
    entries = [{"id": identifier, "name": name} for identifier, name in categories]
    assert truth(tmp_path, categories=entries, annotations=[]).class_names == expected


def test_one_id_under_two_names(tmp_path):
    given = truth(tmp_path)
    categories = [{"id": 9, "name": "dog"}, {"id": 9, "name": "traffic light"}]
    content = {"categories": categories, "annotations": [entry()]}
    with pytest.raises(
        RetinaError, match=r"dt\.json: categories\[1\]: id 9 is already that of 'dog', got 'traffic lig"
    ):
        detections(tmp_path, given, content)
    images = [{"id": 7, "file_name": "x.jpg"}, {"id": 7, "file_name": "y.jpg"}]
    with pytest.raises(RetinaError, match=r"dt\.json: images\[1\]: id 7 is already that of 'x.jpg'"):
        detections(tmp_path, given, content | {"categories": categories[:1], "images": images})
    twice = content | {"categories": [categories[0]] * 2}
    assert detections(tmp_path, given, twice).labels.tolist() == [1]


def test_a_category_is_not_a_file_name(tmp_path):
    content = {"categories": [{"id": 9, "name": "dog.2"}, {"id": 8, "name": "dog"}], "annotations": [entry()]}
    with pytest.raises(RetinaError, match="entry 0: category_id: .* got 9"):
        detections(tmp_path, truth(tmp_path), content)


def test_half_a_character_is_no_name(tmp_path):
    with pytest.raises(
        RetinaError, match=r"categories\[1\]: 'name' must be a text of whole characters, got 'a\\ud800'"
    ):
        truth(tmp_path, categories=[{"id": 0, "name": "b"}, {"id": 9, "name": "a\ud800"}])
    assert truth(tmp_path, categories=[{"id": 0, "name": "😀"}, {"id": 9, "name": "b"}]).class_names == ("😀", "b")


# --------------------------------------------------------------------------------------------- numbers, large and odd


@pytest.mark.parametrize("number", [1e200, -1e101, 10**150])
def test_boxes_too_large_to_compute_with(tmp_path, number):
    """Their areas exceed float64: no overlap would be defined."""
    wrong = {"image_id": 7, "category_id": 9, "bbox": [1, 2, number, 4]}
    with pytest.raises(RetinaError, match=r"annotations\[1\]: 'bbox' must be four .* \(beyond 1e\+100\)$"):
        truth(tmp_path, annotations=[coco()["annotations"][0], wrong])
    with pytest.raises(RetinaError, match=r"annotations\[0\]: 'area' must be a finite number, .*\(beyond 1e\+100\)$"):
        truth(tmp_path, annotations=[wrong | {"bbox": [1, 2, 3, 4], "area": number}])
    given = truth(tmp_path)
    with pytest.raises(RetinaError, match=r"entry 0: expected bbox as four .* \(beyond 1e\+100\)"):
        detections(tmp_path, given, [entry(bbox=[number, 0, 1, 1])])
    write(tmp_path / "dt/x.txt", f"dog .5 1 2 {number:g} 4")
    with pytest.raises(RetinaError, match=r"x\.txt: line 1: w: expected a finite number, got .* \(beyond 1e\+100\) "):
        read_results(tmp_path / "dt", given, format="xywh")
    voc(tmp_path / "voc", {"p": [("dog", 0, (1, 1, number, 5))]})
    with pytest.raises(RetinaError, match=r"1e\+100"):
        read_ground_truth(tmp_path / "voc")


def test_large_boxes_have_areas(tmp_path):
    """Without an `area` a box has its own, which may exceed what a file may hold."""
    given = truth(tmp_path, annotations=[{"image_id": 7, "category_id": 9, "bbox": [0, 0, 1e100, 1e100]}])
    assert given.areas.tolist() == [1e200]
    assert detections(tmp_path, given, [entry(bbox=[-1e100, 0, 1e100, 0])]).boxes.tolist() == [[-1e100, 0, 1e100, 0]]


@pytest.mark.parametrize("number", ["1_0", "１", "٣", "0x1", "1e", "1e999", "--1", "infinity", "1,5"])
def test_text_that_is_no_plain_number(tmp_path, number):
    write(tmp_path / "dt/x.txt", f"dog .5 1 2 3 4\ndog {number} 1 2 3 4")
    with pytest.raises(
        RetinaError, match=rf"x\.txt: line 2: score: expected a finite number, got '{number}' \(columns"
    ):
        read_results(tmp_path / "dt", truth(tmp_path), format="xywh")
    write(tmp_path / "dt/x.txt", "dog +.5e-1 -1 2. 3E0 4")
    assert read_results(tmp_path / "dt", truth(tmp_path), format="xywh").scores.tolist() == [0.05]


def made(**changes):
    columns = {
        "name": "made", "class_names": ("a", "b"), "category_ids": (1, 2), "image_ids": (1,), "image": [0],
        "boxes": [[0, 0, 1, 1]], "labels": [1], "crowd": [False], "difficult": [False], "areas": [1.0],
    }  # fmt: skip
    return GroundTruth(**(columns | changes))


def test_tables_made_in_memory_are_checked():
    assert len(made().boxes) == 1
    with pytest.raises(RetinaError, match="made: class 1 is called 'a' like a class before; rename one of them"):
        made(class_names=("a", "a"))
    for number in (np.nan, np.inf, 1e200):
        with pytest.raises(RetinaError, match=r"made: box 0: boxes: expected finite numbers up to 1e\+100, got \[0\.0"):
            made(boxes=[[0, 0, number, 1]])
        with pytest.raises(RetinaError, match=r"found: detection 0: boxes: expected finite numbers up to 1e\+100"):
            Results("found", [0], [[0, 0, number, 1]], [0.5], [0])
        with pytest.raises(RetinaError, match=r"found: detection 1: scores: expected finite numbers up to 1e\+100"):
            Results("found", [0, 0], [[0, 0, 1, 1]] * 2, [0.5, number], [0, 0])


# -------------------------------------------------------------------------------------------------------------- paths


def test_neither_file_nor_folder(tmp_path):
    given = truth(tmp_path)
    device = Path("/dev/null")
    if not device.is_char_device():
        pytest.skip("this system has no /dev/null")
    with pytest.raises(
        RetinaError, match="/dev/null: expected a COCO results file or a folder of text files, got a dev"
    ):
        read_results(device, given)
    with pytest.raises(RetinaError, match="/dev/null: expected a COCO JSON file or a folder, got a device or a socket"):
        read_ground_truth(device)


def test_paths_that_the_system_will_not_look_for(tmp_path):
    given, name = truth(tmp_path), "n" * 300
    for read in (lambda path, **settings: read_results(path, given, **settings), read_ground_truth):
        for settings in ({}, {"format": "coco"}, {"format": "xywh"}):
            with pytest.raises(RetinaError, match=rf"{name}: cannot (look for|read) .*File name too long; check"):
                read(tmp_path / name, **settings)
        with pytest.raises(RetinaError, match="no such"):
            read(tmp_path / "a\0b")


# ------------------------------------------------------------------------- classes and images that only detections have

LOOSE = {
    "coco": [
        entry(),
        entry(image_id=8),
        entry(category_id=2),
        entry(category_id=2, image_id=99),
        entry(image_id="far"),
    ],
    "xywh": {"x": "dog .5 1 2 3 4\ncat .5 1 2 3 4", "z": "dog .5 1 2 3 4\ncat .5 1 2 3 4", "w": "dog .5 1 2 3 4"},
    "voc": {"dog": "x .5 1 2 3 4\nz .5 1 2 3 4\nz .5 1 2 3 4\nw .5 1 2 3 4", "cat": "x .5 1 2 3 4"},
}


def loose(tmp_path, format):
    if format == "coco":
        return write(tmp_path / "dt.json", LOOSE["coco"])
    for name, content in LOOSE[format].items():
        write(tmp_path / format / f"{name}.txt", content)
    return tmp_path / format


@pytest.mark.parametrize("format", LOOSE)
def test_what_no_ground_truth_can_judge_is_left_out_and_counted(tmp_path, format):
    given, path = truth(tmp_path), loose(tmp_path, format)
    results = read_results(path, given, format=format, pixels="continuous", strict=False)
    assert results.image.tolist() == [0] and results.labels.tolist() == [given.class_names.index("dog")]
    assert results.boxes.tolist() == [[1, 2, 2, 2] if format == "voc" else [1, 2, 3, 4]]
    left_out = results.left_out
    assert left_out.images == ({"8": 1, "99": 1, "far": 1} if format == "coco" else {"z": 2, "w": 1})
    assert left_out.classes == ({"2": 1} if format == "coco" else {"cat": 1})
    assert left_out.detections == 4
    images, name = ("3 of 3 images", "2") if format == "coco" else ("3 of 2 images", "cat")
    assert left_out.words().startswith(f"{images} that the ground truth does not have (")
    assert left_out.words().endswith(f"1 of 1 class that the ground truth does not have ({name})")
    with pytest.raises(RetinaError, match="expected"):
        read_results(path, given, format=format, pixels="continuous")


@pytest.mark.parametrize("format", LOOSE)
def test_results_of_other_data_altogether_are_refused(tmp_path, format):
    path = loose(tmp_path, format)
    given = truth(tmp_path, images=[{"id": 5, "file_name": "q.jpg"}], annotations=[])
    with pytest.raises(RetinaError, match="and no other; give the ground truth that the detections were made on"):
        read_results(path, given, format=format, strict=False)


@pytest.mark.parametrize("case", [case for case in BAD_RESULTS if not case.startswith("unknown")])
def test_malformed_entries_are_refused_beside_unknown_ones(tmp_path, case):
    """Their place is that in the file."""
    content, said = BAD_RESULTS[case]
    given = truth(tmp_path)
    with pytest.raises(RetinaError, match=rf"^\S*dt\.json: .*{said}"):
        detections(tmp_path, given, content, strict=False)
    if isinstance(content, list) and "entry 0" in said:
        with pytest.raises(RetinaError, match=rf"^\S*dt\.json: {said.replace('entry 0', 'entry 2')}"):
            detections(tmp_path, given, [entry(), entry(image_id=8), *content], strict=False)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(("ids", "given_id"), [(7, "7"), ("7", 7)])
def test_ids_as_texts_and_as_numbers(tmp_path, ids, given_id, strict):
    images = [{"id": ids, "file_name": "x.jpg"}, {"id": 9 if ids == 7 else "9", "file_name": "y.jpg"}]
    given = truth(tmp_path, images=images, annotations=[])
    kinds = ("a number", "a text") if ids == 7 else ("a text", "a number")
    said = f"entry 1: image_id: expected {ids!r}, {kinds[0]}, as the ground truth has it, got {given_id!r}, {kinds[1]};"
    with pytest.raises(RetinaError, match=said):
        detections(tmp_path, given, [entry(image_id=ids), entry(image_id=given_id)], strict=strict)
