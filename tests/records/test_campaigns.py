"""The campaigns of benchmarks/campaigns still run: a few tries of each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOTS_ALONE = {"disk", "permission"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kills", "disk", "permission", "soak", "numerics"])
def test_a_few_tries_of_each_campaign_find_nothing(name: str, tmp_path: Path) -> None:
    if name in ROOTS_ALONE and os.geteuid():
        pytest.skip("needs root")
    command = [sys.executable, str(ROOT / "benchmarks" / "campaigns"), name, "--count", "22", "--seconds", "300"]
    done = subprocess.run([*command, "--out", str(tmp_path / "record.json")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    row = json.loads((tmp_path / "record.json").read_text())[name]
    assert row["tried"] and not row["faults"]
