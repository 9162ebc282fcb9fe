"""The losses as `keras.losses.Loss`, for any `compile`.

`y_true` comes first, as everywhere in Keras. As Keras' own do, an elementwise loss averages over the last axis, [B, K]
to [B], so that `sample_weight`, `class_weight` and masks weigh samples; then comes `reduction`, by default the mean
over the samples: the mean over all B·K numbers, which code that averages them all at once has as well. With
`reduction="sum"` it is the sum of B means; times K, the sum over all numbers. A detector's sum over anchors and
classes, divided by its positives, is neither: it takes the function, `retina.losses.sigmoid_focal(...)`.

Labels may be [B] or [B, 1]. Keras turns targets into floats before a loss sees them, so labels are exact up to 2²⁴. A
label that a loss refuses is a loss of NaN in `fit`, where nothing can be raised; targets of another shape are refused
everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from retina.errors import RetinaError
from retina.losses import box, cross_entropy, focal, margin, metric
from retina.losses.arguments import smoothed
from retina.losses.labels import differ

Tensor = Any
_TINY = float(np.finfo(np.float32).tiny)
_EPSILON = 1e-7
_registered = keras.saving.register_keras_serializable("retina")


class _Loss(keras.losses.Loss):
    """A loss whose settings are its attributes of the same names, and its serialised form.

    Args of every loss here:
        reduction: as in `keras.losses.Loss`.
        name: `None` for the class's name in snake case.
        dtype: of the computation, Keras' default if None.
    """

    settings: tuple[str, ...] = ()

    def __init__(self, reduction: str | None = "sum_over_batch_size", name: str | None = None, dtype: Any = None):
        super().__init__(name=name, reduction=reduction, dtype=dtype)

    def __call__(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        # Keras would take each number of a list for an output of its own.
        lists = (np.asarray(y) if isinstance(y, list | tuple) else y for y in (y_true, y_pred))
        return super().__call__(*lists, sample_weight)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dtype": self.dtype, **{name: getattr(self, name) for name in self.settings}}

    def _checked(self, name: str, value: float, low: float, high: float = math.inf) -> float:
        """Return a setting's value; raise a RetinaError unless it lies in [low, high] and is finite."""
        if not (low <= value <= high and math.isfinite(value)):
            expected = f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}"
            raise RetinaError(f"{type(self).__name__}: {name}: expected {expected}, got {value}; change it")
        return value

    def _like(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Elementwise targets in the shape of the predictions: [B] against [B, 1] would broadcast to [B, B]."""
        true, predicted = tuple(y_true.shape), tuple(y_pred.shape)
        if len(true) == len(predicted) - 1 and predicted[-1] == 1:
            y_true = y_true[..., None]
        elif len(true) == len(predicted) + 1 and true[-1] == 1:
            y_true = y_true[..., 0]
        if differ(tuple(y_true.shape), predicted):
            raise RetinaError(
                f"{type(self).__name__}: expected targets of the predictions' shape {predicted}, got {true}; "
                "reshape the targets"
            )
        return y_true

    def _boxes(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Target boxes in the shape of the predicted ones, [..., 4]."""
        if y_pred.shape[-1] != 4:
            raise RetinaError(
                f"{type(self).__name__}: expected boxes [..., 4] as xyxy, got predictions of shape "
                f"{tuple(y_pred.shape)}; give the network 4 outputs a box"
            )
        return self._like(y_true, y_pred)


class _OfLogits(_Loss):
    """A loss of logits, or with `from_logits=False` of probabilities.

    Probabilities are kept 1e-7 away from 0 and 1, as Keras does it; with logits nothing is lost.

    Args:
        from_logits: what `y_pred` holds.
        label_smoothing: the share of each target that is spread evenly over the classes (of a binary one: 0 and 1).
    """

    settings: tuple[str, ...] = ("from_logits", "label_smoothing")

    def __init__(self, from_logits: bool = True, label_smoothing: float = 0.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.from_logits = bool(from_logits)
        self.label_smoothing = self._checked("label_smoothing", label_smoothing, 0.0, 1.0)

    def _logit(self, y_pred: Tensor) -> Tensor:
        """Logits of sigmoid probabilities."""
        if self.from_logits:
            return y_pred
        probability = ops.clip(y_pred, _EPSILON, 1.0 - _EPSILON)
        return ops.log(probability) - ops.log1p(-probability)

    def _logits(self, y_pred: Tensor) -> Tensor:
        """Logits of probabilities of K classes, which are divided by their sum."""
        return y_pred if self.from_logits else ops.log(ops.clip(y_pred, _EPSILON, 1.0 - _EPSILON))

    def _binary(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return smoothed(self._like(y_true, y_pred), self.label_smoothing, 2)


def _over_last_axis(losses: Tensor) -> Tensor:
    """Means [B, …] of elementwise losses [B, …, K]; those of plain samples [B] stay."""
    return ops.mean(losses, axis=-1) if len(losses.shape) > 1 else losses


def _labels(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """Labels [B, 1] as [B]; a distribution over the classes stays."""
    rank = len(y_pred.shape)
    return y_true[..., 0] if len(y_true.shape) == rank and y_true.shape[-1] == 1 != y_pred.shape[-1] else y_true


def _column(y_true: Tensor) -> Tensor:
    """Labels [B, 1] as [B], whatever the predictions are."""
    return y_true[:, 0] if len(y_true.shape) == 2 and y_true.shape[-1] == 1 else y_true


# ------------------------------------------------------------------------------------------- sigmoid and softmax


@_registered
class SigmoidFocal(_OfLogits):
    """`retina.losses.sigmoid_focal` (arXiv:1708.02002): -y·α·(1-p)^γ·log p - (1-y)·(1-α)·p^γ·log(1-p).

    Mean over the last axis; `y_true` [...] in [0, 1], `y_pred` [...] logits, or probabilities with
    `from_logits=False`; `label_smoothing` as in Keras.

    Args:
        alpha: weight of y = 1, in [0, 1]; None for no balancing.
        gamma: focusing exponent, at least 0.

    Raises:
        RetinaError: a setting is out of its range; when called: targets have another shape than predictions.

    Example: logit 0, y = 1: 0.25 · (1/2)² · ln 2 = 0.04332.

    >>> float(retina.losses.SigmoidFocal()([[1.0]], [[0.0]]))
    0.04332...
    """

    settings = ("alpha", "gamma", *_OfLogits.settings)

    def __init__(self, alpha: float | None = 0.25, gamma: float = 2.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.gamma = self._checked("gamma", gamma, 0.0)
        self.alpha = None if alpha is None else self._checked("alpha", alpha, 0.0, 1.0)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return _over_last_axis(
            focal.sigmoid_focal(
                self._logit(y_pred), targets=self._binary(y_true, y_pred), alpha=self.alpha, gamma=self.gamma
            )
        )


@_registered
class SoftmaxFocal(_OfLogits):
    """`retina.losses.softmax_focal` (arXiv:1708.02002): -Σ_k y_k·α_k·(1-p_k)^γ·log p_k, per sample.

    `y_true` labels [...] or a distribution [..., K], `y_pred` [..., K] logits, or probabilities with
    `from_logits=False`; `alpha` one weight, or one for each class, at least 0; `label_smoothing` as in Keras.

    Args:
        gamma: focusing exponent, at least 0.
        alpha: a weight, or [K] one for each class, at least 0; None for 1.

    Raises:
        RetinaError: a setting is out of its range; when called: labels don't belong to the predictions.

    Example: logits (ln 3, 0), label 1: (3/4)² · ln 4 = 0.77979.

    >>> float(retina.losses.SoftmaxFocal()([1], [[1.0986123, 0.0]]))
    0.77979...
    """

    settings = ("gamma", "alpha", *_OfLogits.settings)

    def __init__(self, gamma: float = 2.0, alpha: float | Sequence[float] | np.ndarray | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.gamma = self._checked("gamma", gamma, 0.0)
        self.alpha = None if alpha is None else self._weights(alpha)

    @staticmethod
    def _weights(alpha: Any) -> float | list[float]:
        """The weights as plain numbers, which serialise."""
        values = np.asarray(alpha)
        numeric = values.dtype.kind in "iuf" and values.ndim <= 1 and values.size > 0
        if not numeric or not (np.isfinite(values) & (values >= 0)).all():
            raise RetinaError(
                "SoftmaxFocal: alpha: expected None, a finite number of at least 0, or one for each class, "
                f"got {values.tolist()}; change it"
            )
        weights: float | list[float] = values.tolist()
        return weights

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return focal.softmax_focal(
            self._logits(y_pred),
            targets=_labels(y_true, y_pred),
            gamma=self.gamma,
            alpha=self.alpha,
            label_smoothing=self.label_smoothing,
        )


@_registered
class SoftmaxCrossEntropy(_OfLogits):
    """`retina.losses.softmax_cross_entropy` (Bridle 1990): -Σ_k y_k·log p_k, per sample.

    `y_true` labels [...] or a distribution [..., K], `y_pred` [..., K] logits, or probabilities with
    `from_logits=False`; `label_smoothing` as in Keras.

    Args:
        from_logits: whether `y_pred` holds logits, not probabilities.
        label_smoothing: the share of each target that is spread evenly over the classes, in [0, 1].

    Raises:
        RetinaError: a setting is out of its range; when called: labels don't belong to the predictions.

    Example: logits (ln 3, 0), label 0: ln(4/3) = 0.28768.

    >>> float(retina.losses.SoftmaxCrossEntropy()([0], [[1.0986123, 0.0]]))
    0.28768...
    """

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return cross_entropy.softmax_cross_entropy(
            self._logits(y_pred), targets=_labels(y_true, y_pred), label_smoothing=self.label_smoothing
        )


@_registered
class Logistic(_OfLogits):
    """`retina.losses.logistic` (Cox 1958): -y·log p - (1-y)·log(1-p), mean over the last axis.

    `y_true` [...] in [0, 1], `y_pred` [...] logits, or probabilities with `from_logits=False`; `label_smoothing` as in
    Keras.

    Args:
        from_logits: whether `y_pred` holds logits, not probabilities.
        label_smoothing: the share of each target that is spread evenly over 0 and 1, in [0, 1].

    Raises:
        RetinaError: a setting is out of its range; when called: targets have another shape than predictions.

    Example: logit ln 3, y = 1: ln(4/3) = 0.28768.

    >>> float(retina.losses.Logistic()([[1.0]], [[1.0986123]]))
    0.28768...
    """

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return _over_last_axis(cross_entropy.logistic(self._logit(y_pred), targets=self._binary(y_true, y_pred)))


@_registered
class QualityFocal(_Loss):
    """`retina.losses.quality_focal` (arXiv:2006.04388, eq. 3): |y - p|^β times binary cross-entropy.

    Mean over the last axis; `y_true` [...] qualities in [0, 1], `y_pred` [...] logits.

    Args:
        beta: focusing exponent, at least 0.

    Raises:
        RetinaError: a setting is out of its range; when called: targets have another shape than predictions.

    Example: logit 0, y = 3/4: (1/4)² · ln 2 = 0.04332.

    >>> float(retina.losses.QualityFocal()([[0.75]], [[0.0]]))
    0.04332...
    """

    settings = ("beta",)

    def __init__(self, beta: float = 2.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.beta = self._checked("beta", beta, 0.0)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return _over_last_axis(focal.quality_focal(y_pred, targets=self._like(y_true, y_pred), beta=self.beta))


@_registered
class Varifocal(_Loss):
    """`retina.losses.varifocal` (arXiv:2008.13367, eq. 2): q · cross-entropy where q > 0, else -α·p^γ·log(1-p).

    Mean over the last axis; `y_true` [...] qualities q in [0, 1], `y_pred` [...] logits.

    Args:
        alpha: weight of the negatives, at least 0.
        gamma: their focusing exponent, at least 0.

    Raises:
        RetinaError: a setting is out of its range; when called: targets have another shape than predictions.

    Example: logit 0, q = 0: 0.75 · (1/2)² · ln 2 = 0.12997.

    >>> float(retina.losses.Varifocal()([[0.0]], [[0.0]]))
    0.12996...
    """

    settings = ("alpha", "gamma")

    def __init__(self, alpha: float = 0.75, gamma: float = 2.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.alpha, self.gamma = self._checked("alpha", alpha, 0.0), self._checked("gamma", gamma, 0.0)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return _over_last_axis(
            focal.varifocal(y_pred, targets=self._like(y_true, y_pred), alpha=self.alpha, gamma=self.gamma)
        )


# ----------------------------------------------------------------------------------------------------- regression


@_registered
class Huber(_Loss):
    """`retina.losses.huber` (Huber 1964): ½e² where |e| ≤ δ, else δ·(|e| - ½δ), mean over the last axis.

    Args:
        delta: the error at which it turns linear, above 0.

    Raises:
        RetinaError: a setting is out of its range; when called: targets have another shape than predictions.

    Example: δ = 1, error 3: 2.5.

    >>> float(retina.losses.Huber(delta=1.0)([[0.0]], [[3.0]]))
    2.5
    """

    settings = ("delta",)

    def __init__(self, delta: float = 1.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.delta = self._checked("delta", delta, _TINY)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return _over_last_axis(box.huber(y_pred, self._like(y_true, y_pred), delta=self.delta))


@_registered
class SmoothL1(_Loss):
    """`retina.losses.smooth_l1` (arXiv:1504.08083): ½e²/β where |e| ≤ β, else |e| - ½β, mean over the last axis.

    Args:
        beta: the error at which it turns linear, above 0.

    Raises:
        RetinaError: a setting is out of its range; when called: targets have another shape than predictions.

    Example: β = 1/9, error 1: 17/18 = 0.94444.

    >>> float(retina.losses.SmoothL1(beta=1 / 9)([[0.0]], [[1.0]]))
    0.94444...
    """

    settings = ("beta",)

    def __init__(self, beta: float = 1.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.beta = self._checked("beta", beta, _TINY)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return _over_last_axis(box.smooth_l1(y_pred, self._like(y_true, y_pred), beta=self.beta))


@_registered
class Giou(_Loss):
    """`retina.losses.giou_loss` (arXiv:1902.09630): 1 - IoU + the empty share of the hull; boxes [..., 4] xyxy.

    Raises:
        RetinaError: when called: boxes don't have 4 numbers, or targets another shape than predictions.

    Example: (0, 0, 2, 2) and (1, 1, 3, 3): 1 - 1/7 + 2/9 = 1.07937.

    >>> float(retina.losses.Giou()([[1, 1, 3, 3]], [[0, 0, 2, 2]]))
    1.07936...
    """

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return box.giou_loss(y_pred, self._boxes(y_true, y_pred))


@_registered
class Diou(_Loss):
    """`retina.losses.diou_loss` (arXiv:1911.08287, eq. 7): 1 - IoU + ρ²/c²; boxes [..., 4] xyxy.

    Raises:
        RetinaError: when called: boxes don't have 4 numbers, or targets another shape than predictions.

    Example: (0, 0, 2, 2) and (1, 1, 3, 3): 1 - 1/7 + 1/9 = 0.96825.

    >>> float(retina.losses.Diou()([[1, 1, 3, 3]], [[0, 0, 2, 2]]))
    0.96825...
    """

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return box.diou_loss(y_pred, self._boxes(y_true, y_pred))


@_registered
class Ciou(_Loss):
    """`retina.losses.ciou_loss` (arXiv:1911.08287, eq. 10): 1 - IoU + ρ²/c² + αv; boxes [..., 4] xyxy.

    Raises:
        RetinaError: when called: boxes don't have 4 numbers, or targets another shape than predictions.

    Example: (0, 0, 2, 2) and (0, 0, 4, 2): 1/2 + 1/20 + 0.00325 = 0.55325.

    >>> float(retina.losses.Ciou()([[0, 0, 4, 2]], [[0, 0, 2, 2]]))
    0.55324...
    """

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return box.ciou_loss(y_pred, self._boxes(y_true, y_pred))


# --------------------------------------------------------------------------------------------- embeddings, margins


@_registered
class Center(_Loss):
    """`retina.losses.center_loss` (Wen et al. 2016, eq. 2) to centres that stay: ½‖x - c_y‖², per sample.

    `y_true` labels [B], `y_pred` embeddings [B, F]. Centres that are learned are state of a model, which a loss cannot
    hold on every backend: for those, see the layer `retina.losses.Centers`.

    Args:
        centers: [K, F].

    Raises:
        RetinaError: centres of another shape or not finite; when called: a label is outside 0..K-1.

    Example: x = (1, 2) and c_y = (0, 0): 2.5.

    >>> float(retina.losses.Center([[0.0, 0.0]])([0], [[1.0, 2.0]]))
    2.5
    """

    settings = ("centers",)

    def __init__(self, centers: Sequence[Sequence[float]] | np.ndarray, **kwargs: Any):
        super().__init__(**kwargs)
        array = np.asarray(centers, np.float64)
        if array.ndim != 2 or not np.isfinite(array).all():
            raise RetinaError(
                f"Center: centers: expected finite numbers of shape [classes, features], got shape {array.shape}; "
                "give each class one row"
            )
        self.centers = array.tolist()

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        centers = ops.convert_to_tensor(self.centers, dtype=y_pred.dtype)
        return metric.center_loss(y_pred, _column(y_true), centers)


@_registered
class Triplet(_Loss):
    """`retina.losses.batch_hard_triplet` (arXiv:1503.03832, arXiv:1703.07737): each sample's hardest triplet.

    max(0, ‖a - p‖² - ‖a - n‖² + margin) per sample; `y_true` labels [B], `y_pred` embeddings [B, F].

    Args:
        margin: how much farther the negative should be, in squared units of the embedding, at least 0.

    Raises:
        RetinaError: a setting is out of its range; when called: labels don't belong to the predictions.

    Example: embeddings 0, 1, 3 with labels 0, 0, 1 and margin 4: 0, 1 and 0.

    >>> loss = retina.losses.Triplet(margin=4.0, reduction=None)
    >>> loss([0, 0, 1], [[0.0], [1.0], [3.0]]).numpy()
    array([0., 1., 0.], dtype=float32)
    """

    settings = ("margin",)

    def __init__(self, margin: float = 1.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.margin = self._checked("margin", margin, 0.0)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return metric.batch_hard_triplet(y_pred, _column(y_true), margin=self.margin)


@_registered
class Hinge(_Loss):
    """`retina.losses.hinge` (Cortes and Vapnik 1995): max(0, margin - y·s), mean over the last axis.

    `y_true` [...], -1 or 1: any other label is an error, and in `fit` a loss of NaN. `y_pred` [...] scores.

    Args:
        margin: the score from which on a sample adds nothing, at least 0.

    Raises:
        RetinaError: a setting is out of its range; when called: targets have another shape than predictions.

    Example: s = 0.5, y = -1: 1.5.

    >>> float(retina.losses.Hinge()([[-1.0]], [[0.5]]))
    1.5
    """

    settings = ("margin",)

    def __init__(self, margin: float = 1.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.margin = self._checked("margin", margin, 0.0)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return _over_last_axis(margin.hinge(y_pred, self._like(y_true, y_pred), margin=self.margin))


@_registered
class MulticlassHinge(_Loss):
    """`retina.losses.multiclass_hinge` (Weston and Watkins 1999): Σ_{j ≠ y} max(0, s_j - s_y + margin), per sample.

    `y_true` labels [...] or one-hot [..., K], `y_pred` [..., K] scores.

    Args:
        margin: by how much the score of the class should exceed the others, at least 0.

    Raises:
        RetinaError: a setting is out of its range; when called: labels don't belong to the predictions.

    Example: scores (3.2, 5.1, -1.7), label 0: 2.9.

    >>> float(retina.losses.MulticlassHinge()([0], [[3.2, 5.1, -1.7]]))
    2.89999...
    """

    settings = ("margin",)

    def __init__(self, margin: float = 1.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.margin = self._checked("margin", margin, 0.0)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return margin.multiclass_hinge(y_pred, _labels(y_true, y_pred), margin=self.margin)
