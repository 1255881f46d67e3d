"""A real study, small: killed and continued, nothing lost or redone; the folder refuses what is not its own."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from loopscale import UserError
from loopscale.cli import main
from loopscale.study import LocalProcesses
from loopscale.train import make_config
from loopscale.transfer import Arm, Cell, Study, StudyPlan, run_study, seeds_by_cost

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
    return folder, run_study(PLAN, folder, executor=LocalProcesses(2))


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
    return {path.name: json.loads(path.read_text())["loss"] for path in (folder / "trials").glob("*.json")}


def test_cells_that_are_one_network_are_trained_once(finished):
    folder, result = finished
    # 2 rules x 3 rates x 2 seeds at N = 2, and N = 1 once for both rules.
    assert len(losses(folder)) == 12 + 6
    points = {rule: result["rules"][rule]["points"]["1"] for rule in ("looped", "none")}
    assert points["looped"] == points["none"]


def test_the_result_keeps_its_promise(finished):
    folder, result = finished
    assert json.loads((folder / "result.json").read_text()) == result
    rule = result["rules"]["looped"]
    assert rule["verdict"] in ("transfers", "drifts", "undecided") and set(rule["optima"]) == {"1", "2"}
    assert {"torch", "commit", "hardware", "data", "seeds"} <= set(result["provenance"])
    scale = next(row["value"] for row in rule["applied"]["2"] if row["name"] == "residual_scale")
    assert scale == 0.5


def test_a_finished_study_runs_nothing_again(finished, monkeypatch):
    folder, result = finished

    class Refuses:
        def run(self, next_jobs):
            assert next_jobs() == []
            return iter(())

    again = run_study(PLAN, folder, executor=Refuses())
    assert again["rules"] == result["rules"]


def test_the_number_of_workers_does_not_change_the_losses(finished, tmp_path):
    run_study(PLAN, tmp_path / "one", executor=LocalProcesses(1))
    assert losses(tmp_path / "one") == losses(finished[0])


def test_killed_in_the_middle_and_started_again_it_ends_the_same(finished, tmp_path):
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
    deadline = time.monotonic() + 60
    while len(list((out / "trials").glob("*.json"))) < 5 and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.02)
    first.kill()
    first.wait()
    assert vanished(first.pid), "workers train on for a study that was killed"
    kept = {path.name: path.stat().st_mtime_ns for path in (out / "trials").glob("*.json")}
    assert 5 <= len(kept) < 18
    for left in [*(out / "trials").glob(".*"), out / "trials" / ".half.json.abc"]:  # in the middle of a write
        left.touch()
        os.utime(left, (0, 0))
    second = subprocess.run([*command, "--json"], capture_output=True, text=True)
    assert second.returncode in (0, 1), second.stderr
    result = json.loads(second.stdout)
    assert len(losses(out)) == 18
    assert all((out / "trials" / name).stat().st_mtime_ns == at for name, at in kept.items()), (
        "a finished trial ran again"
    )
    assert set(result["rules"]) == {"looped", "none"}
    assert (out / "report.html").exists() and not list(out.rglob(".*.json.*"))


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_only_its_trial(finished, tmp_path):
    plan, killed = replace(PLAN, rules=("looped",)), []

    def kill_one(trial, done, missing):
        if not killed:
            children = subprocess.run(
                ["pgrep", "-P", str(os.getpid()), "-f", "spawn_main"], capture_output=True, text=True
            )
            killed.append(int(children.stdout.split()[-1]))
            os.kill(killed[0], signal.SIGKILL)

    run_study(plan, tmp_path / "s", executor=LocalProcesses(2), observer=kill_one)
    everything = losses(finished[0])
    assert killed and len(losses(tmp_path / "s")) == 12
    assert all(everything[name] == loss for name, loss in losses(tmp_path / "s").items())


def test_divergence_is_kept_as_a_result(tmp_path):
    base = make_config(
        {**BASE.to_dict(), "optim": {"optimizer": "sgd", "lr": 1.0, "clip": 0.0, "momentum": 0.9}}, ["train.steps=30"]
    )
    plan = StudyPlan(base=base, rules=("none",), loops=(1,), lrs=(1e3, 1e4, 1e5), seeds=1)
    result = run_study(plan, tmp_path / "s", executor=LocalProcesses(1))
    trials = Study.load(tmp_path / "s").trials.values()
    assert all(trial["diverged"] and trial["loss"] is None and trial["diverged_at"] for trial in trials)
    assert result["rules"]["none"]["verdict"] == "undecided"


def test_keys_follow_the_content_of_the_config():
    cell = Cell(Arm("looped", 1.0, 2), RATES[0], 0)
    assert PLAN.key(cell) == StudyPlan.from_json(json.loads(json.dumps(PLAN.to_json()))).key(cell)
    others = [Cell(Arm("none", 1.0, 2), RATES[0], 0), Cell(cell.arm, RATES[1], 0), Cell(cell.arm, RATES[0], 1)]
    assert len({PLAN.key(other) for other in (cell, *others)}) == 4
    assert PLAN.key(cell) != replace(PLAN, base=make_config(BASE.to_dict(), ["train.steps=5"])).key(cell)


def test_folders_of_others_are_refused_untouched(finished, tmp_path):
    folder, _ = finished
    before = sorted(path.name for path in folder.rglob("*"))
    with pytest.raises(UserError, match="holds another study"):
        run_study(replace(PLAN, seeds=1), folder)
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="exists and is not a study"):
        run_study(PLAN, tmp_path)
    assert sorted(path.name for path in folder.rglob("*")) == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_damaged_record_is_named(finished, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    victim = next((copy / "trials").glob("*.json"))
    victim.write_text(victim.read_text()[:40])
    with pytest.raises(UserError, match="is damaged"):
        Study.load(copy)
    (copy / "study.json").write_text("{}")
    with pytest.raises(UserError):
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
        (["--seeds", "0"], "seeds must be at least 1"),
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


def test_cheap_numbers_of_loops_may_have_more_seeds():
    assert seeds_by_cost((16, 1, 4), 2) == ((1, 8), (4, 4), (16, 2))
    plan = replace(PLAN, cheap_seeds=seeds_by_cost((1, 2), 2))
    assert (plan.seeds_at(1), plan.seeds_at(2)) == (3, 2)
    assert StudyPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    with pytest.raises(UserError, match="give loops of the study"):
        replace(PLAN, cheap_seeds=((3, 9),))
