"""The layouts of folders that people have, each as a small example of the same six pictures: `WRITERS` makes them.

Names, keys and places are those of the tools that write them; a picture is recognised by its colour.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

CLASSES = ("cat", "dog")
SPLITS = {"train": range(3), "val": range(3, 5), "test": range(5, 6)}


class Picture(NamedTuple):
    """`size` is (width, height); `boxes` of a class and x1, y1, x2, y2 in whole pixels."""

    name: str
    size: tuple[int, int]
    boxes: tuple[tuple[str, int, int, int, int], ...]


PICTURES = (
    Picture("a 1.png", (40, 30), (("dog", 4, 5, 24, 25), ("cat", 0, 0, 10, 30))),
    Picture("b.png", (32, 48), (("cat", 8, 12, 16, 36),)),
    Picture("c.png", (40, 40), ()),
    Picture("d.png", (30, 40), (("dog", 3, 4, 27, 24), ("cat", 6, 8, 15, 20))),
    Picture("e.png", (64, 32), (("dog", 16, 8, 48, 24),)),
    Picture("f.png", (50, 50), (("cat", 5, 10, 45, 40), ("dog", 0, 0, 25, 25))),
)
EVERY = range(len(PICTURES))


def number(image: str) -> int:
    """Which picture a file is."""
    with Image.open(image) as opened:
        return opened.getpixel((0, 0))[0] // 40


def draw(folder: Path, numbers: range = EVERY, called: Callable[[str], str] = str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for which in numbers:
        Image.new("RGB", PICTURES[which].size, (40 * which, 90, 90)).save(folder / called(PICTURES[which].name))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def roboflow(name: str) -> str:
    """The name of an export: `a_1_png.rf.<hash>.png`."""
    return f"{name.replace(' ', '_').replace('.', '_')}.rf.0123456789abcdef0123456789abcdef.png"


def uploaded(name: str) -> str:
    """The name of a file that was uploaded to Label Studio."""
    return f"0a1b2c3d-{name.replace(' ', '_')}"


# ------------------------------------------------------------------------------------------------- files of annotations


def xml(picture: Picture, file: str) -> str:
    width, height = picture.size
    objects = "".join(
        f"<object><name>{name}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult><bndbox>"
        f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, x1, y1, x2, y2 in picture.boxes
    )
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation>\n<filename>{file}</filename>{size}{objects}</annotation>"


def xmls(folder: Path, numbers: Iterable[int] = EVERY, called: Callable[[str], str] = str) -> None:
    for which in numbers:
        file = called(PICTURES[which].name)
        write(folder / f"{Path(file).stem}.xml", xml(PICTURES[which], file))


def coco(
    file: Path,
    numbers: range = EVERY,
    called: Callable[[str], str] = str,
    categories: tuple[dict, ...] = ({"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}),
) -> None:
    ids = {entry["name"]: entry["id"] for entry in categories}
    sizes = {which: dict(zip(("width", "height"), PICTURES[which].size, strict=True)) for which in numbers}
    images = [{"id": n, "file_name": called(PICTURES[which].name), **sizes[which]} for n, which in enumerate(numbers)]
    boxes = [(n, box) for n, which in enumerate(numbers) for box in PICTURES[which].boxes]
    annotations = [
        {"id": i, "image_id": n, "category_id": ids[name], "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0}
        for i, (n, (name, x1, y1, x2, y2)) in enumerate(boxes)
    ]
    write(file, json.dumps({"images": images, "categories": categories, "annotations": annotations}, indent=1))


def yolo(folder: Path, numbers: range = EVERY, called: Callable[[str], str] = str) -> None:
    """Empty pictures have no file, as some tools leave them."""
    for which in numbers:
        width, height = PICTURES[which].size
        lines = [
            f"{CLASSES.index(name)} {(x1 + x2) / 2 / width:.9f} {(y1 + y2) / 2 / height:.9f} {(x2 - x1) / width:.9f} "
            f"{(y2 - y1) / height:.9f}\n"
            for name, x1, y1, x2, y2 in PICTURES[which].boxes
        ]
        folder.mkdir(parents=True, exist_ok=True)
        if lines:
            write(folder / f"{Path(called(PICTURES[which].name)).stem}.txt", "".join(lines))


def labelme(folder: Path, numbers: Iterable[int] = EVERY, images: str = "") -> None:
    """Dogs are polygons, cats rectangles by two corners in any order."""
    for which in numbers:
        name, (width, height), boxes = PICTURES[which]
        shapes = []
        for label, x1, y1, x2, y2 in boxes:
            points = [[x2, y2], [x1, y1]] if label == "cat" else [[x1, y1], [x2, y1], [x2 - 1, y2], [x1 + 1, y2 - 1]]
            kind = "rectangle" if label == "cat" else "polygon"
            shapes.append({"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}})
        tree = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": images + name, "imageData": "aGVsbG8="}
        sides = {"imageHeight": height, "imageWidth": width}
        write(folder / f"{Path(name).stem}.json", json.dumps(tree | sides, indent=2))


# ------------------------------------------------------------------------------------------------------------- layouts


def labelimg(root: Path) -> None:
    draw(root)
    xmls(root)


def labelimg_in_subfolders(root: Path) -> None:
    for home, numbers in (("monday", range(2)), ("tuesday", range(2, 6))):
        draw(root / home, numbers)
        xmls(root / home, numbers)


def voc_without_lists(root: Path, images: str = "JPEGImages", annotations: str = "Annotations") -> None:
    draw(root / images)
    xmls(root / annotations)


def kaggle_voc(root: Path) -> None:
    voc_without_lists(root, "images", "annotations")


def annotations_below_the_images(root: Path) -> None:
    voc_without_lists(root, ".", "Annotations")


def cvat_voc(root: Path) -> None:
    voc_without_lists(root)
    write(root / "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:::\ncat:::\ndog:::\n")
    write(root / "ImageSets/Main/default.txt", "".join(f"{Path(picture.name).stem}\n" for picture in PICTURES))
    for name in CLASSES:
        flags = (f"{Path(picture.name).stem}  -1\n" for picture in PICTURES)
        write(root / f"ImageSets/Main/{name}_default.txt", "".join(flags))


def roboflow_voc(root: Path) -> None:
    write(root / "README.roboflow.txt", "exported\n")
    for split, numbers in SPLITS.items():
        home = root / split.replace("val", "valid")
        draw(home, numbers, roboflow)
        xmls(home, numbers, roboflow)


def roboflow_coco(root: Path) -> None:
    """Category 0 has the name of one of the classes, as it has where a project is called like its class."""
    for split, numbers in SPLITS.items():
        home = root / split.replace("val", "valid")
        draw(home, numbers, roboflow)
        first = {"id": 0, "name": "pets", "supercategory": "none"}
        others = ({"id": n, "name": name, "supercategory": "pets"} for n, name in enumerate(CLASSES, start=1))
        coco(home / "_annotations.coco.json", numbers, roboflow, (first, *others))


def roboflow_yolo(root: Path) -> None:
    lines = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\nnames: ['cat', 'dog']\n"
    write(root / "data.yaml", f"{lines}\nroboflow:\n  workspace: w\n  version: 1\n")
    for split, numbers in SPLITS.items():
        home = root / split.replace("val", "valid")
        draw(home / "images", numbers, roboflow)
        yolo(home / "labels", numbers, roboflow)


def roboflow_csv(root: Path) -> None:
    """TensorFlow's; a picture without boxes has no line."""
    for split, numbers in SPLITS.items():
        home = root / split.replace("val", "valid")
        draw(home, numbers, roboflow)
        lines = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
        for name, (width, height), boxes in (PICTURES[which] for which in numbers):
            lines += [f"{roboflow(name)},{width},{height},{','.join(map(str, box))}" for box in boxes]
        write(home / "_annotations.csv", "\n".join(lines) + "\n")


def ultralytics(root: Path) -> None:
    for split, numbers in SPLITS.items():
        draw(root / "images" / split, numbers)
        yolo(root / "labels" / split, numbers)
    splits = "".join(f"{split}: images/{split}\n" for split in SPLITS)
    write(root / "pets.yaml", f"path: ../datasets/pets\n{splits}names:\n  0: cat\n  1: dog\n")


def yolo_in_split_folders(root: Path) -> None:
    write(root / "classes.txt", "cat\ndog\n")
    for split, numbers in SPLITS.items():
        draw(root / split / "images", numbers)
        yolo(root / split / "labels", numbers)


def labelimg_yolo(root: Path) -> None:
    draw(root)
    yolo(root)
    write(root / "classes.txt", "cat\ndog\n")


def roboflow_darknet(root: Path) -> None:
    for split, numbers in SPLITS.items():
        home = root / split.replace("val", "valid")
        draw(home, numbers, roboflow)
        yolo(home, numbers, roboflow)
        write(home / "_darknet.labels", "cat\ndog\n")


def coco_beside(root: Path) -> None:
    draw(root)
    coco(root / "labels_pets_2024.json")


def coco_above(root: Path) -> None:
    draw(root / "photographs")
    coco(root / "annotations.json")


def coco_per_split(root: Path) -> None:
    for split, numbers in SPLITS.items():
        draw(root / f"{split}2017", numbers)
        coco(root / f"annotations/instances_{split}2017.json", numbers)
    write(root / "annotations/captions_val2017.json", '{"images": [], "annotations": []}')


def cvat_coco(root: Path) -> None:
    draw(root / "images/default")
    categories = tuple({"id": n, "name": name, "supercategory": ""} for n, name in enumerate(CLASSES, start=1))
    coco(root / "annotations/instances_default.json", categories=categories)


def label_studio_coco(root: Path) -> None:
    """Ids from 0, all of them classes."""
    draw(root / "images", called=uploaded)
    categories = tuple({"id": n, "name": name} for n, name in enumerate(CLASSES))
    coco(root / "result.json", called=lambda name: f"images\\{uploaded(name)}", categories=categories)


def label_studio_yolo(root: Path) -> None:
    draw(root / "images", called=uploaded)
    yolo(root / "labels", called=uploaded)
    write(root / "classes.txt", "cat\ndog\n")
    notes = {"categories": [{"id": n, "name": name} for n, name in enumerate(CLASSES)], "info": {"year": 2026}}
    write(root / "notes.json", json.dumps(notes))


def label_studio_yolo_without_images(root: Path) -> None:
    """The labels of an export, and the photographs as they were before they were uploaded."""
    label_studio_yolo(root)
    for file in (root / "images").iterdir():
        file.unlink()
    draw(root / "images")
    for file in (root / "labels").iterdir():
        file.rename(file.with_name(file.name.replace("a_1", "a%201")))


def labelme_beside(root: Path) -> None:
    draw(root)
    labelme(root)


def labelme_in_annotations(root: Path) -> None:
    draw(root / "images")
    labelme(root / "annotations", images="..\\images\\")


def labelme_in_split_folders(root: Path) -> None:
    for split, numbers in SPLITS.items():
        draw(root / split, numbers)
        labelme(root / split, numbers)


def cvat_yolo(root: Path) -> None:
    """CVAT's "YOLO 1.1", which is darknet's."""
    write(root / "obj.names", "cat\ndog\n")
    lists = "train = data/train.txt\nvalid = data/valid.txt\n"
    write(root / "obj.data", f"classes = 2\n{lists}names = data/obj.names\nbackup = backup/\n")
    for split, numbers in {"train": range(3), "valid": range(3, 6)}.items():
        draw(root / f"obj_{split}_data", numbers)
        yolo(root / f"obj_{split}_data", numbers)
        lines = (f"data/obj_{split}_data/{PICTURES[which].name}\n" for which in numbers)
        write(root / f"{split}.txt", "".join(lines))


def darknet_lists(root: Path) -> None:
    write(root / "voc.names", "cat\ndog\n")
    for split, numbers in SPLITS.items():
        draw(root / "images", numbers)
        yolo(root / "labels", numbers)
        write(root / f"{split}.txt", "".join(f"/srv/pets/images/{PICTURES[which].name}\n" for which in numbers))


def keras_retinanet(root: Path) -> None:
    """Two files of boxes without header, an empty picture's line with empty fields, and the mapping of classes."""
    draw(root / "images")
    for file, numbers in (("train.csv", range(4)), ("val.csv", range(4, 6))):
        lines = []
        for name, _, boxes in (PICTURES[which] for which in numbers):
            lines += [f"images/{name},{x1},{y1},{x2},{y2},{label}\n" for label, x1, y1, x2, y2 in boxes]
            lines += [] if boxes else [f"images/{name},,,,,\n"]
        write(root / file, "".join(lines))
    write(root / "classes.csv", "cat,0\ndog,1\n")


WRITERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "LabelImg": ("voc", labelimg),
    "LabelImg in subfolders": ("voc", labelimg_in_subfolders),
    "VOC without lists": ("voc", voc_without_lists),
    "annotations and images": ("voc", kaggle_voc),
    "Annotations below the images": ("voc", annotations_below_the_images),
    "CVAT's VOC": ("voc", cvat_voc),
    "Roboflow's VOC": ("voc", roboflow_voc),
    "Roboflow's COCO": ("coco", roboflow_coco),
    "Roboflow's YOLO": ("yolo", roboflow_yolo),
    "Roboflow's CSV": ("csv", roboflow_csv),
    "Ultralytics": ("yolo", ultralytics),
    "YOLO in split folders": ("yolo", yolo_in_split_folders),
    "Roboflow's darknet": ("yolo", roboflow_darknet),
    "LabelImg's YOLO": ("yolo", labelimg_yolo),
    "COCO beside its images": ("coco", coco_beside),
    "COCO above its images": ("coco", coco_above),
    "COCO's own": ("coco", coco_per_split),
    "CVAT's COCO": ("coco", cvat_coco),
    "Label Studio's COCO": ("coco", label_studio_coco),
    "Label Studio's YOLO": ("yolo", label_studio_yolo),
    "Label Studio's YOLO without images": ("yolo", label_studio_yolo_without_images),
    "labelme": ("labelme", labelme_beside),
    "labelme in annotations": ("labelme", labelme_in_annotations),
    "labelme in split folders": ("labelme", labelme_in_split_folders),
    "CVAT's YOLO": ("yolo", cvat_yolo),
    "darknet's lists": ("yolo", darknet_lists),
    "keras-retinanet": ("csv", keras_retinanet),
}
"""The format and the writer of each layout."""

PARTED = {
    *("Roboflow's VOC", "Roboflow's COCO", "Roboflow's YOLO", "Roboflow's CSV", "Ultralytics"),
    *("Roboflow's darknet", "YOLO in split folders", "labelme in split folders", "darknet's lists"),
}
"""The layouts whose splits are those of `SPLITS`."""
