"""The `loss` section of the configuration: its kinds of classification and box loss, and their defaults."""

from __future__ import annotations

from typing import Annotated, Literal, Union

from pydantic import Field, model_validator

from retina.config.values import Float, Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Section


class Focal(Section):
    """Sigmoid focal loss, arXiv:1708.02002 section 3. `alpha: null` switches the balancing off."""

    kind: Literal["focal"] = "focal"
    alpha: Fraction | None = 0.25
    gamma: NonNegativeFloat = 2.0


class CrossEntropy(Section):
    """α-balanced cross-entropy: focal loss with gamma 0. The default is the best of arXiv:1708.02002, table 1a."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    alpha: Fraction | None = 0.75


class Ohem(Section):
    """Online hard example mining (arXiv:1604.03540, and arXiv:1708.02002, table 1d): cross-entropy of few anchors.

    Each image keeps its `hardest` anchors, by their loss summed over classes. With a `ratio` it keeps its hardest
    positives, at most `hardest / (1 + ratio)` of them, and `ratio` times as many of its hardest negatives (`ratio`
    where it has no positive); null keeps whatever is hardest. It departs from arXiv:1604.03540 in
    four ways: anchors are ranked by the classification loss alone, where that paper ranks by the whole loss; no
    non-maximum suppression comes before; the box loss keeps all positives; and the divisor is the number of all
    positives, kept or not.
    """

    kind: Literal["ohem"] = "ohem"
    ratio: PositiveInt | None = 3
    hardest: PositiveInt = 128

    @model_validator(mode="after")
    def _room_for_a_positive(self) -> Ohem:
        if self.ratio is not None and self.hardest < 1 + self.ratio:
            raise ValueError(
                f"hardest ({self.hardest}) must be at least 1 + ratio ({1 + self.ratio}); "
                "raise loss.classification.hardest, or lower ratio or set it to null"
            )
        return self


class QualityFocal(Section):
    """Quality focal loss, arXiv:2006.04388 eq. 3: the target of a positive is the IoU of its predicted box."""

    kind: Literal["quality_focal"] = "quality_focal"
    beta: NonNegativeFloat = 2.0


class Varifocal(Section):
    """Varifocal loss, arXiv:2008.13367 eq. 2: the target as in `quality_focal`, but only negatives are focused."""

    kind: Literal["varifocal"] = "varifocal"
    alpha: NonNegativeFloat = 0.75
    gamma: NonNegativeFloat = 2.0


ClassificationLoss = Annotated[Union[Focal, CrossEntropy, Ohem, QualityFocal, Varifocal], Field(discriminator="kind")]


class HuberBox(Section):
    """Huber(delta) = delta * smooth-L1(beta=delta): with delta 1/9 and weight 9 this is smooth-L1 at 1/9."""

    kind: Literal["huber"] = "huber"
    delta: PositiveFloat = 1 / 9
    weight: PositiveFloat = 9.0


class SmoothL1Box(Section):
    kind: Literal["smooth_l1"] = "smooth_l1"
    beta: PositiveFloat = 1 / 9
    weight: PositiveFloat = 1.0


class L1Box(Section):
    """The sum of absolute errors: smooth-L1 at beta 0, as torchvision's first RetinaNet."""

    kind: Literal["l1"] = "l1"
    weight: PositiveFloat = 1.0


class GiouBox(Section):
    kind: Literal["giou"] = "giou"
    weight: PositiveFloat = 2.0


class DiouBox(Section):
    kind: Literal["diou"] = "diou"
    weight: PositiveFloat = 2.0


class CiouBox(Section):
    kind: Literal["ciou"] = "ciou"
    weight: PositiveFloat = 2.0


BoxLoss = Annotated[Union[HuberBox, SmoothL1Box, L1Box, GiouBox, DiouBox, CiouBox], Field(discriminator="kind")]


class BatchNormalizer(Section):
    """Divide by the number of positive anchors of the batch, at least 1 (arXiv:1708.02002, section 4.1)."""

    kind: Literal["batch"] = "batch"


class EmaNormalizer(Section):
    """Divide by a moving average n of that number, as detectron2 does:

    n ← momentum · n + (1 - momentum) · max(positives, 1).

    It starts at `initial` and holds the batch at hand already when that batch is divided.
    """

    kind: Literal["ema"] = "ema"
    momentum: Annotated[Float, Field(ge=0, lt=1)] = 0.9
    initial: PositiveFloat = 100.0


Normalizer = Annotated[Union[BatchNormalizer, EmaNormalizer], Field(discriminator="kind")]


class Loss(Section):
    classification: ClassificationLoss = Focal()
    box: BoxLoss = HuberBox()
    normalizer: Normalizer = BatchNormalizer()
