"""The benchmark for a GPU runs on a CPU at a tiny size, so that it is ready when there is one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_gpu_benchmark_runs_small(tmp_path):
    out = tmp_path / "gpu.json"
    command = [sys.executable, ROOT / "benchmarks" / "gpu_step.py", "--small", "--steps", "1", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads(out.read_text())
    assert record["share_of_matmul_peak"] > 0 and set(record["tokens_per_second"]) == {"ours", "plain", "llama"}


@pytest.mark.slow
def test_the_exponents_of_cost_are_measured_small(tmp_path):
    out = tmp_path / "cost.json"
    command = [sys.executable, ROOT / "benchmarks" / "cost_exponents.py", "--small", "--steps", "1", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(out.read_text())["rows"]
    assert abs(rows["loops"]["exponents"]["mb_kept"]["all"] - 1) < 0.15, "what is kept grows with the visits"
    assert rows["loops"]["exponents"]["mb_checkpoint"]["all"] == 0, "a checkpoint does not"
