"""The preflight: what is wrong with the data, and what the anchors can make of it, before the first step."""

from __future__ import annotations

from typing import Any

__all__ = ["best_overlaps"]


def __getattr__(name: str) -> Any:
    # Anchors import Keras, which takes seconds; a mistyped path should be told before.
    if name != "best_overlaps":
        raise AttributeError(f"module 'retina.doctor' has no attribute '{name}'")
    from retina.doctor.coverage import best_overlaps

    return best_overlaps
