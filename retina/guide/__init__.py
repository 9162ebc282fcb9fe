"""The manual: a Markdown page a topic, in the wheel, and what reads them.

A page begins with its title (`# Data`) and a sentence that says what it is about; the list of topics shows that.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path

from retina.errors import RetinaError

_FOLDER = Path(__file__).parent
_ORDER = (
    "data", "training", "settings", "devices", "weights", "evaluation", "ablation", "gamma", "prediction", "export",
    "python", "reference", "ecosystem", "commands", "measurements", "gpu", "errors",
)  # fmt: skip


def topics() -> dict[str, str]:
    """Return the name of every page with the line that says what it is about, in the manual's order."""
    names = [path.stem for path in _FOLDER.glob("*.md")]
    names.sort(key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))
    return {name: _about(page(name)) for name in names}


def page(topic: str) -> str:
    """Return the Markdown of a page.

    Raises:
        RetinaError: there is no such page; the message names the nearest ones.
    """
    names = sorted(path.stem for path in _FOLDER.glob("*.md"))
    if topic not in names:
        near = get_close_matches(topic, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"the topics are {', '.join(names)}"
        raise RetinaError(f"guide: there is no page '{topic}'; {hint}")
    return (_FOLDER / f"{topic}.md").read_text(encoding="utf-8")


def _about(text: str) -> str:
    """Return the first sentence after the title, on one line."""
    below = text.partition("\n# ")[2] if text.startswith("<!--") else text
    return re.split(r"(?<=\.) ", " ".join(below.split("\n\n")[1].split()), maxsplit=1)[0]
