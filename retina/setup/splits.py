"""Splits: those that a folder has, by their names, and a division of images where it has none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import numpy as np

from retina.data.load import Split
from retina.data.select import random_order
from retina.errors import RetinaError

Role = Split
ROLES: tuple[Role, ...] = get_args(Split)

_WORDS: dict[str, Role] = {
    "train": "train",
    "training": "train",
    "trainval": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
# From this many images on a test split of 15 % is large enough to measure on.
_ENOUGH_FOR_A_TEST = 200


def roles(names: Sequence[str]) -> dict[Role, list[str]]:
    """Return the splits of a folder by what they are for, told by their names.

    Of `trainval` and its parts the parts are taken. A folder's only split is `train`, whatever its name, as it is all
    that there is. Splits with other names are left out.

    Example: ["train2017", "val2017"] is {"train": ["train2017"], "validation": ["val2017"]}.

    Raises:
        RetinaError: there are several splits, and none is called like one to train on.
    """
    if len(names) == 1:
        return {"train": list(names)}
    parts: dict[Role, list[str]] = {}
    for name in names:
        words = [word for word in re.findall("[a-z]+", name.lower()) if word in _WORDS]
        whole = re.sub(r"trainval(?!.*trainval)", "train", name), re.sub(r"trainval(?!.*trainval)", "val", name)
        if words and not (words[-1] == "trainval" and set(whole) <= set(names)):
            parts.setdefault(_WORDS[words[-1]], []).append(name)
    if "train" not in parts:
        raise RetinaError(
            f"splits: expected one called train among {', '.join(names)}; name the one to train on so, or write a "
            "configuration (`retina guide data`)"
        )
    return {role: parts[role] for role in ROLES if role in parts}


def shares(images: int, parts: Literal["all", "test there"] = "all") -> tuple[float, ...]:
    """Return the shares of train, validation and, of many images without a test split, test."""
    return (0.7, 0.15, 0.15) if images >= _ENOUGH_FOR_A_TEST and parts == "all" else (0.85, 0.15)


def joined(rows: int, groups: Iterable[Sequence[int]]) -> np.ndarray:
    """Return for each row the first row that it is connected to by groups, such as those of copies: [rows] int64."""
    first = np.arange(rows)
    for group in groups:
        together = np.isin(first, first[list(group)])
        first[together] = first[together].min()
    return first


def divide(
    image_ids: Sequence[int | str], showing: np.ndarray, group: np.ndarray, parts: Sequence[float]
) -> np.ndarray:
    """Divide images by shares, so that each part shows each class in its share, and no group is divided.

    Iterative stratification (Sechidis et al. 2011, "On the Stratification of Multi-label Data"): of the class with the
    fewest images left, each group goes to the part that lacks that class most. The order is drawn from the ids alone,
    so that it is the same on every machine.

    Args:
        image_ids: N.
        showing: [N,K] bool, the classes that an image shows.
        group: [N] int64, equal for images that stay together.
        parts: the shares, whose sum is 1; the first is the training split.

    Returns:
        [N] int64: the number of each image's part.

    Raises:
        RetinaError: there are fewer groups than parts.
    """
    names, of_image = np.unique(group, return_inverse=True)
    if len(names) < len(parts):
        raise RetinaError(
            f"splits: expected at least {len(parts)} different images to divide, got {len(names)} (copies are one); "
            "add photographs"
        )
    count, kinds = len(names), showing.shape[1]
    # The last column counts images, so that those without a class are divided too.
    content = np.zeros((count, kinds + 1))
    np.add.at(content, of_image, np.column_stack([showing, np.ones(len(showing))]))
    place = np.empty(len(image_ids), np.int64)
    place[random_order(image_ids, 0)] = np.arange(len(image_ids))
    order = np.full(count, len(image_ids))
    np.minimum.at(order, of_image, place)
    need = np.outer(parts, content.sum(axis=0))
    part = np.full(count, -1)
    while (part < 0).any():
        left = part < 0
        rest = content[left, :kinds].sum(axis=0)
        rare = int(np.where(rest > 0, rest, np.inf).argmin()) if rest.any() else kinds
        chosen = np.flatnonzero(left & (content[:, rare] > 0))
        # The largest groups first, while every part still has room for them.
        for index in chosen[np.lexsort((order[chosen], -content[chosen, kinds]))]:
            part[index] = max(range(len(parts)), key=lambda p: (need[p, rare], need[p, kinds], -p))
            need[part[index]] -= content[index]
    return _none_empty(part, content, len(parts))[of_image]


def _none_empty(part: np.ndarray, content: np.ndarray, parts: int) -> np.ndarray:
    """The parts of groups; a part without an object gets the smallest group with one from the part with most groups."""
    part = part.copy()
    for empty in range(parts):
        objects = content[:, :-1].sum(axis=1)
        if objects[part == empty].any():
            continue
        donor = int(np.bincount(part, minlength=parts).argmax())
        giving = np.flatnonzero((part == donor) & (objects > 0))
        if len(giving) > 1:
            part[giving[content[giving, -1].argmin()]] = empty
    return part
