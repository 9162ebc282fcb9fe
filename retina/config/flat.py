"""A configuration as one list of settings."""

from __future__ import annotations

from typing import Any

from retina.config.sections import Config


def flat(config: Config) -> dict[str, Any]:
    """Every setting by its dotted key: plain values, lists among them; an absent section is None."""
    return _flat(config.model_dump(mode="json"), "")


def _flat(tree: dict[str, Any], prefix: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out
