"""The proof that an export scores what its checkpoint scores."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

import retina
from retina import config
from retina.data.batches.evaluation import canvas_image
from retina.data.dataset import DetectionDataset
from retina.data.detections import DetectionTable
from retina.data.ground_truth import GroundTruth, ground_truth, results
from retina.data.headers import is_tiff
from retina.data.images import as_configured, load_image
from retina.data.stored import encoded as encoded_image
from retina.errors import RetinaError
from retina.evaluation.coco import evaluate_as
from retina.export import runner, worker
from retina.export.agreement import MATCH_IOU, Agreement, Difference, Limits, agreement, first_difference, problems
from retina.export.description import float32_detector, without_place
from retina.export.runner import format_of, installed_runtimes, open_artefact
from retina.files import write_text
from retina.inference import Detections, Predictor
from retina.runs.loading import load

NAME = "certificate"

# Shares of detections without a partner. A wrong size leaves none with one, or shifts boxes; a few are chance where the
# copies have many alike near the last slot, or where a runtime rounds some resized pixels the other way.
_UNMATCHED_ON_COPIES, _UNMATCHED_ELSEWHERE = 0.05, 0.01
# A machine that loads ResNet-101 from a slow disk and runs COCO's 5000 images on two cores is done in time.
_PATIENCE = 24 * 3600
_IMAGES_AT_ONCE = 8


@dataclass(frozen=True)
class Certificate:
    """The findings of `certify`; its fields are plain values, and `certificate.json` holds them.

    `ap` and `latency_ms` (median and 90th percentile of one image, from its encoded bytes to its detections) have the
    keys `checkpoint` and `export`; `ap["export"]` is None if the detections could not be scored, and an export that
    does not run has no latency. `copies` is the agreement on resized copies of an image, and how many there were. All
    these are of the export in its format's first runtime; `runtimes` holds the figures of every runtime that was
    tried, under its name and version. `ties` counts images, copies among them, on which rounding chose between equal
    candidates: there `agreement` is with what the checkpoint's decoding makes of the export's own logits and deltas.
    Certificates of before have none of the three.
    """

    passed: bool
    problems: tuple[str, ...]
    stage: str | None
    difference: str | None
    export: str
    format: str
    data: str
    images: int
    precision: str
    ap: dict[str, float | None]
    delta_ap: float | None
    detections: dict[str, int]
    agreement: dict[str, float]
    latency_ms: dict[str, dict[str, float]]
    size_bytes: int
    limits: dict[str, float | None]
    environment: dict[str, str]
    copies: dict[str, float] = field(default_factory=dict)
    runtimes: dict[str, dict[str, Any]] = field(default_factory=dict)
    ties: int = 0

    def to_json(self) -> dict[str, Any]:
        return {"retina": retina.__version__, **asdict(self), "problems": list(self.problems)}

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> Certificate:
        values = {name: value for name, value in tree.items() if name != "retina"}
        return cls(**{**values, "problems": tuple(values["problems"])})

    def words(self) -> str:
        """The certificate for people, a paragraph a line."""
        pairs, ap, counts = self.agreement, self.ap, self.detections
        ours, theirs = self.latency_ms["checkpoint"], self.latency_ms["export"]
        verdict = "Passed" if self.passed else "Refused"
        lines = [
            f"{verdict}: {self.export} ({self.format}) on {self.images} images of {self.data}.",
            f"AP {_figure(ap['checkpoint'])} of the {self.precision} checkpoint, {_figure(ap['export'])} of the export "
            f"(difference {_signed(self.delta_ap)}).",
            f"{pairs['matched']:.0f} pairs of detections (same class, IoU at least {MATCH_IOU}): boxes shifted by at "
            f"most {pairs['box_shift']:.3g} px, scores by {pairs['score_difference']:.3g}; without a partner are "
            f"{pairs['unmatched_checkpoint']:.0f} of the checkpoint's {counts['checkpoint']} and "
            f"{pairs['unmatched_export']:.0f} of the export's {counts['export']}.",
        ]
        if theirs:
            lines.append(
                f"One image took {theirs['median']:.1f} ms (median; 90 % within {theirs['p90']:.1f} ms), the "
                f"checkpoint {ours['median']:.1f} ms; {self.size_bytes / 1e6:.1f} MB on disk."
            )
        if self.copies:
            lines.append(
                f"On {self.copies['images']:.0f} copies of an image, enlarged, shrunk, padded and drawn out: "
                f"{_agreed(self.copies)}."
            )
        if self.ties:
            lines.append(
                f"On {self.ties} images candidates score alike within rounding, so that chance chose between them: "
                "there the export gives, within the limits, what the checkpoint's decoding makes of the export's own "
                "logits and deltas, and these agree with the checkpoint's."
            )
        for name, figures in list(self.runtimes.items())[1:]:
            difference, agreed = _signed(figures["delta_ap"]), _agreed(figures["agreement"])
            lines.append(
                f"In {name}: AP differs by {difference}; {agreed}; on the copies {_agreed(figures['copies'])}."
            )
        lines += [f"Problem: {problem}." for problem in self.problems]
        if self.difference is not None:
            where = f"in {self.stage}" if self.stage else "at a stage that can't be named"
            lines.append(f"The first difference arises {where}: {self.difference}.")
        return "\n".join(lines)


def certify(
    artefact: str | Path,
    checkpoint: str | Path | Predictor,
    dataset: DetectionDataset,
    *,
    limits: Limits,
    truth: GroundTruth | None = None,
) -> Certificate:
    """Compare an export, run in a process of its own, with the checkpoint on a dataset.

    Both see every image alone and on its own canvas, from its encoded bytes. Where a run was trained in bfloat16, a
    SavedModel computes in it too; other formats compute in float32, and so does the checkpoint that they are held to.

    Args:
        artefact: a SavedModel's folder or a file, see `retina.export.runner`.
        checkpoint: a run directory (its best checkpoint), or a loaded one.
        truth: what AP is taken on, if the dataset's own boxes are not all that were annotated.

    Raises:
        RetinaError: there is no export, the dataset is empty, or an image can't be read.
    """
    artefact = Path(artefact)
    kind = format_of(artefact)
    if kind is None:
        open_artefact(artefact)  # raises, and says what was expected
    assert kind is not None
    if not len(dataset):
        raise RetinaError(f"{dataset.name}: expected at least one image to certify an export with, got none")
    predictor = checkpoint if isinstance(checkpoint, Predictor) else load(checkpoint)
    if kind != "saved_model":
        predictor = _in_float32(predictor)
    reference = _reference(predictor, dataset, truth or ground_truth(dataset))
    with tempfile.TemporaryDirectory(prefix="retina_certificate_") as folder:
        files = _write_images(Path(folder), reference.encoded)
        first, *others = (_trial(artefact, runtime, reference, limits, files) for runtime in installed_runtimes(kind))
    trials = (first, *others)
    faults = (*first.faults, *(f"in {trial.runtime}: {fault}" for trial in others for fault in trial.faults))
    difference = next((trial.difference for trial in trials if trial.difference), None)
    return Certificate(
        passed=not faults,
        problems=faults,
        stage=difference.stage if difference else None,
        difference=difference.words if difference else None,
        export=artefact.name,
        format=str(kind),
        data=without_place(dataset.name),
        images=len(dataset),
        precision=predictor.config.run.precision,
        ap={"checkpoint": reference.ap, "export": first.ap},
        delta_ap=first.delta_ap,
        detections={"checkpoint": sum(map(len, reference.detections[: len(dataset)])), "export": first.detections},
        agreement=_plain(first.agreement),
        latency_ms={"checkpoint": _latency(reference.seconds), "export": _latency(first.seconds)},
        size_bytes=size_of(artefact),
        limits=asdict(limits),
        environment=_environment(),
        copies=first.on_copies(),
        runtimes={trial.runtime: trial.figures() for trial in trials},
        ties=first.ties,
    )


def write_certificate(certificate: Certificate, artefact: Path) -> tuple[Path, Path]:
    """`certificate.json` and `.txt`: inside a SavedModel's `assets.extra`, or beside a file and named after it."""
    inside = artefact / "assets.extra" / NAME
    stem = inside if artefact.is_dir() else artefact.with_name(f"{artefact.name}.{NAME}")
    stem.parent.mkdir(exist_ok=True)
    tree, words = stem.with_name(f"{stem.name}.json"), stem.with_name(f"{stem.name}.txt")
    write_text(tree, json.dumps(certificate.to_json(), indent=2) + "\n")
    write_text(words, certificate.words() + "\n")
    return tree, words


def size_of(artefact: Path) -> int:
    """Bytes on disk of a file, or of all files in a folder."""
    files = artefact.rglob("*") if artefact.is_dir() else [artefact]
    return sum(file.stat().st_size for file in files if file.is_file())


# -------------------------------------------------------------------------------------------------------- both sides


class _Reference(NamedTuple):
    """The checkpoint's side: `encoded` are the dataset's images and, after them, resized copies of one; `detections`
    are of all of them, `ap` and `seconds` of the dataset's. `network` and `decode` are `_network` and `_decode`."""

    predictor: Predictor
    network: Callable[[Any, Any], dict[str, Any]]
    decode: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]
    dataset: DetectionDataset
    truth: GroundTruth
    encoded: list[bytes]
    detections: list[Detections]
    ap: float
    seconds: np.ndarray


class _Trial(NamedTuple):
    """An export in one runtime against the checkpoint; what does not run has no `seconds`."""

    runtime: str
    ap: float | None
    delta_ap: float | None
    detections: int
    agreement: Agreement
    copies: Agreement
    copies_count: int
    ties: int
    seconds: np.ndarray
    faults: tuple[str, ...]
    difference: Difference | None

    def on_copies(self) -> dict[str, float]:
        return {"images": self.copies_count, **_plain(self.copies)}

    def figures(self) -> dict[str, Any]:
        return {
            "delta_ap": self.delta_ap,
            "agreement": _plain(self.agreement),
            "copies": self.on_copies(),
            "ties": self.ties,
            "latency_ms": _latency(self.seconds),
            "problems": list(self.faults),
        }


def _reference(predictor: Predictor, dataset: DetectionDataset, truth: GroundTruth) -> _Reference:
    encoded = [_servable(predictor, encoded_image(image)) for image in dataset.images]
    detections, seconds = _of_checkpoint(predictor, encoded)
    ap = _ap(detections, dataset, truth, predictor)
    fullest = int(np.argmax([len(image) for image in detections]))
    copies = resized_copies(encoded[fullest], predictor.config.data)
    return _Reference(
        predictor,
        _network(predictor),
        _decode(predictor),
        dataset,
        truth,
        [*encoded, *copies],
        [*detections, *_of_checkpoint(predictor, copies)[0]],
        ap,
        seconds,
    )


def _trial(artefact: Path, runtime: str, reference: _Reference, limits: Limits, files: Sequence[Path]) -> _Trial:
    predictor, dataset, ours, count = (
        reference.predictor,
        reference.dataset,
        reference.detections,
        len(reference.dataset),
    )
    fault: str | None = None
    try:
        theirs, seconds = _of_export(artefact, runtime, files, predictor.class_names)
    except _CannotRun as error:
        theirs, seconds, fault = [_nothing()] * len(files), np.zeros(0), str(error)
    try:
        ap = None if fault else _ap(theirs[:count], dataset, reference.truth, predictor)
    except RetinaError as error:
        ap, fault = None, f"its detections can't be scored: {error}"
    delta = None if ap is None else ap - reference.ap
    verdict = _verdict(ours, theirs, count, delta, limits, fault)
    ties = 0
    if fault is None and verdict.faults and verdict.agreed.unmatched + verdict.copied.unmatched:
        settled = _settled(reference, theirs, _chunks_of_stages(artefact, runtime, files), limits.stage)
        ties = sum(mine is not image for mine, image in zip(settled, ours, strict=True))
        if ties:
            settled_ap = _ap(settled[:count], dataset, reference.truth, predictor)
            verdict = _verdict(settled, theirs, count, None if ap is None else ap - settled_ap, limits, fault)
    difference = None
    if seconds.size and verdict.faults:
        worst = max(verdict.agreed.worst, 0) if verdict.on_data else count + max(verdict.copied.worst, 0)
        (stages,) = _stages_of_export(artefact, runtime, [files[worst]])
        difference = first_difference(_stages_of_checkpoint(reference, worst), stages, limits.stage)
    return _Trial(
        _with_version(runtime),
        ap,
        delta,
        sum(map(len, theirs[:count])),
        verdict.agreed,
        verdict.copied,
        len(files) - count,
        ties,
        seconds[:count],
        verdict.faults,
        difference,
    )


class _Verdict(NamedTuple):
    """Agreement on the dataset's images and on the copies; `on_data` are the faults of the first."""

    agreed: Agreement
    copied: Agreement
    on_data: tuple[str, ...]
    faults: tuple[str, ...]


def _verdict(
    ours: Sequence[Detections],
    theirs: Sequence[Detections],
    count: int,
    delta: float | None,
    limits: Limits,
    fault: str | None,
) -> _Verdict:
    agreed = agreement(ours[:count], theirs[:count])
    copied = agreement(*(list(map(_with_area, detections[count:])) for detections in (ours, theirs)))
    on_data = ((fault,) if fault else ()) + problems(limits, delta, agreed)
    on_copies = () if fault else problems(_with_unmatched(limits, _UNMATCHED_ON_COPIES), None, copied)
    copies_faults = (f"on resized copies of an image, {problem}" for problem in on_copies)
    return _Verdict(agreed, copied, on_data, (*on_data, *copies_faults))


def _settled(
    reference: _Reference,
    theirs: Sequence[Detections],
    stages_of: Callable[[Sequence[int]], Iterable[dict[str, np.ndarray]]],
    tolerance: float,
) -> list[Detections]:
    """The checkpoint's detections, those of ties settled as the export's rounding settled them.

    Candidates whose scores differ by less than rounding (a detector that has hardly been trained has thousands) go
    through suppression in an order of chance. So where an image's detections have no partner although its tensors
    agree, the export must give what the checkpoint's decoding makes of the export's own logits and deltas; where it
    does, that takes the place of the checkpoint's detections.
    """
    detections = list(reference.detections)
    rows = [
        row
        for row, pair in enumerate(zip(detections, theirs, strict=True))
        if agreement(*([x] for x in pair)).unmatched
    ]
    for row, stages in zip(rows, stages_of(rows), strict=False):
        computed = _stages_of_checkpoint(reference, row)
        if not {"logits", "deltas"} <= set(stages) or first_difference(computed, stages, tolerance).stage != "NMS":
            break  # not by chance: the other images need no look
        decoded = _decoded(reference, row, stages)
        if not agreement([decoded], [theirs[row]]).unmatched:
            detections[row] = decoded
    return detections


def _decoded(reference: _Reference, row: int, stages: Mapping[str, np.ndarray]) -> Detections:
    """The detections that the checkpoint's decoding makes of an export's `logits` and `deltas` of one image."""
    predictor = reference.predictor
    canvas, scale, size = canvas_image(_pixels(predictor, reference.encoded[row]), predictor.config.data.resize)
    batch = {"images": canvas[None], "size": size[None].astype(np.int32), "scale": scale[None].astype(np.float32)}
    outputs = {name: stages[name][None].astype(np.float32) for name in ("logits", "deltas")}
    detected = {name: ops.convert_to_numpy(value)[0] for name, value in reference.decode(outputs, batch).items()}
    boxes, scores, labels = (detected[name][detected["valid"]] for name in ("boxes", "scores", "labels"))
    return Detections(boxes, scores, labels, tuple(predictor.class_names[k] for k in labels))


def _chunks_of_stages(
    artefact: Path, runtime: str, files: Sequence[Path]
) -> Callable[[Sequence[int]], Iterable[dict[str, np.ndarray]]]:
    """A function of rows of `files`: their stages, read a few images at a time, since their maps are large."""

    def stages_of(rows: Sequence[int]) -> Iterable[dict[str, np.ndarray]]:
        for start in range(0, len(rows), _IMAGES_AT_ONCE):
            yield from _stages_of_export(
                artefact, runtime, [files[row] for row in rows[start : start + _IMAGES_AT_ONCE]]
            )

    return stages_of


def _with_area(detections: Detections) -> Detections:
    """Without boxes that the content's edge cut to nothing: in the padding, where all anchors score alike, it is chance
    which of them are among the best."""
    sides = detections.boxes[:, 2:] - detections.boxes[:, :2]
    rows = np.flatnonzero((sides > 0).all(axis=1))
    columns = (detections.boxes[rows], detections.scores[rows], detections.labels[rows])
    return Detections(*columns, tuple(detections.names[row] for row in rows))


def _with_unmatched(limits: Limits, share: float) -> Limits:
    return limits if limits.unmatched is None else replace(limits, unmatched=share)


def resized_copies(encoded: bytes, data: config.Data) -> list[bytes]:
    """Copies (PNG) of an encoded image that each ask something else of the resizing: to enlarge, shrink and leave it,
    padding on either side and on none, the limit of the long side, and an extreme aspect; none beyond `max_pixels`.
    """
    from PIL import Image

    short, long, multiple = data.resize.short, data.resize.long, data.resize.multiple
    sizes = [
        (max(short // 3, 1), max(short // 2, 1)),
        (2 * short + 1, 2 * short + 3),
        (short, max(long // multiple * multiple, short)),
        (long + 7, max(short // 3, 1)),
        (max(short // 9, 1), 2 * long + 1),
    ]
    image = Image.fromarray(load_image(encoded))
    copies = []
    for height, width in sizes:
        if height * width <= data.max_pixels:
            file = io.BytesIO()
            image.resize((width, height), Image.Resampling.BILINEAR).save(file, "PNG", compress_level=1)
            copies.append(file.getvalue())
    return copies


class _CannotRun(Exception):
    """The export fails in its own process; the message says how."""


def _of_checkpoint(predictor: Predictor, encoded: Sequence[bytes]) -> tuple[list[Detections], np.ndarray]:
    predictor.predict(_pixels(predictor, encoded[0]))  # the first call builds the graph
    detections, seconds = [], []
    for image in encoded:
        start = time.perf_counter()
        detections += predictor.predict(_pixels(predictor, image))
        seconds.append(time.perf_counter() - start)
    return detections, np.array(seconds)


def _pixels(predictor: Predictor, image: bytes) -> np.ndarray:
    return load_image(as_configured(image, predictor.config.data))


def _servable(predictor: Predictor, image: bytes) -> bytes:
    """An encoded image that a SavedModel reads: a TIFF, which TensorFlow does not, as a PNG of the same pixels."""
    if not is_tiff(image):
        return image
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(_pixels(predictor, image)).save(out, "PNG")
    return out.getvalue()


def _stages_of_checkpoint(reference: _Reference, row: int) -> dict[str, np.ndarray]:
    """`TENSORS` of one image, computed from the checkpoint."""
    pixels = _pixels(reference.predictor, reference.encoded[row])
    canvas, _, size = canvas_image(pixels, reference.predictor.config.data.resize)
    outputs = reference.network(ops.convert_to_tensor(canvas[None]), ops.convert_to_tensor(size[None]))
    return {"pixels": pixels, "canvas": canvas, **{name: ops.convert_to_numpy(x) for name, x in outputs.items()}}


def _network(predictor: Predictor) -> Callable[[Any, Any], dict[str, Any]]:
    """A function of a canvas [1,H,W,3] and its content's size [1,2]: `maps`, `logits` and `deltas` of `TENSORS`."""
    detector = predictor.detector

    def network(canvas: Any, size: Any) -> dict[str, Any]:
        maps = detector.feature_maps(canvas, size, training=False)
        rows = [ops.reshape(ops.cast(level[0], "float32"), (-1,)) for level in maps]
        return {"maps": ops.concatenate(rows), **{name: x[0] for name, x in detector.predictions(maps).items()}}

    if keras.backend.backend() != "tensorflow":
        return network
    import tensorflow as tf

    # As prediction computes it: operation by operation bfloat16 rounds more often than in a graph.
    specification = [tf.TensorSpec([None, None, None, 3], tf.uint8), tf.TensorSpec([None, 2], tf.int32)]
    return tf.function(network, input_signature=specification, autograph=False)


def _decode(predictor: Predictor) -> Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]:
    """The detector's decoding: a function of `logits` and `deltas`, and of a batch."""
    if keras.backend.backend() != "tensorflow":
        return predictor.detector.decode
    import tensorflow as tf

    return tf.function(predictor.detector.decode, reduce_retracing=True, autograph=False)


def _of_export(
    artefact: Path, runtime: str, files: Sequence[Path], class_names: Sequence[str]
) -> tuple[list[Detections], np.ndarray]:
    out = _run_worker(artefact, runtime, files, stages=False)
    ends = np.cumsum(out["counts"])
    detections = []
    for start, end in zip(ends - out["counts"], ends, strict=True):
        labels = out["labels"][start:end]
        names = tuple(class_names[k] if 0 <= k < len(class_names) else f"no class {k}" for k in labels)
        detections.append(Detections(out["boxes"][start:end], out["scores"][start:end], labels, names))
    return detections, out["seconds"]


def _stages_of_export(artefact: Path, runtime: str, files: Sequence[Path]) -> list[dict[str, np.ndarray]]:
    """`TENSORS` of each image, as far as the export shows them."""
    try:
        arrays = _run_worker(artefact, runtime, files, stages=True)
    except _CannotRun:
        arrays = {}
    stages: list[dict[str, np.ndarray]] = [{} for _ in files]
    for name, value in arrays.items():
        row, _, tensor = name.partition("/")
        stages[int(row)][tensor] = value
    return stages


def _run_worker(artefact: Path, runtime: str, files: Sequence[Path], *, stages: bool) -> dict[str, np.ndarray]:
    """Run the export in a fresh process: for a SavedModel with nothing of retina's but the worker's file."""
    plain, folder = format_of(artefact) == "saved_model", files[0].parent
    job, out = folder / "job.json", folder / "out.npz"
    images = list(map(str, files))
    tree = {"artefact": str(artefact.absolute()), "runtime": runtime, "images": images, "stages": stages}
    write_text(job, json.dumps(tree))
    how = ["-I", str(Path(worker.__file__))] if plain else ["-m", runner.__name__]
    package = str(Path(retina.__file__).parents[1])
    paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, *how, str(job), str(out)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
    )
    if done.returncode != 0:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), f"exit {done.returncode}")
        raise _CannotRun(f"it does not run in a process of its own: {last.strip()}")
    with np.load(out) as arrays:
        return dict(arrays)


def _write_images(folder: Path, encoded: Sequence[bytes]) -> list[Path]:
    files = [folder / f"{row}" for row in range(len(encoded))]
    for file, image in zip(files, encoded, strict=True):
        file.write_bytes(image)
    return files


def _in_float32(predictor: Predictor) -> Predictor:
    detector = float32_detector(predictor)
    if detector is predictor.detector:
        return predictor
    run = predictor.config.run.model_copy(update={"precision": "float32"})
    return Predictor(detector, predictor.config.model_copy(update={"run": run}))


def _ap(detections: Sequence[Detections], dataset: DetectionDataset, truth: GroundTruth, predictor: Predictor) -> float:
    table = table_of(detections)
    return evaluate_as(predictor.config.evaluation, truth, results(table, dataset)).metrics["AP"]


def table_of(detections: Sequence[Detections]) -> DetectionTable:
    """The detections of a dataset's images, in its order, as one table."""
    return DetectionTable(
        np.repeat(np.arange(len(detections)), [len(image) for image in detections]),
        np.concatenate([image.boxes for image in detections]),
        np.concatenate([image.scores for image in detections]),
        np.concatenate([image.labels for image in detections]),
    )


# ------------------------------------------------------------------------------------------------------- small parts


def _nothing() -> Detections:
    return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32), ())


def _latency(seconds: np.ndarray) -> dict[str, float]:
    if not seconds.size:
        return {}
    median, p90 = np.percentile(seconds * 1e3, [50, 90])
    return {"median": round(float(median), 3), "p90": round(float(p90), 3)}


def _plain(agreed: Agreement) -> dict[str, float]:
    values = {name: value for name, value in asdict(agreed).items() if name != "worst"}
    return {**values, "unmatched_share": agreed.unmatched_share}


def _environment() -> dict[str, str]:
    import tensorflow as tf

    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
    }


def _with_version(runtime: str) -> str:
    try:
        return f"{runtime} {importlib.metadata.version(runtime)}"
    except importlib.metadata.PackageNotFoundError:  # some builds of a package have other names
        return runtime


def _agreed(figures: Mapping[str, float]) -> str:
    return (
        f"{figures['matched']:.0f} pairs, boxes shifted by at most {figures['box_shift']:.3g} px, scores by "
        f"{figures['score_difference']:.3g}, {figures['unmatched_share']:.2%} without a partner"
    )


def _figure(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.6f}"


def _signed(value: float | None) -> str:
    return "unknown" if value is None else f"{value:+.2g}" if value else "exactly 0"
