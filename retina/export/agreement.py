"""Agreement of an export with its checkpoint: of detections, within limits, and of the stages that lead to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from retina.inference import Detections

MATCH_IOU = 0.9


@dataclass(frozen=True)
class Agreement:
    """Pairs matched by class and IoU ≥ 0.9, and what stays unmatched.

    Attributes:
        matched: pairs.
        box_shift: largest difference of a coordinate over the pairs, pixels of the image.
        score_difference: largest over the pairs.
        unmatched_checkpoint, unmatched_export: detections of one side without a partner.
        worst: the image that disagrees most: by its unmatched detections, then by its largest shift; -1 for none.
    """

    matched: int
    box_shift: float
    score_difference: float
    unmatched_checkpoint: int
    unmatched_export: int
    worst: int

    @property
    def unmatched(self) -> int:
        """Number of detections without a partner."""
        return self.unmatched_checkpoint + self.unmatched_export

    @property
    def unmatched_share(self) -> float:
        """Share of the detections of both sides that have no partner."""
        total = 2 * self.matched + self.unmatched
        return self.unmatched / total if total else 0.0


def agreement(checkpoint: Sequence[Detections], export: Sequence[Detections]) -> Agreement:
    """Compare image by image.

    Going down the checkpoint's scores, each detection takes the export's free one of its class with the largest IoU, if
    that is at least 0.9.
    """
    matched, shift, score, missing, surplus = 0, 0.0, 0.0, 0, 0
    worst, worst_key = -1, (0, 0.0)
    for image, (ours, theirs) in enumerate(zip(checkpoint, export, strict=True)):
        pairs = _pairs(ours, theirs)
        rows, columns = pairs.T
        here = float(np.abs(_boxes(ours)[rows] - _boxes(theirs)[columns]).max(initial=0.0))
        gap = np.abs(ours.scores.astype(np.float64)[rows] - theirs.scores.astype(np.float64)[columns])
        alone = len(ours) + len(theirs) - 2 * len(pairs)
        matched, shift, score = matched + len(pairs), max(shift, here), max(score, float(gap.max(initial=0.0)))
        missing, surplus = missing + len(ours) - len(pairs), surplus + len(theirs) - len(pairs)
        if (alone, here) > worst_key:
            worst, worst_key = image, (alone, here)
    return Agreement(matched, shift, score, missing, surplus, worst)


def _pairs(ours: Detections, theirs: Detections) -> np.ndarray:
    """Rows [P, 2] of both that belong together."""
    overlaps = _iou(_boxes(ours), _boxes(theirs))
    # A box that is not finite overlaps nothing.
    overlaps = np.where(ours.labels[:, None] == theirs.labels[None], np.nan_to_num(overlaps), -1.0)
    pairs = []
    for row in np.argsort(-ours.scores, kind="stable"):
        column = int(np.argmax(overlaps[row])) if overlaps.shape[1] else 0
        if overlaps.shape[1] and overlaps[row, column] >= MATCH_IOU:
            pairs.append((int(row), column))
            overlaps[:, column] = -1.0
    return np.array(pairs, np.int64).reshape(-1, 2)


def _boxes(detections: Detections) -> np.ndarray:
    return np.asarray(detections.boxes, np.float64).reshape(-1, 4)


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Overlaps [n, m] of boxes [n, 4] and [m, 4]; equal boxes without area overlap wholly."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low, 0.0, None).prod(-1)
    areas = [np.clip(x[:, 2:] - x[:, :2], 0.0, None).prod(-1) for x in (a, b)]
    union = areas[0][:, None] + areas[1][None] - shared
    same = (a[:, None] == b[None]).all(-1)
    return np.where(same, 1.0, shared / np.where(union > 0, union, 1.0))


# ------------------------------------------------------------------------------------------------------------- limits


@dataclass(frozen=True)
class Limits:
    """`delta_ap` of |ΔAP|; `box_shift` in pixels and `unmatched` as a share of all detections, None where they are only
    recorded; `stage` of a tensor relative to its largest magnitude, beyond which a stage counts as different."""

    delta_ap: float
    box_shift: float | None = None
    unmatched: float | None = None
    stage: float = 1e-3


LIMITS = {
    "saved_model": Limits(0.0, 0.05, 0.001, 1e-4),
    "saved_model, folded": Limits(0.001, 0.05, 0.001),
    "onnx, float32": Limits(0.001, 0.05, 0.001),
    "onnx, float16": Limits(0.002, stage=0.02),
    "litert, float32": Limits(0.001, 0.05, 0.001),
    "litert, float16": Limits(0.002, stage=0.02),
    "litert, int8": Limits(0.02, stage=0.2),
}
"""Limits by the format and what it was written with. A SavedModel is held to ΔAP = 0 on the machine that made it."""


def problems(limits: Limits, delta_ap: float | None, agreed: Agreement) -> tuple[str, ...]:
    """A sentence for each limit that is exceeded; `delta_ap` is None where the export could not be scored."""
    out = []
    if delta_ap is not None and not abs(delta_ap) <= limits.delta_ap:
        out.append(f"AP differs by {delta_ap:+.6f}, allowed is {_amount(limits.delta_ap)}")
    if limits.box_shift is not None and not agreed.box_shift <= limits.box_shift:
        out.append(f"a box is shifted by {agreed.box_shift:.4g} px, allowed is {limits.box_shift:g} px")
    if limits.unmatched is not None and not agreed.unmatched_share <= limits.unmatched:
        share = f"{agreed.unmatched_share:.2%}"
        out.append(f"{agreed.unmatched} detections ({share}) have no partner, allowed are {limits.unmatched:.1%}")
    return tuple(out)


def _amount(limit: float) -> str:
    return f"±{limit:g}" if limit else "none"


# ---------------------------------------------------------------------------------------------- the stages of an image

Stage = Literal["decode", "resize", "backbone", "head", "NMS"]

TENSORS: dict[str, Stage] = {
    "pixels": "decode",
    "canvas": "resize",
    "maps": "backbone",
    "logits": "head",
    "deltas": "head",
}
"""Tensors that a runner may show of one image, in the order of computation, and the stages that make them: `pixels`
[h,w,3] and `canvas` [H,W,3] uint8, `maps` the pyramid's maps as one row of float32, `logits` [A,K] and `deltas` [A,4].
"NMS" is all that follows: candidates, boxes, suppression."""


class Difference(NamedTuple):
    """`stage` is the first that differs, None if the export shows too little to say; `words` say how."""

    stage: Stage | None
    words: str


def first_difference(
    checkpoint: Mapping[str, np.ndarray], export: Mapping[str, np.ndarray], tolerance: float
) -> Difference:
    """Compare one image's tensors in the order of `TENSORS`; asked only where the detections differ.

    Args:
        tolerance: of floats, relative to the largest magnitude of the checkpoint's tensor; pixels must be equal.
    """
    shown = [name for name in TENSORS if name in export]
    if not shown:
        return Difference(None, "the export shows nothing between the image and its detections")
    for name in shown:
        ours, theirs = checkpoint[name], export[name]
        if ours.shape != theirs.shape:
            words = f"{name}: the checkpoint's have shape {list(ours.shape)}, the export's {list(theirs.shape)}"
            return Difference(TENSORS[name], words)
        gap = np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max(initial=0.0)
        largest = np.abs(ours.astype(np.float64)).max(initial=0.0)
        allowed = 0.0 if ours.dtype == np.uint8 else tolerance * largest
        if not gap <= allowed:  # also where it is not a number
            words = f"{name}: off by up to {gap:.4g} (magnitudes reach {largest:.4g}, allowed is {allowed:.2g})"
            return Difference(TENSORS[name], words)
    return Difference("NMS", f"{', '.join(shown)} agree; boxes, candidates or suppression differ")
