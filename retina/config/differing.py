"""In which settings two configurations differ."""

from __future__ import annotations

from typing import Any


def differing(before: Any, after: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """By dotted key what stands in two trees of plain values where they differ; None for a key that one lacks."""
    if isinstance(before, dict) and isinstance(after, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for key in sorted(set(before) | set(after)):
            found |= differing(before.get(key), after.get(key), f"{prefix}.{key}".lstrip("."))
        return found
    return {} if before == after else {prefix: (before, after)}


def changed_keys(before: Any, after: Any) -> dict[str, str]:
    """`differing` in words: by dotted key `key (before → after)`."""
    return {key: f"{key} ({old} → {new})" for key, (old, new) in differing(before, after).items()}
