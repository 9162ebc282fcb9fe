"""Findings of the doctor, each with a grade, a name, the facts and what to do about them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Grade = Literal["error", "warning", "note"]
GRADES: tuple[Grade, ...] = ("error", "warning", "note")

# Of a thousand damaged files the report shows a few, and the JSON this many.
LISTED = 200


@dataclass(frozen=True)
class Finding:
    """A fact about the data or the anchors that matters for training.

    Attributes:
        grade: "error" prevents training on the data, or makes its figures wrong; "warning" costs accuracy or may cost
            it; "note" is worth knowing.
        code: a name, the same in every report, such as "duplicate-images".
        message: one sentence with the numbers.
        remedy: what to do, or "" where nothing needs to be done.
        split: name of the split, or "" for all of the data.
        examples: files, images or classes, up to `LISTED` of them.
    """

    grade: Grade
    code: str
    message: str
    remedy: str = ""
    split: str = ""
    examples: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values under the names of the attributes."""
        return {
            "grade": self.grade,
            "code": self.code,
            "split": self.split,
            "message": self.message,
            "remedy": self.remedy,
            "examples": list(self.examples),
        }


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return errors first, then warnings, then notes; otherwise in the order given."""
    return tuple(sorted(findings, key=lambda finding: GRADES.index(finding.grade)))


def some(names: Sequence[str], most: int = 5) -> str:
    """Return a list for a sentence: the first few names, and the number of others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def listed(names: Iterable[str]) -> tuple[str, ...]:
    """Return at most `LISTED` examples."""
    return tuple(name for name, _ in zip(names, range(LISTED), strict=False))
