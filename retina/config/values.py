"""The types of numbers in the configuration, and the base class of its sections."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# Strict: YAML 1.1 reads `yes` and `on` as true, which pydantic would otherwise take for the number 1.
Int = Annotated[int, Field(strict=True)]
Float = Annotated[float, Field(strict=True, allow_inf_nan=False)]
PositiveFloat = Annotated[Float, Field(gt=0)]
NonNegativeFloat = Annotated[Float, Field(ge=0)]
Fraction = Annotated[Float, Field(ge=0, le=1)]
PositiveInt = Annotated[Int, Field(gt=0)]
NonNegativeInt = Annotated[Int, Field(ge=0)]


class Section(BaseModel):
    """Base class of the sections: frozen, without room for unknown keys.

    The text under a field is its description: `retina config --explain`, the guide's page of settings and the JSON
    schema show it. It starts with a noun phrase, names the unit, and gives the reason of the default or its source.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True)
