"""Inspection of a table's images: unreadable files, sizes other than declared, rotations and duplicates."""

from __future__ import annotations

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement
from pathlib import Path
from typing import NamedTuple

import numpy as np

from retina import config
from retina.data.dataset import DetectionDataset, Orientation
from retina.data.headers import QUARTER_TURNS, UPRIGHT, orientation
from retina.data.image_files import read_header
from retina.data.images import each_image, load_image
from retina.data.limits import image_name, too_large
from retina.data.orientation import CHOICE
from retina.data.stored import FileSlice, TableImage, encoded
from retina.doctor import duplicates
from retina.doctor.findings import Finding, Grade, listed, some
from retina.doctor.levels import Deep, Levels, deep, depth_findings, level_findings, levels
from retina.doctor.statistics import figures_of, place_of
from retina.errors import RetinaError
from retina.output import count

_LEFT_OUT = ("unreadable-images", "exif-rotated-size", "size-mismatch")


class _Inspected(NamedTuple):
    """An opened image: the fault that makes it unusable or None, (height, width) as read, EXIF's orientation (1:
    upright), digest of the bytes, range of more than 8 bits; hash and thumbnail, and levels (None where it was not
    decoded)."""

    fault: str | None
    size: tuple[int, int]
    orientation: int
    digest: bytes | None
    deep: Deep | None = None
    fingerprint: tuple[np.ndarray, np.ndarray] | None = None
    levels: Levels | None = None


@dataclass(frozen=True, eq=False)
class Images:
    """The N opened images of a split: `faults`, `sizes` as read, EXIF's `orientations` and `digests` by row, the latter
    None where only headers were read; `orientation` and `depth` of the table; `deep` and `levels` by row; of those that
    were decoded (`decoded` [n] rows) the `bits` [n,128] and `thumbnails` [n,256] of `retina.doctor.duplicates`."""

    names: tuple[str, ...]
    images: tuple[TableImage, ...]
    declared: np.ndarray
    faults: tuple[str | None, ...]
    sizes: np.ndarray
    orientations: np.ndarray
    orientation: Orientation
    depth: tuple[float, float] | None
    digests: tuple[bytes | None, ...]
    annotations: tuple[bytes, ...]
    deep: tuple[Deep | None, ...]
    levels: tuple[Levels | None, ...]
    decoded: np.ndarray
    bits: np.ndarray
    thumbnails: np.ndarray


def inspect(
    dataset: DetectionDataset,
    *,
    decode: bool = True,
    max_pixels: int = config.MAX_PIXELS,
    advance: Callable[[int], None] | None = None,
) -> Images:
    """Open every image of a table, several at a time.

    Args:
        decode: whether images are decoded as in training; otherwise only headers are read.
        max_pixels: an image of more pixels has a fault.
        advance: called with the number of images opened since the last call, for a progress bar.
    """
    inspected = list(
        each_image(dataset, functools.partial(_decoded if decode else _header, dataset, max_pixels), advance)
    )
    decoded = [row for row, image in enumerate(inspected) if image.fingerprint is not None]
    prints = [image.fingerprint for image in inspected if image.fingerprint is not None]
    return Images(
        names=tuple(image_name(dataset, row) for row in range(len(dataset))),
        images=dataset.images,
        declared=dataset.sizes,
        faults=tuple(image.fault for image in inspected),
        sizes=np.array([image.size for image in inspected], np.int64).reshape(-1, 2),
        orientations=np.array([image.orientation for image in inspected], np.int64),
        orientation=dataset.orientation,
        depth=dataset.depth,
        digests=tuple(image.digest for image in inspected),
        annotations=tuple(_annotations(dataset, row) for row in range(len(dataset))),
        deep=tuple(image.deep for image in inspected),
        levels=tuple(image.levels for image in inspected),
        decoded=np.array(decoded, np.int64),
        bits=np.array([bits for bits, _ in prints], bool).reshape(-1, 128),
        thumbnails=np.array([small for _, small in prints], np.uint8).reshape(-1, duplicates.THUMBNAIL**2),
    )


def image_findings(images: Images, split: str, *, skip: bool = False) -> Iterator[Finding]:
    """Yield the faults of a split's images; with `skip` training leaves out those that can't be used."""
    remedy = "data.invalid_images: skip leaves them out; better to fix them"
    for finding in _image_findings(images, split):
        skipped = skip and finding.code in _LEFT_OUT
        yield replace(finding, grade="warning", remedy=remedy) if skipped else finding
    yield from depth_findings(images.deep, images.depth, split)
    yield from level_findings(images.names, images.levels, split)


def _image_findings(images: Images, split: str) -> Iterator[Finding]:
    broken = [fault for fault in images.faults if fault is not None]
    if broken:
        yield Finding(
            "error",
            "unreadable-images",
            f"{len(broken)} of {count(len(images.names), 'image')} can't be used: {some(broken, 2)}",
            "restore or remove them, or set data.invalid_images: skip; otherwise training stops at the first of them",
            split,
            listed(broken),
        )
    whole = np.array([fault is None for fault in images.faults], bool)
    other = whole & (images.sizes != images.declared).any(axis=1)
    turned = other & (images.sizes == images.declared[:, ::-1]).all(axis=1)
    exif = np.isin(images.orientations, QUARTER_TURNS)
    yield from _sizes(images, turned & exif, other & ~(turned & exif), split)
    rotated = whole & ~other & (images.orientations != UPRIGHT)
    if rotated.any():
        yield _rotated(images, np.flatnonzero(rotated), split)


def _rotated(images: Images, rows: np.ndarray, split: str) -> Finding:
    """The finding on images with an EXIF rotation: an error where nothing says which pixels their boxes belong to."""
    kinds = Counter(images.orientations[rows].tolist())
    orientations = ", ".join(f"{number} x orientation {kind}" for kind, number in sorted(kinds.items()))
    unknown = "and nothing says whether their boxes belong to the upright pictures or to the pixels as stored"
    cases: dict[Orientation, tuple[Grade, str, str]] = {
        "": ("warning", unknown, CHOICE),  # a table that no configuration was read for
        "unknown": ("error", unknown, CHOICE),
        "both": (
            "error",
            "the boxes of some belong to the pixels as stored and of others to the upright pictures, by their sizes",
            "write upright copies of all with `retina convert --upright`",
        ),
        "upright": ("note", "which are turned when they are read: boxes belong to the upright pictures", ""),
        "stored": ("note", "which is not applied: boxes belong to the pixels as stored", ""),
    }
    grade, what, remedy = cases[images.orientation]
    return Finding(
        grade,
        "exif-rotated",
        f"{count(len(rows), 'image')} with an EXIF rotation ({orientations}), {what}",
        remedy,
        split,
        listed(images.names[row] for row in rows),
    )


def duplicate_findings(splits: Mapping[str, Images]) -> Iterator[Finding]:
    """Yield findings on equal and nearly equal images, within a split and across splits, which makes figures too high.

    A file that is itself in two splits is reported by `retina.doctor.statistics.split_findings`, and not again here.
    """
    names = list(splits)
    places = [place_of(image) for name in names for image in splits[name].images]
    owner = np.repeat(np.arange(len(names)), [len(splits[name].names) for name in names])
    files = [file for name in names for file in splits[name].names]
    same, near, digests = duplicate_groups(list(splits.values()))
    yield from _groups("duplicate-images", same, files, places, owner, names)
    yield from _contradictions(same, files, [of_image for name in names for of_image in splits[name].annotations])
    yield from _groups("near-duplicate-images", near.rows, files, places, owner, names, digests)
    if near.capped:
        yield Finding(
            "note",
            "near-duplicates-not-all-compared",
            f"more than {duplicates.MOST_AT_ONCE} images are so similar in a part that not all pairs of them were "
            "compared; some near duplicates may be missing above",
        )


def _contradictions(same: list[list[int]], files: list[str], annotations: list[bytes]) -> Iterator[Finding]:
    """Yield a finding on images with the same bytes that have other boxes or classes."""
    differing = [group for group in same if len({annotations[row] for row in group}) > 1]
    if differing:
        yield Finding(
            "warning",
            "copies-with-different-boxes",
            f"{count(len(differing), 'group')} of images with the same bytes, but with other boxes or classes: "
            f"{some([Path(files[row]).name for row in differing[0]], 3)}",
            "correct their annotations, and keep one of each: what one copy calls an object is background in the other",
            examples=listed(some([files[row] for row in group]) for group in differing),
        )


def _annotations(dataset: DetectionDataset, row: int) -> bytes:
    """Bytes that are equal for two images if their boxes are, with the names of their classes, in any order."""
    objects = dataset.objects(row)
    names = [dataset.class_names[label] for label in objects.labels.tolist()]
    return repr(sorted(zip(names, np.round(objects.boxes, 3).tolist(), strict=True))).encode("utf-8", "surrogatepass")


def duplicate_groups(splits: list[Images]) -> tuple[list[list[int]], duplicates.Groups, list[bytes | None]]:
    """Return groups of rows with equal bytes, groups of near copies among decoded images, and the digests.

    Rows are numbered through all splits. Of equal images in a split only the first counts for near copies. A digest is
    None where it was not needed.
    """
    owner = np.repeat(np.arange(len(splits)), [len(split.names) for split in splits])
    digests = _digests(splits)
    same = duplicates.equal_groups(digests)
    starts = np.concatenate([[0], np.cumsum([len(split.names) for split in splits])])
    rows = np.concatenate([start + split.decoded for start, split in zip(starts, splits, strict=False)])
    bits = np.concatenate([split.bits for split in splits])
    thumbnails = np.concatenate([split.thumbnails for split in splits])
    # Of equal images in a split only the first is compared.
    copies = {row for group in same for row in group} - {row for group in same for row in _first_of_each(group, owner)}
    single = np.array([row not in copies for row in rows.tolist()], bool)
    near = duplicates.near_groups(bits[single], thumbnails[single])
    return same, duplicates.Groups([rows[single][group].tolist() for group in near.rows], near.capped), digests


def _first_of_each(group: list[int], owner: np.ndarray) -> Iterable[int]:
    """First row of each split."""
    return {int(owner[row]): row for row in reversed(group)}.values()


def _sizes(images: Images, turned: np.ndarray, other: np.ndarray, split: str) -> Iterator[Finding]:
    def described(row: int) -> str:
        (height, width), (stored_height, stored_width) = images.declared[row], images.sizes[row]
        return f"{images.names[row]}: declared {width}x{height}, stored {stored_width}x{stored_height}"

    if turned.any():
        rows = np.flatnonzero(turned).tolist()
        yield Finding(
            "error",
            "exif-rotated-size",
            f"{count(len(rows), 'image')} declared upright but stored with an EXIF rotation: {described(rows[0])}",
            "the boxes belong to the upright picture: set data.orientation: upright, or write upright copies with "
            "`retina convert --upright`",
            split,
            listed(described(row) for row in rows),
        )
    if other.any():
        rows = np.flatnonzero(other).tolist()
        yield Finding(
            "error",
            "size-mismatch",
            f"{count(len(rows), 'image')} of another size than declared (width x height): {described(rows[0])}",
            "correct the declared size, or the image: boxes would be scaled wrongly, so training stops there",
            split,
            listed(described(row) for row in rows),
        )


def _groups(
    code: str,
    groups: list[list[int]],
    files: list[str],
    places: list[str | FileSlice | None],
    owner: np.ndarray,
    names: list[str],
    digests: list[bytes | None] | None = None,
) -> Iterator[Finding]:
    """Yield a finding for each split, and for each pair of splits.

    Args:
        digests: of all images; groups of equal bytes are left out, since another finding reports them.
    """
    by_splits: dict[tuple[int, int], list[tuple[list[int], list[int]]]] = {}
    for group in groups:
        members: dict[int, list[int]] = {}
        for row in group:
            members.setdefault(int(owner[row]), []).append(row)
        for first, second in combinations_with_replacement(members, 2):
            ours, theirs = members[first], members[second]
            if first != second:
                known = {places[row] for row in ours}
                theirs = [row for row in theirs if places[row] is None or places[row] not in known]
            if not theirs:
                continue
            rows = ours if first == second else [*ours, *theirs]
            if len(rows) > 1 and (digests is None or len({digests[row] for row in rows}) > 1):
                by_splits.setdefault((first, second), []).append((ours, theirs))
    exact = code == "duplicate-images"
    alike = "with the same bytes" if exact else "of near copies"
    for (first, second), pairs in sorted(by_splits.items()):
        number = count(len(pairs), "group")
        if first == second:
            listing = [some([files[row] for row in ours]) for ours, _ in pairs]
            shown = some([Path(files[row]).name for row in pairs[0][0]], 2)
            images = count(sum(len(ours) for ours, _ in pairs), "image")
            message = f"{images} in {number} {alike}: {shown}"
            remedy = "check them: copies count twice in training and in figures"
            yield Finding("warning" if exact else "note", code, message, remedy, names[first], listed(listing))
            continue
        listing = [
            f"{some([files[row] for row in theirs])} in a group {alike} with {some([files[row] for row in ours])}"
            for ours, theirs in pairs
        ]
        images = count(sum(len(theirs) for _, theirs in pairs), "image")
        shown = " and ".join(Path(files[rows[0]]).name for rows in reversed(pairs[0]))
        worth = figures_of(names[first], names[second])
        yield Finding(
            "error" if exact else "warning",
            f"{code}-across-splits",
            f"{images} of {names[second]} in {number} {alike} with images of {names[first]}: {shown}",
            f"keep each group in one split, as select.copies_together does for shares: {worth}",
            "",
            listed(listing),
        )


def _decoded(dataset: DetectionDataset, max_pixels: int, row: int) -> _Inspected:
    name, measured = image_name(dataset, row), None
    try:
        content = encoded(dataset.images[row])
        measured = deep(content)
        pixels = load_image(dataset.photograph(row)._replace(image=content), name, max_pixels=max_pixels)
    except RetinaError as error:
        return _unusable(error)._replace(deep=measured)
    height, width = pixels.shape[:2]
    return _Inspected(
        None,
        (height, width),
        orientation(content),
        _digest(content),
        measured,
        duplicates.fingerprint(pixels),
        levels(pixels),
    )


def _header(dataset: DetectionDataset, max_pixels: int, row: int) -> _Inspected:
    name = image_name(dataset, row)
    try:
        header = read_header(dataset.images[row], name)
        if header.size[0] * header.size[1] > max_pixels:
            raise too_large(name, *header.size, max_pixels)
    except RetinaError as error:
        return _unusable(error)
    size = header.upright if dataset.turns[row] != UPRIGHT else header.size
    return _Inspected(None, size, header.orientation, None)


def _unusable(error: RetinaError) -> _Inspected:
    return _Inspected(str(error), (0, 0), UPRIGHT, None)


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _digests(splits: list[Images]) -> list[bytes | None]:
    """Digests of all images in order. Where only headers were read, a file is read only if another has the same length,
    because no other can be equal."""
    opened = [
        (image, digest, fault)
        for split in splits
        for image, digest, fault in zip(split.images, split.digests, split.faults, strict=True)
    ]
    lengths = [_length(image) if digest is None and fault is None else -1 for image, digest, fault in opened]
    shared = {length for length, times in Counter(lengths).items() if times > 1 and length >= 0}
    return [
        _digest(encoded(image)) if length in shared else digest
        for (image, digest, _), length in zip(opened, lengths, strict=True)
    ]


def _length(image: TableImage) -> int:
    if isinstance(image, str):
        return os.path.getsize(image)
    return len(image) if isinstance(image, bytes) else image.length
