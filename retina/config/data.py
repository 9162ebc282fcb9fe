"""The section `data`: where images and boxes come from, and how an image becomes a canvas."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal, Union

from pydantic import Field, field_validator, model_validator

from retina.config.augmentation import Augment
from retina.config.selection import Relabel, Select, share_conflict
from retina.config.values import (
    Float,
    Int,
    NonNegativeInt,
    PositiveInt,
    Section,
)

MAX_PIXELS = 178_956_970
"""What TensorFlow decodes (2^29 bytes of RGB) and Pillow opens at most."""


class CocoSource(Section):
    """A COCO JSON file and the folder that holds its images."""

    format: Literal["coco"] = "coco"
    annotations: Path
    images: Path
    select: Select | None = None


class VocSource(Section):
    """Pascal VOC XML: `folder` holds `VOC2007`-like year folders, or `Annotations` itself.

    `splits` names files of `ImageSets/Main`: `2007/trainval` in a devkit with year folders, `train` in a bare one.
    """

    format: Literal["voc"] = "voc"
    folder: Path = Path(".")
    splits: tuple[str, ...] = Field(min_length=1)
    select: Select | None = None


class YoloSource(Section):
    """YOLO text labels, `class cx cy w h` in fractions of the image's sides: by a `data.yaml`, or as folders.

    With `data`, an Ultralytics data.yaml, `split` is its key: `train`, `val` or `test`. Without, `images` is the folder
    of images and `labels` that of text files (default: as Ultralytics finds them, `images` in the path replaced by
    `labels`, or beside the images); `names` is a file of class names, one a line (default: a `classes.txt` beside
    the labels or the folder above; else `data.classes` are the names in the order of their indices).
    """

    format: Literal["yolo"] = "yolo"
    data: Path | None = None
    split: str | None = None
    images: Path | None = None
    labels: Path | None = None
    names: Path | None = None
    select: Select | None = None

    @model_validator(mode="after")
    def _one_form(self) -> YoloSource:
        if (self.data is None) == (self.images is None):
            raise ValueError("give either data (a data.yaml) or images (a folder)")
        if self.data is not None:
            if self.split is None:
                raise ValueError("data needs split: train, val or test")
            if self.labels is not None or self.names is not None:
                raise ValueError("labels and names have no effect with data, which says both; leave them out")
        elif self.split is not None:
            raise ValueError("split has no effect without data; leave it out")
        return self


class CsvSource(Section):
    """A CSV file of boxes in pixels; see `retina.data.formats.csv` for its columns.

    `images` is the folder that the image column is relative to (default: the file's own); `classes` a CSV file of lines
    `class name,id` (default: the sorted names of `annotations`, or `data.classes`).
    """

    format: Literal["csv"] = "csv"
    annotations: Path
    images: Path | None = None
    classes: Path | None = None
    select: Select | None = None


class TfdsSource(Section):
    """A TensorFlow Datasets dataset prepared in `data_dir`; nothing is downloaded. See `retina.data.formats.tfds`.

    `name` is TFDS' (`coco/2017`, `voc/2007:5.0.0`), `split` too (`train`, `validation[:1000]`). Without `name`,
    `data_dir` is the dataset's own folder, as `retina convert` writes it.
    """

    format: Literal["tfds"] = "tfds"
    name: Annotated[str, Field(min_length=1)] | None = None
    split: str
    data_dir: Path = Path("~/tensorflow_datasets")
    select: Select | None = None

    @field_validator("data_dir")
    @classmethod
    def _home(cls, folder: Path) -> Path:
        return folder.expanduser()


# The share of the image's side that the widest digit, turned and stretched, still fits into.
DigitHeight = Annotated[Float, Field(gt=0, le=0.6)]


class DigitsSource(Section):
    """The built-in digits: generated in memory, no files. The handwriting in `train` and `validation` is disjoint.

    An image has at most `most` digits, of a height in the range `height` relative to the image's side. The classes are
    "0" to "9", or with `single_class` just "digit".
    """

    format: Literal["digits"] = "digits"
    split: Literal["train", "validation", "test"] = "train"
    images: PositiveInt = 1000
    size: Annotated[Int, Field(ge=64)] = 128
    most: PositiveInt = 6
    height: tuple[DigitHeight, DigitHeight] = (22 / 128, 64 / 128)
    single_class: bool = False
    seed: NonNegativeInt = 0
    select: Select | None = None

    @model_validator(mode="after")
    def _legible(self) -> DigitsSource:
        low, high = self.height
        if high < low or low * self.size < 8:
            raise ValueError(
                f"height must be (low, high) with low <= high and low * size at least 8 pixels, got {self.height} "
                f"at size {self.size}"
            )
        return self


Source = Annotated[
    Union[CocoSource, VocSource, YoloSource, CsvSource, TfdsSource, DigitsSource], Field(discriminator="format")
]


class Resize(Section):
    """Aspect-preserving resize: the short side becomes `short`, unless the long side would then exceed `long`.

    Each side of the padded canvas is a multiple of `multiple`; `max_canvases` bounds the number of canvas shapes.

    With `train_short` training is multi-scale: for each batch one of these short sides is drawn, evenly, in the place
    of `short`, which evaluation keeps. Each has its own canvases, and each canvas its own compiled step.
    """

    short: PositiveInt = 800
    train_short: tuple[PositiveInt, ...] = ()
    long: PositiveInt = 1333
    multiple: PositiveInt = 128
    max_canvases: PositiveInt = 4

    @model_validator(mode="after")
    def _ordered(self) -> Resize:
        if self.long < self.short:
            raise ValueError(f"long ({self.long}) must be at least short ({self.short})")
        if list(self.train_short) != sorted(set(self.train_short)):
            raise ValueError(f"train_short must increase, got {list(self.train_short)}")
        if self.train_short and self.long < self.train_short[-1]:
            raise ValueError(f"long ({self.long}) must be at least the largest train_short ({self.train_short[-1]})")
        if self.train_short == (self.short,):
            raise ValueError(f"train_short [{self.short}] has no effect beside the same short; remove it")
        return self


class Data(Section):
    """Where the data is and how an image becomes a canvas. Relative paths of the sources are taken from `root`.

    Two settings are about the speed of training and touch nothing else. With `decode: auto` a JPEG is decoded at 1/2,
    1/4 or 1/8 of its size where it is still no smaller than it is shown, and, where of `augment` nothing but the flips
    and `scale` is on, simplejpeg and OpenCV read the images (`retina.data.fused`): pixels within one level of
    TensorFlow's, which reads them otherwise, and with `decode: full` always. `cache: memory` decodes every image once,
    before the first step, and keeps the pixels; batches are the same. It is refused where they don't fit.

    An image that can't be decoded, is not of the size that its annotation declares or has more than `max_pixels`
    pixels (told by its header, before it is decoded) ends the command. With `invalid_images: skip` every image of a
    split is decoded once before it is used, those that can't be used are left out, of the ground truth too, and the
    log says how many and which: as deterministic as the files. A file damaged inside (a stretch of zero bytes in a
    JPEG, say) often decodes without complaint, in TensorFlow as in Pillow, to a picture that is partly wrong: no such
    check finds it.
    """

    root: Path = Path(".")
    train: Source
    validation: Source
    test: Source | None = None
    classes: tuple[str, ...] | None = None
    relabel: Relabel | None = None
    invalid_boxes: Literal["error", "clip", "drop"] = "error"
    invalid_images: Literal["error", "skip"] = "error"
    max_pixels: Annotated[PositiveInt, Field(le=MAX_PIXELS)] = MAX_PIXELS
    difficult: Literal["ignore", "use", "drop"] = "ignore"
    decode: Literal["auto", "full"] = "auto"
    cache: Literal["none", "memory"] = "none"
    resize: Resize = Resize()
    augment: Augment = Augment()

    @field_validator("root")
    @classmethod
    def _home(cls, root: Path) -> Path:
        return root.expanduser()

    @field_validator("classes")
    @classmethod
    def _distinct(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names is not None and (len(set(names)) != len(names) or not names):
            raise ValueError("classes must be a non-empty list of distinct names")
        return names

    @model_validator(mode="after")
    def _shares_apart(self) -> Data:
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        for (name, one), (other, two) in combinations(splits.items(), 2):
            if one is None or two is None or one.select is None or two.select is None:
                continue
            if one.model_copy(update={"select": two.select}) == two:
                conflict = share_conflict(one.select, two.select)
                if conflict is not None:
                    raise ValueError(f"{name} and {other} are parts of one source, but {conflict}")
        return self
