"""The RetinaNet detector as a `keras.Model` (Lin et al. 2017, arXiv:1708.02002)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from retina import config
from retina.errors import RetinaError
from retina.models import backbones
from retina.models.decode import decode
from retina.models.fpn import FeaturePyramid
from retina.models.freezing import freeze_stages
from retina.models.heads import box_subnet, classification_subnet
from retina.models.objective import Objective, Sums
from retina.ops.anchors import count_per_cell, level_anchors
from retina.private_names import all_layers

Tensor = Any
Batch = dict[str, Tensor]


class Sections(NamedTuple):
    """The parts of the configuration that make a detector."""

    model: config.Model
    anchors: config.Anchors
    assignment: config.Assignment
    loss: config.Loss
    inference: config.Inference


_SECTION_KINDS: dict[str, type[config.Section]] = {
    "model": config.Model,
    "anchors": config.Anchors,
    "assignment": config.Assignment,
    "loss": config.Loss,
    "inference": config.Inference,
}


class PixelNormalization(keras.layers.Layer):
    """Pixels normalised, (pixel - mean) / std in float32, zero where the canvas is padding, then the compute dtype.

    Keras' own layer computes in the compute dtype, which errs by 0.02 in bfloat16.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        self.factor = (1.0 / np.asarray(std, np.float64)).astype(np.float32)
        self.shift = (-np.asarray(mean, np.float64) / np.asarray(std, np.float64)).astype(np.float32)

    def call(self, images: Tensor, size: Tensor | None = None) -> Tensor:
        pixels = ops.cast(images, "float32") * self.factor + self.shift
        if size is not None:
            _, height, width, _ = ops.shape(images)
            inside_y = ops.arange(height, dtype="int32")[None, :] < size[:, :1]
            inside_x = ops.arange(width, dtype="int32")[None, :] < size[:, 1:]
            inside = ops.logical_and(inside_y[:, :, None], inside_x[:, None, :])
            pixels = ops.where(inside[..., None], pixels, 0.0)
        return ops.cast(pixels, self.compute_dtype)


@keras.saving.register_keras_serializable("retina")
class Detector(keras.Model):
    """A one-stage detector: images in, `{"logits": [B, A, K], "deltas": [B, A, 4]}` out, float32.

    Called with `images` [B, H, W, 3] (0…255, RGB) or with a batch (a dict with `images` and `size`; the padding beyond
    `size` is then zero after normalising). `compile(optimizer=…)` and `fit(batches)` train it on batches as
    `retina.data.batches.training.training_batches` gives them (`as_dataset()`); the loss is built in.

    Args:
        class_names: K names; label k is `class_names[k]`.
        model, anchors, assignment, loss, inference: sections of `retina.Config`; the defaults are the paper's.
        precision: `float32`, `mixed_bfloat16` or `mixed_float16`; boxes and losses are float32 under all.
        load_weights: False leaves `model.weights` out, where a checkpoint will overwrite them.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        model: config.Model = config.Model(),  # noqa: B008 - frozen
        anchors: config.Anchors = config.Anchors(),  # noqa: B008
        assignment: config.Assignment = config.Assignment(),  # noqa: B008
        loss: config.Loss = config.Loss(),  # noqa: B008
        inference: config.Inference = config.Inference(),  # noqa: B008
        precision: str = "float32",
        load_weights: bool = True,
        **kwargs: Any,
    ):
        # Keras would round float images to bfloat16 before they are normalised.
        super().__init__(dtype=precision, autocast=False, **{"name": "detector", **kwargs})
        self.class_names = tuple(class_names)
        self.sections = Sections(model, anchors, assignment, loss, inference)
        weights = model.weights if load_weights else None
        per_cell = count_per_cell(anchors)
        self.normalization = PixelNormalization(
            model.pixel_mean, model.pixel_std, dtype=precision, name="normalization"
        )
        self.backbone, self.weights_report = _with_policy(
            precision, lambda: backbones.build_reported(model.backbone, weights)
        )
        for layer in all_layers(self.backbone):  # some lie inside the blocks of a network
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = model.batch_norm != "frozen"
                # On JAX a jitted step sees the whole batch whatever the devices; elsewhere there is one device.
                layer.synchronized = model.batch_norm == "sync" and keras.backend.backend() == "tensorflow"
                layer.momentum = model.batch_norm_momentum or layer.momentum
                if model.batch_norm_epsilon is not None:
                    layer.epsilon = model.batch_norm_epsilon
        freeze_stages(self.backbone, model.backbone, model.freeze)
        self.fpn = FeaturePyramid(model.fpn, dtype=precision, name="fpn")
        self.classification = classification_subnet(model.head, per_cell, len(self.class_names), dtype=precision)
        self.box = box_subnet(model.head, per_cell, dtype=precision)
        self.trackers = {
            name: keras.metrics.Mean(name=name) for name in ("loss_classification", "loss_box", "positives")
        }
        self.build((None, None, None, 3))

    def build(self, shape: Any) -> None:
        features = {name: tuple(tensor.shape) for name, tensor in self.backbone.output.items()}
        self.fpn.build(features)
        maps = [(*features["C5"][:3], self.fpn.fpn.channels)] * len(self.fpn.levels)
        self.classification.build(maps)
        self.box.build(maps)
        self.built = True

    def call(self, inputs: Tensor | Batch, training: bool | None = None) -> dict[str, Tensor]:
        images, size = (inputs["images"], inputs["size"]) if isinstance(inputs, dict) else (inputs, None)
        if None in images.shape[1:3] and isinstance(inputs, dict):
            raise RetinaError(
                "Detector: the batches come in several shapes, which Keras' fit traces as unknown; expected one. Set "
                "data.resize.max_canvases=1, or train with retina.train"
            )
        return self.predictions(self.feature_maps(images, size, training=training))

    def feature_maps(self, images: Tensor, size: Tensor | None = None, training: bool | None = None) -> list[Tensor]:
        """The pyramid's maps, finest first; the first half of `call`, which takes canvases of unknown size as well."""
        return self.fpn(self.backbone(self.normalization(images, size), training=training))

    def predictions(self, maps: list[Tensor]) -> dict[str, Tensor]:
        """The second half of `call`: `logits` [B, A, K] and `deltas` [B, A, 4] of the pyramid's maps."""
        return {"logits": self.classification(maps), "deltas": self.box(maps)}

    def level_anchors(self, canvas: tuple[Any, Any]) -> list[Any]:
        """Anchors [A_l, 4] float32 of each level on a canvas (height, width): arrays, or tensors as the sides are."""
        known = all(isinstance(side, int) for side in canvas)
        return (_cached_anchors if known else level_anchors)(self.sections.anchors, tuple(canvas), self.fpn.levels)

    def objective(self, canvas: tuple[int, int]) -> Objective:
        """The training objective on a canvas (height, width)."""
        anchors, assignment, loss = self.sections.anchors, self.sections.assignment, self.sections.loss
        return Objective(self.level_anchors(canvas), assignment, loss, anchors.box_weights, anchors.max_size_ratio)

    def loss_sums(self, outputs: dict[str, Tensor], batch: Batch) -> Sums:
        """The batch's summed losses, its number of positive anchors, and further figures of its training."""
        return self.objective(tuple(batch["images"].shape[1:3])).sums(outputs, batch)

    def decode(
        self, outputs: dict[str, Tensor], batch: Batch, inference: config.Inference | None = None
    ) -> dict[str, Tensor]:
        """Detections in the original images' pixels: `boxes` [B, D, 4], `scores`, `labels` and `valid` [B, D].

        `inference` replaces the configuration's, for a graph whose caller decides on limits (see `decode`).
        """
        return decode(
            outputs,
            self.level_anchors(ops.shape(batch["images"])[1:3]),
            batch["size"],
            batch["scale"],
            inference=inference or self.sections.inference,
            box_weights=self.sections.anchors.box_weights,
            max_size_ratio=self.sections.anchors.max_size_ratio,
        )

    def compute_loss(
        self,
        x: Batch,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        """The built-in objective, for Keras' `fit` and `evaluate`."""
        if self.sections.loss.normalizer.kind == "ema":
            raise RetinaError(
                "Detector.fit: expected loss.normalizer: {kind: batch}, got ema, "
                "which fit has no place for; set kind: batch, or train with retina.train"
            )
        sums = self.loss_sums(y_pred, x)
        losses = sums.losses()
        for name, tracker in self.trackers.items():
            tracker.update_state(sums.positives if name == "positives" else losses[name])
        return losses["loss"]

    def get_config(self) -> dict[str, Any]:
        sections = {name: section.model_dump(mode="json") for name, section in self.sections._asdict().items()}
        return {
            "class_names": list(self.class_names),
            "precision": self.dtype_policy.name,
            "name": self.name,
            **sections,
        }

    @classmethod
    def from_config(cls, values: dict[str, Any], custom_objects: Any = None) -> Detector:
        sections = {name: kind.model_validate(values[name]) for name, kind in _SECTION_KINDS.items()}
        return cls(**{**values, **sections}, load_weights=False)


@lru_cache(maxsize=64)
def _cached_anchors(anchors: config.Anchors, canvas: tuple[int, int], levels: tuple[int, ...]) -> list[np.ndarray]:
    return level_anchors(anchors, canvas, levels)


def _with_policy(precision: str, build: Any) -> Any:
    """keras-cv's constructors take no dtype: the global policy is set around them."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        return build()
    finally:
        keras.config.set_dtype_policy(before)
