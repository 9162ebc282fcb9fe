"""The section `data.relabel`, which chooses classes in all splits, and a split's `select`, which chooses images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from retina.config.values import Fraction, Int, NonNegativeInt, PositiveInt, Section


class Relabel(Section):
    """Classes renamed, merged and left out, alike in every split and in the ground truth of evaluations."""

    rename: dict[str, str] = Field(default_factory=dict)
    """Class names of the files and their new names, renamed all at once. Classes that come to share a name are merged:
    the merged class stands where the first of them stood and keeps its category id. `data.classes` then orders the new
    names."""

    keep: tuple[str, ...] | None = Field(default=None, min_length=1)
    """New names of the classes to keep. Boxes of the others are left out, and what they show becomes background; images
    are kept. Null keeps all but `drop`."""

    drop: tuple[str, ...] | None = Field(default=None, min_length=1)
    """New names of the classes to leave out, in the place of `keep`."""

    @model_validator(mode="after")
    def _does_something(self) -> Relabel:
        if not self.rename and self.keep is None and self.drop is None:
            raise ValueError("expected rename, keep or drop, got none of them; leave the section out")
        if self.keep is not None and self.drop is not None:
            raise ValueError("keep and drop contradict each other; give one of them")
        same = [old for old, new in self.rename.items() if old == new]
        if same:
            raise ValueError(f"rename: '{same[0]}' to itself has no effect; leave it out")
        if not all(self.rename.values()):
            raise ValueError("rename: a class needs a name, got an empty one")
        return self


class Select(Section):
    """The images of a split; each setting chooses among those that the one before it left, in the order given here."""

    share: tuple[Fraction, Fraction] | None = None
    """A part [from, to] of the images in a random order, as fractions. An image's place in that order follows from
    `seed` and its id alone, so shares [0, 0.8], [0.8, 0.9] and [0.9, 1] of one source are disjoint and together whole.
    Two splits that take overlapping shares of one source, written alike in both, or differ in their seeds, are refused.
    Where a source is written in two ways, or one split has no share, only the images tell: the preflight
    (`run.preflight`, `retina doctor`) refuses splits that share files."""

    copies_together: bool = False
    """Whether images with the same bytes stay in one share, so that no copy of a training image is evaluated on; a
    share then begins and ends a few images earlier or later. It reads files of equal length. False, the default, is
    the order by ids alone."""

    images: Path | None = None
    """A text file of image ids (or names of image files), one a line; from `data.root`."""

    drop_empty: bool = False
    """Whether the images that have no box, after `data.relabel`, are left out."""

    shots: PositiveInt | None = None
    """Few-shot: the first images in the random order that give each class this many `instances` (or `images` that show
    it, by `shots_of`), the rarest class first. Images stay whole, since an object without its box would be trained as
    background, so a class may get more; crowds and difficult boxes don't count."""

    shots_of: Literal["instances", "images"] | None = None
    """Unit of `shots`: objects of a class, or images that show it. Null is `instances`."""

    every: Annotated[Int, Field(ge=2)] | None = None
    """Number of images of which the first is taken, again and again in the order of the table: 10 takes a tenth."""

    first: PositiveInt | None = None
    """Number of images taken from the start."""

    seed: NonNegativeInt | None = None
    """Seed of the random order of `share` and `shots`; null is 0."""

    @model_validator(mode="after")
    def _does_something(self) -> Select:
        if not self.drop_empty and all(
            given is None for given in (self.share, self.images, self.shots, self.every, self.first)
        ):
            raise ValueError("expected share, images, drop_empty, shots, every or first; leave the section out")
        if self.share is not None and (self.share[1] <= self.share[0] or self.share == (0.0, 1.0)):
            raise ValueError(f"share must be [from, to], a part of 0 to 1 but not all of it, got {list(self.share)}")
        if self.copies_together and self.share is None:
            raise ValueError("copies_together has no effect without share; leave it out")
        if self.shots is None and self.shots_of is not None:
            raise ValueError("shots_of has no effect without shots; leave it out")
        if self.seed is not None and self.share is None and self.shots is None:
            raise ValueError("seed has no effect without share or shots; leave it out")
        return self


def share_conflict(first: Select, second: Select) -> str | None:
    """Reason why two splits may not take these parts of one source, or None: with other seeds or overlapping shares one
    would see the other's images. Equal shares are taken for what is meant, and a part of a split without share is not
    looked at: what two splits share in the end, the doctor tells from their tables.
    """
    if first.share is None or second.share is None:
        return None
    seeds = first.seed or 0, second.seed or 0
    if seeds[0] != seeds[1]:
        return f"select.seed differs ({seeds[0]} and {seeds[1]}), so their shares may overlap; give both the same"
    if first.copies_together != second.copies_together:
        return "only one of them has select.copies_together, so their shares may overlap; give it to both"
    if first.share == second.share:
        return None
    if first.share[0] < second.share[1] and second.share[0] < first.share[1]:
        return f"their shares {list(first.share)} and {list(second.share)} overlap; let one begin where the other ends"
    return None
