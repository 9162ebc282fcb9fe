"""Fingerprints of tables: a resumed run must go on with the data that it began with."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from retina.data.dataset import DetectionDataset

# By split. Plain values for JSON.
Fingerprints = dict[str, dict[str, Any]]

_COLUMNS = {
    "sizes": "image sizes",
    "offsets": "boxes per image",
    "boxes": "boxes",
    "labels": "labels",
    "crowd": "crowd flags",
    "difficult": "difficult flags",
    "areas": "areas",
}
_COUNTS = ("images", "boxes", "crowd", "difficult")


def fingerprint(data: DetectionDataset) -> dict[str, Any]:
    """Counts of images, boxes, crowd and difficult boxes, and under `sha256` a digest of each column of the table.

    Paths of images are left out, so that a folder may move, and so are their pixels, which would have to be read.
    860,000 boxes take a fraction of a second.
    """
    ids = hashlib.sha256("\n".join(map(repr, data.image_ids)).encode("utf-8", "backslashreplace")).hexdigest()
    columns = {name: _digest(getattr(data, column)) for column, name in _COLUMNS.items()}
    return {
        "images": len(data),
        "boxes": len(data.boxes),
        "crowd": int(data.crowd.sum()),
        "difficult": int(data.difficult.sum()),
        "sha256": {"image ids": ids, **columns},
    }


def differences(before: Fingerprints, after: Fingerprints) -> list[str]:
    """Return the differences of two sets of fingerprints, a text a split: counts, or where these agree columns."""
    texts = []
    for split in sorted(before.keys() | after.keys()):
        old, new = before.get(split, {}), after.get(split, {})
        counts = [f"{name} {old.get(name)} → {new.get(name)}" for name in _COUNTS if old.get(name) != new.get(name)]
        digests, others = old.get("sha256", {}), new.get("sha256", {})
        columns = [name for name in digests.keys() | others.keys() if digests.get(name) != others.get(name)]
        if counts or columns:
            texts.append(f"{split} ({', '.join(counts or ['other ' + ', '.join(sorted(columns))])})")
    return texts


def _digest(column: np.ndarray) -> str:
    # Little-endian, whatever the machine: a run may move.
    plain = np.ascontiguousarray(column, column.dtype.newbyteorder("<"))
    return hashlib.sha256(plain.reshape(-1).view(np.uint8).data).hexdigest()
