"""Several processes on one study folder: no finished trial runs twice, those of a dead process run again."""

import collections
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import loopscale
from loopscale.study.claims import Claims
from loopscale.study.owner import LOST, gone
from loopscale.transfer import Study

SLOW = """
import math, os, pathlib, time

def objective(values):
    with open(pathlib.Path(__file__).with_name("calls.txt"), "a") as calls:
        calls.write(f"{os.getppid()} {values['loops']} {values['lr']} {values['seed']}\\n")
    time.sleep(0.3)
    return 2 + 0.05 * (math.log2(values["lr"]) + 6) ** 2 + 0.001 * values["seed"]
"""


@pytest.fixture
def study(tmp_path):
    (tmp_path / "study.json").write_text("{}")
    return tmp_path


def claimed(study, owner, silent=0.0):
    path = study / "claims" / "key.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"owner": owner}))
    os.utime(path, (time.time() - silent,) * 2)
    return path


def dead_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_claim_is_held_while_its_process_lives_and_gives_signs_of_life(study):
    living, here = os.getppid(), socket.gethostname()
    for owner, silent, free in [
        (f"elsewhere|{dead_process()}|a", 0, False),
        (f"elsewhere|{living}|a", LOST + 5, True),
        (f"{here}|{living}|a", 0, False),
        (f"{here}|{living}|a", LOST + 5, True),
        (f"{here}|{dead_process()}|a", 0, True),
    ]:
        claimed(study, owner, silent)
        claims = Claims(study)
        assert claims.take("key") is free, owner
    said = json.loads((study / "claims" / "key.json").read_text())
    assert said["host"] == here and said["pid"] == os.getpid() and abs(said["time"] - time.time()) < 60
    assert not claims.take("key"), "it is at it already"


def test_a_claim_that_is_being_written_is_held(study):
    claimed(study, "").write_text("")
    assert not Claims(study).take("key")


def test_claims_are_given_back_and_a_finished_trial_is_not_given_out(study):
    claims = Claims(study)
    with claims.alive():
        assert claims.take("key") and claims.take("other")
        (study / "trials").mkdir()
        (study / "trials" / "key.json").write_text("{}")
        claims.release("key")
        assert not claims.take("key") and [path.stem for path in (study / "claims").iterdir()] == ["other"]
    assert not (study / "claims").exists()


def test_a_claim_that_was_taken_over_is_left_to_its_new_owner(study):
    claims = Claims(study)
    assert claims.take("key")
    path = claimed(study, f"elsewhere|{os.getpid()}|b")
    claims.release("key")
    assert path.exists()


def test_signs_of_life_are_given(study, monkeypatch):
    monkeypatch.setattr("loopscale.study.owner.BEAT", 0.02)
    claims = Claims(study)
    with claims.alive():
        claims.take("key")
        path = study / "claims" / "key.json"
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime < 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 1


def test_a_process_of_another_machine_is_never_known_to_be_gone():
    assert not gone(f"elsewhere|{dead_process()}|a") and not gone("nobody")
    assert gone(f"{socket.gethostname()}|{dead_process()}|a")


@pytest.mark.slow
def test_sigterm_ends_the_processes_and_leaves_nothing_behind(tmp_path):
    (tmp_path / "slow_two.py").write_text(SLOW)
    command = [sys.executable, "-m", "loopscale", "transfer", "--objective", "slow_two.py:objective", "--loops", "1,2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(loopscale.__file__).parents[1])}
    process = subprocess.Popen(
        [*command, "--workers", "1", "--out", "s"], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not list((tmp_path / "s" / "trials").glob("*.json")):
        time.sleep(0.02)
    process.terminate()
    said = process.communicate(timeout=90)[1]
    assert process.returncode == 143 and said.endswith("loopscale: stopped by SIGTERM, the same command goes on\n"), (
        said
    )
    assert "leaked" not in said and not (tmp_path / "s" / "claims").exists()


@pytest.mark.slow
def test_two_processes_share_a_study_and_one_is_killed(tmp_path):
    (tmp_path / "slow_two.py").write_text(SLOW)
    size = ["--loops", "1,2", "--rules", "looped", "--lrs", "2^-8,2^-7,2^-6,2^-5", "--seeds", "3"]
    command = [sys.executable, "-m", "loopscale", "transfer", "--objective", "slow_two.py:objective", *size]
    environment = {**os.environ, "PYTHONPATH": str(Path(loopscale.__file__).parents[1])}
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first, second = (
        subprocess.Popen([*command, "--workers", "1", "--out", "s"], cwd=tmp_path, env=environment, **quiet)
        for _ in range(2)
    )
    calls, trials = tmp_path / "calls.txt", tmp_path / "s" / "trials"

    def ran():
        return collections.Counter(line.split()[0] for line in calls.read_text().splitlines()) if calls.exists() else {}

    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not (len(ran()) == 2 and ran()[str(first.pid)] > 2):
        time.sleep(0.02)
    first.kill()
    first.communicate()
    kept = {path.name: path.stat().st_mtime_ns for path in trials.glob("*.json")}
    said = second.communicate(timeout=90)
    assert second.returncode in (0, 1), said
    assert len(ran()) == 2 and min(ran().values()) > 1, "one did all the work"
    assert len(Study.load(tmp_path / "s").trials) == 24
    assert all((trials / name).stat().st_mtime_ns == at for name, at in kept.items()), "a finished trial ran again"
    points = collections.Counter(line.split(maxsplit=1)[1] for line in calls.read_text().splitlines())
    assert len(points) == 24 and sum(points.values()) <= 25, "only what the killed process was at runs again"
    assert not (tmp_path / "s" / "claims").exists()
