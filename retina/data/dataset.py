"""The one table that every source returns and everything else takes, and the rules that make it trustworthy."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from retina.config.reading import override_line
from retina.data.headers import UPRIGHT
from retina.data.stored import Photograph, TableImage
from retina.errors import RetinaError
from retina.output import count

InvalidBoxes = Literal["error", "clip", "drop"]
Difficult = Literal["ignore", "use", "drop"]
Fate = Literal["is trained as background", "is left out"]
Orientation = Literal["", "stored", "upright", "both", "unknown"]
"""What the boxes of images with an EXIF rotation belong to: the pixels as stored, the upright pictures, of some the one
and of some the other, or it can't be told; "" if no image has a rotation, or nobody looked."""

# COCO's own boxes overshoot their image by rounding; this much is cut off without a word. The second term keeps sums of
# two-decimal numbers, such as 600.3 + 40.7, from counting as more than a whole pixel.
_OVERSHOOT = 1.0 + 1e-6
_SHOWN, _DETAILED = 3, 1000


class UnusedLabels(NamedTuple):
    """Label files that no image claims: the `files`, their `share` of all label files of the split, where the labels of
    its images were `sought` and with which `ending`, and the `fate` of an image without labels, as a verb."""

    files: tuple[str, ...]
    share: float
    sought: tuple[str, ...]
    ending: str
    fate: Fate


class Objects(NamedTuple):
    """The G objects of an image: `boxes` [G,4] xyxy pixels, `labels` [G], `crowd` [G], `difficult` [G], `areas` [G]."""

    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    areas: np.ndarray


@dataclass(frozen=True, eq=False)
class DetectionDataset:
    """N images with M boxes of K classes, as flat read-only arrays; `build` makes one from a source's columns.

    Rows `offsets[i]:offsets[i + 1]` of the per-object arrays belong to image i. Boxes are absolute-pixel xyxy inside
    their image; labels are 0..K-1 and `category_ids` holds the source's own ids. The arrays are copied in.

    Args:
        name: for messages: the annotation file or the split.
        class_names, category_ids: [K] names, and the source's own numbers.
        image_ids, images: [N] ids, and paths or readers of bytes.
        sizes: [N, 2] height and width in pixels.
        offsets: [N + 1] rows of the per-object arrays.
        boxes: [M, 4] xyxy pixels.
        labels, crowd, difficult, areas: [M] 0..K-1, flags, and areas in square pixels.
        notes: what reading had to say.
        unused, open_classes, depth: what the readers of formats know.
        orientations, orientation: [N] EXIF orientations, and what boxes belong to.

    Raises:
        RetinaError: the columns contradict each other, or a box is not inside its image.

    Example:

    >>> config = retina.load_config(overrides=["data.test.images=4"])
    >>> table = retina.load_split(config.data, "test")
    >>> len(table), len(table.subset([0, 2]))
    (4, 2)
    >>> table.rename({"0": "nil"}).class_names[0]
    'nil'
    >>> table.objects(0).boxes.shape[1], table.turns.tolist()
    (4, [1, 1, 1, 1])
    >>> table.photograph(0) == table.photographs[0]
    True
    >>> [len(part) for part in table.split(0.25, seed=0)]
    [1, 3]
    """

    name: str  # for messages: the annotation file or the split
    class_names: tuple[str, ...]  # K
    category_ids: tuple[int, ...]  # K
    image_ids: tuple[int | str, ...]  # N, the source's own
    images: tuple[TableImage, ...]  # N, a path to read later, an encoded image, or where in a larger file it lies
    sizes: np.ndarray  # [N,2] int32 (height, width)
    offsets: np.ndarray  # [N+1] int64
    boxes: np.ndarray  # [M,4] float64
    labels: np.ndarray  # [M] int32
    crowd: np.ndarray  # [M] bool
    difficult: np.ndarray  # [M] bool
    areas: np.ndarray  # [M] float64, pixels²: the source's own (COCO: of the mask) or the box's
    notes: tuple[str, ...] = ()  # what was dropped or cut, with counts
    unused: UnusedLabels | None = None
    open_classes: bool = False  # the files tell only the classes that occur
    orientations: np.ndarray | None = None  # [N] uint8, EXIF's: how each image is turned when it is read; None: not
    orientation: Orientation = ""  # what the boxes of images with an EXIF rotation belong to
    depth: tuple[float, float] | None = None  # `data.depth`

    def __post_init__(self) -> None:
        if self.orientations is None:
            object.__setattr__(self, "orientations", np.ones(len(self.image_ids)))
        for field in ("class_names", "category_ids", "image_ids", "images", "notes"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        for field, dtype, shape in _COLUMNS:
            column = np.array(getattr(self, field), dtype=dtype)
            if column.ndim != len(shape) or column.shape[1:] != shape[1:]:
                self._fail(f"{field} must have shape {shape}, got {column.shape}")
            column.setflags(write=False)
            object.__setattr__(self, field, column)
        self._check_lengths()
        self._check_values()

    def __len__(self) -> int:
        """The number of images."""
        return len(self.image_ids)

    def objects(self, index: int) -> Objects:
        """Return the G objects of an image: `boxes` [G, 4], `labels`, `crowd`, `difficult`, `areas` [G], as views.

        Args:
            index: a row of the table.

        Raises:
            IndexError: there is no such row.
        """
        if not 0 <= index < len(self):
            self._fail(f"image {index} asked for, it has {len(self)} (0 to {len(self) - 1})", IndexError)
        rows = slice(self.offsets[index], self.offsets[index + 1])
        return Objects(self.boxes[rows], self.labels[rows], self.crowd[rows], self.difficult[rows], self.areas[rows])

    def subset(self, indices: Sequence[int] | np.ndarray) -> DetectionDataset:
        """Return a new table of the images in `indices` (rows, in that order, each at most once).

        Args:
            indices: [n] rows, in the order of the new table, each at most once.

        Raises:
            RetinaError: an index is out of range, repeated or not whole.
        """
        chosen = np.asarray(indices)
        if chosen.size == 0:
            chosen = chosen.astype(np.int64)
        if chosen.ndim != 1 or chosen.dtype.kind not in "iu":
            self._fail(f"subset takes a list of whole image rows, got {chosen.dtype} of shape {chosen.shape}")
        outside = chosen[(chosen < 0) | (chosen >= len(self))]
        if outside.size:
            self._fail(f"subset: image {outside[0]} asked for, it has {len(self)} (0 to {len(self) - 1})")
        if np.unique(chosen).size != chosen.size:
            self._fail("subset: an image is asked for twice; give each row once")
        counts = np.diff(self.offsets)[chosen]
        offsets = _cumulative(counts)
        rows = np.repeat(self.offsets[chosen] - offsets[:-1], counts) + np.arange(offsets[-1])
        return replace(
            self,
            image_ids=tuple(self.image_ids[i] for i in chosen),
            images=tuple(self.images[i] for i in chosen),
            sizes=self.sizes[chosen],
            orientations=self.turns[chosen],
            offsets=offsets,
            **{field: getattr(self, field)[rows] for field in Objects._fields},
        )

    @property
    def turns(self) -> np.ndarray:
        """The EXIF orientation that reading each image carries out, [N] uint8: 1 where it stays as stored."""
        assert self.orientations is not None, "set when the table was made"
        return self.orientations

    @property
    def photographs(self) -> list[Photograph]:
        """The N images as `retina.data.images.load_image` reads them."""
        return [self.photograph(row) for row in range(len(self))]

    def photograph(self, row: int) -> Photograph:
        """The image of a row as `retina.data.images.load_image` reads it.

        Args:
            row: of the table.

        Raises:
            IndexError: there is no such row.
        """
        return Photograph(self.images[row], bool(self.turns[row] != UPRIGHT), self.depth)

    def split(self, fraction: float, seed: int) -> tuple[DetectionDataset, DetectionDataset]:
        """Return two disjoint tables: a random `fraction` of the images (rounded) and the rest, in the table's order.

        Args:
            fraction: the share of the images in the first table, from 0 to 1.
            seed: of the draw.

        Raises:
            RetinaError: either part would be empty.
        """
        count = round(fraction * len(self)) if 0 < fraction < 1 else 0
        if not 0 < count < len(self):
            self._fail(f"a split of {fraction} of {len(self)} images leaves one part empty; choose another fraction")
        order = np.random.default_rng(seed).permutation(len(self))
        return self.subset(np.sort(order[:count])), self.subset(np.sort(order[count:]))

    def rename(self, names: Mapping[str, str]) -> DetectionDataset:
        """Return a new table with classes called otherwise: `{old: new}`. Ids and labels stay.

        Args:
            names: new names by old ones.

        Raises:
            RetinaError: an old name is unknown, or two classes would share a name.
        """
        for old in names:
            if old not in self.class_names:
                self._fail(f"rename: unknown class '{old}'; {suggest(old, self.class_names)}")
        return replace(self, class_names=tuple(names.get(name, name) for name in self.class_names))

    def _fail(self, what: str, kind: type[Exception] = RetinaError) -> None:
        raise kind(f"{self.name}: {what}")

    def _check_lengths(self) -> None:
        images, objects, classes = len(self.image_ids), len(self.boxes), len(self.class_names)
        if not classes:
            self._fail("it has no class; a detector needs at least one")
        if len(self.category_ids) != classes:
            self._fail(f"{classes} class names but {len(self.category_ids)} category ids")
        for field in ("images", "sizes", "orientations"):
            if len(getattr(self, field)) != images:
                self._fail(f"{images} image ids but {len(getattr(self, field))} {field}")
        for field in Objects._fields:
            if len(getattr(self, field)) != objects:
                self._fail(f"{objects} boxes but {len(getattr(self, field))} {field}")
        steps = self.offsets
        if len(steps) != images + 1 or steps[0] != 0 or steps[-1] != objects or (np.diff(steps) < 0).any():
            self._fail(f"offsets must rise from 0 to {objects} in {images + 1} numbers")
        for field in ("class_names", "category_ids", "image_ids"):
            again = first_repeated(getattr(self, field))
            if again is not None:
                self._fail(f"{field}: {again[1]!r} is given twice; each must be distinct")

    def _check_values(self) -> None:
        if (self.sizes <= 0).any():
            row = int(np.argmax((self.sizes <= 0).any(1)))
            self._fail(
                f"image {self.image_ids[row]}: (height, width) is {tuple(self.sizes[row].tolist())}, not positive"
            )
        if ((self.labels < 0) | (self.labels >= len(self.class_names))).any():
            self._fail(
                f"labels must be 0 to {len(self.class_names) - 1}, got {self.labels.min()} to {self.labels.max()}"
            )
        height, width = np.repeat(self.sizes, np.diff(self.offsets), axis=0).T
        x1, y1, x2, y2 = self.boxes.T
        inside = (x1 >= 0) & (y1 >= 0) & (x2 <= width) & (y2 <= height) & (x1 < x2) & (y1 < y2)
        if not inside.all():
            row = int(np.argmin(inside))
            self._fail(f"box {row} is {self.boxes[row].tolist()}, expected x1 < x2, y1 < y2 inside the image")
        if not (np.isfinite(self.areas) & (self.areas >= 0)).all():
            self._fail("areas must be finite and not negative")


_COLUMNS = (
    ("sizes", np.int32, ("N", 2)),
    ("orientations", np.uint8, ("N",)),
    ("offsets", np.int64, ("N+1",)),
    ("boxes", np.float64, ("M", 4)),
    ("labels", np.int32, ("M",)),
    ("crowd", np.bool_, ("M",)),
    ("difficult", np.bool_, ("M",)),
    ("areas", np.float64, ("M",)),
)


class RawObjects(NamedTuple):
    """M objects as a source read them, in any order.

    `image` [M] row of the image; `boxes` [M,4] xyxy pixels, for the table; `xywh` [M,4] x, y, width, height in pixels,
    for the ground truth, the file's own numbers where it holds these; `given` [M,4] the file's own numbers, for
    messages, and `extent` [M,2] width and height as the file means them, by which a box is judged; `labels` [M];
    `crowd` [M]; `difficult` [M]; `areas` [M], NaN where the source has none.
    """

    image: np.ndarray
    boxes: np.ndarray
    xywh: np.ndarray
    given: np.ndarray
    extent: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    areas: np.ndarray

    def rows(self, chosen: np.ndarray) -> RawObjects:
        """The objects of a mask [M] or of rows."""
        return RawObjects(*(column[chosen] for column in self))


class Records(NamedTuple):
    """N images and the M objects of their files, before any policy: both the table and the ground truth are made of it.

    Attributes:
        name: starts every message.
        classes: `{class name: category id}` in label order.
        image_ids: [N] distinct.
        images: [N] paths, encoded images, or where the images lie in shards.
        sizes: [N,2] int32 (height, width), pixels.
        raw: [M] objects in the order of the files.
        describe: where object `row` stands, for instance "annotation 812 (image 44)" or "a.txt line 3".
        notes: what was read otherwise than it stands there, with counts.
        unused: label files that lie there and belong to none of the images.
        open_classes: whether the files tell only the classes that occur, so that there may be more.
        measured: whether sizes were measured on the images, as the files declare none: of all, or [N] bool.
    """

    name: str
    classes: Mapping[str, int]
    image_ids: Sequence[int | str]
    images: Sequence[TableImage]
    sizes: np.ndarray
    raw: RawObjects
    describe: Callable[[int], str]
    notes: tuple[str, ...] = ()
    unused: UnusedLabels | None = None
    open_classes: bool = False
    measured: bool | np.ndarray = False


def unused_labels(
    files: Sequence[str], used: int, sought: Sequence[str], ending: str, fate: Fate
) -> UnusedLabels | None:
    """Return the label files that no image claims, beside `used` ones; None if there are none."""
    if not files:
        return None
    return UnusedLabels(tuple(files), len(files) / (len(files) + used), tuple(sought), ending, fate)


def note_unused(name: str, files: Sequence[str], sought: Sequence[str]) -> str:
    """Return a note on label files that are called like images without labels."""
    called = "is called like an image" if len(files) == 1 else "are called like images"
    return (
        f"{name}: {count(len(files), 'label file')} {called} without labels, but not used, such as "
        f"{files[0]}; labels were sought in {', '.join(sought[:_SHOWN])}{' and more' * (len(sought) > _SHOWN)}"
    )


def handle_difficult(name: str, raw: RawObjects, policy: Difficult) -> tuple[RawObjects, np.ndarray, tuple[str, ...]]:
    """Apply `data.difficult`: "ignore" flags difficult objects, "use" takes them like any other, "drop" removes them.

    Returns:
        the objects, the rows of `raw` that they are, and notes.
    """
    rows = np.arange(len(raw.image))
    notes: tuple[str, ...] = ()
    if policy == "drop" and raw.difficult.any():
        rows = np.flatnonzero(~raw.difficult)
        count = f"{raw.difficult.sum()} of {len(raw.difficult)} objects"
        notes = (f"{name}: {count} are difficult: dropped (data.difficult: drop)",)
        raw = raw.rows(rows)
    return raw._replace(difficult=raw.difficult & (policy == "ignore")), rows, notes


def build(
    records: Records, *, invalid_boxes: InvalidBoxes = "error", classes: Sequence[str] | None = None
) -> DetectionDataset:
    """Return the table: invalid boxes handled, objects grouped by image, classes in the order of `classes`.

    Raises:
        RetinaError: see `judge_boxes` and `with_classes`; or the columns contradict each other.
    """
    raw = records.raw
    boxes, keep, judged = judge_boxes(records, invalid_boxes)
    # Stable, so that the objects of an image stay in the file's order.
    rows = np.argsort(raw.image, kind="stable")
    rows = rows[keep[rows]]
    boxes, areas = boxes[rows], raw.areas[rows]
    of_boxes = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    table = DetectionDataset(
        name=records.name,
        class_names=tuple(records.classes),
        category_ids=tuple(records.classes.values()),
        image_ids=tuple(records.image_ids),
        images=tuple(records.images),
        sizes=records.sizes,
        offsets=_cumulative(np.bincount(raw.image[rows], minlength=len(records.image_ids))),
        boxes=boxes,
        labels=raw.labels[rows],
        crowd=raw.crowd[rows],
        difficult=raw.difficult[rows],
        areas=np.where(np.isnan(areas), of_boxes, areas),
        notes=records.notes + judged,
        unused=records.unused,
        open_classes=records.open_classes,
    )
    return with_classes(table, classes)


def judge_boxes(records: Records, policy: InvalidBoxes) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Judge every box and apply the policy for invalid ones: the only place where a box is called invalid.

    Invalid is a box that is not finite, has no positive width and height as the file gives them, or reaches more than 1
    pixel outside its image; up to 1 pixel is cut off. "drop" leaves invalid boxes out; "clip" cuts them to the image
    and leaves out those of which nothing remains; "error" refuses.

    Returns:
        the boxes cut to their images [M,4], which of them to keep [M] bool, and notes with the counts.

    Raises:
        RetinaError: under "error", naming the first few invalid boxes, their faults and the total.
    """
    name, raw = records.name, records.raw
    height, width = np.asarray(records.sizes, np.float64).reshape(-1, 2)[raw.image].T
    limits = np.stack([width, height, width, height], axis=1)
    finite = np.isfinite(raw.boxes).all(1) & np.isfinite(raw.extent).all(1)
    with np.errstate(invalid="ignore"):
        overshoot = np.maximum(-raw.boxes, raw.boxes - limits).max(1, initial=-np.inf)
        cut = np.clip(raw.boxes, 0.0, limits)
        sized = (raw.extent > 0).all(1)
        remains = finite & sized & (cut[:, 2:] > cut[:, :2]).all(1)
    reaching = finite & sized & (overshoot > _OVERSHOOT)
    invalid = ~remains | reaching
    if not invalid.any():
        return cut, remains, ()
    rows = np.flatnonzero(invalid)
    counts = {
        "not finite": int((~finite).sum()),
        "of no positive width and height": int((finite & ~sized).sum()),
        "reaching outside their image": int((invalid & finite & sized).sum()),
    }
    faults = ", ".join(f"{count} {fault}" for fault, count in counts.items() if count)
    if policy == "error":
        each = [f"{records.describe(row)}: {_fault(raw, row, overshoot[row], limits[row])}" for row in rows[:_DETAILED]]
        more = f"; and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
        error = RetinaError(
            f"{name}: {len(rows)} of {len(invalid)} boxes invalid ({faults}): {'; '.join(each[:_SHOWN])}{more}. "
            "Fix the file, or set data.invalid_boxes: drop (or clip)"
        )
        error.details = tuple(each)
        error.images = tuple(records.image_ids[raw.image[row]] for row in rows[:_DETAILED])
        raise error
    keep = remains & ~reaching if policy == "drop" else remains
    dropped, clipped = int((~keep).sum()), int((keep & invalid).sum())
    done = [f"{dropped} dropped"] * bool(dropped) + [f"{clipped} cut to the image"] * bool(clipped)
    note = f"{name}: {len(rows)} of {len(invalid)} boxes invalid ({faults}): {', '.join(done)}"
    return cut, keep, (f"{note} (data.invalid_boxes: {policy})",)


def with_classes(dataset: DetectionDataset, classes: Sequence[str] | None) -> DetectionDataset:
    """Return the table with its classes in the order of `classes` (None: as it is); labels and ids follow.

    Raises:
        RetinaError: `classes` are not the table's names; both lists are printed.
    """
    if classes is None or tuple(classes) == dataset.class_names:
        return dataset
    if sorted(classes) != sorted(dataset.class_names):
        others = [name for name in dataset.class_names if name not in classes]
        leave = f"; to leave out the others, set {override_line('data.relabel.drop', others)}"
        raise RetinaError(
            f"{dataset.name}: data.classes must name the classes of this file; data.classes: {list(classes)}; "
            f"this file: {list(dataset.class_names)}{leave if set(classes) < set(dataset.class_names) else ''}"
        )
    old = [dataset.class_names.index(name) for name in classes]
    new = np.argsort(old)
    return replace(
        dataset,
        class_names=tuple(classes),
        category_ids=tuple(dataset.category_ids[i] for i in old),
        labels=new[dataset.labels],
    )


def class_list_advice(first: DetectionDataset, second: DetectionDataset) -> str:
    """Return how to give two tables the same classes, with the overrides that do it where there are any."""
    ours, theirs = first.class_names, second.class_names
    if first.open_classes and second.open_classes:
        every = [*ours, *(name for name in theirs if name not in ours)]
        return f"list the classes of both: {override_line('data.classes', every)}"
    rename = {}
    if not (set(ours) & set(theirs)) and len(ours) == len(theirs) == 1:
        rename = {theirs[0]: ours[0]}
    alike = {name.casefold(): name for name in ours if name not in theirs}
    rename |= {name: alike.pop(name.casefold()) for name in theirs if name not in ours and name.casefold() in alike}
    left = [rename.get(name, name) for name in theirs if rename.get(name, name) in ours]
    if not left:
        return "they share no class: check that they belong together, or call classes alike with data.relabel.rename"
    drop = [name for name in (*ours, *(rename.get(name, name) for name in theirs)) if name not in left]
    lines = [override_line("data.relabel.rename", rename)] if rename else []
    lines += [override_line("data.relabel.drop", list(dict.fromkeys(drop)))] if drop else []
    order = [name for name in ours if name in left]
    lines += [override_line("data.classes", order)] if order != left else []
    lost = sum(
        int(np.isin(table.labels, [k for k, name in enumerate(table.class_names) if name in drop]).sum())
        for table in (first, second)
    )
    return f"give both the same ({lost} boxes are left out): {' '.join(lines)}"


def distinct_names(names: Sequence[str], ids: Sequence[object]) -> list[str]:
    """Return the names of classes, those that several share with their ids: figures stand under a name."""
    counts = Counter(names)
    taken = {name for name, count in counts.items() if count == 1}
    distinct = []
    for identifier, name in zip(ids, names, strict=True):
        if counts[name] > 1:
            name = f"{name} ({identifier})"
            while name in taken:
                name = f"{name} ({identifier})"
        taken.add(name)
        distinct.append(name)
    return distinct


def merging_advice(names: Sequence[str], ids: Sequence[object]) -> str:
    """Return how to make one class of those that share a name, with the override that does it."""
    renamed = {new: old for old, new in zip(names, distinct_names(names, ids), strict=True) if new != old}
    return f"each must be distinct; to make them one class, set {override_line('data.relabel.rename', renamed)}"


def suggest(name: str, valid: Sequence[str]) -> str:
    """Return the end of a message about an unknown name: the nearest valid name, whatever its case, or all of them."""
    plain = {known.casefold(): known for known in reversed(valid)}
    near = difflib.get_close_matches(name.casefold(), plain, n=1, cutoff=0.5)
    return f"did you mean '{plain[near[0]]}'?" if near else f"expected one of {list(valid)}"


def first_repeated(values: Sequence) -> tuple[int, object] | None:
    """Return (index, value) of the first value that stood before, or None."""
    if len(set(values)) == len(values):
        return None
    before: set = set()
    for index, value in enumerate(values):
        if value in before:
            return index, value
        before.add(value)
    return None


def _fault(raw: RawObjects, row: int, overshoot: float, limits: np.ndarray) -> str:
    numbers = f"[{', '.join(f'{number:.10g}' for number in raw.given[row])}]"
    if not (np.isfinite(raw.boxes[row]).all() and np.isfinite(raw.extent[row]).all()):
        return f"box {numbers} is not finite"
    sides = list(zip(("width", "height"), raw.extent[row], strict=True))
    flat = [f"zero {side}" for side, length in sides if length == 0]
    flat += [f"negative {side} ({length:.10g})" for side, length in sides if length < 0]
    if flat:
        return f"box {numbers} has {' and '.join(flat)}"
    if overshoot <= 0:
        return f"box {numbers} is too thin to be told from a line"
    return f"box {numbers} reaches {overshoot:.6g} px outside its image ({limits[0]:.0f} wide, {limits[1]:.0f} high)"


def _cumulative(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
