"""What the doctor says: findings, each with a grade, a name, what was seen and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Grade = Literal["error", "warning", "note"]
GRADES: tuple[Grade, ...] = ("error", "warning", "note")

# Of a thousand damaged files the report shows a few, and the JSON as many as anybody reads.
LISTED = 200


@dataclass(frozen=True)
class Finding:
    """One thing that the doctor has to say.

    Attributes:
        grade: "error" keeps the data from being trained on, or makes its figures wrong; "warning" costs accuracy or
            may; "note" is worth knowing.
        code: its name, the same in every report, such as "duplicate-images".
        message: one sentence with the numbers.
        remedy: what to do, or "" where nothing needs doing.
        split: of the data, or "" where it concerns all of it.
        examples: files, images or classes, up to `LISTED` of them.
    """

    grade: Grade
    code: str
    message: str
    remedy: str = ""
    split: str = ""
    examples: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values under the names of the attributes."""
        return {
            "grade": self.grade,
            "code": self.code,
            "split": self.split,
            "message": self.message,
            "remedy": self.remedy,
            "examples": list(self.examples),
        }


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors first, then warnings, then notes; otherwise in the order given."""
    return tuple(sorted(findings, key=lambda finding: GRADES.index(finding.grade)))


def some(names: Sequence[str], most: int = 5) -> str:
    """A list in a sentence: the first few, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def listed(names: Iterable[str]) -> tuple[str, ...]:
    """At most `LISTED` examples."""
    return tuple(name for name, _ in zip(names, range(LISTED), strict=False))


def count(number: int, thing: str) -> str:
    """ "1 box", "2 boxes", "3 images", "2 classes"."""
    if number != 1:
        thing += "es" if thing.endswith(("x", "s")) else "s"
    return f"{number} {thing}"
