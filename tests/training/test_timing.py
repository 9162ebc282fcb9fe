"""The timing of training steps goes by the run's own devices."""

import numpy as np
import pytest

from retina import cli, config
from retina.data.formats.digits import read_digits
from retina.errors import RetinaError
from retina.runs.hosts import Hosts
from retina.training import timing
from retina.training.devices import Distribution
from tests.training import stand_ins


@pytest.fixture
def timed():
    """`timed(distribution, *overrides)`: the timing of three quick steps, and the arguments of each collaborator."""
    given = {}

    def call(distribution, *overrides):
        def batches(*_, seed, steps, slots, **__):
            given.update(slots=slots)
            return (np.float32(step) for step in range(steps))

        collaborators = stand_ins.collaborators(
            step=lambda model, optimizer, *more: given.update(step=more) or stand_ins.Step(model, optimizer),
            distribute=lambda run: given.update(run=run) or distribution,
            make_deterministic=lambda: given.update(deterministic=True),
            batches=batches,
        )
        settings = config.load(None, [*stand_ins.SETTINGS, *overrides])
        return timing.time_steps(settings, read_digits("train", 8, 64), 3, collaborators), given

    return call


def test_two_devices_of_two_hosts(timed):
    here = Distribution(2, Hosts(2, 1), ("cpu:0", "cpu:1"))
    found, given = timed(here, "run.batch_size=8", "run.devices=2")
    # The last quarters of the batch, as `retina train` gives them to the second host.
    assert given["slots"].tolist() == [4, 5, 6, 7]
    assert given["step"][-1] is here and given["run"].devices == 2
    assert found.devices == ("cpu:0", "cpu:1")
    assert found.images_per_second == pytest.approx(8 / found.step, rel=1)
    assert "deterministic" not in given


def test_one_device_takes_all_and_is_made_deterministic_where_asked(timed):
    found, given = timed(Distribution(), "run.deterministic=true")
    assert given["slots"] is None and given["deterministic"] and len(found.devices) >= 1


def test_a_batch_that_does_not_divide_is_refused_before_the_work(timed):
    with pytest.raises(RetinaError, match=r"run\.batch_size: expected a multiple"):
        timed(Distribution(3, Hosts(), ("a", "b", "c")), "run.batch_size=8")


def test_several_hosts_can_not_be_timed_by_one_process(monkeypatch, capsys, tmp_path):
    file = tmp_path / "config.yaml"
    hosts = "run={batch_size: 8, hosts: {coordinator: 'a:1234', count: 4, index: 0}}"
    file.write_text(config.to_yaml(config.load(None, [*stand_ins.SETTINGS, hosts])))
    monkeypatch.setattr("sys.argv", ["retina", "doctor", str(file), "--time", "3"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "time one host's share of them with run.hosts=null run.batch_size=2" in capsys.readouterr().err
