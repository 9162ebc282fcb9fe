"""How far an export may be from its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from retina.export.agreement import Agreement


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
    "onnx": Limits(0.001, 0.05, 0.001),
    "litert, float32": Limits(0.001, 0.05, 0.001),
    "litert, float16": Limits(0.002, stage=0.02),
    "litert, int8": Limits(0.02, stage=0.2),
}
"""By the format and what it was written with. A SavedModel is held to ΔAP = 0 on the machine that made it."""


def problems(limits: Limits, delta_ap: float | None, found: Agreement) -> tuple[str, ...]:
    """Which limits are exceeded, in words; `delta_ap` is None where the export's detections could not be scored."""
    out = []
    if delta_ap is not None and not abs(delta_ap) <= limits.delta_ap:
        out.append(f"AP differs by {delta_ap:+.6f}, allowed is {_amount(limits.delta_ap)}")
    if limits.box_shift is not None and not found.box_shift <= limits.box_shift:
        out.append(f"a box is shifted by {found.box_shift:.4g} px, allowed is {limits.box_shift:g} px")
    if limits.unmatched is not None and not found.unmatched_share <= limits.unmatched:
        share = f"{found.unmatched_share:.2%}"
        out.append(f"{found.unmatched} detections ({share}) have no partner, allowed are {limits.unmatched:.1%}")
    return tuple(out)


def _amount(limit: float) -> str:
    return f"±{limit:g}" if limit else "none"
