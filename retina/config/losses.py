"""The `loss` section of the configuration: its kinds of classification and box loss, and their defaults."""

from __future__ import annotations

from typing import Annotated, Literal, Union

from pydantic import Field, model_validator

from retina.config.values import Float, Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Section


class Focal(Section):
    """Sigmoid focal loss (arXiv:1708.02002, section 3)."""

    kind: Literal["focal"] = "focal"
    """Focal loss; the default, as in the paper."""

    alpha: Fraction | None = 0.25
    """Weight α of positives; negatives weigh 1 - α. 0.25 is the best beside γ = 2 (the paper's table 1b). Null switches
    the balancing off: both weigh 1."""

    gamma: NonNegativeFloat = 2.0
    """Exponent γ of the factor (1 - p)^γ that makes easy examples count for less; 0 is cross-entropy. 2 is the best of
    the paper's table 1b."""


class CrossEntropy(Section):
    """α-balanced cross-entropy: focal loss with γ = 0."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    """Balanced cross-entropy, the baseline of the focal loss."""

    alpha: Fraction | None = 0.75
    """Weight α of positives; negatives weigh 1 - α. 0.75 is the best of arXiv:1708.02002, table 1a. Null switches the
    balancing off: both weigh 1."""


class Ohem(Section):
    """Online hard example mining (arXiv:1604.03540, and arXiv:1708.02002, table 1d): cross-entropy of few anchors.

    It departs from arXiv:1604.03540 in four ways: anchors are ranked by the classification loss alone, where that paper
    ranks by the whole loss; no non-maximum suppression comes before; the box loss keeps all positives; and the divisor
    is the number of all positives, kept or not.
    """

    kind: Literal["ohem"] = "ohem"
    """Hard example mining, which the focal loss is compared with in its paper."""

    ratio: PositiveInt | None = 3
    """Number of negatives kept for each positive: an image keeps its hardest positives, at most
    `hardest / (1 + ratio)`, and `ratio` times as many of its hardest negatives (`ratio` where it has no positive). 3 is
    the 1:3 of arXiv:1708.02002, table 1d. Null keeps whatever is hardest."""

    hardest: PositiveInt = 128
    """Most anchors that an image keeps, by their loss summed over classes; at least 1 + `ratio`. 128 is the smallest in
    arXiv:1708.02002, table 1d."""

    @model_validator(mode="after")
    def _room_for_a_positive(self) -> Ohem:
        if self.ratio is not None and self.hardest < 1 + self.ratio:
            raise ValueError(
                f"hardest ({self.hardest}) must be at least 1 + ratio ({1 + self.ratio}); "
                "raise loss.classification.hardest, or lower ratio or set it to null"
            )
        return self


class QualityFocal(Section):
    """Quality focal loss (arXiv:2006.04388, eq. 3): the target of a positive is the IoU of its predicted box."""

    kind: Literal["quality_focal"] = "quality_focal"
    """Quality focal loss: scores learn how well the box fits."""

    beta: NonNegativeFloat = 2.0
    """Exponent β of the factor |y - p|^β that makes easy examples count for less; 0 is cross-entropy, 2 the paper's."""


class Varifocal(Section):
    """Varifocal loss (arXiv:2008.13367, eq. 2): the target as in `quality_focal`, but only negatives are focused."""

    kind: Literal["varifocal"] = "varifocal"
    """Varifocal loss: scores learn how well the box fits, and positives count in full."""

    alpha: NonNegativeFloat = 0.75
    """Weight α of negatives; 0.75 is the paper's."""

    gamma: NonNegativeFloat = 2.0
    """Exponent γ of the factor p^γ of negatives; 2 is the paper's."""


ClassificationLoss = Annotated[Union[Focal, CrossEntropy, Ohem, QualityFocal, Varifocal], Field(discriminator="kind")]


class HuberBox(Section):
    """Huber loss of the encoded offsets (dx, dy, dw, dh), summed over the four and over positive anchors.

    Huber(δ) is δ times smooth-L1(β = δ): with δ = 1/9 and weight 9 this is smooth-L1 at 1/9.
    """

    kind: Literal["huber"] = "huber"
    """Huber loss of the encoded box; the default."""

    delta: PositiveFloat = 1 / 9
    """Error δ, in units of the encoding, above which the loss is linear. 1/9 is the paper's code's (Detectron)."""

    weight: PositiveFloat = 9.0
    """Factor of the box loss. 9 makes the default equal to smooth-L1 at 1/9 with weight 1."""


class SmoothL1Box(Section):
    """Smooth-L1 loss (arXiv:1504.08083, section 2.3) of the encoded offsets, as in arXiv:1708.02002, section 4.1."""

    kind: Literal["smooth_l1"] = "smooth_l1"
    """Smooth-L1 loss of the encoded box."""

    beta: PositiveFloat = 1 / 9
    """Error β, in units of the encoding, above which the loss is linear. 1/9 is the paper's code's (Detectron)."""

    weight: PositiveFloat = 1.0
    """Factor of the box loss; 1 is the paper's."""


class L1Box(Section):
    """Sum of the absolute errors of the encoded offsets: smooth-L1 at β = 0, as torchvision's first RetinaNet."""

    kind: Literal["l1"] = "l1"
    """L1 loss of the encoded box."""

    weight: PositiveFloat = 1.0
    """Factor of the box loss; 1 is torchvision's."""


class GiouBox(Section):
    """1 - GIoU (arXiv:1902.09630) of the decoded boxes: it follows the overlap that AP measures."""

    kind: Literal["giou"] = "giou"
    """GIoU loss of the decoded box."""

    weight: PositiveFloat = 2.0
    """Factor of the box loss; 2 is that of arXiv:2006.04388. torchvision's RetinaNet V2 has 1."""


class DiouBox(Section):
    """1 - DIoU (arXiv:1911.08287, eq. 7) of the decoded boxes: overlap, and the distance of the centres."""

    kind: Literal["diou"] = "diou"
    """DIoU loss of the decoded box."""

    weight: PositiveFloat = 2.0
    """Factor of the box loss; 2 as of `giou`."""


class CiouBox(Section):
    """1 - CIoU (arXiv:1911.08287, eq. 8 to 11) of the decoded boxes: overlap, distance of the centres, and aspect."""

    kind: Literal["ciou"] = "ciou"
    """CIoU loss of the decoded box."""

    weight: PositiveFloat = 2.0
    """Factor of the box loss; 2 as of `giou`."""


BoxLoss = Annotated[Union[HuberBox, SmoothL1Box, L1Box, GiouBox, DiouBox, CiouBox], Field(discriminator="kind")]


class BatchNormalizer(Section):
    """Division of both losses by the batch's number of positive anchors, at least 1 (arXiv:1708.02002, section 4.1)."""

    kind: Literal["batch"] = "batch"
    """The batch's own positives; the default, as in the paper."""


class EmaNormalizer(Section):
    """Division of both losses by a moving average n of that number, as detectron2 does:

    n ← momentum · n + (1 - momentum) · max(positives, 1).

    It holds the batch at hand already when that batch is divided.
    """

    kind: Literal["ema"] = "ema"
    """A moving average, so that single images of a batch with few positives count for neither much nor little."""

    momentum: Annotated[Float, Field(ge=0, lt=1)] = 0.9
    """Share of the old average that a step keeps; 0.9 is detectron2's."""

    initial: PositiveFloat = 100.0
    """Value of n at the start, in anchors; 100 is detectron2's."""


class ImageNormalizer(Section):
    """Division of each image's losses by its own number of positive anchors, at least 1, and the mean over images, as
    torchvision does.

    An image with few positives counts for as much as one with many.
    """

    kind: Literal["image"] = "image"
    """Each image's own positives, so that images weigh alike."""


Normalizer = Annotated[Union[BatchNormalizer, EmaNormalizer, ImageNormalizer], Field(discriminator="kind")]


class GivenWeights(Section):
    """Factors of the classification loss of positive anchors, by their class; background anchors count once."""

    kind: Literal["given"] = "given"
    """Weights written down."""

    weights: dict[str, PositiveFloat] = Field(min_length=1)
    """Class names and their weights; a class that is not named weighs 1."""


class EffectiveWeights(Section):
    """Weights in proportion to 1 / Eₙ, the effective number of a class' boxes: Eₙ = (1 - βⁿ) / (1 - β) of n training
    boxes (arXiv:1901.05555, eq. 2 and section 4).

    As in that paper's code a weight multiplies the loss of a sample, here of a positive anchor summed over all classes;
    background anchors have no class and count once. The paper's weights add up to K. These are 1 in the mean over the
    training boxes, so that positives together weigh against the background what they do without.
    """

    kind: Literal["effective"] = "effective"
    """Weights by the numbers of training boxes, neither crowd nor difficult; the log says which."""

    beta: Annotated[Float, Field(gt=0, lt=1)] = 0.999
    """Share β: near 0 all classes weigh alike, near 1 inversely to their numbers. The paper tries 0.9 to 0.9999; at
    0.999 a class gains little weight for being rarer than others of several thousand boxes."""


ClassWeights = Annotated[Union[GivenWeights, EffectiveWeights], Field(discriminator="kind")]


class Loss(Section):
    """The objective: the classification loss summed over anchors and classes, the box loss over positive anchors, both
    divided by the same number (arXiv:1708.02002, section 4.1)."""

    classification: ClassificationLoss = Focal()
    """Loss of the class scores."""

    box: BoxLoss = HuberBox()
    """Loss of the boxes."""

    normalizer: Normalizer = BatchNormalizer()
    """Divisor of both losses."""

    class_weights: ClassWeights | None = None
    """Weights of the classes, for data where some are rare; null, the default, is the paper's: all weigh alike. They
    change neither the box loss nor the divisor, and hard example mining ranks by the weighted losses."""
