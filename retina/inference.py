"""Runs a detector over data: `Predictor.predict` for images, `detect` for a dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np

from retina.config import Config, Data, Evaluation, Inference
from retina.data.batches.evaluation import canvas_image, translated
from retina.data.dataset import DetectionDataset
from retina.data.detections import DetectionTable, concatenate, to_xywh
from retina.data.ground_truth import GroundTruth, Results
from retina.data.images import as_configured, load_image, size_fault
from retina.data.limits import image_name
from retina.data.tiles import TileDetections, check_tiles, merged, tiling
from retina.errors import RetinaError
from retina.evaluation.coco import evaluate_as
from retina.models.detector import Detector

Batch = dict[str, Any]
_INPUTS = ("images", "size", "scale")


@dataclass(frozen=True)
class Detections:
    """The detections in one image, by falling score.

    `boxes` [n, 4] float32 xyxy in the image's own pixels, `scores` [n] float32, `labels` [n] int32, `names` n strings.

    Args:
        boxes: [n, 4] float32 xyxy in the image's own pixels.
        scores: [n] float32.
        labels: [n] int32.
        names: n strings.
        class_names: those of the detector, K strings; () where they are not known. Colours go by them.

    Raises:
        Nothing of its own.

    Example:

    >>> detections = retina.load("runs/digits").predict("dog.png")[0]
    >>> len(detections.above(0.99)), detections.above(0.99).to_list()
    (0, [])
    >>> again = type(detections).from_list(detections.to_list())
    >>> np.array_equal(again.boxes, detections.boxes)
    True
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float | np.ndarray) -> Detections:
        """The detections of at least this score.

        Args:
            score: from 0 to 1, or [K], one for each class.
        """
        keep = self.scores >= (np.asarray(score)[self.labels] if np.ndim(score) else score)
        names = tuple(np.asarray(self.names, object)[keep])
        return Detections(self.boxes[keep], self.scores[keep], self.labels[keep], names, self.class_names)

    @classmethod
    def from_list(cls, rows: Sequence[dict[str, Any]]) -> Detections:
        """Return the detections of `to_list`.

        Args:
            rows: a mapping of `name`, `label`, `score` and `box` (xyxy pixels) for each.
        """
        boxes, scores, labels = ([row[name] for row in rows] for name in ("box", "score", "label"))
        arrays = np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(labels, np.int32)
        return cls(*arrays, tuple(row["name"] for row in rows))

    def to_list(self) -> list[dict[str, Any]]:
        """Plain values for JSON: `name`, `label`, `score`, `box` (xyxy)."""
        rows = zip(self.names, self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True)
        return [{"name": name, "label": label, "score": score, "box": box} for name, label, score, box in rows]


class CompiledInference:
    """Network, decoding and NMS as one function from a batch to arrays `boxes`, `scores`, `labels`, `valid`.

    `start` returns before an asynchronous device is done, `fetch` waits for it; a call does both.
    """

    def __init__(self, forward: Callable[[Batch], Batch]):
        self._forward = forward

    def start(self, batch: Batch) -> Batch:
        """Return the detections as the backend's tensors."""
        return self._forward({name: batch[name] for name in _INPUTS})

    @staticmethod
    def fetch(detections: Batch) -> dict[str, np.ndarray]:
        """Return what `start` gave as arrays."""
        return {name: keras.ops.convert_to_numpy(value) for name, value in detections.items()}

    def __call__(self, batch: Batch) -> dict[str, np.ndarray]:
        return self.fetch(self.start(batch))


def compile_inference(detector: Detector, engine: Any = None) -> CompiledInference:
    """Return the inference of a detector, with its present weights at each call.

    Args:
        engine: under which the detector was made: a `tf.distribute.MirroredStrategy`, whose replicas each take an equal
            stretch of a batch, or a `keras.distribution.DataParallel`, of which this host's devices do; None: one
            device. A device sees its images alone, so they are found as by one device with that batch.
    """
    backend = keras.backend.backend()
    forward = _FORWARD[backend](detector) if engine is None else _FORWARD_ON_DEVICES[backend](detector, engine)
    return CompiledInference(forward)


def detect(run: CompiledInference, dataset: DetectionDataset, batches: Iterable[Batch]) -> DetectionTable:
    """Return the detections in `batches` of a dataset (`evaluation_batches`: all of it, or one host's share)."""
    nothing: tuple[Batch, np.ndarray] = {}, np.empty(0)
    with translated(dataset):
        started = ((run.start(batch), np.asarray(batch["index"])) for batch in batches)
        # A GPU has the next batch before the last is fetched.
        pairs = pairwise(chain(started, [nothing]))
        return concatenate([_table(run.fetch(detections), index) for (detections, index), _ in pairs])


def _table(detections: dict[str, np.ndarray], index: np.ndarray) -> DetectionTable:
    keep = detections["valid"] & (index >= 0)[:, None]
    rows = np.broadcast_to(index[:, None], keep.shape)
    return DetectionTable(rows[keep], *(detections[name][keep] for name in ("boxes", "scores", "labels")))


@keras.saving.register_keras_serializable("retina")
class CocoMetrics(keras.metrics.Metric):
    """COCO's figures of detections, by the evaluator of `retina evaluate`, once all images are in.

    `detector.compile(metrics=[retina.CocoMetrics()])` makes `evaluate` report `AP`, `AP50`, …, and `fit` `val_AP`, … of
    its validation data, which callbacks take: `keras.callbacks.EarlyStopping(monitor="val_AP")`. Areas are those on
    the images that the detector is given.

    Args:
        evaluation: section of `retina.Config`: limits, areas and engine.
        name: as of any metric.

    Raises:
        RetinaError: `evaluation` has tiles; and see the methods.

    Example: a single box, found with any score, gives AP 1.

    >>> metrics = retina.CocoMetrics()
    >>> box = {"boxes": np.array([[[0.0, 0, 9, 9]]]), "labels": np.array([[0]])}
    >>> scored = {"scores": np.array([[0.3]]), "num_detections": np.array([1])}
    >>> metrics.update_state(box, {**box, **scored})
    >>> round(metrics.result()["AP"], 3)
    1.0
    >>> metrics.reset_state()
    """

    of_detections = True

    def __init__(self, evaluation: Evaluation = Evaluation(), name: str = "coco", **kwargs: Any):  # noqa: B008 - frozen
        super().__init__(name=name, **kwargs)
        if evaluation.tiles is not None:
            raise RetinaError(
                "CocoMetrics: evaluation.tiles: it has no effect on detections that are there; leave it out"
            )
        self.evaluation = evaluation
        self.reset_state()

    def reset_state(self) -> None:
        # Not a list of arrays: Keras would track it.
        """Forget all batches."""
        self._rows = SimpleNamespace(images=0, truth=(), detected=())

    def update_state(self, y_true: Batch, y_pred: Batch, sample_weight: Any = None) -> None:
        """Take in a batch.

        Args:
            y_true: `boxes` [B, G, 4] xyxy pixels, `labels` [B, G], -1 in empty slots or with `valid` [B, G]; `crowd`.
            y_pred: `boxes` [B, D, 4] xyxy pixels, `scores`, `labels` [B, D] and `num_detections` [B].
            sample_weight: none.

        Raises:
            RetinaError: there are weights.
        """
        if sample_weight is not None:
            raise RetinaError("CocoMetrics: sample_weight: it has no effect on COCO's figures; leave it out")
        truth, detections = (
            {k: keras.ops.convert_to_numpy(v) for k, v in fields.items()} for fields in (y_true, y_pred)
        )
        labels = truth["labels"]
        valid = truth.get("valid", labels >= 0)
        image, slot = np.nonzero(valid)
        crowd = truth.get("crowd", np.zeros_like(valid))[image, slot]
        rows = self._rows
        rows.truth += ((image + rows.images, truth["boxes"][image, slot], labels[image, slot], crowd),)
        image, slot = np.nonzero(np.arange(detections["scores"].shape[1])[None] < detections["num_detections"][:, None])
        fields = (detections[name][image, slot] for name in ("boxes", "scores", "labels"))
        rows.detected += ((image + rows.images, *fields),)
        rows.images += len(labels)

    def result(self) -> dict[str, float]:
        """`AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl`, fractions, -1 where no box defines them.

        Raises:
            RetinaError: there were no images.
        """
        rows = self._rows
        if not rows.images:
            raise RetinaError("CocoMetrics: expected images, got none; give data of at least one batch")
        image, boxes, labels, crowd = (np.concatenate(part) for part in zip(*rows.truth, strict=True))
        where, places, scores, classes = (np.concatenate(part) for part in zip(*rows.detected, strict=True))
        count = int(max(labels.max(initial=0), classes.max(initial=0))) + 1
        xywh, names = to_xywh(boxes), tuple(map(str, range(count)))
        truth = GroundTruth(
            name="validation data",
            class_names=names,
            category_ids=tuple(range(count)),
            image_ids=tuple(range(rows.images)),
            image=image,
            boxes=xywh,
            labels=labels,
            crowd=crowd,
            difficult=np.zeros(len(labels), bool),
            areas=xywh[:, 2] * xywh[:, 3],
        )
        detections = Results("detections", where, to_xywh(places), scores, classes)
        return evaluate_as(self.evaluation, truth, detections).metrics

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "evaluation": self.evaluation.model_dump(mode="json")}

    @classmethod
    def from_config(cls, values: dict[str, Any]) -> CocoMetrics:
        return cls(**{**values, "evaluation": Evaluation.model_validate(values["evaluation"])})


class Predictor:
    """A trained detector with its preprocessing: what `retina.load` returns.

    `notes` is what loading it had to say.

    Args:
        detector: a `Detector`.
        config: the `Config` of its training.
        notes: what loading it had to say.

    Raises:
        RetinaError: see `predict`.

    Example:

    >>> predictor = retina.load("runs/digits")
    >>> image = np.zeros((48, 64, 3), "uint8")
    >>> len(predictor.predict([image, "dog.png"]))
    2
    >>> [len(detections.boxes) <= 100 for detections in predictor.stream(image)]
    [True]
    >>> len(predictor.digest())
    64
    """

    def __init__(self, detector: Detector, config: Config, notes: Sequence[str] = ()):
        self.detector, self.config, self.notes = detector, config, tuple(notes)
        self.class_names = detector.class_names
        self.run = compile_inference(detector)

    def predict(self, images: Any, *, tile: int | None = None, overlap: float | None = None) -> list[Detections]:
        """Detect objects.

        Args:
            images: one or several paths, encoded images as bytes, Pillow images, or uint8 RGB arrays [H, W, 3]; sizes
                may differ. With `data.orientation: upright` files are turned as EXIF says, and boxes are those of the
                upright picture; arrays and Pillow images stay as they are.
            tile: side in pixels of the tiles that larger images are detected in, see `retina.data.tiles`; None: each
                image as a whole.
            overlap: share of a tile's side that neighbours have in common, 0.2 by default.

        Returns:
            One `Detections` an image, in the order given. Of tiles each has up to `inference.max_detections`.

        Raises:
            RetinaError: a file is missing, no image or of more than `data.max_pixels`, or an array is no [H, W, 3]
                uint8; or a tile is out of its range.
        """
        return list(self.stream(images, tile=tile, overlap=overlap))

    def _repr_html_(self) -> str:
        table: str = self.detector._repr_html_()
        return table

    def stream(self, images: Any, *, tile: int | None = None, overlap: float | None = None) -> Iterable[Detections]:
        """`predict`, an image at a time.

        Args:
            images, tile, overlap: as of `predict`.

        Raises:
            RetinaError: as `predict`.
        """
        check_tiles(tile, overlap)
        for image in each_image(images):
            pixels = pixels_of(image, self.config.data)
            if tile is None:
                yield from self._detect([pixels])
            else:
                yield detect_in_tiles(self._detect, pixels, self.class_names, self.config.inference, tile, overlap)

    def digest(self) -> str:
        """Return the SHA-256 of the weights, in hexadecimal digits."""
        content = hashlib.sha256()
        for variable in self.detector.variables:
            content.update(np.ascontiguousarray(keras.ops.convert_to_numpy(variable)).tobytes())
        return content.hexdigest()

    def _detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        return detect_images(self.run, self.config, self.class_names, images)


def detect_images(
    run: Callable[[Batch], dict[str, np.ndarray]],
    config: Config,
    class_names: Sequence[str],
    images: Sequence[np.ndarray],
) -> list[Detections]:
    """Return the detections in images [H, W, 3] of one size, which go through the network together; `run` is of
    `compile_inference`."""
    shown = [canvas_image(pixels, config.data.resize) for pixels in images]
    canvas, scale, size = (np.stack(column) for column in zip(*shown, strict=True))
    detections = run({"images": canvas, "scale": scale.astype(np.float32), "size": size.astype(np.int32)})
    columns = zip(*(detections[name] for name in ("boxes", "scores", "labels", "valid")), strict=True)
    return [_named(boxes[valid], scores[valid], labels[valid], class_names) for boxes, scores, labels, valid in columns]


def detect_rows(
    detect: Callable[[Sequence[np.ndarray]], list[Detections]],
    dataset: DetectionDataset,
    rows: Iterable[int],
    config: Config,
) -> DetectionTable:
    """Return the detections in rows of a dataset, by the tiles of `evaluation.tiles`.

    Args:
        detect: as of `detect_in_tiles`.

    Raises:
        RetinaError: an image can't be read, or is of another size than declared.
    """
    tiles = config.evaluation.tiles
    assert tiles is not None, "evaluations without tiles read batches"
    tables = []
    for row in rows:
        pixels = load_image(dataset.photograph(row), image_name(dataset, row), max_pixels=config.data.max_pixels)
        fault = size_fault(dataset, row, pixels.shape[:2])
        if fault is not None:
            raise fault
        detections = detect_in_tiles(detect, pixels, dataset.class_names, config.inference, tiles.size, tiles.overlap)
        tables.append(
            DetectionTable(np.full(len(detections), row), detections.boxes, detections.scores, detections.labels)
        )
    return concatenate(tables)


def detect_in_tiles(
    detect: Callable[[Sequence[np.ndarray]], list[Detections]],
    pixels: np.ndarray,
    class_names: Sequence[str],
    inference: Inference,
    tile: int,
    overlap: float | None = None,
) -> Detections:
    """Return the detections in an image [H, W, 3] by its tiles, and of objects too large for these by the whole.

    Args:
        detect: from images of one size to their detections; it is given up to `inference.batch_size`.
        inference: its NMS IoU and classes are those of the suppression across tiles.
        tile, overlap: see `retina.data.tiles.tiling`.
    """
    size = pixels.shape[0], pixels.shape[1]
    tiles = tiling(*size, tile, 0.2 if overlap is None else overlap)
    (whole,) = detect([pixels])
    if len(tiles.windows) == 1:
        return whole
    parts = [whole]
    for start in range(0, len(tiles.windows), inference.batch_size):
        windows = tiles.windows[start : start + inference.batch_size].tolist()
        parts += detect([np.ascontiguousarray(pixels[y1:y2, x1:x2]) for x1, y1, x2, y2 in windows])
    corners = np.concatenate([[[0, 0]], tiles.windows[:, :2]])
    table = TileDetections(
        np.repeat(np.arange(len(parts)) - 1, [len(part) for part in parts]),
        np.concatenate([part.boxes + np.tile(corner, 2) for part, corner in zip(parts, corners, strict=True)]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )
    table = merged(table, size, tiles, iou=inference.nms_iou, class_agnostic=inference.class_agnostic)
    return _named(table.boxes.astype(np.float32), table.scores, table.labels, class_names)


def _named(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> Detections:
    return Detections(boxes, scores, labels, tuple(class_names[k] for k in labels), tuple(class_names))


def build_detector(config: Config, class_names: Sequence[str], *, load_weights: bool = True) -> Detector:
    """The detector of a configuration; `load_weights` False leaves its preset out, for a checkpoint to overwrite."""
    return Detector(
        class_names,
        model=config.model,
        anchors=config.anchors,
        assignment=config.assignment,
        loss=config.loss,
        inference=config.inference,
        precision=config.run.precision,
        load_weights=load_weights,
    )


def each_image(images: Any) -> Iterable[Any]:
    """Return the images of what `predict` was given: a single image, or several."""
    of_pixels = hasattr(images, "mode") or len(getattr(images, "shape", ())) in (2, 3)
    return [images] if isinstance(images, (str, Path, bytes)) or of_pixels else images


def pixels_of(image: Any, data: Data | None = None) -> np.ndarray:
    """Return an image as uint8 RGB [H, W, 3]; files are read as everywhere in retina, and an alpha channel of a
    Pillow image is left out as theirs is.

    Args:
        data: the section by which files are read; None: as stored.

    Raises:
        RetinaError: it is missing, damaged, empty, or its pixels can't be read without a guess.
    """
    if isinstance(image, (str, Path, bytes)):
        file = image if isinstance(image, bytes) else str(image)
        return load_image(file) if data is None else load_image(as_configured(file, data), max_pixels=data.max_pixels)
    mode = getattr(image, "mode", None)
    if mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"):
        image = image.convert("RGB")
    elif mode is not None:
        raise RetinaError(
            f"predict: expected an image of 8 bits a channel, got Pillow's mode {mode}; scale it to 0..255"
        )
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise RetinaError(
            f"predict: expected uint8 RGB [H, W, 3], got {pixels.dtype} {list(pixels.shape)}; {_remedy(pixels)}"
        )
    return pixels


def _remedy(pixels: np.ndarray) -> str:
    """Return what to do with an array that is no uint8 RGB image."""
    if pixels.size == 0:
        return "it is empty"
    if pixels.dtype.kind == "f" and pixels.max() <= 1 and pixels.min() >= 0:
        return "give (255 * image).round().astype('uint8')"
    if pixels.dtype != np.uint8:
        return "scale it to 0..255 and give .astype('uint8')"
    if pixels.ndim == 2 or pixels.shape[-1] == 1:
        return "give a grey image three times: np.stack([image] * 3, axis=-1) of [H, W]"
    if pixels.ndim == 3 and pixels.shape[-1] == 4:
        return "leave the alpha channel out: image[..., :3]"
    if pixels.ndim == 3 and pixels.shape[0] == 3:
        return "put the channels last: image.transpose(1, 2, 0)"
    return "give [H, W, 3]"


def _tensorflow_forward(detector: Detector) -> Callable[[Batch], Batch]:
    import tensorflow as tf

    return tf.function(_forward(detector), input_signature=_signature(), autograph=False)


def _forward(detector: Detector) -> Callable[[Batch], Batch]:
    def forward(batch: Batch) -> Batch:
        maps = detector.feature_maps(batch["images"], batch["size"], training=False)
        return detector.decode(detector.predictions(maps), batch)

    return forward


def _signature() -> list[Any]:
    """One graph for every canvas: nothing is traced anew for a picture of another size, and an export, whose graph
    can't know the canvas either, gives the same numbers bit for bit (graphs of known and unknown shape differ by
    rounding)."""
    import tensorflow as tf

    return [
        {
            "images": tf.TensorSpec([None, None, None, 3], tf.uint8),
            "size": tf.TensorSpec([None, 2], tf.int32),
            "scale": tf.TensorSpec([None, 2], tf.float32),
        }
    ]


def _mirrored_forward(detector: Detector, strategy: Any) -> Callable[[Batch], Batch]:
    import tensorflow as tf

    on_replica, replicas = _forward(detector), strategy.num_replicas_in_sync

    @tf.function(input_signature=_signature(), autograph=False)
    def forward(batch: Batch) -> Batch:
        with strategy.scope():
            shares = {name: tf.split(x, replicas) for name, x in batch.items()}
            share = strategy.experimental_distribute_values_from_function(
                lambda context: {name: x[context.replica_id_in_sync_group] for name, x in shares.items()}
            )
            values = strategy.run(on_replica, args=(share,))
        return {name: tf.concat(strategy.experimental_local_results(x), 0) for name, x in values.items()}

    return forward


def _jax_forward(detector: Detector) -> Callable[[Batch], Batch]:
    import jax

    @jax.jit
    def forward(trainable: list, frozen: list, batch: Batch) -> Batch:
        outputs, _ = detector.stateless_call(trainable, frozen, batch, training=False)
        return detector.decode(outputs, batch)

    def run(batch: Batch) -> Batch:
        state = ([v.value for v in group] for group in (detector.trainable_variables, detector.non_trainable_variables))
        return forward(*state, {name: jax_or_numpy(value) for name, value in batch.items()})

    return run


def jax_or_numpy(x: Any) -> Any:
    """As it is, where it is on a device already; else an array, without a copy."""
    import jax

    return x if isinstance(x, jax.Array) else np.asarray(x)


def _jax_forward_on_devices(detector: Detector, engine: Any) -> Callable[[Batch], Batch]:
    import jax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    # Hosts evaluate each by itself: they have other batches, and never wait for another.
    whole, batch_axis = PartitionSpec(), PartitionSpec("batch")
    mesh = Mesh(np.array(engine.device_mesh.backend_mesh.local_devices), ("batch",))

    def forward(trainable: list, frozen: list, batch: Batch) -> Batch:
        outputs, _ = detector.stateless_call(trainable, frozen, batch, training=False)
        return detector.decode(outputs, batch)

    # Not left to the compiler to divide: the loops of NMS would wait for each other's devices.
    mapped = jax.jit(_shard_map()(forward, mesh=mesh, in_specs=(whole, whole, batch_axis), out_specs=batch_axis))

    def here(value: Any) -> Any:
        shards = {shard.device: shard.data for shard in value.addressable_shards}
        parts = [shards[device] for device in mesh.devices.flat]
        return jax.make_array_from_single_device_arrays(value.shape, NamedSharding(mesh, whole), parts)

    def run(batch: Batch) -> Batch:
        groups = (detector.trainable_variables, detector.non_trainable_variables)
        state = ([here(v.value) for v in group] for group in groups)
        return mapped(*state, {name: jax_or_numpy(value) for name, value in batch.items()})

    return run


def _shard_map() -> Callable[..., Any]:
    """`jax.shard_map` without its check of what is equal on all devices, which loops of unknown length don't pass."""
    import functools

    import jax

    if hasattr(jax, "shard_map"):
        return functools.partial(jax.shard_map, check_vma=False)
    from jax.experimental.shard_map import shard_map  # before JAX 0.6

    return functools.partial(shard_map, check_rep=False)


def _torch_forward(detector: Detector) -> Callable[[Batch], Batch]:
    def run(batch: Batch) -> Batch:
        import torch

        with torch.no_grad():
            batch = {name: keras.ops.convert_to_tensor(np.asarray(value)) for name, value in batch.items()}
            return detector.decode(detector(batch, training=False), batch)

    return run


_FORWARD = {"tensorflow": _tensorflow_forward, "jax": _jax_forward, "torch": _torch_forward}
_FORWARD_ON_DEVICES = {"tensorflow": _mirrored_forward, "jax": _jax_forward_on_devices}
