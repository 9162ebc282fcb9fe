"""Kinds of malformed input, each with the command that meets it: tests assert them, a script prints them as a table."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

SIDE = 64
_NOTHING: Callable[[Any], object] = lambda _: None  # noqa: E731


class Kind(NamedTuple):
    """`make` writes the files into an empty folder and gives the command's arguments; `message` is a pattern."""

    name: str
    make: Callable[[Path], list[str]]
    code: int
    message: str


# ----------------------------------------------------------------------------------------------------------- images


def picture(height: int = SIDE, width: int = SIDE) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 255 / width, y * 255 / height, 0 * x + 90], -1).astype(np.uint8))


def encoded(kind: str = "PNG", image: Image.Image | None = None, **options: Any) -> bytes:
    out = io.BytesIO()
    (image or picture()).save(out, kind, **options)
    return out.getvalue()


def four_channels() -> bytes:
    """A TIFF of four channels of which none is alpha (TIFF 6.0, sections 2 and 8)."""
    entries = ((256, 4, SIDE), (257, 4, SIDE), (258, 3, 8), (262, 3, 2), (273, 4, 98), (277, 3, 4), (338, 3, 0))
    body = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4) + bytes(4 * SIDE * SIDE)


def chunk(kind: bytes, content: bytes) -> bytes:
    """Of a PNG (RFC 2083, 3.2)."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(
    height: int, width: int, depth: int, colour: int, rows: bytes, *, interlaced: int = 0, extra: bytes = b""
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    parts = (chunk(b"IHDR", header), extra, chunk(b"IDAT", zlib.compress(rows, 9)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def huge(kind: str, side: int = 60_000) -> bytes:
    """A small file whose header tells of `side` x `side` pixels."""
    if kind == "PNG":
        return png(side, side, 8, 2, b"")
    file = bytearray(encoded(kind))
    if kind == "JPEG":
        start = file.index(b"\xff\xc0") + 5
        file[start : start + 4] = struct.pack(">HH", side, side)
    elif kind == "GIF":
        file[6:10] = struct.pack("<HH", side, side)
    elif kind == "BMP":
        file[18:26] = struct.pack("<ii", side, side)
    else:
        file = bytearray(encoded("WEBP", lossless=True))
        start = file.index(b"VP8L") + 9
        file[start : start + 4] = struct.pack("<I", 16383 | 16383 << 14)
    return bytes(file)


def rotated(orientation: int, height: int = SIDE, width: int = SIDE) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded("JPEG", picture(height, width), exif=exif)


def _flipped_bit(file: bytes) -> bytes:
    middle = len(file) // 2
    return file[:middle] + bytes([file[middle] ^ 16]) + file[middle + 1 :]


def of_image(content: bytes, size: tuple[int, int] = (SIDE, SIDE)) -> Callable[[Path], list[str]]:
    """COCO's first image has these bytes; `size` (height, width) is what the file declares."""

    def make(folder: Path) -> list[str]:
        coco(folder, lambda tree: tree["images"][0].update(height=size[0], width=size[1]))
        (folder / "images" / "0.png").write_bytes(content)
        return ["doctor", "data.json", "--images", "images", "--json"]

    return make


# ------------------------------------------------------------------------------------------------------ annotations


def train(source: str, *settings: str) -> list[str]:
    return ["train", f"data.train={source}", f"data.validation={source}", *settings, "--run-dir", "run"]


def coco(folder: Path, change: Callable[[dict[str, Any]], object] = _NOTHING) -> list[str]:
    """Two images with a box each in `data.json` and `images`; gives the command that trains on them."""
    (folder / "images").mkdir()
    for number in range(2):
        (folder / "images" / f"{number}.png").write_bytes(encoded())
    tree = {
        "images": [{"id": 40 + n, "file_name": f"{n}.png", "width": SIDE, "height": SIDE} for n in range(2)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": [{"id": 7 + n, "image_id": 40 + n, "category_id": 1, "bbox": [8, 8, 24, 24]} for n in range(2)],
    }
    change(tree)
    (folder / "data.json").write_text(json.dumps(tree))
    return train("{format: coco, annotations: data.json, images: images}")


def of_tree(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], list[str]]:
    return lambda folder: coco(folder, change)


def of_image_entry(**keys: Any) -> Callable[[Path], list[str]]:
    return of_tree(lambda tree: tree["images"][0].update(keys))


def of_box(**keys: Any) -> Callable[[Path], list[str]]:
    return of_tree(lambda tree: tree["annotations"][1].update(keys))


def of_json(content: bytes) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        arguments = coco(folder)
        (folder / "data.json").write_bytes(content)
        return arguments

    return make


def of_file(place: Callable[[Path], object], *settings: str) -> Callable[[Path], list[str]]:
    """COCO's first image file is replaced by whatever `place` puts there."""

    def make(folder: Path) -> list[str]:
        arguments = coco(folder)
        (folder / "images" / "0.png").unlink()
        place(folder / "images" / "0.png")
        return [*arguments, *settings]

    return make


_VOC = (
    "<annotation><size><width>64</width><height>64</height></size><object><name>cat</name><bndbox><xmin>5</xmin>"
    "<ymin>5</ymin><xmax>40</xmax><ymax>40</ymax></bndbox></object></annotation>"
)
_LAUGHS = (
    '<!DOCTYPE a [<!ENTITY a0 "ha">'
    + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    + "]><annotation>&a9;</annotation>"
)


def voc(folder: Path, xml: str | None = _VOC, listed: str = "one\n") -> list[str]:
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / part).mkdir(parents=True)
    (folder / "JPEGImages" / "one.jpg").write_bytes(encoded("JPEG"))
    (folder / "ImageSets" / "Main" / "train.txt").write_text(listed)
    if xml is not None:
        (folder / "Annotations" / "one.xml").write_text(xml)
    return train("{format: voc, splits: [train]}")


def of_xml(xml: str | None) -> Callable[[Path], list[str]]:
    return lambda folder: voc(folder, xml)


def yolo(folder: Path, label: bytes = b"0 0.5 0.5 0.2 0.2\n", text: str = "", train_part: str = "images") -> list[str]:
    for part in ("images", "labels"):
        (folder / part).mkdir()
    (folder / "images" / "a.png").write_bytes(encoded())
    (folder / "labels" / "a.txt").write_bytes(label)
    (folder / "data.yaml").write_text(text or f"train: {train_part}\nval: images\nnames: [cat]\n")
    return train("{format: yolo, data: data.yaml, split: train}")


def of_label(label: bytes) -> Callable[[Path], list[str]]:
    return lambda folder: yolo(folder, label)


def of_yaml(text: str) -> Callable[[Path], list[str]]:
    return lambda folder: yolo(folder, text=text)


def _yolo_list(folder: Path) -> list[str]:
    (folder / "list.txt").write_text("images/a.png\n../../elsewhere/b.png\n")
    return yolo(folder, train_part="list.txt")


def of_csv(text: str) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        (folder / "a.png").write_bytes(encoded())
        (folder / "data.csv").write_text(text)
        return train("{format: csv, annotations: data.csv}")

    return make


def of_labelme(**keys: Any) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        (folder / "a.png").write_bytes(encoded())
        shape = {"label": "cat", "shape_type": "rectangle", "points": [[8, 8], [32, 32]]}
        tree = {"imagePath": "a.png", "imageHeight": SIDE, "imageWidth": SIDE, "shapes": [shape]} | keys
        (folder / "a.json").write_text(json.dumps(tree))
        return train("{format: labelme}")

    return make


def _two_readings(folder: Path) -> list[str]:
    coco(folder)
    (folder / "images" / "0.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    return ["doctor", "."]


def of_tfds(damage: Callable[[Path], object] = _NOTHING, split: str = "train") -> Callable[[Path], list[str]]:
    """COCO's two images as a TFDS dataset with the split "train"; `damage` is given its only shard."""

    def make(folder: Path) -> list[str]:
        from retina.data.convert.converting import convert

        coco(folder)
        convert(folder / "data.json", folder / "set", "tfds", images=folder / "images", splits=["train"])
        damage(next((folder / "set").glob("set-train.tfrecord*")))
        return train(f"{{format: tfds, data_dir: set, split: {split}}}")

    return make


def _change_middle(file: Path) -> None:
    file.write_bytes(_flipped_bit(file.read_bytes()))


def _convert(folder: Path) -> list[str]:
    coco(folder, lambda tree: tree["images"][0].update(file_name="../data.json"))
    return ["convert", "data.json", "out", "--to", "yolo", "--images", "images"]


def _convert_nothing(folder: Path) -> list[str]:
    (folder / "empty").mkdir()
    return ["convert", "empty", "out", "--to", "coco"]


def _all_skipped(folder: Path) -> list[str]:
    arguments = coco(folder)
    for number in range(2):
        (folder / "images" / f"{number}.png").write_bytes(b"")
    return [*arguments, "data.invalid_images=skip"]


KINDS = (
    # ------------------------------------------------------------------------------------------------------- images
    Kind("image of zero bytes", of_image(b""), 1, r"0\.png: expected an image, it is empty \(0 bytes\)"),
    Kind("JPEG, header only", of_image(encoded("JPEG")[:300]), 1, r"0\.png: .*damaged or cut short"),
    Kind("JPEG cut short", of_image(encoded("JPEG")[:-200]), 1, r"0\.png: .*damaged or cut short"),
    Kind("PNG cut short", of_image(encoded()[:-40]), 1, r"0\.png: .*damaged or cut short"),
    Kind("PNG with a flipped bit", of_image(_flipped_bit(encoded())), 1, r"0\.png: .*damaged or cut short"),
    Kind("WebP cut short", of_image(encoded("WEBP")[:-40]), 1, r"0\.png: .*damaged or cut short"),
    Kind("GIF cut short", of_image(encoded("GIF")[:60]), 1, r"0\.png: .*damaged or cut short"),
    Kind("BMP cut short", of_image(encoded("BMP")[:-400]), 1, r"0\.png: .*damaged, cut short"),
    Kind("1-bit BMP", of_image(encoded("BMP", picture().convert("1"))), 1, "bitmap of fewer than 8 bits a pixel"),
    Kind("web page saved as an image", of_image(b"<!DOCTYPE html><html></html>"), 1, "not an image but a web page"),
    Kind("text saved as an image", of_image(b"no image at all"), 1, r"0\.png: .*it is not an image"),
    Kind(
        "TIFF of floats",
        of_image(
            encoded("TIFF", Image.fromarray(np.linspace(0, 1, SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE)))
        ),
        1,
        r"float32 from 0 to 1: say which .*data\.depth",
    ),
    Kind("TIFF of four channels", of_image(four_channels()), 1, "it has 4 channels: write RGB images"),
    Kind("HEIC with another extension", of_image(b"\0\0\0\x18ftypheic" + bytes(99)), 1, "it is a HEIC image"),
    Kind("pointer of Git LFS", of_image(b"version https://git-lfs.github.com/spec/v1\n"), 1, "a pointer of Git LFS"),
    Kind("JPEG of 60000 x 60000", of_image(huge("JPEG")), 1, r"at most 178956970 pixels .*60000x60000"),
    Kind("PNG of 60000 x 60000", of_image(huge("PNG")), 1, r"at most 178956970 pixels .*60000x60000"),
    Kind("GIF of 60000 x 60000", of_image(huge("GIF")), 1, r"at most 178956970 pixels .*60000x60000"),
    Kind("BMP of 60000 x 60000", of_image(huge("BMP")), 1, r"at most 178956970 pixels .*60000x60000"),
    Kind("WebP of 16384 x 16384", of_image(huge("WEBP")), 1, r"at most 178956970 pixels .*16384x16384"),
    Kind("image of another size than declared", of_image(encoded(), (64, 60)), 1, "declared 60x64, stored 64x64"),
    Kind(
        "EXIF rotation that sizes don't tell of",
        of_image(rotated(3)),
        1,
        "nothing says whether their boxes belong to the upright pictures",
    ),
    Kind("folder called 0.png", of_file(Path.mkdir), 2, r"0\.png: expected an image file, it is a folder"),
    Kind("pipe called 0.png", of_file(os.mkfifo), 2, r"0\.png: expected an image file, .*a pipe"),
    Kind("link to nothing", of_file(lambda path: path.symlink_to("nowhere")), 2, r"0\.png: .*a broken link"),
    Kind(
        "no image can be used", _all_skipped, 2, r"data\.json: none of its 2 images can be used; the first: .*0 bytes"
    ),
    # --------------------------------------------------------------------------------------------------------- COCO
    Kind("COCO file of zero bytes", of_json(b""), 2, r"data\.json: not valid JSON"),
    Kind("COCO file cut short", of_json(b'{"images": [{"id": 1,'), 2, r"data\.json: not valid JSON: .*line 1"),
    Kind("COCO file that is no UTF-8", of_json(b'{"images": "\xff\xfe\xfd"}'), 2, r"data\.json: not a JSON text file"),
    Kind("COCO file nested 100,000 deep", of_json(b"[" * 100_000), 2, r"data\.json: not a JSON text file"),
    Kind("COCO number of 5000 digits", of_json(b'{"images": ' + b"9" * 5000 + b"}"), 2, r"data\.json: not valid JSON"),
    Kind("list of results as COCO file", of_json(b"[]"), 2, r"data\.json: expected an object with 'images'"),
    Kind("COCO without images", of_tree(lambda tree: tree["images"].clear()), 2, "'images' is empty"),
    Kind("COCO without boxes", of_tree(lambda tree: tree["annotations"].clear()), 2, "has no box at all in 2 images"),
    Kind("COCO image id given twice", of_image_entry(id=41), 2, r"images\[1\]: id 41 is already that of images\[0\]"),
    Kind("COCO height as a text", of_image_entry(height="64"), 2, r"images\[0\]: 'height' must be a whole number"),
    Kind("COCO negative width", of_image_entry(width=-64), 2, r"images\[0\]: 'width' must be a positive"),
    Kind(
        "COCO declares 60000 x 60000",
        of_image_entry(width=60_000, height=60_000),
        2,
        r"0\.png: expected at most 178956970 pixels \(data\.max_pixels\), got 60000x60000",
    ),
    Kind("COCO image that is not there", of_image_entry(file_name="9.png"), 2, r"9\.png: no such image"),
    Kind("COCO path that climbs", of_image_entry(file_name="../data.json"), 2, "leaves the image folder"),
    Kind("COCO absolute path", of_image_entry(file_name="/etc/passwd"), 2, "leaves the image folder"),
    Kind("COCO path of Windows that climbs", of_image_entry(file_name="..\\0.png"), 2, "leaves the image folder"),
    Kind("COCO box of an unknown image", of_box(image_id=9), 2, r"annotations\[1\]: 'image_id' must be the id of one"),
    Kind("COCO box of an unknown class", of_box(category_id=2), 2, r"annotations\[1\]: 'category_id' must be the id"),
    Kind("COCO box of three numbers", of_box(bbox=[1, 2, 3]), 2, r"annotations\[1\]: 'bbox' must be four numbers"),
    Kind("COCO box of no width", of_box(bbox=[8, 8, 0, 9]), 2, r"annotation 8 \(image 41\): .*zero width"),
    Kind("COCO box that is not finite", of_box(bbox=[8, 8, float("nan"), 9]), 2, r"annotation 8 .*not finite"),
    Kind("COCO box outside its image", of_box(bbox=[60, 8, 24, 9]), 2, r"annotation 8 .*reaches 20 px outside"),
    Kind("COCO and YOLO in one folder", _two_readings, 2, "2 ways; choose one: --format yolo .*; --format coco"),
    # ------------------------------------------------------------------------------------------------------ labelme
    Kind("labelme image elsewhere", of_labelme(imagePath="b.png"), 2, r"b\.png: no such image \(a\.json of"),
    Kind("labelme without shapes", of_labelme(shapes=[]), 2, "no file has a shape, so there are no class names"),
    Kind(
        "labelme rectangle of a point",
        of_labelme(shapes=[{"label": "x", "shape_type": "rectangle", "points": [[1, 2]]}]),
        2,
        "a rectangle needs at least 2 points",
    ),
    # ---------------------------------------------------------------------------------------------------------- VOC
    Kind("XML bomb (billion laughs)", of_xml(_LAUGHS), 2, r"one\.xml: it declares a DTD or entities"),
    Kind(
        "XML with an external entity",
        of_xml('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + _VOC.replace("cat", "&x;")),
        2,
        r"one\.xml: it declares a DTD or entities",
    ),
    Kind("XML with a DTD", of_xml('<!DOCTYPE a SYSTEM "http://x/a.dtd">' + _VOC), 2, "it declares a DTD or entities"),
    Kind("XML cut short", of_xml(_VOC[:90]), 2, r"one\.xml: not valid XML"),
    Kind("XML of something else", of_xml("<html></html>"), 2, "expected <annotation> as the outermost"),
    Kind("VOC without size", of_xml(_VOC.replace("size>", "sizes>")), 2, r"one\.xml: size has no <size/height>"),
    Kind("VOC corner that is no number", of_xml(_VOC.replace("40", "wide", 1)), 2, "must be a number, got 'wide'"),
    Kind("VOC annotation missing", of_xml(None), 2, r"one\.xml: cannot read this annotation: No such file"),
    Kind("VOC split that climbs", lambda folder: voc(folder, listed="../one\n"), 2, "an image without folder"),
    # --------------------------------------------------------------------------------------------------------- YOLO
    Kind("YOLO label in pixels", of_label(b"0 30 30 20 20\n"), 2, r"a\.txt: line 1: .*are they pixels\?"),
    Kind("YOLO label of four columns", of_label(b"0 0.5 0.5 0.2\n"), 2, r"a\.txt: line 1: expected 5 columns"),
    Kind("YOLO class beyond the names", of_label(b"4 0.5 0.5 0.2 0.2\n"), 2, "a class index from 0 to 0"),
    Kind("YOLO label that is no text", of_label(b"\xff\xfe\0"), 2, r"a\.txt: .*UTF-8"),
    Kind("YOLO label that is not finite", of_label(b"0 nan 0.5 0.2 0.2\n"), 2, r"a\.txt: line 1"),
    Kind("YOLO split outside its root", of_yaml("train: ../..\nnames: [cat]"), 2, "leaves the data set's root"),
    Kind("YOLO list with a path outside", _yolo_list, 2, r"list\.txt: line 2: .*leaves the data set's root"),
    Kind("YOLO names given twice", of_yaml("train: images\nnames: [a, a]"), 2, "'a' is given twice"),
    Kind(
        "YAML that makes an object", of_yaml("train: !!python/object:os.system x"), 2, r"data\.yaml: .*not valid YAML"
    ),
    # ---------------------------------------------------------------------------------------------------------- CSV
    Kind("CSV of zero bytes", of_csv(""), 2, r"data\.csv: it is empty"),
    Kind("CSV without a column", of_csv("image,x1,y1,x2,label\n"), 2, r"data\.csv: line 1: column 'y2' is missing"),
    Kind("CSV with an open quote", of_csv('a.png,1,1,9,9,"cat\n'), 2, r"data\.csv: line 1: not valid CSV"),
    Kind("CSV path that climbs", of_csv("../a.png,1,1,9,9,cat\n"), 2, "leaves the image folder"),
    Kind("CSV absolute path outside", of_csv("/etc/passwd,1,1,9,9,cat\n"), 2, "leaves the image folder"),
    Kind("CSV number that is none", of_csv("a.png,1,one,9,9,cat\n"), 2, r"data\.csv: line 1: .*'one'"),
    # --------------------------------------------------------------------------------------------------------- TFDS
    Kind(
        "TFDS dataset that is not prepared",
        lambda _: train("{format: tfds, name: coco/2017, split: train, data_dir: nowhere}"),
        2,
        r"coco/2017: expected a TFDS dataset prepared in .*nowhere, .*nothing is downloaded",
    ),
    Kind("TFDS split that is not there", of_tfds(split="trian"), 2, r"set.*\(trian\): no such split: .*exist: train"),
    Kind(
        "TFDS record with a flipped bit",
        of_tfds(_change_middle),
        2,
        r"set.*\(train\): cannot read its shards in .*set: \S",
    ),
    Kind("TFDS shard missing", of_tfds(Path.unlink), 2, r"set.*\(train\): cannot read its shards in .*set: \S"),
    # ------------------------------------------------------------------------------------------------- other commands
    Kind("converting a path that climbs", _convert, 2, "leaves the image folder"),
    Kind("converting nothing", _convert_nothing, 2, r"empty: "),
)
