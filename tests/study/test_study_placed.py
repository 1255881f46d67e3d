"""What a trial gets: GPUs of this machine in turn, a device that follows, a warning where none is asked for."""

import multiprocessing
import os

import pytest
import torch

from loopscale import UserError
from loopscale.cli.study_options import Where, _gpus, slurm_options
from loopscale.study import LocalProcesses
from loopscale.study.local import gpu_shares


@pytest.fixture
def four(monkeypatch):
    """A machine with four GPUs, as far as anybody asks."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.parametrize(
    "gpus,shares",
    [
        (1, ["0", "1", "2", "3"]),
        (2, ["0,1", "2,3"]),
        (3, ["0,1,2"]),
        (0.5, ["0", "1", "2", "3", "0", "1", "2", "3"]),
    ],
)
def test_trials_go_round_the_gpus(four, gpus, shares):
    assert gpu_shares(gpus) == shares and LocalProcesses(gpus=gpus).slots == len(shares)


def test_only_the_gpus_that_this_process_sees_are_given_out(four, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert gpu_shares(1) == ["5", "7"]
    with pytest.raises(UserError, match="asks for 8 GPU\\(s\\) and this machine has 2"):
        gpu_shares(8)


def test_a_machine_with_gpus_that_trials_leave_alone_warns(four, capsys):
    assert _gpus("cuda", None) == 1.0 and _gpus("auto", None) == 1.0 and _gpus("cpu", 0.25) == 0.25
    assert capsys.readouterr().err == ""
    assert _gpus("cpu", None) == 0.0 and "has a GPU and the trials use none: add --gpus 1" in capsys.readouterr().err


def test_gpus_bring_the_device_along():
    def where(gpus=None, slurm=None):
        return Where("local", None, gpus, None, slurm)

    assert where().sets(("a=1",)) == ("a=1",)
    assert where(gpus=1.0).sets(("a=1",)) == ('train.device="auto"', "a=1")
    assert where(slurm="gres=gpu:1").sets(()) == ('train.device="auto"',)
    assert where(gpus=1.0).sets(("train.device=cuda",)) == ("train.device=cuda",)
    assert slurm_options("partition=gpu, time=120") == {"partition": "gpu", "time": "120"}


@pytest.mark.slow
def test_each_process_sees_its_own_gpus(four):
    executor = LocalProcesses(gpus=2)
    seen = {executor.submit(os.getenv, "CUDA_VISIBLE_DEVICES").result() for _ in range(8)}
    executor.close(unfinished=False)
    assert seen <= {"0,1", "2,3"} and seen and not multiprocessing.active_children()
