"""attach and convert under DDP and FSDP2, on two real ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
def test_two_ranks_give_the_gradients_of_one(tmp_path):
    path = os.pathsep.join([str(HERE), *sys.path])
    ranks = [
        subprocess.Popen(
            [sys.executable, HERE / "adapt_ranks.py", str(rank), str(tmp_path / "meeting")],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        out, err = rank.communicate(timeout=600)
        assert rank.returncode == 0, err[-3000:]
        assert out.count("equal") == 6, out
