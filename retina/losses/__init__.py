"""Losses, elementwise or per sample, from logits; none is reduced or normalised here."""

from retina.losses.box import giou_loss, huber, smooth_l1
from retina.losses.focal import sigmoid_focal

__all__ = ["giou_loss", "huber", "sigmoid_focal", "smooth_l1"]
