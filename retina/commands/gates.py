"""Gates for continuous integration: options by which a command fails where a figure is too low."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple

import typer
from typer.core import TyperCommand

from retina.errors import RetinaError

TOLERATED = 0.01
"""The fall of AP that `--fail-if-worse` tolerates by default."""

FailBelow = Annotated[
    list[str] | None,
    typer.Option(metavar="FIGURE=VALUE", help="End with exit code 1 where a figure is lower: AP=0.5."),
]
_NUMBER = re.compile(r"\d*\.?\d+")


class Limit(NamedTuple):
    """The least `value` of a figure."""

    figure: str
    value: float


def limits(texts: Sequence[str] | None) -> list[Limit]:
    """Return the limits of `FIGURE=VALUE`, before anything takes time.

    Raises:
        RetinaError: a text is something else.
    """
    pairs = [(text, *text.partition("=")[::2]) for text in texts or ()]
    for text, figure, number in pairs:
        if not figure or not _NUMBER.fullmatch(number):
            raise RetinaError(f"--fail-below {text}: expected FIGURE=VALUE, the value at least 0, such as AP=0.5")
    return [Limit(figure, float(number)) for _, figure, number in pairs]


def below(limits: Sequence[Limit], figures: Mapping[str, float | None]) -> list[str]:
    """Return a sentence on each limit that figures, by name, don't reach; None and -1 are undefined and reach none.

    Raises:
        RetinaError: there is no such figure.
    """
    reasons = []
    for name, least in limits:
        if name not in figures:
            raise RetinaError(f"--fail-below {name}={least:g}: expected one of {', '.join(figures)}")
        value = figures[name]
        if value is None or value < least:
            shown = "undefined" if value is None or value < 0 else f"{value:.4f}"
            reasons.append(f"{name} is {shown}, below {least:g} (--fail-below)")
    return reasons


def worse(tolerated: float | None, difference: float | None) -> list[str]:
    """Return a sentence where B has less AP than A by more than is tolerated; None tolerates everything."""
    if tolerated is None or (difference is not None and difference >= -tolerated):
        return []
    fall = "can't be compared with" if difference is None else f"is {-difference:.4f} below"
    return [f"AP of B {fall} that of A, tolerated are {tolerated:g} (--fail-if-worse)"]


def fail(reasons: Sequence[str]) -> None:
    """End the command with exit code 1 where there are reasons, which are printed to standard error."""
    for reason in reasons:
        print(f"retina: {reason}", file=sys.stderr)
    if reasons:
        raise typer.Exit(1)


class SpelledOut(TyperCommand):
    """A command that takes several runs after `--a` and `--b`, and `--fail-if-worse` with or without a value."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        return super().parse_args(ctx, spelled_out(args))


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """Return arguments in which `--fail-if-worse` has its value, and each run after `--a` or `--b` the option.

    So that shells can expand `--a runs/a_*`: click's options take one value each.
    """
    words: list[str] = []
    setting = ""
    for place, word in enumerate(arguments):
        following = arguments[place + 1] if place + 1 < len(arguments) else ""
        if word in ("--a", "--b"):
            setting = word
        elif word.startswith("-"):
            setting = ""
        if setting and word != setting and words[-1] != setting:
            words.append(setting)
        words.append(word)
        if word == "--fail-if-worse" and not _NUMBER.fullmatch(following):
            words.append(str(TOLERATED))
    return words
