"""The RetinaNet detector as a `keras.Model` (Lin et al. 2017, arXiv:1708.02002)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, get_args

import keras
import numpy as np
from keras import ops

from retina import config
from retina.errors import RetinaError
from retina.losses.class_weights import class_weights
from retina.models import backbones, keras_inputs
from retina.models.decode import decode
from retina.models.fpn import FeaturePyramid
from retina.models.freezing import freeze_stages
from retina.models.heads import box_subnet, classification_subnet
from retina.models.objective import LevelLogits, Objective, Sums
from retina.ops.anchors import count_per_cell, level_anchors
from retina.output import html_table
from retina.private_names import all_layers, directions

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


_PRECISIONS = get_args(config.Run.model_fields["precision"].annotation)

# What other packages call the fields of detections.
_NAMES: dict[str, dict[str, str]] = {
    "retina": {},
    "keras_hub": {"scores": "confidence"},
    "keras_cv": {"scores": "confidence", "labels": "classes"},
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
        # Of tensors alone: torch.func can't mix its own with NumPy's arrays.
        factor, shift = ops.convert_to_tensor(self.factor), ops.convert_to_tensor(self.shift)
        pixels = ops.cast(images, "float32") * factor + shift
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
    `size` is then zero after normalising). `compile(optimizer=…)` and `fit` train it; the loss is built in.

    `fit`, `evaluate`, `predict` and their `…_on_batch` take what Keras' detectors take: images [B, H, W, 3] of one
    size, any, in any dtype, and `{"boxes" [B, G, 4], "classes" or "labels" [B, G]}` with -1 in empty slots, ragged or
    as lists; or `{"images", "bounding_boxes"}`; as arrays, a `tf.data.Dataset`, a `keras.utils.PyDataset`, a generator
    or a DataLoader. Arrays, each element of a PyDataset or a generator, and the
    first of a `tf.data.Dataset` are checked; elsewhere a batch that can't be trained on has a loss of NaN. Batches of
    `retina.data.batches.training.training_batches` (`as_dataset()`) go on as they are.

    Args:
        class_names: K names; label k is `class_names[k]`.
        model, anchors, assignment, loss, inference: sections of `retina.Config`; the defaults are the paper's.
        precision: `float32`, `mixed_bfloat16` or `mixed_float16`; boxes and losses are float32 under all.
        bounding_box_format: of boxes that are given and of those that `predict` returns: `xyxy`, `xywh`, `yxyx`,
            `center_xywh` in pixels, `rel_xyxy`, `rel_yxyx` as shares of the sides. Not of our own batches: xyxy.
        pixel_range: of the images that `fit`, `evaluate` and `predict` are given: (0, 255) or (0, 1).
        load_weights: False leaves `model.weights` out, where a checkpoint will overwrite them.

    Returns:
        Called: `logits` [B, A, K] and `deltas` [B, A, 4], float32.

    Raises:
        RetinaError: class names are none, or the same twice; a format, range, precision or argument is unknown, or a
            section is of another type.

    Example:

    >>> small = retina.config.Model(backbone="resnet10")
    >>> detector = retina.Detector(["cat", "dog"], model=small)
    >>> images = np.zeros((2, 64, 64, 3), "uint8")
    >>> targets = {"boxes": [[[8, 8, 40, 40]]] * 2, "classes": [[0], [1]]}
    >>> detector.compile("adam", metrics=[retina.CocoMetrics()])
    >>> detector.metrics[0].name, detector.metrics_names[-1]
    ('loss', 'positives')
    >>> sorted(detector.fit(images, targets, verbose=0).history)[:2]
    ['loss', 'loss_box']
    >>> detector.evaluate(images, targets, return_dict=True, verbose=0)["AP"] <= 1
    True
    >>> figures = detector.train_on_batch(images, targets, return_dict=True)
    >>> figures["positives"] > 0
    True
    >>> detector.test_on_batch(images, targets, return_dict=True)["loss"] > 0
    True
    >>> detector.inference = retina.config.Inference(max_detections=5)
    >>> detector.predict(images, verbose=0)["boxes"].shape
    (2, 5, 4)
    >>> detector.predict_on_batch(images)["scores"].shape
    (2, 5)
    >>> size, scale = np.full((2, 2), 64, "int32"), np.ones((2, 2), "float32")
    >>> batch = {"images": images, "size": size, "scale": scale}
    >>> tuple(detector.decode(detector(batch), batch)["valid"].shape)
    (2, 5)
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
        bounding_box_format: str = "xyxy",
        pixel_range: tuple[int, int] = (0, 255),
        load_weights: bool = True,
        **kwargs: Any,
    ):
        if not isinstance(class_names, str) and hasattr(class_names, "__iter__"):
            class_names = list(class_names)  # once: it may be an iterator
        _check_arguments(
            class_names,
            precision,
            kwargs,
            model=model,
            anchors=anchors,
            assignment=assignment,
            loss=loss,
            inference=inference,
        )
        # Keras would round float images to bfloat16 before they are normalised.
        super().__init__(dtype=precision, autocast=False, **{"name": "detector", **kwargs})
        self.class_names: tuple[str, ...] = tuple(class_names)
        self.convention = keras_inputs.convention(len(self.class_names), bounding_box_format, pixel_range)
        self.sections = Sections(model, anchors, assignment, loss, inference)
        self.image_size: tuple[int, int] | None = None  # (height, width) of the images that fit was given
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
        # Not for Keras to compute inside its steps, which it would if it saw them.
        self.detection_metrics = SimpleNamespace(of_epoch=(), rising=())
        self.build((None, None, None, 3))

    @classmethod
    def from_preset(
        cls,
        preset: str | Path,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        **arguments: Any,
    ) -> Detector:
        """Return a detector whose weights are trained.

        Args:
            preset: a run directory or a checkpoint (.npz) of one; a published detector's name
                (`torchvision/retinanet_resnet50_fpn_v2`), fetched once; or a classifier's, whose backbone it takes
                (`efficientnet_lite0`, `torchvision/resnet50`): see `model.init_from` and `model.weights`.
            num_classes: K, for classes named `0`, `1`, …; in place of `class_names`.
            class_names: K names; by default the detector's own. Rows of the classification head are taken by name,
                those of other classes are new.
            arguments: as of `Detector`, in place of the preset's sections.

        Raises:
            RetinaError: there is no such preset, its weights don't fit, or a classifier's classes are not given.

        Example:

        >>> detector = retina.Detector.from_preset("runs/digits", num_classes=3)
        >>> detector.class_names
        ('0', '1', '2')
        """
        from retina.training.fine_tuning import detector_of_preset

        if num_classes is not None:
            if class_names is not None and len(class_names) != num_classes:
                raise RetinaError(
                    f"Detector.from_preset: num_classes is {num_classes}, class_names are {len(class_names)}; give one"
                )
            class_names = class_names or tuple(map(str, range(num_classes)))
        return detector_of_preset(preset, class_names, **arguments)

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
        weights = None if loss.class_weights is None else class_weights(loss.class_weights, self.class_names)
        return Objective(
            self.level_anchors(canvas), assignment, loss, anchors.box_weights, anchors.max_size_ratio, weights
        )

    def loss_sums(self, outputs: dict[str, Tensor], batch: Batch) -> Sums:
        """The batch's summed losses, its number of positive anchors, and further figures of its training."""
        return self.objective(tuple(batch["images"].shape[1:3])).sums(outputs, batch)

    def training_sums(self, batch: Batch) -> Sums:
        """`loss_sums` of a batch's forward pass in training, which never joins the levels' logits."""
        maps = self.feature_maps(batch["images"], batch["size"], training=True)
        logits = LevelLogits(
            self.classification(maps, joined=False),
            ops.convert_to_tensor(self.classification.bias),
            len(self.class_names),
        )
        return self.loss_sums({"logits": logits, "deltas": self.box(maps)}, batch)

    def decode(
        self, outputs: dict[str, Tensor], batch: Batch, inference: config.Inference | None = None
    ) -> dict[str, Tensor]:
        """Return detections in the original images' pixels.

        Args:
            outputs: of the network, `logits` [B, A, K] and `deltas` [B, A, 4].
            batch: `images` [B, H, W, 3], `size` [B, 2], what of them is not padding, and `scale` [B, 2], their sides
                divided by the originals'.
            inference: in place of the configuration's.

        Returns:
            `boxes` [B, D, 4], `scores`, `labels` and `valid` [B, D].

        Raises:
            Nothing of its own.
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
        loss, positives = losses["loss"], sums.positives
        if "usable" in x:  # NaN positives are the sign that the data are the cause
            usable = ops.all(x["usable"])
            loss, positives = (ops.where(usable, value, math.nan) for value in (loss, positives))
        # Summed from the batch: at the end of a tf.data.Dataset of unknown length, TensorFlow would count a number that
        # it knows before the read fails.
        images = ops.sum(ops.ones_like(x["size"][:, 0], dtype="float32"))
        for name, tracker in self.trackers.items():
            tracker.update_state(positives if name == "positives" else losses[name], sample_weight=images)
        return sum(self.losses, start=loss)  # of regularisers

    @property
    def inference(self) -> config.Inference:
        """The way from outputs to detections; may be set after training.

        Raises:
            RetinaError: it is set to something other than a `retina.config.Inference`.
        """
        return self.sections.inference

    @inference.setter
    def inference(self, section: config.Inference) -> None:
        if not isinstance(section, config.Inference):
            raise RetinaError(
                f"Detector.inference: expected a retina.config.Inference, got {type(section).__name__}; give "
                "detector.inference.model_copy(update={…}) or retina.config.Inference(…)"
            )
        self.sections = self.sections._replace(inference=section)
        self.predict_function = None  # the compiled one has the former settings

    # ------------------------------------------------------------------------------------- as Keras' users call it

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        **settings: Any,
    ) -> None:
        """`keras.Model.compile`; the loss is built in (`loss=` of the constructor).

        Args:
            optimizer: as of `keras.Model.compile`.
            loss, loss_weights, weighted_metrics: none; the loss is built in.
            metrics: `[retina.CocoMetrics()]`, or none.
            settings: the other arguments of `keras.Model.compile`.

        Raises:
            RetinaError: a loss, weights of losses or other metrics are given.
        """
        metrics = [] if metrics is None else list(metrics) if isinstance(metrics, list | tuple) else [metrics]
        if not all(getattr(metric, "of_detections", False) for metric in metrics):
            raise RetinaError(
                f"Detector.compile: metrics: expected [retina.CocoMetrics()], got {metrics}; leave the others out, the "
                "loss and its parts are reported anyway"
            )
        given = {"loss": loss, "loss_weights": loss_weights, "weighted_metrics": weighted_metrics}
        given |= {name: settings.pop(name, None) for name in ("classification_loss", "box_loss")}
        for name, value in given.items():
            if value is not None:
                raise RetinaError(
                    f"Detector.compile: {name}= has no effect, the loss and its figures are built in; leave it out, "
                    "and give Detector(…, loss=retina.config.Loss(…)) for another loss"
                )
        super().compile(optimizer=optimizer, **settings)
        self.detection_metrics.of_epoch = tuple(metrics)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Keras' metrics, and what tells callbacks which way the detector's figures get better.

        Returns:
            As of `keras.Model.metrics`, and of one more metric that has no value.

        Raises:
            Nothing of its own.
        """
        losses = [name for name in self.trackers if name != "positives"]
        return [*super().metrics, directions(self.detection_metrics.rising, losses)]

    @property
    def metrics_names(self) -> list[str]:
        """Names of `metrics` that have values.

        Returns:
            As of `keras.Model.metrics_names`.

        Raises:
            Nothing of its own.
        """
        return [metric.name for metric in super().metrics]

    def get_compile_config(self) -> dict[str, Any]:
        metrics = [keras.saving.serialize_keras_object(metric) for metric in self.detection_metrics.of_epoch]
        return {**super().get_compile_config(), **({"metrics": metrics} if metrics else {})}

    def compile_from_config(self, values: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(values))
        self.optimizer.build(self.trainable_variables)

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        sample_weight: Any = None,
        **settings: Any,
    ) -> Any:
        """`keras.Model.fit` of images and boxes, see the class.

        Args:
            x, y: images and boxes, or batches of both, see the class.
            batch_size: B, of arrays; 32 by default.
            epochs: number of times that the data are gone through.
            verbose, callbacks: as of `keras.Model.fit`.
            validation_split: share of arrays that is held back, from 0 to 1.
            validation_data: as `x`, or a tuple of `x`, `y` and weights.
            sample_weight: [B] of images, as the third part of an element of other data: an image's loss, not its
                number of objects, counts so many times.
            settings: the other arguments of `keras.Model.fit`.

        Returns:
            Keras' `History`.

        Raises:
            RetinaError: images, boxes, classes or weights are unusable (of a graph's batch: at the epoch's end); or
                weights of classes are given.
        """
        _refuse_class_weight(settings)
        data = keras_inputs.source(x, y, self.convention, sample_weight)
        if validation_data is not None:
            parts = tuple(validation_data) if isinstance(validation_data, list | tuple) else (validation_data,)
            images, targets, weights = keras.utils.unpack_x_y_sample_weight(parts)
            validation_data = keras_inputs.source(images, targets, self.convention, weights)
        self._keep_size(data)
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            several = isinstance(callbacks, list | tuple)
            callbacks = [self._refuse_unusable(), *(callbacks if several else [callbacks] if callbacks else [])]
        names = ("batch_size", "epochs", "verbose", "callbacks", "validation_split", "validation_data")
        values = (batch_size, epochs, verbose, callbacks, validation_split, validation_data)
        with _plain_errors(data, validation_data):
            return super().fit(data, **dict(zip(names, values, strict=True)), **settings)

    def evaluate(self, x: Any = None, y: Any = None, batch_size: int | None = None, **settings: Any) -> Any:
        """`keras.Model.evaluate` of images and boxes, see the class.

        With `retina.CocoMetrics` the data are read a second time for the detections, and their figures come last.

        Args:
            x, y: as of `fit`.
            batch_size: B, of arrays.
            settings: the other arguments of `keras.Model.evaluate`.

        Returns:
            The figures, as `keras.Model.evaluate` returns them.

        Raises:
            RetinaError: as `fit`.
        """
        _refuse_class_weight(settings)
        # `fit` has turned its validation data into batches before.
        inside_fit, weights = settings.get("_use_cached_eval_dataset", False), settings.pop("sample_weight", None)
        data = x if inside_fit else keras_inputs.source(x, y, self.convention, weights)
        with _plain_errors(data):
            reported = super().evaluate(data, batch_size=batch_size, **settings)
        if not inside_fit:
            self._refuse_unusable().on_epoch_end(0, {"positives": float(self.trackers["positives"].result())})
        figures = self._figures(data, batch_size, settings.get("steps"))
        return {**reported, **figures} if isinstance(reported, dict) else [*reported, *figures.values()]

    def _figures(self, data: Any, batch_size: int | None, steps: int | None) -> dict[str, float]:
        """Figures of the detections in data, by the metrics that `compile` was given."""
        metrics = self.detection_metrics.of_epoch
        for metric in metrics:
            metric.reset_state()
        for batch in islice(keras_inputs.each_batch(data, self.convention, batch_size), steps) if metrics else ():
            # Boxes stay in the canvas' pixels, as those of the batch are.
            inputs = {"images": batch["images"], "size": batch["size"], "scale": np.ones((len(batch["size"]), 2), "f")}
            detections = super().predict_on_batch(inputs)
            size = np.asarray(batch["size"])
            sides = [size[:, side, None] for side in (0, 1)]
            detections["boxes"] = keras_inputs.to_xyxy(
                detections["boxes"], self.convention.box_format, (sides[0], sides[1])
            )
            for metric in metrics:
                metric.update_state(batch, detections)
        figures = {name: value for metric in metrics for name, value in metric.result().items()}
        self.detection_metrics.rising = tuple(figures)
        return figures

    def _refuse_unusable(self) -> keras.callbacks.Callback:
        """A callback that raises at the end of an epoch whose loss is NaN because of its data."""

        def refuse(epoch: int, logs: dict[str, Any] | None = None) -> None:
            parts = [part for part in ("", "val_") if math.isnan((logs or {}).get(f"{part}positives", 0.0))]
            if parts:
                raise RetinaError(
                    f"{' and '.join('validation data' if part else 'data' for part in parts)}: expected finite boxes "
                    f"in {self.convention.box_format} (bounding_box_format=), of positive width and height, inside the "
                    f"image, classes from 0 to {self.convention.classes - 1} and weights of at least 0; a batch had "
                    "others, and its loss is NaN. Give arrays or a keras.utils.PyDataset, which are checked in each "
                    "batch, to see which"
                )

        return keras.callbacks.LambdaCallback(on_epoch_end=refuse)

    def predict(
        self, x: Any, batch_size: int | None = None, *, names: str = "retina", **settings: Any
    ) -> dict[str, np.ndarray]:
        """Detect objects in images, see the class; `detector(images)` gives the raw outputs.

        Args:
            x: images, see the class.
            batch_size: B, of arrays.
            names: of what is returned: `retina`, or as another package calls scores and labels, `keras_hub`
                (`confidence`, `labels`) or `keras_cv` (`confidence`, `classes`).
            settings: the other arguments of `keras.Model.predict`.

        Returns:
            `boxes` [B, D, 4] float32 in `bounding_box_format`, `scores` [B, D] float32, `labels` [B, D] int32 and
            `num_detections` [B] int32, by falling score; slots from `num_detections` on are 0. D is
            `inference.max_detections`. Of our own batches boxes are those of the original images.

        Raises:
            RetinaError: images are unusable, or the names unknown.
        """
        if names not in _NAMES:
            raise RetinaError(
                f"Detector.predict: names: expected one of {', '.join(_NAMES)}, got {names!r}; choose one"
            )
        data = keras_inputs.source(x, None, self.convention)
        with _plain_errors(data):
            detections = super().predict(data, batch_size=batch_size, **settings)
        return {_NAMES[names].get(name, name): value for name, value in detections.items()}

    def train_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, **settings: Any) -> Any:
        """Update the weights by one batch.

        Args:
            x, y, sample_weight: as of `fit`.
            settings: the other arguments of `keras.Model.train_on_batch`.

        Returns:
            The figures, as `keras.Model.train_on_batch` returns them.

        Raises:
            RetinaError: as `fit`, at once.
        """
        _refuse_class_weight(settings)
        batch = keras_inputs.checked_batch(x, y, self.convention, sample_weight)
        self._keep_size(batch)
        return super().train_on_batch(batch, **settings)

    def test_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, **settings: Any) -> Any:
        """Return the loss and its parts of one batch.

        Args:
            x, y, sample_weight: as of `fit`.
            settings: the other arguments of `keras.Model.test_on_batch`.

        Returns:
            The figures, as `keras.Model.test_on_batch` returns them.

        Raises:
            RetinaError: as `fit`, at once.
        """
        return super().test_on_batch(keras_inputs.checked_batch(x, y, self.convention, sample_weight), **settings)

    def predict_on_batch(self, x: Any) -> dict[str, np.ndarray]:
        """Detect objects in one batch of images.

        Args:
            x: [B, H, W, 3], as of `predict`.

        Returns:
            As of `predict`.

        Raises:
            RetinaError: images are unusable.
        """
        return super().predict_on_batch(keras_inputs.checked_batch(x, None, self.convention))

    # Keras' steps take the backend's state before the data on JAX, and return it after the outputs.

    def train_step(self, *arguments: Any) -> Any:
        batch = self._batch(arguments[-1])
        self._keep_size(batch)
        return super().train_step(*arguments[:-1], keras_inputs.padded(batch))

    def test_step(self, *arguments: Any) -> Any:
        return super().test_step(*arguments[:-1], keras_inputs.padded(self._batch(arguments[-1])))

    def predict_step(self, *arguments: Any) -> Any:
        x, _, _ = keras.utils.unpack_x_y_sample_weight(arguments[-1])
        if isinstance(x, dict) and "bounding_boxes" in x:
            x = x["images"]
        batch = keras_inputs.padded(keras_inputs.to_batch(x, None, self.convention))
        outputs = super().predict_step(*arguments[:-1], batch)
        if len(arguments) == 1:
            return self._detections(outputs, batch)
        return self._detections(outputs[0], batch), *outputs[1:]

    def _batch(self, element: Any) -> Batch:
        batch = keras_inputs.element_batch(element, self.convention)
        if "boxes" not in batch:
            raise RetinaError(
                "y: expected boxes and classes, got none; give y={'boxes': …, 'classes': …}, or in a dataset elements "
                "(images, y)"
            )
        return batch

    def _detections(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        detections = self.decode(outputs, batch)
        valid = detections.pop("valid")
        size = ops.cast(batch["size"], "float32") / ops.cast(batch["scale"], "float32")
        boxes = keras_inputs.from_xyxy(detections["boxes"], self.convention.box_format, size)
        return {**detections, "boxes": boxes, "num_detections": ops.sum(ops.cast(valid, "int32"), axis=1)}

    def _keep_size(self, batch: Any) -> None:
        """Keep the size of images that came as they are, for `export`."""
        if isinstance(batch, dict) and "usable" in batch:
            height, width = batch["images"].shape[1:3]
            if height and width:
                self.image_size = (int(height), int(width))

    def export(self, filepath: str | Path, format: str = "tf_saved_model", **settings: Any) -> None:
        """Write a SavedModel, an ONNX or a LiteRT file that takes photographs and gives detections.

        It is what `retina export` writes, certificate aside.

        Args:
            filepath: a new folder or file.
            format: `tf_saved_model`, `onnx` or `litert`.
            settings: `resize=` (a `retina.config.Resize`; by default images keep the size that `fit` was given, and
                others are scaled to it), `orientation=`, `precision=`, `raw=`, `representative=`, `category_ids=`: see
                `retina.export.exporting.export_detector`.

        Raises:
            RetinaError: an unknown format, a setting without effect, the place is taken, the backend is not TensorFlow,
                or nothing tells the size of images.

        Example:

        >>> detector = retina.load("runs/digits").detector
        >>> square = retina.config.Resize(short=64, long=64, multiple=32)
        >>> detector.export("saved", resize=square)
        >>> retina.load("saved").class_names[:2]
        ('0', '1')
        """
        from retina.export.exporting import export_detector

        export_detector(self, filepath, format, **settings)

    def _repr_html_(self) -> str:
        model, inference = self.sections.model, self.sections.inference
        return html_table(
            f"Detector {self.name}",
            {
                "classes": ", ".join(self.class_names),
                "backbone": model.backbone,
                "weights": f"{self.count_params():,}",
                "precision": self.dtype_policy.name,
                "boxes": self.convention.box_format,
                "detections": f"scores above {inference.score_threshold:g}, up to {inference.max_detections} an image",
            },
        )

    def get_config(self) -> dict[str, Any]:
        sections = {name: section.model_dump(mode="json") for name, section in self.sections._asdict().items()}
        return {
            "class_names": list(self.class_names),
            "precision": self.dtype_policy.name,
            "name": self.name,
            "bounding_box_format": self.convention.box_format,
            "pixel_range": list(self.convention.pixel_range),
            "image_size": self.image_size,
            **sections,
        }

    @classmethod
    def from_config(cls, values: dict[str, Any], custom_objects: Any = None) -> Detector:
        sections = {name: kind.model_validate(values[name]) for name, kind in _SECTION_KINDS.items()}
        arguments = {name: value for name, value in values.items() if name != "image_size"}
        detector = cls(**{**arguments, **sections}, load_weights=False)
        size = values.get("image_size")  # absent from files of older versions
        detector.image_size = tuple(size) if size else None
        return detector


def _check_arguments(class_names: Any, precision: str, others: dict[str, Any], **sections: config.Section) -> None:
    """Refuse what no detector can be made of."""
    names = class_names if isinstance(class_names, list) else []
    if not names or not all(isinstance(name, str) for name in names) or len({*names}) < len(names):
        raise RetinaError(
            f"Detector: class_names: expected the names of the classes, each once, got {class_names!r}; give a list, "
            "such as ['cat', 'dog']"
        )
    if precision not in _PRECISIONS:
        raise RetinaError(
            f"Detector: precision: expected one of {', '.join(_PRECISIONS)}, got {precision!r}; choose one"
        )
    unknown = sorted({*others} - {"name", "trainable"})
    if unknown:
        raise RetinaError(
            f"Detector: {', '.join(unknown)}: no such argument; backbone, head and first weights stand in "
            "model=retina.config.Model(backbone=…), and classes in class_names"
        )
    for name, section in sections.items():
        kind = _SECTION_KINDS[name]
        if not isinstance(section, kind):
            raise RetinaError(
                f"Detector: {name}: expected a retina.config.{kind.__name__}, got {type(section).__name__}; give "
                f"retina.config.{kind.__name__}(…)"
            )


def _refuse_class_weight(settings: dict[str, Any]) -> None:
    if settings.get("class_weight") is not None:
        raise RetinaError(
            "Detector: class_weight= has no effect, an image has objects of many classes; give sample_weight= of images"
        )


@contextmanager
def _plain_errors(*sources: Any) -> Iterator[None]:
    """Raise the error of an element itself, not the backend's error around it."""
    try:
        yield
    except Exception:
        for source in sources:
            if isinstance(source, keras_inputs.Checked) and source.error is not None:
                raise source.error from None
        raise


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
