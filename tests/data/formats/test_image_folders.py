"""The folder of images is guessed by one rule for every command, whatever a tool writes before the names of images."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retina import config
from retina.data.convert.converting import convert
from retina.data.convert.origin import find_source
from retina.data.formats.layouts import look
from retina.data.image_files import guess_folder, readings
from retina.data.load import load_split, read_source
from retina.doctor.targets import open_target, read_splits
from retina.errors import RetinaError

SIDE = 40
FILES = ("a b.png", "c.png", "0abc1234-d.png")
# What a tool writes for a file, with the root that holds the annotations.
FORMS = {
    "the name": "{name}",
    "a folder": "images/{name}",
    "a folder of Windows": "images\\{name}",
    "dots": "./images/{name}",
    "upwards": "../{root.name}/images/{name}",
    "upwards on Windows": "..\\{root.name}\\images\\{name}",
    "an absolute path": "{root}/images/{name}",
    "another machine": "/srv/somebody/photos/images/{name}",
    "another machine of Windows": "C:\\Users\\somebody\\photos\\{name}",
    "an address": "https://example.org/data/upload/7/{escaped}?size=9",
    "a file address": "file:" + "///srv/somebody/{escaped}",
    "escapes": "images/{escaped}",
    "a bucket": "s3://bucket/photos/{name}",
    "Label Studio's uploads": "/data/upload/7/01234abc-{name}",
    "Label Studio's export": "images/01234abc-{name}",
    "Label Studio's local files": "/data/local-files/?d=images/{escaped}",
}
PLACES = ("images", "images/data", "data", ".")


def pictures(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(FILES):
        Image.new("RGB", (SIDE, SIDE), (80 * number, 0, 0)).save(folder / name)


def called(form: str, root: Path, name: str) -> str:
    return FORMS[form].format(name=name, root=root, escaped=name.replace(" ", "%20"))


def coco(root: Path, names: list[str]) -> Path:
    sizes = {"width": SIDE, "height": SIDE}
    tree = {
        "images": [{"id": n, "file_name": name, **sizes} for n, name in enumerate(names)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": n, "image_id": n, "category_id": 1, "bbox": [n, 1, 9, 9]} for n, _ in enumerate(names)],
    }
    (root / "data.json").write_text(json.dumps(tree))
    return root / "data.json"


def plain_csv(root: Path, names: list[str]) -> Path:
    with open(root / "data.csv", "w", newline="") as file:
        csv.writer(file).writerows([name, n, 1, n + 9, 10, "cat"] for n, name in enumerate(names))
    return root / "data.csv"


def yolo(root: Path, names: list[str]) -> Path:
    (root / "list.txt").write_text("".join(f"{name}\n" for name in names))
    for n, name in enumerate(FILES):
        numbers = ((n + 4.5) / SIDE, 5.5 / SIDE, 9 / SIDE, 9 / SIDE)
        folder = root / "labels"
        folder.mkdir(exist_ok=True)
        (folder / f"{Path(name).stem}.txt").write_text(f"0 {' '.join(map(str, numbers))}\n")
    (root / "data.yaml").write_text("train: list.txt\nnames: [cat]\n")
    return root / "data.yaml"


def check(table) -> None:
    assert len(table) == len(FILES)
    for row, image in enumerate(table.images):
        number = Image.open(image).getpixel((0, 0))[0] // 80
        assert Path(image).name == FILES[number]
        np.testing.assert_allclose(table.objects(row).boxes, [[number, 1, number + 9, 10]], atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("write", [coco, plain_csv, yolo])
def test_every_form_of_a_name_by_every_command(tmp_path, write, form):
    root = tmp_path / "set"
    pictures(root / "images")
    path = write(root, [called(form, root, name) for name in FILES])
    (section,) = look(str(path)).splits.values()
    check(load_split(config.Data(train=section, validation=section), "train"))
    splits, _ = read_splits(open_target(path, []))
    check(next(iter(splits.values())))
    origin = find_source(str(path))
    check(read_source(origin.data, next(iter(origin.splits.values())), "source"))
    if form == "Label Studio's uploads":
        done = convert(path, tmp_path / "out", "yolo", splits=["train" if write is yolo else "data=train"])
        assert not done.problems and done.splits == {"train": {"images": 3, "boxes": 3}}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("write", [coco, plain_csv])
def test_places(tmp_path, write, place):
    """The folder in which the names lead to files, whichever others there are."""
    for other in PLACES:
        (tmp_path / other).mkdir(parents=True, exist_ok=True)
    pictures(tmp_path / place)
    path = write(tmp_path, list(FILES))
    (section,) = look(str(path)).splits.values()
    check(load_split(config.Data(train=section, validation=section), "train"))
    assert guess_folder(path, FILES)[0] == tmp_path / place


def test_what_was_tried_is_listed(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(RetinaError, match=rf"its images are not in {tmp_path}, {tmp_path}/images \(sought: 'x.png'\)"):
        look(str(coco(tmp_path, ["x.png"])))
    section = config.CsvSource(annotations=plain_csv(tmp_path, ["x.png"]))
    with pytest.raises(RetinaError, match=rf"x\.png: no such image .*looked into {tmp_path}, {tmp_path}/images"):
        load_split(config.Data(train=section, validation=section), "train")


def test_no_form_leads_out_of_the_folder_or_to_the_image_of_another_name(tmp_path):
    folder, home = tmp_path / "set/images", tmp_path / "set"
    pictures(folder)
    address = "file:" + "///../secret"
    for name in ("../secret", "..\\secret", "/etc/../secret", "a/../../secret", "%2e%2e/secret", address):
        for path in readings(name, folder, home):
            assert (folder / path).resolve().is_relative_to(folder.resolve()), (name, path)
    # A relative folder says which image is meant: c.png of val is none of those of train.
    path = coco(home, ["val/c.png"])
    source = config.CocoSource(annotations=path, images=folder)
    with pytest.raises(RetinaError, match=r"val/c\.png: no such image"):
        load_split(config.Data(train=source, validation=source), "train")
    path = coco(home, ["/x/cam1/c.png", "/x/cam2/c.png"])
    source = config.CocoSource(annotations=path, images=folder)
    with pytest.raises(RetinaError, match=r"'/x/cam2/c\.png' and '/x/cam1/c\.png' both lead to c\.png"):
        load_split(config.Data(train=source, validation=source), "train")
