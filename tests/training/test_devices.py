"""Sharing batches among devices and hosts: who takes which images, what is refused, and that the sums are equal."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from retina import config
from retina.config import load
from retina.data.batches.evaluation import evaluation_batches
from retina.data.batches.plan import evaluation_order, share
from retina.data.batches.training import training_batches
from retina.data.detections import DetectionTable
from retina.data.formats.digits import read_digits
from retina.errors import RetinaError, RunFailed
from retina.inference import CompiledInference, detect, jax_or_numpy
from retina.runs.hosts import Hosts, check_same_config, first_node, hosts_of
from retina.training import devices as distribution
from retina.training.devices import ALONE, Distribution, cache_compilations, distribute
from retina.training.loop import STANDARD
from retina.training.resuming import replicas
from retina.training.step import uses_xla
from retina.training.train import train
from tests.quick_jax import QUICK_JAX

HAS_JAX = importlib.util.find_spec("jax") is not None

# ----------------------------------------------------------------------------------------- who takes which images


def test_one_device_takes_all_in_their_order():
    np.testing.assert_array_equal(share(6, parts=1, devices=1, first=0, stop=1), np.arange(6))
    assert ALONE.slots(6, 2) is None
    np.testing.assert_array_equal(share(6, parts=3, devices=1, first=0, stop=1), np.arange(6))


def test_each_device_has_a_stretch_of_each_part():
    """8 slots in 2 parts, 0-3 and 4-7; by hand."""
    assert share(8, parts=2, devices=2, first=0, stop=1).tolist() == [0, 1, 4, 5]
    assert share(8, parts=2, devices=2, first=1, stop=2).tolist() == [2, 3, 6, 7]
    assert share(8, parts=2, devices=4, first=2, stop=4).tolist() == [2, 6, 3, 7]


def test_a_part_has_the_same_images_whatever_the_devices():
    for devices, parts in ((1, 3), (2, 3), (4, 1), (4, 3)):
        slots = share(24, parts=parts, devices=devices, first=0, stop=devices).reshape(devices, parts, -1)
        for part in range(parts):
            assert sorted(slots[:, part].ravel()) == list(range(part * 24 // parts, (part + 1) * 24 // parts))


def test_a_host_takes_what_its_devices_take():
    hosts = [Distribution(2, Hosts(2, index)).slots(16, 2) for index in range(2)]
    np.testing.assert_array_equal(np.concatenate(hosts), share(16, parts=2, devices=4, first=0, stop=4))


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(RetinaError, match=r"multiple of accumulate \(2\) x devices \(4\) x hosts \(1\), got 12"):
        Distribution(4).slots(12, 2)


@pytest.fixture(scope="module")
def images():
    return read_digits("train", images=9, size=64)


@pytest.fixture(scope="module")
def data():
    tree = {"short": 64, "train_short": [32, 64], "long": 64, "multiple": 32}
    overrides = [f"data.resize={json.dumps(tree)}", "data.augment={horizontal_flip: 0.5, scale: [0.6, 1.6]}"]
    return load(None, overrides).data


def test_a_host_reads_its_images_of_each_batch_and_no_other(images, data):
    """The pixels and boxes of the whole batch's rows, at every scale, and from any step on."""
    whole = list(training_batches(images, data, batch_size=8, seed=3, steps=4).as_numpy_iterator())
    assert len({batch["images"].shape for batch in whole}) == 2  # both scales
    for first_step, slots in ((0, [0, 1, 4, 5]), (2, [7, 2]), (4, [3])):
        shares = training_batches(
            images, data, batch_size=8, seed=3, first_step=first_step, steps=4, slots=np.array(slots)
        )
        for expected, batch in zip(whole[first_step:], shares.as_numpy_iterator(), strict=True):
            for name in expected:
                np.testing.assert_array_equal(batch[name], expected[name][slots], err_msg=name)


@pytest.mark.parametrize("hosts", [1, 2, 3, 7])
def test_hosts_evaluate_every_image_once(images, data, hosts):
    """9 images in batches of 2: the last is half filler, and with 7 hosts two have none at all."""
    seen = [
        np.concatenate([np.zeros(0, np.int64)] + [batch["index"] for batch in batches.as_numpy_iterator()])
        for batches in (evaluation_batches(images, data, batch_size=2, share=(host, hosts)) for host in range(hosts))
    ]
    assert sorted(np.concatenate(seen)) == [-1, *range(9)]
    assert hosts < 7 or sum(len(own) == 0 for own in seen) == 2


# ------------------------------------------------------------------------------------------------ what hosts tell


class Together(Hosts):
    """Hosts that are threads: `gather` meets at a barrier, and a host that does not come breaks it."""

    def __init__(self, count: int, index: int, barrier: threading.Barrier, board: dict):
        super().__init__(count, index)
        object.__setattr__(self, "barrier", barrier)
        object.__setattr__(self, "board", board)

    def gather(self, payload: bytes) -> list[bytes]:
        self.board[self.index] = payload
        self.barrier.wait(timeout=20)
        found = [self.board[host] for host in range(self.count)]
        self.barrier.wait(timeout=20)
        return found

    def broadcast(self, payload: bytes) -> bytes:
        return self.gather(payload)[0]


def on_hosts(count: int, work) -> list:
    """What `work(hosts)` gives or raises on each."""
    barrier, board, found = threading.Barrier(count), {}, [None] * count

    def run(index: int) -> None:
        try:
            found[index] = work(Together(count, index, barrier, board))
        except Exception as error:
            found[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_a_host_alone_asks_nobody():
    alone = Hosts()
    assert alone.chief and alone.gather(b"x") == [b"x"] and alone.broadcast(b"") == b""
    assert alone.exchange({"a": 1}) == [{"a": 1}] and alone.from_chief(None) is None
    assert alone.by_chief(lambda: 3) == alone.together(lambda: 3) == 3
    with pytest.raises(RetinaError, match="^as it is$"):
        alone.together(lambda: fail("as it is"))
    with alone.in_step():
        pass


def fail(text: str) -> None:
    raise RetinaError(text)


def test_all_hosts_know_what_each_said():
    assert on_hosts(3, lambda hosts: hosts.exchange(hosts.index * 10)) == [[0, 10, 20]] * 3
    assert on_hosts(2, lambda hosts: hosts.from_chief(f"of {hosts.index}")) == ["of 0"] * 2
    assert on_hosts(2, lambda hosts: hosts.by_chief(lambda: "done")) == ["done", None]


def test_no_host_goes_on_without_the_others():
    found = on_hosts(3, lambda hosts: hosts.together(lambda: fail("no such file") if hosts.index == 1 else "ready"))
    assert [str(error) for error in found] == ["host 1: no such file", "no such file", "host 1: no such file"]
    found = on_hosts(2, lambda hosts: hosts.by_chief(lambda: fail("not empty")))
    assert [type(error) for error in found] == [RetinaError] * 2 and str(found[1]) == "host 0: not empty"


def test_hosts_with_another_configuration_are_refused():
    def settings(hosts: Hosts, *overrides: str):
        own = f"run.hosts={{coordinator: 'a:1', count: 2, index: {hosts.index}}}"
        return load(None, [own, "run.batch_size=16", *overrides])

    assert on_hosts(2, lambda hosts: check_same_config(hosts, settings(hosts))) == [None, None]
    found = on_hosts(2, lambda hosts: check_same_config(hosts, settings(hosts, f"run.seed={hosts.index}")))
    assert "host 1 has another configuration than host 0: run.seed (0 → 1); start every host" in str(found[1])
    assert str(found[0]).startswith("host 1: ")


def test_detections_come_together_in_the_order_of_one_host(images, data):
    """Equal scores are told apart by their order."""

    class OneOfEach(CompiledInference):
        def start(self, batch):
            rows = np.asarray(batch["index"])
            boxes = np.repeat(np.maximum(rows, 0)[:, None, None], 4, -1).astype(np.float32)
            return {"boxes": boxes, "scores": np.ones((len(rows), 1), np.float32),
                    "labels": np.zeros((len(rows), 1), int), "valid": np.ones((len(rows), 1), bool)}  # fmt: skip

    run = OneOfEach(lambda batch: batch)
    whole = detect(run, images, evaluation_batches(images, data, batch_size=2))

    def of_all(hosts: Hosts) -> DetectionTable:
        own = detect(run, images, evaluation_batches(images, data, batch_size=2, share=(hosts.index, hosts.count)))
        return hosts.gather_table(own, lambda: evaluation_order(images.sizes, data.resize))

    assert len(whole) == 9
    for count in (2, 7):
        for table in on_hosts(count, of_all):
            for name, column in vars(whole).items():
                np.testing.assert_array_equal(getattr(table, name), column, err_msg=name)


@pytest.mark.skipif(not HAS_JAX, reason="needs jax")
def test_a_lost_host_is_named_as_such_and_no_memory_is_not(monkeypatch):
    import jax

    from retina.runs import hosts as module

    registered = []
    monkeypatch.setattr(module.atexit, "register", lambda *work: registered.append(work))
    with (
        pytest.raises(RunFailed, match=r"host 1 of 2 has lost another host.*--resume \(closed by peer\)"),
        Hosts(2, 1).in_step(),
    ):
        raise jax.errors.JaxRuntimeError("closed by peer\nat length")
    with pytest.raises(jax.errors.JaxRuntimeError), Hosts(2, 1).in_step():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
    with pytest.raises(RetinaError, match="^image 3$"), Hosts(2, 1).in_step():
        fail("image 3")
    with pytest.raises(FloatingPointError), Hosts(2, 1).in_step():
        raise FloatingPointError
    assert [work[1] for work in registered] == [1, 1, 2]


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.devices=0", "'run.devices': expected a number of at least 1, or all, got 0"),
        ("run.devices=true", "at least 1, or all, got True"),
        ("run.devices=some", "at least 1, or all, got 'some'"),
        ("run={batch_size: 8, devices: 3}", r"batch_size \(8\) must be a multiple of .* devices \(3\) x hosts \(1\)"),
        ("run={batch_size: 8, devices: 4, accumulate: 4}", r"accumulate \(4\) x devices \(4\)"),
        ("run.hosts={coordinator: a, count: 2, index: 0}", "an address with its port, such as node1:1234, got 'a'"),
        ("run.hosts={coordinator: 'a:70000', count: 2, index: 0}", "with its port"),
        ("run.hosts={coordinator: 'a:1', count: 2, index: 2}", r"index \(2\) must be below count \(2\)"),
        ("run.hosts={coordinator: 'a:1', count: 1, index: 0}", "run.hosts.count"),
        ("run={batch_size: 2, hosts: {coordinator: 'a:1', count: 4, index: 0}}", r"hosts \(4\)"),
    ],
)
def test_settings_that_cannot_be(override, message):
    with pytest.raises(RetinaError, match=message):
        load(None, [override])


def test_as_many_devices_as_there_are():
    assert distribute(config.Run()) is ALONE
    with pytest.raises(RetinaError, match=r"run.devices: expected at most the 1 that \w+ sees here \(CPU:0\), got 8;"):
        distribute(config.Run(batch_size=8, devices=8))
    assert distribute(config.Run(devices="all")) is ALONE  # one CPU


def test_evaluations_in_tiles_are_for_one_device(tmp_path):
    collaborators = STANDARD._replace(distribute=lambda run: Distribution(2))
    settings = load(None, ["evaluation.tiles.size=48", "run.batch_size=8"])
    with pytest.raises(RetinaError, match=r"evaluation.tiles: expected one device on one host, got 2; leave the tiles"):
        train(settings, tmp_path / "run", collaborators=collaborators)
    assert not (tmp_path / "run").exists()


def test_several_hosts_need_jax_and_several_devices_not_torch(monkeypatch):
    hosts = config.Hosts(coordinator="a:1", count=2, index=0)
    with pytest.raises(RetinaError, match=r"expected JAX for several hosts, got tensorflow; set KERAS_BACKEND=jax"):
        distribute(config.Run(hosts=hosts))
    if importlib.util.find_spec("torch") is None:
        return
    monkeypatch.setattr(distribution.keras.backend, "backend", lambda: "torch")
    with pytest.raises(RetinaError, match=r"run.devices: expected 1 with PyTorch, got 2; set KERAS_BACKEND=jax or"):
        distribute(config.Run(devices=2))
    assert distribute(config.Run()) is ALONE


def test_xla_on_tensorflow_is_for_one_device():
    assert uses_xla("on", "tensorflow") and not uses_xla("auto", "tensorflow", 2) and uses_xla("auto", "jax", 2)
    with pytest.raises(RetinaError, match=r"run.xla: on has no effect with several devices on TensorFlow"):
        uses_xla("on", "tensorflow", 2)


# ------------------------------------------------------------------------------------------------ launchers

SLURM = {
    "SLURM_NTASKS": "3", "SLURM_PROCID": "2", "SLURM_STEP_NUM_NODES": "3", "SLURM_STEP_NODELIST": "gpu[03-04,9],x1",
    "SLURM_JOB_ID": "4007",
}  # fmt: skip
TORCHRUN = {"WORLD_SIZE": "4", "RANK": "1", "MASTER_ADDR": "node0", "MASTER_PORT": "29500", "LOCAL_WORLD_SIZE": "1"}


def test_what_launchers_say():
    assert hosts_of("slurm", SLURM) == config.Hosts(coordinator="gpu03:61007", count=3, index=2)
    assert hosts_of("env", TORCHRUN) == config.Hosts(coordinator="node0:29500", count=4, index=1)
    lent = {**TORCHRUN, "TORCHELASTIC_USE_AGENT_STORE": "True"}
    assert hosts_of("env", lent).coordinator == "node0:29501"
    assert hosts_of("slurm", {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) is None
    assert hosts_of("env", {"WORLD_SIZE": "1", "RANK": "0"}) is None


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("a", "a"),
        ("a,b", "a"),
        ("gpu[003-005,9],login1", "gpu003"),
        ("gpu[7,9]", "gpu7"),
        ("n-[2-3].site", "n-2.site"),
    ],
)
def test_the_first_node(nodes, first):
    assert first_node(nodes) == first


@pytest.mark.parametrize(
    ("launcher", "variables", "message"),
    [
        ("slurm", {}, "expected the variable SLURM_NTASKS, got none; start it by the launcher, or give run.hosts"),
        ("slurm", {**SLURM, "SLURM_NTASKS": "8"}, "one task a node, got 8 tasks on 3 nodes; .*--ntasks-per-node=1"),
        ("slurm", {**SLURM, "SLURM_PROCID": "x"}, "expected a number in SLURM_PROCID, got 'x'"),
        ("env", {**TORCHRUN, "MASTER_ADDR": ""}, "expected the variable MASTER_ADDR, got none"),
        ("env", {**TORCHRUN, "LOCAL_WORLD_SIZE": "2"}, "one process a host .*, got 2; .*--nproc-per-node=1"),
        ("env", {**TORCHRUN, "RANK": "4"}, r"process 4 of 4 at node0:29500: .*index \(4\) must be below count"),
        ("mpi", {}, "expected slurm or env, got 'mpi'"),
    ],
)
def test_launchers_that_say_too_little(launcher, variables, message):
    with pytest.raises(RetinaError, match=message):
        hosts_of(launcher, variables)


def test_resuming_notices_another_number_of_devices():
    """What it then says, and that it goes on, is in tests/end_to_end/test_devices.py."""
    place = {"coordinator": "a:1", "count": 2, "index": 0}
    one, moved = config.Run().model_dump(), config.Run(hosts={**place, "index": 1}).model_dump()
    assert replicas(one) == (1, 1) and replicas(moved) == replicas(config.Run(hosts=place).model_dump()) == (1, 2)
    assert replicas({"devices": "all", "hosts": None}) != replicas(one)


# ------------------------------------------------------------------------------------------------ equal sums


@pytest.mark.skipif(not HAS_JAX, reason="needs jax")
def test_what_is_on_a_device_stays_there():
    import jax

    there, here = jax.numpy.ones(2), np.ones(2)
    assert jax_or_numpy(there) is there and jax_or_numpy(here) is here


def work(backend: str, devices: int, steps: int, cases: list) -> list[dict]:
    flags = f"--xla_force_host_platform_device_count={devices}"
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "KERAS_BACKEND": backend, "XLA_FLAGS": flags, "PYTHONPATH": root, **QUICK_JAX}
    command = [sys.executable, "-m", "tests.training.devices_work", str(devices), str(steps), json.dumps(cases)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def assert_equal(found: list[dict]) -> None:
    """Losses to a share of 1e-5, weights, slots and averages to 1e-5, of which they moved ten thousandfold."""
    for one in found:
        assert one["loss"] <= 1e-5 and one["weights"] <= 1e-5 and one["moved"] >= 0.1, one
        assert one["scores"] <= 1e-6 and one["found"] > 8 and one["equal"], one


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize(
    "backend",
    ["tensorflow", pytest.param("jax", marks=pytest.mark.skipif(not HAS_JAX, reason="needs jax"))],
)
def test_twenty_steps_on_several_devices(backend, devices):
    """Of the four images, repeated, one has no box and one a crowd box only: devices have unequal positives."""
    modes = [["frozen", 1], ["sync", 1]] + ([["sync", 2], ["train", 1]] if devices == 2 else [])
    found = work(backend, devices, 20, modes)
    if devices == 2:
        trained = found.pop()  # JAX normalises by the whole batch, TensorFlow by that of a device: so it says
        assert (trained["loss"] <= 1e-5) == (backend == "jax") and trained["equal"]
    assert_equal(found)


# ------------------------------------------------------------------------------------------------ JAX's compilations


def test_a_compilation_cache_that_has_no_effect_is_refused(tmp_path):
    for harmless in ("auto", None):
        cache_compilations(config.Run(compilation_cache=harmless))
    with pytest.raises(RetinaError, match=r"run\.compilation_cache: .* has no effect with tensorflow; leave it out"):
        cache_compilations(config.Run(compilation_cache=tmp_path))


@pytest.mark.skipif(not HAS_JAX, reason="JAX is not installed")
def test_jax_keeps_what_it_compiles(monkeypatch, tmp_path):
    import jax

    before = jax.config.jax_compilation_cache_dir, jax.config.jax_enable_compilation_cache
    monkeypatch.setattr(distribution.keras.backend, "backend", lambda: "jax")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    try:
        for own, given, folder in [
            (None, "auto", tmp_path / "user" / "retina" / "jax"),
            (str(tmp_path / "own"), "auto", tmp_path / "own"),
            (str(tmp_path / "own"), tmp_path / "given", tmp_path / "given"),
        ]:
            jax.config.update("jax_compilation_cache_dir", own)
            cache_compilations(config.Run(compilation_cache=given))
            assert jax.config.jax_compilation_cache_dir == str(folder) and jax.config.jax_enable_compilation_cache
        cache_compilations(config.Run(compilation_cache=None))
        assert not jax.config.jax_enable_compilation_cache
    finally:
        jax.config.update("jax_compilation_cache_dir", before[0])
        jax.config.update("jax_enable_compilation_cache", before[1])
