"""Images of every kind and in every state: decoded as Pillow does, or refused with the fault; nothing hangs."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from retina import config
from retina.data import images
from retina.data.batches import decoding, pixels
from retina.data.batches.evaluation import evaluation_batches, translated
from retina.data.batches.training import training_batches
from retina.data.image_files import image_size, read_header
from retina.data.load import load_split, read_split
from retina.doctor.inspection import image_findings, inspect
from retina.doctor.targets import _of_config, read_splits
from retina.errors import RetinaError
from tests.malformed import chunk, coco, encoded, huge, picture, png, rotated

HEIGHT, WIDTH = 37, 53
PICTURE = picture(HEIGHT, WIDTH)
PIXELS = np.asarray(PICTURE)
RAMP = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
GREY16 = (RAMP * 33).astype(">u2")
RGB16 = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, 3)).astype(">u2")


def with_alpha() -> Image.Image:
    image = PICTURE.copy()
    image.putalpha(Image.fromarray((RAMP % 256).astype(np.uint8)))
    return image


def scanlines(values: np.ndarray) -> bytes:
    """Of a PNG, each with filter 0."""
    return b"".join(b"\0" + row.tobytes() for row in values)


def interlaced() -> bytes:
    """Adam7 (RFC 2083, 2.6): seven smaller images."""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    rows = b"".join(scanlines(PIXELS[top::down, left::right]) for top, left, down, right in passes)
    return png(HEIGHT, WIDTH, 8, 2, rows, interlaced=1)


def ycck() -> bytes:
    """A CMYK JPEG whose Adobe marker says that its first three channels are YCC."""
    file = bytearray(encoded("JPEG", PICTURE.convert("CMYK"), quality=95))
    file[file.index(b"Adobe") + 11] = 2
    return bytes(file)


def bottom_up(file: bytes) -> bytes:
    """A BMP with its first row on top: the height is negative."""
    return file[:22] + struct.pack("<i", -HEIGHT) + file[26:]


OTHER = Image.fromarray(255 - PIXELS)
VALID = {
    "JPEG": encoded("JPEG", PICTURE, quality=95),
    "JPEG, progressive": encoded("JPEG", PICTURE, quality=95, progressive=True),
    "JPEG, full chroma": encoded("JPEG", PICTURE, quality=95, subsampling=0),
    "JPEG, grey": encoded("JPEG", PICTURE.convert("L"), quality=95),
    "JPEG, CMYK": encoded("JPEG", PICTURE.convert("CMYK"), quality=95),
    "JPEG, YCCK": ycck(),
    "PNG": encoded("PNG", PICTURE),
    "PNG, interlaced": interlaced(),
    "PNG, palette": encoded("PNG", PICTURE.convert("P")),
    "PNG, palette with a transparent colour": encoded("PNG", PICTURE.convert("P"), transparency=3),
    "PNG, grey": encoded("PNG", PICTURE.convert("L")),
    "PNG, grey and alpha": encoded("PNG", with_alpha().convert("LA")),
    "PNG, alpha": encoded("PNG", with_alpha()),
    "PNG, 1 bit": encoded("PNG", PICTURE.convert("1")),
    "PNG, RGB of 16 bits": png(HEIGHT, WIDTH, 16, 2, scanlines(RGB16)),
    "WebP": encoded("WEBP", PICTURE, quality=90),
    "WebP, lossless": encoded("WEBP", PICTURE, lossless=True),
    "WebP, alpha": encoded("WEBP", with_alpha(), quality=90),
    "WebP, lossless, alpha": encoded("WEBP", with_alpha(), lossless=True, exact=True),
    "WebP, animated": encoded("WEBP", PICTURE, save_all=True, append_images=[OTHER], lossless=True),
    "WebP, animated, alpha": encoded("WEBP", with_alpha(), save_all=True, append_images=[OTHER], lossless=True),
    "BMP": encoded("BMP", PICTURE),
    "BMP, palette": encoded("BMP", PICTURE.convert("P")),
    "BMP, grey": encoded("BMP", PICTURE.convert("L")),
    "BMP, first row on top": bottom_up(encoded("BMP", PICTURE)),
    "BMP, palette, first row on top": bottom_up(encoded("BMP", PICTURE.convert("P"))),
    "GIF": encoded("GIF", PICTURE),
    "GIF, animated": encoded("GIF", PICTURE, save_all=True, append_images=[OTHER]),
}
DECODE = tf.function(pixels.decode, input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
TRAINING = decoding.decoder()
HEADER = tf.function(pixels.header_size, input_signature=[tf.TensorSpec([], tf.string)], autograph=False)


def by_pillow(content: bytes, folder) -> np.ndarray:
    (folder / "image").write_bytes(content)
    with Image.open(folder / "image") as opened:
        return np.asarray(opened.convert("RGB")).astype(int)


# --------------------------------------------------------------------------------------------------- what is valid


@pytest.mark.parametrize("kind", VALID)
def test_decoded_as_pillow_does(kind, tmp_path):
    """Up to 2 levels, for other versions of the libraries; here they agree exactly."""
    image = DECODE(VALID[kind]).numpy()
    assert image.dtype == np.uint8 and image.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(image - by_pillow(VALID[kind], tmp_path)).max() <= 2
    assert HEADER(VALID[kind]).numpy().tolist() == [HEIGHT, WIDTH]
    again, taken = TRAINING(VALID[kind], (HEIGHT, WIDTH), 0)
    np.testing.assert_array_equal(again, image, strict=True)
    assert taken == 0
    with pytest.raises(ValueError, match="as declared"):
        TRAINING(VALID[kind], (HEIGHT, WIDTH + 1), 0)


def test_of_16_bits_the_upper_8_are_taken():
    content = png(HEIGHT, WIDTH, 16, 0, scanlines(GREY16))
    for grey in (DECODE(content).numpy(), TRAINING(content, (HEIGHT, WIDTH), 0)[0]):
        np.testing.assert_array_equal(grey, np.repeat((GREY16 >> 8)[:, :, None], 3, axis=2))
    np.testing.assert_array_equal(DECODE(VALID["PNG, RGB of 16 bits"]).numpy(), RGB16 >> 8)


@pytest.mark.parametrize("kind", ["PNG, alpha", "WebP, lossless, alpha"])
def test_a_transparent_pixel_has_the_colour_of_the_file(kind):
    """Nothing is blended: where alpha is 0 the colour is that of PICTURE too."""
    np.testing.assert_array_equal(DECODE(VALID[kind]).numpy(), PIXELS)


@pytest.mark.parametrize("kind", ["WebP, animated", "GIF, animated"])
def test_of_an_animation_the_first_frame(kind):
    image = DECODE(VALID[kind]).numpy().astype(int)
    assert np.abs(image - PIXELS).mean() < 10 < np.abs(image - np.asarray(OTHER)).mean()


def test_the_content_decides_not_the_name(tmp_path):
    for kind in ("PNG", "WebP, lossless"):
        (tmp_path / "a.jpg").write_bytes(VALID[kind])
        np.testing.assert_array_equal(images.load_image(tmp_path / "a.jpg"), PIXELS)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_not_applied(orientation):
    turned, upright = rotated(orientation, 24, 40), rotated(1, 24, 40)
    np.testing.assert_array_equal(images.load_image(turned), images.load_image(upright))


def test_text_in_a_png_that_unpacks_to_50_megabytes():
    bomb = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(50_000_000), 9))
    file = png(HEIGHT, WIDTH, 8, 2, scanlines(PIXELS), extra=bomb)
    assert len(file) < 60_000
    np.testing.assert_array_equal(DECODE(file).numpy(), PIXELS)
    np.testing.assert_array_equal(TRAINING(file, (HEIGHT, WIDTH), 0)[0], PIXELS)


# -------------------------------------------------------------------------------------------------- what is damaged


@pytest.mark.parametrize(
    "content", [b"", b"n", b"GIF8", b"RIFF", b"BM", b"\x89PNG", b"RIFF\0\0\0\0WEBPVP8X", b"\0" * 99]
)
def test_what_has_no_header_has_no_size(content):
    assert HEADER(content).numpy().prod() <= 1
    with pytest.raises((ValueError, OSError)):
        TRAINING(content, (HEIGHT, WIDTH), 0)


@pytest.mark.parametrize(
    "kind", ["JPEG, progressive", "PNG, interlaced", "WebP, lossless, alpha", "BMP, palette", "GIF"]
)
def test_cut_anywhere(kind):
    """A decoder may take a file that lacks its last bytes; then the image is whole in size."""
    content = VALID[kind]
    pieces = [content[:length] for length in np.linspace(0, len(content) - 1, 12).astype(int)]
    shapes = [shape_of(piece) for piece in pieces]
    assert set(shapes) <= {"refused", (HEIGHT, WIDTH, 3)}
    assert shapes.count("refused") >= 10
    for piece, shape in zip(pieces, shapes, strict=True):
        # Pillow and OpenCV may miss the last bytes of a file where TensorFlow does not; nothing else is read otherwise.
        assert training_shape(piece) in {shape, "refused"}


def training_shape(content: bytes) -> tuple[int, ...] | str:
    try:
        return TRAINING(content, (HEIGHT, WIDTH), 0)[0].shape
    except (ValueError, OSError, cv2.error):
        return "refused"


def shape_of(content: bytes) -> tuple[int, ...] | str:
    try:
        return images.load_image(content).shape
    except RetinaError as error:
        return "refused" if "\n" not in str(error) else str(error)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "GIF", "BMP"])
def test_flipped_bits(kind):
    """JPEG, GIF and BMP have no checksum, so that wrong pixels may pass; a PNG's CRC finds every single bit."""
    random, content, shapes = np.random.default_rng(1), bytearray(VALID[kind]), []
    for _ in range(12):
        place, bit = int(random.integers(len(content) // 2, len(content) - 13)), 1 << int(random.integers(8))
        content[place] ^= bit
        shapes.append(shape_of(bytes(content)))
        assert training_shape(bytes(content)) in {shapes[-1], "refused"}
        content[place] ^= bit
    assert set(shapes) <= {"refused", (HEIGHT, WIDTH, 3)}
    assert kind != "PNG" or set(shapes) == {"refused"}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_huge_dimensions_are_refused_before_decoding(kind, monkeypatch):
    content = huge(kind)
    monkeypatch.setattr(pixels, "decode", lambda _: pytest.fail("decoded"))
    with pytest.raises(RetinaError, match=r"expected at most 178956970 pixels .data.max_pixels., got \d+x\d+"):
        images.load_image(content)
    with pytest.raises(ValueError, match="as declared|huge"):
        TRAINING(content, (HEIGHT, WIDTH), 0)
    with pytest.raises(RetinaError, match=f"at most {HEIGHT * WIDTH - 1} pixels .*raise data.max_pixels or shrink it"):
        images.load_image(VALID["PNG"], max_pixels=HEIGHT * WIDTH - 1)


def test_the_limit_inside_a_graph():
    limited = {
        limit: tf.function(lambda content, limit=limit: pixels.read(content, False, max_pixels=limit), autograph=False)
        for limit in (HEIGHT * WIDTH, HEIGHT * WIDTH - 1, config.MAX_PIXELS)
    }
    for content in VALID.values():
        content = tf.constant(content)
        assert [len(read(content)) for read in limited.values()] == [HEIGHT, 0, HEIGHT]
    assert limited[config.MAX_PIXELS](tf.constant(huge("PNG"))).shape == (0, 0, 3)


def test_the_limit_is_no_higher_than_the_decoders():
    assert config.Data.model_fields["max_pixels"].default == 2**29 // 3 == config.MAX_PIXELS
    with pytest.raises(ValueError, match="max_pixels"):
        data({"format": "digits"}, ".", max_pixels=config.MAX_PIXELS + 1)


# ------------------------------------------------------------------------------------------ files that are no files


def test_a_pipe_is_not_waited_for(tmp_path):
    pipe = tmp_path / "a.jpg"
    os.mkfifo(pipe)
    for read in (images.load_image, image_size, lambda path: read_header(str(path), str(path))):
        with pytest.raises(RetinaError, match=r"a\.jpg: expected a file, it is a pipe"):
            read(pipe)


def test_a_folder_is_no_image(tmp_path):
    (tmp_path / "a.jpg").mkdir()
    with pytest.raises(RetinaError, match=r"a\.jpg: expected an image file, cannot read it: Is a directory"):
        images.load_image(tmp_path / "a.jpg")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read(tmp_path):
    (tmp_path / "a.png").write_bytes(VALID["PNG"])
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(RetinaError, match="Permission denied"):
        images.load_image(tmp_path / "a.png")


# ------------------------------------------------------------------------------------------------- names and places

NAMES = ["a b.png", "quo\"te's.png", "line\nbreak.png", "ünïcode 漢.png", os.fsdecode(b"latin\xe9.png"), "#%&?.png"]


def data(source: dict, root, **settings) -> config.Data:
    tree = {"root": str(root), "train": source, "validation": source, **settings}
    tree.setdefault("resize", {"short": 64, "long": 64, "multiple": 32})
    return config.Data.model_validate(tree)


def batches(settings: config.Data) -> list[dict]:
    dataset = load_split(settings, "train")
    with translated(dataset):
        return list(evaluation_batches(dataset, settings, batch_size=1).as_numpy_iterator())


COCO = {"format": "coco", "annotations": "data.json", "images": "images"}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_files(name, tmp_path, monkeypatch):
    """Read from COCO's JSON, from a folder of YOLO and (but for line ends and bytes that are no text) from CSV."""
    monkeypatch.chdir(tmp_path)
    coco(tmp_path, lambda tree: tree["images"][0].update(file_name=name))
    (tmp_path / "images" / "0.png").rename(tmp_path / "images" / name)
    dataset = load_split(data(COCO, tmp_path), "train")
    assert dataset.images[0] == str(tmp_path / "images" / name)
    assert json.loads(json.dumps(dataset.images)) == list(dataset.images)
    assert images.load_image(dataset.images[0]).shape == (64, 64, 3)
    assert len(batches(data(COCO, tmp_path))) == 2
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / (name[:-4] + ".txt")).write_text("0 0.5 0.5 0.2 0.2\n")
    yolo = data({"format": "yolo", "images": "images"}, tmp_path, classes=["cat"])
    table, truth = read_split(yolo, "train")
    assert str(tmp_path / "images" / name) in table.images and len(table.boxes) == 1
    assert len(truth.boxes) == 1
    assert len(batches(yolo)) == 2
    if "\n" not in name and name.isprintable():
        quoted = name.replace('"', '""')
        (tmp_path / "data.csv").write_text(f'"{quoted}",1,1,9,9,cat\n', encoding="utf-8")
        table = load_split(data({"format": "csv", "annotations": "data.csv", "images": "images"}, tmp_path), "train")
        assert table.image_ids == (name,)


def test_bytes_that_are_no_text_are_refused_in_text_files(tmp_path):
    (tmp_path / "data.csv").write_bytes(b"latin\xe9.png,1,1,9,9,cat\n")
    with pytest.raises(RetinaError, match=r"data\.csv: not UTF-8 text"):
        load_split(data({"format": "csv", "annotations": "data.csv"}, tmp_path), "train")


def test_a_link_in_the_root_is_followed(tmp_path):
    """Who may place links in the folder may place files: unlike a path in an annotation they are no stranger's."""
    (tmp_path / "elsewhere.png").write_bytes(encoded())
    root = tmp_path / "root"
    root.mkdir()
    coco(root)
    (root / "images" / "0.png").unlink()
    (root / "images" / "0.png").symlink_to(tmp_path / "elsewhere.png")
    assert len(load_split(data(COCO, root), "train")) == 2
    (root / "labels").mkdir()
    (root / "labels" / "0.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    assert len(load_split(data({"format": "yolo", "images": "images"}, root, classes=["a"]), "train")) == 2


def test_an_absolute_path_into_the_folder_is_fine(tmp_path):
    coco(tmp_path, lambda tree: tree["images"][0].update(file_name=str(tmp_path / "images" / "0.png")))
    assert load_split(data(COCO, tmp_path), "train").images[0] == str(tmp_path / "images" / "0.png")


# --------------------------------------------------------------------------------------------- data.invalid_images


@pytest.mark.parametrize("content", [b"", encoded("JPEG")[:-200], rotated(6, 64, 48), huge("PNG")])
def test_skip_leaves_out_what_cannot_be_used(tmp_path, content):
    coco(tmp_path)
    (tmp_path / "images" / "0.png").write_bytes(content)
    strict, skip = data(COCO, tmp_path), data(COCO, tmp_path, invalid_images="skip")
    assert len(load_split(strict, "train")) == 2
    with pytest.raises(RetinaError, match=r"0\.png"):
        batches(strict)
    dataset, truth = read_split(skip, "train")
    assert dataset.image_ids == (41,)
    (note,) = dataset.notes
    assert "decoded 2 images at" in note and "1 of them, with 1 box, can't be used and are left out" in note
    assert "0.png" in note
    assert truth.image_ids == (41,) and truth.image.tolist() == [0] and len(truth.boxes) == 1
    assert [int(batch["index"][0]) for batch in batches(skip)] == [0]
    steps = training_batches(dataset, skip, batch_size=1, seed=0, steps=1)
    assert len(list(steps)) == 1


def test_skip_with_nothing_to_skip(tmp_path):
    coco(tmp_path)
    dataset = load_split(data(COCO, tmp_path, invalid_images="skip"), "train")
    assert len(dataset) == 2 and "all of which can be used" in dataset.notes[0]


def test_skip_refuses_when_nothing_is_left(tmp_path):
    coco(tmp_path)
    for number in range(2):
        (tmp_path / "images" / f"{number}.png").write_bytes(b"")
    with pytest.raises(RetinaError, match="none of its 2 images can be used; the first: .*0.png.*0 bytes"):
        load_split(data(COCO, tmp_path, invalid_images="skip"), "train")


@pytest.mark.parametrize("format", ["yolo", "csv"])
def test_skip_where_sizes_come_from_the_images(tmp_path, format):
    coco(tmp_path)
    (tmp_path / "images" / "0.png").write_bytes(b"<html>")
    (tmp_path / "labels").mkdir()
    for number in range(2):
        (tmp_path / "labels" / f"{number}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "data.csv").write_text("0.png,1,1,50,60,cat\n1.png,1,2,50,60,cat\n")
    sources = {
        "yolo": {"format": "yolo", "images": "images"},
        "csv": {"format": "csv", "annotations": "data.csv", "images": "images"},
    }
    with pytest.raises(RetinaError, match=r"0\.png: cannot read the size"):
        load_split(data(sources[format], tmp_path, classes=["cat"]), "train")
    skip = data(sources[format], tmp_path, classes=["cat"], invalid_images="skip")
    dataset, truth = read_split(skip, "train")
    assert (
        len(dataset) == 1
        and dataset.sizes.tolist() == [[64, 64]]
        and "not an image but a web page" in dataset.notes[-1]
    )
    assert len(truth.boxes) == 1


def test_a_lower_limit_holds_in_training_and_is_told(tmp_path):
    coco(tmp_path)
    (tmp_path / "images" / "0.png").write_bytes(encoded("PNG", picture(200, 200)))
    with pytest.raises(
        RetinaError, match=r"expected at most 4095 pixels .*got 64x64, which is 4096; raise data.max_pix"
    ):
        load_split(data(COCO, tmp_path, max_pixels=4095), "train")
    with pytest.raises(RetinaError, match=r"0\.png: expected 64x64 pixels .* the image has 200x200"):
        batches(data(COCO, tmp_path, max_pixels=4096))
    assert len(load_split(data(COCO, tmp_path, max_pixels=4096, invalid_images="skip"), "train")) == 1


def test_the_doctor_finds_what_training_skips(tmp_path):
    coco(tmp_path)
    (tmp_path / "images" / "0.png").write_bytes(b"")
    opened = inspect(load_split(data(COCO, tmp_path), "train"))
    grades = {}
    for skip in (False, True):
        (finding,) = image_findings(opened, "train", skip=skip)
        grades[skip] = finding.code, finding.grade
    assert grades == {False: ("unreadable-images", "error"), True: ("unreadable-images", "warning")}


def test_each_image_keeps_the_order_and_counts(tmp_path):
    coco(tmp_path)
    dataset, done = load_split(data(COCO, tmp_path), "train"), []
    seen = list(images.each_image(dataset, lambda row: str(dataset.images[row])[-5:], done.append))
    assert seen == ["0.png", "1.png"] and done == [1, 1]


# ------------------------------------------------------------------------------------ missing and unreadable, by format


def three(root: Path, format: str) -> dict:
    """Three images of a source, of which the first is missing."""
    coco(root)
    for number in range(3):
        (root / "images" / f"{number}.png").write_bytes(encoded("PNG"))
    box = {"category_id": 1, "bbox": [8, 8, 24, 24]}
    tree = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 64, "height": 64} for n in range(3)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": n, "image_id": n, **box} for n in range(3)],
    }
    (root / "data.json").write_text(json.dumps(tree))
    (root / "data.csv").write_text("".join(f"{n}.png,1,1,50,60,cat\n" for n in range(3)))
    (root / "data.yaml").write_text("train: list.txt\nnames: [cat]\n")
    (root / "list.txt").write_text("".join(f"images/{n}.png\n" for n in range(3)))
    for folder in ("labels", "Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets/Main/train.txt").write_text("0\n1\n2\n")
    for number in range(3):
        (root / "labels" / f"{number}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
        (root / "Annotations" / f"{number}.xml").write_text(XML)
        (root / "JPEGImages" / f"{number}.png").write_bytes(encoded("PNG"))
    (root / "images" / "0.png").unlink()
    (root / "JPEGImages" / "0.png").unlink()
    return {
        "coco": COCO,
        "csv": {"format": "csv", "annotations": "data.csv", "images": "images"},
        "yolo": {"format": "yolo", "data": "data.yaml", "split": "train"},
        "voc": {"format": "voc", "splits": ["train"]},
    }[format]


XML = (
    "<annotation><size><width>64</width><height>64</height></size><object><name>cat</name><bndbox><xmin>5</xmin>"
    "<ymin>5</ymin><xmax>40</xmax><ymax>40</ymax></bndbox></object></annotation>"
)


@pytest.mark.parametrize("format", ["coco", "csv", "yolo", "voc"])
def test_missing_images_are_counted_alike(tmp_path, format):
    source = three(tmp_path, format)
    with pytest.raises(RetinaError, match=r"0(\.png)?: no such image .*, 1 of 3 images is missing"):
        load_split(data(source, tmp_path), "train")
    dataset = load_split(data(source, tmp_path, invalid_images="skip"), "train")
    assert len(dataset) == 2 and len(dataset.boxes) == 2
    note = dataset.notes[-1]
    assert "1 of them, with 1 box, can't be used and are left out" in note and "No such file" in note and "/0." in note
    (tmp_path / "images" / "1.png").unlink()
    (tmp_path / "JPEGImages" / "1.png").unlink()
    with pytest.raises(RetinaError, match=r"0(\.png)?: no such image .*, 2 of 3 images are missing"):
        load_split(data(source, tmp_path), "train")


@pytest.mark.parametrize("format", ["coco", "csv", "yolo", "voc"])
@pytest.mark.parametrize("policy", ["error", "skip"])
def test_the_doctor_lists_bad_images_and_examines_the_rest(tmp_path, format, policy):
    source = three(tmp_path, format)
    settings = config.load(None, []).model_copy(update={"data": data(source, tmp_path, invalid_images=policy)})
    splits, findings = read_splits(_of_config("made", settings))
    findings += [found for name, table in splits.items() for found in image_findings(inspect(table), name)]
    mine = [found for found in findings if found.split == "train"]
    assert [found.code for found in mine] == ["unreadable-images"], mine
    assert mine[0].message.startswith("1 of 3 images can't be") and len(mine[0].examples) == 1
    # Of COCO and VOC the size is known, and the image stays in the table.
    known = format in ("coco", "voc")
    assert len(splits["train"]) == (3 if known else 2) and (splits["train"].sizes == 64).all()
    assert known or mine[0].grade == ("error" if policy == "error" else "warning")


def test_the_doctor_goes_on_when_no_image_of_a_split_can_be_read(tmp_path):
    source = three(tmp_path, "yolo")
    for number in (1, 2):
        (tmp_path / "images" / f"{number}.png").write_bytes(b"no image")
    settings = config.load(None, []).model_copy(update={"data": data(source, tmp_path)})
    splits, findings = read_splits(_of_config("made", settings))
    assert splits == {} and {found.code for found in findings} == {"unreadable-images"}
    assert "3 of 3 images can't be read" in findings[0].message and "no box is left" in findings[0].message


def test_boxes_that_a_policy_dropped_are_counted_where_none_is_left(tmp_path):
    coco(tmp_path, lambda tree: [entry.update(bbox=[8, 8, 0, 9]) for entry in tree["annotations"]])
    with pytest.raises(RetinaError, match=r"has no box at all in 2 images \(.*2 of 2 boxes invalid .*2 dropped"):
        load_split(data(COCO, tmp_path, invalid_boxes="drop"), "train")
