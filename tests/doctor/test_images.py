"""Opened images: every planted defect found by its name, and no pair of different pictures taken for copies."""

import io

import numpy as np
import pytest
from PIL import Image

from retina.data.dataset import DetectionDataset
from retina.doctor.duplicates import equal_groups, fingerprint, near_pairs
from retina.doctor.images import duplicate_findings, image_findings, inspect
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
    prints = [fingerprint(picture(n)) for n in range(60)]
    assert near_pairs(np.array([bits for bits, _ in prints]), np.array([small for _, small in prints])) == []


def test_uniform_pictures_are_compared_by_their_grey():
    prints = [fingerprint(np.full((50, 40, 3), grey, np.uint8)) for grey in (10, 11, 200)]
    assert near_pairs(np.array([bits for bits, _ in prints]), np.array([small for _, small in prints])) == [(0, 1)]


def test_pictures_smaller_than_the_grid_have_fingerprints():
    bits, small = fingerprint(np.arange(6, dtype=np.uint8).reshape(1, 2, 3))
    assert bits.shape == (128,) and small.shape == (256,)


def test_near_pairs_are_all_within_eleven_bits():
    """Against a comparison of all pairs, with hashes that are close by design."""
    random = np.random.default_rng(0)
    base = random.random((40, 128)) < 0.5
    bits = np.concatenate([base, base, base])
    for row in range(40, 120):
        bits[row, random.choice(128, int(random.integers(0, 16)), replace=False)] ^= True
    same = np.tile(random.integers(0, 255, 256).astype(np.uint8), (120, 1))
    distance = (bits[:, None] != bits[None]).sum(axis=2)
    expected = [(a, b) for a in range(120) for b in range(a + 1, 120) if distance[a, b] <= 11]
    assert expected and near_pairs(bits, same) == expected


def test_equal_groups():
    assert equal_groups([b"a", None, b"b", b"a", None, b"a"]) == [[0, 3, 5]]


def test_bccd_has_a_picture_in_train_and_validation(shared_data):
    """BloodImage_00037 and 00038 show the same field at another focus."""
    from retina.data.voc import read_voc

    splits = {
        name: read_voc(shared_data / "bccd", (name,), invalid_boxes="drop").subset(range(rows))
        for name, rows in (("train", 30), ("val", 15))
    }
    (finding,) = duplicate_findings({name: inspect(dataset) for name, dataset in splits.items()})
    assert finding.code == "near-duplicate-images-across-splits"
    assert len(finding.examples) == 1
    assert "BloodImage_00037" in finding.examples[0] and "BloodImage_00038" in finding.examples[0]
