"""Plots as PNG files, drawn with matplotlib, for papers, slides and folders that are looked at without a page."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from retina.files import written

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, GREY = "#1f2933", "#8a8f98"


def save(path: Path, size: tuple[float, float], paint: Callable[[Figure], None]) -> None:
    """A figure of this size in inches, painted and written whole."""
    # The object interface: pyplot would keep the figures and choose a window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # Names are the user's: a script that the font lacks is drawn as boxes, and that is all there is to say.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        warnings.filterwarnings("ignore", message="constrained_layout not applied", category=UserWarning)
        paint(figure)
        for axes in figure.axes:
            axes.spines[["top", "right"]].set_visible(False)
        with written(path) as temporary:
            figure.savefig(temporary, format="png")
