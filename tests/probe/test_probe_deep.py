"""Thousands of visits: a deep graph is freed without overrunning the stack."""

from __future__ import annotations

import subprocess
import sys

import pytest

DEEP = """
import threading, torch, loopscale as ls
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        for _ in range(300):
            x = x + 0.1 * torch.tanh(self.layer(x))
        return x

def run():
    print(ls.diagnose(Net(), torch.ones(2, 8)).loops)

threading.stack_size(160 * 1024)  # as 10,000 visits on the stack of a process
thread = threading.Thread(target=run)
thread.start()
thread.join()
"""


@pytest.mark.slow
def test_a_deep_graph_is_freed_without_overrunning_the_stack():
    done = subprocess.run([sys.executable, "-c", DEEP], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "300", done.stderr[-500:]
