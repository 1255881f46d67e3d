"""The same study on Ray and through submitit as in this process: equal records, and nothing lost with a killed worker."""

import logging
import subprocess
import sys

import pytest

from loopscale import UserError
from loopscale.cli import main
from loopscale.study import InThisProcess, RayTasks, SlurmArrays
from loopscale.train import make_config
from loopscale.transfer import Study, StudyPlan, run_study

BASE = make_config(
    {
        "model": {"width": 32, "head_dim": 16, "layers": 1},
        "data": {"path": "synthetic:copy", "context": 16, "batch_size": 2},
        "train": {"steps": 4, "eval_batches": 2, "device": "cpu"},
    }
)
PLAN = StudyPlan(base=BASE, rules=("looped",), loops=(1, 2), lrs=(2.0**-8, 2.0**-7, 2.0**-6))


def losses(folder):
    return {key: trial.loss for key, trial in Study.load(folder).trials.items()}


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serial") / "s"
    run_study(PLAN, folder, executor=InThisProcess())
    return losses(folder)


@pytest.mark.slow
def test_submitit_arrays_give_the_same_study(serial, tmp_path):
    pytest.importorskip("submitit")
    executor = SlurmArrays(tmp_path / "s-jobs", cap=2, cluster="local", time=5)
    run_study(PLAN, tmp_path / "s", executor=executor)
    assert losses(tmp_path / "s") == serial and executor.slots == 2


class Noted(logging.NullHandler):
    closed = False

    def close(self):
        self.closed = True
        super().close()


def test_submitit_closes_no_log_of_this_process(tmp_path, monkeypatch):
    """It configures logging anew as it is imported, and absl's handler then closes the stream that pytest captures with."""
    pytest.importorskip("submitit")
    monkeypatch.delenv("SUBMITIT_LOG_LEVEL")
    for name in [name for name in sys.modules if name.partition(".")[0] == "submitit"]:
        monkeypatch.delitem(sys.modules, name)
    handler = Noted()
    SlurmArrays(tmp_path, cluster="local")
    assert "submitit" in sys.modules and not handler.closed


def test_no_slurm_here_and_no_cluster_there_are_one_sentence(tmp_path, capsys):
    pytest.importorskip("submitit")
    if subprocess.run(["which", "srun"], capture_output=True).returncode:
        assert main(["transfer", "--executor", "slurm", "--out", str(tmp_path / "s")]) == 2
        assert "there is no SLURM here" in capsys.readouterr().err and not (tmp_path / "s" / "study.json").exists()
    with pytest.raises(UserError, match="the cap on jobs must be at least 1"):
        SlurmArrays(tmp_path, cap=0)
    assert main(["transfer", "--address", "auto", "--out", str(tmp_path / "s")]) == 2
    assert "add --executor ray" in capsys.readouterr().err


@pytest.mark.slow
def test_a_ray_worker_killed_in_the_middle_changes_nothing(serial, tmp_path, killer):
    ray = pytest.importorskip("ray")

    try:
        run_study(PLAN, tmp_path / "s", executor=RayTasks(workers=2), observer=killer)
    finally:
        ray.shutdown()
    assert killer.killed and losses(tmp_path / "s") == serial
