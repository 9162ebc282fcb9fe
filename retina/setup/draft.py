"""A configuration in the making: values, each with its reason, and the YAML and the table that show both."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from retina import config
from retina.config.reading import TAGS, in_a_line, overridden

_WIDTH = 78
_GIVEN = "as given"


class Choice(NamedTuple):
    """Values that are decided together, by their keys `section.name`, and why they are these."""

    values: dict[str, Any]
    reason: str


@dataclass(frozen=True)
class Draft:
    """Choices in the order in which they were made, and the `key.path=value` overrides, which come last.

    A later choice of a key replaces an earlier one.
    """

    overrides: tuple[str, ...] = ()
    choices: tuple[Choice, ...] = ()

    def choose(self, values: dict[str, Any], reason: str) -> Draft:
        """Return the draft with one more choice; one without values says why nothing was set."""
        return replace(self, choices=(*self.choices, Choice(values, reason)))

    def gives(self, *keys: str) -> bool:
        """Return whether an override sets one of the keys, a section that holds it, or a part of it."""
        given = [text.partition("=")[0] for text in self.overrides]
        return any(f"{key}.".startswith(f"{name}.") or name.startswith(f"{key}.") for key in keys for name in given)

    def tree(self) -> dict[str, Any]:
        """Return the plain values of the configuration."""
        return overridden(self._chosen(), self.overrides)

    def config(self) -> config.Config:
        """Return the configuration.

        Raises:
            RetinaError: the overrides are wrong, or contradict a choice.
        """
        return config.parse(self.tree(), "init")

    def reasons(self) -> dict[str, str]:
        """Return the reason of each key `section.name` of the configuration."""
        chosen, reasons = self._chosen(), dict[str, str]()
        for choice in self.choices:
            reasons |= dict.fromkeys(choice.values, choice.reason)
        for section, values in self.tree().items():
            for name, value in values.items():
                key = f"{section}.{name}"
                if key not in reasons:
                    reasons[key] = _GIVEN
                elif value != chosen[section].get(name):
                    reasons[key] += f" ({_GIVEN})"
        return reasons

    def _chosen(self) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        for choice in self.choices:
            for key, value in choice.values.items():
                section, _, name = key.partition(".")
                tree.setdefault(section, {})[name] = value
        return tree


def to_yaml(draft: Draft, heading: Sequence[str]) -> str:
    """Return the YAML of a draft in the order of the configuration, a comment with the reason above each value."""
    reasons = draft.reasons()
    lines = [line for text in heading for line in _comment(text, "")]
    for section, values in _ordered(draft).items():
        lines += ["", f"{section}:"]
        before = ""
        for name, value in values.items():
            reason = reasons[f"{section}.{name}"]
            lines += _comment(reason, "  ") if reason != before else []
            lines.append(f"  {name}: {in_a_line(value)}")
            before = reason
    return "\n".join(lines) + "\n"


def to_table(draft: Draft, width: int = _WIDTH) -> Iterator[str]:
    """Yield lines for a terminal: the values of each choice in a line, and below it the reason."""
    reasons, tree = draft.reasons(), _ordered(draft)
    for reason in dict.fromkeys(reasons[f"{section}.{name}"] for section in tree for name in tree[section]):
        for section, values in tree.items():
            same = {name: value for name, value in values.items() if reasons[f"{section}.{name}"] == reason}
            for name, value in same.items() if len(same) == 1 else ():
                yield f"{section}.{name}: {in_a_line(value)}"
            if len(same) > 1:
                yield f"{section}: {in_a_line(same)}"
        yield from _indented(reason, width)
    for choice in draft.choices:
        yield from _indented(choice.reason, width) if not choice.values else ()


def _indented(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent="    ", subsequent_indent="    ", break_long_words=False)


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ", break_long_words=False
    )


def _ordered(draft: Draft) -> dict[str, Any]:
    """The values that were chosen, in the order of the configuration, kinds first."""
    tree = draft.tree()
    return {
        section: {name: tree[section][name] for name in sorted(fields, key=_is_no_kind) if name in tree[section]}
        for section, fields in draft.config().model_dump().items()
        if section in tree
    }


def _is_no_kind(name: str) -> bool:
    return name not in TAGS
