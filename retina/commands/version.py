"""`retina version`."""

from __future__ import annotations

import retina


def version() -> None:
    """Print the version."""
    print(retina.__version__)
