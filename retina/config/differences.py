"""Settings as flat lists by their dotted keys, and the differences between two of them."""

from __future__ import annotations

from typing import Any

from retina.config.sections import Config


def flat(config: Config) -> dict[str, Any]:
    """Every setting by its dotted key: plain values, lists among them; an absent section is None."""
    return _flat(config.model_dump(mode="json"), "")


def differing(before: Any, after: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Values before and after, by dotted key, where two trees of plain values differ; None for a key that one lacks."""
    if isinstance(before, dict) and isinstance(after, dict):
        pairs: dict[str, tuple[Any, Any]] = {}
        for key in sorted(set(before) | set(after)):
            pairs |= differing(before.get(key), after.get(key), f"{prefix}.{key}".lstrip("."))
        return pairs
    return {} if before == after else {prefix: (before, after)}


def changed_keys(before: Any, after: Any) -> dict[str, str]:
    """`differing` in words: by dotted key `key (before → after)`."""
    return {key: f"{key} ({old} → {new})" for key, (old, new) in differing(before, after).items()}


def _flat(tree: dict[str, Any], prefix: str) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            settings |= _flat(value, f"{prefix}{key}.")
        else:
            settings[f"{prefix}{key}"] = value
    return settings
