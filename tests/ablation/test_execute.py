"""Finished trials are skipped, interrupted ones resumed, failed ones retried and recorded; nothing else is lost."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import retina
from retina import config as configuration
from retina.ablation.directory import Outcome, Study
from retina.ablation.execute import _RETINA, duration, run_locally, run_on_ray, run_trial, seconds_of, work_of
from retina.ablation.plan import make_plan
from retina.ablation.results import collect
from retina.ablation.tables import title
from retina.errors import Interrupted, RetinaError

ROOT = Path(__file__).resolve().parents[2]
NAMES = [f"gamma{g}_{seed}" for seed in (0, 1) for g in ("0_alpha0.75", "2_alpha0.25", "5_alpha0.25")]
FIRST = NAMES[0]


def run(bench, retries: int = 1) -> None:
    run_locally(bench.study, retries=retries, say=bench.said.append, again="retina ablate …", program=bench.program)


# ------------------------------------------------------------------------------------------------------- the folder


def test_another_plan_is_refused_and_the_changes_named(bench, base):
    other = make_plan(base, pairs=[(0.0, 0.75), (2.0, 0.25)], seeds=1)
    gone = r"changed: seeds of 'gamma0_alpha0.75' \(2 → 1\), .*, setting 'gamma5_alpha0.25' is gone\. Repeat"
    with pytest.raises(RetinaError, match=gone):
        Study.start(bench.study.path, other)
    assert Study.start(bench.study.path, bench.study.plan).plan == bench.study.plan
    assert Study.open(bench.study.path).plan == bench.study.plan


def test_a_key_that_is_new_since_the_study_began_is_no_change(bench):
    file = bench.study.path / "study.yaml"
    tree = yaml.safe_load(file.read_text())
    del tree["config"]["inference"]["candidates"], tree["config"]["export"]
    file.write_text(yaml.safe_dump(tree))
    assert Study.start(bench.study.path, bench.study.plan).plan == bench.study.plan
    tree["config"]["inference"]["candidates"] = 7  # but one that had another value is
    file.write_text(yaml.safe_dump(tree))
    with pytest.raises(RetinaError, match=r"changed: inference.candidates \(7 → 1000\)\. Repeat"):
        Study.start(bench.study.path, bench.study.plan)


def test_text_that_looks_like_a_number_stays_text_in_the_file(tmp_path, base):
    grid = tmp_path / "grid.yaml"
    grid.write_text("- {name: '1e3', overrides: {data.train.images: 7}}\n- {name: '5e-1', overrides: {}}\n")
    plan = make_plan(base, grid=grid, seeds=1)
    Study.start(tmp_path / "study", plan)
    assert Study.open(tmp_path / "study").plan == plan
    assert [setting.name for setting in Study.open(tmp_path / "study").plan.settings] == ["1e3", "5e-1"]


def test_a_study_killed_before_its_trials_folder_is_one(bench):
    (bench.study.path / "trials").rmdir()
    Study.start(bench.study.path, bench.study.plan)
    assert (bench.study.path / "trials").is_dir()


def test_a_folder_of_something_else_is_refused(tmp_path, plan):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RetinaError, match="expected a new folder or a study"):
        Study.start(tmp_path, plan)
    with pytest.raises(RetinaError, match="not a study"):
        Study.open(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_a_damaged_plan_is_refused(bench):
    (bench.study.path / "study.yaml").write_text("settings: 3")
    with pytest.raises(RetinaError, match="expected the plan of a study"):
        Study.open(bench.study.path)


def test_two_studies_in_one_folder_are_one_too_many(bench, monkeypatch):
    monkeypatch.setattr("retina.ablation.directory._LOCK_SECONDS", 0.2)
    with (
        bench.study.locked(),
        pytest.raises(RetinaError, match="another study or one of its trials is running here"),
        bench.study.locked(),
    ):
        pass
    with bench.study.locked() as lock:
        assert lock > 2


# -------------------------------------------------------------------------------------------------------- in order


def test_all_trials_run_seed_by_seed_and_once(bench):
    run(bench)
    assert bench.calls == NAMES
    assert set(bench.statuses().values()) == {"finished"}
    assert (
        bench.said[0] == f"[1/6] {FIRST} …"
        and "finished in 0:0" in bench.said[1]
        and "AP 0.250" in bench.said[1]
        and "(5 left, about 0:" in bench.said[1]
    )
    assert "left" not in bench.said[-1]
    run(bench)
    assert bench.calls == NAMES  # nothing was left to do


def test_each_trial_has_its_configuration(bench):
    run(bench)
    for trial in bench.study.plan.trials:
        config = configuration.load(bench.study.file(trial, "yaml"))
        assert config == bench.study.plan.trial_config(trial) and config.run.seed == trial.seed


def test_a_missing_evaluation_is_made_again(bench):
    run(bench)
    (bench.study.evaluation(bench.study.plan.trials[1]) / "detections.json").unlink()
    assert bench.statuses()[NAMES[1]] == "pending"
    run(bench)
    assert bench.calls == [*NAMES, NAMES[1]]


def test_a_damaged_record_is_no_obstacle(bench):
    bench.study.file(bench.study.plan.trials[0], "json").write_text("{")
    assert bench.statuses()[FIRST] == "pending"


# ------------------------------------------------------------------------------------------------------- failures


def test_one_failure_is_retried_anew(bench):
    bench.behave(FIRST, "fails ok")
    run(bench)
    assert bench.calls == [FIRST, *NAMES]
    outcome = bench.study.outcome(bench.study.plan.trials[0])
    assert (outcome.status, outcome.attempts, outcome.error) == ("finished", 2, "")
    assert ", 2 attempts" in bench.said[1]


def test_two_failures_are_recorded_and_the_rest_goes_on(bench):
    bench.behave(FIRST, "fails")
    run(bench)
    assert bench.calls == [FIRST, *NAMES]
    outcome = bench.study.outcome(bench.study.plan.trials[0])
    assert (outcome.status, outcome.attempts, outcome.error) == ("failed", 2, "retina: out of memory")
    assert list(bench.statuses().values()) == ["failed", *["finished"] * 5]
    bench.behave(FIRST, "ok")  # what was wrong is put right: the same command tries once more
    run(bench)
    assert bench.calls == [FIRST, *NAMES, FIRST]
    assert bench.statuses()[FIRST] == "finished"


def test_no_retries(bench):
    bench.behave(FIRST, "fails ok")
    run(bench, retries=0)
    assert bench.calls == NAMES and bench.statuses()[FIRST] == "failed"


def test_a_failure_after_a_checkpoint_is_resumed_then_begun_anew(bench):
    bench.behave(FIRST, "fails_late fails_late ok")
    run(bench, retries=2)
    assert bench.calls[:3] == [FIRST, f"{FIRST} resumed", FIRST]
    assert bench.statuses()[FIRST] == "finished"
    aside = bench.study.run_dir(bench.study.plan.trials[0]).with_name(f"{FIRST}.failed_1")
    assert (aside / "checkpoints" / "latest").read_text() == "step_1"  # nothing trained is thrown away


def test_bad_input_is_no_fault_of_the_checkpoint(bench):
    bench.behave(FIRST, "fails_late bad_input_late bad_input_late ok")
    run(bench, retries=3)
    assert bench.calls[:4] == [FIRST, *[f"{FIRST} resumed"] * 3]
    assert not list(bench.study.path.glob("trials/*.failed_*"))


def test_an_attempt_that_says_nothing_does_not_quote_the_one_before(bench):
    log = bench.study.file(bench.study.plan.trials[0], "log")
    log.write_text("retina: step 7: the loss is nan\n")
    bench.behave(FIRST, "dies_silently")
    run(bench, retries=0)
    outcome = bench.study.outcome(bench.study.plan.trials[0])
    assert (outcome.status, outcome.error) == ("failed", "exit code 4")


def test_numbers_that_are_not_finite_are_a_result(bench):
    bench.behave(FIRST, "diverges")
    run(bench)
    assert bench.calls == NAMES  # not retried
    outcome = bench.study.outcome(bench.study.plan.trials[0])
    assert (outcome.status, outcome.attempts) == ("diverged", 1)
    assert outcome.error == "retina: step 7: the loss is nan; lower optimizer.learning_rate"
    run(bench)
    assert bench.calls == NAMES  # nor begun again by the next call


def test_success_without_results_is_a_failure(bench):
    bench.behave(FIRST, "says_nothing")
    run(bench, retries=0)
    assert bench.study.outcome(bench.study.plan.trials[0]).error == "the process ended without its last evaluation"


def test_a_killed_trial_says_by_what(bench):
    work = work_of(
        bench.study, bench.study.plan.trials[0], 0, (sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")
    )
    outcome = run_trial(work, stop=lambda: False)
    assert outcome.status == "failed" and outcome.error.startswith("killed by signal 9")


# ---------------------------------------------------------------------------------------------- stopped and killed

DRIVER = """
import sys
from pathlib import Path
from retina.ablation.directory import Study
from retina.ablation.execute import run_locally
from retina.errors import Interrupted
study = Study.open(Path(sys.argv[1]))
try:
    with study.locked() as lock:
        run_locally(study, retries=1, say=print, again="AGAIN", program=tuple(sys.argv[2:]), lock=lock)
except Interrupted as error:
    print(error)
    sys.exit(75)
"""


def start(bench) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(bench.study.path), *bench.program],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 20
    while not file.exists():
        assert time.monotonic() < deadline, f"{file} never came"
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_trial_and_the_study_goes_on_later(bench, number):
    bench.behave(NAMES[1], "waits ok")
    process = start(bench)
    wait_for(bench.book / "waiting")
    process.send_signal(number)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 75, out
    assert out.splitlines()[-1] == f"{number.name}: 1 of 6 trials are done; resume with: AGAIN"
    assert bench.statuses()[NAMES[1]] == "pending"
    latest = bench.study.run_dir(bench.study.plan.trials[1]) / "checkpoints" / "latest"
    assert latest.read_text() == "step_1"
    run(bench)
    assert bench.calls == [*NAMES[:2], f"{NAMES[1]} resumed", *NAMES[2:]]
    assert set(bench.statuses().values()) == {"finished"}


def test_a_study_whose_time_is_up_ends_after_a_checkpoint_and_goes_on_later(bench):
    bench.behave(NAMES[1], "waits ok")

    def words(until):
        return {"retries": 0, "say": bench.said.append, "again": "AGAIN", "until": until, "program": bench.program}

    with pytest.raises(Interrupted, match="^the time is up: 1 of 6 trials are done; resume with: AGAIN"):
        run_locally(bench.study, **words(time.monotonic() + 1.5))
    assert bench.calls == NAMES[:2] and bench.statuses()[NAMES[1]] == "pending"
    with pytest.raises(Interrupted, match="^the time is up: 1 of 6"):
        run_locally(bench.study, **words(time.monotonic()))
    assert bench.calls == NAMES[:2]
    run(bench)
    assert bench.calls == [*NAMES[:2], f"{NAMES[1]} resumed", *NAMES[2:]]


@pytest.mark.parametrize(("text", "seconds"), [("90m", 5400), ("1.5h", 5400), (" 30s", 30)])
def test_durations_are_read(text, seconds):
    assert seconds_of("--for", text) == seconds


@pytest.mark.parametrize("text", ["", "90", "m", "-5m", "1h30m", "0m", "nan h"])
def test_durations_that_are_none(text):
    with pytest.raises(RetinaError, match="--for: expected a duration such as 90m"):
        seconds_of("--for", text)


def test_seeds_are_added_to_a_finished_study(bench, base):
    run(bench)
    pairs = [(0.0, 0.75), (2.0, 0.25), (5.0, 0.25)]
    more = make_plan(base, pairs=pairs, seeds=2, seeds_of={"gamma2_alpha0.25": 3})
    grown = bench._replace(study=Study.start(bench.study.path, more))
    run(grown)
    assert bench.calls == [*NAMES, "gamma2_alpha0.25_2"]
    result = collect(Study.open(bench.study.path), replicates=50)
    assert [row.figures["AP"].count for row in result.settings] == [2, 3, 2]
    assert "2 to 3 seeds" in title(result)


def test_a_trial_that_was_told_to_stop_by_others_stops_the_study(bench):
    bench.behave(FIRST, "waits ok")
    process = start(bench)
    wait_for(bench.book / "waiting")
    (children,) = Path(f"/proc/{process.pid}/task/{process.pid}").glob("children")
    os.kill(int(children.read_text().split()[0]), signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 75 and "a trial was interrupted: 0 of 6" in out


def test_a_killed_study_is_resumed_once_its_trial_has_ended(bench):
    """The trial inherits the lock: a second study waits until it is gone, then goes on from its checkpoint."""
    bench.behave(FIRST, "hangs ok")
    process = start(bench)
    wait_for(bench.book / "waiting")
    process.kill()
    process.communicate(timeout=20)
    again = start(bench)
    out, _ = again.communicate(timeout=30)
    assert again.returncode == 0, out
    assert bench.calls == [FIRST, f"{FIRST} resumed", *NAMES[1:]]
    assert set(bench.statuses().values()) == {"finished"}


def test_the_real_trainer_ends_in_peace_and_with_its_parent(tmp_path):
    def begin(*arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-c", _RETINA, *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    peace = begin("version")
    assert (peace.wait(timeout=20), peace.stdout.read(), peace.stderr.read()) == (0, f"{retina.__version__}\n", "")
    os.mkfifo(tmp_path / "never")  # nobody writes into it: the process would wait for its configuration for ever
    orphan = begin("config", str(tmp_path / "never"))
    time.sleep(0.5)
    assert orphan.poll() is None
    orphan.stdin.close()
    assert orphan.wait(timeout=20) == 1


# -------------------------------------------------------------------------------------------------------------- Ray


@pytest.fixture(scope="module")
def local_ray():
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install -e '.[ray]'")
    import ray

    # The workers find the package where this test finds it.
    environment = {"env_vars": {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_trials_run_on_ray(bench, local_ray):
    bench.behave(FIRST, "fails ok")
    bench.behave(NAMES[4], "diverges")
    run_on_ray(bench.study, retries=1, say=bench.said.append, again="AGAIN", program=bench.program)
    assert sorted(bench.calls) == sorted([FIRST, *NAMES])
    expected = dict.fromkeys(NAMES, "finished") | {NAMES[4]: "diverged"}
    assert bench.statuses() == expected
    assert bench.study.outcome(bench.study.plan.trials[0]) == Outcome(
        "finished", 2, bench.study.outcome(bench.study.plan.trials[0]).seconds
    )
    bench.behave(FIRST, "waits ok")
    (bench.study.evaluation(bench.study.plan.trials[0]) / "metrics.json").unlink()
    stop_when_waiting(bench.book / "waiting")
    with pytest.raises(Interrupted, match="SIGTERM: 5 of 6 trials are done; resume with: AGAIN"):
        run_on_ray(bench.study, retries=1, say=bench.said.append, again="AGAIN", program=bench.program)
    assert (bench.study.run_dir(bench.study.plan.trials[0]) / "checkpoints" / "latest").read_text() == "step_1"


def stop_when_waiting(file: Path) -> None:
    """This process gets SIGTERM as soon as the trial waits."""
    code = (
        "import os, sys, time\nfrom pathlib import Path\nwhile not Path(sys.argv[1]).exists(): time.sleep(0.05)\n"
        "time.sleep(0.5); os.kill(int(sys.argv[2]), 15)"
    )
    subprocess.Popen([sys.executable, "-c", code, str(file), str(os.getpid())])


def test_without_ray_the_remedy_is_named(bench, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RetinaError, match='Ray is not installed; pip install "retina-detection'):
        run_on_ray(bench.study, retries=0, say=bench.said.append, again="", program=bench.program)


def test_durations():
    assert [duration(seconds) for seconds in (0, 59.6, 65, 3605)] == ["0:00", "1:00", "1:05", "1:00:05"]


def test_records_are_plain(bench):
    trial = bench.study.plan.trials[0]
    bench.study.record(trial, Outcome("failed", 2, 1.5, "why"))
    assert json.loads(bench.study.file(trial, "json").read_text()) == {
        "status": "failed", "attempts": 2, "seconds": 1.5, "error": "why",
    }  # fmt: skip
