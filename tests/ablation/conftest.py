"""A study of three settings whose trials take no time."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from retina import config as configuration
from retina.ablation.directory import Study
from retina.ablation.plan import Plan, make_plan
from retina.data.load import load_split

TRAINER = Path(__file__).with_name("fake_trainer.py")
OVERRIDES = [
    "data.train={format: digits, split: train, images: 8, size: 64}",
    "data.validation={format: digits, split: validation, images: 8, size: 64}",
    "schedule={kind: cosine, steps: 4, warmup_steps: 1}",
]


@pytest.fixture(scope="session")
def base() -> configuration.Config:
    return configuration.load(None, OVERRIDES)


@pytest.fixture(scope="session")
def validation(base):
    return load_split(base.data, "validation")


@pytest.fixture
def plan(base) -> Plan:
    return make_plan(base, pairs=[(0.0, 0.75), (2.0, 0.25), (5.0, 0.25)], seeds=2)


def detections(dataset, missed: int) -> list[dict]:
    """The boxes themselves, but for each `missed`-th one; 0 misses none."""
    found = []
    for image, row in enumerate(zip(dataset.offsets[:-1], dataset.offsets[1:], strict=True)):
        for place in range(*row):
            if missed and place % missed == 0:
                continue
            x1, y1, x2, y2 = dataset.boxes[place].tolist()
            label = int(dataset.labels[place])
            found.append({"image_id": image, "category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": 0.9})
    return found


class Bench(NamedTuple):
    """A study, and the book that tells its fake trainer what to do."""

    study: Study
    book: Path
    said: list[str]

    @property
    def program(self) -> tuple[str, ...]:
        return (sys.executable, str(TRAINER), str(self.book))

    def behave(self, name: str, words: str) -> None:
        (self.book / f"{name}.txt").write_text(words)

    @property
    def calls(self) -> list[str]:
        file = self.book / "calls.txt"
        return file.read_text().splitlines() if file.exists() else []

    def statuses(self) -> dict[str, str]:
        return {trial.name: self.study.outcome(trial).status for trial in self.study.plan.trials}


@pytest.fixture
def bench(tmp_path, plan, validation) -> Bench:
    book = tmp_path / "book"
    book.mkdir()
    for setting, missed in zip(plan.settings, (2, 0, 3), strict=True):
        (book / f"{setting.name}.json").write_text(json.dumps(detections(validation, missed)))
    return Bench(Study.start(tmp_path / "study", plan), book, [])
