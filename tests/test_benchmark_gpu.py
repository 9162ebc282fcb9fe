"""scripts/benchmark_gpu.py and carry_wheels.py: counts, table, processes, their limits; the whole on a CPU (slow)."""

import json
import math
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path

import pytest

from retina.data.batches.plan import training_geometries
from retina.data.load import load_split
from tests.scripts import load_script

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "benchmark_gpu.py"
OURS = ("plan", "table", "measure", "inputs", "retina_work", "real_data", "part", "gradient_check")
# A 3x3 convolution of stride 2 from [2, 8, 8, 3] to [2, 4, 4, 5]: 2 x 4 x 4 positions, 9 x 3 x 5 weights, 2 each.
FORWARD = 2 * 2 * 4 * 4 * 9 * 3 * 5


@pytest.fixture(autouse=True)
def the_scripts_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", [str(ROOT / "scripts" / "gpu"), *sys.path])
    yield
    for name in OURS:
        sys.modules.pop(name, None)


def test_jax_counts_the_convolutions_that_are_done():
    jax = pytest.importorskip("jax")
    from measure import jax_flop

    x, kernel = jax.numpy.ones((2, 8, 8, 3)), jax.numpy.ones((3, 3, 3, 5))

    def summed(k, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, k, (2, 2), "SAME", dimension_numbers=numbers).sum()

    assert jax_flop(summed, kernel, x) == FORWARD
    assert jax_flop(jax.jit(jax.value_and_grad(summed)), kernel, x) == 2 * FORWARD
    assert jax_flop(jax.jit(jax.value_and_grad(summed, (0, 1))), kernel, x) == 3 * FORWARD
    assert jax_flop(jax.numpy.matmul, jax.numpy.ones((4, 6)), jax.numpy.ones((6, 5))) == 2 * 4 * 6 * 5


def test_tensorflow_counts_the_same():
    import tensorflow as tf
    from measure import tensorflow_flop

    x, kernel = tf.ones((2, 8, 8, 3)), tf.ones((3, 3, 3, 5))

    @tf.function
    def gradients(kernel, x):
        with tf.GradientTape() as tape:
            tape.watch([kernel, x])
            loss = tf.reduce_sum(tf.nn.conv2d(x, kernel, 2, "SAME") ** 2)
        return loss, tape.gradient(loss, [kernel, x])

    assert tensorflow_flop(gradients.get_concrete_function(kernel, x).graph) == 3 * FORWARD


def test_torch_counts_the_same():
    torch = pytest.importorskip("torch")
    from measure import torch_flop

    x, kernel = torch.ones(2, 3, 8, 8, requires_grad=True), torch.ones(5, 3, 3, 3, requires_grad=True)

    def step(x):
        torch.nn.functional.conv2d(x, kernel, stride=2, padding=1).sum().backward()

    assert torch_flop(lambda: step(x)) == 3 * FORWARD
    assert torch_flop(lambda: step(x.detach())) == 2 * FORWARD


@pytest.mark.parametrize(
    ("text", "expected"),
    [("RESOURCE_EXHAUSTED: Out of memory while trying", True), ("CUDA out of memory.", True), ("bad shape", False)],
)
def test_running_out_of_memory_is_known(text: str, expected: bool):
    from measure import out_of_memory

    assert out_of_memory(RuntimeError(text)) is expected


def test_nothing_measured_is_an_empty_table():
    from table import rows, table

    assert rows([]) == [] and table([]) == ""


def records() -> list[dict]:
    """Ours: 100 and 150 images/s at batches 16 and 32, 160 in the second round; torchvision's: 50 and 40."""
    from plan import Part

    ours = Part("train", "retina", "jax", canvas=(800, 800), frozen=True)
    theirs = Part("train", "torchvision", canvas=(800, 800), frozen=True)
    unlike = Part("train", "torchvision", canvas=(800, 800))
    peak = {"device": "card", "matrix_tflops": 500.0, "convolution_tflops": 400.0, "copy_gb_per_second": 2000.0}

    def row(part: Part, batch: int, speed: float, round_: int = 1) -> dict:
        # Through JSON, as a file's records come.
        of = json.loads(json.dumps(part.to_dict()))
        figures = {"batch": batch, "images_per_second": speed, "tflops": speed, "peak_bytes": batch * 2**30}
        return {"part": part.name, "round": round_, "of": of, **figures}

    oom = {"part": ours.name, "round": 1, "of": ours.to_dict(), "batch": 64, "out_of_memory": True}
    return [
        {"part": "peak jax", "round": 1, "of": Part("peak", "jax", "jax").to_dict(), **peak},
        row(ours, 16, 100.0),
        row(ours, 32, 150.0),
        oom,
        row(theirs, 16, 50.0),
        row(unlike, 16, 1000.0),
        row(ours, 32, 160.0, 2),
        row(theirs, 16, 40.0, 2),
    ]


def test_rows_are_medians_at_the_best_batch():
    from table import rows, table

    made = json.loads(json.dumps(records()))
    ours, theirs, _ = rows(made)
    assert (ours["batch"], ours["largest"], ours["memory_ended"]) == (32, 32, True)
    assert ours["images_per_second"] == 155.0 and ours["gib"] == 32.0
    assert ours["ratio"] == pytest.approx((3.0 + 4.0) / 2)  # round by round, and not 155 / 45
    assert ours["of_peak"] == pytest.approx(155 / 500)
    assert theirs["ratio"] is None and not theirs["memory_ended"]
    assert "16+" in table(made) and "31.0%" in table(made) and "3.500" in table(made)


def test_later_rounds_repeat_the_best_batches_in_turn():
    from plan import again, parts

    made = records()
    first = parts(backend="jax", kinds=("peak", "train"), batches=(16, 32))
    later = again(first, made, rounds=3)
    assert [(p.who, p.frozen, p.batches, p.round) for p in later] == [
        (who, frozen, batches, number)
        for number in (2, 3)
        for who, frozen, batches in (
            ("retina", True, (32,)),
            ("torchvision", True, (16,)),
            ("torchvision", False, (16,)),
        )
    ]
    assert again(first, made, rounds=1) == []


def test_the_part_with_a_goal_comes_first():
    from plan import Part, parts

    first = parts(backend="jax", kinds=("peak", "train", "infer", "profile"), batches=(16,))
    assert [p.name for p in first[:4]] == [
        "peak jax",
        "peak torch",
        "train retina jax resnet50 800x800 frozen",
        "train torchvision 800x800 frozen",
    ]
    assert len({p.name for p in first}) == len(first)
    assert [Part.from_dict(json.loads(json.dumps(p.to_dict()))) for p in first] == first


def test_a_batch_is_traced_after_its_speed_is_answered():
    """A trace that fails costs neither the speed nor the next batch."""
    from part import _sweep
    from plan import Part

    answers: list[dict] = []
    part = Part("train", "retina", "none", batches=(16, 32), traced=True)

    def trace() -> list[dict]:
        if answers[-1]["batch"] == 16:
            raise OSError("no counters")
        return [{"name": "conv"}]

    _sweep(part, answers.append, lambda part, size: {"peak_bytes": None, "images_per_second": size}, trace)
    speeds = [(a["batch"], a["images_per_second"]) for a in answers if "images_per_second" in a]
    assert speeds == [(16, 16), (32, 32)]
    assert answers[1] == {"batch": 16, "error": "no trace: OSError: no counters"}
    assert answers[3] == {"batch": 32, "operations": [{"name": "conv"}]}


def test_the_speed_of_training_is_answered_before_its_evaluation(monkeypatch: pytest.MonkeyPatch):
    import real_data
    from plan import Part
    from table import table

    answers: list[dict] = []

    def train(config, directory: Path, callbacks: list) -> None:
        directory.mkdir()
        (directory / "config.yaml").write_text("{}")
        lines = [
            {"step": 1, "images_per_second": 7.0, "data_wait": 0.25},
            {"step": 1, "metrics": {"AP": 0.5, "AP50": 1}},
        ]
        (directory / "metrics.jsonl").write_text(json.dumps(lines[0]) + "\n")
        callbacks[0].on_test_begin()
        (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    monkeypatch.setattr(real_data.retina, "train", train)
    part = Part("accuracy", "retina", "jax", data="digits", steps=2)
    real_data.run(part, answers.append)
    assert [(a["fed_images_per_second"], a["metrics"] and a["metrics"]["AP"]) for a in answers] == [(7, None), (7, 0.5)]
    records = [{"part": part.name, "round": 1, "of": part.to_dict(), **a} for a in answers]
    assert table(records).count("7 images/s") == 1 and "validation AP 0.5000" in table(records)
    assert "7 images/s, 25.0% of the time waiting for data" in table(records[:1])


def test_two_calls_fit_in_fifteen_minutes(tmp_path: Path):
    """The order of each, seconds, and the commands in the help to the letter."""
    from plan import CALLS, call_parts

    options = {"backend": "jax", "data": (), "tiny": False, "precision": "bfloat16"}
    step, files = (call_parts(call, **options) for call in CALLS)
    assert [p.name for p in step] == [
        "train torchvision 800x800 frozen",
        "train torchvision 800x800 frozen compiled",
        "train retina jax resnet50 800x800 frozen",
        "check retina jax resnet50",
        "infer retina jax resnet50 800x800",
        "infer torchvision 800x800",
    ]
    assert step[2].batches == (32, 64) and step[2].traced and step[3].precision == "float32"
    assert [(p.kind, p.data) for p in files] == [("fed", "made-up"), ("accuracy", "digits")]
    assert CALLS == {"step": 360.0, "files": 180.0}
    script = load_script("benchmark_gpu")
    for call in CALLS:
        assert f"    python3 scripts/benchmark_gpu.py --call {call} --out gpu-{call}\n" in script.__doc__
        args = script.parse(["--call", call, "--out", str(tmp_path)])
        assert args.budget == CALLS[call]
    with pytest.raises(SystemExit):
        script.parse(["--call", "step"])


def test_made_up_photographs_and_digits_can_be_trained_on(tmp_path: Path):
    from plan import Part
    from real_data import made_up, settings

    data = str(made_up(tmp_path, 3))
    fed = settings(Part("fed", "retina", "jax", canvas=(128, 128), batches=(2,), data=data, tiny=True))
    read = load_split(fed.data, "train")
    assert len(read.boxes) == 21
    # The canvas that the part is named after.
    assert training_geometries(read, fed.data, batch_size=2)[0].canvases.tolist() == [[128, 128]]
    digits = settings(Part("accuracy", "retina", "jax", data="digits"))
    assert (digits.model.backbone, digits.schedule.steps) == ("resnet10", 950)


def test_kernels_are_summed_by_kind_on_the_devices_streams():
    from retina_work import busiest

    def event(name: str, dur: int, pid: int = 1, tid: int = 1) -> dict:
        return {"ph": "X", "pid": pid, "tid": tid, "name": name, "dur": dur}

    def label(kind: str, name: str, tid: int = 0, pid: int = 1) -> dict:
        return {"ph": "M", "pid": pid, "tid": tid, "name": kind, "args": {"name": name}}

    events = [
        label("process_name", "/device:GPU:0"),
        label("process_name", "/host:CPU", pid=2),
        label("thread_name", "Stream #13(Compute)", tid=1),
        label("thread_name", "XLA Modules", tid=2),
        event("fusion.1", 3000),
        event("fusion.27", 5000),
        event("conv", 2000),
        event("jit_step", 10_000, tid=2),
        event("wait", 99_000, pid=2),
    ]
    fusion, conv = busiest(events, steps=2, most=10)
    assert fusion == {"name": "fusion", "calls": 1.0, "milliseconds": 4.0, "share": 0.8}
    assert (conv["name"], conv["milliseconds"], conv["share"]) == ("conv", 1.0, 0.2)
    assert busiest([], steps=1, most=1) == []


def runner(tmp_path: Path, text: str, budget: float = 60.0):
    program = tmp_path / "program.py"
    program.write_text(text)
    out = (tmp_path / "out.jsonl").open("w")
    return load_script("benchmark_gpu").Runner(budget, out, tmp_path, 5.0, program)


def test_a_part_that_hangs_keeps_what_it_measured(tmp_path: Path):
    from plan import Part

    bench = runner(tmp_path, "import time\nprint('{\"batch\": 16}', flush=True)\ntime.sleep(100)\n")
    bench.run(Part("train", "torchvision", limit=1.0))
    first, second = (json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines())
    assert first["batch"] == 16 and first["part"] == "train torchvision live"
    assert second["error"] == "stopped after 1 s"


def test_a_part_that_fails_is_named_with_its_last_words(tmp_path: Path):
    from plan import Part

    bench = runner(tmp_path, "import sys\nsys.exit('no such kernel')\n")
    bench.run(Part("train", "torchvision"))
    assert [r.get("error") for r in bench.records] == ["status 1: no such kernel"]


def test_nothing_is_begun_behind_the_budget(tmp_path: Path):
    from plan import Part

    bench = runner(tmp_path, "raise SystemExit(1)\n", budget=1.0)
    bench.run(Part("train", "torchvision"))
    assert [r.get("not_run") for r in bench.records] == ["the budget was used up"]


def test_an_absent_module_is_named(monkeypatch: pytest.MonkeyPatch):
    from part import lacking
    from plan import Part

    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torchvision" else object())
    assert lacking(Part("train", "torchvision")) == "torchvision"
    assert lacking(Part("train", "retina", "jax")) is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "simplejpeg" else object())
    assert lacking(Part("accuracy", "retina", "jax", data="bccd")) == "simplejpeg"
    assert lacking(Part("train", "retina", "jax")) is None


def test_real_data_settings(shared_data: Path):
    from plan import Part
    from real_data import settings

    for name in ("bccd", "coco_mini"):
        folder = str(shared_data / name)
        accuracy = settings(Part("accuracy", "retina", "jax", data=folder, steps=7))
        assert accuracy.schedule.steps == 7 and not accuracy.model.backbone.startswith("keras_cv/")
        fed = settings(Part("fed", "retina", "jax", canvas=(800, 800), batches=(16,), data=folder))
        assert (fed.model.backbone, fed.data.resize.short, fed.run.batch_size) == ("resnet50", 800, 16)
        assert fed.run.precision == "mixed_bfloat16"


def test_retina_imports_without_tensorflow():
    """A GPU machine with JAX alone: network, losses, step and evaluation work, the tf.data pipeline is absent."""
    pytest.importorskip("jax")
    code = """
import importlib.abc, os, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "keras_cv", "tensorflow_datasets", "tensorboard", "hotcoco"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
os.environ["KERAS_BACKEND"] = "jax"
import retina, retina.inference, retina.models.detector, retina.training.optimizer, retina.training.step
import retina.evaluation, retina_work
print("all there")
"""
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{ROOT / 'scripts' / 'gpu'}", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "all there\n", done.stderr


def test_wheels_are_split_and_joined(tmp_path: Path):
    carry = load_script("carry_wheels")
    big, small = tmp_path / "big-1-py3-none-any.whl", tmp_path / "small-1-py3-none-any.whl"
    big.write_bytes(bytes(range(250)))
    small.write_bytes(b"x" * 100)
    carry.split(big, 100)
    carry.split(small, 100)
    names = [f"{big.name}.00{n}" for n in range(3)]
    assert sorted(f.name for f in tmp_path.iterdir()) == [*names, small.name]
    target = tmp_path / "joined"
    target.mkdir()
    assert [f.read_bytes() for f in carry.join(tmp_path, target)] == [bytes(range(250))]
    (tmp_path / names[1]).unlink()
    with pytest.raises(SystemExit, match="expected pieces 000 to 002, got 2"):
        carry.join(tmp_path, target)


def test_every_package_that_training_needs_is_carried_or_expected_there():
    """A machine without a network gets one chance."""
    carry = load_script("carry_wheels")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[<>=\[]", one)[0] for one in project["dependencies"]}
    # Only for TensorFlow Datasets, and for the backbones of keras-cv.
    needed -= {"tensorflow-datasets", "importlib_resources", "keras-cv"}
    needed |= {re.split(r"[<>=!;\[ ]", one)[0] for one in requires("tensorflow") or () if "extra ==" not in one}
    brought = {carry.SAME_VERSION_AS.get(one, one) for packages in carry.SETS.values() for one in packages}
    there = {carry.normal(one) for one in (*brought, *carry.THERE)}
    assert {one for one in needed if carry.normal(one) not in there} == set()


def test_both_calls_need_no_more_than_the_core_wheels():
    """Those with TensorFlow are larger than what a GPU machine may take at once."""
    carry = load_script("carry_wheels")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {carry.normal(re.split(r"[<>=\[]", text)[0]) for text in project["dependencies"]}
    needed -= {"tensorflow", "tensorflow-datasets", "importlib-resources", "keras-cv"}
    assert needed <= {carry.normal(package) for package in (*carry.SETS["core"], *carry.THERE)}
    assert "tensorflow-cpu" not in carry.SETS["core"]


def test_wheels_have_the_tested_versions():
    carry = load_script("carry_wheels")
    constraints = (ROOT / "constraints.txt").read_text()
    assert carry.version_of("pydantic-core", "pydantic==1.0\npydantic_core==2.5\n") == "2.5"
    assert carry.version_of("tensorflow-cpu", "tensorflow==2.21.0\n") == "2.21.0"
    assert carry.version_of("absent", constraints) is None
    assert {
        p for packages in carry.SETS.values() for p in packages if carry.version_of(p, constraints) is None
    } == set()


# A processor without instructions for bfloat16 takes minutes for a step in it: 22 s for torchvision's tiniest, on AVX2.
_FLAGS = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").is_file() else ""
PRECISION = ["--precision", "bfloat16" if re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", _FLAGS) else "float32"]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torchvision") is None, reason="needs torchvision")
def test_torchvisions_step_runs_on_a_cpu(tmp_path: Path):
    out = tmp_path / "gpu.jsonl"
    options = ["--tiny", "--batches", "1", "2", "--repeats", "1", "--rounds", "2", "--kinds", "train"]
    command = [sys.executable, str(SCRIPT), *options, *PRECISION, "--out", str(out)]
    done = subprocess.run([*command, "--only", "torchvision", "128x128", "frozen"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second, again = map(json.loads, out.read_text().splitlines()[1:])
    assert (first["batch"], second["batch"], first["round"], again["round"]) == (1, 2, 1, 2)
    assert again["batch"] == max((first, second), key=lambda r: r["images_per_second"])["batch"]
    assert second["tflop"] == pytest.approx(2 * first["tflop"])
    assert math.isfinite(first["loss"]) and "train torchvision 128x128 frozen" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(find_spec("jax") is None or find_spec("torch") is None, reason="needs JAX and PyTorch")
def test_our_parts_run_on_a_cpu(tmp_path: Path):
    out = tmp_path / "gpu.jsonl"
    options = ["--tiny", "--batches", "1", "--repeats", "1", "--rounds", "1", "--kinds", "peak", "train", "infer"]
    command = [sys.executable, str(SCRIPT), *options, *PRECISION, "--backend", "jax", "--out", str(out)]
    done = subprocess.run([*command, "--only", "resnet50", "128x128"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    about, *found = map(json.loads, out.read_text().splitlines())
    assert about["machine"]["versions"]["keras"]
    assert [r["part"] for r in found] == [
        "peak jax",
        "peak torch",
        "train retina jax resnet50 128x128 frozen",
        "train retina jax resnet50 128x128 live",
        "infer retina jax resnet50 128x128",
    ]
    frozen, live, inference = found[2:]
    for row in (frozen, live, inference):
        assert row["images_per_second"] == pytest.approx(1 / row["seconds"][0])
        assert row["tflops"] == pytest.approx(row["tflop"] / row["seconds"][0])
    # Forward and both gradients, less the gradient with regard to the pixels (7x7x3x64 weights on 64x64 positions).
    pixels = 2e-12 * 64 * 64 * 7 * 7 * 3 * 64
    assert live["tflop"] == pytest.approx(3 * inference["tflop"] - pixels, rel=1e-6)
    assert inference["tflop"] < frozen["tflop"] < live["tflop"]
    assert math.isfinite(live["loss"]) and "of peak" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(find_spec("jax") is None or find_spec("torchvision") is None, reason="needs JAX and torchvision")
def test_the_profile_and_both_inferences_run_on_a_cpu(tmp_path: Path):
    out = tmp_path / "gpu.jsonl"
    options = ["--tiny", "--batches", "1", "--repeats", "1", "--rounds", "1", "--kinds", "profile", "infer"]
    command = [sys.executable, str(SCRIPT), *options, *PRECISION, "--backend", "jax", "--out", str(out)]
    done = subprocess.run([*command, "--only", "128x128"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    profile, *inferences = map(json.loads, out.read_text().splitlines()[1:])
    assert [r["of"]["who"] for r in inferences] == ["retina", "torchvision"]
    assert all(r["images_per_second"] == pytest.approx(1 / r["seconds"][0]) for r in inferences)
    times = profile["parts"]
    assert 0 < times["forward"] < times["forward_and_backward"] and 0 < times["loss_and_its_gradient"] < times["step"]
    assert profile["operations"] and sum(o["share"] for o in profile["operations"]) <= 1 + 1e-9
    assert "decoding and suppression take" in done.stdout and "a step takes" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(find_spec("jax") is None, reason="needs JAX")
def test_training_from_photographs_runs_on_a_cpu(tmp_path: Path, shared_data: Path):
    """BCCD of six images: a step each of `fed` and `accuracy`, through pipeline, evaluation and table."""
    folder, out = tmp_path / "bccd", tmp_path / "gpu.jsonl"
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for name in ("Annotations", "JPEGImages"):
        (folder / name).symlink_to(shared_data / "bccd" / name)
    for split, count in (("train", 4), ("val", 2), ("test", 1)):
        names = (shared_data / "bccd" / "ImageSets" / "Main" / f"{split}.txt").read_text().splitlines()
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names[:count]) + "\n")
    options = ["--tiny", "--batches", "2", "--steps", "1", "--kinds", "accuracy", "fed", "--data", str(folder)]
    command = [sys.executable, str(SCRIPT), *options, *PRECISION, "--backend", "jax", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    records = {r["of"]["kind"]: r for r in map(json.loads, out.read_text().splitlines()[1:])}
    assert (records["accuracy"]["batch"], records["fed"]["batch"]) == (8, 2)
    for record in records.values():
        assert record["steps"] == 1 and 0 <= record["metrics"]["AP"] <= 1 and record["fed_images_per_second"] > 0
        assert f"{record['part']}: 1 steps of {record['batch']}" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(find_spec("jax") is None, reason="needs JAX")
def test_a_traced_step_is_compiled_once():
    """Counting the operations and tracing compile nothing: the step has one program, made by its first call."""
    code = """
import jax, part
from plan import Part
of = Part("train", "retina", "jax", canvas=(64, 64), frozen=True, tiny=True, repeats=1, block_seconds=0.0,
          precision="float32", traced=True)
measure, trace = part._ours(of)
made = []
jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: made.append(name))
measure(of, 1)
step = [name for name in made if name.endswith("backend_compile_duration")]
made.clear()
assert trace()
print(len(step), [name for name in made if "compile" in name])
"""
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = f"{ROOT}:{ROOT / 'scripts' / 'gpu'}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1 []\n"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("jax") is None, reason="needs JAX")
def test_the_gradient_check_passes_here():
    code = "from gradient_check import check; from plan import Part; import json; "
    code += "print(json.dumps(check(Part('check', 'retina', 'jax', precision='float32', tiny=True))))"
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = f"{ROOT}:{ROOT / 'scripts' / 'gpu'}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["relative_error"] < 1e-3
