"""Opened images: every planted defect found by its name, and no pair of different pictures taken for copies."""

import io
import time

import numpy as np
import pytest
from PIL import Image

from retina.data.dataset import DetectionDataset
from retina.doctor.duplicates import MOST_AT_ONCE, Groups, equal_groups, fingerprint, near_groups
from retina.doctor.inspection import duplicate_findings, image_findings, inspect
from tests.doctor.made import picture, table


def encoded(array: np.ndarray, format: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, format, **options)
    return out.getvalue()


def turned(array: np.ndarray, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(array, "JPEG", quality=95, exif=exif)


def of(images: list[bytes], sizes=None) -> DetectionDataset:
    sizes = sizes or [(64, 96)] * len(images)
    return table(sizes, [[[1, 1, 9, 9]]] * len(images), images=tuple(images))


def codes(dataset: DetectionDataset, decode: bool = True) -> dict[str, str]:
    return {finding.code: finding.grade for finding in image_findings(inspect(dataset, decode=decode), "train")}


def pairs(**splits: DetectionDataset) -> dict[str, str]:
    opened = {name: inspect(dataset) for name, dataset in splits.items()}
    return {finding.code: finding.grade for finding in duplicate_findings(opened)}


def prints(images) -> tuple[np.ndarray, np.ndarray]:
    bits, small = zip(*map(fingerprint, images), strict=True)
    return np.array(bits), np.array(small)


SOUND = [encoded(picture(n)) for n in range(6)]


@pytest.mark.parametrize("decode", [True, False])
def test_no_images(decode):
    opened = inspect(of([]), decode=decode)
    assert list(image_findings(opened, "train")) == [] and list(duplicate_findings({"train": opened})) == []


@pytest.mark.parametrize("decode", [True, False])
def test_sound_images_have_no_findings(decode):
    done = []
    opened = inspect(of(SOUND), decode=decode, advance=done.append)
    assert list(image_findings(opened, "train")) == [] and list(duplicate_findings({"train": opened})) == []
    assert sum(done) == 6


@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize(
    ("code", "grade", "image"),
    [
        ("unreadable-images", "error", b""),
        ("unreadable-images", "error", b"<html>"),
        ("size-mismatch", "error", encoded(picture(9, (64, 100)))),
        ("exif-rotated-size", "error", turned(picture(9, (96, 64)), 6)),
        ("exif-rotated", "warning", turned(picture(9), 3)),
        ("exif-rotated", "warning", turned(picture(9), 8)),
    ],
)
def test_each_defect_has_its_name(decode, code, grade, image):
    assert codes(of([*SOUND, image]), decode) == {code: grade}


def test_sides_swapped_without_exif_are_another_size():
    assert codes(of([encoded(picture(9, (96, 64)))])) == {"size-mismatch": "error"}


def test_only_decoding_finds_a_truncated_image():
    cut = encoded(picture(9), "JPEG")[:-400]
    assert codes(of([*SOUND, cut])) == {"unreadable-images": "error"}
    assert codes(of([*SOUND, cut]), decode=False) == {}


def test_a_missing_file_is_named(tmp_path):
    dataset = table([(64, 96)], [[[1, 1, 9, 9]]], images=(str(tmp_path / "gone.png"),))
    for decode in (True, False):
        (finding,) = image_findings(inspect(dataset, decode=decode), "train")
        assert finding.code == "unreadable-images" and "gone.png" in finding.examples[0]


def test_copies_within_a_split_are_a_warning_and_across_splits_an_error():
    assert pairs(train=of([*SOUND, SOUND[0]])) == {"duplicate-images": "warning"}
    assert pairs(train=of(SOUND), validation=of([SOUND[3]])) == {"duplicate-images-across-splits": "error"}


def test_the_very_same_file_in_two_splits_is_told_elsewhere_and_a_copy_of_it_here(tmp_path):
    for name, content in (("a.png", SOUND[0]), ("copy.png", SOUND[0]), ("b.png", SOUND[1])):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()

    def split(*names: str) -> DetectionDataset:
        return of([str(tmp_path / name) for name in names])

    assert pairs(train=split("a.png", "b.png"), validation=split("folder/../a.png", "b.png")) == {}
    assert pairs(train=split("a.png", "b.png"), validation=split("a.png", "copy.png")) == {
        "duplicate-images": "warning",
        "duplicate-images-across-splits": "error",
    }


def test_headers_are_enough_for_equal_bytes():
    opened = {"train": inspect(of(SOUND), decode=False), "validation": inspect(of([SOUND[3]]), decode=False)}
    (finding,) = duplicate_findings(opened)
    assert finding.code == "duplicate-images-across-splits"


def test_recompressed_or_resized_pictures_are_near_duplicates():
    large = picture(3, (240, 360))
    small = np.asarray(Image.fromarray(large).resize((180, 120)))
    sizes = [(240, 360), (240, 360), (120, 180)]
    images = [encoded(large), encoded(large, "JPEG", quality=40), encoded(small)]
    assert pairs(train=of(images, sizes)) == {"near-duplicate-images": "note"}
    split = pairs(train=of(images[:1], sizes[:1]), test=of(images[1:], sizes[1:]))
    assert split == {"near-duplicate-images-across-splits": "warning", "near-duplicate-images": "note"}


def test_different_pictures_are_not():
    assert near_groups(*prints(picture(n) for n in range(60))) == Groups([], False)


def test_uniform_pictures_are_compared_by_their_grey():
    found = near_groups(*prints(np.full((50, 40, 3), grey, np.uint8) for grey in (10, 11, 200)))
    assert found == Groups([[0, 1]], False)


def test_pictures_smaller_than_the_grid_have_fingerprints():
    bits, small = fingerprint(np.arange(6, dtype=np.uint8).reshape(1, 2, 3))
    assert bits.shape == (128,) and small.shape == (256,)


@pytest.mark.parametrize("few", [4, 256])
def test_near_groups_are_what_pairs_within_eleven_bits_connect(few, monkeypatch):
    """Against a comparison of all pairs, with hashes that are close by design."""
    monkeypatch.setattr("retina.doctor.duplicates._FEW", few)
    random = np.random.default_rng(0)
    base = random.random((40, 128)) < 0.5
    bits = np.concatenate([base, base, base])
    for row in range(40, 120):
        bits[row, random.choice(128, int(random.integers(0, 16)), replace=False)] ^= True
    same = np.tile(random.integers(0, 255, 256).astype(np.uint8), (120, 1))
    near = (bits[:, None] != bits[None]).sum(axis=2) <= 11
    connected = np.linalg.matrix_power(near.astype(float), 8) > 0
    expected = [group for row in range(120) if len(group := np.flatnonzero(connected[row]).tolist()) > 1
                and group[0] == row]  # fmt: skip
    assert {len(group) for group in expected} == {2, 3}
    assert near_groups(bits, same) == Groups(expected, False)


def test_equal_hashes_of_other_pictures_are_told_apart_by_their_thumbnails():
    random = np.random.default_rng(0)
    small = random.integers(0, 255, (4, 256)).astype(np.uint8)
    assert near_groups(np.zeros((4, 128), bool), small).rows == []
    assert near_groups(np.zeros((4, 128), bool), small[[0, 1, 2, 0]]).rows == [[0, 3]]


def test_frames_of_fixed_cameras_are_grouped_in_linear_time():
    """20,000 frames of four cameras: 50 million near pairs, which nobody may list."""
    random = np.random.default_rng(0)
    camera = np.arange(20_000) % 4
    bits = (random.random((4, 128)) < 0.5)[camera] ^ (random.random((20_000, 128)) < 0.02)
    small = random.integers(20, 230, (4, 256))[camera] + random.integers(-3, 4, (20_000, 256))
    start = time.process_time()
    found = near_groups(bits, small.astype(np.uint8))
    assert time.process_time() - start < 20
    assert not found.capped and [len(group) for group in found.rows] == [5000] * 4
    assert all(set(camera[group]) == {k} for k, group in enumerate(found.rows))


def test_too_many_alike_are_compared_by_one_of_each_group_and_it_is_said():
    # Equal hashes everywhere; two pictures, and 30 that are like none.
    random = np.random.default_rng(0)
    small = random.integers(0, 255, (32, 256)).astype(np.uint8)[[0, 1] * 20 + list(range(2, 32))]
    bits = np.zeros((70, 128), bool)
    groups = [list(range(0, 40, 2)), list(range(1, 40, 2))]
    assert near_groups(bits, small) == Groups(groups, False) and len(bits) < MOST_AT_ONCE
    assert near_groups(bits, small, most=69).capped


def test_groups_are_counted_within_and_across_splits():
    frames = [encoded(picture(3), "JPEG", quality=quality) for quality in (95, 90, 85, 80)]
    splits = {"train": of([*SOUND[4:], *frames[:3]]), "val": of([frames[3], frames[0], SOUND[0]])}
    opened = {name: inspect(split) for name, split in splits.items()}
    found = {one.code + one.split: one for one in duplicate_findings(opened)}
    assert found["near-duplicate-imagestrain"].message.startswith("3 images in 1 group of near copies")
    across = found["near-duplicate-images-across-splits"]
    assert across.message.startswith("2 images of val in 1 group of near copies with images of train")
    assert found["duplicate-images-across-splits"].message.startswith("1 image of val in 1 group with the same bytes")
    assert len(across.examples) == 1


def test_equal_groups():
    assert equal_groups([b"a", None, b"b", b"a", None, b"a"]) == [[0, 3, 5]]


def test_bccd_has_a_picture_in_train_and_validation(shared_data):
    """BloodImage_00037 and 00038 show the same field at another focus."""
    from tests.data.formats.tables import read_voc

    splits = {
        name: read_voc(shared_data / "bccd", (name,), invalid_boxes="drop").subset(range(rows))
        for name, rows in (("train", 30), ("val", 15))
    }
    (finding,) = duplicate_findings({name: inspect(dataset) for name, dataset in splits.items()})
    assert finding.code == "near-duplicate-images-across-splits"
    assert len(finding.examples) == 1
    assert "BloodImage_00037" in finding.examples[0] and "BloodImage_00038" in finding.examples[0]
