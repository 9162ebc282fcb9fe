"""What is wrong with single images."""

import io

import numpy as np
import pytest
from PIL import Image

from retina import config
from retina.doctor.defects import Defect, anchor_defects, image_defects, kinds, merged, read_split
from retina.doctor.inspection import inspect
from retina.doctor.targets import open_target
from retina.errors import RetinaError
from tests.doctor.made import picture, table, write_coco


def encoded(seed: int, size=(64, 96), orientation: int = 1) -> bytes:
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture(seed, size)).save(out, "JPEG", quality=95, exif=exif)
    return out.getvalue()


def test_a_sound_table_has_no_defects():
    data = table([(64, 96)] * 2, [[[0, 0, 9, 9]], []], images=(encoded(0), encoded(1)))
    assert image_defects(data, inspect(data), ["a", "b"]) == {}
    empty = table([], [])
    assert image_defects(empty, inspect(empty), []) == {}
    assert kinds({}) == {} == merged()


def test_every_defect_is_told_of_its_image():
    images = (
        encoded(0), encoded(0), b"text", encoded(2, orientation=3), encoded(3, (96, 64), 6), encoded(4, (60, 96)),
        encoded(5),
    )  # fmt: skip
    boxes = [[], [], [], [], [], [], [[0, 0, 9, 9], [0, 0, 9, 9], [0, 0, 9, 8], [0, 0, 9, 9]]]
    data = table([(64, 96)] * 7, boxes, images=images)
    found = image_defects(data, inspect(data), list("abcdefg"))
    assert found.pop(2)[0].text.startswith("can't be used: expected a JPEG, PNG, GIF, BMP, WebP or TIFF image")
    assert found == {
        0: [Defect("duplicate-images", "the same bytes as b")],
        1: [Defect("duplicate-images", "the same bytes as a")],
        3: [Defect("exif-rotated", "EXIF rotation (orientation 3), which is not applied")],
        4: [Defect("exif-rotated-size", "declared 96×64, stored 64×96, rotated by EXIF (orientation 6)")],
        5: [Defect("size-mismatch", "declared 96×64, stored 96×60")],
        6: [Defect("repeated-boxes", "2 boxes given twice, with the same class and corners")],
    }
    assert kinds(found) == {
        "duplicate-images": 2, "exif-rotated": 1, "exif-rotated-size": 1, "size-mismatch": 1, "repeated-boxes": 1,
    }  # fmt: skip


def test_boxes_that_no_anchor_learns_are_named():
    settings = config.load()
    data = table([(256, 256)] * 3, [[], [[0, 0, 1.5, 1.5], [100, 100, 164, 164]], [[3, 3, 5, 4]]])
    found = anchor_defects(data, [0, 2, 1], settings)
    assert found == {
        1: [Defect("no-positive-anchor", "1 box without a positive anchor: a 2×2 px")],
        2: [Defect("no-positive-anchor", "1 box without a positive anchor: a 2×1 px")],
    }
    assert anchor_defects(data, [], settings) == {}


def test_invalid_boxes_stand_with_their_image(tmp_path):
    (tmp_path / "train").mkdir()
    for number in range(3):
        (tmp_path / "train" / f"{number}.jpg").write_bytes(encoded(number))
    images = [{"id": 10 + n, "file_name": f"{n}.jpg", "height": 64, "width": 96} for n in range(3)]
    good, flat, far = [1, 1, 5, 5], [3, 4, 0, 5], [90, 1, 50, 5]
    given = [(10, good), (11, good), (11, flat), (12, far)]
    annotations = [{"image_id": image, "category_id": 1, "bbox": box, "area": 1} for image, box in given]
    write_coco(tmp_path, "train", images, annotations, [{"id": 1, "name": "a"}])
    data, found = read_split(open_target(str(tmp_path), []), "train")
    assert data.image_ids == (10, 11, 12) and len(data.boxes) == 2
    assert set(found) == {1, 2}
    assert "annotation 3 (image 11): box [3, 4, 0, 5] has zero width" in found[1][0].text
    assert "reaches 44 px outside its image" in found[2][0].text
    assert kinds(found) == {"invalid-boxes": 2}


def test_other_faults_of_a_file_stop(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train.json").write_text('{"images": [], "annotations": 3, "categories": []}')
    with pytest.raises(RetinaError, match="annotations"):
        read_split(open_target(str(tmp_path), []), "train")


def test_arrays_are_left_alone():
    data = table([(64, 96)], [[[0, 0, 9, 9]]], images=(encoded(0),))
    before = np.array(data.boxes)
    merged(image_defects(data, inspect(data), ["a"]), {0: []})
    assert (data.boxes == before).all()
