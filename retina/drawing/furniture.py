"""The frame of every page: one HTML file with everything in it, readable offline, on a phone, in the dark, on paper.

A page is a Jinja2 template that extends `base.html.jinja` and gets plain values; `retina.drawing.charts` computes
its curves. All text is escaped, values for scripts are embedded as JSON, and the page's Content-Security-Policy names
the digests of its own scripts: nothing else in it can run, and nothing can be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
# Characters that could end a script element or, in old engines, a line of a string.
_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def render(template: Path, *, title: str, scripts: Sequence[Path] = (), **values: Any) -> str:
    """Return the text of a page.

    Args:
        template: extends `base.html.jinja` of this package; may import its macros (`macros.html.jinja`) and others
            in its folder.
        title: of the page, plain text.
        scripts: files of JavaScript, run in this order after the package's own.
        values: the variables of the template; a missing variable is an error.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader([template.parent, _HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(embed=embed, number=number, percent=percent, figure=figure)
    # Marked as safe: files of this package, and JSON whose angle brackets are written as escapes.
    sources = [path.read_text(encoding="utf-8") for path in (_HERE / "page.js", *scripts)]
    return environment.get_template(template.name).render(
        page_title=title,
        page_style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),  # noqa: S704
        page_scripts=[Markup(source) for source in sources],  # noqa: S704
        page_policy=policy(sources),
        **values,
    )


def policy(scripts: Sequence[str]) -> str:
    """The Content-Security-Policy that lets these scripts run and no others, and fetches nothing."""
    digests = (base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii") for text in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"


def embed(value: Any) -> Any:
    """Return a value as JSON that is safe inside a script element of type `application/json`: the page's data.

    Raises:
        ValueError: the value holds NaN or infinity, which JSON can't write.
    """
    from markupsafe import Markup

    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.translate(_ESCAPES))  # noqa: S704


def number(value: float) -> str:
    """A count: `12,345`."""
    return f"{value:,.0f}"


def percent(share: float | None) -> str:
    """A share of 1: `12.3 %`, or a dash where there is none."""
    return "–" if share is None or math.isnan(share) else f"{100 * share:.1f} %"


def signed(value: float, places: int = 3) -> str:
    """A difference: `+0.012` or `−0.012`, with the sign that has the width of a plus."""
    return f"{value:+.{places}f}".replace("-", "−")


def figure(value: float | None, places: int = 3) -> str:
    """A metric in [0, 1]: `0.512`, or a dash where it is undefined (None, NaN or -1)."""
    return "–" if value is None or math.isnan(value) or value == -1 else f"{value:.{places}f}"
