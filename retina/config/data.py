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
    Fraction,
    Int,
    NonNegativeInt,
    PositiveInt,
    Section,
)

MAX_PIXELS = 178_956_970
"""Pixels of the largest image that TensorFlow decodes (2^29 bytes of RGB) and Pillow opens."""


class CocoSource(Section):
    """A COCO JSON file and the folder that holds its images."""

    format: Literal["coco"] = "coco"
    """COCO's JSON; boxes are `[x, y, width, height]` in pixels."""

    annotations: Path
    """The JSON file, from `data.root`."""

    images: Path
    """The folder that the file's `file_name` entries are relative to, from `data.root`."""

    supercategory: Literal["drop"] | None = None
    """Treatment of the category 0 that Roboflow adds, which has no box and is the supercategory of all others: `drop`
    leaves it out. Null, the default, makes it a class like any other, as COCO does. Commands that are given a folder or
    file in place of a configuration take `drop` where there is such a category."""

    select: Select | None = None
    """Part of the images to take; null takes all."""


class VocSource(Section):
    """Pascal VOC XML."""

    format: Literal["voc"] = "voc"
    """Pascal VOC's XML, a file for each image."""

    folder: Path = Path(".")
    """Folder of `Annotations`, `ImageSets` and `JPEGImages`, or of year folders such as `VOC2007` that hold them; or of
    images with their annotations beside them, or in `annotations` and `images`; from `data.root`, which it is by
    default."""

    splits: tuple[str, ...] = Field(min_length=1)
    """Files of `ImageSets/Main`, read in this order: `2007/trainval` in a devkit with year folders, `train` in a bare
    one. Where there are none: folders in `folder` that hold a split each, as Roboflow writes them. `.` are all images
    of `folder` that have an annotation."""

    select: Select | None = None
    """Part of the images to take; null takes all."""


class YoloSource(Section):
    """YOLO text labels, `class cx cy w h` in fractions of the image's sides: by a `data.yaml`, or as folders."""

    format: Literal["yolo"] = "yolo"
    """YOLO's text files, one for each image."""

    data: Path | None = None
    """An Ultralytics `data.yaml`, or darknet's `obj.data`, or its `obj.names` beside lists such as `train.txt`; from
    `data.root`. Give it with `split`, or give `images` instead."""

    split: str | None = None
    """Key of `data`: `train`, `val` or `test`."""

    images: Path | None = None
    """Folder of images, searched with its subfolders; from `data.root`."""

    labels: Path | None = None
    """Folder of the text files of `images`, from `data.root`. Null looks where Ultralytics does: where the last
    `images` of the path is replaced by `labels`, or beside the images."""

    names: Path | None = None
    """File of class names for `images`, one a line, from `data.root`. Null takes a `classes.txt` beside the labels or
    in the folder above; without such a file `data.classes` are the names, in the order of their indices."""

    select: Select | None = None
    """Part of the images to take; null takes all."""

    @model_validator(mode="after")
    def _either_form(self) -> YoloSource:
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
    """A CSV file of boxes in pixels: `image,x1,y1,x2,y2,label` with a header, in any order, or without one in this; or
    `filename,width,height,class,xmin,ymin,xmax,ymax`, TensorFlow's."""

    format: Literal["csv"] = "csv"
    """Boxes in one CSV file; `width,height`, `crowd,difficult` and `area` are further columns that it may have."""

    annotations: Path
    """The CSV file, from `data.root`."""

    images: Path | None = None
    """The folder that the column `image` is relative to, from `data.root`; null takes the file's own folder or one
    beside it that has most of the images: `images`, one called like the file, or one called so in `images`."""

    classes: Path | None = None
    """A CSV file of lines `class name,id`, from `data.root`, whose ids give the order. Null takes `data.classes`, or
    else the sorted names that occur in `annotations`."""

    select: Select | None = None
    """Part of the images to take; null takes all."""


class LabelmeSource(Section):
    """JSON files of labelme: rectangles, and the bounding boxes of other shapes."""

    format: Literal["labelme"] = "labelme"
    """JSON files of labelme, one for each image."""

    folder: Path = Path(".")
    """Folder of the JSON files, or of `annotations` or `labels` that hold them; from `data.root`, which it is by
    default."""

    splits: tuple[str, ...] = Field(default=(".",), min_length=1)
    """Folders in `folder` that hold a split each, read in this order; `.`, the default, is `folder` itself."""

    images: Path | None = None
    """The folder of images, from `data.root`; null takes the files' own folder or one beside it that has most of the
    images that they name."""

    select: Select | None = None
    """Part of the images to take; null takes all."""


class TfdsSource(Section):
    """A TensorFlow Datasets dataset that is already prepared; nothing is downloaded."""

    format: Literal["tfds"] = "tfds"
    """TensorFlow Datasets' shards (TFRecord or ArrayRecord)."""

    name: Annotated[str, Field(min_length=1)] | None = None
    """TFDS' name of the dataset, such as `coco/2017` or `voc/2007:5.0.0`. Null takes `data_dir` itself for the
    dataset's folder, as `retina convert` writes it."""

    split: str
    """TFDS' name of the split, with its slicing: `train`, `validation[:1000]`."""

    data_dir: Path = Path("~/tensorflow_datasets")
    """Folder of prepared datasets, from `data.root` unless absolute; `~` is the home folder. The default is TFDS'."""

    select: Select | None = None
    """Part of the images to take; null takes all."""

    @field_validator("data_dir")
    @classmethod
    def _home(cls, folder: Path) -> Path:
        return folder.expanduser()


# The share of the image's side that the widest digit, turned and stretched, still fits into.
DigitHeight = Annotated[Float, Field(gt=0, le=0.6)]


class DigitsSource(Section):
    """The built-in digits: handwriting on cluttered backgrounds, generated in memory, no files."""

    format: Literal["digits"] = "digits"
    """Images made when they are asked for; the handwriting is scikit-learn's."""

    split: Literal["train", "validation", "test"] = "train"
    """Part of the handwriting to take; no sample of one is in another."""

    images: PositiveInt = 1000
    """Number of images. A longer set begins with the shorter one."""

    size: Annotated[Int, Field(ge=64)] = 128
    """Side of the square images in pixels."""

    most: PositiveInt = 6
    """Most digits in an image; it may have none."""

    height: tuple[DigitHeight, DigitHeight] = (22 / 128, 64 / 128)
    """Range of the digits' heights as shares of the image's side; the lower end must be at least 8 pixels. The default
    is 22 to 64 pixels of 128."""

    single_class: bool = False
    """Whether all are of one class, `digit`, in the place of ten, `0` to `9`."""

    seed: NonNegativeInt = 0
    """Seed of the images. Image i depends on it, on i and on the other settings but `images`."""

    select: Select | None = None
    """Part of the images to take; null takes all."""

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
    Union[CocoSource, VocSource, YoloSource, CsvSource, LabelmeSource, TfdsSource, DigitsSource],
    Field(discriminator="format"),
]


class Depth(Section):
    """Levels of images of more than 8 bits (PNG, TIFF) that become black and white; 8-bit images stay as they are."""

    low: Float = 0.0
    """Level that becomes 0, in the file's own values, as everything below it."""

    high: Float
    """Level that becomes 255, as everything above it: 4095 for 12 bits in files of 16."""

    @model_validator(mode="after")
    def _ordered(self) -> Depth:
        if self.high <= self.low:
            raise ValueError(f"high ({self.high:g}) must be above low ({self.low:g})")
        return self


class Tiles(Section):
    """Windows of one size that images are cut into, evenly spread, as `retina predict --tile SIZE --overlap SHARE`
    cuts them."""

    size: Annotated[Int, Field(ge=32)]
    """Side of a tile in pixels of the image; along a side of the image that is shorter, it is as long as that. About
    the size of the training images is usual."""

    overlap: Annotated[Float, Field(ge=0, le=0.9)] = 0.2
    """Share of a tile's side that neighbours have in common, at least: an object is whole in some tile if its sides are
    at most so much of `size`."""


class TrainingTiles(Tiles):
    """Tiles that training images are cut into, each an image of its own; those without boxes are background.

    A tile is read from the whole image, which is decoded for it: where memory allows, `data.cache: memory` decodes each
    only once. Splits to be evaluated stay whole; `evaluation.tiles` detects in them by tiles.
    """

    min_visible: Fraction = 0.7
    """Share of a box's area that a tile must show for the box to be an object there, cut to the tile. What is left of
    the others is neither object nor background, like a crowd. The default is that of DOTA's development kit
    (arXiv:1711.10398), which marks them as difficult."""


class RepeatSampling(Section):
    """Images of rare classes shown several times an epoch (repeat factor sampling, arXiv:1908.03195, appendix B).

    A class that is in the share f of the training images has the factor max(1, √(threshold / f)), an image the largest
    factor of its classes. It is shown that often in the mean over epochs: in each as often as the factor's whole part
    or once more, as the run's seed and the epoch draw it. Mosaics and mixups take their further images evenly.
    """

    kind: Literal["repeat"] = "repeat"
    """Repeat factor sampling."""

    threshold: Annotated[Float, Field(gt=0, le=1)]
    """Share of the training images below which a class is rare: images of a class in a quarter of that share are shown
    twice as often. The paper takes 0.001 for the 1,200 classes of LVIS; with few classes it must be far larger. Crowds
    and difficult boxes don't count."""


class Resize(Section):
    """Aspect-preserving resize of an image onto a canvas, which is padded at the bottom and on the right.

    The short side becomes `short`, unless the long side would then exceed `long`. Images of like aspect share a canvas,
    so that shapes stay static.
    """

    short: PositiveInt = 800
    """Short side of the image in pixels. 800 is that of the best models of arXiv:1708.02002 (tables 1e and 2)."""

    train_short: tuple[PositiveInt, ...] = ()
    """Short sides in pixels for multi-scale training, increasing: for each batch one of them is drawn, evenly, in the
    place of `short`, which evaluation keeps. Each has its own canvases, and each canvas its own compiled step. Empty,
    the default, trains at `short` alone."""

    long: PositiveInt = 1333
    """Bound on the long side in pixels, at least `short`. 1333 is that of the paper's code (Detectron)."""

    rounding: Literal["nearest", "floor"] = "nearest"
    """Rounding of a resized side to whole pixels: to the `nearest` one, halves up, or down (`floor`), as torchvision
    does: 640 x 480 becomes 1067 x 800 or 1066 x 800. Imported weights bring theirs."""

    antialias: bool = False
    """Whether what is made smaller is smoothed first, by a triangle as wide as a shown pixel: Pillow's bilinear filter,
    as detectron2 resizes. Training resizes by Pillow itself; evaluation, prediction and SavedModels by TensorFlow,
    within one level of it. Slower than without; exports to ONNX and LiteRT don't have it."""

    multiple: PositiveInt = 128
    """Number of pixels of which each side of the canvas is a multiple; itself a multiple of 32, the stride of the
    backbone's last map. 128 is the stride of P7, so that no level is rounded up."""

    max_canvases: PositiveInt = 4
    """Most canvas shapes; the two whose union pads least are merged until they are as few. Fewer pad more, more take
    longer to compile: a step is compiled for each."""

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
    """Sources of images and boxes, and the way from an image to a canvas."""

    root: Path = Path(".")
    """Folder that relative paths of the sources are taken from; relative itself to the folder that the command runs in.
    `~` is the home folder."""

    train: Source
    """Split to train on."""

    validation: Source | None
    """Split that evaluations during training measure, and that selects the best checkpoint. It must be written down:
    null, where there is none, trains without any evaluation, and the newest checkpoint counts as the best."""

    test: Source | None = None
    """Split for a last measurement (`retina evaluate --split test`); training never reads it."""

    classes: tuple[str, ...] | None = None
    """Class names in the order of their labels, all different. They must be those of the files, after `relabel`; of
    voc, csv and labelme, whose files tell only the classes that occur, there may be more. Null takes the files' order:
    COCO's by category id, YOLO's by index, VOC's, CSV's and labelme's by name."""

    relabel: Relabel | None = None
    """Classes to rename, merge or leave out, alike in every split; null takes the files' classes."""

    invalid_boxes: Literal["error", "clip", "drop"] = "error"
    """Treatment of a box that is not finite, has no positive width and height or reaches more than 1 pixel outside its
    image: `error` ends the command and names it, `drop` leaves it out, `clip` cuts it to the image and leaves it out
    only if nothing remains. Up to 1 pixel is always cut off. Evaluations score against the files' own boxes."""

    invalid_images: Literal["error", "skip"] = "error"
    """Treatment of an image that can't be decoded, is not of the size that its annotation declares or has more than
    `max_pixels`: `error` ends the command, when training comes to it. With `skip` every image of a split is decoded
    once before it is used, those that can't be used are left out, of the ground truth too, and the log says how many
    and which: as deterministic as the files. A file damaged inside (a stretch of zero bytes in a JPEG, say) often
    decodes without complaint, in TensorFlow as in Pillow, to a picture that is partly wrong: no such check finds it."""

    max_pixels: Annotated[PositiveInt, Field(le=MAX_PIXELS)] = MAX_PIXELS
    """Most pixels of an image, told by its header before it is decoded. The default is what TensorFlow decodes (2^29
    bytes of RGB) and Pillow opens at most."""

    orientation: Literal["auto", "stored", "upright"] = "auto"
    """Pixels that the boxes belong to where EXIF says that a photograph has to be turned: those that are `stored`, or
    those of the `upright` picture, which is what most tools show to who draws boxes. With `upright` images are turned
    when they are read, everywhere alike: training, evaluation, prediction and exports. `auto` takes what the declared
    sizes tell, and refuses where they don't (YOLO and CSV without sizes, half turns, squares); a run keeps what was
    taken. Predictions of a run whose data had no rotated image are in `stored` pixels."""

    depth: Depth | None = None
    """Levels between which images of more than 8 bits are scaled; outside them they are cut off. Null takes the upper 8
    of 16 bits, so that 12 bits in files of 16 are nearly black; images of floats or of more bits are refused without.
    `retina doctor` says which levels occur."""

    difficult: Literal["ignore", "use", "drop"] = "ignore"
    """Treatment of boxes flagged as difficult (voc, csv, tfds): `ignore` makes them neither object nor background,
    like a crowd, `use` takes them like any other, `drop` leaves them out."""

    crowd: Literal["ignore", "drop"] = "ignore"
    """Treatment of crowd boxes (coco, csv, tfds): `ignore` makes them neither object nor background
    (`assignment.crowd_overlap`); `drop` leaves them out, so that what lies in them trains as background, as in
    detectron2 and torchvision's references. Evaluations score against the files' own boxes, crowds included."""

    decode: Literal["auto", "full"] = "auto"
    """Decoding of training images; it is about speed alone. With `auto` a JPEG is decoded at 1/2, 1/4 or 1/8 of its
    size where that is still no smaller than it is shown, and OpenCV resizes: pixels within one level of evaluation's
    where nothing is reduced. With `full` images are decoded at full size and resized as for evaluation, bit for bit."""

    cache: Literal["none", "memory"] = "none"
    """Place where decoded images are kept; it is about speed alone. `memory` decodes every training image once, before
    the first step, and keeps the pixels; batches are the same. It is refused where they don't fit."""

    tiles: TrainingTiles | None = None
    """Tiles that training images are cut into, for photographs so large that `resize` would lose their objects, such as
    orthophotos and slides. Null, the default, trains on whole images. Give `evaluation.tiles` the same size."""

    resize: Resize = Resize()
    """Sizes of images and canvases, in pixels."""

    augment: Augment = Augment()
    """Random changes of training images."""

    sampling: RepeatSampling | None = None
    """Frequency of training images; null, the default, shows each once an epoch. `schedule.epochs` then counts epochs
    with the repeated images."""

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
        for (name, source), (other_name, other) in combinations(splits.items(), 2):
            if source is None or other is None or source.select is None or other.select is None:
                continue
            if source.model_copy(update={"select": other.select}) == other:
                conflict = share_conflict(source.select, other.select)
                if conflict is not None:
                    raise ValueError(f"{name} and {other_name} are parts of one source, but {conflict}")
        return self
