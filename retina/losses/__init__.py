"""Losses, elementwise or per sample, from logits; none is reduced or normalised here.

Each also exists as a `keras.losses.Loss` for `compile` (`SigmoidFocal` of `sigmoid_focal`, and so on), which reduces as
Keras does.
"""

from retina.losses.box import ciou_loss, diou_loss, giou_loss, huber, smooth_l1
from retina.losses.cross_entropy import logistic, softmax_cross_entropy
from retina.losses.focal import quality_focal, sigmoid_focal, softmax_focal, varifocal
from retina.losses.keras_losses import (
    Center,
    Ciou,
    Diou,
    Giou,
    Hinge,
    Huber,
    Logistic,
    MulticlassHinge,
    QualityFocal,
    SigmoidFocal,
    SmoothL1,
    SoftmaxCrossEntropy,
    SoftmaxFocal,
    Triplet,
    Varifocal,
)
from retina.losses.margin import hinge, multiclass_hinge
from retina.losses.metric import Centers, batch_hard_triplet, center_loss, triplet, updated_centers

__all__ = [
    "Center",
    "Centers",
    "Ciou",
    "Diou",
    "Giou",
    "Hinge",
    "Huber",
    "Logistic",
    "MulticlassHinge",
    "QualityFocal",
    "SigmoidFocal",
    "SmoothL1",
    "SoftmaxCrossEntropy",
    "SoftmaxFocal",
    "Triplet",
    "Varifocal",
    "batch_hard_triplet",
    "center_loss",
    "ciou_loss",
    "diou_loss",
    "giou_loss",
    "hinge",
    "huber",
    "logistic",
    "multiclass_hinge",
    "quality_focal",
    "sigmoid_focal",
    "smooth_l1",
    "softmax_cross_entropy",
    "softmax_focal",
    "triplet",
    "updated_centers",
    "varifocal",
]
