"""The page of a dataset: its images with their boxes and their defects."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from retina import config as configuration
from retina.data.dataset import DetectionDataset
from retina.data.formats import Format
from retina.doctor.defects import Defects, anchor_defects, image_defects, kinds, merged, read_split, sized
from retina.doctor.inspection import inspect
from retina.doctor.statistics import statistics
from retina.doctor.targets import Target, open_target
from retina.drawing import furniture
from retina.errors import RetinaError
from retina.files import write_text
from retina.pages import gallery
from retina.palette import class_hexes

_TEMPLATE = Path(__file__).with_name("browse.html.jinja")
# Names of the kinds of defect in the table; the doctor says what to do about each.
_NAMES = {
    "unreadable-images": "image that can't be used",
    "size-mismatch": "another size than declared",
    "exif-rotated-size": "declared upright, stored rotated",
    "exif-rotated": "EXIF rotation",
    "invalid-boxes": "invalid boxes, not drawn",
    "repeated-boxes": "boxes given twice",
    "duplicate-images": "same bytes as another image",
    "near-duplicate-images": "nearly the same picture as another",
    "no-positive-anchor": "boxes without a positive anchor",
}


def browse(
    source: str | Path,
    *,
    split: str | None = None,
    out: str | Path | None = None,
    limit: int = gallery.MOST_IMAGES,
    overrides: Sequence[str] = (),
    images: Path | None = None,
    data_dir: Path | None = None,
    format: Format | None = None,
    quick: bool = False,
    advance: Callable[[int], None] | None = None,
) -> Path:
    """Write a page to look through a dataset, with its defects marked; images with defects come before others.

    Args:
        source: a path or a TFDS name, anything that `retina doctor` takes.
        split: its name; by default the training split, or the only split.
        out: the page; by default `SOURCE-SPLIT.html` in the working directory.
        limit: largest number of images on the page.
        overrides: `KEY.PATH=VALUE` of a configuration, with which boxes that no anchor learns are marked too.
        images, data_dir, format: see `retina.data.formats.layouts.look`.
        quick: whether only headers are read of images not on the page: damaged images and near copies are missed.
        advance: called with the number of images opened since the last call.

    Returns:
        The page's path.

    Raises:
        RetinaError: the source can't be read, there is no such split, a limit below 1, or the page can't be written.

    Example:

    >>> retina.browse("pets", split="train", out="pets.html").name
    'pets.html'
    """
    if limit < 1:
        raise RetinaError(f"limit: expected at least 1 image, got {limit}; leave it out for a page of moderate size")
    target = open_target(source, list(overrides), images, data_dir, format)
    chosen = _split(target, split)
    path = Path(out) if out is not None else Path(f"{_file_name(target.name)}-{_file_name(chosen)}.html")
    if not path.absolute().parent.is_dir():
        raise RetinaError(f"{path}: no such folder as {path.absolute().parent}; make it first")
    text = page(target, chosen, limit=limit, quick=quick, advance=advance)
    try:
        write_text(path, text)
    except OSError as error:
        raise RetinaError(f"{path}: cannot write the page: {error.strerror}; choose another --out") from None
    return path


def page(
    target: Target, split: str, *, limit: int, quick: bool = False, advance: Callable[[int], None] | None = None
) -> str:
    """Return the page's text; see `browse`.

    Raises:
        RetinaError: the split can't be read.
    """
    table, invalid = read_split(target, split)
    most = configuration.MAX_PIXELS if target.config is None else target.config.data.max_pixels
    names = short_names(table)
    opened = inspect(table, decode=not quick, max_pixels=most, advance=advance)
    defects = merged(image_defects(table, opened, names), invalid)
    rows = gallery.mixture(len(table), limit, list(defects))
    if target.config is not None:
        defects = merged(defects, anchor_defects(table, rows, target.config))
    stats = statistics(table)
    shown = _shown(table, rows, names, defects)
    data = gallery.gallery_data(shown, table.class_names, total=len(table), predictions=False)
    return furniture.render(
        _TEMPLATE,
        title=f"{Path(target.name).name} · {split}",
        scripts=[gallery.SCRIPT],
        target=target.name,
        split=split,
        others=[name for name in target.splits if name != split],
        stats=stats,
        classes=[
            {
                "name": name,
                "colour": colour,
                "boxes": stats.classes[name],
                "images": stats.class_images[name],
            }
            for name, colour in zip(table.class_names, class_hexes(table.class_names), strict=True)
        ],
        defective=len(defects),
        kinds=[(_NAMES[code], code, number) for code, number in kinds(defects).items()],
        anchors=target.config is not None,
        sampled=len(rows) < len(table),
        quick=quick,
        notes=table.notes,
        data=data,
    )


def short_names(table: DetectionDataset) -> list[str]:
    """Return short names [N] of the images: their paths below their common folder, or else their ids."""
    paths = [image for image in table.images if isinstance(image, str)]
    if len(paths) < len(table) or not paths:
        return [str(identifier) for identifier in table.image_ids]
    folders = [os.path.dirname(os.path.abspath(path)) for path in paths]
    common = os.path.commonpath(folders)
    return [os.path.relpath(os.path.abspath(path), common) for path in paths]


def _shown(table: DetectionDataset, rows: Sequence[int], names: Sequence[str], defects: Defects) -> list[gallery.Shown]:
    known = sized(table)
    out = []
    for row in rows:
        objects = table.objects(row)
        marks = zip(objects.boxes, objects.labels.tolist(), objects.crowd, objects.difficult, strict=True)
        truths = tuple(
            gallery.Truth(box, label, "crowd" if crowd else "difficult" if difficult else "")
            for box, label, crowd, difficult in marks
        )
        height, width = table.sizes[row].tolist() if known[row] else (0, 0)
        texts = tuple(defect.text for defect in defects.get(row, []))
        # Without a size, fractions could not be converted to pixels.
        shown = truths if known[row] else ()
        out.append(gallery.Shown(row, names[row], width, height, table.photograph(row), shown, (), texts))
    return out


def _split(target: Target, wanted: str | None) -> str:
    if wanted is not None:
        if wanted not in target.splits:
            raise RetinaError(f"{target.name}: no split '{wanted}'; it has {', '.join(target.splits)}")
        return wanted
    training = [name for name in target.splits if re.fullmatch(r"(.*/)?train(ing|\d*)", name)]
    if not target.splits:
        raise RetinaError(f"{target.name}: expected a split to show, found none; name the data in the configuration")
    return (training or list(target.splits))[0]


def _file_name(name: str) -> str:
    """Last part of a path or a name, without its extension and characters that some file systems refuse."""
    last = os.path.basename(os.path.abspath(name)) if os.path.exists(name) else name
    stem = last.rsplit(".", 1)[0] if os.path.isfile(name) else last
    return re.sub(r"[^\w.-]+", "-", stem).strip("-.") or "data"
