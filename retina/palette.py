"""One colour a class, the same in every terminal, picture, plot and page."""

from __future__ import annotations

from collections.abc import Sequence

from retina.errors import RetinaError

Colour = tuple[int, int, int]

# Okabe and Ito (2008), "Color Universal Design": told apart with any common colour vision. Their black is left out,
# since it can't be seen on a dark photograph. The order puts the most different ones first.
_OKABE_ITO: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (213, 94, 0),
    (204, 121, 167),
    (240, 228, 66),
    (0, 114, 178),
)
WHITE: Colour = (255, 255, 255)
BLACK: Colour = (0, 0, 0)


def class_colour(index: int) -> Colour:
    """The colour (r, g, b) of a number; of classes see `class_colours`.

    The first seven are Okabe and Ito's; further classes repeat them in lighter and darker shades, never the same twice
    among the first hundred.

    Raises:
        RetinaError: the index is negative.
    """
    if index < 0:
        raise RetinaError(f"class_colour: expected a class index of at least 0, got {index}; count classes from 0")
    cycle, base = divmod(int(index), len(_OKABE_ITO))
    if cycle == 0:
        return _OKABE_ITO[base]
    # The bit-reversed cycle number spreads the shades evenly, however many classes there are.
    step, towards = (cycle + 1) // 2, WHITE if cycle % 2 else BLACK
    share = 0.75 * int(f"{step:b}"[::-1], 2) / 2 ** step.bit_length()
    red, green, blue = (
        round(start + share * (end - start)) for start, end in zip(_OKABE_ITO[base], towards, strict=True)
    )
    return red, green, blue


def class_colours(names: Sequence[str]) -> list[Colour]:
    """The colours of the classes of a data set, in the order of their names.

    A colour goes by the rank of the name, whatever the order in which the data list their classes: shorter names first,
    so that numbers count. A function of each name alone would give two of three classes one base colour in 4 of 10 data
    sets.
    """
    ranks = {name: rank for rank, name in enumerate(sorted(set(names), key=lambda name: (len(name), name)))}
    return [class_colour(ranks[name]) for name in names]


def class_hexes(names: Sequence[str]) -> list[str]:
    """`class_colours` as `#rrggbb`, which CSS and terminals take."""
    return ["#{:02x}{:02x}{:02x}".format(*colour) for colour in class_colours(names)]
