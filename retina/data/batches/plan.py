"""The images of each batch and their places in it: pure functions of the table, the seed and the epoch.

An image is resized with its aspect kept and padded to a *canvas*. Images that share a canvas share batches, so that the
shapes a compiled step sees are few and static.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from retina import config
from retina.data.dataset import DetectionDataset
from retina.errors import RetinaError

# Boxes are padded to a multiple of this, so that data sets that differ by a few boxes share a compiled step.
_BOX_MULTIPLE = 8
# Factors of repeated images are whole numbers of this part, so that their sums are exact in any order.
ONCE = 2**20


@dataclass(frozen=True, eq=False)
class Geometry:
    """Layout of N images on C canvases, all (height, width) in pixels.

    `resized` [N,2] int32 is an image's size before padding, `canvas_of` [N] int32 its row in `canvases` [C,2] int32.
    `factors` [N] int64 are the `repeat_factors` of training images; None shows each once an epoch.
    """

    resized: np.ndarray
    canvas_of: np.ndarray
    canvases: np.ndarray
    factors: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Plan:
    """S batches of B slots.

    `index` [S,B] int64 is the image's row in the table (-1: a filler without an image), `sample` [S,B] int64 the global
    sample number, `canvas` [S] int32 the row in `Geometry.canvases`.
    """

    index: np.ndarray
    sample: np.ndarray
    canvas: np.ndarray


def fit(sizes: np.ndarray, resize: config.Resize) -> Geometry:
    """Lays images out on at most `resize.max_canvases` canvases.

    The short side becomes `resize.short` unless the long side would then exceed `resize.long`; sides are rounded to the
    nearest pixel, halves up, or with `rounding: floor` down, and are at least 1. The canvas is that size rounded up to
    `resize.multiple`. Where there are too many canvases, two are merged into their elementwise maximum, the two that
    add the least area over all images first.

    Args:
        sizes: [N,2] (height, width) of the images as stored, pixels.

    Raises:
        RetinaError: a side is not positive.
    """
    sizes = np.asarray(sizes).reshape(-1, 2)
    if (sizes < 1).any():
        row = int(np.argmax((sizes < 1).any(1)))
        raise RetinaError(
            f"image {row} of the table: expected a height and width of at least 1 pixel, got {sizes[row].tolist()}; "
            "correct its declared size"
        )
    # Sizes repeat a lot (COCO: 118,000 images, 3,000 sizes), so all work is on the distinct ones.
    distinct, which, counts = _distinct(sizes)
    exact = distinct.astype(np.float64)
    scale = np.minimum(resize.short / exact.min(1, initial=np.inf), resize.long / exact.max(1, initial=0.0))
    zoomed = exact * scale[:, None]
    resized = np.maximum(np.floor(zoomed if resize.rounding == "floor" else zoomed + 0.5), 1).astype(np.int32)
    rounded_up = -(-resized // resize.multiple) * resize.multiple
    canvases, canvas_of, _ = _distinct(rounded_up)
    images = np.bincount(canvas_of, weights=counts, minlength=len(canvases)).astype(np.int64)
    canvases, merged = _merge(canvases, images, resize.max_canvases)
    return Geometry(resized[which], merged[canvas_of][which].astype(np.int32), canvases.astype(np.int32))


def training_geometries(dataset: DetectionDataset, data: config.Data, *, batch_size: int) -> tuple[Geometry, ...]:
    """Return `fit_training` of a training split, with its images as often as `data.sampling` says.

    Raises:
        RetinaError: a side is not positive, or the sampling has no effect.
    """
    factors = None if data.sampling is None else repeat_factors(dataset, data.sampling)
    geometries = fit_training(dataset.sizes, data.resize, batch_size=batch_size)
    return tuple(replace(geometry, factors=factors) for geometry in geometries)


def repeat_factors(dataset: DetectionDataset, sampling: config.RepeatSampling) -> np.ndarray:
    """Return how often each image is shown in the mean over epochs, [N] int64 in units of `ONCE`: at least once.

    Raises:
        RetinaError: none is shown more than once.
    """
    classes = len(dataset.class_names)
    image = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))
    counted = ~(dataset.crowd | dataset.difficult)
    present = np.unique(np.stack([image[counted], dataset.labels[counted]]), axis=1)
    share = np.bincount(present[1], minlength=classes) / max(len(dataset), 1)
    of_class = np.sqrt(sampling.threshold / np.where(share > 0, share, 1.0))
    exact = np.ones(len(dataset))
    np.maximum.at(exact, present[0], of_class[present[1]])
    factors = np.round(exact * ONCE).astype(np.int64)
    rarest = share[share > 0].min(initial=1.0)
    if share.any() and factors.max() == ONCE:
        remedy = "raise it, or leave data.sampling out" if rarest < 1 else "leave data.sampling out"
        raise RetinaError(
            "data.sampling.threshold: expected more than the share of the training images that the rarest class is in, "
            f"{rarest:.3g}, got {sampling.threshold:g}, which repeats none; {remedy}"
        )
    return factors


def fit_training(sizes: np.ndarray, resize: config.Resize, *, batch_size: int = 1) -> tuple[Geometry, ...]:
    """Lays images out for training: for each of `resize.train_short` in order, or else once, for `short`.

    All have the same groups, those of the largest, so that a batch may be shown at any of them; a canvas is as large as
    its group needs it there. A canvas of fewer images than a batch, which copies of them would have to fill, is merged
    into another: see `_with_full_batches`.

    Args:
        sizes: [N,2] (height, width) of the images as stored, pixels.
        batch_size: images that a canvas must have, unless all images have fewer.

    Raises:
        RetinaError: a side is not positive.
    """
    if not resize.train_short:
        return (_with_full_batches(fit(sizes, resize), batch_size),)
    widest = fit(sizes, resize.model_copy(update={"short": resize.train_short[-1]}))
    largest = _with_full_batches(widest, batch_size)
    alone = {"max_canvases": max(len(largest.canvas_of), 1)}
    geometries = []
    for short in resize.train_short:
        geometry = fit(sizes, resize.model_copy(update={**alone, "short": short}))
        canvases = np.zeros_like(largest.canvases)
        np.maximum.at(canvases, largest.canvas_of, geometry.canvases[geometry.canvas_of])
        geometries.append(Geometry(geometry.resized, largest.canvas_of, canvases))
    return tuple(geometries)


def training_plan(geometry: Geometry, *, batch_size: int, seed: int, epoch: int) -> Plan:
    """The batches of one epoch: each image at least once, in an order drawn from (seed, epoch) alone.

    The last batch of a canvas is completed from the start of that canvas' own order, so some images repeat; the number
    of batches S is the same in every epoch. `sample` is (epoch * S + step) * B + slot. Images with `factors` are
    repeated canvas by canvas.

    Raises:
        RetinaError: there is no image, or the seed does not fit into 63 bits.
    """
    count = len(geometry.canvas_of)
    if count == 0:
        raise RetinaError("training data: expected at least one image, got none; check the split's file")
    if not 0 <= seed < 2**63:
        raise RetinaError(f"run.seed: expected 0 <= seed < 2**63, got {seed}; choose a smaller one")
    random = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64)))
    order = random.permutation(count)
    groups = _by_canvas(geometry, order)
    if geometry.factors is not None:
        groups = [_repeated(rows, geometry.factors[rows], random) for rows in groups]
    batches = -(-_shown(geometry) // batch_size)
    shapes = [(count, batch_size) for count in batches[batches > 0].tolist()]
    index = np.concatenate([np.resize(rows, shape) for rows, shape in zip(groups, shapes, strict=True)])
    canvas = geometry.canvas_of[index[:, 0]]
    shuffled = random.permutation(len(index))
    index = index[shuffled].astype(np.int64)
    return Plan(index, epoch * index.size + _numbers(index), canvas[shuffled])


def evaluation_plan(geometry: Geometry, *, batch_size: int) -> Plan:
    """Each image exactly once, canvas by canvas in table order; the last batch of a canvas is filled up with -1."""
    batches = [np.zeros((0, batch_size), np.int64)]
    for rows in _by_canvas(geometry, np.arange(len(geometry.canvas_of))):
        padded = np.full((-(-len(rows) // batch_size), batch_size), -1, np.int64)
        padded.flat[: len(rows)] = rows
        batches.append(padded)
    index = np.concatenate(batches)
    return Plan(index, _numbers(index), geometry.canvas_of[index[:, 0]])


def evaluation_order(sizes: np.ndarray, resize: config.Resize) -> np.ndarray:
    """[N] int64: the rows of the table in the order of `evaluation_plan`, the same for every batch size.

    Args:
        sizes: [N,2] (height, width) of the images as stored, pixels.
    """
    return evaluation_plan(fit(sizes, resize), batch_size=1).index.ravel()


def padding(geometry: Geometry) -> float:
    """Share of the canvases' pixels, over all images, that is padding; 0 without an image."""
    canvas = geometry.canvases[geometry.canvas_of].astype(np.float64).prod(axis=1).sum()
    return float(1.0 - geometry.resized.astype(np.float64).prod(axis=1).sum() / canvas) if canvas else 0.0


def repeats(geometry: Geometry, *, batch_size: int) -> float:
    """Share of the images of an epoch of `training_plan` that complete a batch; 0 without an image."""
    slots = training_steps(geometry, batch_size=batch_size) * batch_size
    return 1.0 - int(_shown(geometry).sum()) / slots if slots else 0.0


def training_steps(geometry: Geometry, *, batch_size: int) -> int:
    """S: the number of batches of an epoch of `training_plan`."""
    return int((-(-_shown(geometry) // batch_size)).sum())


def with_steps(settings: config.Config, dataset: DetectionDataset) -> config.Config:
    """Return the configuration with `schedule.epochs` turned into steps, to the nearest, but at least one.

    Args:
        dataset: the training split.

    Raises:
        RetinaError: the warm-up or a milestone does not fit into the steps, or there is no image.
    """
    epochs = settings.schedule.epochs
    if epochs is None:
        return settings
    batch_size = settings.run.batch_size
    (geometry, *_) = training_geometries(dataset, settings.data, batch_size=batch_size)
    per_epoch = training_steps(geometry, batch_size=batch_size)
    tree = settings.model_dump(mode="json")
    tree["schedule"] |= {"steps": max(round(epochs * per_epoch), 1), "epochs": None}
    return config.parse(tree, f"schedule.epochs: {epochs:g} epochs of {per_epoch} steps")


def box_slots(offsets: np.ndarray, images: int = 1) -> int:
    """G: room for the boxes of so many images, each with the most that an image of the table has.

    Args:
        offsets: [N+1] of the table, see `retina.data.dataset.DetectionDataset`.
    """
    most = int(np.diff(offsets).max(initial=1)) * images
    return -(-most // _BOX_MULTIPLE) * _BOX_MULTIPLE


def share(batch_size: int, *, parts: int, devices: int, first: int, stop: int) -> np.ndarray:
    """Slots of a batch that the devices `first` .. `stop` - 1 of `devices` work on, in the order they take them.

    A batch that is accumulated in parts is divided into them first, so that the images of a part are the same whatever
    the number of devices: each device has an equal stretch of each part.

    Example: of 8 slots in 2 parts, device 0 of 2 has 0, 1, 4, 5.

    Returns:
        [B * (stop - first) / devices] int64: device by device, and of each part by part.
    """
    slots = np.arange(batch_size).reshape(parts, devices, -1)
    return slots[:, first:stop].transpose(1, 0, 2).ravel()


def _shown(geometry: Geometry) -> np.ndarray:
    """[C] int64: the most images that an epoch shows on each canvas, before batches are completed."""
    canvases = len(geometry.canvases)
    if geometry.factors is None:
        return np.bincount(geometry.canvas_of, minlength=canvases)
    total = np.zeros(canvases, np.int64)
    np.add.at(total, geometry.canvas_of, geometry.factors)
    return -(-total // ONCE)


def _repeated(rows: np.ndarray, factors: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return the rows, each as often as its factor says, in a new order.

    Systematic sampling (Madow 1949): a comb of distance `ONCE` with a random start is laid over the factors in their
    random order. An image has as many teeth as the whole part of its factor or one more, in the mean its factor; and so
    has their sum, so that epochs have the same number of batches.
    """
    teeth = (np.cumsum(factors) + random.integers(ONCE)) // ONCE
    return random.permutation(np.repeat(rows, np.diff(teeth, prepend=0)))


def _numbers(index: np.ndarray) -> np.ndarray:
    return np.arange(index.size, dtype=np.int64).reshape(index.shape)


def _by_canvas(geometry: Geometry, order: np.ndarray) -> list[np.ndarray]:
    """The rows of each canvas that has any, in the given order."""
    canvas_of = geometry.canvas_of[order]
    ends = np.cumsum(np.bincount(canvas_of, minlength=len(geometry.canvases)))
    groups = np.split(order[np.argsort(canvas_of, kind="stable")], ends[:-1])
    return [rows for rows in groups if len(rows)]


def _distinct(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct rows in lexicographic order [U,2], each row's place among them [N], and their counts [U]."""
    first, second = pairs.astype(np.int64).T
    keys, which, counts = np.unique(first << 32 | second, return_inverse=True, return_counts=True)
    return np.stack([keys >> 32, keys & (2**32 - 1)], axis=1), which.reshape(-1), counts


def _with_full_batches(geometry: Geometry, batch_size: int) -> Geometry:
    """The layout with at least so many images on each canvas, as far as there are.

    The images of a rarer canvas move to the one that contains it and has the least area. Where none contains it, it is
    widened to hold what is next to it, and completed by images from there, so that only a batch pays for the padding.
    """
    canvases, canvas_of = geometry.canvases.astype(np.int64), geometry.canvas_of.astype(np.int64)
    counts = np.bincount(canvas_of, minlength=len(canvases))
    while len(canvases) > 1 and counts.min() < batch_size:
        rare = int(counts.argmin())  # the first of equals, as the canvases are in order: the same on every machine
        joint = np.maximum(canvases[rare], canvases)
        growth = joint.prod(axis=1) - canvases.prod(axis=1)
        growth[rare] = np.iinfo(np.int64).max
        containing = (growth == 0).nonzero()[0]
        if len(containing):
            target = int(containing[canvases[containing].prod(axis=1).argmin()])
            canvas_of[canvas_of == rare] = target
        else:
            target, missing = int(growth.argmin()), batch_size - counts[rare]
            there = (canvas_of == target).nonzero()[0]
            canvases[rare] = joint[target]
            if len(there) - missing >= batch_size:
                canvas_of[there[np.linspace(0, len(there) - 1, missing).round().astype(np.int64)]] = rare
            else:
                canvas_of[there] = rare
        left = np.unique(canvas_of)
        canvases, canvas_of = canvases[left], np.searchsorted(left, canvas_of)
        counts = np.bincount(canvas_of, minlength=len(canvases))
    return Geometry(geometry.resized, canvas_of.astype(np.int32), canvases.astype(np.int32))


def _merge(canvases: np.ndarray, images: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Merges C canvases down to `most`; returns the new canvases and, for each old one, its row among them [C]."""
    groups = [[i] for i in range(len(canvases))]
    sizes, weights = canvases.astype(np.int64), images.astype(np.float64)
    while len(sizes) > most:
        area = sizes.prod(1)
        joint = np.maximum(sizes[:, None], sizes[None])
        added = joint.prod(2) * (weights[:, None] + weights[None]) - (area * weights)[:, None] - (area * weights)[None]
        added[np.tril_indices(len(sizes))] = np.inf
        # argmin takes the first of equals in lexicographic order of the canvases: the same on every machine.
        a, b = np.unravel_index(np.argmin(added), added.shape)
        groups[a] += groups.pop(b)
        sizes[a], weights[a] = joint[a, b], weights[a] + weights[b]
        sizes, weights = np.delete(sizes, b, axis=0), np.delete(weights, b)
    final, row_of, _ = _distinct(sizes)
    merged = np.zeros(len(canvases), np.int64)
    for row, members in zip(row_of, groups, strict=True):
        merged[members] = row
    return final, merged
