"""A real study, small: killed and continued, nothing lost or redone; the folder refuses what is not its own."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import loopscale
from loopscale import UserError
from loopscale.cli import main
from loopscale.records import Journal, StudyRecord, content_hash, write_record
from loopscale.study import Executor, InThisProcess, LocalProcesses, RayTasks, Silent, SlurmArrays, UserCode
from loopscale.study.trial import config_of
from loopscale.train import make_config
from loopscale.transfer import Arm, Cell, Study, StudyPlan, run_study

BASE = make_config(
    {
        "model": {"width": 32, "head_dim": 16, "layers": 1},
        "data": {"path": "synthetic:copy", "context": 16, "batch_size": 2},
        "train": {"steps": 4, "eval_batches": 2, "device": "cpu"},
    }
)
RATES = (2.0**-8, 2.0**-7, 2.0**-6)
PLAN = StudyPlan(base=BASE, rules=("looped", "none"), loops=(1, 2), lrs=RATES, seeds=2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "s"
    return folder, run_study(PLAN, folder, executor=InThisProcess())


def vanished(group, seconds=60):
    """Whether the process group is empty soon."""
    for _ in range(10 * seconds):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def losses(folder):
    return {key: trial.loss for key, trial in Journal(folder).trials.items()}


def test_cells_that_are_one_network_are_trained_once(finished):
    folder, result = finished
    # 2 rules x 3 rates x 2 seeds at N = 2, and N = 1 once for both rules.
    assert len(losses(folder)) == 12 + 6
    points = {rule: result["rules"][rule]["points"]["1"] for rule in ("looped", "none")}
    assert points["looped"] == points["none"]


def test_an_initialisation_is_a_network_of_its_own_at_one_loop_and_scales_of_the_rate_are_not():
    plan = StudyPlan(base=BASE, rules=("none", "looped", "tied-lr", "gpt2-init"), loops=(1, 2), lrs=RATES)
    same = {rule: plan.same_network(Arm(rule, 1.0, 1)).rule for rule in plan.rules}
    assert same == {"none": "none", "looped": "none", "tied-lr": "none", "gpt2-init": "gpt2-init"}
    assert all(plan.same_network(Arm(rule, 1.0, 2)).rule == rule for rule in plan.rules)


def test_the_result_keeps_its_promise(finished):
    folder, result = finished
    kept = json.loads((folder / "result.json").read_text())
    assert {name: value for name, value in kept.items() if name not in ("schema", "seal")} == result
    rule = result["rules"]["looped"]
    assert rule["verdict"] in ("transfers", "drifts", "undecided") and set(rule["optima"]) == {"1", "2"}
    assert {"torch", "commit", "hardware", "data", "seeds"} <= set(result["provenance"])
    scale = next(row["value"] for row in rule["applied"]["2"] if row["name"] == "residual_scale")
    assert scale == 0.5


class Refuses(Executor):
    def submit(self, work, *arguments):
        raise AssertionError("a trial was asked for")


def test_a_finished_study_runs_nothing_again(finished):
    folder, result = finished
    again = run_study(PLAN, folder, executor=Refuses())
    assert again["rules"] == result["rules"]


def test_two_processes_give_the_losses_of_this_one(finished, tmp_path):
    run_study(replace(PLAN, rules=("looped",), loops=(1,)), tmp_path / "two", executor=LocalProcesses(2))
    assert len(losses(tmp_path / "two")) == 6 and losses(tmp_path / "two").items() <= losses(finished[0]).items()


@pytest.mark.slow
def test_a_command_killed_in_the_middle_and_started_again_ends_the_same(finished, tmp_path):
    out = tmp_path / "killed"
    command = [
        sys.executable,
        "-m",
        "loopscale",
        "transfer",
        "--rules",
        "looped,none",
        "--loops",
        "1,2",
        "--lrs",
        "2^-8,2^-7,2^-6",
        "--seeds",
        "2",
        "--data",
        "synthetic:copy",
        "--set",
        "model.width=32",
        "--set",
        "model.head_dim=16",
        "--set",
        "data.context=16",
        "--set",
        "data.batch_size=2",
        "--set",
        "train.steps=4",
        "--set",
        "train.eval_batches=2",
        "--out",
        str(out),
    ]
    first = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(Journal(out).trials) < 5 and first.poll() is None:
        time.sleep(0.02)
    first.kill()
    first.wait()
    assert vanished(first.pid), "workers train on for a study that was killed"
    kept = losses(out)
    assert 5 <= len(kept) < 18
    (out / ".result.json.abcd1234").touch()  # in the middle of a write
    second = subprocess.run([*command, "--json"], capture_output=True, text=True)
    assert second.returncode in (0, 1), second.stderr
    assert len(losses(out)) == 18 and losses(out).items() >= kept.items()
    assert set(json.loads(second.stdout)["rules"]) == {"looped", "none"}
    assert (out / "report.html").exists() and not list(out.rglob(".*"))


SLOW = """
import math, time

def objective(values):
    time.sleep(0.3)
    return 2 + 0.05 * (math.log2(values["lr"]) + 6) ** 2 + 0.001 * values["seed"]
"""


@pytest.mark.slow
def test_sigterm_ends_the_processes_and_leaves_nothing_behind(tmp_path):
    (tmp_path / "slow_two.py").write_text(SLOW)
    command = [sys.executable, "-m", "loopscale", "transfer", "--objective", "slow_two.py:objective", "--loops", "1,2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(loopscale.__file__).parents[1])}
    process = subprocess.Popen(
        [*command, "--workers", "1", "--out", "s"], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not Journal(tmp_path / "s").trials:
        time.sleep(0.02)
    process.terminate()
    said = process.communicate(timeout=600)[1]
    assert process.returncode == 143 and said.endswith("loopscale: stopped by SIGTERM, the same command goes on\n"), (
        said
    )
    assert "leaked" not in said


class DiesAt(InThisProcess):
    """Kills its own process when it has run so many trials."""

    def __init__(self, count):
        self.left = count

    def submit(self, work, *arguments):
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
        return super().submit(work, *arguments)


def in_a_fork(work):
    """Do it in a process of its own that needs no imports; returns how it ended."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    return process.exitcode


def test_a_driver_killed_in_the_middle_loses_no_finished_trial(tmp_path):
    place = f"{Path(__file__).parent / 'user_examples.py'}:objective"
    plan = replace(PLAN, user_code=UserCode.at(place, "objective"))
    folder = tmp_path / "s"
    for count in (5, 3):
        ended = in_a_fork(lambda count=count: run_study(plan, folder, executor=DiesAt(count)))
        assert ended == -signal.SIGKILL
    kept = (folder / "trials.jsonl").read_bytes()
    assert kept.count(b"\n") == 8
    with (folder / "trials.jsonl").open("ab") as file:
        file.write(b'{"schema":1,"key":"half a li')  # killed in the middle of a write
    run_study(plan, folder, executor=InThisProcess())
    whole = (folder / "trials.jsonl").read_bytes()
    assert whole.startswith(kept) and len(Journal(folder).trials) == whole.count(b"\n") == 24, "no trial ran twice"


def test_a_folder_has_one_driver_and_the_second_is_told_which(finished, tmp_path):
    told = []

    class Meanwhile(Silent):
        def ended(self, record, finished, left):
            if not told:
                with pytest.raises(UserError) as error:
                    run_study(PLAN, tmp_path / "s", executor=Refuses())
                told.append(str(error.value))

    plan = replace(PLAN, rules=("looped",), loops=(1,))
    run_study(plan, tmp_path / "s", executor=InThisProcess(), observer=Meanwhile())
    assert f"process {os.getpid()} on " in told[0] and "loopscale report" in told[0] and "--serve" in told[0]


def test_a_study_goes_on_with_more_of_everything(finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    before = (copy / "trials.jsonl").read_bytes()
    more = replace(PLAN, rules=("looped", "none", "sqrt"), loops=(1, 2, 3), lrs=(*RATES, 2.0**-5), seeds=3)
    result = run_study(more, copy, executor=InThisProcess())
    after = (copy / "trials.jsonl").read_bytes()
    # 3 rules x N = 2, 3 and one network at N = 1, with 4 rates and 3 seeds each.
    assert after.startswith(before) and len(losses(copy)) == 7 * 4 * 3 == after.count(b"\n")
    assert set(result["rules"]) == {"looped", "none", "sqrt"} and result["loops"] == [1, 2, 3]
    run_study(PLAN, copy, executor=Refuses())  # and fewer reuse what ran


def test_what_changes_the_meaning_of_trials_is_refused_and_named(finished, tmp_path):
    changed = replace(PLAN, base=make_config(BASE.to_dict(), ["train.steps=5", "model.width=64"]))
    with pytest.raises(UserError, match=r"another study \(model.width 32 -> 64, train.steps 4 -> 5\): give this one"):
        run_study(changed, finished[0], executor=Refuses())
    code = tmp_path / "mine.py"
    code.write_text("def objective(values):\n    return values['lr']\n")
    place = f"{code}:objective"
    run_study(replace(PLAN, user_code=UserCode.at(place, "objective")), tmp_path / "s", executor=InThisProcess())
    code.write_text("def objective(values):\n    return 2 * values['lr']\n")
    with pytest.raises(UserError, match=r"mine\.py changed since"):
        run_study(replace(PLAN, user_code=UserCode.at(place, "objective")), tmp_path / "s", executor=Refuses())


def test_three_trials_that_raise_end_a_study(tmp_path):
    code = tmp_path / "mine.py"
    code.write_text("def objective(values):\n    raise OSError('no disk')\n")
    plan = replace(PLAN, user_code=UserCode.at(f"{code}:objective", "objective"))
    with pytest.raises(
        UserError, match=r"all 3 trials raised, the first OSError: no disk: mend it, and name a new --out"
    ):
        run_study(plan, tmp_path / "s", executor=InThisProcess())


def test_a_worker_that_is_killed_costs_no_trial(tmp_path):
    """The processes are not real here; test_a_worker_that_is_killed_costs_only_its_trial kills one that is."""

    class Loses(InThisProcess):
        lost, times = (ConnectionError,), 0

        def submit(self, work, *arguments):
            self.times += 1
            return super().submit(refuse if self.times in (2, 3) else work, *arguments)

    def refuse(*arguments):
        raise ConnectionError("gone")

    place = f"{Path(__file__).parent / 'user_examples.py'}:objective"
    plan = replace(PLAN, user_code=UserCode.at(place, "objective"))
    run_study(plan, tmp_path / "s", executor=Loses())
    assert len(losses(tmp_path / "s")) == 24
    Loses.times, Loses.submit = 0, lambda self, work, *arguments: InThisProcess.submit(self, refuse, *arguments)
    with pytest.raises(UserError, match=r"a worker was lost 3 times \(gone\)"):
        run_study(plan, tmp_path / "t", executor=Loses())


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_only_its_trial(finished, tmp_path):
    plan, killed = replace(PLAN, rules=("looped",)), []

    class KillOne(Silent):
        def ended(self, record, finished, left):
            if not killed:
                killed.append(multiprocessing.active_children()[-1].pid)
                os.kill(killed[0], signal.SIGKILL)

    run_study(plan, tmp_path / "s", executor=LocalProcesses(2), observer=KillOne())
    everything = losses(finished[0])
    assert killed and len(losses(tmp_path / "s")) == 12
    assert all(everything[name] == loss for name, loss in losses(tmp_path / "s").items())


def test_divergence_is_kept_as_a_result(tmp_path):
    base = make_config(
        {**BASE.to_dict(), "optim": {"optimizer": "sgd", "lr": 1.0, "clip": 0.0, "momentum": 0.9}}, ["train.steps=30"]
    )
    plan = StudyPlan(base=base, rules=("none",), loops=(1,), lrs=(1e3, 1e4, 1e5), seeds=1)
    result = run_study(plan, tmp_path / "s", executor=InThisProcess())
    trials = Study.load(tmp_path / "s").trials.values()
    assert all(trial.diverged and trial.loss is None and trial.diverged_at for trial in trials)
    assert result["rules"]["none"]["verdict"] == "undecided"


def read_back(plan):
    return StudyRecord.model_validate_json(plan.to_record().model_dump_json())


def test_keys_follow_the_content_of_the_config():
    cell = Cell(Arm("looped", 1.0, 2), RATES[0], 0)
    assert PLAN.key(cell) == StudyPlan.from_record(read_back(PLAN)).key(cell)
    others = [Cell(Arm("none", 1.0, 2), RATES[0], 0), Cell(cell.arm, RATES[1], 0), Cell(cell.arm, RATES[0], 1)]
    assert len({PLAN.key(other) for other in (cell, *others)}) == 4
    assert PLAN.key(cell) != replace(PLAN, base=make_config(BASE.to_dict(), ["train.steps=5"])).key(cell)


def test_folders_of_others_are_refused_untouched(finished, tmp_path):
    folder, _ = finished
    before = sorted(path.name for path in folder.rglob("*"))
    with pytest.raises(UserError, match="holds another study"):
        run_study(replace(PLAN, base=make_config(BASE.to_dict(), ["train.steps=5"])), folder)
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="exists and is not a study"):
        run_study(PLAN, tmp_path)
    assert sorted(path.name for path in folder.rglob("*")) == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("too_much", ["model.layers=1000000", "data.batch_size=100000000"])
@pytest.mark.parametrize(
    "study",
    [
        ["transfer", "--loops", "1,2"],
        ["exponent", "--loops", "1,2,4"],
        ["tune", "c.toml", "--target", "loops=8"],
        ["train", "c.toml"],
    ],
    ids=lambda words: words[0],
)
def test_what_no_machine_holds_is_refused_before_anything_is_made(tmp_path, capsys, monkeypatch, study, too_much):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.toml").write_text(BASE.to_toml())
    data = [] if "c.toml" in study else ["--set", "data.path=synthetic:copy"]
    began = time.process_time()
    assert main([*study, *data, "--set", too_much, "--out", "out"]) == 2
    assert re.search(
        r"^loopscale: training takes [\d.,]+ [GT]B and this machine has .*: lower", capsys.readouterr().err
    )
    assert time.process_time() - began < 5 and sorted(path.name for path in tmp_path.iterdir()) == ["c.toml"]


def test_a_value_that_no_job_has_is_a_sentence():
    with pytest.raises(UserError, match="a record is damaged at user_code: restore it"):
        UserCode.from_json(True)
    with pytest.raises(UserError, match=r"^the config of a trial is damaged .*train\.steps.*: delete it and run"):
        config_of({"train": {"steps": "x"}})


def test_the_room_of_other_machines_is_not_asked_for(monkeypatch):
    large = BASE.replaced("model", layers=10**6)
    with pytest.raises(UserError, match="training takes"):
        InThisProcess().check_room(large)
    for elsewhere in (SlurmArrays, RayTasks):
        monkeypatch.setattr(elsewhere, "__init__", lambda self: None)
        elsewhere().check_room(large)


def test_a_value_in_study_json_that_no_config_takes_is_named(finished, tmp_path):
    folder = Path(shutil.copytree(finished[0], tmp_path / "s"))
    record = json.loads((folder / "study.json").read_text())
    record["base"]["train"]["steps"] = -1
    known = {name: value for name, value in record.items() if name not in ("schema", "seal")}
    write_record(folder / "study.json", StudyRecord.model_validate(known))
    with pytest.raises(
        UserError, match=r"^study\.json is damaged \(config key 'train\.steps' cannot be -1.*: restore it"
    ):
        run_study(PLAN, folder, executor=InThisProcess())


@pytest.mark.parametrize(
    "old,new", [(b'"lr":0.00', b'"lr":0.01'), (b'"loss":', b'"lost":'), (b'"key":"', b'"key":"x'), (b"{", b"[")]
)
def test_a_damaged_trial_is_named_and_nothing_waits(finished, tmp_path, old, new):
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    lines = (copy / "trials.jsonl").read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].replace(old, new, 1)
    (copy / "trials.jsonl").write_bytes(b"".join(lines))
    for act in (Study.load, lambda folder: run_study(PLAN, folder, executor=Refuses())):
        with pytest.raises(UserError, match=r"trials\.jsonl line 4 is damaged") as error:
            act(copy)
        assert "\n" not in str(error.value)
    (copy / "trials.jsonl").write_bytes(b"".join([*lines[:3], *lines[4:]]))  # as the sentence says
    run_study(PLAN, copy, executor=InThisProcess())
    assert losses(copy) == losses(finished[0])


def test_a_study_of_the_older_layout_is_read(finished, tmp_path):
    copy = tmp_path / "copy"
    (copy / "trials").mkdir(parents=True)
    for line in (finished[0] / "trials.jsonl").read_text().splitlines():
        trial = {name: value for name, value in json.loads(line).items() if name not in ("schema", "seal")}
        (copy / "trials" / f"{trial['key']}.json").write_text(json.dumps(trial))
    plan = json.loads((finished[0] / "study.json").read_text())
    (copy / "study.json").write_text(json.dumps({**{k: v for k, v in plan.items() if k != "seal"}, "schema": 1}))
    again = run_study(PLAN, copy, executor=Refuses())["rules"]
    assert all(command in again[rule].pop("next") for rule, command in (("looped", str(copy)), ("none", str(copy))))
    kept = {rule: {k: v for k, v in found.items() if k != "next"} for rule, found in finished[1]["rules"].items()}
    assert again == kept, "but for the commands that go on with each folder"
    (copy / "study.json").write_text("{}")
    with pytest.raises(UserError, match=r"study\.json has schema None"):
        Study.load(copy)


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["--preset", "dem"], "unknown preset 'dem': did you mean 'demo'?"),
        (["--rules", "loped"], "unknown rule 'loped': did you mean 'looped'?"),
        (["--loops", "0,1"], "loops must be a whole number of at least 1, got 0"),
        (["--loops", "a"], "'a' is not a comma-separated list of whole numbers"),
        (["--lrs", "0,1,2"], "a learning rate must be a positive number, got 0.0"),
        (["--lrs", "nan,1,2"], "a learning rate must be a positive number, got nan"),
        (["--lrs", "0.1"], "a parabola needs at least 3 different rates"),
        (["--strengths", "nan"], "a strength must be a positive number, got nan"),
        (["--preset", "gpu"], "the trials train on a GPU and this machine has none: --set train.device=cpu"),
        (["--gpus", "1"], "a trial asks for 1 GPU(s) and this machine has 0"),
        (["--gpus", "1.5"], "a trial takes a share of a GPU or whole ones, got --gpus 1.5"),
        (["--slurm", "partition=gpu"], "--slurm is not for --executor local: add --executor slurm"),
        (["--executor", "slurm", "--gpus", "1"], "--gpus is not for --executor slurm: write --slurm gres=gpu:1"),
        (["--executor", "slurm", "--slurm", "partition"], "--slurm 'partition' is not name=value"),
        (["--seeds", "0"], "seeds must be from 1 to 1,000"),
        (["--strengths", "1,1"], "strengths must list at least one value, each once"),
        (["--set", "train.stps=3"], "unknown config key 'train.stps': did you mean 'steps'?"),
        (["--data", "no-such-file.txt"], "there is no data file or folder"),
        (["--workers", "-1"], "workers must be at least 1"),
    ],
)
def test_mistakes_on_the_command_line(arguments, words, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["transfer", "--out", str(out), *arguments]) == 2
    said = capsys.readouterr()
    assert words in said.err and len(said.err.strip().splitlines()) == 1 and not said.out
    assert not out.exists()


def test_a_study_of_an_older_version_goes_on(tmp_path):
    """There the user's code was called `own`, in study.json, in every trial and in every key."""
    place = f"{Path(__file__).parent / 'user_examples.py'}:objective"
    plan = replace(PLAN, user_code=UserCode.at(place, "objective"))
    cell = Cell(Arm("none", 1.0, 2), 2.0**-6, 1)
    config = plan.config(cell).model_dump(mode="json")
    assert plan.key(cell) == content_hash({**config, "own": plan.user_code.to_json()})
    run_study(plan, tmp_path / "s", executor=InThisProcess())
    study, trials = tmp_path / "s" / "study.json", tmp_path / "s" / "trials.jsonl"
    record, lines = json.loads(study.read_text()), [json.loads(line) for line in trials.read_text().splitlines()]
    record["schema"] = 2
    for body, holder in ((record, record), *((line, line["config"]) for line in lines)):
        holder["own"] = holder.pop("user_code")
        body["seal"] = content_hash({key: value for key, value in body.items() if key != "seal"})
    study.write_text(json.dumps(record))
    trials.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    run_study(plan, tmp_path / "s", executor=Refuses())
    assert Study.load(tmp_path / "s").plan.user_code == plan.user_code
