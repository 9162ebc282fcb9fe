"""Differences of a configuration from the defaults."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from retina.config import Config, Section

_TAGS = ("kind", "format")
_NONE = "–"


class Change(NamedTuple):
    """A setting by its dotted key: its value, and the default, a dash where there is none."""

    key: str
    value: str
    default: str


def changes(config: Config) -> list[Change]:
    """Return every setting that differs from its default or has none, in the order of the configuration.

    A run records an absolute `data.root`; it is left out where all data is built in and the folder is not used.
    """
    sources = (config.data.train, config.data.validation, config.data.test)
    built_in = all(source is None or source.format == "digits" for source in sources)
    return [change for change in _changes(config, None, "") if not (built_in and change.key == "data.root")]


def _changes(section: Section, default: Section | None, prefix: str) -> Iterator[Change]:
    """Yield the changes in a section; `default` has the section's type, or is None: its fields' defaults then count."""
    plain = section.model_dump(mode="json")
    usual = {} if default is None else default.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        key, value = f"{prefix}{name}", getattr(section, name)
        required = field.is_required() and default is None
        base = None
        if not required:
            base = getattr(default, name) if default is not None else field.get_default(call_default_factory=True)
        if isinstance(value, Section):
            yield from _of_section(key, value, base, plain[name])
        elif required or value != base:
            shown = usual.get(name, base)
            yield Change(key, one_line(plain[name]), _NONE if required else one_line(shown))


def _of_section(key: str, value: Section, base: Any, plain: dict[str, Any]) -> Iterator[Change]:
    alike = type(base) is type(value)
    inner = list(_changes(value, base if alike else None, f"{key}."))
    if not alike:
        tag = next((tag for tag in _TAGS if tag in plain), None)
        if tag is not None:
            yield Change(f"{key}.{tag}", one_line(plain[tag]), one_line(getattr(base, tag, None)) if base else _NONE)
        elif not inner:
            yield Change(key, one_line(plain), one_line(None) if base is None else _NONE)
    yield from inner


def one_line(value: Any) -> str:
    """Return a plain value as YAML writes it on one line."""
    if isinstance(value, str | Path):
        return str(value)
    return json.dumps(value, ensure_ascii=False, default=str)
