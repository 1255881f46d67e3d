"""Tuning through submitit and on Ray clusters: complete, each trial what this process gets, nothing lost with a worker."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import loopscale
from loopscale.records import Journal
from loopscale.study import InThisProcess, RayTasks, SlurmArrays
from loopscale.study.trial import run_trial
from loopscale.train import make_config
from loopscale.tune import Size, TuneSettings, tune

pytestmark = pytest.mark.slow
BASE = make_config(
    {
        "model": {"width": 32, "head_dim": 16, "layers": 1},
        "data": {"path": "synthetic:copy", "context": 16, "batch_size": 2},
        "train": {"steps": 4, "eval_batches": 2, "device": "cpu"},
    }
)
SMALL = Size(1, 1, 32, 4, 2)
SETTINGS = TuneSettings(BASE, SMALL, SMALL.replace(loops=8), trials=7, seeds=2)


def trials(folder):
    return Journal(folder).trials


def is_complete_and_true(folder):
    """All points explored, and every loss the one that this process computes."""
    found = trials(folder)
    assert sum(trial.cell.explored for trial in found.values()) == 7
    for key, trial in found.items():
        assert run_trial(key, trial.cell.model_dump(), trial.config)["loss"] == trial.loss


def test_submitit_arrays_of_one_give_the_serial_tuning_and_of_two_a_complete_one(tmp_path):
    pytest.importorskip("submitit")
    serial = tune(SETTINGS, tmp_path / "serial", executor=InThisProcess())
    one = SlurmArrays(tmp_path / "one-jobs", cap=1, cluster="local", time=5)
    assert tune(SETTINGS, tmp_path / "one", executor=one)["proxy"] == serial["proxy"]
    logs = list((tmp_path / "one-jobs").glob("*_result.pkl"))
    assert len(logs) == len(trials(tmp_path / "one")), "submitit ran every trial, each once"
    two = SlurmArrays(tmp_path / "two-jobs", cap=2, cluster="local", time=5)
    tune(SETTINGS, tmp_path / "two", executor=two)
    is_complete_and_true(tmp_path / "two")


def test_a_ray_worker_killed_in_the_middle_of_a_tuning_changes_nothing(tmp_path, killer):
    ray = pytest.importorskip("ray")

    try:
        tune(SETTINGS, tmp_path / "t", executor=RayTasks(workers=2), observer=killer)
    finally:
        ray.shutdown()
    assert killer.killed
    is_complete_and_true(tmp_path / "t")


def test_a_running_cluster_is_found_by_address(tmp_path):
    pytest.importorskip("ray")
    binary = Path(sys.executable).with_name("ray")
    command = [binary, "start", "--head", "--num-cpus=2", "--port=0", "--include-dashboard=false", "--block"]
    environment = {**os.environ, "PYTHONPATH": str(Path(loopscale.__file__).parents[1])}
    head = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        while "--block" not in (line := head.stdout.readline()):
            assert line, "the cluster did not start"
        (tmp_path / "small.toml").write_text(BASE.to_toml())
        size = ["--target", "loops=8", "--trials", "7", "--seeds", "2", "--out", "t"]
        where = ["--executor", "ray", "--address", "auto"]
        run = [sys.executable, "-m", "loopscale", "tune", "small.toml", *size, *where]
        done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.communicate(timeout=600)
    is_complete_and_true(tmp_path / "t")
