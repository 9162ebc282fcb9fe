"""The parts of `scripts/benchmark_gpu.py`, in the order in which they matter."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

CANVASES = ((800, 800), (800, 1344))
TINY_CANVASES = ((128, 128), (128, 256))
BATCHES = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Part:
    """One process. `batches` are tried in order until one does not fit the memory."""

    kind: str  # peak, train, infer, profile, check, fed or accuracy
    who: str  # retina or torchvision; of `peak` the framework: jax, torch or tensorflow
    backend: str = "torch"
    backbone: str = "resnet50"
    canvas: tuple[int, int] = (0, 0)
    frozen: bool = False  # stem and first stage, and all batch normalisations
    compiled: bool = False  # torch.compile
    batches: tuple[int, ...] = ()
    precision: str = "bfloat16"
    repeats: int = 5
    block_seconds: float = 1.0
    data: str | None = None
    steps: int | None = None  # of `accuracy` and `fed`
    tiny: bool = False
    traced: bool = False  # a trace of three steps after the timing
    round: int = 1
    limit: float = 300.0  # seconds

    @property
    def name(self) -> str:
        words = [self.kind, self.who]
        if self.who == "retina":
            words += [self.backend, self.backbone]
        if self.canvas != (0, 0):
            words.append("x".join(map(str, self.canvas)))
        if self.kind in ("train", "profile"):
            words.append("frozen" if self.frozen else "live")
        words += ["compiled"] * self.compiled
        return " ".join(words) if self.data is None else " ".join([*words, self.data.rstrip("/").rpartition("/")[2]])

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Part:
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)


def parts(
    *,
    backend: str,
    kinds: Iterable[str],
    batches: tuple[int, ...],
    data: Iterable[str] = (),
    repeats: int = 5,
    steps: int | None = None,
    limit: float = 300.0,
    precision: str = "bfloat16",
    compiled: bool = False,
    tiny: bool = False,
) -> list[Part]:
    """The first round; the second (`again`) depends on its records.

    Our part and torchvision's of the same work follow each other. The frozen 800x800 pair comes first: it is the one
    with a goal in images per second; the larger canvas and keras-cv's backbone come last.
    """
    common: dict[str, Any] = {"repeats": repeats, "limit": limit, "tiny": tiny, "precision": precision}
    common |= {"block_seconds": 0.05} if tiny else {}
    ours, theirs = [("retina", backend, "resnet50")], [("torchvision", "torch", "resnet50")]
    small, large = TINY_CANVASES if tiny else CANVASES

    def work(
        kind: str, canvas: tuple[int, int], whom: list, frozen: bool = False, compiled: bool = False
    ) -> list[Part]:
        sizes = tuple(2 * b for b in batches) if kind == "infer" and not tiny else batches
        return [Part(kind, who, b, net, canvas, frozen, compiled, sizes, **common) for who, b, net in whom]

    both = ours + theirs
    planned = [Part("peak", framework, framework, **common) for framework in dict.fromkeys((backend, "torch"))]
    planned += work("train", small, both, frozen=True)
    planned += work("profile", small, ours, frozen=True)
    planned += work("train", small, both)
    planned += work("infer", small, both)
    planned += work("train", large, both, frozen=True) + work("infer", large, both) + work("train", large, both)
    if compiled:
        planned += work("train", small, theirs, frozen=True, compiled=True) + work(
            "infer", small, theirs, compiled=True
        )
    planned += work("train", small, [("retina", backend, "keras_cv/resnet50")], frozen=True)
    for folder in data:
        real = {**common, "data": folder, "steps": steps, "limit": max(limit, 600.0)}
        planned.append(Part("fed", "retina", backend, canvas=small, batches=batches[-1:] if tiny else (16,), **real))
        planned.append(Part("accuracy", "retina", backend, **real))
    wanted = set(kinds)
    return [part for part in planned if part.kind in wanted]


# Seconds of the two calls.
CALLS = {"step": 360.0, "files": 180.0}
MADE_UP, DIGITS = "made-up", "digits"


def call_parts(call: str, *, backend: str, data: Iterable[str], tiny: bool, precision: str) -> list[Part]:
    """The parts of one of the two calls of a session with a GPU, what matters most first."""
    common: dict[str, Any] = {"tiny": tiny, "precision": precision, "repeats": 3}
    common |= {"block_seconds": 0.05} if tiny else {}
    canvas = (TINY_CANVASES if tiny else CANVASES)[0]
    some = (1, 2) if tiny else (32, 64)
    ours, theirs = Part("train", "retina", backend, canvas=canvas, frozen=True, **common), {"canvas": canvas, **common}
    if call == "step":
        return [
            Part("train", "torchvision", frozen=True, batches=some[:1], limit=60.0, **theirs),
            Part("train", "torchvision", frozen=True, compiled=True, batches=some[:1], limit=80.0, **theirs),
            replace(ours, batches=some, traced=True, limit=180.0),
            Part("check", "retina", backend, limit=60.0, **{**common, "precision": "float32", "tiny": True}),
            Part("infer", "retina", backend, canvas=canvas, batches=some[1:], limit=60.0, **common),
            Part("infer", "torchvision", batches=some[1:], limit=60.0, **theirs),
        ]
    steps = 2 if tiny else None
    return [
        *(
            Part("fed", "retina", backend, canvas=canvas, batches=(2 if tiny else 16,), data=folder, steps=steps,
                 limit=100.0, **common)
            for folder in data or (MADE_UP,)
        ),
        Part("accuracy", "retina", backend, data=DIGITS, steps=steps, limit=150.0, **common),
    ]  # fmt: skip


def again(first: list[Part], records: list[dict[str, Any]], rounds: int) -> list[Part]:
    """The later rounds: each timed part at its best batch only, ours and torchvision's in turn."""
    timed = [(p, best(records, p.name)) for p in first if p.kind in ("train", "infer")]
    return [
        replace(p, batches=(row["batch"],), round=number)
        for number in range(2, rounds + 1)
        for p, row in timed
        if row is not None
    ]


def best(records: list[dict[str, Any]], name: str) -> dict[str, Any] | None:
    """The record of a part's fastest batch, in its first round."""
    rows = [r for r in records if r["part"] == name and r.get("images_per_second") and r["round"] == 1]
    return max(rows, key=lambda r: r["images_per_second"], default=None)
