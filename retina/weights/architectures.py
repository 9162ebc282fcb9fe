"""The residual networks whose weights can be read (He et al. 2015, arXiv:1512.03385, table 1), by their depths.

Depth 10 is common usage: no ecosystem publishes weights of it.
"""

from __future__ import annotations

from typing import NamedTuple


class Architecture(NamedTuple):
    """Blocks of the four stages, and whether they are bottlenecks."""

    blocks: tuple[int, int, int, int]
    bottleneck: bool


ARCHITECTURES = {
    10: Architecture((1, 1, 1, 1), False),
    18: Architecture((2, 2, 2, 2), False),
    34: Architecture((3, 4, 6, 3), False),
    50: Architecture((3, 4, 6, 3), True),
    101: Architecture((3, 4, 23, 3), True),
    152: Architecture((3, 8, 36, 3), True),
}
