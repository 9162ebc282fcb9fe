"""From a public detector's file to a detector of one's own classes, exported: the commands that the guide names.

Weights are random, architecture and tensors torchvision's. The configurations are those in `configs/`, on a smaller
backbone and canvas.
"""

import json
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import pytest

pytest.importorskip("torch")
theirs = pytest.importorskip("tests.parity.torchvision_models")

from retina import cli  # noqa: E402
from retina.runs.checkpoint import read  # noqa: E402
from retina.runs.directory import RunDirectory  # noqa: E402
from retina.weights.coco_classes import CATEGORIES  # noqa: E402

pytestmark = pytest.mark.slow

if keras.backend.backend() != "tensorflow":
    pytest.skip("in this process a SavedModel is written on TensorFlow", allow_module_level=True)

CONFIGS = Path(__file__).parents[2] / "configs"
CANVAS = ["data.resize.short=96", "data.resize.long=128"]
SMALL = [
    *CANVAS,
    "model.backbone=resnet18",
    "data.invalid_boxes=drop",
    "schedule={kind: cosine, steps: 2, warmup_steps: 1}",
    "run={batch_size: 2, checkpoint_every: 2, evaluate_every: 2, log_every: 1, pictures: 0, preflight: warn}",
    "inference={score_threshold: 0.005, max_detections: 20}",
]


class Case(NamedTuple):
    """`shared`: some classes that keep their rows, as here and as COCO names them."""

    version: str
    config: str
    overrides: list[str]
    shared: dict[str, str]
    said: list[str]


def splits(train: str, validation: str, test: str) -> list[str]:
    given = {"train": train, "validation": validation, "test": test}
    return [f"data.{name}={{format: voc, {what}}}" for name, what in given.items()]


CASES = [
    Case(
        "v2",
        "bccd_finetune",
        splits(*(f"splits: [{name}], select: {{first: 3}}" for name in ("train", "val", "test"))),
        {},
        [
            "classification rows taken over for 0 classes ()",
            "classification rows drawn anew, at the prior 0.01, for 3 classes (RBC, WBC, Platelets)",
            "classification rows of the checkpoint left out: 80 classes (person, bicycle,",
        ],
    ),
    Case(
        "v1",
        "voc_finetune",
        [
            *splits(
                *(f"splits: [all], select: {{share: {one}}}" for one in ("[0, 0.04]", "[0.04, 0.07]", "[0.07, 0.1]"))
            ),
            "model.fpn.p6_from=p5",
            "model.head={}",
            "loss.box={kind: l1, weight: 1.0}",
        ],
        {"aeroplane": "airplane", "car": "car", "person": "person", "tvmonitor": "tv"},
        [
            "classification rows taken over for 20 classes (aeroplane, bicycle,",
            "classification rows of the checkpoint left out: 60 classes (truck, traffic light,",
        ],
    ),
]


@pytest.fixture
def main(monkeypatch, capsys):
    """The command line in this process: (code, out, err)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["retina", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return call


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.version}-{case.config}")
def test_import_fine_tune_evaluate_export(main, tmp_path, shared_data, case):
    imported, tuned = tmp_path / "imported", tmp_path / "tuned"
    file = theirs.save(theirs.retinanet(case.version, 91, depth=18), tmp_path / "weights.pth")
    code, out, err = main("import-weights", "torchvision", file, "--out", imported, *CANVAS)
    assert code == 0, err
    assert err == "" and f"retina predict {imported}" in out

    # As it came: it knows no data, and needs none to predict.
    folder = shared_data / ("bccd" if case.version == "v2" else "voc100")
    image = min((folder / "JPEGImages").iterdir())
    code, out, err = main("predict", imported, image, "--score", "0.3", "--out", tmp_path / "seen", "--json")
    assert code == 0, err
    found = json.loads(out)[0]["detections"]
    assert found and {one["name"] for one in found} <= set(CATEGORIES.values())
    assert (tmp_path / "seen" / f"{image.stem}.png").is_file()
    code, _, err = main("evaluate", imported)
    assert code == 2 and "instances_val2017.json" in err

    settings = [f"data.root={folder}", f"model.init_from={imported}", *SMALL, *case.overrides]
    code, out, err = main("train", CONFIGS / f"{case.config}.yaml", *settings, "--run-dir", tuned)
    assert code == 0, err
    log = (tuned / "log.txt").read_text()
    assert [line for line in case.said if line not in log] == []
    # The configuration has every convention of the weights, else it would say so.
    assert "trained with other settings" not in log
    check_weights(read_best(imported), read_best(tuned), case.shared)

    code, out, err = main("evaluate", tuned, "--split", "test", "--replicates", "0", "--json")
    assert code == 0, err
    assert 0 <= json.loads(out)["metrics"]["AP"] < 1
    code, out, err = main("export", tuned, "--split", "test", "--certify", "2", "--json")
    assert code == 0, err
    certificate = json.loads(out)
    assert certificate["passed"] and certificate["format"] == "saved_model" and certificate["images"] == 2
    assert certificate["detections"]["export"] == certificate["detections"]["checkpoint"] > 5


def read_best(run: Path):
    return read(RunDirectory.open(run).checkpoint_path("best"))


def check_weights(before, after, shared: dict[str, str]) -> None:
    """After two steps of AdamW, which moves a weight by the learning rate at most (times a little for its decay)."""
    moved = 1e-3
    name = "weights/detector/classification/prediction"
    old, new = (one.arrays[f"{name}/kernel"].reshape(3, 3, 256, 9, -1) for one in (before, after))
    for here, there in shared.items():
        row = old[..., before.class_names.index(there)]
        np.testing.assert_allclose(new[..., after.class_names.index(here)], row, atol=moved)
        assert row.std() > 5 * moved
    if not shared:
        bias = after.arrays[f"{name}_bias"]
        np.testing.assert_allclose(bias, np.full(27, -np.log(99)), atol=moved)
    # `freeze: 2` and frozen statistics stay as they came; the rest learns.
    for same in ("conv1/kernel", "bn1/gamma", "layer1_1_conv2/kernel", "layer4_1_bn2/moving_mean"):
        np.testing.assert_array_equal(after.arrays[f"weights/{same}"], before.arrays[f"weights/{same}"], err_msg=same)
    for other in ("layer4_0_conv1/kernel", "detector/fpn/smooth_p3/kernel", "detector/box/prediction/kernel"):
        change = np.abs(after.arrays[f"weights/{other}"] - before.arrays[f"weights/{other}"])
        assert 0 < change.max() < moved, other
